"""Which layers of a model are quantized, and what dtype everything else gets."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from accel_core.errors import ConfigError, Fault, PrepareError, UnknownNameError
from accel_core.protocols import Quantizer

from ..sizes import find_tied_parameters

_MOST_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Selection:
    """``layers``: what is quantized, by the first name of each. ``names``: all names of each of them.

    ``full``: the modules that stay in float32. ``firsts``: the first name of the layer by all of its names.
    """

    layers: dict[str, nn.Linear]
    names: dict[str, list[str]]
    full: frozenset[str]
    dtype: torch.dtype
    firsts: dict[str, str]

    def owner(self, name: str) -> str | None:
        """Return the layer that the stored tensor ``name`` belongs to, or None for another module's."""
        parts = name.split(".")
        for count in range(len(parts) - 1, 0, -1):
            first = self.firsts.get(".".join(parts[:count]))
            if first is not None:
                return first
        return None

    def dtype_of(self, name: str, tensor: torch.Tensor) -> torch.dtype:
        """Return the dtype that a tensor that is saved and not quantized gets."""
        if not tensor.is_floating_point():
            return tensor.dtype
        parts = name.split(".")[:-1]
        inside = any(".".join(parts[:count]) in self.full for count in range(len(parts) + 1))
        return torch.float32 if inside else self.dtype


def select(model: nn.Module, config: Any, quantizer: Quantizer) -> Selection:
    """Return what ``config`` says of ``model``: each `nn.Linear`, and no class made of it, unless it is kept.

    Subclasses are left alone because other modules look into them; attention does so with its projections.
    Raises UnknownNameError for a name to keep that no module has, ConfigError for layers that ``quantizer``
    refuses, PrepareError when nothing is left.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    full = frozenset(_matching(modules, config.keep_in_fp32_modules or ()))
    skipped = config.skip_modules
    kept = set(_outputs(model)) if skipped is None else set(_matching(modules, skipped))
    layers: dict[str, nn.Linear] = {}
    names: dict[str, list[str]] = {}
    known: dict[int, str] = {}
    for name, module in modules.items():
        if type(module) is not nn.Linear or not name:
            continue
        first = known.setdefault(id(module), name)
        names.setdefault(first, []).append(name)
        layers[first] = module
    for first in [first for first in layers if any(_inside(name, kept | full) for name in names[first])]:
        del layers[first], names[first]
    if not layers:
        raise PrepareError(
            "There is nothing to quantize: the model has no nn.Linear beside those that are kept",
            where=type(model).__name__,
            fix="see skip_modules and keep_in_fp32_modules of the settings",
        )
    _accept(layers, quantizer)
    firsts = {name: first for first, group in names.items() for name in group}
    return Selection(layers, names, full, config.torch_dtype, firsts)


def _accept(layers: dict[str, nn.Linear], quantizer: Quantizer) -> None:
    refused = {name: reason for name, layer in layers.items() if (reason := quantizer.refusal(layer))}
    if refused:
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:_MOST_SHOWN])
        more = f"; and {len(refused) - _MOST_SHOWN} more" if len(refused) > _MOST_SHOWN else ""
        raise ConfigError(
            "quantization",
            [Fault("skip_modules", list(refused)[:_MOST_SHOWN], f"must name these: {shown}{more}")],
        )
    for name, layer in layers.items():
        if "_hf_hook" in layer.__dict__:
            raise PrepareError(
                "The model is dispatched already, and its layers would lose their hooks",
                where=name,
                fix="quantize it first: load_and_quantize_model has a device_map",
            )


def _matching(modules: Collection[str], wanted: Collection[str]) -> Iterator[str]:
    """Yield the modules whose names have the parts of one of ``wanted`` in a row."""
    for pattern in wanted:
        found = [name for name in modules if f".{pattern}." in f".{name}."]
        if not found:
            raise UnknownNameError("module", pattern, [name for name in modules if name])
        yield from found


def _inside(name: str, kept: Collection[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:count]) in kept for count in range(1, len(parts) + 1))


def _outputs(model: nn.Module) -> Iterator[str]:
    """Yield the modules that are kept when nobody says which: with tied weights, and the output head."""
    for group in find_tied_parameters(model):
        yield from (name.rpartition(".")[0] for name in group)
    ask = getattr(model, "get_output_embeddings", None)
    if callable(ask):
        head = ask()
        yield from (name for name, module in model.named_modules() if module is head)
        return
    owners = [name for name, module in model.named_modules() if any(True for _ in module.parameters(False))]
    if owners:
        yield owners[-1]


__all__ = ["Selection", "select"]
