"""How the parts of a run are called in a checkpoint: the documented names, and ours where there are none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from accel_core.protocols import StateSink, StateSource

RUN = "run"
RANDOM = "random_states"
SCALER = "scaler"
LOADERS = "dataloaders"
CUSTOM = "custom"
GRADIENTS = "gradients"
_FIRST = "model_0/"
_FIRST_OPTIMIZER = re.compile(r"optimizer_0(/tensors)?")
_OTHER_MODEL = re.compile(r"model_[1-9]\d*/model")


def shown(name: str) -> str:
    """Return how a name of a strategy's state is written: the first model is ``model``, as documented.

    ``model_0/model`` becomes ``model``, ``model_0/optimizer_0`` ``optimizer``, ``model_1/model``
    ``model_1``; what the user named keeps its folder, ``actor/model``.
    """
    if _OTHER_MODEL.fullmatch(name):
        return name.removesuffix("/model")
    if not name.startswith(_FIRST):
        return name
    rest = name.removeprefix(_FIRST)
    return rest.replace("optimizer_0", "optimizer", 1) if _FIRST_OPTIMIZER.fullmatch(rest) else rest


def meant(name: str) -> str:
    """Return the name that ``shown`` was given."""
    if re.fullmatch(r"model_[1-9]\d*", name):
        return f"{name}/model"
    if name == "model" or re.fullmatch(r"optimizer_[1-9]\d*(/tensors)?", name):
        return _FIRST + name
    if re.fullmatch(r"optimizer(/tensors)?", name):
        return _FIRST + name.replace("optimizer", "optimizer_0", 1)
    return name


class LaidOutSink:
    """A sink under the names of this layout; models in ``without`` are left out."""

    def __init__(self, sink: StateSink, without: Iterable[str] = ()) -> None:
        self._sink = sink
        self._without = {f"{unit}/model" for unit in without}

    def tensors(self, name: str, values: Mapping[str, torch.Tensor]) -> None:
        """Store tensors by name."""
        if name not in self._without:
            self._sink.tensors(shown(name), values)

    def json(self, name: str, value: Any) -> None:
        """Store a value."""
        self._sink.json(shown(name), value)

    def directory(self, name: str) -> Path:
        """Return an empty folder."""
        return self._sink.directory(shown(name))


class LaidOutSource:
    """A source under the names of this layout; ``instead`` holds tensors that are not looked up in it."""

    def __init__(self, source: StateSource, instead: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        self._source = source
        self._instead = instead

    def names(self) -> list[str]:
        """Return every name."""
        return [*self._instead, *(meant(name) for name in self._source.names())]

    def tensors(self, name: str) -> Mapping[str, torch.Tensor]:
        """Return tensors by name."""
        return self._instead[name] if name in self._instead else self._source.tensors(shown(name))

    def json(self, name: str) -> Any:
        """Return a stored value."""
        return self._source.json(shown(name))

    def directory(self, name: str) -> Path:
        """Return a folder."""
        return self._source.directory(shown(name))


__all__ = [
    "CUSTOM",
    "GRADIENTS",
    "LOADERS",
    "RANDOM",
    "RUN",
    "SCALER",
    "LaidOutSink",
    "LaidOutSource",
    "meant",
    "shown",
]
