"""What a checkpoint says about itself: ``manifest.json``, written last, hashed like everything else.

The first line holds the format, the version and the hash of all that follows it, and must be exactly as
it would be written; so no byte of the file can change unseen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

from accel_core.errors import CheckpointError
from accel_core.paths import inner_path
from accel_core.plain_json import parse

from .hashing import ALGORITHM, digest, hasher
from .naming import MANIFEST, clash

if TYPE_CHECKING:
    import torch

FORMAT = "accel-checkpoint"
VERSION = 1
MOST_BYTES = 128 << 20
"""A larger manifest is neither written nor read."""
MOST_ENTRIES = 500_000
"""Files, names and tensors of one checkpoint, together."""

Kind = Literal["tensors", "json", "folder"]

_FIRST = '{{"format": "{}", "version": {}, "algorithm": "{}", "hash": "{}",\n'
_FIRST_PATTERN = re.compile(
    rb'\{"format": "([^"\n]{1,40})", "version": (\d{1,9}), '
    rb'"algorithm": "([^"\n]{1,40})", "hash": "([0-9a-f]{1,128})",\n'
)


@cache
def _dtypes() -> dict[str, torch.dtype]:
    # Imported on use: who only shows what a checkpoint says of itself does not wait for torch.
    import torch

    found = (value for value in vars(torch).values() if isinstance(value, torch.dtype))
    return {str(value).removeprefix("torch."): value for value in found}


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and hash of a file."""

    size: int
    hash: str


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Dtype and shape of a tensor; for one in the memory of another also where in it.

    ``offset`` is in bytes from the first of ``of``, ``stride`` in elements.
    """

    dtype: str
    shape: tuple[int, ...]
    of: str | None = None
    offset: int = 0
    stride: tuple[int, ...] = ()

    def torch_dtype(self, where: str) -> torch.dtype:
        """Return the dtype; raise CheckpointError when this torch has none of that name."""
        known = _dtypes()
        if self.dtype not in known:
            raise CheckpointError(
                f"Unknown dtype {self.dtype[:40]!r}", where=where, fix="read it with a newer version of torch"
            )
        return known[self.dtype]


@dataclass(frozen=True, slots=True)
class Entry:
    """What is stored under one name: its kind, the file or folder, and the tensors in it.

    ``hidden`` are tensors that only carry the memory of others.
    """

    kind: Kind
    path: str
    tensors: Mapping[str, TensorRecord] = field(default_factory=dict)
    hidden: Mapping[str, TensorRecord] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole checkpoint. ``number`` counts the commits of one folder, ``time`` is when, in UTC."""

    number: int
    time: str
    world_size: int
    writer: str
    step: int | None
    entries: Mapping[str, Entry]
    files: Mapping[str, FileRecord]
    algorithm: str = ALGORITHM

    @property
    def size(self) -> int:
        """Return the bytes of all files but the manifest."""
        return sum(record.size for record in self.files.values())

    def entry(self, name: str, kind: Kind, where: str) -> Entry:
        """Return what is stored as ``name``; raise CheckpointError, with ``where``, if it is no ``kind``."""
        found = self.entries.get(name)
        if found is None or found.kind != kind:
            what = (
                f"Nothing is stored as {name!r}" if found is None else f"{name!r} is stored as {found.kind}"
            )
            raise CheckpointError(
                f"{what}; {kind} was asked for",
                where=where,
                fix=f"stored are: {', '.join(sorted(self.entries)[:50]) or 'no names at all'}",
            )
        return found

    def encode(self) -> bytes:
        """Return the text of the file; raise CheckpointError for what could not be read back."""
        count = len(self.files) + len(self.entries)
        _bounded(count + sum(len(entry.tensors) + len(entry.hidden) for entry in self.entries.values()))
        fault = self._fault() or clash([MANIFEST, *self.files])
        if fault:
            raise CheckpointError(f"This cannot be one checkpoint: {fault}", fix="write less, or other names")
        facts = {"number": self.number, "step": self.step, "time": self.time}
        facts |= {"world_size": self.world_size, "writer": self.writer}
        parts = [f'"{key}": {json.dumps(value)}' for key, value in facts.items()]
        for title, records in (("entries", self.entries), ("files", self.files)):
            lines = (f"  {json.dumps(name)}: {json.dumps(_brief(value))}" for name, value in records.items())
            parts.append(f'"{title}": {{\n' + ",\n".join(lines) + "\n}")
        rest = (",\n".join(parts) + "}\n").encode()
        result = _FIRST.format(FORMAT, VERSION, self.algorithm, digest(rest, self.algorithm)).encode() + rest
        if len(result) > MOST_BYTES:
            raise CheckpointError(
                f"The manifest would have {len(result):,} bytes; at most {MOST_BYTES:,} are read",
                fix="store fewer tensors and shorter names in one checkpoint",
            )
        return result

    def _fault(self) -> str:
        for name, entry in self.entries.items():
            if entry.kind != "folder" and entry.path not in self.files:
                return f"the file {entry.path!r} of {name!r} is not among its files"
        return ""


def _brief(record: Any) -> dict[str, Any]:
    """Return a record as JSON, without what has its default value."""
    if isinstance(record, FileRecord):
        return asdict(record)
    if isinstance(record, TensorRecord):
        short = {"dtype": record.dtype, "shape": record.shape}
        inside = {"of": record.of, "offset": record.offset, "stride": record.stride}
        return short | (inside if record.of is not None else {})
    result: dict[str, Any] = {"kind": record.kind, "path": record.path}
    for title in ("tensors", "hidden"):
        found = getattr(record, title)
        if found:
            result[title] = {name: _brief(value) for name, value in found.items()}
    return result


def decode(data: bytes, where: str) -> Manifest:
    """Return what a manifest says; raise CheckpointError that names what is wrong with it.

    It must be unchanged since it was written, of a known format, within bounds, and name only files
    inside its folder. It says nothing yet about these files.
    """
    first = _FIRST_PATTERN.match(data)
    if first is None:
        raise _damaged("its first line is not that of a manifest", where)
    name, version, algorithm, expected = (group.decode("utf-8", "replace") for group in first.groups())
    if name != FORMAT or version != str(VERSION):
        raise CheckpointError(
            f"Unknown format {name!r}, version {version}; known is {FORMAT!r}, version {VERSION}",
            where=where,
            fix="read it with the version of accel-state that wrote it, or a newer one",
        )
    hasher(algorithm, where)
    if digest(memoryview(data)[first.end() :], algorithm) != expected:
        raise _damaged("it is not what was written (its hash differs)", where)
    value = parse(data, where)
    try:
        # Counted before it is looked at in detail, which takes longer than reading it did.
        _bounded(_size(value))
        result = Manifest(
            number=_is(value["number"], int),
            time=_is(value["time"], str),
            world_size=_is(value["world_size"], int),
            writer=_is(value["writer"], str),
            step=None if value["step"] is None else _is(value["step"], int),
            entries={name: _entry(each) for name, each in _is(value["entries"], dict).items()},
            files={_inside(path): _file(each) for path, each in _is(value["files"], dict).items()},
            algorithm=algorithm,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(f"{type(error).__name__}: {error}", where) from error
    except CheckpointError as error:
        raise CheckpointError(error.what, where=where, fix=error.fix) from error
    fault = result._fault()
    if fault:
        raise _damaged(fault, where)
    return result


def _bounded(count: int) -> None:
    if count > MOST_ENTRIES:
        raise CheckpointError(
            f"There are {count:,} files, names and tensors; the bound of one checkpoint is {MOST_ENTRIES:,}",
            fix="store fewer and larger tensors in one checkpoint",
        )


def _size(value: Any) -> int:
    """Return how many files, names and tensors a manifest lists."""
    entries = _is(value["entries"], dict)
    inner = (each.get(key, ()) for each in entries.values() for key in ("tensors", "hidden"))
    return len(_is(value["files"], dict)) + len(entries) + sum(map(len, inner))


def _entry(value: Any) -> Entry:
    kind = _is(value["kind"], str)
    if kind not in get_args(Kind):
        raise ValueError(f"the kind {kind[:40]!r}")
    found = [
        {name: _tensor(each) for name, each in value.get(key, {}).items()} for key in ("tensors", "hidden")
    ]
    return Entry(kind, _inside(value["path"]), *found)


def _tensor(value: Any) -> TensorRecord:
    of = value.get("of")
    return TensorRecord(
        dtype=_is(value["dtype"], str),
        shape=_numbers(value["shape"]),
        of=None if of is None else _is(of, str),
        offset=_count(value.get("offset", 0)),
        stride=_numbers(value.get("stride", [])),
    )


def _file(value: Any) -> FileRecord:
    return FileRecord(_count(value["size"]), _is(value["hash"], str))


def _inside(path: Any) -> str:
    return str(inner_path(path))


def _numbers(value: Any) -> tuple[int, ...]:
    if len(_is(value, list)) > 64:
        raise ValueError(f"{len(value)} dimensions")
    return tuple(_count(each) for each in value)


def _count(value: Any) -> int:
    if not 0 <= _is(value, int) < 2**63:
        raise ValueError(f"the number {str(value)[:40]}")
    return int(value)


def _is(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{repr(value)[:60]} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _damaged(what: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"The manifest cannot be used: {what}", where=where, fix="use another checkpoint: this one is damaged"
    )


__all__ = ["MOST_BYTES", "MOST_ENTRIES", "Entry", "FileRecord", "Kind", "Manifest", "TensorRecord", "decode"]
