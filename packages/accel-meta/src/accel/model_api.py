"""What the ``Accelerator`` does with whole models: write and read their weights."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from accel_core.errors import CheckpointError
from accel_core.protocols import Unit

if TYPE_CHECKING:
    import torch
    from torch import nn

    from accel_core.protocols import LoadReport, Strategy
    from accel_state import ProcessState
    from accel_state.weights import Weights

    from .preparation import Registry
    from .resolve import Settings


class ModelAPI:
    """Whole models as files that other libraries read. For going on with a run, see ``save_state``."""

    _process: ProcessState
    _registry: Registry
    _strategy: Strategy
    _settings: Settings

    def get_state_dict(self, model: nn.Module, unwrap: bool = True) -> dict[str, torch.Tensor]:
        """Return the whole state of ``model`` by the names of the model that was prepared. Collective.

        The tensors are the model's own where the strategy keeps them whole on every process, not copies;
        where it keeps parts, they are put together, and processes other than the main one may get nothing.
        Without ``unwrap`` the names are those of the wrapped model. Tensors that are offloaded are the pages
        of their files, read when they are used.

        Raises CheckpointError for state that is no tensor.
        """
        from accel_parallel.inspection import bare, offloads

        if offloads(model):
            from accel_bigmodel import get_state_dict_offloaded_model

            return get_state_dict_offloaded_model(bare(model))
        if not unwrap:
            return dict(model.state_dict())
        return self._strategy.states.full(self._unit(model))

    def save_model(
        self,
        model: nn.Module,
        save_directory: str | os.PathLike[str],
        max_shard_size: int | str = "10GB",
        safe_serialization: bool = True,
    ) -> None:
        """Write the weights of ``model`` into a folder, on the main process. Collective; all leave together.

        ``model.safetensors``, or files of at most ``max_shard_size`` (``"200MB"``, ``"1GiB"``, or bytes) with
        ``model.safetensors.index.json``; other libraries read both. Without ``safe_serialization``,
        ``torch.save`` writes ``pytorch_model.bin`` or shards of it. With ``save_on_each_node`` of
        ProjectConfiguration, the first process of each machine writes.

        What is offloaded is written from where it lies. A tensor with several names is stored once, and tied
        again when it is loaded. The old files stay until the new ones are on the disk, and those of other
        names go then.

        Raises ConfigError for a size that is none, CheckpointError on every process when one cannot write.
        """
        from accel_state import weights
        from accel_state.checkpoint.agreement import together

        limit = weights.parse_size(max_shard_size)
        state = self.get_state_dict(model)
        topology = self._process.topology
        everywhere = self._settings.project.save_on_each_node
        mine = topology.local_rank == 0 if everywhere else topology.rank == 0

        def write() -> None:
            if not mine:
                return
            if not state and topology.rank != 0:
                raise CheckpointError(
                    "The strategy gives the whole model to the main process only",
                    where=f"strategy {self._strategy.name!r}, save_on_each_node=True",
                    fix="save to a file system that all machines share, without save_on_each_node",
                )
            weights.save(state, save_directory, max_shard_size=limit, safe_serialization=safe_serialization)

        together(self._process.collectives, write, "save the model")

    def load_model(
        self, model: nn.Module, directory: str | os.PathLike[str], strict: bool = True
    ) -> LoadReport:
        """Read weights into ``model`` on every process; return what was done, by name. Collective.

        ``directory``: what `save_model` or other libraries wrote, one of its files, or an index of shards.
        Files that ``torch.save`` wrote are read with ``weights_only=True``. Values are converted to the
        dtypes and devices of the model.

        Raises CheckpointError, on every process and before anything is changed, for files that are damaged
        or missing, and unless not ``strict`` for names that are missing, left over or of another shape.
        """
        from accel_state import weights
        from accel_state.checkpoint.agreement import together

        found: list[Weights] = []
        together(self._process.collectives, lambda: found.append(weights.read(directory)), "read the weights")
        return self._strategy.states.load_full(self._unit(model), found[0], strict=strict)

    def verify_device_map(self, model: nn.Module) -> bool:
        """Tell whether ``model``, or a module of it, was dispatched to several devices.

        Each of several processes needs the whole model on its own device: `prepare` refuses it there.
        """
        from accel_parallel.inspection import placed_devices

        return len(placed_devices(model)) > 1

    def _unit(self, model: nn.Module) -> Unit:
        """Return the unit of a prepared model, by itself or what it was made of; for others a new one."""
        prepared = self._registry.made_of(model)
        known = self._registry.unit_of(prepared if prepared is not None else model)
        return known if known is not None else Unit(name="model", model=model)


__all__ = ["ModelAPI"]
