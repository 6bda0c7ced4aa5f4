"""How many bytes a model needs, module by module, before any of them is allocated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from .dtypes import AnyDtype, measure


def compute_module_sizes(
    model: nn.Module,
    dtype: AnyDtype | None = None,
    special_dtypes: Mapping[str, AnyDtype] | None = None,
    buffers_only: bool = False,
) -> dict[str, int]:
    """Return the bytes of every module and tensor by its name; the empty name is the whole model.

    ``dtype``: as if floating-point tensors that are wider were cast to it; integers and booleans
    keep theirs. ``special_dtypes``: names of tensors that get a dtype of their own, wider or not.
    A tensor that is shared is counted once, under its first name. Names that are not there have
    size 0. Raises UnknownNameError for a dtype that torch does not have.
    """
    measured = measure(dtype, special_dtypes)
    sizes: dict[str, int] = defaultdict(int)
    seen: set[int] = set()

    def visit(name: str, module: nn.Module) -> int | None:
        """Return the bytes of what is new in ``module``; None when that is not even an empty tensor."""
        start = f"{name}." if name else ""
        total = None
        for own in (module._buffers,) if buffers_only else (module._parameters, module._buffers):
            for key, tensor in own.items():
                if tensor is None or id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                size = sizes[start + key] = measured(start + key, tensor)
                total = size if total is None else total + size
        for key, child in module._modules.items():
            inner = None if child is None else visit(start + key, child)
            if inner is not None:
                total = inner if total is None else total + inner
        if total is not None:
            sizes[name] = total
        return total

    visit("", model)
    return sizes


def compute_module_total_buffer_size(
    model: nn.Module,
    dtype: AnyDtype | None = None,
    special_dtypes: Mapping[str, AnyDtype] | None = None,
) -> int:
    """Return the bytes of all buffers of ``model``; options as in `compute_module_sizes`."""
    return compute_module_sizes(model, dtype, special_dtypes, buffers_only=True)[""]


def get_max_layer_size(
    modules: Sequence[tuple[str, nn.Module | torch.Tensor]],
    module_sizes: Mapping[str, int],
    no_split_module_classes: Sequence[str],
) -> tuple[int, list[str]]:
    """Return the bytes of the largest layer among ``modules``, and the names of all of that size.

    A layer is a tensor, a module without children, or one whose class is named in
    ``no_split_module_classes``; other modules are taken apart.
    """
    largest, names = 0, []
    waiting = list(modules)[::-1]
    while waiting:
        name, module = waiting.pop()
        if isinstance(module, nn.Module) and type(module).__name__ not in no_split_module_classes:
            inner = list(_inside(name, module)) if module._modules else []
            if any(isinstance(child, nn.Module) for _, child in inner):
                waiting += inner[::-1]
                continue
        size = module_sizes.get(name, 0)
        if size > largest:
            largest, names = size, [name]
        elif size == largest:
            names.append(name)
    return largest, names


def _inside(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module | torch.Tensor]]:
    start = f"{prefix}." if prefix else ""
    for own in (module._parameters, module._modules, module._buffers):
        for name, value in own.items():
            if value is not None:
                yield start + name, value


def calculate_maximum_sizes(model: nn.Module) -> tuple[int, tuple[int, list[str]]]:
    """Return the bytes of ``model``, and those of its largest layer with the layer's names.

    What the model lists in ``_no_split_modules`` is one layer.
    """
    sizes = compute_module_sizes(model)
    no_split = getattr(model, "_no_split_modules", None) or []
    return sizes[""], get_max_layer_size(list(_inside("", model)), sizes, list(no_split))


def find_tied_parameters(model: nn.Module) -> list[list[str]]:
    """Return the names of parameters that are one and the same object, a list for each such object.

    In the order of the model. Two parameters with separate objects over one storage are not tied
    in this sense.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


__all__ = [
    "calculate_maximum_sizes",
    "compute_module_sizes",
    "compute_module_total_buffer_size",
    "find_tied_parameters",
    "get_max_layer_size",
]
