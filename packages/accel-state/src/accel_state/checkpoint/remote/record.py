"""The small object whose presence is the commit: which data a checkpoint is, and the hash of its manifest.

Data lie under a name that no other save has, and neither data nor record are ever written twice. So there
is no moment at which a reader sees a mixture, on stores that rename nothing and on those that replace
an object in steps.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from accel_core.plain_json import parse

from ..hashing import ALGORITHM, digest
from ..manifest import MOST_BYTES
from .trouble import DamagedError

MOST_RECORD = 4096
"""Bytes of a record; a larger one is not read."""
STALE_AFTER = 24 * 3600.0
"""Seconds after its begin from which on a save that was not committed is taken for dead."""

_TIME = "%Y%m%dT%H%M%SZ"
_TOKEN = r"\d{8}T\d{6}Z-[0-9a-f]{12}"
_DATA = re.compile(rf"data-({_TOKEN})")
_RECORD = re.compile(rf"commit-(\d{{10}})-({_TOKEN})\.json")
_TEXT = re.compile(
    rb'\{"format": "accel-commit", "version": 1, "algorithm": "'
    + re.escape(ALGORITHM.encode())
    + rb'", "hash": "([0-9a-f]{1,128})", "commit": (\{.*\})\}\n',
    re.DOTALL,
)
_MOST_NUMBER = 10**10


def new_token() -> str:
    """Return a name that no other save has, which tells when it began."""
    return f"{datetime.now(UTC).strftime(_TIME)}-{secrets.token_hex(6)}"


def folder_of(token: str) -> str:
    """Return the name of the folder with the data of a save."""
    return f"data-{token}"


def token_of(name: str) -> str | None:
    """Return the token of a folder with data, None for other names."""
    match = _DATA.fullmatch(name)
    return match[1] if match else None


def stale(token: str) -> bool:
    """Tell whether the save of that token began so long ago that it cannot be under way."""
    try:
        began = datetime.strptime(token.partition("-")[0], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return False
    return (datetime.now(UTC) - began).total_seconds() > STALE_AFTER


def place_of(name: str) -> tuple[int, str] | None:
    """Return number and token from the name of a record, None for other names."""
    match = _RECORD.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


@dataclass(frozen=True, slots=True)
class Commit:
    """What the record of a commit says. ``size`` are the bytes of all files but the manifest."""

    number: int
    time: str
    step: int | None
    world_size: int
    size: int
    token: str
    manifest_size: int
    manifest_hash: str

    @property
    def name(self) -> str:
        """Return the name of the record."""
        return f"commit-{self.number:010d}-{self.token}.json"

    @property
    def folder(self) -> str:
        """Return the name of the folder with the data."""
        return folder_of(self.token)

    def encode(self) -> bytes:
        """Return the bytes of the record."""
        text = json.dumps(asdict(self))
        front = f'{{"format": "accel-commit", "version": 1, "algorithm": "{ALGORITHM}", '
        return f'{front}"hash": "{digest(text.encode())}", "commit": {text}}}\n'.encode()


def decode(data: bytes, name: str, where: str) -> Commit:
    """Return what the record ``name`` says; raise DamagedError when it is not what was written."""
    match = _TEXT.fullmatch(data)
    if match is None:
        raise _damaged("it does not look like one of this version", name, where)
    if digest(match[2]) != match[1].decode():
        raise _damaged("it is not what was written (its hash differs)", name, where)
    value = parse(match[2], where)
    try:
        result = Commit(**value)
    except TypeError as error:
        raise _damaged(str(error), name, where) from error
    wrong = _wrong(result) or ("it is of another commit" if result.name != name else "")
    if wrong:
        raise _damaged(wrong, name, where)
    return result


def _wrong(found: Commit) -> str:
    numbers: dict[str, tuple[Any, int]] = {
        "number": (found.number, _MOST_NUMBER),
        "world_size": (found.world_size, 2**31),
        "size": (found.size, 2**63),
        "manifest_size": (found.manifest_size, MOST_BYTES + 1),
    }
    for title, (value, bound) in numbers.items():
        if type(value) is not int or not 0 <= value < bound:
            return f"its {title} is {str(value)[:40]}"
    texts = (found.time, found.manifest_hash, found.token)
    if not all(type(each) is str for each in texts) or re.fullmatch(_TOKEN, found.token) is None:
        return "a text in it is none"
    if found.step is not None and type(found.step) is not int:
        return "its step is no number"
    return ""


def _damaged(what: str, name: str, where: str) -> DamagedError:
    return DamagedError(
        f"The record {name} cannot be used: {what}", where=where, fix="use the checkpoint before it"
    )


__all__ = [
    "MOST_RECORD",
    "STALE_AFTER",
    "Commit",
    "decode",
    "folder_of",
    "new_token",
    "place_of",
    "stale",
    "token_of",
]
