"""``accel checkpoint``: which there are, whether they are whole, which to remove, how two differ."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from importlib import import_module
from typing import Any

_ACTIONS = {
    "ls": "List the checkpoints in a folder, oldest first.",
    "verify": "Read checkpoints and name what is damaged; exit code 1 if anything is.",
    "rm": "Remove checkpoints; it asks, and keeps the last good one.",
    "diff": "Show how two checkpoints, or files of weights, differ; exit code 1 if they do.",
}


class Checkpoint:
    """List, verify, remove and compare checkpoints."""

    name = "checkpoint"
    help = "List, verify, remove and compare checkpoints."

    def configure(self, parser: ArgumentParser) -> None:
        """Add the actions and their arguments."""
        actions = parser.add_subparsers(
            title="actions", dest="action", metavar="ACTION", required=True, help="what to do"
        )
        for name, text in _ACTIONS.items():
            own = actions.add_parser(
                name,
                help=text,
                description=text,
                allow_abbrev=False,
                formatter_class=parser.formatter_class,
            )
            own.set_defaults(action=name)
            _ARGUMENTS[name](own)

    def run(self, arguments: Namespace) -> int:
        """Do one of the actions; return its exit code."""
        action: Any = import_module(f".{arguments.action}", __package__)
        result: int = action.run(arguments)
        return result


def _closely(parser: ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--verify",
        choices=("hashes", "sizes"),
        default=default,
        help=f"read every byte, or look at names and sizes only (default: {default})",
    )


def _json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def _ls(parser: ArgumentParser) -> None:
    parser.add_argument(
        "directory", metavar="DIR", nargs="?", default=".", help="the folder (default: this one)"
    )
    _closely(parser, "sizes")
    _json(parser)


def _verify(parser: ArgumentParser) -> None:
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a checkpoint, or a folder of some")
    _closely(parser, "hashes")
    _json(parser)


def _rm(parser: ArgumentParser) -> None:
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", help="a checkpoint; with --keep, a folder of some"
    )
    parser.add_argument(
        "--keep", metavar="N", type=_count, help="remove all but the newest N good ones of the folders"
    )
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")
    parser.add_argument("--force", action="store_true", help="remove the last good one too")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be removed")


def _diff(parser: ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", help="a checkpoint, or weights: a folder, a file or an index")
    parser.add_argument("second", metavar="B", help="another one")
    _json(parser)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: at least one checkpoint is kept")
    return int(text)


_ARGUMENTS = {"ls": _ls, "verify": _verify, "rm": _rm, "diff": _diff}

__all__ = ["Checkpoint"]
