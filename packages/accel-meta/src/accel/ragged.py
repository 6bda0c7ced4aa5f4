"""Join the rows and objects that ranks keep, of which there may be unequal numbers."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from accel_core.errors import AccelError, DataError
from accel_core.nested import leaves, map_nested
from accel_state.calls import Call
from accel_state.operations.agreement import agree
from accel_state.rollcall import ROOM, joined, packed

if TYPE_CHECKING:
    from accel_core.protocols import Collectives

NOTHING = "accel: this rank's batch is padding"
"""What a rank sends that keeps no object."""


def rows(leaf: Any) -> int:
    """Return the first dimension; 1 without dimensions."""
    return leaf.shape[0] if leaf.ndim else 1


class _Header(NamedTuple):
    """What a rank brings: the form of its values, how many rows each has, and what is wrong with them."""

    form: tuple[tuple[str, str, tuple[int, ...]], ...]
    rows: tuple[int, ...]
    trouble: AccelError | None
    objects: bool = False

    def mark(self) -> int:
        text = repr((self.form, self.rows, str(self.trouble), self.objects))
        return int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "little")


def join_rows(data: Any, trouble: AccelError | None, group: Collectives) -> Any:
    """Return the rows of all ranks, in rank order; raise on every rank what is wrong on any. Collective."""
    if group.world_size == 1:
        if trouble is not None:
            raise trouble
        return data
    found = [leaf for _, leaf in leaves(data)]
    carries: Callable[[torch.Tensor], bool] | None = getattr(group, "carries", None)
    # Tensors on an accelerator are not waited for.
    sends = trouble is None and carries is not None and all(map(carries, found))
    group, headers, parts = _exchange(_header(data, trouble), group, found if sends else [])
    if parts is not None:
        each = joined(parts, found, zip(*(header.rows for header in headers), strict=True))
        return map_nested(lambda _: next(each), data)
    if len({header.rows for header in headers}) == 1:
        return map_nested(lambda leaf: group.all_gather(leaf).flatten(0, 1), data)
    counts: Iterator[tuple[int, ...]] = iter(zip(*(header.rows for header in headers), strict=True))
    return map_nested(lambda leaf: _join_ragged(leaf, next(counts), group), data)


def _exchange(
    mine: _Header, group: Collectives, tensors: list[torch.Tensor]
) -> tuple[Collectives, list[_Header], list[bytes] | None]:
    """Return the group to go on with, what all ranks bring, and the bytes of ``tensors`` if they are few.

    Raises on every rank what is wrong on any.
    """
    group, values = agree(Call.of("gather_for_metrics"), group, lambda: _message(mine, tensors))
    parts: list[bytes] | None = None
    if values is not None:
        brought = [pickle.loads(value) for value in values]  # noqa: S301 - from ranks of our own group
        headers = [header for header, _ in brought]
        sent = [part for _, part in brought]
        parts = None if None in sent else sent
    elif len(set(group.vote(mine.mark())())) == 1:
        headers = [mine] * group.world_size
    else:
        headers = group.all_gather_object(mine)
    _raise_trouble([header.trouble for header in headers], group)
    if len({(header.form, header.objects) for header in headers}) > 1:
        raise _unlike(headers, group)
    return group, headers, parts


def _message(mine: _Header, tensors: list[torch.Tensor]) -> bytes:
    """Return what this rank brings, with the bytes of ``tensors`` where they are few."""
    whole = pickle.dumps((mine, packed(tensors) if tensors else None))
    return whole if len(whole) <= ROOM else pickle.dumps((mine, None))


def _header(data: Any, trouble: AccelError | None) -> _Header:
    found = list(leaves(data))
    form = tuple((path, str(leaf.dtype), tuple(leaf.shape[1:])) for path, leaf in found)
    return _Header(form, tuple(rows(leaf) for _, leaf in found), trouble)


def _join_ragged(leaf: torch.Tensor, counts: tuple[int, ...], group: Collectives) -> torch.Tensor:
    """Return the rows of all ranks, of which there may be unequal numbers."""
    most = max(counts)
    if leaf.shape[0] < most:
        leaf = torch.cat([leaf, leaf.new_zeros((most - leaf.shape[0], *leaf.shape[1:]))])
    stacked = group.all_gather(leaf)
    return torch.cat([part[:count] for part, count in zip(stacked, counts, strict=True)])


def _unlike(headers: list[_Header], group: Collectives) -> DataError:
    shown = [
        "objects" if header.objects else ", ".join(map(_shown, header.form, header.rows))
        for header in headers
    ]
    return DataError(
        "gather_for_metrics joins rows, of which ranks may have unequal numbers; all else must be equal:"
        + "".join(f"\n  - rank {rank}: {text}" for rank, text in enumerate(shown)),
        where=f"rank {group.rank}",
        fix="make the other dimensions equal first: pad_across_processes(values, dim=1); or gather lists of"
        " objects: use_gather_object=True",
    )


def _shown(form: tuple[str, str, tuple[int, ...]], count: int) -> str:
    path, dtype, rest = form
    return f"{path + ' ' if path else ''}{[count, *rest]} {dtype}"


def _raise_trouble(troubles: list[AccelError | None], group: Collectives) -> None:
    own = troubles[group.rank]
    if own is not None:
        raise own
    for rank, other in enumerate(troubles):
        if other is not None:
            raise DataError(other.what, where=f"rank {rank}, {other.where}", fix=other.fix)


def join_objects(data: Any, trouble: AccelError | None, group: Collectives) -> list[Any]:
    """Return the objects of all ranks: the items of lists, or what else they are. Collective."""
    # An empty list on one rank is no list of tensors, as it may be on others: they must not part here.
    group, _, _ = _exchange(_Header((), (), trouble, objects=True), group, [])
    found = group.all_gather_object(data)
    values = [value for value in found if not (isinstance(value, str) and value == NOTHING)]
    if all(isinstance(value, (list, tuple)) for value in values):
        return [item for value in values for item in value]
    return values


__all__ = ["NOTHING", "join_objects", "join_rows", "rows"]
