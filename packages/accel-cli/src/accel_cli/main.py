"""The ``accel`` command: find the sub-command, build its parser only, run it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .discovery import find, offers, one_line_help

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from accel_core.protocols.command import Command

USAGE_ERROR = 2
"""Exit code for a command that was not understood or could not be started, as argparse's own."""
BROKEN_PIPE = 141
"""Exit code when nobody reads the output any more, as a shell shows SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sub-command that ``arguments`` (default: those of this process) name; return the exit code."""
    try:
        try:
            return _main(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has enough of it, as in `accel env | head -1`. Python flushes once more.
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE


def _main(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["-h"], ["--help"], ["help"]) and len(given) == 1:
        print(overview())
        return 0
    if given == ["--version"]:
        from .__about__ import __version__

        print(f"accel-cli {__version__}")
        return 0
    if not given:
        print(overview(), file=sys.stderr)
        return USAGE_ERROR
    name, *rest = given
    if name.startswith("-"):
        return complain("accel", f"{name} is no option of accel itself; options come after the sub-command.")
    from accel_core.errors import AccelError, UnknownNameError

    try:
        command: Command = find(name)()
    except UnknownNameError as error:
        from .later import COMMANDS, REASON

        return complain("accel", f"'accel {name}' {REASON}." if name in COMMANDS else error)
    except AccelError as error:
        return complain("accel", error)
    return run(command, rest)


def run(command: Command, arguments: Sequence[str]) -> int:
    """Parse ``arguments`` for ``command`` and run it; mistakes are reported on stderr with exit code 2."""
    import argparse

    from accel_core.errors import AccelError

    from .options import OneSpelling

    prog = f"accel {command.name}"
    # No abbreviations: a longer option that a later version adds must not change what a command means.
    parser = argparse.ArgumentParser(
        prog=prog, description=command.help, allow_abbrev=False, formatter_class=OneSpelling
    )
    command.configure(parser)
    namespace, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        return complain(prog, _unknown_option(parser, unknown[0]))
    try:
        return command.run(namespace)
    except AccelError as error:
        return complain(prog, error)


def overview() -> str:
    """Return the text of ``accel --help``: every installed sub-command and what it is for."""
    rows = [(offer.name, one_line_help(offer)) for offer in offers()]
    width = max((len(name) for name, _ in rows), default=0)
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in rows) or "  (none is installed)"
    return (
        "usage: accel COMMAND [arguments]\n\n"
        "Run the same PyTorch code on one CPU, one accelerator, many accelerators or many machines.\n\n"
        f"commands:\n{listing}\n\n"
        "'accel COMMAND --help' describes one command; 'accel --version' shows the version."
    )


def complain(prog: str, problem: object) -> int:
    """Write ``problem`` to stderr as ``prog``'s; return the exit code for it."""
    print(f"{prog}: error: {problem}", file=sys.stderr)
    return USAGE_ERROR


def _unknown_option(parser: ArgumentParser, option: str) -> str:
    from accel_core.spelling import nearest

    written = option.partition("=")[0]
    # The parser's own table of spellings; argparse offers no public way to list them.
    near = nearest(written, parser._option_string_actions)
    hint = "" if near is None else f" Did you mean {near}?"
    return f"unknown option {written}.{hint}\n  fix:   '{parser.prog} --help' lists the options"


__all__ = ["USAGE_ERROR", "complain", "main", "overview", "run"]
