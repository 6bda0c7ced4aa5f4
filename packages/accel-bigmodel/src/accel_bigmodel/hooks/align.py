"""The hook that brings the weights of a module, and its inputs, to the device where it computes."""

from __future__ import annotations

import threading
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from accel_core.errors import CheckpointError, StateError

from ..offload.block import OffloadedBlock
from ..offload.lane import Lane
from ..offload.loader import PrefixedDataset
from ..offload.placeholder import plain_class
from ..offload.tied import TiedTensors
from ..tensors import (
    TiedMap,
    all_tensors,
    keeps_a_list,
    moved,
    owner_of,
    refresh,
    set_module_tensor_to_device,
)
from .base import ModelHook
from .flow import bring, device_in, key_set

Device = torch.device | str | int
_ARGUMENTS = (
    "execution_device",
    "offload",
    "io_same_device",
    "weights_map",
    "offload_buffers",
    "place_submodules",
    "skip_keys",
    "tied_params_map",
)


class _Calls(threading.local):
    """The calls of a hook's module that are under way in this thread, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[tuple[OffloadedBlock | None, torch.device | None]] = []


class AlignDevicesHook(ModelHook):
    """Compute a module on ``execution_device``: inputs go there, and so do the module's own weights.

    ``offload``: weights are in the module during its forward only; ``weights_map`` has them by their names
    in the module, None means those that the module has now, kept on the CPU. ``offload_buffers``: buffers
    are treated alike, else they stay on the execution device. ``io_same_device``: the output goes to where
    the first tensor of the input was. ``place_submodules``: the weights of everything inside are the
    module's too, for one whose forward uses them without calling who has them. ``skip_keys``: arguments and
    results by these names stay where they are. ``tied_params_map``: what tied weights share.

    Raises CheckpointError for a weight without data that ``weights_map`` does not have.
    """

    def __init__(
        self,
        execution_device: Device | None = None,
        offload: bool = False,
        io_same_device: bool = False,
        weights_map: Mapping[str, torch.Tensor] | None = None,
        offload_buffers: bool = False,
        place_submodules: bool = False,
        skip_keys: str | list[str] | None = None,
        tied_params_map: TiedMap | TiedTensors | None = None,
    ) -> None:
        # Others make a hook like this one out of these attributes, so they are called as the arguments are.
        self.execution_device = execution_device
        self.offload = offload
        self.io_same_device = io_same_device
        self.weights_map = weights_map
        self.offload_buffers = offload_buffers
        self.place_submodules = place_submodules
        self.skip_keys = skip_keys
        self.tied_params_map = tied_params_map
        self.original_devices: dict[str, torch.device] = {}
        # What only this package says: who moves the next block, and which tensors are not offloaded.
        self.lane: Lane | None = None
        self.resident: frozenset[str] = frozenset()
        self.offloaded: list[str] = []
        self._reset()

    def _reset(self) -> None:
        self._calls = _Calls()
        self._making = threading.RLock()
        self._block: OffloadedBlock | None = None
        # Modules that keep their weights in a list as well.
        self._listing: list[nn.Module] = []
        self._may_cast = False
        # What the block and the device below were made from: others may assign to these attributes.
        self._made_of: tuple[Any, Any] = (None, None)
        self._given: Any = self
        self._device: torch.device | None = None
        self._skipped: Any = self
        self._skip: frozenset[str] = frozenset()

    @property
    def traceable(self) -> bool:  # type: ignore[override]
        """Tell whether the hook moves inputs only."""
        return not (self.offload or self.io_same_device)

    def __repr__(self) -> str:
        shown = (name for name in _ARGUMENTS if name not in {"weights_map", "tied_params_map"})
        return f"AlignDevicesHook({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes a block of its own, for its own module, when it is used.
        left_out = {
            "_calls",
            "_making",
            "_block",
            "_listing",
            "_may_cast",
            "_made_of",
            "_given",
            "_device",
            "_skipped",
            "_skip",
        }
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    # What happens once

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Put the module's weights on the execution device, or away if they are offloaded."""
        device = self._target()
        tensors = dict(self._tensors(module))
        if self.offload:
            self.original_devices = {name: tensor.device for name, tensor in tensors.items()}
            self._take_away(module, tensors, device or _first_device(tensors))
        elif device is not None:
            for name in tensors:
                if name not in self.resident:
                    self._settle(module, name, device)
        return module

    def _tensors(self, module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        return all_tensors(module, recurse=self.place_submodules)

    def _settle(self, module: nn.Module, name: str, device: torch.device) -> None:
        _, key, table = owner_of(module, name)
        if table[key].device != device:
            tied = self.tied_params_map
            shared = None if isinstance(tied, TiedTensors) else tied
            set_module_tensor_to_device(module, name, device, tied_params_map=shared)

    def _take_away(self, module: nn.Module, tensors: dict[str, torch.Tensor], device: torch.device) -> None:
        buffers = {name for name, _ in all_tensors(module, recurse=self.place_submodules, parameters=False)}
        given = self.weights_map
        own: dict[str, torch.Tensor] = {}
        names = []
        for name, tensor in tensors.items():
            if name in self.resident:
                continue
            if name in buffers and not self.offload_buffers:
                self._stay(module, name, tensor, device)
                continue
            names.append(name)
            if given is None or not self._has(given, name):
                own[name] = _kept(name, tensor, module)
            else:
                dataset, key = self._spelled(given, name)
                same_shape(tensor, dataset, key, f"{name!r} of {type(module).__name__}")
        if own:
            self.weights_map = own if given is None else ChainMap(own, given)  # type: ignore[arg-type]
        elif given is None:
            self.weights_map = own
        self.offloaded = names
        self._make(module, device)

    def _has(self, source: Mapping[str, torch.Tensor], name: str) -> bool:
        if name in source:
            return True
        dataset, key = self._spelled(source, name)
        return key in dataset

    def _spelled(
        self, source: Mapping[str, torch.Tensor], name: str
    ) -> tuple[Mapping[str, torch.Tensor], str]:
        """Return where a tensor is kept, and the name there: its own, or one that it is tied to."""
        tied = self.tied_params_map
        if not isinstance(source, PrefixedDataset):
            return source, name
        full = source.prefix + name
        return source.dataset, tied.spelled(full, source.dataset) if isinstance(tied, TiedTensors) else full

    def kept(self, name: str) -> torch.Tensor:
        """Return the value of an offloaded tensor, from where it is kept."""
        assert self.weights_map is not None
        dataset, key = self._spelled(self.weights_map, name)
        return dataset[key]

    def _stay(self, module: nn.Module, name: str, tensor: torch.Tensor, device: torch.device) -> None:
        """Put a buffer where the module computes, for as long as the hook is there."""
        if tensor.device == device:
            return
        value = None
        if tensor.device.type == "meta":
            source = self.weights_map
            if source is None or name not in source:
                raise _no_data(name, module)
            value = source[name]
        set_module_tensor_to_device(module, name, device, value=value)

    def _make(self, module: nn.Module, device: torch.device) -> OffloadedBlock:
        given, prefix = self.weights_map, ""
        assert given is not None
        source = given
        if isinstance(given, PrefixedDataset):
            # By full names, which the lane and tied weights know.
            source, prefix = given.dataset, given.prefix
        tied = self.tied_params_map if isinstance(self.tied_params_map, TiedTensors) else None
        block = OffloadedBlock(module, self.offloaded, source, prefix, device, tied=tied, lane=self.lane)
        block.park()
        inside = module.modules() if self.place_submodules else [module]
        self._listing = [each for each in inside if keeps_a_list(each)]
        self._refresh()
        self._may_cast = torch.amp.is_autocast_available(device.type)
        self._block = block
        self._made_of = (self.weights_map, self.execution_device)
        return block

    def _refresh(self) -> None:
        for each in self._listing:
            refresh(each)

    def detach_hook(self, module: nn.Module) -> nn.Module:
        """Put offloaded weights back to where they were; those of a skeleton, on the CPU."""
        if self.offload and self.original_devices:
            block = self._current(module)
            target = _back([self.original_devices[name] for name in self.offloaded])
            block.restore(target)
            for name, device in self.original_devices.items():
                _, key, table = owner_of(module, name)
                wanted = _back([device])
                if table[key].device != wanted:
                    table[key] = moved(table[key], wanted)
            self._refresh()
            self._block = None
            self.original_devices = {}
        return module

    # What happens at every forward

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments on the execution device, where the weights are now."""
        device = self._device if self.execution_device is self._given else self._target()
        if self.offload or self.io_same_device:
            block = self._current(module) if self.offload else None
            came_from = device_in(args, kwargs) if self.io_same_device else None
            if device is not None:
                args, kwargs = self._move(args, kwargs, device)
            if block is not None:
                block.enter()
                for each in self._listing:
                    refresh(each)
            self._calls.stack.append((block, came_from))
            return args, kwargs
        if device is not None:
            return self._move(args, kwargs, device)
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Return the output, where the input came from if that is wanted; offloaded weights are away."""
        came_from = self._leave(module)
        if came_from is not None and self.io_same_device:
            output = bring(output, came_from, self._skip_set())
        return output

    def abandon(self, module: nn.Module) -> None:
        """Take offloaded weights away after a forward that raised."""
        self._leave(module)

    def _leave(self, module: nn.Module) -> torch.device | None:
        stack = self._calls.stack
        if not stack:
            return None
        block, came_from = stack.pop()
        if block is not None:
            block.leave()
            for each in self._listing:
                refresh(each)
            if self._may_cast and torch.is_autocast_enabled(block.device.type):
                # It keeps what it cast of every weight, which is half of the model in the end.
                torch.clear_autocast_cache()
        return came_from

    def _move(self, args: Any, kwargs: Any, device: torch.device) -> tuple[Any, Any]:
        if args:
            args = bring(args, device)
        if kwargs:
            kwargs = bring(kwargs, device, self._skip_set())
        return args, kwargs

    def _skip_set(self) -> frozenset[str]:
        if self.skip_keys is not self._skipped:
            self._skip, self._skipped = key_set(self.skip_keys), self.skip_keys
        return self._skip

    def _target(self) -> torch.device | None:
        """Return the execution device as torch has it, with the number of the device."""
        if self.execution_device is not self._given:
            self._device = None if self.execution_device is None else full_device(self.execution_device)
            self._given = self.execution_device
        return self._device

    def _current(self, module: nn.Module) -> OffloadedBlock:
        """Return the block of the module, made anew where others changed what it is made of."""
        block = self._made()
        if block is not None:
            return block
        with self._making:
            # Maybe another thread did, meanwhile.
            block = self._made()
            if block is None:
                before = torch.device("cpu") if self._block is None else self._block.device
                block = self._make(module, self._target() or before)
            return block

    def _made(self) -> OffloadedBlock | None:
        if self.weights_map is self._made_of[0] and self.execution_device is self._made_of[1]:
            return self._block
        return None

    @contextmanager
    def aligned(self, module: nn.Module, device: Device | None = None) -> Iterator[None]:
        """Have the weights in the module for a while, on ``device`` or where it computes."""
        block = self._current(module)
        where = block.device if device is None else full_device(device)
        if where != block.device:
            if any(
                tensor.device.type != "meta"
                for name, tensor in self._tensors(module)
                if name in self.offloaded
            ):
                raise StateError(
                    f"The weights are in use on {block.device}, so that they cannot be on {where} too",
                    where=type(module).__name__,
                    fix="align the module before or after its forward, not while it runs",
                )
            tied = block.tied
            block = OffloadedBlock(module, self.offloaded, block.source, block.prefix, where, tied=tied)
            block.park()
        block.enter()
        self._refresh()
        try:
            yield
        finally:
            block.leave()
            self._refresh()


def same_shape(tensor: torch.Tensor, source: Mapping[str, torch.Tensor], key: str, shown: str) -> None:
    """Refuse weights of another module: a hook may have been put on what took the place of the first."""
    if plain_class(tensor) not in {torch.Tensor, nn.Parameter}:
        return
    if tensor.device.type == "meta" and not isinstance(source, dict):
        # Asking for it may read it, and who planned this for a skeleton has looked.
        return
    found = source[key].shape
    if found != tensor.shape:
        raise CheckpointError(
            f"{shown} has shape {tuple(tensor.shape)}, and the offloaded weights have {key!r} of shape "
            f"{tuple(found)}",
            fix="offload it by weights of its own; a hook without weights_map keeps those that it finds",
        )


def full_device(device: Device) -> torch.device:
    """Return ``device`` as tensors on it say it: an accelerator with its number."""
    found = torch.device(device)
    # What torch says about its types forgets that a device need not have a number.
    number: int | None = found.index
    if number is None and found.type not in {"cpu", "meta"}:
        return torch.device(found.type, torch.get_device_module(found).current_device())
    return found


def _first_device(tensors: Mapping[str, torch.Tensor]) -> torch.device:
    first = next(iter(tensors.values()), None)
    return torch.device("cpu") if first is None or first.device.type == "meta" else first.device


def _kept(name: str, tensor: torch.Tensor, module: nn.Module) -> torch.Tensor:
    if tensor.device.type == "meta":
        raise _no_data(name, module)
    return tensor.detach().to("cpu")


def _no_data(name: str, module: nn.Module) -> CheckpointError:
    return CheckpointError(
        f"{name!r} of {type(module).__name__} has no data, and the offloaded weights do not have it",
        fix="load a checkpoint that has it, or offload from weights that do",
    )


def _back(devices: list[torch.device]) -> torch.device:
    """Return where weights go that were there; what never had data, goes to the CPU."""
    return next((each for each in devices if each.type != "meta"), torch.device("cpu"))


__all__ = ["AlignDevicesHook", "full_device", "same_shape"]
