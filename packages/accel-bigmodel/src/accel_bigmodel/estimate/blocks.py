"""The layers of a model, found by the names of its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from .packed import Weight

_Tree = dict[str, Any]


def layers(weights: Mapping[str, Weight], *, blocks: bool = True) -> dict[str, list[Weight]]:
    """Return the weights of every layer by its name.

    A layer is what has to be on a device at once: a block of a repeated stack, with everything in it, or
    outside of stacks a module with its own tensors. A stack is a module whose children are numbered and
    mostly alike, as in ``model.layers.0``, ``model.layers.1``; without ``blocks`` it is taken apart too.
    """
    tree: _Tree = {}
    for name, weight in weights.items():
        node = tree
        *path, last = name.split(".")
        for part in path:
            node = node.setdefault(part, {})
            if isinstance(node, Weight):
                # A tensor and a module of one name: no module has both, but a file may say so.
                break
        else:
            if not isinstance(node.get(last), dict):
                node[last] = weight
                continue
        tree[name] = weight
    return dict(_walk(tree, "", blocks=blocks))


def _walk(node: _Tree, name: str, *, blocks: bool) -> Iterator[tuple[str, list[Weight]]]:
    own = [each for each in node.values() if isinstance(each, Weight)]
    if own:
        yield name, own
    inner = {key: each for key, each in node.items() if isinstance(each, dict)}
    whole = blocks and _is_stack(inner)
    for key, child in inner.items():
        place = f"{name}.{key}" if name else key
        if whole and key.isdigit():
            yield place, list(_inside(child))
        else:
            yield from _walk(child, place, blocks=blocks)


def _is_stack(children: Mapping[str, _Tree]) -> bool:
    """Tell whether at least half of the numbered children have a twin, and modules of their own."""
    numbered = [child for key, child in children.items() if key.isdigit()]
    if len(numbered) < 2 or not any(isinstance(part, dict) for child in numbered for part in child.values()):
        return False
    kinds = Counter(frozenset(_shapes(child, "")) for child in numbered)
    return 2 * sum(count for count in kinds.values() if count > 1) >= len(numbered)


def _shapes(node: _Tree, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for key, each in node.items():
        place = f"{name}.{key}"
        if isinstance(each, Weight):
            yield place, each.shape
        else:
            yield from _shapes(each, place)


def _inside(node: _Tree) -> Iterator[Weight]:
    for each in node.values():
        if isinstance(each, Weight):
            yield each
        else:
            yield from _inside(each)


__all__ = ["layers"]
