"""The user's model out of what it was put into: containers of torch, and compilation."""

from __future__ import annotations

from typing import Any

from torch import nn

from accel_core.logging import get_logger

from .compiling import compiled_inner, remove_compilation

logger = get_logger(__name__)

_CONTAINERS = frozenset(
    {"DataParallel", "DistributedDataParallel", "DeepSpeedEngine", "FullyShardedDataParallel"}
)
"""Class names of what holds a model as ``.module``; importing the classes would cost every start-up."""


def is_container(module: nn.Module) -> bool:
    """Tell whether ``module`` shares or shards the model that it holds as ``.module``."""
    return any(cls.__name__ in _CONTAINERS for cls in type(module).__mro__)


def extract_model(model: nn.Module, *, keep_torch_compile: bool = True, recursive: bool = False) -> nn.Module:
    """Return the model inside containers (data parallel and the like) and ``torch.compile``, in any order.

    ``keep_torch_compile``: what is compiled stays so; a container that was compiled as a whole gives its
    model compiled in the same way. Without it the model and its parts run uncompiled from now on, within
    the containers too if it was compiled in place. ``recursive``: containers around parts of the model are
    replaced by these parts, in the model itself.
    """
    found = _peeled(model, containers=True, compiled=not keep_torch_compile)
    if recursive or not keep_torch_compile:
        _peel_parts(found, containers=recursive, compiled=not keep_torch_compile)
    if not keep_torch_compile and remove_compilation(found):
        logger.warning_once(
            "%s runs uncompiled from now on, in training too: keep_torch_compile=False asked for it. What"
            " accel compiles keeps its names, so keep_torch_compile=True is enough to save it.",
            type(found).__name__,
        )
    return found


def _peeled(module: nn.Module, *, containers: bool, compiled: bool) -> nn.Module:
    """Return what is in ``module``, without ``containers`` and what ``torch.compile`` put around them."""
    outer: nn.Module | None = None
    while True:
        inner = compiled_inner(module)
        if inner is not None:
            outer, module = module, inner
        elif containers and is_container(module):
            module = module.module  # type: ignore[assignment]
        else:
            break
    return module if outer is None or compiled else _compiled_like(outer, module)


def _compiled_like(outer: Any, model: nn.Module) -> nn.Module:
    """Return ``model`` compiled as ``outer`` is, which holds it, perhaps within containers."""
    if compiled_inner(outer) is model:
        kept: nn.Module = outer
        return kept
    # Another object, so that what is being trained keeps its containers.
    made: nn.Module = type(outer)(model, outer.dynamo_ctx)
    return made


def _peel_parts(root: nn.Module, *, containers: bool, compiled: bool) -> None:
    """Replace the parts of ``root`` by what is in them, in place."""
    pending = [compiled_inner(root) or root]
    seen = set(pending)
    while pending:
        module = pending.pop()
        for name, child in list(module._modules.items()):
            if child is None:
                continue
            part = _peeled(child, containers=containers, compiled=compiled)
            if part is not child:
                module._modules[name] = part
            inner = compiled_inner(part) or part
            if inner not in seen:
                seen.add(inner)
                pending.append(inner)


__all__ = ["extract_model", "is_container"]
