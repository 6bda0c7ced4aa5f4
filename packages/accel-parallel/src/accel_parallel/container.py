"""Torch's container, with a helpful word for what it does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakMethod

import torch
from torch.nn.parallel import DistributedDataParallel

_EXPLAINERS: WeakKeyDictionary[SharedModel, WeakMethod[Callable[[str, RuntimeError], None]]] = (
    WeakKeyDictionary()
)


class SharedModel(DistributedDataParallel):
    """``torch.nn.parallel.DistributedDataParallel`` whose AttributeError tells where an attribute is.

    Methods of the inner model are not passed through on purpose. Behind ``forward`` the container
    prepares its reducer and sends buffers; done for every method, one that rank 0 calls alone
    (``save_pretrained``) would wait for ranks that never come.
    """

    def explained_by(self, explain: Callable[[str, RuntimeError], None]) -> None:
        """Let the bound method ``explain`` look at what fails between the ranks; it is not kept alive."""
        # Beside the container, which can be copied and pickled while a weak reference cannot.
        _EXPLAINERS[self] = WeakMethod(explain)

    def _pre_forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Prepare a forward: agree on buckets, send buffers, place the inputs."""
        try:
            return self._prepared(*inputs, **kwargs)
        except RuntimeError as error:
            found = _EXPLAINERS.get(self)
            explain = None if found is None else found()
            if explain is not None:
                explain("forward", error)
            raise

    def _prepared(self, *inputs: Any, **kwargs: Any) -> Any:
        """Prepare a forward; while ranks are joined, one without gradients too as one with them.

        A rank without data agrees on new buckets in whatever forward of the others comes first. torch lets
        these do so in a forward with gradients only, and both wait for ever (torch 2.13).
        """
        if torch.is_grad_enabled() or not self._join_config.enable:
            return super()._pre_forward(*inputs, **kwargs)  # type: ignore[no-untyped-call]
        with torch.inference_mode(mode=False), torch.enable_grad():
            return super()._pre_forward(*inputs, **kwargs)  # type: ignore[no-untyped-call]

    def __getattr__(self, name: str) -> Any:
        """Return a parameter, buffer or submodule. Raises AttributeError, and says when the model has it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__.get("_modules", {}).get("module")
            if name.startswith("_") or not hasattr(inner, name):
                raise
        kind = type(inner).__name__
        if not callable(getattr(inner, name)):
            use = f"accelerator.unwrap_model(model).{name}"
        else:
            use = (
                f"accelerator.unwrap_model(model).{name}(...) where nothing is trained; to train through it"
                f" let {kind}.forward call it: only after forward are gradients averaged"
            )
        raise AttributeError(
            f"{name!r} belongs to the {kind} inside this container, not to the container. Use {use}"
        )


__all__ = ["SharedModel"]
