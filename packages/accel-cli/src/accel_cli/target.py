"""Is the thing to run there? Asked before any process is started."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from accel_core.errors import LaunchError
from accel_core.protocols.command import LaunchSpec


def check_target(spec: LaunchSpec) -> None:
    """Raise LaunchError when the script, module or program of ``spec`` cannot be run."""
    if spec.module and not spec.python:
        raise LaunchError("--module and --no_python contradict each other", fix="keep the one that is meant")
    if spec.module:
        _check_module(spec.script)
    elif spec.python:
        _check_script(spec.script)
    else:
        _check_program(spec.script)


def _check_script(path: str) -> None:
    if os.path.isdir(path):
        # Python runs a folder that holds a __main__.py.
        if not os.path.isfile(os.path.join(path, "__main__.py")):
            raise LaunchError(
                f"The script {path!r} is a folder without a __main__.py", fix="name the script inside it"
            )
        return
    if not os.path.exists(path):
        raise LaunchError(
            f"The script {path!r} does not exist", where=f"looked in {os.getcwd()}", fix=_near(path)
        )
    if not os.access(path, os.R_OK):
        raise LaunchError(f"The script {path!r} cannot be read by this user", fix=f"chmod +r {path}")


def _near(path: str) -> str:
    from accel_core.spelling import nearest

    folder, name = os.path.split(path)
    try:
        siblings = os.listdir(folder or ".")
    except OSError:
        return "check the path; options of accel launch come before the script"
    near = nearest(name, siblings)
    if near is not None:
        return f"did you mean {os.path.join(folder, near)!r}?"
    return "check the path; options of accel launch come before the script"


def _check_program(name: str) -> None:
    if os.path.dirname(name):
        candidates: Sequence[str] = (name,)
    else:
        candidates = [os.path.join(folder, name) for folder in os.get_exec_path()]
    if any(os.path.isfile(path) and os.access(path, os.X_OK) for path in candidates):
        return
    if os.path.isfile(name):
        fix = f"chmod +x {name}" if os.path.dirname(name) else f"write ./{name} (and chmod +x {name})"
        raise LaunchError(f"The program {name!r} cannot be executed as it is named", fix=fix)
    raise LaunchError(f"The program {name!r} does not exist", fix="give its path, or put its folder on PATH")


def _check_module(name: str) -> None:
    """Look the module up step by step: `importlib.util.find_spec` would import its parents."""
    path: Sequence[str] | None = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        found = _find(".".join(parts[:count]), path)
        if found is None:
            missing = ".".join(parts[:count])
            raise LaunchError(
                f"No module named {missing!r}",
                where=f"looked in {os.getcwd()} and in the packages of {sys.executable}",
                fix="check the name: dots, not slashes, and no .py at the end",
            )
        path = found
    if path and _find(f"{name}.__main__", path) is None:
        raise LaunchError(f"{name!r} is a package without a __main__ module", fix="name the module inside it")


def _find(name: str, path: Sequence[str] | None) -> Sequence[str] | None:
    """Return the folders of package ``name``, none for a plain module; None when there is no such module."""
    where = path if path is not None else [os.getcwd(), *sys.path]
    for finder in sys.meta_path:
        # The built-in finders take no path for a top-level name; the one for files does.
        for at in (None, where) if path is None else (where,):
            spec = finder.find_spec(name, at)
            if spec is not None:
                return list(spec.submodule_search_locations or ())
    return None


__all__ = ["check_target"]
