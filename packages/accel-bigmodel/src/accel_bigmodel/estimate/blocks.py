"""The layers of a model, found by the names of its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .packed import Weight

_DEEPEST = 64


@dataclass(slots=True)
class _Module:
    """A module as names show it: its tensors, and the modules in it."""

    own: dict[str, Weight] = field(default_factory=dict)
    inner: dict[str, _Module] = field(default_factory=dict)


def layers(weights: Mapping[str, Weight], *, blocks: bool = True) -> dict[str, list[Weight]]:
    """Return the weights of every layer by its name.

    A layer is what has to be on a device at once: a block of a repeated stack, with everything in it, or
    outside of stacks a module with its own tensors. A stack is a module whose children are numbered and
    mostly alike, as in ``model.layers.0``, ``model.layers.1``; without ``blocks`` it is taken apart too.
    """
    root = _Module()
    for name, weight in weights.items():
        # Deeper names are nobody's modules, and would end in the limit of recursion.
        *path, last = name.split(".", _DEEPEST)
        module = root
        for part in path:
            module = module.inner.setdefault(part, _Module())
        module.own[last] = weight
    return dict(_walk(root, "", blocks=blocks))


def _walk(module: _Module, name: str, *, blocks: bool) -> Iterator[tuple[str, list[Weight]]]:
    if module.own:
        yield name, list(module.own.values())
    whole = blocks and _is_stack(module)
    for key, child in module.inner.items():
        place = f"{name}.{key}" if name else key
        if whole and key.isdigit():
            yield place, [weight for _, weight in _inside(child, "")]
        else:
            yield from _walk(child, place, blocks=blocks)


def _is_stack(module: _Module) -> bool:
    """Tell whether at least half of the numbered children have a twin."""
    numbered = [child for key, child in module.inner.items() if key.isdigit()]
    if len(numbered) < 2:
        return False
    kinds = Counter(
        frozenset((name, weight.shape) for name, weight in _inside(child, "")) for child in numbered
    )
    return 2 * sum(count for count in kinds.values() if count > 1) >= len(numbered)


def _inside(module: _Module, name: str) -> Iterator[tuple[str, Weight]]:
    for key, weight in module.own.items():
        yield f"{name}{key}", weight
    for key, child in module.inner.items():
        yield from _inside(child, f"{name}{key}.")


__all__ = ["layers"]
