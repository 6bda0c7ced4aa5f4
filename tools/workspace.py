"""The packages of this repository, read from their own metadata; nothing here names one."""

from __future__ import annotations

import ast
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Package:
    """One distribution under ``packages/``."""

    dist: str
    import_name: str
    path: Path
    requires: frozenset[str]
    scripts: bool

    @property
    def needs_torch(self) -> bool:
        """Whether it declares torch itself."""
        return "torch" in self.requires

    @property
    def source(self) -> Path:
        """The folder of its import package."""
        return self.path / "src" / self.import_name

    @property
    def tests(self) -> Path:
        """The folder of its own tests."""
        return self.path / "tests"

    @property
    def about(self) -> Path:
        """The file that states its version."""
        return self.source / "__about__.py"

    @property
    def version(self) -> str:
        """The version that ``__about__`` states, read without importing the package."""
        match = re.search(r'^__version__ = "([^"]+)"$', self.about.read_text(), re.MULTILINE)
        if match is None:
            message = f'{self.about} has no line __version__ = "..."'
            raise ValueError(message)
        return match[1]


def read_package(path: Path) -> Package:
    """Read the package in the folder ``path``; the folder bears the distribution's name."""
    data: dict[str, Any] = tomllib.loads((path / "pyproject.toml").read_text())
    project = data["project"]
    if project["name"] != path.name:
        message = (
            f"{path}/pyproject.toml names the project {project['name']!r}; the folder must have the same name"
        )
        raise ValueError(message)
    (source,) = data["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    return Package(
        dist=project["name"],
        import_name=Path(source).name,
        path=path,
        requires=frozenset(requirement_name(line) for line in project.get("dependencies", [])),
        scripts=any(project.get(key) for key in ("scripts", "gui-scripts", "entry-points")),
    )


@cache
def packages(root: Path = ROOT) -> tuple[Package, ...]:
    """Return every package of the repository, in the order of their names."""
    return tuple(read_package(file.parent) for file in sorted(root.glob("packages/*/pyproject.toml")))


def dependents(names: set[str], known: tuple[Package, ...]) -> set[str]:
    """Return ``names`` and every package that needs one of them, directly or through others."""
    found = set(names)
    while grown := {package.dist for package in known if package.requires & found} - found:
        found |= grown
    return found


def requirement_name(line: str) -> str:
    """Return the normalised distribution name that a requirement starts with."""
    match = re.match(r"[A-Za-z0-9._-]+", line.strip())
    if match is None:
        message = f"not a requirement: {line!r}"
        raise ValueError(message)
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def re_exported(door: Path) -> list[str]:
    """Return what a package's ``__init__`` offers: names imported ``as`` themselves, as type checkers ask."""
    imports = (node for node in ast.walk(ast.parse(door.read_text())) if isinstance(node, ast.ImportFrom))
    found = (alias.name for node in imports for alias in node.names if alias.name == alias.asname)
    return [name for name in found if not name.startswith("_")]
