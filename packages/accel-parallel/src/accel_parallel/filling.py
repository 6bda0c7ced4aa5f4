"""Give tensors that are there the values of stored ones: no memory of its own is needed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


def fill(targets: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Give each target the value of its name.

    ``values`` that can read themselves into memory (``read_into(targets)``, which returns the names it read)
    do so, where nothing has to be converted or moved.
    """
    read_into = getattr(values, "read_into", None)
    done = set() if read_into is None else set(read_into(targets))
    with torch.no_grad():
        for name, target in targets.items():
            if name in done:
                # Autograd must see that the values are others.
                torch.autograd.graph.increment_version(target)
            else:
                target.copy_(values[name])


def plainly_loaded(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of ``model`` that its modules load by copying alone, by the names in its state.

    Those of modules that load in a way of their own are not among them, and none are where a hook
    watches the loading or the model has its own ``load_state_dict``.
    """
    if type(model).load_state_dict is not nn.Module.load_state_dict:
        return {}
    found: dict[str, torch.Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        if module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks:
            return {}
        if module._state_dict_hooks or module._state_dict_pre_hooks:
            return {}
        if type(module)._load_from_state_dict is not nn.Module._load_from_state_dict:
            continue
        start = f"{prefix}." if prefix else ""
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and type(tensor) in {torch.Tensor, nn.Parameter} and not tensor.is_meta:
                found[start + name] = tensor
    return found


__all__ = ["fill", "plainly_loaded"]
