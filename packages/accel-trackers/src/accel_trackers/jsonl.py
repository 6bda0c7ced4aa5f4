"""A tracker without a library: one JSON object per line, appended."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accel_core.errors import ConfigError, Fault, StateError

from .general import GeneralTracker
from .jsonl_reader import FORMAT, Run, read_run, repair
from .ranks import on_main_process
from .values import encode

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class JSONLinesTracker(GeneralTracker):
    """Append one JSON object per call to ``<logging_dir>/<run_name>/<run_id>.jsonl``.

    ``run_id``: continue this run if it exists, else begin it; without it a new run begins. What a
    continued run holds already (the same key at the same step) is not stored again, so training
    that resumes from a checkpoint behind the log does not double it; ``skipped`` counts these
    values, and the last line of the run says how many there were.
    ``fsync``: wait for the disk after every line, so that the line survives a power failure;
    without it every line is handed to the system at once and survives the end of this process.
    """

    name = "jsonl"
    requires_logging_directory = True

    def __init__(
        self,
        run_name: str,
        logging_dir: str | os.PathLike[str] = ".",
        *,
        run_id: str | None = None,
        fsync: bool = False,
    ) -> None:
        super().__init__()
        faults = [
            Fault(field, value, "must be letters, digits, '.', '_' and '-', and a single folder or file name")
            for field, value in (("run_name", run_name), ("run_id", run_id))
            if value is not None and not _ID.fullmatch(value)
        ]
        if faults:
            raise ConfigError("JSONLinesTracker", faults)
        self.run_name = run_name
        self.run_id = run_id or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.urandom(4).hex()}"
        self.path = Path(logging_dir) / run_name / f"{self.run_id}.jsonl"
        self.watermark: int | None = None
        """The highest step that is stored; None before the first."""
        self.skipped = 0
        """Values not stored because the run held them already."""
        self._fsync = fsync
        self._file: io.FileIO | None = None
        self._held: dict[int, set[str]] = {}

    @property
    def tracker(self) -> Path:
        """Return the path of the file."""
        return self.path

    @on_main_process
    def start(self) -> None:
        """Open the file; continue the run that it holds, if any.

        An incomplete last line, left by a process that was killed while it wrote, is removed.
        Raises CheckpointError when the file is not a run of this tracker.
        """
        if self._file is not None:
            raise StateError(f"The run {self.run_id!r} is started already", where=str(self.path))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        resumed = self.path.exists() and self._resume()
        # One unbuffered write per line: other processes never see half of one that was completed.
        self._file = io.FileIO(self.path, "a")
        self._write({"kind": "resume" if resumed else "run", "format": FORMAT, "run_id": self.run_id,
                     "run_name": self.run_name})  # fmt: skip

    def _resume(self) -> bool:
        repair(self.path)
        run: Run = read_run(self.path)
        for row in run.rows:
            if row.step is not None:
                self._held.setdefault(row.step, set()).update(row.values)
        self.watermark = max(self._held, default=None)
        return run.run_id is not None

    @on_main_process
    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Append the hyperparameters. Raises DataError for what JSON cannot hold."""
        self._write({"kind": "config", "values": encode(dict(values), "config")})

    @on_main_process
    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Append the values of one step. Raises DataError for what JSON cannot hold.

        ``kwargs`` are further fields of the line.
        """
        row = encode(dict(values), "values")
        if step is not None:
            step = int(step)
            held = self._held.get(step)
            if held:
                fresh = {key: value for key, value in row.items() if key not in held}
                self.skipped += len(row) - len(fresh)
                if not fresh:
                    return
                row = fresh
            self.watermark = step if self.watermark is None else max(self.watermark, step)
        extra = {"extra": encode(kwargs, "kwargs")} if kwargs else {}
        self._write({"kind": "log", "step": step, "values": row, **extra})

    @on_main_process
    def log_table(
        self,
        table_name: str,
        columns: Sequence[str] | None = None,
        data: Sequence[Sequence[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Append a table, from ``columns`` and ``data`` or from a ``dataframe`` with both."""
        if dataframe is not None:
            columns, data = list(dataframe.columns), dataframe.to_numpy().tolist()
        elif columns is None or data is None:
            fault = Fault("columns, data", (columns, data), "both are needed", "or give dataframe=")
            raise ConfigError(f"table {table_name!r}", [fault])
        self._write(
            {
                "kind": "table",
                "step": None if step is None else int(step),
                "name": table_name,
                "columns": [str(column) for column in columns],
                "data": encode(list(data), table_name),
                **({"extra": encode(kwargs, "kwargs")} if kwargs else {}),
            }
        )

    @on_main_process
    def finish(self) -> None:
        """Append the end of the run and close the file; a second call does nothing."""
        if self._file is None:
            return
        self._write({"kind": "finish", "skipped": self.skipped})
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is None:
            raise StateError(
                f"The run {self.run_id!r} is not started",
                where=str(self.path),
                fix="call start() before logging",
            )
        record["time"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps(record, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"
        rest = memoryview(line.encode())
        while rest:
            rest = rest[self._file.write(rest) :]
        if self._fsync:
            os.fsync(self._file.fileno())


__all__ = ["JSONLinesTracker"]
