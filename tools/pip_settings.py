"""Where pip finds packages on this machine, said in the variables that uv reads.

uv does not read pip's configuration. A machine that is set up for pip (a mirror, a folder of wheels, a
certificate, the CPU builds of torch) then needs no second set-up for uv.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

# pip's setting: uv's variable and what separates its values.
_VARIABLES = {
    "find-links": ("UV_FIND_LINKS", ","),
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "no-index": ("UV_NO_INDEX", " "),
    "cert": ("SSL_CERT_FILE", " "),
}
# Later sections win, as they do in pip.
_SECTIONS = ("global", "install", ":env:")
_LOCATIONS = ("find-links", "index-url", "extra-index-url")


def uv_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that make uv look where pip looks; those already set are left alone."""
    # pip sees all its indexes as one; uv by itself would stop at the first that knows a name.
    wanted = {"UV_INDEX_STRATEGY": "unsafe-best-match", **translate(_pip_config(environ))}
    return {name: value for name, value in wanted.items() if name not in environ}


def translate(lines: Iterable[str]) -> dict[str, str]:
    """Turn the lines of ``pip config list`` into uv's variables, dropping local places that do not exist."""
    settings: dict[str, str] = {}
    parsed = [_parse(line) for line in lines if "=" in line]
    for section in _SECTIONS:
        settings |= {key: value for found, key, value in parsed if found == section}
    result = {}
    for key, (variable, separator) in _VARIABLES.items():
        values = settings.get(key, "").split()
        if key in _LOCATIONS:
            values = [value for value in values if _usable(value)]
        if values:
            result[variable] = separator.join(values)
    return result


def _parse(line: str) -> tuple[str, str, str]:
    """Split ``section.key='value'``; the section may be ``:env:``."""
    name, _, value = line.partition("=")
    section, _, key = name.strip().rpartition(".")
    return section, key.lower().replace("_", "-"), str(ast.literal_eval(value.strip()))


def _usable(location: str) -> bool:
    parts = urlsplit(location)
    if parts.scheme in ("", "file"):
        return Path(unquote(parts.path)).exists()
    return True


def _pip_config(environ: Mapping[str, str]) -> list[str]:
    """Return what ``pip config list`` prints; inside an environment without pip, the pip below it answers."""
    for python in (sys.executable, getattr(sys, "_base_executable", sys.executable)):
        command = [python, "-m", "pip", "config", "list"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=dict(environ))
        if done.returncode == 0:
            return done.stdout.splitlines()
    return []
