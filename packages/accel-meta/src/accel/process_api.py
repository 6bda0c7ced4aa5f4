"""The part of ``Accelerator`` that says who this process is and runs code on some processes only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

    from accel_core.enums import DistributedType
    from accel_state import AcceleratorState

F = TypeVar("F", bound=Callable[..., Any])


class ProcessAPI:
    """Delegate to the process state; every member reads as it does on `accel_state.PartialState`."""

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

    @property
    def is_main_process(self) -> bool:
        """Return whether this is rank 0 over all machines."""
        return self.state.is_main_process

    @property
    def is_local_main_process(self) -> bool:
        """Return whether this is rank 0 of its machine."""
        return self.state.is_local_main_process

    @property
    def is_last_process(self) -> bool:
        """Return whether this is the highest rank."""
        return self.state.is_last_process

    def on_main_process(self, function: F | None = None) -> Any:
        """Decorate ``function`` to run on rank 0 only; elsewhere it returns None."""
        return self.state.on_main_process(function)

    def on_local_main_process(self, function: F | None = None) -> Any:
        """Decorate ``function`` to run on the first process of each machine only."""
        return self.state.on_local_main_process(function)

    def on_last_process(self, function: F) -> Any:
        """Decorate ``function`` to run on the highest rank only."""
        return self.state.on_last_process(function)

    def on_process(self, function: F | None = None, process_index: int | None = None) -> Any:
        """Decorate ``function`` to run on one rank only."""
        return self.state.on_process(function, process_index=process_index)

    def on_local_process(
        self,
        function: F | None = None,
        local_process_index: int | None = None,
        *,
        local_process_idx: int | None = None,
    ) -> Any:
        """Decorate ``function`` to run on one local rank of each machine only."""
        # The documents use both spellings of the argument.
        index = local_process_idx if local_process_index is None else local_process_index
        return self.state.on_local_process(function, local_process_index=index)

    def main_process_first(self) -> AbstractContextManager[None]:
        """Return a context that rank 0 runs before the others. Collective."""
        return self.state.main_process_first()

    def local_main_process_first(self) -> AbstractContextManager[None]:
        """Return a context that the first process of each machine runs before the others. Collective."""
        return self.state.local_main_process_first()

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

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print once per machine."""
        self.state.print(*args, **kwargs)
