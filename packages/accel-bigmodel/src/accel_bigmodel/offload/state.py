"""The whole state of a model whose weights lie in several places."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..aligning import DispatchedTensors


def offloaded_state(model: nn.Module) -> Mapping[str, torch.Tensor]:
    """Return the tensors of ``model`` as its state dict names them, offloaded ones where they are kept.

    What lies in files is mapped when it is asked for, and read when it is used; nothing is kept. Tensors that
    are not offloaded are the model's own. Names of tied weights give the same memory.
    """
    return DispatchedTensors(model)


def get_state_dict_offloaded_model(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what `offloaded_state` does as a dict; tensors out of files are their pages, not yet read."""
    return dict(offloaded_state(model))


__all__ = ["get_state_dict_offloaded_model", "offloaded_state"]
