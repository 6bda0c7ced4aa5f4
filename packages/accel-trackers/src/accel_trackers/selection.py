"""From what users write after ``log_with=`` to tracker classes and instances."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from accel_core import plugins
from accel_core.enums import LoggerType
from accel_core.errors import CapabilityError, ConfigError, Fault
from accel_core.logging import get_logger

from .general import check_tracker

_LATER = frozenset(LoggerType.list()) - {str(LoggerType.ALL.value)}


def filter_trackers(log_with: Any, logging_dir: str | os.PathLike[str] | None = None) -> list[Any]:
    """Return the trackers that ``log_with`` stands for: classes for names, instances as they are.

    ``log_with``: a name, a `LoggerType`, a tracker instance, a list of these, or None. ``"all"``
    takes every installed tracker; those that need a folder are left out, with a warning, when
    there is no ``logging_dir``. What is named twice comes once.

    Raises UnknownNameError (with the nearest name), NotInstalledError (with the pip line),
    CapabilityError for a documented tracker that this version lacks, IncompleteTrackerError for an
    instance, and ConfigError when a named tracker needs a folder and there is none.
    """
    if log_with is None:
        return []
    items = list(log_with) if isinstance(log_with, (list, tuple, set, frozenset)) else [log_with]
    names = dict.fromkeys(str(item).lower() for item in items if isinstance(item, str))
    instances = [item for item in items if not isinstance(item, str)]
    for instance in instances:
        if isinstance(instance, type):
            fault = Fault("log_with", instance, "is a class", "give its name or an instance of it")
            raise ConfigError("trackers", [fault])
        check_tracker(instance)
    chosen = _named(name for name in names if name != LoggerType.ALL.value)
    _check_folders(chosen, logging_dir)
    if LoggerType.ALL.value in names:
        chosen |= _installed(logging_dir, without=chosen)
    unique = list({id(instance): instance for instance in instances}.values())
    taken = {instance.name for instance in unique}
    return [*unique, *(cls for name, cls in chosen.items() if name not in taken)]


def _named(names: Iterable[str]) -> dict[str, Any]:
    found = {}
    for name in names:
        if name in _LATER and name not in plugins.offered(plugins.TRACKERS):
            here = ", ".join(plugins.names(plugins.TRACKERS))
            raise CapabilityError(
                f"The tracker {name!r} is not available in this version of accel-trackers",
                fix=f"use one of {here}, or an instance of a GeneralTracker of your own",
            )
        found[name] = plugins.find(plugins.TRACKERS, name)
    return found


def _check_folders(chosen: dict[str, Any], logging_dir: str | os.PathLike[str] | None) -> None:
    faults = [
        Fault("log_with", name, "needs a folder to log to", "give project_dir or logging_dir")
        for name, cls in chosen.items()
        if cls.requires_logging_directory and logging_dir is None
    ]
    if faults:
        raise ConfigError("trackers", faults)


def _installed(logging_dir: str | os.PathLike[str] | None, *, without: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name in plugins.names(plugins.TRACKERS):
        if name in without:
            continue
        cls = plugins.find(plugins.TRACKERS, name)
        if cls.requires_logging_directory and logging_dir is None:
            get_logger(__name__).warning(
                "log_with='all' leaves out the tracker %r: it needs a folder (project_dir or logging_dir)",
                name,
            )
            continue
        found[name] = cls
    return found


__all__ = ["filter_trackers"]
