"""Put a hook around the forward of a module, and take it away again."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from .base import ModelHook, SequentialHook


class HookedForward:
    """The forward of a module that has a hook.

    An object and no closure: a copy of the module, or one that went through a pickle, has a forward of its
    own that leads to its own hook.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the hook and, between its two halves, what the module computes."""
        module: Any = self.module
        hook: ModelHook = module._hf_hook
        if torch.compiler.is_compiling() and not hook.traceable:
            return _beside_graphs(module, hook, args, kwargs)
        args, kwargs = hook.pre_forward(module, *args, **kwargs)
        try:
            output = _inner(module, hook, args, kwargs)
        except BaseException:
            hook.abandon(module)
            raise
        return hook.post_forward(module, output)

    @property
    def __wrapped__(self) -> Any:
        """Return the forward inside, where tools look for its signature and source."""
        return self.module._old_forward

    @property
    def __signature__(self) -> inspect.Signature:
        """Return the signature of the forward inside."""
        return inspect.signature(self.__wrapped__)

    @property
    def __func__(self) -> Any:
        """Return the function inside, as a bound method has it."""
        return getattr(self.__wrapped__, "__func__", self.__wrapped__)

    @property
    def __self__(self) -> nn.Module:
        """Return the module, as a bound method has it."""
        return self.module

    def __getattr__(self, name: str) -> Any:
        # What else a method tells: its code, its name, what decorators left on it.
        return getattr(self.__wrapped__, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return HookedForward, (self.module,)


def _inner(module: Any, hook: ModelHook, args: Any, kwargs: Any) -> Any:
    if not hook.no_grad:
        return module._old_forward(*args, **kwargs)
    with torch.no_grad():
        return module._old_forward(*args, **kwargs)


def _beside_graphs(module: Any, hook: ModelHook, args: Any, kwargs: Any) -> Any:
    """Do as `HookedForward`, where only the forward itself is compiled."""
    args, kwargs = _before(module, hook, args, kwargs)
    try:
        output = _inner(module, hook, args, kwargs)
    except BaseException:
        _failed(module, hook)
        raise
    return _after(module, hook, output)


# This decorator loads the compiler when such a function is called, not before.
_eager = vars(torch)["_disable_dynamo"]


@_eager  # type: ignore[untyped-decorator]
def _before(module: nn.Module, hook: ModelHook, args: Any, kwargs: Any) -> Any:
    return hook.pre_forward(module, *args, **kwargs)


@_eager  # type: ignore[untyped-decorator]
def _after(module: nn.Module, hook: ModelHook, output: Any) -> Any:
    return hook.post_forward(module, output)


@_eager  # type: ignore[untyped-decorator]
def _failed(module: nn.Module, hook: ModelHook) -> None:
    hook.abandon(module)


def add_hook_to_module(module: nn.Module, hook: ModelHook, append: bool = False) -> nn.Module:
    """Put ``hook`` around the forward of ``module``, and return the module.

    It replaces a hook that is there already; with ``append`` it runs after that one.
    """
    there = module.__dict__.get("_hf_hook")
    # Its own forward, not the one that an earlier hook put in front.
    remove_hook_from_module(module)
    if append and there is not None:
        before = there.hooks if type(there) is SequentialHook else (there,)
        hook = SequentialHook(*before, hook)
    original = module.forward
    module = hook.init_hook(module)
    # Not by assignment: modules look through all that they have first.
    module.__dict__.update(_hf_hook=hook, _old_forward=original, forward=HookedForward(module))
    return module


def remove_hook_from_module(module: nn.Module, recurse: bool = False) -> nn.Module:
    """Take the hook of ``module`` away, with ``recurse`` those of everything inside too; return the module.

    Weights that were offloaded lie in the module again, on the device where they were before; those of a
    skeleton, on the CPU.
    """
    hook = module.__dict__.get("_hf_hook")
    if hook is not None:
        hook.detach_hook(module)
        del module._hf_hook
    if "_old_forward" in module.__dict__:
        _unwrap(module)
    if recurse:
        for child in module.children():
            remove_hook_from_module(child, recurse=True)
    return module


def remove_hook_from_submodules(module: nn.Module) -> None:
    """Take the hooks of ``module`` and of everything inside away."""
    remove_hook_from_module(module, recurse=True)


def _unwrap(module: nn.Module) -> None:
    original = module.__dict__.pop("_old_forward")
    own = getattr(type(module), "forward", None)
    if getattr(original, "__func__", None) is own and getattr(original, "__self__", None) is module:
        # The forward of its class: nothing has to be in its place.
        module.__dict__.pop("forward", None)
    else:
        module.forward = original


__all__ = ["HookedForward", "add_hook_to_module", "remove_hook_from_module", "remove_hook_from_submodules"]
