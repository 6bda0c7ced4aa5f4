"""Small repositories for the tests of the tools: real files, real git."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import new_package
from workspace import ROOT


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with three packages: accel-core, accel-state on it, and accel-extra on accel-state."""
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for dist in ("accel-core", "accel-state", "accel-extra"):
        new_package.create(dist, f"What {dist} is good for", torch=dist != "accel-core", root=tmp_path)
    _replace(tmp_path / "packages/accel-core/pyproject.toml", '    "accel-core>=0.1,<0.2",\n', "")
    _replace(tmp_path / "packages/accel-extra/pyproject.toml", "accel-core", "accel-state")
    return tmp_path


@pytest.fixture
def git(repository: Path) -> Callable[..., str]:
    """Run git in the repository, whose first commit holds all its files."""

    def run(*arguments: str) -> str:
        identity = [
            "-c",
            "user.name=Tester",
            "-c",
            "user.email=tester@example.org",
            "-c",
            "commit.gpgsign=false",
        ]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=repository, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    run("init", "--quiet", "--initial-branch", "main")
    run("add", ".")
    run("commit", "--quiet", "--message", "first")
    return run


def _replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
