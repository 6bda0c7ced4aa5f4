"""The workflows run nox sessions that exist, and nothing can be left out of the one required check."""

from __future__ import annotations

import ast
import os
import subprocess
import tomllib

import pytest
import yaml

from workspace import ROOT, packages

WORKFLOWS = ROOT / ".github" / "workflows"
JOBS = yaml.safe_load((WORKFLOWS / "test.yml").read_text())["jobs"]


@pytest.fixture(scope="module")
def sessions() -> set[str]:
    tree = ast.parse((ROOT / "noxfile.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name for node in functions if "nox.session" in map(ast.unparse, node.decorator_list)}


def test_every_session_of_the_matrix_exists(sessions):
    assert set(JOBS["checks"]["strategy"]["matrix"]["session"]) <= sessions


def test_the_required_check_waits_for_all_jobs():
    assert set(JOBS["check"]["needs"]) == JOBS.keys() - {"check"}


def test_the_matrix_holds_every_python_that_the_packages_name():
    text = (packages()[0].path / "pyproject.toml").read_text()
    prefix = "Programming Language :: Python :: "
    lines = tomllib.loads(text)["project"]["classifiers"]
    named = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    assert JOBS["tests"]["strategy"]["matrix"]["python"] == named


def test_only_the_publishing_job_may_ask_for_a_token():
    release = yaml.safe_load((WORKFLOWS / "release.yml").read_text())
    assert release["permissions"] == {"contents": "read"}
    asking = [name for name, job in release["jobs"].items() if "id-token" in job.get("permissions", {})]
    assert asking == ["publish"]


def test_the_local_run_is_executable_and_well_formed():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
