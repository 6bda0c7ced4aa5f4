"""Options as data: described once, added to a parser, and shown in one spelling.

Every option can be written with underscores or with dashes (``--num_processes``,
``--num-processes``). Nothing that was not given appears in the parsed namespace: "not given" must
stay different from "given with the default value" until all sources of settings are joined.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple


class Option(NamedTuple):
    """One option: its long name, what it is for, the documented default and how its value is read."""

    name: str
    """Long name without the leading dashes, in the underscore spelling."""
    help: str = ""
    default: Any = None
    kind: type | None = str
    """``str``, ``int``, ``float`` for options with a value; ``list`` may be repeated; None for a switch."""
    choices: Sequence[str] | None = None
    short: str = ""
    metavar: str = ""
    closed: bool = True
    """Nothing but ``choices`` is possible; False where installed packages may offer more."""
    turns: str = ""
    """The name of the option that this switch turns off."""

    def spellings(self) -> list[str]:
        """Return every way to write the option, the one shown in the help first."""
        both = dict.fromkeys([f"--{self.name}", f"--{self.name.replace('_', '-')}"])
        return ([self.short] if self.short else []) + list(both)


class Group(NamedTuple):
    """Options that belong together; ``available`` says whether this version can honour them."""

    title: str
    options: Sequence[Option]
    available: bool = True


@cache
def _terminal_width() -> int:
    """Return the width of the terminal, asked once: argparse makes a formatter for every option."""
    try:
        return int(os.environ.get("COLUMNS", "")) - 2
    except ValueError:
        pass
    try:
        return os.get_terminal_size().columns - 2
    except OSError:
        return 98


class OneSpelling(argparse.HelpFormatter):
    """Show each option in its first long spelling only; both spellings in every line are hard to read."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=_terminal_width())

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        shown = [
            text for text in action.option_strings if "-" not in text.lstrip("-")
        ] or action.option_strings
        text = ", ".join(shown)
        if action.nargs == 0:
            return text
        return f"{text} {self._format_args(action, self._get_default_metavar_for_optional(action))}"


def add_groups(parser: argparse.ArgumentParser, groups: Iterable[Group]) -> None:
    """Add ``groups`` to ``parser``; what is not available is understood, and left out of the help."""
    for group in groups:
        target = parser.add_argument_group(group.title) if group.title and group.available else parser
        for option in group.options:
            _add(target, option, hide=not group.available)


def _add(target: argparse._ActionsContainer, option: Option, *, hide: bool) -> None:
    text = argparse.SUPPRESS if hide else _help(option)
    settings: dict[str, Any] = {"dest": option.name, "default": argparse.SUPPRESS, "help": text}
    if option.turns:
        settings |= {"dest": option.turns, "action": "store_const", "const": False}
    elif option.kind is None:
        settings["action"] = "store_true"
    else:
        if option.kind is list:
            settings["action"] = "append"
        elif option.kind is not str:
            settings["type"] = option.kind
        settings["choices"] = option.choices if option.closed else None
        if option.metavar:
            settings["metavar"] = option.metavar
    target.add_argument(*option.spellings(), **settings)


def _help(option: Option) -> str:
    shown = option.default not in (None, False, "")
    return option.help.replace("%", "%%") + (f" (default: {option.default})" if shown else "")


__all__ = ["Group", "OneSpelling", "Option", "add_groups"]
