"""Where the checkpoints of a project lie, and how the next one is called."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_core.errors import CapabilityError, CheckpointError, ConfigError, Fault
from accel_core.logging import get_logger
from accel_state.checkpoint import address, resolve
from accel_state.checkpoint.agreement import together
from accel_state.process import start as process_state

if TYPE_CHECKING:
    from accel_core.config import ProjectConfiguration

logger = get_logger(__name__)

_FOLDER = "checkpoints"
_NUMBERED = re.compile(r"checkpoint_(\d+)")


class Places:
    """The checkpoints of one project: ``project_dir/checkpoints/checkpoint_N``.

    ``project.iteration`` is the number of the next one, as documented.
    """

    def __init__(self, project: ProjectConfiguration) -> None:
        self._project = project

    def directory(self, method: str) -> str:
        """Return the folder of the project's checkpoints; raise ConfigError when there is no project_dir."""
        if self._project.project_dir is None:
            fault = Fault("project_dir", None, f"is needed where {method} is given no folder")
            raise ConfigError(f"{method}()", [fault])
        return address.child(self.named(self._project.project_dir), _FOLDER)

    def next(self, output_dir: str | os.PathLike[str] | None) -> tuple[str, bool]:
        """Return where the next checkpoint goes, and whether its name was chosen here. Collective.

        Raises CheckpointError when a checkpoint of that number is there: it is of a run that this one does
        not continue.
        """
        project = self._project
        if project.save_on_each_node and process_state().topology.num_nodes > 1:
            raise CapabilityError(
                "save_state with save_on_each_node=True is not in this version: all write one checkpoint",
                where="ProjectConfiguration",
                fix="save to a file system, or a bucket, that all machines share",
            )
        if output_dir is not None and not project.automatic_checkpoint_naming:
            return self.named(output_dir), False
        target = address.child(self.directory("save_state"), f"checkpoint_{project.iteration}")
        if output_dir is not None:
            logger.warning("automatic_checkpoint_naming chooses %s; %s is not used", target, output_dir)
        if resolve.taken(target, process_state().collectives):
            raise CheckpointError(
                f"The checkpoint {target} is there already: this run did not continue it",
                where=f"ProjectConfiguration(iteration={project.iteration})",
                fix="continue it with resume() or load_state(), or take another project_dir or iteration",
            )
        return target, True

    @staticmethod
    def named(path: str | os.PathLike[str]) -> str:
        """Return a path or URI that was given, as text."""
        text = os.fspath(path)
        return text if address.is_uri(text) else str(Path(text).expanduser())

    def saved(self, *, automatic: bool) -> None:
        """Note that a checkpoint was saved."""
        if automatic:
            self._project.iteration += 1

    def loaded(self, path: str, store: Any) -> None:
        """Note which checkpoint the run goes on from. Collective.

        The next one has the number after all that are there, those that were skipped as damaged and those
        that are newer than what was loaded too: nothing is written over, and the newest is the newest.
        """
        if _NUMBERED.fullmatch(_last(path)) is None:
            return
        group = process_state().collectives
        above = address.parent(path) if address.is_uri(path) else str(Path(path).parent)

        def highest() -> int:
            names = [_last(str(each.path)) for each in store.look(above)] if group.rank == 0 else []
            return max(
                int(found[1]) for name in (*names, _last(path)) if (found := _NUMBERED.fullmatch(name))
            )

        self._project.iteration = together(group, highest, "list the checkpoints")[0] + 1

    def rotate(self, store: Any) -> None:
        """Remove what is more than ``total_limit``, on one rank."""
        limit = self._project.total_limit
        if limit is not None and process_state().topology.rank == 0:
            store.rotate(self.directory("save_state"), limit)


def _last(path: str) -> str:
    return address.name_of(path) if address.is_uri(path) else Path(path).name


__all__ = ["Places"]
