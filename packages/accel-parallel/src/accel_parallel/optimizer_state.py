"""Optimizer state by parameter name: what torch keeps by position, made safe against changed models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from accel_core.errors import CheckpointError

from .encoding import decode, encode, owned
from .filling import fill

FORMAT = 1


def named_state(
    optimizer: Optimizer, names: Mapping[nn.Parameter, str], label: str
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the optimizer's state as JSON and tensors, each parameter called by its name.

    ``label`` names the optimizer in errors. Raises CheckpointError for a parameter without a name.
    """
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    name_at: dict[Any, str] = {}
    groups = []
    for number, (live, packed) in enumerate(zip(optimizer.param_groups, state["param_groups"], strict=True)):
        members = [_name(parameter, names, label, number) for parameter in live["params"]]
        name_at.update(zip(packed["params"], members, strict=True))
        settings = {key: value for key, value in packed.items() if key != "params"}
        groups.append({"params": members, "settings": encode(settings, f"groups.{number}", tensors)})
    by_name, other = {}, {}
    for key, value in state["state"].items():
        if key in name_at:
            by_name[name_at[key]] = encode(value, f"state.{name_at[key]}", tensors)
        elif isinstance(key, str):
            other[key] = encode(value, f"other.{key}", tensors)
        else:
            raise CheckpointError(
                f"{label}: state under the key {key!r}, which is neither a parameter nor a string"
            )
    extra = {key: value for key, value in state.items() if key not in ("state", "param_groups")}
    content = {
        "format": FORMAT,
        "class": type(optimizer).__name__,
        "groups": groups,
        "state": by_name,
        "other": other,
        "extra": encode(extra, "extra", tensors),
    }
    return content, tensors


def _name(parameter: nn.Parameter, names: Mapping[nn.Parameter, str], label: str, group: int) -> str:
    try:
        return names[parameter]
    except KeyError:
        raise CheckpointError(
            f"{label} holds a parameter that has no name in the model, so its state could not be found again",
            where=f"param_groups[{group}], shape {tuple(parameter.shape)}",
            fix="make the optimizer from the model's own parameters",
        ) from None


def _describe(groups: list[tuple[str, ...]]) -> str:
    return " | ".join(
        ", ".join(group[:4]) + (f", ... ({len(group)})" if len(group) > 4 else "") for group in groups
    )


def compare(
    optimizer: Optimizer, content: Any, names: Mapping[nn.Parameter, str], label: str
) -> tuple[list[str], list[str]]:
    """Return the names of parameters that the checkpoint lacks and that it has too many.

    Raises CheckpointError when another kind of optimizer was saved, or when the same parameters are
    grouped in another way: no hyperparameter could then be given back to whom it belongs.
    """
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{label} was saved in format {content.get('format')!r}, this version reads {FORMAT}"
        )
    if content["class"] != type(optimizer).__name__:
        raise CheckpointError(
            f"{label} is a {type(optimizer).__name__}, the checkpoint has the state of a {content['class']}",
            fix="create the same optimizer as in the run that saved it",
        )
    now = [
        tuple(_name(p, names, label, number) for p in group["params"])
        for number, group in enumerate(optimizer.param_groups)
    ]
    then = [tuple(group["params"]) for group in content["groups"]]
    here, there = {name for group in now for name in group}, {name for group in then for name in group}
    if here == there and sorted(map(sorted, now)) != sorted(map(sorted, then)):
        raise CheckpointError(
            f"{label} groups its parameters in another way than the checkpoint",
            where=f"saved: {_describe(then)}; now: {_describe(now)}",
            fix="build the parameter groups as in the run that saved it",
        )
    return sorted(here - there), sorted(there - here)


def load_named_state(
    optimizer: Optimizer, content: Any, tensors: Mapping[str, torch.Tensor], names: Mapping[nn.Parameter, str]
) -> None:
    """Give the optimizer what ``named_state`` returned, whatever the order of groups and parameters.

    A group keeps its present hyperparameters when the checkpoint has no group with a parameter of it.
    Tensors that the optimizer has in the same shape and dtype are filled where they are, the others get
    memory of their own: ``tensors`` may be those of a file that is mapped.
    """
    tensors = _taken(optimizer, content, tensors, names)
    saved_group = {name: group for group in content["groups"] for name in group["params"]}
    packed = optimizer.state_dict()
    position: dict[str, Any] = {}
    for live, group in zip(optimizer.param_groups, packed["param_groups"], strict=True):
        members = [names[parameter] for parameter in live["params"]]
        position.update(zip(members, group["params"], strict=True))
        saved = next((saved_group[name] for name in members if name in saved_group), None)
        if saved is not None:
            group.update(decode(saved["settings"], tensors))
    state: dict[Any, Any] = {
        position[name]: decode(value, tensors) for name, value in content["state"].items() if name in position
    }
    state.update({key: decode(value, tensors) for key, value in content["other"].items()})
    packed.update(decode(content["extra"], tensors))
    packed["state"] = state
    optimizer.load_state_dict(packed)
    _restore_dtypes(optimizer, content, tensors, names)


def _taken(
    optimizer: Optimizer, content: Any, tensors: Mapping[str, torch.Tensor], names: Mapping[nn.Parameter, str]
) -> dict[str, torch.Tensor]:
    """Return ``tensors`` in memory that the optimizer has already, or in memory of their own."""
    # Read once: taking a tensor out of the mapping may mean reading a file.
    stored = dict(tensors)
    shared = Counter(tensor.untyped_storage().data_ptr() for tensor in stored.values())
    live: dict[str, torch.Tensor] = {}
    # What is one memory with a parameter or with other state is not filled: more than it would change.
    used = {each.untyped_storage().data_ptr() for group in optimizer.param_groups for each in group["params"]}
    by_name = {name: optimizer.state.get(parameter) for parameter, name in names.items()}
    for owner, saved in content["state"].items():
        state = by_name.get(owner)
        if not isinstance(state, dict) or not isinstance(saved, dict):
            continue
        for key, value in saved.get("dict", {}).items():
            name = value.get("tensor") if isinstance(value, dict) else None
            found, present = stored.get(name or ""), state.get(key)
            if name is None or found is None or type(present) is not torch.Tensor:
                continue
            alike = (found.shape, found.dtype) == (present.shape, present.dtype) and present.numel() > 0
            alike = alike and found.is_contiguous() and present.is_contiguous()
            place = present.untyped_storage().data_ptr()
            if alike and shared[found.untyped_storage().data_ptr()] == 1 and place not in used:
                live[name] = present
                used.add(place)
    result = live | owned({name: tensor for name, tensor in stored.items() if name not in live})
    fill(live, tensors)
    return result


def _restore_dtypes(
    optimizer: Optimizer, content: Any, tensors: Mapping[str, torch.Tensor], names: Mapping[nn.Parameter, str]
) -> None:
    # torch casts loaded state to the dtype of its parameter, which rounds fp32 state of bf16 parameters.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            saved = content["state"].get(names[parameter])
            live = optimizer.state.get(parameter)
            if saved is None or not isinstance(live, dict):
                continue
            for key, value in decode(saved, tensors).items():
                present = live.get(key)
                if (
                    isinstance(value, torch.Tensor)
                    and isinstance(present, torch.Tensor)
                    and present.dtype != value.dtype
                ):
                    live[key] = value.clone().to(present.device)


__all__ = ["compare", "load_named_state", "named_state"]
