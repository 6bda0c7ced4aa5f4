from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from workspace import ROOT, dependents, packages, read_package, requirement_name

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
EVERY = pytest.mark.parametrize("package", packages(), ids=lambda package: package.dist)


@EVERY
def test_every_package_has_the_same_shape(package):
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
        assert (package.path / name).is_file(), f"{package.dist} lacks {name}"
    for name in ("__init__.py", "__about__.py", "py.typed"):
        assert (package.source / name).is_file(), f"{package.dist} lacks {name}"
    assert (package.path / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert any(package.tests.glob("test_*.py")), f"{package.dist} has no tests"


@EVERY
def test_ranges_let_the_present_versions_in(package):
    from packaging.requirements import Requirement

    versions = {other.dist: other.version for other in packages()}
    project = tomllib.loads((package.path / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        if requirement.name in versions:
            assert requirement.specifier.contains(versions[requirement.name]), requirement


def test_the_import_contracts_cover_every_package():
    names = {package.import_name for package in packages()}
    contracts = SETTINGS["tool"]["importlinter"]
    assert set(contracts["root_packages"]) == names
    layers, torchless = contracts["contracts"]
    assert set(" | ".join(layers["layers"]).split(" | ")) == names
    with_torch = dependents({"torch"}, packages())
    assert set(torchless["source_modules"]) == {p.import_name for p in packages() if p.dist not in with_torch}


def test_floor_one_depends_on_the_core_alone():
    ours = {package.dist for package in packages()}
    for package in packages():
        if package.dist not in ("accel-core", "accel-meta"):
            assert package.requires & ours == {"accel-core"}, package.dist


def test_dependents_follow_the_whole_chain(repository):
    known = packages(repository)
    assert dependents({"accel-extra"}, known) == {"accel-extra"}
    assert dependents({"accel-state"}, known) == {"accel-state", "accel-extra"}
    assert dependents({"torch"}, known) == {"torch", "accel-state", "accel-extra"}


def test_a_folder_named_unlike_its_project_is_refused(repository: Path):
    moved = repository / "packages" / "other"
    (repository / "packages" / "accel-state").rename(moved)
    with pytest.raises(ValueError, match="'accel-state'; the folder must have the same name"):
        read_package(moved)


def test_a_version_that_cannot_be_read_is_an_error(repository: Path):
    package = packages(repository)[0]
    package.about.write_text("__version__ = version()\n")
    with pytest.raises(ValueError, match="has no line __version__"):
        _ = package.version


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("torch>=2.6", "torch"),
        ("PyYAML >=6", "pyyaml"),
        ("accel_core[all]~=0.1; os_name=='nt'", "accel-core"),
    ],
)
def test_requirement_names_are_normalised(line, name):
    assert requirement_name(line) == name


def test_a_line_that_is_no_requirement_is_refused():
    with pytest.raises(ValueError, match="not a requirement"):
        requirement_name("# torch")
