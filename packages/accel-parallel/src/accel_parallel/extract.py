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
    compiled: nn.Module | None = None
    while True:
        inner = compiled_inner(model)
        if inner is not None:
            compiled, model = model, inner
        elif is_container(model):
            model = model.module  # type: ignore[assignment]
        else:
            break
    if recursive or not keep_torch_compile:
        _replace_parts(model, containers=recursive, compiled=not keep_torch_compile)
    if keep_torch_compile:
        return model if compiled is None else _compiled_like(compiled, model)
    if remove_compilation(model):
        logger.warning_once(
            "%s runs uncompiled from now on, in training too: keep_torch_compile=False asked for it. What"
            " accel compiles keeps its names, so keep_torch_compile=True is enough to save it.",
            type(model).__name__,
        )
    return model


def _compiled_like(outer: Any, model: nn.Module) -> nn.Module:
    """Return ``model`` compiled as ``outer`` is, which holds it, perhaps within containers."""
    if compiled_inner(outer) is model:
        kept: nn.Module = outer
        return kept
    # outer._orig_mod = model would take the container out of what is being trained.
    made: nn.Module = type(outer)(model, outer.dynamo_ctx)
    return made


def _replace_parts(root: nn.Module, *, containers: bool, compiled: bool) -> None:
    for module in list(root.modules()):
        for name, child in list(module._modules.items()):
            inner = child
            while inner is not None:
                if compiled and (found := compiled_inner(inner)) is not None:
                    inner = found
                elif containers and is_container(inner):
                    inner = inner.module  # type: ignore[assignment]
                else:
                    break
            if inner is not child:
                module._modules[name] = inner


__all__ = ["extract_model", "is_container"]
