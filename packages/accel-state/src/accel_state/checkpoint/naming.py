"""Which names a checkpoint may hold, and which file each of them is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from accel_core.errors import CheckpointError
from accel_core.paths import shown

MANIFEST = "manifest.json"
"""The file that makes a folder a checkpoint."""

_MOST_BYTES = 200
"""Of one part of a name: file systems take 255, less the ending."""
_UNFIT = re.compile(r"[\x00-\x1f\x7f\\:*?\"<>|\ud800-\udfff]")
"""What some file system does not take in the name of a file."""


def fit(name: object) -> str:
    """Return ``name`` if it can be that of a file anywhere; raise CheckpointError with the reason if not.

    Parts are separated by slashes; the result names nothing outside the folder that it is taken in.
    """
    reason = _unfit(name)
    if reason or not isinstance(name, str):
        raise CheckpointError(
            f"{shown(name)} cannot be a name in a checkpoint: {reason}",
            fix="use letters, digits, '-', '_', '.' inside, and '/' between parts",
        )
    return name


def _unfit(name: object) -> str:
    if not isinstance(name, str):
        return f"it is a {type(name).__name__}, not a string"
    found = _UNFIT.search(name)
    if found:
        return f"it contains {found.group()!r}"
    for part in name.split("/"):
        if not part:
            return "a part of it is empty, or it begins or ends with a slash"
        if part.startswith("."):
            return f"its part {shown(part)} begins with a dot"
        if part.endswith((" ", ".")):
            return f"its part {shown(part)} ends with a dot or a space"
        if len(part.encode()) > _MOST_BYTES:
            return f"a part of it is longer than {_MOST_BYTES} bytes"
    return ""


def clash(paths: Iterable[str]) -> str:
    """Return a sentence about two paths that some file system takes for one, or one below the other."""
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        key = unicodedata.normalize("NFC", path).casefold()
        if key in seen:
            return f"{seen[key]!r} and {path!r} are one file where case does not count"
        seen[key] = path
        for place, letter in enumerate(key):
            if letter == "/":
                folders.setdefault(key[:place], path)
    for key, path in seen.items():
        if key in folders:
            return f"{path!r} is a file, and {folders[key]!r} lies in a folder of that name"
    return ""


__all__ = ["MANIFEST", "clash", "fit"]
