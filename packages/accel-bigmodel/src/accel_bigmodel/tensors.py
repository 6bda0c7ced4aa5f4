"""Single tensors of a module: look them up, put them somewhere else, tie them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import nn

from accel_core.errors import CheckpointError, UnknownNameError

from .offload.block import like

TiedMap = MutableMapping[int, dict[torch.device, torch.Tensor]]
"""What was moved already, by the address of its data and its new device."""


def named_module_tensors(
    module: nn.Module,
    include_buffers: bool = True,
    recurse: bool = False,
    remove_non_persistent: bool = False,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters of ``module`` and then its buffers, with their names.

    ``recurse``: those of the modules inside as well. ``remove_non_persistent``: without the buffers that
    are not saved.
    """
    yield from module.named_parameters(recurse=recurse)
    if include_buffers:
        left_out = _not_saved(module, recurse=recurse) if remove_non_persistent else frozenset()
        for name, buffer in module.named_buffers(recurse=recurse):
            if name not in left_out:
                yield name, buffer


def _not_saved(module: nn.Module, *, recurse: bool) -> frozenset[str]:
    inside = module.named_modules(remove_duplicate=False) if recurse else [("", module)]
    return frozenset(
        f"{path}.{name}" if path else name
        for path, each in inside
        for name in each._non_persistent_buffers_set
    )


def owner_of(module: nn.Module, name: str) -> tuple[nn.Module, str, dict[str, Any]]:
    """Return the submodule that has the tensor ``name``, its name there, and the table that holds it.

    Raises UnknownNameError, with the nearest that there is.
    """
    path, _, key = name.rpartition(".")
    try:
        owner = module.get_submodule(path) if path else module
    except AttributeError:
        raise _unknown(module, name) from None
    for table in (owner._parameters, owner._buffers):
        if key in table:
            return owner, key, table
    raise _unknown(module, name)


def _unknown(module: nn.Module, name: str) -> UnknownNameError:
    known = [each for each, _ in named_module_tensors(module, recurse=True)]
    return UnknownNameError(f"tensor of {type(module).__name__}", name, known)


def moved(
    tensor: torch.Tensor,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    non_blocking: bool = False,
) -> torch.Tensor:
    """Return ``tensor`` on ``device``: its class, ``requires_grad`` and attributes as they were."""
    # Made inside torch.inference_mode, tensors could never be used outside of it.
    with torch.inference_mode(mode=False), torch.no_grad():
        there = tensor.to(device=device, dtype=dtype or tensor.dtype, non_blocking=non_blocking)
        if there is tensor or not isinstance(tensor, nn.Parameter) or isinstance(there, nn.Parameter):
            # Quantized parameters know how to move, with what belongs to them.
            return there
        return like(tensor, there)


def set_module_tensor_to_device(
    module: nn.Module,
    tensor_name: str,
    device: torch.device | str | int,
    value: torch.Tensor | None = None,
    dtype: torch.dtype | str | None = None,
    fp16_statistics: torch.Tensor | None = None,
    tied_params_map: TiedMap | None = None,
    non_blocking: bool = False,
    clear_cache: bool = True,  # noqa: ARG001 - the signature is documented
) -> None:
    """Put the parameter or buffer ``tensor_name`` of ``module`` on ``device``.

    With ``value`` that becomes its data: of the same shape, and in the dtype that the tensor has, unless
    ``dtype`` names another; integers keep theirs. ``fp16_statistics``: the scales of a weight in 8 bits.
    ``tied_params_map``: what was moved before; the same tensor is moved to a device once, and shared.
    ``clear_cache`` is accepted, and not needed: nothing is left behind that would have to be given back.

    Raises UnknownNameError for a name that is not there, ValueError for a value of another shape or for one
    that the module does without, and CheckpointError for a tensor without data (on meta) that gets none.
    """
    owner, key, table = owner_of(module, tensor_name)
    old: torch.Tensor | None = table[key]
    place = torch.device(device)
    source = old if value is None else value
    if source is None:
        return
    if old is None:
        raise ValueError(
            f"{tensor_name!r} is None in this {type(owner).__name__}, which computes without it: register a "
            "parameter first, if that shall change"
        )
    if source.device.type == "meta" and place.type != "meta":
        raise CheckpointError(
            f"{tensor_name!r} has no data, so that it cannot be put on {place}",
            where=type(module).__name__,
            fix="give its value, or load a checkpoint first",
        )
    known = None if tied_params_map is None else tied_params_map.get(source.data_ptr())
    if known is not None and place in known:
        table[key] = known[place]
    else:
        wanted = _wanted(old, value, dtype)
        if dtype is not None and not (source.is_floating_point() or source.is_complex()):
            wanted = None
        new = _new(old, source, place, wanted, tensor_name, non_blocking=non_blocking)
        if known is not None:
            known[place] = new
        table[key] = new
    if fp16_statistics is not None:
        table[key].SCB = fp16_statistics.to(place)
        table[key].CB = table[key].data
    refresh(owner)


def _wanted(
    old: torch.Tensor, value: torch.Tensor | None, dtype: torch.dtype | str | None
) -> torch.dtype | None:
    if dtype is not None:
        return as_dtype(dtype)
    # The data of a quantized parameter has whatever type it is packed in.
    return None if value is None or _packed(old) else old.dtype


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return a dtype by its name. Raises UnknownNameError for one that torch does not have."""
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        known = {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
        raise UnknownNameError("dtype", dtype, known)
    return found


def _new(
    old: torch.Tensor,
    source: torch.Tensor,
    device: torch.device,
    dtype: torch.dtype | None,
    name: str,
    *,
    non_blocking: bool,
) -> torch.Tensor:
    if source is old:
        return moved(source, device, dtype, non_blocking=non_blocking)
    if old.shape != source.shape and not _packed(old):
        raise ValueError(
            f"{name!r} has shape {tuple(old.shape)}, its new value {tuple(source.shape)}: "
            "take the weights of this model, or change the model to fit them"
        )
    there = moved(source.detach(), device, dtype, non_blocking=non_blocking)
    if isinstance(old, nn.Parameter):
        with torch.inference_mode(mode=False), torch.no_grad():
            return _parameter(old, there)
    return there


def _packed(tensor: torch.Tensor) -> bool:
    """Tell whether the class of a parameter stores less, or more, than its shape says."""
    return isinstance(tensor, nn.Parameter) and type(tensor) is not nn.Parameter


def _parameter(old: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    trainable = old.requires_grad and (data.is_floating_point() or data.is_complex())
    if trainable == old.requires_grad:
        return like(old, data)
    made = like(old.detach(), data)
    return nn.Parameter(made, requires_grad=trainable)


def keeps_a_list(module: nn.Module) -> bool:
    """Tell whether a module keeps its parameters in a list too, which `refresh` brings in line."""
    return "_flat_weights_names" in module.__dict__


def refresh(module: nn.Module) -> None:
    """Bring what a module keeps beside its parameters in line with them; recurrent ones keep a list."""
    names = module.__dict__.get("_flat_weights_names")
    if names is not None:
        module._flat_weights = [getattr(module, name, None) for name in names]  # type: ignore[assignment]


def retie_parameters(model: nn.Module, tied_params: Iterable[Sequence[str]]) -> None:
    """Make the names of each group one parameter again: the first that has data, or the first.

    Raises UnknownNameError for a name that is not there.
    """
    for group in tied_params:
        places = [owner_of(model, name) for name in group]
        tensors = [table[key] for _, key, table in places if table[key] is not None]
        if not tensors:
            continue
        chosen = next((each for each in tensors if each.device.type != "meta"), tensors[0])
        for owner, key, table in places:
            table[key] = chosen
            refresh(owner)


def extract_submodules_state_dict(
    state_dict: Mapping[str, torch.Tensor], submodule_names: Iterable[str]
) -> dict[str, torch.Tensor]:
    """Return the part of ``state_dict`` that belongs to the modules or tensors ``submodule_names``."""
    names = list(submodule_names)
    starts = tuple(f"{name}." for name in names)
    exact = set(names)
    return {
        key: value
        for key, value in state_dict.items()
        if key in exact or key.startswith(starts) or "" in exact
    }


def all_tensors(
    module: nn.Module, *, recurse: bool = True, parameters: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a module, and with ``recurse`` of those inside, under every name that they have.

    ``parameters``: these and the buffers, else the buffers only.
    """
    if recurse:
        if parameters:
            yield from module.named_parameters(remove_duplicate=False)
        yield from module.named_buffers(remove_duplicate=False)
        return
    tables = (module._parameters, module._buffers) if parameters else (module._buffers,)
    for table in tables:
        for name, tensor in table.items():
            if tensor is not None:
                yield name, tensor


__all__ = [
    "all_tensors",
    "as_dtype",
    "extract_submodules_state_dict",
    "keeps_a_list",
    "moved",
    "named_module_tensors",
    "owner_of",
    "refresh",
    "retie_parameters",
    "set_module_tensor_to_device",
]
