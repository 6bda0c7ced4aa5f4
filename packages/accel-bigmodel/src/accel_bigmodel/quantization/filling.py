"""Give a model its values, layer by layer, each read once and put where it will be."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from accel_core.errors import CheckpointError, ConfigError, Fault
from accel_core.protocols import Quantizer

from ..offload.block import like
from ..tensors import named_module_tensors, owner_of
from .heap import Heap
from .placing import Places
from .selection import Selection
from .stash import Stash
from .values import Values


class Filling:
    """One model being filled. At most one weight is in memory beside what stays there.

    ``undo`` gives back what the model had; only a skeleton can be given back, so only then is it recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        selection: Selection,
        quantizer: Quantizer,
        values: Values,
        places: Places,
        folder: str | os.PathLike[str] | None,
        *,
        reversible: bool,
    ) -> None:
        self.model = model
        self.selection = selection
        self.quantizer = quantizer
        self.values = values
        self.places = places
        self.stash = Stash(values.source, folder)
        self.reversible = reversible
        self.heap = Heap()
        self._undo: list[Callable[[], object]] = []
        self._done: dict[tuple[int, torch.device | None], torch.Tensor] = {}

    def check(self) -> None:
        """Raise ConfigError if something has to be written to a folder that nobody named."""
        if self.stash.folder is None and (first := self._first_written()) is not None:
            reason = f"must be given: {first!r} and others are on disk in no file that could be used as it is"
            raise ConfigError("quantization", [Fault("offload_folder", None, reason)])

    def _first_written(self) -> str | None:
        for first in self.selection.layers:
            if self.places.device(f"{first}.weight") is None and self.places.on_disk(f"{first}.weight"):
                files = self.values.stored.get(first, {})
                found = [(files[key], part.dtype) for key, part in self.values.parts.get(first, {}).items()]
                if not found or not all(self.stash.mapped(*each) for each in found):
                    return f"{first}.weight"
        weights = self._weights
        for name in self.values.plain:
            if name not in weights and self.places.device(name) is None and self.places.on_disk(name):
                dtype = self.selection.dtype_of(name, self._tensor(name))
                if not self.stash.mapped(self.values.plain[name], dtype):
                    return name
        return None

    @property
    def _weights(self) -> set[str]:
        return {f"{name}.weight" for names in self.selection.names.values() for name in names}

    def _tensor(self, name: str) -> torch.Tensor:
        _, key, table = owner_of(self.model, name)
        found: torch.Tensor = table[key]
        return found

    @torch.no_grad()
    def run(self) -> Mapping[str, torch.Tensor]:
        """Fill the model; return what is offloaded, by name. What fails leaves a skeleton as it was."""
        weights = self._weights
        try:
            for first in self.selection.layers:
                self._layer(first)
            for name in [name for name in self.values.plain if name not in weights]:
                self._plain(name)
            self._unsaved()
            return self.stash.close()
        except BaseException:
            for step in reversed(self._undo):
                step()
            raise

    def _layer(self, first: str) -> None:
        linear = self.selection.layers[first]
        name = f"{first}.weight"
        device = self.places.device(name)
        parts = self.values.parts.pop(first, None)
        if parts is None:
            value = self.values.take(name).to(self.places.computes(name), self.selection.dtype)
            parts = self.quantizer.quantize(value)
            size = value.nbytes if value.device.type == "cpu" else 0
            del value
            self._let_go(first)
            self.heap.passed(size)
            _finite(parts, name, self.selection.dtype)
        home = torch.device("cpu") if device is None else device
        parts = {key: self._own(part, home, keep=self.places.on_disk(name)) for key, part in parts.items()}
        layer = self.quantizer.layer(linear, parts, movable=device is None)
        if device is None:
            self._put_away(first, layer)
        layer.quantized_here = True  # type: ignore[assignment]
        for each in self.selection.names[first]:
            self._set_module(each, layer)

    def _let_go(self, first: str) -> None:
        if not self.values.in_files:
            for each in self.selection.names[first]:
                self.values.drop(f"{each}.weight")
            linear = self.selection.layers[first]
            linear.weight = nn.Parameter(linear.weight.detach().to("meta"), requires_grad=False)

    def _own(self, tensor: torch.Tensor, device: torch.device, *, keep: bool = False) -> torch.Tensor:
        """Return ``tensor`` on ``device``; a part of a file is read into memory unless it is to ``keep``."""
        moved = tensor.detach().to(device)
        shared = device.type == "cpu" and moved.data_ptr() == tensor.data_ptr()
        return moved.clone() if shared and self.values.in_files and not keep else moved

    def _put_away(self, first: str, layer: nn.Linear) -> None:
        """Leave placeholders in a layer, and its parts in the stash."""
        files = self.values.stored.get(first, {})
        names: Mapping[str, str] = layer.__dict__["saved_as"]
        for key, part in list(layer.named_parameters(recurse=False)):
            if key == "bias":
                continue
            stored = files.get(names.get(key, ""))
            self._stash(f"{first}.{key}", part, stored)
            layer._parameters[key] = nn.Parameter(part.detach().to("meta"), requires_grad=False)

    def _stash(self, name: str, tensor: torch.Tensor, stored: str | None) -> None:
        if not self.places.on_disk(name):
            self.stash.keep(name, tensor)
        elif stored is not None and self.stash.mapped(stored, tensor.dtype):
            self.stash.refer(name, stored)
        elif self.stash.folder is None:
            # What has no file of its own in a checkpoint that has all else: a few bytes.
            self.stash.keep(name, tensor)
        else:
            self.stash.write(name, tensor)

    def _plain(self, name: str) -> None:
        _, key, table = owner_of(self.model, name)
        old: torch.Tensor = table[key]
        buffer = not isinstance(old, nn.Parameter)
        # Buffers stay where they are used: they are small, and modules look at them.
        device = self.places.computes(name) if buffer else self.places.device(name)
        known = self._done.get((id(old), device))
        value = self.values.take(name)
        dtype = self.selection.dtype_of(name, old)
        if device is None:
            changed = value.to(dtype)
            stored = self.values.plain[name] if changed is value else None
            if stored is not None and not self.places.on_disk(name):
                changed = self._own(value, value.device)
            self._stash(name, changed, stored)
            new = (
                known if known is not None else like(old, torch.empty_like(value, dtype=dtype, device="meta"))
            )
        else:
            new = known if known is not None else like(old, self._filled(value, device, dtype))
        self._done[id(old), device] = new
        self.values.drop(name)
        self._set(table, key, new)

    def _filled(self, value: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        changed = value.to(device, dtype)
        return self._own(value, device) if changed is value else changed

    def _unsaved(self) -> None:
        """Bring the buffers that no checkpoint has to where they are used."""
        for path, module in self.model.named_modules():
            saved = {name for name, _ in named_module_tensors(module, remove_non_persistent=True)}
            for key, buffer in list(module.named_buffers(recurse=False)):
                if key not in saved:
                    device = self.places.computes(f"{path}.{key}" if path else key)
                    self._set(module._buffers, key, buffer.to(device))

    def _set(self, table: dict[str, Any], key: str, new: torch.Tensor) -> None:
        if self.reversible:
            self._undo.append(partial(table.__setitem__, key, table[key]))
        table[key] = new

    def _set_module(self, name: str, layer: nn.Linear) -> None:
        path, _, key = name.rpartition(".")
        parent = self.model.get_submodule(path)
        if self.reversible:
            self._undo.append(partial(parent._modules.__setitem__, key, parent._modules[key]))
        parent._modules[key] = layer


def _finite(parts: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype) -> None:
    """Raise CheckpointError if values that are too large became infinite on the way."""
    for part in parts.values():
        if part.is_floating_point() and not bool(part.isfinite().all()):
            raise CheckpointError(
                f"{name} has values that are no finite numbers, or too large for {dtype}",
                fix="take a torch_dtype with a wider range, or name the module in skip_modules",
            )


__all__ = ["Filling"]
