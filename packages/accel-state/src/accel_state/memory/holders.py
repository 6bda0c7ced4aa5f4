"""Who holds prepared models, so that those of an attempt that failed can be let go of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary


class Holder(Protocol):
    """What prepares models, and can forget them."""

    def free_memory(self, *objects: Any) -> list[Any]:
        """Forget everything prepared."""
        ...


Models = Callable[[Any], Sequence[object]]
_held: WeakKeyDictionary[Holder, Models] = WeakKeyDictionary()


def hold(owner: Holder, models: Models) -> None:
    """Note that ``owner`` prepares models, as long as it lives; ``models(owner)`` are those it has now."""
    # A function and not the models: these may refer to their owner, which would then never go.
    _held[owner] = models


def holding() -> list[Holder]:
    """Return those that have prepared models now."""
    return [owner for owner, models in _held.items() if models(owner)]


def let_go(before: Iterable[Holder]) -> None:
    """Have everyone who holds models forget them, except those that already did ``before``."""
    kept = set(map(id, before))
    for owner in holding():
        if id(owner) not in kept:
            owner.free_memory()


__all__ = ["Holder", "hold", "holding", "let_go"]
