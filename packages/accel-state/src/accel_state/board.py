"""What each rank is about to do, written where all ranks can read it: the store of the process group.

Used in debug mode before every exchange. Nothing here waits inside a collective, so a rank that never
comes is noticed and named.
"""

from __future__ import annotations

import time
from ast import literal_eval
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from accel_core.errors import CapabilityError, CollectiveError
from accel_core.logging import get_logger

from .calls import Call, DistributedOperationException, mismatch, table
from .lastwords import default_store
from .lookout import Lookout

logger = get_logger(__name__)

_KEEP = 64
"""Announcements kept per rank: more than there are votes open at once."""
_SLICE = 1.0
"""Seconds between looks at whether a missing rank has left."""
_GRACE = 5.0
"""Seconds that rank 0 gets to judge, in addition to its own wait."""
_FINE = "fine"
Row = tuple[str | None, str]
"""A rank's call as text, or None and what is known of the rank instead."""


class Board:
    """The announcements of the ranks ``members`` (numbers in the world), one of which is this process."""

    def __init__(
        self, store: Any, members: Sequence[int], rank: int, name: str, lookout: Lookout, patience: float
    ) -> None:
        self.rank = rank
        self.members = tuple(members)
        self.patience = patience
        """Seconds that a rank waits for the others before it says so."""
        self._store = store
        self._name = name
        self._lookout = lookout
        self._numbers: dict[str, int] = {}
        self._parts = 0

    def part(self, ranks: Sequence[int]) -> Board:
        """Return the board of some of these ranks. All ranks of this board call it, also those outside."""
        self._parts += 1
        # In torch's order, which numbers the ranks of a group as those of the world.
        world = sorted(self.members[rank] for rank in ranks)
        own = world.index(self.members[self.rank]) if self.rank in ranks else -1
        return Board(self._store, world, own, f"{self._name}.{self._parts}", self._lookout, self.patience)

    def announce(self, lane: str, call: Call) -> int:
        """Write down our next call in ``lane`` (calls are compared within one) and return its number."""
        number = self._numbers.get(lane, 0)
        self._numbers[lane] = number + 1
        self._guarded(self._store.set, self._key(lane, number, self.rank), call.to_text())
        if number >= _KEEP:
            self._guarded(self._store.delete_key, self._key(lane, number - _KEEP, self.rank))
        return number

    def settle(self, lane: str, number: int, call: Call, limit: float) -> None:
        """Return once every rank has announced a call number ``number`` that fits to ``call``, ours.

        Raises DistributedOperationException, on all ranks alike, when the calls differ or a rank has
        not come within ``limit`` seconds. A wait that lasts longer than ``patience`` is told of.
        """
        said = self._judged(lane, number, call, limit)
        if said == _FINE:
            return
        rows: list[Row] = literal_eval(said)
        if any(text is None for text, _ in rows):
            raise self._not_come(call, rows)
        raise mismatch([Call.from_text(text) for text, _ in rows if text is not None], self.rank)

    def close(self, *, for_good: bool = False) -> None:
        """Say that this process has left, and with ``for_good`` ends; for the board of all ranks."""
        self._lookout.close(for_good=for_good)

    # -- inside ----------------------------------------------------------------------------------

    def _judged(self, lane: str, number: int, call: Call, limit: float) -> str:
        """Return what rank 0 says: one rank compares, so that all ranks hear the same."""
        judgement = f"{self._name}/{lane}/{number}/judgement"
        if self.rank != 0:
            late = self._await([judgement], limit + _GRACE, lane, number, call)
            found: str = self._judge(lane, number) if late else self._read(judgement)
            return found
        keys = [self._key(lane, number, rank) for rank in range(len(self.members))]
        self._await(keys, limit, lane, number, call)
        said = self._judge(lane, number)
        self._guarded(self._store.set, judgement, said)
        if number >= _KEEP:
            old = f"{self._name}/{lane}/{number - _KEEP}/judgement"
            self._guarded(self._store.delete_key, old)
        return said

    def _await(self, keys: list[str], limit: float, lane: str, number: int, call: Call) -> bool:
        """Wait for ``keys``; return whether some are still missing at the end."""
        start = time.monotonic()
        told = False
        while True:
            try:
                self._store.wait(keys, timedelta(seconds=min(_SLICE, limit)))
                return False
            except (RuntimeError, ValueError):
                missing = [key for key in keys if not self._guarded(self._store.check, [key])]
            if not missing:
                return False
            waited = time.monotonic() - start
            absent = self._absent(lane, number)
            if waited >= limit or self._lookout.ended(self.members[rank] for rank in absent):
                return True
            if waited >= self.patience and not told:
                told = True
                said = self._judge(lane, number)
                if said != _FINE:  # all have come by now, and only rank 0 has not said so
                    rows = literal_eval(said)
                    logger.warning("%s", self._not_come(call, rows), main_process_only=False)

    def _absent(self, lane: str, number: int) -> list[int]:
        ranks = range(len(self.members))
        return [
            rank for rank in ranks if not self._guarded(self._store.check, [self._key(lane, number, rank)])
        ]

    def _judge(self, lane: str, number: int) -> str:
        absent = self._absent(lane, number)
        calls = {
            rank: Call.from_text(self._read(self._key(lane, number, rank)))
            for rank in range(len(self.members))
            if rank not in absent
        }
        if not absent and len({call.same(lines=True) for call in calls.values()}) == 1:
            return _FINE
        notes = self._known_of(lane, number, absent)
        rows: list[Row] = [
            (None, notes[rank]) if rank in notes else (calls[rank].to_text(), "")
            for rank in range(len(self.members))
        ]
        return repr(rows)

    def _known_of(self, lane: str, number: int, absent: Sequence[int]) -> dict[int, str]:
        """Return, for ranks that have not come, where they are and what they did last."""
        if not absent:
            return {}
        ended = self._lookout.ended(self.members[rank] for rank in absent)
        lines = self._lookout.ask(self.members[rank] for rank in absent if self.members[rank] not in ended)
        notes = {}
        for rank in absent:
            world = self.members[rank]
            now = "has left" if world in ended else "does not answer"
            now = f"has not come, is at {lines[world]}" if world in lines else now
            before = self._key(lane, number - 1, rank)
            if number and self._guarded(self._store.check, [before]):
                latest = Call.from_text(self._read(before))
                now += f", latest call {latest.operation} at {latest.line}"
            notes[rank] = now
        return notes

    def _not_come(self, call: Call, rows: Sequence[Row]) -> DistributedOperationException:
        absent = [rank for rank, (text, _) in enumerate(rows) if text is None]
        shown = [note if text is None else str(Call.from_text(text)) for text, note in rows]
        who = f"rank{'s' * (len(absent) > 1)} {', '.join(map(str, absent[:16]))}"
        return DistributedOperationException(
            f"{call.operation} waits for {who}.\nOperation: `{call.operation}`\n"
            f"Where the ranks are:\n{table(shown)}\n",
            per_rank=shown,
            where=f"rank {self.rank} of {len(self.members)}, {call.line}",
            fix="make every rank reach this line; where a long wait is meant, raise ACCELERATE_DEBUG_TIMEOUT",
        )

    def _key(self, lane: str, number: int, rank: int) -> str:
        return f"{self._name}/{lane}/{number}/{rank}"

    def _read(self, key: str) -> str:
        text: str = self._guarded(self._store.get, key).decode()
        return text

    def _guarded(self, action: Any, *args: Any) -> Any:
        try:
            return action(*args)
        except (RuntimeError, ValueError) as error:
            raise CollectiveError(
                f"The store of the process group is gone ({str(error).splitlines()[0]})",
                where=f"rank {self.rank} of {len(self.members)}",
                fix="look for the first error in the output of the other ranks; rank 0 often holds the store",
            ) from error


def open_board(rank: int, world_size: int, patience: float) -> Board:
    """Return the board of all ranks, to be closed at the end. All ranks call it."""
    store = default_store()
    if store is None:
        raise CapabilityError(
            "Debug mode needs the store of the process group, and this backend has none",
            fix="use another backend, or unset ACCELERATE_DEBUG_MODE",
        )
    # A process can be set up again on the same store (tests do): each time under another name.
    generation = store.add(f"accel/debug/generation/{rank}", 1)
    prefixed: Any = vars(dist)["PrefixStore"]
    store = prefixed(f"accel/debug/{generation}", store)
    return Board(store, range(world_size), rank, "all", Lookout(store, rank), patience)


__all__ = ["Board", "open_board"]
