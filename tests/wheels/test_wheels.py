"""Every package, as its users get it: built, looked into, and installed alone with only what it declares."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from environments import fresh
from pip_settings import uv_environment
from workspace import ROOT, Package, packages

pytestmark = pytest.mark.timeout(300)
ALL = pytest.mark.parametrize("package", packages(), ids=lambda package: package.dist)


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of every package and the wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    environment = {**os.environ, **uv_environment()}
    constraints = str(ROOT / "tools" / "constraints.txt")
    for package in packages():
        command = [sys.executable, "-m", "uv", "build", "--quiet", "--build-constraints", constraints]
        subprocess.run([*command, "--out-dir", str(folder), str(package.path)], check=True, env=environment)
    # Where each package of this repository comes from, so that no index can answer for one of them.
    lines = [f"{package.dist} @ {wheel_of(package, folder).as_uri()}\n" for package in packages()]
    (folder / "constraints.txt").write_text("".join(lines))
    return folder


def wheel_of(package: Package, wheelhouse: Path) -> Path:
    return wheelhouse / f"{package.dist.replace('-', '_')}-{package.version}-py3-none-any.whl"


def source_files(package: Package) -> set[str]:
    files = (path.relative_to(package.path / "src") for path in package.source.rglob("*") if path.is_file())
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}


@ALL
def test_the_wheel_holds_exactly_its_files(package: Package, wheelhouse: Path) -> None:
    info = f"{package.dist.replace('-', '_')}-{package.version}.dist-info"
    expected = source_files(package) | {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL")}
    expected |= {f"{info}/licenses/LICENSE"}
    expected |= {f"{info}/entry_points.txt"} if package.scripts else set()
    with zipfile.ZipFile(wheel_of(package, wheelhouse)) as wheel:
        names = set(wheel.namelist())
        metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert names == expected
    assert f"{package.import_name}/py.typed" in names
    assert metadata["Name"] == package.dist
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_payload().strip() == (package.path / "README.md").read_text().strip()


@ALL
def test_the_sdist_holds_what_a_packager_needs(package: Package, wheelhouse: Path) -> None:
    top = f"{package.dist.replace('-', '_')}-{package.version}"
    with tarfile.open(wheelhouse / f"{top}.tar.gz") as sdist:
        names = set(sdist.getnames())
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        assert f"{top}/{name}" in names
    assert {f"{top}/src/{name}" for name in source_files(package)} <= names


@ALL
def test_the_wheel_works_alone(package: Package, wheelhouse: Path, tmp_path: Path) -> None:
    given = str(wheel_of(package, wheelhouse))
    requirements = [given, "--constraints", str(wheelhouse / "constraints.txt")]
    python = fresh(tmp_path / "env", requirements, uv_environment())
    code = (
        f"import {package.import_name} as door; assert door.__version__ == {package.version!r}\n"
        "for name in getattr(door, '__all__', ()):\n    getattr(door, name)"
    )
    programs = [["-c", code]]
    if (package.tests / "smoke.py").exists():
        programs.append([str(package.tests / "smoke.py")])
    for program in programs:
        # -I: nothing of this repository or of the caller's environment is on the path.
        done = subprocess.run(
            [str(python), "-I", *program],
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
