"""How two checkpoints differ, name by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from accel_core.errors import CapabilityError

from ..checkpoint.places import committed, replaced
from ..checkpoint.resolve import is_uri, store_for
from ..checkpoint.source import CheckpointSource
from ..checkpoint.store import CheckpointStore
from ..weights import read

if TYPE_CHECKING:
    from ..checkpoint.remote.source import RemoteSource

_PIECE = 1 << 20
"""Elements that are compared at a time."""
_MOST_LETTERS = 60


@dataclass(slots=True)
class Side:
    """One of the two: tensors by ``name/tensor``, plain values and hashes of files by name.

    ``hashes`` are those of the files of tensors whose bytes were verified.
    """

    about: str = ""
    tensors: dict[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Difference:
    """Names that only one has, what changed in the others, and how many names are the same."""

    removed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    changed: dict[str, dict[str, Any]] = field(default_factory=dict)
    same: int = 0

    @property
    def differs(self) -> bool:
        """Return whether anything is not the same."""
        return bool(self.removed or self.added or self.changed)

    def facts(self) -> dict[str, Any]:
        """Return what programs are told; JSON has no infinities, so they are texts."""
        changed = {
            name: {
                key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in change.items()
            }
            for name, change in self.changed.items()
        }
        return {"removed": self.removed, "added": self.added, "changed": changed, "same": self.same}


def opened(path: str) -> Side:
    """Return what a checkpoint or a set of weights holds; raise CheckpointError when it cannot be trusted."""
    if is_uri(path):
        from ..checkpoint.remote.source import RemoteSource

        source = store_for(path).open(path)
        if not isinstance(source, RemoteSource):
            raise CapabilityError(f"A {type(source).__name__} cannot be compared", fix="use its own tools")
        return _side(source)
    place = Path(path)
    if not committed(place) and replaced(place) is None and place.exists():
        return Side(tensors={"": read(place)})
    return _side(CheckpointStore().open(path))


def _side(source: CheckpointSource | RemoteSource) -> Side:
    manifest = source.manifest
    side = Side(f" (step {manifest.step}, saved by {manifest.world_size})")
    for name, entry in manifest.entries.items():
        if entry.kind == "tensors":
            side.tensors[f"{name}/"] = source.tensors(name)
            side.hashes[f"{name}/"] = f"{manifest.algorithm} {manifest.files[entry.path].hash}"
        elif entry.kind == "json":
            side.values |= dict(_leaves(name, source.json(name)))
        else:
            inside = (path for path in manifest.files if path.startswith(f"{entry.path}/"))
            side.values |= {f"{name}: {path}": manifest.files[path].hash for path in inside}
    return side


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values inside JSON under names that say where they are."""
    items = (
        enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else None
    )
    if not value or items is None:
        yield name, value
        return
    for key, inner in items:
        yield from _leaves(f"{name}: {key}" if ": " not in name else f"{name}.{key}", inner)


def compare(first: Side, second: Side) -> Difference:
    """Return how ``second`` differs from ``first``."""
    result = Difference()
    _compare_values(first.values, second.values, result)
    for name in {**first.tensors, **second.tensors}:
        one, other = first.tensors.get(name, {}), second.tensors.get(name, {})
        alike = name in first.hashes and first.hashes[name] == second.hashes.get(name)
        result.removed += [f"{name}{key}" for key in one if key not in other]
        result.added += [f"{name}{key}" for key in other if key not in one]
        for key in one:
            if key not in other:
                continue
            change = _form(one[key], other[key]) or ({} if alike else _numbers(one[key], other[key]))
            if change:
                result.changed[f"{name}{key}"] = change
            else:
                result.same += 1
    return result


def _compare_values(first: Mapping[str, Any], second: Mapping[str, Any], result: Difference) -> None:
    result.removed += [name for name in first if name not in second]
    result.added += [name for name in second if name not in first]
    for name in first:
        if name not in second:
            continue
        one, other = first[name], second[name]
        # As text: True is not 1, 1 is not 1.0, and NaN is NaN.
        if repr(one) == repr(other):
            result.same += 1
        else:
            result.changed[name] = {"from": _short(one), "to": _short(other)}


def _short(value: Any) -> Any:
    text = repr(value)
    return value if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."


def _form(one: torch.Tensor, other: torch.Tensor) -> dict[str, Any]:
    if one.shape == other.shape and one.dtype == other.dtype:
        return {}
    return {"from": _described(one), "to": _described(other)}


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _numbers(one: torch.Tensor, other: torch.Tensor) -> dict[str, Any]:
    """Return how many elements differ in their bits, and by how much; NaN where only one of them is NaN."""
    count, most = 0, 0.0
    for left, right in zip(_pieces(one), _pieces(other), strict=True):
        different = (_bytes(left) != _bytes(right)).any(dim=1)
        if not different.any():
            continue
        count += int(different.sum())
        a, b = _wide(left[different]), _wide(right[different])
        gap = (a - b).abs()
        gap[(a == b) | (a.isnan() & b.isnan())] = 0
        most = math.nan if gap.isnan().any() or math.isnan(most) else max(most, float(gap.max()))
    return {"values": count, "of": one.numel(), "max_abs": most} if count else {}


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    flat = tensor.contiguous().view(-1)
    yield from (flat[begin : begin + _PIECE] for begin in range(0, flat.numel(), _PIECE))


def _bytes(flat: torch.Tensor) -> torch.Tensor:
    return flat.view(torch.uint8).view(flat.numel(), flat.element_size())


def _wide(flat: torch.Tensor) -> torch.Tensor:
    return flat.to(torch.complex128 if flat.is_complex() else torch.float64)


__all__ = ["Difference", "Side", "compare", "opened"]
