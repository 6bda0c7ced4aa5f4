"""The environments that nox sessions run in, made by uv so that torch is linked from its cache, not copied.

One shared environment serves every session that works on the source tree; it is synchronised again only when
what it depends on has changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from workspace import ROOT, Package, dependents, packages

CONSTRAINTS = ROOT / "tools" / "constraints.txt"
HOME = ROOT / ".nox"


def shared(environment: Mapping[str, str]) -> Path:
    """Return the Python of the environment with every package, editable, and every development tool."""
    return _synchronised("dev", packages(), "dev", environment)


def without_torch(environment: Mapping[str, str]) -> tuple[Path, list[Package]]:
    """Return the Python of an environment without torch, and its packages: all that need none."""
    with_torch = dependents({"torch"}, packages())
    members = [package for package in packages() if package.dist not in with_torch]
    return _synchronised("no-torch", members, "test", environment), members


def peer(environment: Mapping[str, str]) -> Path:
    """Return the Python of the environment that holds the library which benches compare with."""
    return _synchronised("peer", [], "peer", environment)


def remote(environment: Mapping[str, str]) -> Path:
    """Return the Python of the environment with an S3 server, and the packages that talk to it."""
    members = [package for package in packages() if package.dist in {"accel-core", "accel-state"}]
    return _synchronised("remote", members, "remote", environment)


def models(environment: Mapping[str, str]) -> Path:
    """Return the Python of the environment with real model classes and quantizers, and every package."""
    return _synchronised("models", packages(), "models", environment)


def fresh(place: Path, requirements: Iterable[str], environment: Mapping[str, str]) -> Path:
    """Make an environment at ``place`` with ``requirements`` and what they declare; return its Python."""
    shutil.rmtree(place, ignore_errors=True)
    _uv(environment, "venv", "--python", sys.executable, str(place))
    python = interpreter(place)
    where = ("--python", str(python), "--constraints", str(CONSTRAINTS))
    _uv(environment, "pip", "install", *where, *requirements)
    return python


def interpreter(place: Path) -> Path:
    """Return the Python of the environment at ``place``."""
    return place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _synchronised(name: str, members: Sequence[Package], group: str, environment: Mapping[str, str]) -> Path:
    """Return the Python of the named environment, made again if its description has changed."""
    place = HOME / "{}-{}.{}".format(name, *sys.version_info)
    settings = ROOT / "pyproject.toml"
    tables = tomllib.loads(settings.read_text())["dependency-groups"]
    digest = hashlib.sha256(repr((sys.version, group, tables)).encode())
    for file in [CONSTRAINTS, *(package.path / "pyproject.toml" for package in members)]:
        digest.update(file.read_bytes())
    stamp = place / "stamp"
    HOME.mkdir(exist_ok=True)
    with FileLock(HOME / f"{place.name}.lock"):
        if not (stamp.exists() and stamp.read_text() == digest.hexdigest()):
            requirements = [part for package in members for part in ("--editable", str(package.path))]
            fresh(place, [*requirements, "--group", f"{settings}:{group}"], environment)
            stamp.write_text(digest.hexdigest())
    return interpreter(place)


def _uv(environment: Mapping[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "uv", *arguments, "--quiet"]
    subprocess.run(command, check=True, env={**os.environ, **environment})
