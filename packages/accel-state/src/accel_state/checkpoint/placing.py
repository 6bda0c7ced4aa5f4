"""Where the tensors of an entry lie in its file, by manifest and header, which must agree."""

from __future__ import annotations

from pathlib import Path

from accel_core.errors import CheckpointError

from .manifest import Entry, TensorRecord
from .tensor_file import Place, read_header, stored_as


def placed(folder: Path, entry: Entry) -> dict[str, Place]:
    """Return where the tensors of an entry lie in its file.

    Raises CheckpointError when header and manifest do not say the same, or a view would leave its memory.
    """
    where = str(folder / entry.path)
    header = read_header(folder / entry.path, where)
    carriers = {name: record for name, record in entry.tensors.items() if record.of is None}
    twice = sorted(entry.hidden.keys() & entry.tensors.keys())
    if twice:
        raise _contradiction(twice[0], "it is there twice", where)
    carriers |= entry.hidden
    for name in sorted(carriers.keys() ^ header.keys()):
        raise _contradiction(name, "it is only in one of them", where)
    for name, record in carriers.items():
        if record.of is not None:
            raise _contradiction(name, "it is memory for others, and a view itself", where)
        place = header[name]
        if (place.code, place.shape) != stored_as(record.torch_dtype(where), record.shape):
            raise _contradiction(
                name, f"{place.code} {list(place.shape)} against {record.dtype} {list(record.shape)}", where
            )
    for name, record in entry.tensors.items():
        if record.of is not None:
            _check_view(name, record, header.get(record.of), where)
    return header


def _check_view(name: str, record: TensorRecord, base: Place | None, where: str) -> None:
    if base is None or len(record.stride) != len(record.shape):
        raise _contradiction(name, f"it is a view of {record.of!r}, which is not there", where)
    width, count, reach = record.torch_dtype(where).itemsize, 1, 0
    for size, stride in zip(record.shape, record.stride, strict=True):
        count *= size
        reach += (size - 1) * stride
    room = base.end - base.begin
    inside = count and record.offset + (reach + 1) * width <= room and count * width <= room
    if not inside:
        raise _contradiction(name, f"it does not lie within {record.of!r}", where)


def _contradiction(name: str, what: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"The manifest and the file do not agree on the tensor {name!r}: {what}",
        where=where,
        fix="do not use this checkpoint: it is damaged, or was made to mislead",
    )


__all__ = ["placed"]
