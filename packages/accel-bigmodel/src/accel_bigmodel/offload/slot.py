"""One tensor of a module that lies elsewhere: its place in the module, and the way of its value there."""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from accel_core.errors import CheckpointError

from .layout import packable
from .loader import find_holder
from .placeholder import placeholder_of, plain_class
from .tied import TiedTensors

_log = logging.getLogger(__name__)


class Way(enum.Enum):
    """How a value gets to the execution device."""

    IN_PLACE = enum.auto()
    """It lies there, and is the same memory every time."""
    FETCHED = enum.auto()
    """It lies there, made anew every time."""
    MOVED = enum.auto()
    """Its bytes are copied from the CPU."""
    CONVERTED = enum.auto()
    """It is more than its bytes, and knows how to move."""


def like(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """Return ``data`` as ``tensor`` is: its class, its ``requires_grad``, its attributes."""
    made: Any
    if not isinstance(tensor, nn.Parameter):
        made = normal(data) if data.is_inference() else data
    elif type(data) in (torch.Tensor, nn.Parameter):
        # What a class does when it is called (bitsandbytes quantizes) was done to these values already.
        made = torch.Tensor._make_subclass(plain_class(tensor), normal(data), tensor.requires_grad)
    else:
        made = nn.Parameter(data.detach(), requires_grad=tensor.requires_grad)
    if made is not tensor and tensor.__dict__:
        made.__dict__.update(tensor.__dict__)
    return made  # type: ignore[no-any-return]


def normal(data: torch.Tensor) -> torch.Tensor:
    """Return the same memory as a tensor that counts changes and may require gradients.

    Tensors that are made inside torch.inference_mode do neither, not even outside of it.
    """
    if not data.is_inference() or torch.is_inference_mode_enabled():
        return data.detach()
    fresh = torch.empty(0, dtype=data.dtype, device=data.device)
    return fresh.set_(data.untyped_storage(), data.storage_offset(), data.size(), data.stride())


def _drop_gradients(value: Any) -> None:
    """Keep no gradients for a weight that is away before anybody could look at them, and say so once."""
    if value.is_leaf and value._post_accumulate_grad_hooks is None:
        value.register_post_accumulate_grad_hook(_dropped)


def _dropped(value: torch.Tensor) -> None:
    value.grad = None
    _say_once()


@cache
def _say_once() -> None:
    _log.warning(
        "Gradients of offloaded weights are dropped: such a model is not trained. Call requires_grad_(False) "
        "on it, or remove_hook_from_submodules(model) to train it."
    )


def lies_on(tensor: torch.Tensor, device: torch.device) -> bool:
    """Tell whether ``tensor`` is on ``device``; one without a number is any of its kind."""
    own = tensor.device
    return own.type == device.type and device.index in (None, own.index)


class Slot:
    """Where a module keeps one of its tensors."""

    __slots__ = (
        *("found", "group", "held", "holder", "key", "placeholder", "placed", "seen", "source"),
        *("running", "spelled", "table", "value", "version", "way"),
    )

    def __init__(
        self, module: nn.Module, name: str, source: Mapping[str, torch.Tensor], prefix: str, tied: TiedTensors
    ) -> None:
        path, _, self.key = name.rpartition(".")
        owner = module.get_submodule(path)
        # The tables themselves: assigning to a module looks through all of them, every time.
        self.table: dict[str, Any] = owner._parameters if self.key in owner._parameters else owner._buffers
        # Its kernel changes statistics without counting that as a change.
        self.running = owner if isinstance(owner, _NormBase) and self.key.startswith("running_") else None
        self.source = source
        self.group = tied.group(prefix + name)
        self.spelled = tied.spelled(prefix + name, source)
        self.placeholder: torch.Tensor | None = None
        self.way: Way | None = None
        # In place only: what is put in the module, made once.
        self.value: torch.Tensor | None = None
        self.holder: tuple[dict[str, torch.Tensor], str] | None = None
        self.seen: torch.Tensor | None = None
        # While it is used: what was put in the module, instead of what, and its count of changes then.
        self.placed: torch.Tensor | None = None
        self.found: torch.Tensor | None = None
        self.held = False
        self.version = 0

    def park(self, tied: TiedTensors) -> None:
        """Put the placeholder in the module."""
        if self.placeholder is None:
            now = self.table[self.key]
            make = partial(_placeholder, now, self.spelled)
            self.placeholder = make() if self.group is None else tied.placeholder(self.group, make)
        self.table[self.key] = self.placeholder

    def waits(self) -> bool:
        """Tell whether the module has the placeholder now."""
        return self.placeholder is not None and self.table.get(self.key) is self.placeholder

    def fetch(self) -> torch.Tensor:
        """Return the value from the source."""
        try:
            return self.source[self.spelled]
        except KeyError as error:
            raise CheckpointError(
                f"The offloaded weights have no {self.spelled!r}",
                fix="offload the model again, from weights that have it",
            ) from error

    def stamp(self) -> tuple[int, int] | None:
        """Return which tensor of a state dict is the value, and how often it was changed; None for others."""
        holder = find_holder(self.source, self.spelled)
        if holder is None:
            return None
        value = holder[0][holder[1]]
        return id(value), 0 if value.is_inference() else value._version

    def find_way(self, device: torch.device) -> Way:
        """Return how the value gets to ``device``; looked at once."""
        if self.way is None:
            value = self.fetch()
            if lies_on(value, device):
                # Both at once, or the second could lie where the first did.
                again = self.fetch()
                stable = again is value or (value.numel() and again.data_ptr() == value.data_ptr())
                self.way = Way.IN_PLACE if stable else Way.FETCHED
            else:
                self.way = Way.MOVED if value.device.type == "cpu" and packable(value) else Way.CONVERTED
        return self.way

    def enter(self, tied: TiedTensors, device: torch.device, arrived: torch.Tensor | None) -> None:
        """Put the value in the module; ``arrived`` is what was moved to the device already."""
        now: Any = self.table.get(self.key)
        if now is not self.placeholder:
            if now is None:
                return
            if now.device.type != "meta":
                self._enter_own(now, device)
                return
            self.placeholder = now
        value = self.value
        if value is None or (self.holder is not None and self.holder[0].get(self.holder[1]) is not self.seen):
            value = self._value(tied, device, arrived)
        elif value.requires_grad != now.requires_grad:
            value.requires_grad_(now.requires_grad)
        if now.__dict__:
            value.__dict__.update(now.__dict__)
        self.table[self.key] = self.placed = value
        if value is not self.value:
            self.version = value._version
        if value.requires_grad and torch.is_grad_enabled():
            _drop_gradients(value)

    def _enter_own(self, now: torch.Tensor, device: torch.device) -> None:
        """Use what somebody put in the module."""
        placed = now if lies_on(now, device) else self._outside_inference(now, device)
        self.table[self.key] = self.placed = placed
        self.found = now
        if placed is not now:
            self.version = placed._version
            if placed.requires_grad and torch.is_grad_enabled():
                _drop_gradients(placed)

    def _outside_inference(self, now: torch.Tensor, device: torch.device) -> torch.Tensor:
        # Made inside torch.inference_mode, tensors could never be used outside of it, nor count changes.
        with torch.inference_mode(mode=False), torch.no_grad():
            return like(now, now.detach().to(device))

    def _value(self, tied: TiedTensors, device: torch.device, arrived: torch.Tensor | None) -> torch.Tensor:
        self.value = None
        with torch.inference_mode(mode=False), torch.no_grad():
            make = partial(self._made, device, arrived)
            if self.find_way(device) is not Way.IN_PLACE:
                if self.group is None:
                    return make()
                value = tied.acquire(self.group, device, make)
                self.held = True
                return value
            self.holder = find_holder(self.source, self.spelled)
            self.seen = None if self.holder is None else self.holder[0][self.holder[1]]
            self.value = make() if self.group is None else tied.kept(self.group, self.seen, make)
            return self.value

    def _made(self, device: torch.device, arrived: torch.Tensor | None) -> torch.Tensor:
        assert self.placeholder is not None
        if self.find_way(device) is Way.MOVED and arrived is not None:
            return like(self.placeholder, arrived)
        return like(self.placeholder, self.fetch().detach().to(device))

    def leave(self, tied: TiedTensors, device: torch.device) -> None:
        """Put the placeholder back, or leave what the forward made of the value."""
        placed, found = self.placed, self.found
        self.placed = self.found = None
        if placed is not None and self.table.get(self.key) is placed:
            self.table[self.key] = self._back(placed, found)
        if self.held:
            self.held = False
            assert self.group is not None
            tied.release(self.group, device)

    def _back(self, placed: Any, found: torch.Tensor | None) -> Any:
        back = self.placeholder if found is None else found
        if placed is self.value or placed is found:
            return back
        if placed._version == self.version and not (self.running is not None and self.running.training):
            return back
        # Neither in the source nor in what was found: from now on it lies here.
        return self._outside_inference(placed, torch.device("cpu"))

    def restore(self, tied: TiedTensors, device: torch.device) -> None:
        """Put the value in the module for good."""
        now = self.table.get(self.key)
        if now is None:
            return
        if now is not self.placeholder and now.device.type != "meta":
            self.table[self.key] = now if lies_on(now, device) else like(now, now.detach().to(device))
        else:
            make = partial(self._copy, now, device)
            self.table[self.key] = make() if self.group is None else tied.restored(self.group, device, make)

    def _copy(self, now: torch.Tensor, device: torch.device) -> torch.Tensor:
        with torch.inference_mode(mode=False), torch.no_grad():
            # A mapped file may be overwritten by whoever saves the model next.
            mapped = find_holder(self.source, self.spelled) is None
            return like(now, self.fetch().detach().to(device, copy=mapped))


def _placeholder(now: torch.Tensor, name: str) -> torch.Tensor:
    made = placeholder_of(now, name)
    if made is not None:
        return made
    return now if now.device.type == "meta" else like(now, now.detach().to("meta"))


__all__ = ["Slot", "Way", "lies_on", "like"]
