"""Loggers that know which rank they run on.

``get_logger`` returns an adapter of the standard library: everything that a logger has works, plus
``main_process_only`` (the default) and ``in_order`` on each call. It asks for the rank when a
message is logged and never raises for want of it, so a library may make its loggers on import.
"""

from __future__ import annotations

import logging as standard
import os
from collections.abc import Callable, Hashable, MutableMapping
from typing import Any, NamedTuple

from .environment.run import ACCELERATE_LOG_LEVEL, LOG_LEVELS
from .errors import ConfigError, Fault, TopologyError
from .topology import Topology


def _no_barrier() -> None:
    """Wait for nobody: processes that have not met yet cannot be put in order."""


class RankInfo(NamedTuple):
    """What a logger asks for: this process's place, and how to wait for the others."""

    rank: int = 0
    local_rank: int = 0
    barrier: Callable[[], None] = _no_barrier
    world_size: int = 1


_source: Callable[[], RankInfo | None] | None = None


def set_rank_source(source: Callable[[], RankInfo | None] | None) -> None:
    """Say whom loggers ask for the rank; None goes back to the environment.

    ``source`` is called for every message and returns None while there is no process state.
    """
    global _source
    _source = source


def rank_info() -> RankInfo:
    """Return the place of this process: from the rank source, else from the environment, else rank 0."""
    info = _source() if _source is not None else None
    if info is not None:
        return info
    try:
        place = Topology.detect()
    except TopologyError:
        # Whoever starts the processes reports this; a log line before that must not fail.
        return RankInfo()
    return RankInfo(place.rank, place.local_rank, _no_barrier, place.world_size)


class RankFilter(standard.Filter):
    """Give every record ``rank``, ``local_rank`` and ``world_size``, for formats that show them.

    Added to a handler, it also serves records of loggers that are not ours.
    """

    def filter(self, record: standard.LogRecord) -> bool:
        """Add what is missing and let the record pass."""
        if not hasattr(record, "rank"):
            info = rank_info()
            record.rank, record.local_rank, record.world_size = info.rank, info.local_rank, info.world_size
        return True


class MultiProcessAdapter(standard.LoggerAdapter[standard.Logger]):
    """A logger whose calls take ``main_process_only`` (True by default) and ``in_order`` (False).

    Records carry ``rank``, ``local_rank`` and ``world_size``. Whatever else a ``Logger`` has,
    handlers and filters included, is this one's too.
    """

    def __init__(self, logger: standard.Logger, extra: dict[str, object] | None = None) -> None:
        super().__init__(logger, extra)
        self._once: set[Hashable] = set()

    def __getattr__(self, name: str) -> Any:
        # Only asked for names that an adapter lacks: handlers, addHandler, filters, level, getChild, ...
        if name == "logger":
            raise AttributeError(name)
        return getattr(self.logger, name)

    @property
    def propagate(self) -> bool:
        """Whether records also go to the handlers of the loggers above."""
        return self.logger.propagate

    @propagate.setter
    def propagate(self, value: bool) -> None:
        self.logger.propagate = value

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Merge the adapter's ``extra`` and the call's, the call's winning."""
        extra = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, {**kwargs, "extra": extra}

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log on the main process, or on every process, one after another when ``in_order``.

        ``in_order`` is collective: every rank must make the call. Ranks whose level hides the
        message wait all the same, so levels that differ between ranks cannot make them hang.
        """
        main_process_only = kwargs.pop("main_process_only", True)
        in_order = kwargs.pop("in_order", False)
        wanted = self.isEnabledFor(level)
        if not wanted and not (in_order and not main_process_only):
            return
        info = rank_info()
        if main_process_only and info.rank != 0:
            return
        # The record names the line of the caller: this frame is one more than the caller counts.
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        place = {"rank": info.rank, "local_rank": info.local_rank, "world_size": info.world_size}
        kwargs["extra"] = {**place, **(kwargs.get("extra") or {})}
        msg, prepared = self.process(msg, kwargs)
        if main_process_only or not in_order:
            self.logger.log(level, msg, *args, **prepared)
            return
        for turn in range(info.world_size):
            if wanted and turn == info.rank:
                self.logger.log(level, msg, *args, **prepared)
            info.barrier()

    def warning_once(self, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a warning the first time that this adapter is given this message and these arguments."""
        key = (str(msg), repr(args))
        if key not in self._once:
            self._once.add(key)
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            self.warning(msg, *args, **kwargs)


def get_logger(name: str, log_level: str | int | None = None) -> MultiProcessAdapter:
    """Return the logger ``name`` as one that knows its rank.

    ``log_level`` None takes ACCELERATE_LOG_LEVEL, and without that leaves the level alone. A level
    that is asked for is also shown when the program has not set up logging at all. Raises
    ConfigError for a level that is none.
    """
    logger = standard.getLogger(name)
    stated = os.environ.get(ACCELERATE_LOG_LEVEL, "").strip() if log_level is None else log_level
    if stated != "":
        number = _level_number(stated, ACCELERATE_LOG_LEVEL if log_level is None else "log_level")
        logger.setLevel(number)
        # The standard library's handler of last resort, used only while there is no other, stops
        # at WARNING, which would make the level asked for look ignored.
        if standard.lastResort is not None and standard.lastResort.level > number:
            standard.lastResort.setLevel(number)
    return MultiProcessAdapter(logger)


def _level_number(level: str | int, said_by: str) -> int:
    known = standard.getLevelNamesMapping()
    if isinstance(level, int) and not isinstance(level, bool):
        return level
    if isinstance(level, str) and level.upper() in known:
        return known[level.upper()]
    raise ConfigError("get_logger", [Fault(said_by, level, f"must be one of {', '.join(LOG_LEVELS)}")])


__all__ = ["MultiProcessAdapter", "RankFilter", "RankInfo", "get_logger", "rank_info", "set_rank_source"]
