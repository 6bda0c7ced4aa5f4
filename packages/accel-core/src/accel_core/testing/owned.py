"""File descriptors that live for the whole session on purpose, so that the leak checks leave them alone."""

from __future__ import annotations

_owned: set[int] = set()


def own(*descriptors: int) -> None:
    """Note descriptors of the testing tools themselves."""
    _owned.update(descriptors)


def disown(*descriptors: int) -> None:
    """Forget descriptors that are about to be closed."""
    _owned.difference_update(descriptors)


def owned() -> frozenset[int]:
    """Return the descriptors noted."""
    return frozenset(_owned)


__all__ = ["disown", "own", "owned"]
