"""What a model without a known configuration computes: one block is run on shapes alone, and watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from accel_core.errors import ConfigError, Fault

from .needs import Needs
from .outline import Outline
from .units import shown


def needs_of_blocks(model: nn.Module, outline: Outline, batch: int, length: int) -> Needs:
    """Return the most that the parts of ``model`` hold while they run on ``(batch, length, width)`` numbers.

    Of every class the largest part is run, on shapes alone. Nothing is known of keys and values. Raises
    ConfigError when the part with the most weights does not take such an input.
    """
    largest: dict[str, int] = {}
    for part, kind in sorted(enumerate(outline.kinds), key=lambda item: -outline.layers[item[0]]):
        if outline.layers[part] and kind not in {"parameter", "buffer"}:
            largest.setdefault(kind, part)
    most, who, left_out = 0, "", []
    for kind, part in largest.items():
        name = outline.names[part]
        try:
            size = _peak(model.get_submodule(name), batch, length)
        # Modules raise whatever they like about an input that is not theirs.
        except Exception as error:
            if not who:
                raise _unknown(name, f"{type(error).__name__}: {str(error)[:200]}") from error
            left_out.append(kind)
            continue
        if size >= most:
            most, who = size, f"{name or 'the model'} ({kind})"
    note = (
        f"Reserved for {batch} x {length} inputs: {shown(most)} for activations on every device that runs the"
        f" model, measured on the shapes of {who or 'nothing: it has no modules with weights'}. Nothing is"
        " reserved for keys and values, because no configuration tells of any."
    )
    if left_out:
        note += f" Not measured: {', '.join(left_out)}."
    return Needs(most, {}, (note,))


def _peak(block: nn.Module, batch: int, length: int) -> int:
    """Return the most bytes that are held at once while ``block`` runs, its input included."""
    tensors = [*block.named_parameters(), *block.named_buffers()]
    floats = [tensor for _, tensor in tensors if tensor.is_floating_point()]
    if isinstance(block, nn.Embedding):
        example = torch.empty((batch, length), dtype=torch.int64, device="meta")
    else:
        example = torch.empty((batch, length, floats[0].shape[-1]), dtype=floats[0].dtype, device="meta")
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    with torch.no_grad(), _Watch() as watch:
        functional_call(block, state, (example,))
    most: int = watch.most
    return most + example.nbytes


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the memory of results that are still referred to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._held: dict[int, tuple[Callable[[], bool], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id_of(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor) and id_of(each) not in given:
                storage = each.untyped_storage()
                self._held.setdefault(id_of(each), _held(storage))
        self._held = {key: held for key, held in self._held.items() if not held[0]()}
        self.most = max(self.most, sum(size for _, size in self._held.values()))
        return result


def _held(storage: torch.UntypedStorage) -> tuple[Callable[[], bool], int]:
    """Return what tells whether ``storage`` is gone, and its bytes."""
    return StorageWeakRef(storage).expired, storage.nbytes()  # type: ignore[no-untyped-call]


def id_of(tensor: torch.Tensor) -> int:
    """Return what tells the memory of ``tensor`` from others, as long as somebody refers to it."""
    return int(tensor.untyped_storage()._cdata)


def _unknown(name: str, why: str) -> ConfigError:
    return ConfigError(
        "room for activations",
        [
            Fault(
                "batch_size",
                name or "the model",
                f"what it computes could not be measured, and no configuration tells: {why}",
                "give the room that you know is needed, for example reserve='2GiB', and no batch_size",
            )
        ],
    )


__all__ = ["needs_of_blocks"]
