from __future__ import annotations

import tomllib

import pytest

from new_package import create
from workspace import ROOT, packages, read_package


def plain(project: dict[str, object]) -> dict[str, object]:
    """What all packages state alike."""
    own = {"name", "description", "dependencies", "optional-dependencies", "scripts", "entry-points", "urls"}
    return {key: value for key, value in project.items() if key not in own}


@pytest.mark.parametrize("package", packages(), ids=lambda package: package.dist)
def test_a_new_package_is_like_the_others(package, repository):
    ours = tomllib.loads((package.path / "pyproject.toml").read_text())
    new = tomllib.loads((repository / "packages/accel-state/pyproject.toml").read_text())
    assert plain(ours["project"]) == plain(new["project"])
    assert ours["build-system"] == new["build-system"]
    assert (
        ours["tool"]["hatch"]["build"]["targets"]["sdist"]
        == new["tool"]["hatch"]["build"]["targets"]["sdist"]
    )


@pytest.mark.parametrize("torch", [True, False])
def test_a_new_package_enters_the_contracts(tmp_path, torch):
    for name in ("pyproject.toml", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    folder = create("accel-new-thing", "Something new", torch=torch, root=tmp_path)
    package = read_package(folder)
    assert (package.import_name, package.version, package.needs_torch) == ("accel_new_thing", "0.1.0", torch)
    contracts = tomllib.loads((tmp_path / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert "accel_new_thing" in contracts["root_packages"]
    layers, torchless = contracts["contracts"]
    assert "accel_new_thing |" in layers["layers"][1]
    assert ("accel_new_thing" in torchless["source_modules"]) is not torch


@pytest.mark.parametrize("dist", ["thing", "accel_thing", "Accel-thing", "accel-", "accel-a/b"])
def test_a_name_of_another_form_is_refused(tmp_path, dist):
    with pytest.raises(ValueError, match="is no name for a package here"):
        create(dist, "x", torch=False, root=tmp_path)


def test_an_existing_package_is_left_alone(repository):
    before = (repository / "packages/accel-state/README.md").read_text()
    with pytest.raises(FileExistsError):
        create("accel-state", "x", torch=False, root=repository)
    assert (repository / "packages/accel-state/README.md").read_text() == before
