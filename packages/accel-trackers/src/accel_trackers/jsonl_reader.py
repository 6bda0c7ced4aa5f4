"""Read back what `JSONLinesTracker` wrote."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel_core.errors import CheckpointError

from .values import decode

FORMAT = 1
"""The version of the lines; readers refuse newer ones."""


@dataclass(frozen=True, slots=True)
class Row:
    """The values of one call of ``log``."""

    step: int | None
    values: dict[str, Any]
    time: str


@dataclass(slots=True)
class Run:
    """Everything that a file holds, in the order in which it was written."""

    path: Path
    run_id: str | None = None
    run_name: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False

    def series(self, key: str) -> list[tuple[int | None, Any]]:
        """Return ``(step, value)`` for every row that holds ``key``."""
        return [(row.step, row.values[key]) for row in self.rows if key in row.values]


def read_run(path: str | os.PathLike[str]) -> Run:
    """Return the run in the file at ``path``, while it is being written too.

    An incomplete last line is left out. Raises CheckpointError for any other line that is not
    this format, with its number.
    """
    run = Run(Path(path))
    lines = run.path.read_bytes().split(b"\n")
    # The last piece is empty, or a line whose end is not written yet.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = decode(json.loads(line))
            _take(run, record)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"Line {number} is not a line of a JSON Lines run: {error!r}",
                where=str(path),
                fix="the file was changed by something else; restore it, or take another run_id",
            ) from error
    return run


def _take(run: Run, record: dict[str, Any]) -> None:
    kind = record["kind"]
    if kind == "log":
        run.rows.append(Row(record["step"], record["values"], record["time"]))
    elif kind == "config":
        run.config.update(record["values"])
    elif kind == "table":
        run.tables.append(record)
    elif kind in ("run", "resume"):
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}, this version reads {FORMAT}")
        run.run_id, run.run_name, run.finished = record["run_id"], record["run_name"], False
    elif kind == "finish":
        run.finished = True
    else:
        raise ValueError(f"unknown kind {kind!r}")


def repair(path: Path) -> None:
    """Remove an incomplete last line."""
    text = path.read_bytes()
    end = text.rfind(b"\n") + 1
    if end != len(text):
        os.truncate(path, end)


__all__ = ["FORMAT", "Row", "Run", "read_run", "repair"]
