"""The command line that starts the user's script, with the options of our own interpreter."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from accel_core.protocols.command import LaunchSpec

_WITH_VALUE = "WX"
_ENDS = "mc"


def options(command: Sequence[str] | None = None) -> list[str]:
    """Return the interpreter options in ``command`` (default: how this process was started).

    ``python -u -X dev -m accel_cli ...`` gives ``["-u", "-X", "dev"]``: what was asked of our
    interpreter is meant for the script's.
    """
    words = list(sys.orig_argv if command is None else command)[1:]
    kept: list[str] = []
    index = 0
    while index < len(words) and words[index].startswith("-") and words[index] != "-":
        word = words[index]
        index += 1
        if word.startswith("--"):
            kept.append(word)
            if word == "--check-hash-based-pycs":
                kept.append(words[index])
                index += 1
            continue
        letters = word[1:]
        for position, letter in enumerate(letters):
            if letter in _ENDS:
                before = letters[:position]
                return [*kept, f"-{before}"] if before else kept
            if letter in _WITH_VALUE:
                kept.append(word)
                if position == len(letters) - 1:
                    kept.append(words[index])
                    index += 1
                break
        else:
            kept.append(word)
    return kept


def command_line(spec: LaunchSpec, *, unbuffered: bool = False) -> list[str]:
    """Return the words that start ``spec.script`` with its arguments."""
    if not spec.python:
        return [spec.script, *spec.arguments]
    flags = options()
    if unbuffered and "-u" not in flags:
        flags.append("-u")
    start = ["-m", spec.script] if spec.module else [spec.script]
    return [sys.executable, *flags, *start, *spec.arguments]


__all__ = ["command_line", "options"]
