"""URIs of checkpoints: kept as they were given, never passed through functions for paths."""

from __future__ import annotations

import os
import re
from pathlib import Path

from accel_core.errors import CheckpointError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://(.*)", re.DOTALL)
_SECRET = re.compile(r"(://[^/@:]*):[^/@]*@")
_MANGLED = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:/(?!/)")


def is_uri(path: str | os.PathLike[str]) -> bool:
    """Tell whether ``path`` is a URI rather than a path of the file system."""
    return "://" in os.fspath(path)


def scheme_of(uri: str) -> str:
    """Return the scheme, in lower case; raise CheckpointError for what has none, or several."""
    return _split(uri)[0]


def normal(uri: str) -> str:
    """Return ``uri`` without slashes that say nothing; raise CheckpointError for what is ambiguous in it."""
    scheme, rest = _split(uri)
    front = "/" if rest.startswith("/") else ""
    parts = [part for part in rest.split("/") if part]
    wrong = [part for part in parts if part in {".", ".."} or "\0" in part]
    if wrong:
        raise CheckpointError(
            f"{shown(uri)!r} contains {wrong[0]!r}, which stores take for a name", fix="write the URI out"
        )
    return f"{scheme}://{front}{'/'.join(parts)}"


def child(directory: str | os.PathLike[str], name: str) -> str:
    """Return the path of ``name`` in ``directory``, be that a URI or a path."""
    text = os.fspath(directory)
    if not is_uri(text):
        return str(Path(text, name))
    clean = normal(text)
    return f"{clean}{'' if clean.endswith('/') else '/'}{name}"


def parent(uri: str) -> str:
    """Return the URI of the folder that ``uri`` lies in, which is itself at the top."""
    scheme, rest = _split(normal(uri))
    front = "/" if rest.startswith("/") else ""
    return f"{scheme}://{front}{rest[len(front) :].rpartition('/')[0]}"


def name_of(uri: str) -> str:
    """Return the last part of ``uri``."""
    return _split(normal(uri))[1].rpartition("/")[2]


def shown(uri: str) -> str:
    """Return ``uri`` without a password."""
    return _SECRET.sub(r"\1:***@", uri)


def mangled(path: str) -> bool:
    """Tell whether ``path`` looks like a URI that went through a function for paths: ``s3:/bucket``."""
    return _MANGLED.match(path) is not None


def _split(uri: str) -> tuple[str, str]:
    match = _SCHEME.fullmatch(uri)
    if match is None or "://" in match[2]:
        raise CheckpointError(
            f"{shown(uri)!r} is no URI of one scheme", fix="write it as scheme://bucket/folder, without '::'"
        )
    return match[1].lower(), match[2]


__all__ = ["child", "is_uri", "mangled", "name_of", "normal", "parent", "scheme_of", "shown"]
