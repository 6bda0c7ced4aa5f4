"""The part of ``Accelerator`` that says who this process is and runs code on some processes only."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from accel_state.execution import Execution

if TYPE_CHECKING:
    import torch

    from accel_core.enums import DistributedType
    from accel_state import AcceleratorState


class ProcessAPI(Execution):
    """Show the place of this process; decorators and order come from `Execution`, as for `PartialState`."""

    state: AcceleratorState

    @property
    def distributed_type(self) -> DistributedType:
        """Return the kind of set-up, for display."""
        return self.state.distributed_type

    @property
    def num_processes(self) -> int:
        """Return the number of processes over all machines."""
        return self.state.num_processes

    @property
    def process_index(self) -> int:
        """Return this process's rank over all machines."""
        return self.state.process_index

    @property
    def local_process_index(self) -> int:
        """Return this process's rank on its machine."""
        return self.state.local_process_index

    @property
    def device(self) -> torch.device:
        """Return the device of this process."""
        return self.state.device

    @property
    def use_distributed(self) -> bool:
        """Return whether there is more than one process."""
        return self.state.use_distributed

    @property
    def multi_device(self) -> bool:
        """Return whether several processes train together, on any hardware."""
        return self.state.use_distributed

    def split_between_processes(
        self, inputs: Any, apply_padding: bool = False
    ) -> AbstractContextManager[Any]:
        """Return a context that gives this rank's share of a list, tuple, dict, tensor or dataset.

        With ``apply_padding`` shorter shares are filled up with their last item to the length of the longest.
        """
        return self.state.split_between_processes(inputs, apply_padding=apply_padding)

    def wait_for_everyone(self) -> None:
        """Return once every process is here. Collective."""
        self.state.wait_for_everyone()
