"""How ranks agree on an attempt: through the store of their group, which works while the group does not.

A rank without memory says so before it leaves. Ranks that wait for it inside an exchange then get an
error at once, find its word, and come out too. Whoever is through waits at the end for the others.
"""

from __future__ import annotations

import time
from ast import literal_eval
from itertools import count
from typing import Any

from accel_core.errors import CapabilityError, CollectiveError
from accel_core.topology import Topology
from accel_state import process, rejoining
from accel_state.lastwords import default_store

from . import holders
from .release import clear_device_cache

FITS, MEMORY, LOST = "fits", "memory", "lost"
_LONGEST_LOOK = 0.05
"""Seconds between looks at the store while waiting."""
_calls = count()


def _restart_counting() -> None:
    global _calls
    _calls = count()


# Ranks count their calls alike; whoever is set up anew begins anew.
process.at_reset(_restart_counting)


class Alone:
    """The attempts of one process, which has nobody to agree with."""

    def __init__(self) -> None:
        self._before = holders.holding()

    def begin(self, size: int) -> None:
        """Begin an attempt with batch size ``size`` together."""

    def out_of_memory(self, said: str) -> None:
        """Tell the others that this rank has no memory left, with what was ``said`` of it."""

    def somebody_left(self) -> bool:
        """Tell whether another rank left this attempt for want of memory."""
        return False

    def everybody_fits(self) -> bool:
        """Tell whether all ranks came through this attempt, as this one did."""
        return True

    def retreat(self, kind: str) -> None:
        """Give back what the attempt held, and come together for the next."""
        holders.let_go(self._before)
        clear_device_cache(garbage_collection=True)

    def failed(self, error: BaseException) -> None:
        """Tell the others that this rank goes no further."""


class Meeting(Alone):
    """The attempts of several ranks."""

    def __init__(self, name: str, state: process.ProcessState) -> None:
        super().__init__()
        self._name = name
        self._state = state
        self._rank, self._world = state.topology.rank, state.topology.world_size
        self._store: Any = default_store()
        if self._store is None:
            raise CapabilityError(
                "The ranks cannot agree on a batch size: their process group has no store",
                where=self._where(),
                fix="use another backend",
            )
        self._place = f"accel/batch_size/{next(_calls)}"
        self._round = 0
        self._size = 0
        self._latest: list[tuple[str, int]] = []
        """The outcomes of the attempt, once all ranks have told theirs."""
        self._obstacle = rejoining.obstacle(state)
        if self._before and not self._obstacle:
            self._obstacle = "models that were prepared before the call hold the process group"

    def begin(self, size: int) -> None:
        """Begin an attempt together; raise CollectiveError when the ranks try different things."""
        self._round += 1
        self._size = size
        brought = self._exchange("begin", (self._name, size))
        if len(set(brought)) > 1:
            shown = [f"{name} with batch size {size}" for name, size in brought]
            raise CollectiveError(
                "The ranks do not try the same: "
                + "; ".join(f"rank {r}: {each}" for r, each in enumerate(shown)),
                per_rank=shown,
                where=self._where(),
                fix="give all ranks the same function, starting_batch_size and reduce_batch_size_fn",
            )

        if self._round == 1 and not self._obstacle:
            rejoining.prepare(self._state)

    def out_of_memory(self, said: str) -> None:
        """Tell the others that this rank has no memory left, before it leaves them."""
        self._store.set(self._key("alarm"), f"rank {self._rank}: {said}")
        # Asked back, so that it is there before anybody notices that we left.
        self._has(self._key("alarm"))

    def somebody_left(self) -> bool:
        """Tell whether another rank left this attempt for want of memory."""
        return self._has(self._key("alarm"))

    def everybody_fits(self) -> bool:
        """Wait for all ranks, and tell whether all came through."""
        return all(kind == FITS for kind, _ in self._outcomes(FITS))

    def retreat(self, kind: str) -> None:
        """Give back what the attempt held, leave the group, and meet in a new one."""
        reached = rejoining.progress(self._state)
        super().retreat(kind)
        if kind == FITS and all(each == FITS for each, _ in self._latest):
            return
        if self._obstacle:
            # One that fits has asked for the outcomes, and found that not all do.
            self._still_together(self._latest if kind == FITS else self._outcomes(kind, reached))
            return
        rejoining.leave(self._state)
        if kind != FITS:
            self._outcomes(kind, reached)
        rejoining.rejoin(self._state, self._store, self._key("group"))

    def failed(self, error: BaseException) -> None:
        """Tell the others that this rank goes no further."""
        try:
            self._store.set(f"{self._place}/failed", f"{self._rank} {type(error).__name__}: {error}")
        except (RuntimeError, ValueError):
            return  # the store is gone, so the others hear of it from the exchange they wait in

    # -- inside ----------------------------------------------------------------------------------

    def _outcomes(self, kind: str, reached: int | None = None) -> list[tuple[str, int]]:
        reached = rejoining.progress(self._state) if reached is None else reached
        self._latest = self._exchange("end", (kind, reached))
        return self._latest

    def _still_together(self, outcomes: list[tuple[str, int]]) -> None:
        """Raise CollectiveError unless all ranks stand at the same exchange, and can go on in their group."""
        if all(kind != LOST for kind, _ in outcomes) and len({reached for _, reached in outcomes}) == 1:
            return
        shown = [f"{kind} after {reached} exchanges" for kind, reached in outcomes]
        raise CollectiveError(
            f"The ranks came out of {self._name} at different points, after batch size {self._size} did not"
            f" fit on all of them, and cannot start again: {self._obstacle}",
            per_rank=shown,
            where=self._where() + "; " + "; ".join(f"rank {rank}: {each}" for rank, each in enumerate(shown)),
            fix="begin with a smaller starting_batch_size; with the gloo backend, a group made by accel and"
            " models prepared inside the function, the ranks start again by themselves",
        )

    def _exchange(self, step: str, mine: Any) -> list[Any]:
        """Return what every rank brought to ``step`` of this round, in rank order."""
        keys = [self._key(f"{step}/{rank}") for rank in range(self._world)]
        limit = self._state.timeout.total_seconds() if self._state.timeout is not None else 1800.0
        deadline = time.monotonic() + limit
        look = 0.001
        try:
            self._store.set(keys[self._rank], repr(mine))
            while not self._has(*keys):
                self._nobody_failed()
                if time.monotonic() > deadline:
                    raise self._late(
                        step, [rank for rank, key in enumerate(keys) if not self._has(key)], limit
                    )
                time.sleep(look)
                look = min(2 * look, _LONGEST_LOOK)
            return [literal_eval(self._store.get(key).decode()) for key in keys]
        except CollectiveError:
            raise
        except (RuntimeError, ValueError) as error:
            raise CollectiveError(
                f"The store of the process group is gone ({str(error).splitlines()[0]})",
                where=self._where(),
                fix="look for the first error in the output of the other ranks; rank 0 often holds the store",
            ) from error

    def _nobody_failed(self) -> None:
        place = f"{self._place}/failed"
        if not self._has(place):
            return
        rank, _, said = self._store.get(place).decode().partition(" ")
        raise CollectiveError(
            f"Rank {rank} left {self._name} with {said}",
            where=self._where(),
            fix=f"look at the output of rank {rank}",
        )

    def _late(self, step: str, missing: list[int], limit: float) -> CollectiveError:
        who = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing[:16]))}"
        what = f"{who} did not {'begin' if step == 'begin' else 'come to the end of'} {self._name} with"
        what += f" batch size {self._size} within {limit:g} s"
        if self.somebody_left():
            left = self._store.get(self._key("alarm")).decode()
            what += f", after this: {left}"
        if self._obstacle and step == "end":
            what += f". Nobody could call it back: {self._obstacle}"
        fix = "make every rank call it; begin with a smaller starting_batch_size, or raise the timeout"
        return CollectiveError(what, where=self._where(), fix=f"{fix} (InitProcessGroupKwargs)")

    def _has(self, *keys: str) -> bool:
        return bool(self._store.check(list(keys)))

    def _key(self, name: str) -> str:
        return f"{self._place}/{self._round}/{name}"

    def _where(self) -> str:
        return f"rank {self._rank} of {self._world}"


def meeting(name: str) -> Alone:
    """Return how the ranks of this program agree on the attempts of one call of ``name``."""
    state = process.current()
    if state is None and Topology.detect().world_size == 1:
        return Alone()
    state = state or process.start()
    return Alone() if state.topology.world_size == 1 else Meeting(name, state)


__all__ = ["FITS", "LOST", "MEMORY", "Alone", "Meeting", "meeting"]
