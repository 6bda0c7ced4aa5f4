"""The nearest of the names that somebody may have meant."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the one of ``known`` that is most like ``word``, or None when none is alike.

    ``cutoff``: from 0 (anything) to 1 (equal), as in ``difflib.get_close_matches``.
    """
    # Only errors ask, and difflib is a sizeable part of the start-up of a command line.
    from difflib import get_close_matches

    found = get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def guess(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'this'?`` for the nearest of ``known``, or nothing when none is alike."""
    near = nearest(word, known)
    return "" if near is None else f"did you mean {near!r}?"


__all__ = ["guess", "nearest"]
