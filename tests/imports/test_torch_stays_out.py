"""What a process imports: packages that do without torch do, and doors load nothing before it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

import pytest

from workspace import Package, dependents, packages

TORCHLESS = [package for package in packages() if package.dist not in dependents({"torch"}, packages())]
INSTALLED = [package for package in packages() if find_spec(package.import_name)]

# Prepended to a program: any import of torch becomes an error that names itself.
BLOCK_TORCH = """
import sys
class NoTorch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError(f"{name} was imported in a process that must do without torch")
sys.meta_path.insert(0, NoTorch)
"""


def run(code: str) -> str:
    """Return what a fresh interpreter prints for ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(statement: str) -> set[str]:
    """Return the modules that ``statement`` adds to a fresh interpreter."""
    lines = ["import json, sys", "before = set(sys.modules)", statement, "after = set(sys.modules)"]
    return set(json.loads(run("\n".join([*lines, "print(json.dumps(sorted(after - before)))"]))))


def by_name(package: Package) -> str:
    return package.dist


def test_the_block_blocks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCK_TORCH + "import torch.nn"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "must do without torch" in done.stderr


def test_the_packages_that_need_no_torch() -> None:
    assert {package.dist for package in TORCHLESS} >= {"accel-core", "accel-trackers", "accel-cli"}


@pytest.mark.parametrize("package", TORCHLESS, ids=by_name)
def test_every_public_name_without_torch(package: Package) -> None:
    run(
        f"{BLOCK_TORCH}\nimport {package.import_name} as door\n"
        "for name in getattr(door, '__all__', ()):\n    getattr(door, name)"
    )


def test_command_line_help_without_torch() -> None:
    scripts = entry_points(group="console_scripts", name="accel")
    if not scripts:
        pytest.skip("no installed distribution publishes the `accel` command yet")
    (script,) = scripts
    output = run(
        f"{BLOCK_TORCH}\nsys.argv = ['accel', '--help']\nfrom {script.module} import {script.attr} as main\n"
        "try:\n    code = main()\nexcept SystemExit as end:\n    code = end.code\nassert not code, code"
    )
    assert "launch" in output


@pytest.mark.parametrize("package", INSTALLED, ids=by_name)
def test_a_door_loads_only_itself(package: Package) -> None:
    loaded = loaded_by(f"import {package.import_name}")
    floors = {other.import_name for other in packages()} - {package.import_name, "accel_core"}
    assert not {name for name in loaded if name.partition(".")[0] in {"torch", "numpy", "yaml", *floors}}
    ours = {name for name in loaded if name.partition(".")[0] in {package.import_name, "accel_core"}}
    doors = {f"{door}{part}" for door in (package.import_name, "accel_core") for part in ("", ".__about__")}
    assert ours <= {*doors, "accel_core.lazy"}
