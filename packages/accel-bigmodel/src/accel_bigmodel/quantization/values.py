"""Where the weights come from: a checkpoint, or the model itself; and whether they fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from accel_core.errors import CheckpointError
from accel_core.protocols import Quantizer

from ..loading.report import CheckpointReport, refuse
from ..tensors import named_module_tensors
from .selection import Selection

_MOST_SHOWN = 10


@dataclass(slots=True)
class Values:
    """The weights of a model by name. ``where`` says in errors what they are of.

    ``parts``: of the layers that were quantized before, what the quantizer found. ``plain``: the name of
    each other tensor that the model saves, layers' weights included, and what it is called in the source.
    ``stored``: what the source calls the parts of each layer.
    """

    source: Mapping[str, torch.Tensor]
    where: str
    parts: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    stored: dict[str, dict[str, str]] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)

    def take(self, name: str) -> torch.Tensor:
        """Return the value of a plain tensor."""
        return self.source[self.plain[name]]

    def drop(self, name: str) -> None:
        """Let go of a value that is not needed any more, if it is not in a file."""
        if isinstance(self.source, dict):
            self.source.pop(self.plain[name], None)

    @property
    def in_files(self) -> bool:
        """Tell whether values are parts of files, rather than memory of the model itself."""
        return not isinstance(self.source, dict)


def own_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what ``model`` saves, by all names. Raises CheckpointError for what has no data."""
    found = dict(_saved(model))
    bare = [name for name, tensor in found.items() if tensor.device.type == "meta"]
    if bare:
        raise CheckpointError(
            f"The model has no data: {_listed(bare)}",
            where=type(model).__name__,
            fix="give weights_location, or a model that has its weights",
        )
    return found


def fit(model: nn.Module, selection: Selection, quantizer: Quantizer, values: Values) -> None:
    """Find for every tensor of ``model`` where it comes from; nothing is read but small texts.

    Raises CheckpointError that names everything that is missing or of another shape; says once what nothing
    has a use for.
    """
    inside: dict[str, dict[str, str]] = defaultdict(dict)
    layer_names = {name: first for first, names in selection.names.items() for name in names}
    for name in values.source:
        owner = selection.owner(name)
        if owner is not None:
            prefix = next(each for each in selection.names[owner] if name.startswith(f"{each}."))
            inside[owner].setdefault(name[len(prefix) + 1 :], name)
    used: set[str] = set()
    for first, layer in selection.layers.items():
        names = {short: name for short, name in inside[first].items() if short != "bias"}
        tensors = {short: values.source[name] for short, name in names.items()}
        parts = quantizer.stored(layer, tensors, f"{first} in {values.where}")
        if parts is not None:
            values.parts[first], values.stored[first] = parts, names
            used |= set(names.values())
    aliases = _aliases(model)
    missing: list[str] = []
    wrong: dict[str, str] = {}
    for name, tensor in _saved(model):
        layer_name, _, key = name.rpartition(".")
        if key == "weight" and layer_names.get(layer_name) in values.parts:
            continue
        known = next((each for each in aliases.get(name, [name]) if each in values.source), None)
        if known is None:
            missing.append(name)
            continue
        values.plain[name] = known
        used |= {known, *aliases.get(name, ())}
        found = values.source[known]
        if found.shape != tensor.shape:
            wrong[name] = f"{tuple(found.shape)}, not {tuple(tensor.shape)}"
        elif found.is_floating_point() != tensor.is_floating_point():
            wrong[name] = f"{found.dtype}, not {tensor.dtype}"
    # Buffers that models saved once and make themselves now.
    buffers = {name for name, _ in model.named_buffers()}
    unused = tuple(name for name in values.source if name not in used and name not in buffers)
    report = CheckpointReport(
        restored=tuple(values.plain),
        missing=tuple(missing),
        unexpected=unused,
        mismatched=wrong,
        left_on_meta=tuple(missing),
    )
    refuse(report, values.where, strict=False, partial=None)


def unsaved_on_meta(model: nn.Module) -> list[str]:
    """Return the buffers that no checkpoint has, and that have no data."""
    saved = {name for name, _ in _saved(model)}
    return [
        name
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if name not in saved and buffer.device.type == "meta"
    ]


def _saved(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    found: list[tuple[str, torch.Tensor]] = []
    for path, module in model.named_modules(remove_duplicate=False):
        for name, tensor in named_module_tensors(module, remove_non_persistent=True):
            found.append((f"{path}.{name}" if path else name, tensor))
    return found


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """Return for each name of a tensor that has several all of them, itself first."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, tensor in _saved(model):
        groups[id(tensor)].append(name)
    return {
        name: [name, *(other for other in group if other != name)]
        for group in groups.values()
        if len(group) > 1
        for name in group
    }


def _listed(names: list[str]) -> str:
    rest = f", and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return ", ".join(names[:_MOST_SHOWN]) + rest


__all__ = ["Values", "fit", "own_tensors", "unsaved_on_meta"]
