"""What runs around the forward of a module: one hook, or several in a row."""

from __future__ import annotations

from typing import Any

from torch import nn


class ModelHook:
    """Do something around the forward of a module, and when the hook is added and removed.

    Override what is needed; what is left does nothing. With ``no_grad`` set, the forward runs without
    autograd. One hook may serve several calls at once: the same module called inside itself, or by threads.
    """

    no_grad = False
    traceable = True
    """Whether ``torch.compile`` may look inside; what takes locks or exchanges weights runs beside graphs."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Prepare ``module`` when the hook is added to it, and return it."""
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments, positional and by name, with which the forward goes on."""
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Return what the call of ``module`` returns."""
        return output

    def abandon(self, module: nn.Module) -> None:
        """Undo ``pre_forward``: the forward raised, so that there is no output for ``post_forward``."""

    def detach_hook(self, module: nn.Module) -> nn.Module:
        """Undo ``init_hook`` when the hook is removed, and return the module."""
        return module


class SequentialHook(ModelHook):
    """Run several hooks, each on what the one before it returned."""

    def __init__(self, *hooks: ModelHook) -> None:
        self.hooks = hooks

    @property
    def no_grad(self) -> bool:  # type: ignore[override]
        """Tell whether any of the hooks wants no autograd."""
        return any(hook.no_grad for hook in self.hooks)

    @property
    def traceable(self) -> bool:  # type: ignore[override]
        """Tell whether ``torch.compile`` may look inside of all hooks."""
        return all(hook.traceable for hook in self.hooks)

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Prepare the module for every hook."""
        for hook in self.hooks:
            module = hook.init_hook(module)
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments after all hooks have seen them."""
        done: list[ModelHook] = []
        try:
            for hook in self.hooks:
                args, kwargs = hook.pre_forward(module, *args, **kwargs)
                done.append(hook)
        except BaseException:
            _abandon(done, module)
            raise
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Return the output after all hooks have seen it."""
        for count, hook in enumerate(self.hooks, 1):
            try:
                output = hook.post_forward(module, output)
            except BaseException:
                _abandon(list(self.hooks[count:]), module)
                raise
        return output

    def abandon(self, module: nn.Module) -> None:
        """Undo ``pre_forward`` of every hook, the last one first."""
        _abandon(list(self.hooks), module)

    def detach_hook(self, module: nn.Module) -> nn.Module:
        """Undo ``init_hook`` of every hook."""
        for hook in self.hooks:
            module = hook.detach_hook(module)
        return module


def _abandon(hooks: list[ModelHook], module: nn.Module) -> None:
    for hook in reversed(hooks):
        hook.abandon(module)


__all__ = ["ModelHook", "SequentialHook"]
