"""Every rank does its part, and all learn whether it worked everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accel_core.errors import AccelError, CheckpointError
from accel_core.protocols import Collectives

_T = TypeVar("_T")
_Told = tuple[str, str, str]


def together(group: Collectives, action: Callable[[], _T], doing: str) -> list[_T]:
    """Run ``action`` on every rank and return all results by rank. Collective.

    When it fails on one rank, every rank raises CheckpointError that names this rank and the cause; the
    rank itself raises its own error where that is one of ours.
    """
    failure: Exception | None = None
    value: _T | None = None
    try:
        value = action()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
        failure = error
    answers: list[tuple[_T, _Told | None]] = group.all_gather_object((value, _told(failure)))
    failed = [(rank, told) for rank, (_, told) in enumerate(answers) if told is not None]
    if not failed:
        return [result for result, _ in answers]
    if isinstance(failure, AccelError):
        raise failure
    rank, (what, where, fix) = failed[0]
    own = f"rank {group.rank} of {group.world_size}" if failure is not None else f"rank {rank}"
    if group.world_size > 1:
        what, where = f"Rank {rank} could not {doing}: {what}", f"{own}, {where}" if where else own
    raise CheckpointError(what, where=where, fix=fix or f"see the error of rank {rank}") from failure


def withdraw(group: Collectives, cause: BaseException | None) -> None:
    """Tell the ranks that are in `together` that this one gives up. Collective."""
    told = _told(cause) or ("it gave the checkpoint up", "", "see what that rank printed")
    group.all_gather_object((None, told))


def _told(error: BaseException | None) -> _Told | None:
    if error is None:
        return None
    if isinstance(error, AccelError):
        return error.what, error.where, error.fix
    return f"{type(error).__name__}: {error}", "", ""


__all__ = ["together", "withdraw"]
