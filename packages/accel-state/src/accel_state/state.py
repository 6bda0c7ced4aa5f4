"""`PartialState`: the documented view of this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from accel_core.errors import UnknownNameError

from . import process
from .devices.choose import detect
from .execution import Execution
from .operations.exchange import wait_for_everyone
from .split import split

if TYPE_CHECKING:
    import torch.distributed as dist

    from accel_core.enums import DistributedType

_SETTINGS = ("backend", "device", "init_method", "timeout")


class PartialState(Execution):
    """Show this process's place, device and group, setting the process up on first use.

    All instances are views of one immutable `accel_state.process.ProcessState`. ``cpu``: compute on
    the CPU whatever else is there. Further keywords are those of `accel_state.process.start`:
    ``backend``, ``timeout``, ``init_method``, ``device``.

    Raises StateError when the process was set up before in another way.
    """

    def __init__(self, cpu: bool = False, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in _SETTINGS:
                raise UnknownNameError("setting of PartialState", name, _SETTINGS)
        self._process = process.start(cpu=cpu, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PartialState) and other._process is self._process

    def __hash__(self) -> int:
        return id(self._process)

    def __repr__(self) -> str:
        lines = [
            f"Distributed environment: {self.distributed_type}",
            f"Num processes: {self.num_processes}",
            f"Process index: {self.process_index}",
            f"Local process index: {self.local_process_index}",
            f"Device: {self.device}",
        ]
        if self.backend is not None:
            lines[1:1] = [f"Backend: {self.backend}", f"Timeout: {self.timeout}"]
        return "\n".join(lines) + "\n"

    @staticmethod
    def _reset_state() -> None:
        """Leave the group and forget the set-up, so that a test can start over."""
        process.reset()

    # -- who and where ---------------------------------------------------------------------------

    @property
    def initialized(self) -> bool:
        """Tell whether this is still the set-up of the process (tests may reset it)."""
        return process.current() is self._process

    @property
    def process_state(self) -> process.ProcessState:
        """Return the immutable state behind this view."""
        return self._process

    @property
    def device(self) -> torch.device:
        """Return the device this process computes on."""
        return self._process.device

    @property
    def default_device(self) -> torch.device:
        """Return the device a process gets when it asks for none: the first accelerator, else the CPU."""
        return torch.device(detect().name)

    @property
    def distributed_type(self) -> DistributedType:
        """Return the label of the set-up; it is for display, nothing in accel branches on it."""
        return self._process.distributed_type

    @property
    def num_processes(self) -> int:
        """Return the number of processes."""
        return self._process.topology.world_size

    @property
    def process_index(self) -> int:
        """Return this process's rank."""
        return self._process.topology.rank

    @property
    def local_process_index(self) -> int:
        """Return this process's rank on its machine."""
        return self._process.topology.local_rank

    @property
    def use_distributed(self) -> bool:
        """Tell whether there is more than one process."""
        return self.num_processes > 1

    @property
    def backend(self) -> str | None:
        """Return what the process group was made with; None without a group."""
        return self._process.backend

    @property
    def timeout(self) -> timedelta | None:
        """Return the timeout that the group applies to one operation; None without a group."""
        return self._process.timeout

    @property
    def debug(self) -> bool:
        """Tell whether ranks compare what they do before every collective (``ACCELERATE_DEBUG_MODE``)."""
        return self._process.debug

    @property
    def fork_launched(self) -> bool:
        """Tell whether a launcher forked this process: a notebook, say (``FORK_LAUNCHED``)."""
        return self._process.fork_launched

    # -- acting together -------------------------------------------------------------------------

    def wait_for_everyone(self) -> None:
        """Wait until every process has come here."""
        wait_for_everyone(collectives=self._process.collectives)

    @contextmanager
    def split_between_processes(self, inputs: Any, apply_padding: bool = False) -> Iterator[Any]:
        """Give the body this process's part of ``inputs``.

        Lists, tuples, tensors, data sets, and mappings of them with equal lengths. The parts are
        consecutive, the first ones longer by one when it does not come out even; ``apply_padding``
        fills the others up with copies of the last item, so that results can be gathered.
        """
        yield split(inputs, self.process_index, self.num_processes, apply_padding=apply_padding)

    def set_device(self) -> None:
        """Make this process's device the current one again."""
        self._process.hardware.select(self._process.device.index or 0)

    def destroy_process_group(self, group: dist.ProcessGroup | None = None) -> None:
        """Destroy ``group``, or without one the group that the set-up made."""
        if group is None:
            process.shutdown()
        else:
            from torch.distributed import destroy_process_group

            destroy_process_group(group)


__all__ = ["PartialState"]
