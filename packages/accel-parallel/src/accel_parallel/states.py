"""State of units of which every rank holds all: written once, read by everybody, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from accel_core.errors import CheckpointError
from accel_core.protocols import Collectives, LoadReport, StateSink, StateSource, Unit

from .filling import fill, plainly_loaded
from .inspection import bare, clean_name, parameter_names
from .optimizer import AcceleratedOptimizer
from .optimizer_state import compare, load_named_state, named_state

_T = TypeVar("_T")


class PlainState:
    """Model state under the bare model's names, optimizer state under the parameters' names.

    A checkpoint holds, for a unit called ``u``: tensors ``u/model``, and per optimizer of the unit
    the JSON ``u/optimizer_0`` and the tensors ``u/optimizer_0/tensors``. What modules add by
    ``get_extra_state`` is kept when it is a tensor, and otherwise refused by name: it would need pickle.
    """

    def __init__(self, collectives: Collectives) -> None:
        self.collectives = collectives

    def full(self, unit: Unit) -> dict[str, torch.Tensor]:
        """Return the live tensors of the model by name, shared ones under all of their names. Not a copy."""
        return _model_state(unit)

    def load_full(self, unit: Unit, values: Mapping[str, torch.Tensor], *, strict: bool = True) -> LoadReport:
        """Load model tensors by name; nothing is changed when ``strict`` raises.

        Raises CheckpointError that names everything missing, unexpected or of another shape.
        """
        return self._together(lambda: _load_model(unit, values, strict=strict))

    def save(self, unit: Unit, sink: StateSink) -> None:
        """Write model and optimizers on rank 0. Raises CheckpointError on every rank if that fails."""
        self._together(lambda: _save(unit, sink) if self.collectives.rank == 0 else None)

    def load(self, unit: Unit, source: StateSource, *, strict: bool = True) -> LoadReport:
        """Read back what ``save`` wrote, on every rank. Raises CheckpointError on every rank if one fails."""
        return self._together(lambda: _load(unit, source, strict=strict))

    def check(self, unit: Unit, source: StateSource, *, strict: bool = True) -> None:
        """Raise what ``load`` would raise, and change nothing: for several units, before any is loaded."""
        _fit(unit, source, strict=strict)

    def check_full(self, unit: Unit, values: Mapping[str, torch.Tensor], *, strict: bool = True) -> None:
        """Raise what ``load_full`` would raise, and change nothing."""
        _refuse(unit, _report(unit, values), strict=strict)

    def _together(self, action: Callable[[], _T]) -> _T:
        """Run ``action`` and learn whether it worked everywhere: a rank that goes on alone hangs later."""
        result: list[_T] = []
        failure: Exception | None = None
        try:
            result.append(action())
        except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
            failure = error
        told = self.collectives.all_gather_object(
            None if failure is None else f"{type(failure).__name__}: {failure}"
        )
        if failure is not None:
            raise failure
        for rank, message in enumerate(told):
            if message is not None:
                raise CheckpointError(
                    f"Rank {rank} could not save or load its part",
                    where=f"rank {rank}: {message}",
                    fix="read that rank's error",
                )
        return result[0]


def _model_state(unit: Unit) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for name, value in bare(unit.model).state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"Extra state in the model of unit {unit.name!r} is a {type(value).__name__}, not a tensor",
                where=name,
                fix="return a tensor from get_extra_state, or register the module for checkpointing",
            )
        state[clean_name(name)] = value
    return state


def _optimizers(unit: Unit) -> list[tuple[str, Any]]:
    inner = [each.optimizer if isinstance(each, AcceleratedOptimizer) else each for each in unit.optimizers]
    return [(f"{unit.name}/optimizer_{number}", each) for number, each in enumerate(inner)]


def _save(unit: Unit, sink: StateSink) -> None:
    names = parameter_names(unit.model)
    # Everything is encoded before anything is written, so that a refusal leaves no half behind.
    encoded = [(label, *named_state(optimizer, names, label)) for label, optimizer in _optimizers(unit)]
    sink.tensors(f"{unit.name}/model", _model_state(unit))
    for label, content, tensors in encoded:
        sink.json(label, content)
        sink.tensors(f"{label}/tensors", tensors)


_Pending = list[tuple[str, Any, Any]]
"""Optimizers to be filled: name, optimizer, what is stored."""


def _fit(
    unit: Unit, source: StateSource, *, strict: bool
) -> tuple[Mapping[str, torch.Tensor], LoadReport, LoadReport, _Pending]:
    """Return the stored model, what of it fits, what of all fits, and the optimizers; change nothing."""
    names = parameter_names(unit.model)
    stored = set(source.names())
    missing, unexpected, pending = [], [], []
    for label, optimizer in _optimizers(unit):
        if label not in stored:
            missing.append(label)
            continue
        content = source.json(label)
        lacking, surplus = compare(optimizer, content, names, label)
        missing += [f"{label}/{name}" for name in lacking]
        unexpected += [f"{label}/{name}" for name in surplus]
        pending.append((label, optimizer, content))
    known = {label for label, _ in _optimizers(unit)}
    unexpected += sorted(
        name
        for name in stored
        if name.startswith(f"{unit.name}/optimizer_") and not name.endswith("/tensors") and name not in known
    )
    if f"{unit.name}/model" not in stored:
        raise CheckpointError(
            f"The checkpoint holds no model called {unit.name!r}",
            where=f"it holds: {', '.join(sorted(stored)) or 'nothing'}",
            fix="prepare the model under the name that it was saved under",
        )
    values = source.tensors(f"{unit.name}/model")
    model = _report(unit, values, converts=False)
    report = LoadReport(
        restored=(*model.restored, *(label for label, _, _ in pending)),
        missing=(*model.missing, *missing),
        unexpected=(*model.unexpected, *unexpected),
        mismatched=model.mismatched,
    )
    _refuse(unit, report, strict=strict)
    return values, model, report, pending


def _load(unit: Unit, source: StateSource, *, strict: bool) -> LoadReport:
    values, model, report, pending = _fit(unit, source, strict=strict)
    names = parameter_names(unit.model)
    _fill(unit, values, model)
    for label, optimizer, content in pending:
        load_named_state(optimizer, content, source.tensors(f"{label}/tensors"), names)
    return report


def _load_model(unit: Unit, values: Mapping[str, torch.Tensor], *, strict: bool) -> LoadReport:
    report = _report(unit, values)
    _refuse(unit, report, strict=strict)
    _fill(unit, values, report)
    return report


def _report(unit: Unit, values: Mapping[str, torch.Tensor], *, converts: bool = True) -> LoadReport:
    """Return what fits; another dtype is told as not fitting unless it ``converts`` without a word."""
    own = _model_state(unit)
    present = {_memory(own[name]) for name in own if name in values}
    mismatched = {
        name: f"{tuple(values[name].shape)} in the checkpoint, {tuple(tensor.shape)} in the model"
        for name, tensor in own.items()
        if name in values and values[name].shape != tensor.shape
    }
    restored = tuple(name for name in own if name in values and name not in mismatched)
    if not converts:
        mismatched |= {
            name: f"{_dtype(values[name])} in the checkpoint, {_dtype(own[name])} in the model"
            for name in restored
            if values[name].dtype != own[name].dtype
        }
    return LoadReport(
        restored=restored,
        # Formats that store shared memory once keep one name of several.
        missing=tuple(name for name in own if name not in values and _memory(own[name]) not in present),
        unexpected=tuple(name for name in values if name not in own),
        mismatched=mismatched,
    )


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    if tensor.numel() == 0 or tensor.is_meta:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def _refuse(unit: Unit, report: LoadReport, *, strict: bool) -> None:
    if report.ok or not strict:
        return
    lines = [f"missing: {', '.join(report.missing)}"] if report.missing else []
    lines += [f"unexpected: {', '.join(report.unexpected)}"] if report.unexpected else []
    lines += [f"other shape or dtype: {name}: {difference}" for name, difference in report.mismatched.items()]
    raise CheckpointError(
        f"The state does not fit unit {unit.name!r}; nothing was changed",
        where="\n         ".join(lines),
        fix="build model and optimizers as in the run that saved them; strict=False loads what fits, and"
        " converts dtypes",
    )


def _fill(unit: Unit, values: Mapping[str, torch.Tensor], report: LoadReport) -> None:
    model: nn.Module = bare(unit.model)
    restored = set(report.restored)
    own = {name: clean_name(name) for name in model.state_dict()}
    chosen = {name: clean for name, clean in own.items() if clean in restored}
    plain = {name: tensor for name, tensor in plainly_loaded(model).items() if name in chosen}
    fill({chosen[name]: tensor for name, tensor in plain.items()}, values)
    rest = {name: values[clean] for name, clean in chosen.items() if name not in plain}
    model.load_state_dict(rest, strict=False)


__all__ = ["PlainState"]
