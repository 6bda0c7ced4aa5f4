"""What a rank brings to an exchange, and what is said when the ranks do not bring the same."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter
from pathlib import PurePath
from typing import Any

import torch

from accel_core.errors import CollectiveError
from accel_core.nested import leaves

from .frames import user_line

Leaf = tuple[str, tuple[int | None, ...] | None, str]
"""Path in the structure, shape (None for what is no tensor, and for a size that may differ), dtype."""
_MANY = 16
"""From here on, ranks that brought the same share a line of the table."""


class DistributedOperationException(CollectiveError):  # noqa: N818 - the documented name
    """Report ranks that brought different operations, structures, shapes or dtypes to one exchange."""


@dataclass(frozen=True, slots=True)
class Call:
    """One rank's call: the operation, what it was given, and the user's line."""

    operation: str
    leaves: tuple[Leaf, ...] = ()
    line: str = ""
    one_line: bool = False
    """Whether calls from different lines are taken for different ones (in debug mode)."""

    @classmethod
    def of(cls, operation: str, data: Any = None, *, sizes: bool = True, one_line: bool = False) -> Call:
        """Describe a call from here. Without ``sizes`` only dtypes and numbers of dimensions are compared."""
        described = () if data is None else _described(data, sizes)
        return cls(operation, described, user_line(), one_line)

    def same(self, *, lines: bool) -> tuple[object, ...]:
        """Return what must be equal on all ranks."""
        # The name and not the path: machines may keep the program in different folders.
        place = PurePath(self.line).name if lines and self.one_line else ""
        return self.operation, self.leaves, place

    def digest(self) -> bytes:
        """Return 16 bytes that are equal for calls that fit together, wherever they come from."""
        return blake2b(repr(self.same(lines=False)).encode(), digest_size=16).digest()

    def to_text(self) -> str:
        """Return the call as text for other ranks; `from_text` reads it without running anything."""
        return repr((self.operation, self.leaves, self.line, self.one_line))

    @classmethod
    def from_text(cls, text: str) -> Call:
        """Return the call that another rank wrote."""
        return cls(*literal_eval(text))

    def brought(self) -> str:
        """Return shapes and dtypes in words."""
        parts = [
            f"{path + ' ' if path else ''}{_sizes(shape)} {dtype}"
            for path, shape, dtype in self.leaves
            if shape is not None
        ]
        others = len(self.leaves) - len(parts)
        return ", ".join([*parts, *([f"{others} object(s)"] if others else [])]) or "nothing"

    def __str__(self) -> str:
        return f"{self.brought()}, {self.operation} at {self.line}"


def _described(data: Any, sizes: bool) -> tuple[Leaf, ...]:
    # By path: ranks may have filled their mappings in different orders.
    return tuple(_leaf(path, leaf, sizes) for path, leaf in sorted(leaves(data), key=itemgetter(0)))


def _leaf(path: str, leaf: Any, sizes: bool) -> Leaf:
    if not isinstance(leaf, torch.Tensor):
        return path, None, "object"
    return path, tuple(leaf.shape) if sizes else (None,) * leaf.ndim, str(leaf.dtype)


def _sizes(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def mismatch(calls: Sequence[Call], rank: int) -> DistributedOperationException:
    """Return the error for calls, one per rank, that do not fit together."""
    mine = calls[rank]
    if len({call.operation for call in calls}) > 1:
        reason, fix = (
            "the ranks called different operations",
            "let every rank make the same calls in one order",
        )
    elif len({call.leaves for call in calls}) > 1:
        reason = "the ranks brought different input"
        fix = "give every rank the same structure and shapes; pad_across_processes makes one dimension equal"
    else:
        reason = "the ranks called it from different lines, so these may be two different exchanges"
        fix = "look for a call that only some ranks reach; if they are one exchange, bring it to one line"
    return DistributedOperationException(
        f"Cannot apply {mine.operation}: {reason}.\nOperation: `{mine.operation}`\n"
        f"Input shapes:\n{table([str(call) for call in calls])}\n",
        per_rank=[call.brought() for call in calls],
        where=f"rank {rank} of {len(calls)}, {mine.line}",
        fix=fix,
    )


def table(rows: Sequence[str]) -> str:
    """Return one line per rank; ranks with equal rows share a line when there are many."""
    if len(rows) <= _MANY:
        return "\n".join(f"  - Process {rank}: {row}" for rank, row in enumerate(rows))
    ranks: dict[str, list[int]] = {}
    for rank, row in enumerate(rows):
        ranks.setdefault(row, []).append(rank)
    return "\n".join(f"  - Process {_spans(members)}: {row}" for row, members in ranks.items())


def _spans(ranks: Sequence[int]) -> str:
    """Return ``0-5, 7`` for 0 to 5 and 7."""
    runs = []
    for _, pairs in groupby(enumerate(ranks), lambda pair: pair[1] - pair[0]):
        run = [rank for _, rank in pairs]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(runs)


__all__ = ["Call", "DistributedOperationException", "Leaf", "mismatch", "table"]
