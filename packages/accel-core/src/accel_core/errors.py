"""Every error that accel raises on purpose.

::

    AccelError
    ├── ConfigError(ValueError)          one or more settings are wrong; carries every fault
    ├── UnknownNameError(ValueError)     a name that nobody provides; carries the nearest
    ├── NotInstalledError(ImportError)   a known name whose distribution is missing
    ├── CapabilityError                  this hardware, backend or strategy cannot do that
    ├── TopologyError(ValueError)        the environment describes an impossible set of processes
    ├── StateError                       process state missing, or set up twice and differently
    ├── PrepareError(ValueError)         an object that cannot be prepared, or not like this
    ├── DataError                        data would be lost, repeated or cut differently
    │   ├── AlreadyShardedError(ValueError)   a loader that is sharded already
    │   ├── AuditError               ranks read the same data, or lose some
    │   └── UnevenDataError              ranks ran out of data at different steps
    ├── CollectiveError                  ranks disagree on a collective operation
    ├── CheckpointError                  a checkpoint cannot be written, verified or read
    └── LaunchError                      a script or launcher could not be started

A message has three parts: what happened, where, and what to do. They stay readable as
attributes (``what``, ``where``, ``fix``) for programs that show or test them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .spelling import nearest


class AccelError(Exception):
    """Report what happened, where it happened, and what to do about it."""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        # A list of faults, one a line, gets no full stop.
        ended = "\n" in self.what or self.what.endswith((".", "?", "!"))
        text = self.what.rstrip("\n") if ended else f"{self.what}."
        if self.where:
            text += f"\n  where: {self.where}"
        if self.fix:
            text += f"\n  fix:   {self.fix}"
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross process boundaries (worker pools, launchers); keyword-only data must survive pickling.
        return _rebuild, (type(self), dict(self.__dict__))


def _rebuild(cls: type[AccelError], data: dict[str, Any]) -> AccelError:
    error = cls.__new__(cls)
    error.__dict__.update(data)
    error.args = (data["what"],)
    return error


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong setting: its field, the value found, what is wrong with it and what to do."""

    field: str
    value: object
    reason: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.field}={_short(self.value)}: {self.reason}" + (f" ({self.fix})" if self.fix else "")


_MOST_FAULTS = 20
_MOST_LETTERS = 200


def _short(value: object) -> str:
    """Return ``value`` as Python writes it; a terminal is no place for the whole of a huge one."""
    text = repr(value)
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."


class ConfigError(AccelError, ValueError):
    """Report every wrong setting of one configuration at once."""

    def __init__(self, owner: str, faults: Iterable[Fault]) -> None:
        self.owner = owner
        self.faults = tuple(faults)
        if len(self.faults) == 1:
            fault = self.faults[0]
            super().__init__(f"{owner}: {fault.field}={_short(fault.value)}: {fault.reason}", fix=fault.fix)
        else:
            lines = "".join(f"\n  - {fault}" for fault in self.faults[:_MOST_FAULTS])
            if len(self.faults) > _MOST_FAULTS:
                lines += f"\n  - and {len(self.faults) - _MOST_FAULTS} more"
            super().__init__(f"{owner}: {len(self.faults)} settings are wrong:{lines}")


class UnknownNameError(AccelError, ValueError):
    """Report a name that nobody provides, with the nearest that somebody does."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, fix: str = "") -> None:
        self.kind = kind
        self.name = name
        self.known = tuple(sorted(known))
        self.nearest = nearest(name, self.known)
        guess = f" Did you mean {self.nearest!r}?" if self.nearest else ""
        super().__init__(
            f"Unknown {kind} {name!r}.{guess} Known: {', '.join(self.known) or 'none'}.",
            fix=fix,
        )


class NotInstalledError(AccelError, ImportError):
    """Report a known name whose distribution is not installed, with the line that installs it."""

    def __init__(self, kind: str, name: str, distribution: str) -> None:
        self.kind = kind
        self.name = name
        self.distribution = distribution
        super().__init__(f"The {kind} {name!r} is not installed", fix=f"pip install {distribution}")


class CapabilityError(AccelError, RuntimeError):
    """Report something that this hardware, backend or strategy cannot do, and why."""


class TopologyError(AccelError, ValueError):
    """Report variables that describe an impossible or contradictory set of processes."""


class StateError(AccelError, RuntimeError):
    """Report process state that is missing, or that was set up before in another way."""


class PrepareError(AccelError, ValueError):
    """Report an object that cannot be prepared, or not in this way."""


class DataError(AccelError, RuntimeError):
    """Report data that would be lost, repeated or cut in another way than asked."""


class AlreadyShardedError(DataError, ValueError):
    """Report a loader that already gives each rank its own part."""


class AuditError(DataError):
    """Report what ranks found when they compared the data they read.

    ``ranks``: those concerned. ``batch``: the local batch where it shows. ``samples``: examples of the
    samples, by index, where indices are known.
    """

    def __init__(
        self,
        what: str,
        *,
        ranks: Sequence[int] = (),
        batch: int | None = None,
        samples: Sequence[object] = (),
        where: str = "",
        fix: str = "",
    ) -> None:
        self.ranks = tuple(ranks)
        self.batch = batch
        self.samples = tuple(samples)
        super().__init__(what, where=where, fix=fix)


class UnevenDataError(DataError):
    """Report ranks that ran out of data at different steps; ``ended`` are the ranks that had none left."""

    def __init__(self, what: str, *, ended: Sequence[int] = (), where: str = "", fix: str = "") -> None:
        self.ended = tuple(ended)
        super().__init__(what, where=where, fix=fix)


class CollectiveError(AccelError, RuntimeError):
    """Report ranks that disagree on a collective; ``per_rank`` holds what each rank brought."""

    def __init__(self, what: str, *, per_rank: Sequence[object] = (), where: str = "", fix: str = "") -> None:
        self.per_rank = tuple(per_rank)
        super().__init__(what, where=where, fix=fix)


class CheckpointError(AccelError, RuntimeError):
    """Report a checkpoint that cannot be written, verified or read."""


class LaunchError(AccelError, RuntimeError):
    """Report a script or a launcher that could not be started."""


__all__ = [
    "AccelError",
    "AlreadyShardedError",
    "AuditError",
    "CapabilityError",
    "CheckpointError",
    "CollectiveError",
    "ConfigError",
    "DataError",
    "Fault",
    "LaunchError",
    "NotInstalledError",
    "PrepareError",
    "StateError",
    "TopologyError",
    "UnevenDataError",
    "UnknownNameError",
]
