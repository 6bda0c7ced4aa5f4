"""What accel asks of a sub-command and of a launcher."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


@runtime_checkable
class Command(Protocol):
    """A sub-command of ``accel``, published under the entry-point group ``accel.commands``.

    Importing it and building its parser must be quick: no torch before ``run``.
    """

    name: str
    help: str
    """One line for ``accel --help``."""

    def configure(self, parser: ArgumentParser) -> None:
        """Add the arguments."""

    def run(self, arguments: Namespace) -> int:
        """Do the work; return the exit code."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """What to start, how many times and where; resolved from options, config file and defaults."""

    script: str
    arguments: tuple[str, ...] = ()
    module: bool = False
    """Run ``script`` as ``python -m`` does."""
    python: bool = True
    """Put the Python interpreter before ``script``."""
    num_processes: int = 1
    """Over all machines."""
    num_machines: int = 1
    machine_rank: int = 0
    main_address: str | None = None
    main_port: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to set for every process, see `accel_core.environment`."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Further settings that one launcher understands; another refuses them."""


@runtime_checkable
class Launcher(Protocol):
    """A way to start the processes of a run, published under ``accel.launchers``."""

    name: str

    def check(self, spec: LaunchSpec) -> None:
        """Raise LaunchError for what cannot be started, before anything is."""

    def launch(self, spec: LaunchSpec) -> int:
        """Start the processes and wait; return their exit code. May replace this process instead."""
        ...
