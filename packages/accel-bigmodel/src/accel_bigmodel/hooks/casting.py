"""Layers that keep their weights in a narrow dtype, and compute in a wider one."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from accel_core.errors import StateError

from ..offload.placeholder import is_parked
from .base import ModelHook
from .forward import add_hook_to_module

_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class LayerwiseCastingHook(ModelHook):
    """Keep the weights of a layer in ``storage_dtype``, and cast them to ``compute_dtype`` for its forward.

    What was rounded stays rounded: removing the hook widens the weights and brings nothing back. The stored
    weights are put back after a forward as they were, so that changes made inside it are lost.
    """

    traceable = False

    def __init__(self, storage_dtype: torch.dtype, compute_dtype: torch.dtype, non_blocking: bool) -> None:
        self.storage_dtype = storage_dtype
        self.compute_dtype = compute_dtype
        self.non_blocking = non_blocking
        self._start()

    def _start(self) -> None:
        self._stored: dict[str, torch.Tensor] = {}
        self._inside = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        left_out = {"_stored", "_inside", "_lock"}
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Cast the weights to how they are kept."""
        return module.to(dtype=self.storage_dtype, non_blocking=self.non_blocking)

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Put weights in the module that are cast to the dtype of the computation."""
        with self._lock:
            if self._inside == 0:
                self._cast(module)
            self._inside += 1
        return args, kwargs

    def _cast(self, module: nn.Module) -> None:
        cast = {}
        for name, parameter in module._parameters.items():
            if parameter is not None and is_parked(parameter):
                raise _both(module)
            if parameter is not None and parameter.is_floating_point():
                wide = parameter.to(self.compute_dtype, non_blocking=self.non_blocking)
                # Through autograd, so that gradients reach the stored weights.
                cast[name] = wide
        self._stored = {name: module._parameters[name] for name in cast}  # type: ignore[misc]
        module._parameters.update(cast)  # type: ignore[arg-type]

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Put the stored weights back."""
        self.abandon(module)
        return output

    def abandon(self, module: nn.Module) -> None:
        """Put the stored weights back."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                module._parameters.update(self._stored)  # type: ignore[arg-type]
                self._stored = {}

    def detach_hook(self, module: nn.Module) -> nn.Module:
        """Widen the weights to the dtype of the computation, in which the module works without the hook."""
        return module.to(dtype=self.compute_dtype)


def attach_layerwise_casting_hooks(
    module: nn.Module,
    storage_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    skip_modules_pattern: str | tuple[str, ...] | None = None,
    skip_modules_classes: tuple[type[nn.Module], ...] | None = None,
    non_blocking: bool = False,
) -> None:
    """Keep the weights of linear and convolution layers in ``storage_dtype``; compute in ``compute_dtype``.

    ``skip_modules_pattern``: regular expressions; what is inside of a module whose name one of them finds
    stays as it is. ``skip_modules_classes``: likewise for modules of these classes. Layers that share a
    weight with another kind of module stay as they are, too.
    """
    patterns = (skip_modules_pattern,) if isinstance(skip_modules_pattern, str) else skip_modules_pattern
    compiled = [re.compile(each) for each in patterns or ()]
    layers = list(_layers(module, "", compiled, skip_modules_classes or ()))
    away = next((each for each in layers if any(map(is_parked, each.parameters()))), None)
    if away is not None:
        raise _both(away)
    chosen = {id(each) for each in layers}
    # What a layer shares with a module that computes with it as it is (an embedding) stays as it is.
    others = {id(p) for m in module.modules() if id(m) not in chosen for p in m._parameters.values()}
    for layer in layers:
        if not any(
            id(parameter) in others for parameter in layer._parameters.values() if parameter is not None
        ):
            hook = LayerwiseCastingHook(storage_dtype, compute_dtype, non_blocking)
            add_hook_to_module(layer, hook, append=True)


def _both(layer: nn.Module) -> StateError:
    return StateError(
        "A layer cannot be offloaded and keep its weights in a narrow dtype at once",
        where=f"{type(layer).__name__}, {sum(each.numel() for each in layer.parameters()):,} parameters",
        fix="offload a model that is cast as a whole (dtype=), or keep this layer on a device",
    )


def _layers(
    module: nn.Module, name: str, patterns: list[re.Pattern[str]], classes: tuple[type[nn.Module], ...]
) -> Iterator[nn.Module]:
    if isinstance(module, classes) or (name and any(each.search(name) for each in patterns)):
        return
    if isinstance(module, _LAYERS):
        yield module
        return
    for key, child in module.named_children():
        yield from _layers(child, f"{name}.{key}" if name else key, patterns, classes)


__all__ = ["LayerwiseCastingHook", "attach_layerwise_casting_hooks"]
