"""The documented settings of a run: accumulation, data loading and the project's folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from accel_core.errors import Fault

from . import checks
from .base import Config, KwargsHandler


@dataclass(frozen=True, slots=True)
class GradientAccumulationPlugin(KwargsHandler):
    """How micro-batches form one optimizer step.

    ``num_steps`` None leaves it to the environment and then to 1. ``adjust_scheduler``: the
    scheduler counts micro-batches. ``sync_with_dataloader``: the last batch of a loader ends the
    window. ``sync_each_batch``: ranks synchronise in every micro-batch, to save memory.
    """

    num_steps: int | None = None
    adjust_scheduler: bool = True
    sync_with_dataloader: bool = True
    sync_each_batch: bool = False

    def faults(self) -> Iterator[Fault]:
        """Yield everything that is wrong."""
        yield from checks.whole(self, "num_steps", minimum=1, optional=True)
        yield from checks.flags(self, "adjust_scheduler", "sync_with_dataloader", "sync_each_batch")


SHARDING = ("auto", "global", "sharded")
"""Who divides the data of a loader."""
AUDIT = ("first_batches", "epoch", "off")
"""How long ranks compare what they read."""
UNEVEN = ("stop_all", "pad_masked", "cycle", "independent")
"""What happens where ranks run out of data at different steps."""


@dataclass(frozen=True, slots=True)
class DataLoaderConfiguration(Config):
    """How prepared loaders share data between ranks."""

    split_batches: bool = False
    """The loader's batch size is that of all ranks together."""
    dispatch_batches: bool | None = None
    """Rank 0 reads and hands out; None means no: every rank reads, iterable datasets too."""
    even_batches: bool = True
    """Samples from the start fill up the last batch, so that all ranks have the same number of batches."""
    use_seedable_sampler: bool = False
    """Of a generator of your own only the seed is taken; without one this changes nothing."""
    data_seed: int | None = None
    """The seed of shuffling; None takes one from torch's generator on rank 0."""
    non_blocking: bool = False
    """Copies to the device overlap with computing; needs pinned memory to have an effect."""
    use_stateful_dataloader: bool = False
    """Loaders come from torchdata and can save their position."""
    sharding: str = "auto"
    """What ranks hold: ``global``, all of the data; ``sharded``, each its own part; ``auto``: looked up."""
    audit: str = "first_batches"
    """When ranks compare what they read: ``first_batches``, all through each ``epoch``, or ``off``."""
    uneven: str | None = None
    """What happens where ranks run out of data at different steps: ``stop_all``, ``pad_masked``, ``cycle``,
    or ``independent`` for no agreement at all; None decides by ``even_batches`` and the kind of data."""

    def faults(self) -> Iterator[Fault]:
        """Yield everything that is wrong."""
        yield from checks.flags(
            self,
            "split_batches",
            "even_batches",
            "use_seedable_sampler",
            "non_blocking",
            "use_stateful_dataloader",
        )
        yield from checks.flags(self, "dispatch_batches", optional=True)
        yield from checks.whole(self, "data_seed", optional=True)
        yield from checks.one_of(self, "sharding", SHARDING)
        yield from checks.one_of(self, "audit", AUDIT)
        yield from checks.one_of(self, "uneven", UNEVEN, optional=True)


@dataclass(slots=True)
class ProjectConfiguration(Config):
    """Where a project keeps checkpoints and logs. Changes by documented use: ``iteration`` counts saves."""

    changes: ClassVar[bool] = True

    project_dir: str | None = None
    logging_dir: str | None = None
    """None means ``project_dir``."""
    automatic_checkpoint_naming: bool = False
    total_limit: int | None = None
    """How many checkpoints are kept; None keeps all."""
    iteration: int = 0
    save_on_each_node: bool = False

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        self.set_directories(self.project_dir)

    def faults(self) -> Iterator[Fault]:
        """Yield everything that is wrong."""
        for name in ("project_dir", "logging_dir"):
            if not isinstance(getattr(self, name), (str, os.PathLike, type(None))):
                yield Fault(name, getattr(self, name), "must be a path or None")
        yield from checks.flags(self, "automatic_checkpoint_naming", "save_on_each_node")
        yield from checks.whole(self, "total_limit", minimum=1, optional=True)
        yield from checks.whole(self, "iteration", minimum=0)

    def set_directories(self, project_dir: str | None = None) -> None:
        """Set the project's folder, and the folder of logs with it unless that was chosen already."""
        self.project_dir = project_dir
        if self.logging_dir is None:
            self.logging_dir = project_dir


__all__ = ["DataLoaderConfiguration", "GradientAccumulationPlugin", "ProjectConfiguration"]
