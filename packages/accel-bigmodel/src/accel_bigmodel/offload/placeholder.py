"""What stands in a module for a weight that is elsewhere: a shape, which refuses to be computed with.

A tensor on the meta device has no data, and some kernels for the CPU do not look: the product of a matrix
with one is whatever the memory held. So a weight that is used without calling its module would give
nonsense, and nobody would know.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from accel_core.errors import StateError

_HARMLESS = frozenset({"requires_grad_", "detach_", "share_memory_", "__int__", "__index__", "__invert__"})


class _Parked(torch.Tensor):
    """Refuse to be used together with tensors that have data."""

    parked: str

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what ``func`` does with what it is told of shapes and types only."""
        kwargs = kwargs or {}
        # Somebody may give it other data, or a gradient.
        if func.__name__ != "__set__" and _has_data([*args, *kwargs.values()]):
            name = _name([*args, *kwargs.values()])
            raise StateError(
                f"The weight {name!r} is offloaded, and {func.__name__} was to use it outside of the forward "
                "of its module",
                fix="call the module instead of taking its weight, or name the class around it in "
                "preload_module_classes, or use align_module_device(module)",
            )
        if _writes(func.__name__):
            name = _name([*args, *kwargs.values()])
            raise StateError(
                f"The weight {name!r} is offloaded, so that {func.__name__} would write to nothing",
                fix="change it inside of align_module_device(module), or bring the model back with "
                "remove_hook_from_submodules(model)",
            )
        with torch._C.DisableTorchFunctionSubclass():
            return _guarded(func(*args, **kwargs), [*args, *kwargs.values()])

    def __deepcopy__(self, memo: Any) -> Any:
        return parked(*self._parts())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return parked, self._parts()

    def _parts(self) -> tuple[torch.Tensor, bool | None, str, dict[str, Any]]:
        trainable = self.requires_grad if isinstance(self, nn.Parameter) else None
        return _plain(self), trainable, self.parked, dict(self.__dict__)


class ParkedParameter(_Parked, nn.Parameter):
    """Stands for a parameter."""

    # Not an attribute like others: those go on to the value.
    __slots__ = ("parked",)


class ParkedBuffer(_Parked):
    """Stands for a buffer."""

    __slots__ = ("parked",)


class ParkedView(ParkedBuffer):
    """Stands for what was made of a placeholder: an entry of a state dict, for example."""

    __slots__ = ()

    def __deepcopy__(self, memo: Any) -> Any:
        return self.detach()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be saved: whoever loads that would miss the weight only then."""
        raise StateError(
            f"The weight {self.parked!r} is offloaded, and has no data in this state dict",
            fix="save what get_state_dict_offloaded_model(model) returns, or use save_model",
        )


def parked(
    meta: torch.Tensor, requires_grad: bool | None, name: str, attributes: dict[str, Any]
) -> torch.Tensor:
    """Return a placeholder of the shape of ``meta``; for a buffer ``requires_grad`` is None."""
    cls = ParkedBuffer if requires_grad is None else ParkedParameter
    made: Any = torch.Tensor._make_subclass(cls, meta, bool(requires_grad))
    made.parked = name
    made.__dict__.update(attributes)
    return made  # type: ignore[no-any-return]


def placeholder_of(now: torch.Tensor, name: str) -> torch.Tensor | None:
    """Return what stands for ``now``, which errors call ``name``; None for the classes of others."""
    if isinstance(now, _Parked):
        return now
    if type(now) not in (nn.Parameter, torch.Tensor):
        return None
    # Made inside torch.inference_mode, tensors could never be used outside of it.
    with torch.inference_mode(mode=False), torch.no_grad():
        meta = torch.empty_strided(now.shape, now.stride(), dtype=now.dtype, device="meta")
        return parked(meta, now.requires_grad if type(now) is nn.Parameter else None, name, now.__dict__)


def is_parked(tensor: torch.Tensor) -> bool:
    """Tell whether ``tensor`` stands for one that is elsewhere."""
    return isinstance(tensor, _Parked)


def plain_class(tensor: torch.Tensor) -> type[torch.Tensor]:
    """Return the class of what ``tensor`` is, or stands for."""
    if isinstance(tensor, _Parked):
        return nn.Parameter if isinstance(tensor, ParkedParameter) else torch.Tensor
    return type(tensor)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach()


def _guarded(result: Any, values: list[Any]) -> Any:
    """Return what was made of placeholders, a transposed one for example, as placeholders."""
    if isinstance(result, torch.Tensor) and not isinstance(result, _Parked) and result.device.type == "meta":
        made: Any = torch.Tensor._make_subclass(ParkedView, result.detach())
        made.parked = _name(values)
        return made
    if type(result) in (tuple, list):
        return type(result)(_guarded(each, values) for each in result)
    return result


def _writes(name: str) -> bool:
    """Tell whether the operation ``name`` changes a tensor in place."""
    if name in _HARMLESS:
        return False
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name == "__setitem__" or (name.startswith("__i") and name.endswith("__"))


def _name(values: list[Any]) -> str:
    return next((each.parked for each in _tensors(values) if isinstance(each, _Parked)), "")


def _has_data(values: Iterable[Any]) -> bool:
    return any(not isinstance(each, _Parked) and each.device.type != "meta" for each in _tensors(values))


def _tensors(values: Iterable[Any]) -> Iterable[Any]:
    for each in values:
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, (list, tuple)):
            yield from _tensors(each)


__all__ = ["ParkedBuffer", "ParkedParameter", "is_parked", "parked", "placeholder_of", "plain_class"]
