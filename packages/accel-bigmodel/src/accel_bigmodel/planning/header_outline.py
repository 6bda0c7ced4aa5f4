"""The outline of a model whose files are known and whose code is not; without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ..estimate.packed import weights
from ..estimate.shapes import ModelHeaders
from .outline import Branch, Outline

_STATE = ("running_mean", "running_var", "num_batches_tracked", "position_ids", "token_type_ids", "inv_freq")
# Files are sorted by name; models read their input first and give their answer last.
_FIRST = ("embed", "wte", "wpe", "shared", "conv_in", "patch", "stem", "tok_", "feature_extractor", "pre_")
_EARLY = ("encoder", "vision", "visual", "audio", "feature_projection")
_BETWEEN = ("multi_modal", "projector", "connector", "merger")
_LAST = (
    *("lm_head", "head", "classifier", "score", "logits", "output", "fc", "proj_out", "conv_out", "cls"),
    *("lm_loss", "vocab", "discriminator", "generator", "predictions"),
)
_NEARLY_LAST = ("norm", "ln_f", "ln_out", "final", "pooler")

_Tree = dict[str, Any]


def outline_of_headers(
    headers: ModelHeaders, bits: int | None = None, no_split: Sequence[str] | None = None
) -> Outline:
    """Return the parts of a model by the names of its tensors.

    ``bits``: as if loaded in a type of so many bits, by default as stored. ``no_split``: patterns of modules
    that stay whole (``model.layers.*``); by default the outermost modules that are numbered and have modules
    in them. The order within a module is guessed: input, numbers in their order, normalisation, output.
    """
    return _Reading(headers, bits, no_split).outline


class _Reading:
    """One pass over the tree that the names make."""

    def __init__(self, headers: ModelHeaders, bits: int | None, no_split: Sequence[str] | None) -> None:
        self.no_split = no_split
        self.sizes = {name: tensor.bytes for name, tensor in headers.tensors.items()}
        if bits is not None:
            self.sizes = {
                name: (weight.elements * bits + 7) // 8 if weight.fixed is None else weight.fixed
                for name, weight in weights(headers).items()
            }
        self.aliases = {name: other for name, other in headers.aliases.items() if other in self.sizes}
        self.outline = Outline()
        self.parts: dict[str, int] = {}
        self.outline.root = self.item("", _tree([*self.sizes, *self.aliases]))
        for name, other in self.aliases.items():
            one, two = self.parts[other], self.parts[name]
            if one != two:
                self.outline.links.append((one, two))

    def item(self, name: str, node: _Tree, *, whole: bool = False) -> Branch | int:
        inner = {key: each for key, each in node.items() if isinstance(each, dict)}
        if not inner or whole or self.named(name):
            return self.part(name, "module", list(_names(node)))
        branch = Branch(name, len(self.outline.names))
        for own in (each for each in node.values() if isinstance(each, str)):
            branch.items.append(self.part(own, "buffer" if own.endswith(_STATE) else "parameter", [own]))
        stack = self.no_split is None and _is_stack(inner)
        start = f"{name}." if name else ""
        branch.items += [
            self.item(start + key, inner[key], whole=stack and key.isdigit())
            for key in sorted(inner, key=_rank)
        ]
        branch.last = len(self.outline.names)
        return branch

    def named(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.no_split or ())

    def part(self, name: str, kind: str, tensors: Sequence[str]) -> int:
        number = len(self.outline.names)
        own = [tensor for tensor in tensors if tensor in self.sizes]
        buffers = sum(self.sizes[tensor] for tensor in own if tensor.endswith(_STATE))
        total = sum(self.sizes[tensor] for tensor in own)
        # The same tensor under two names of one module is needed once.
        others = {self.aliases[tensor] for tensor in tensors if tensor in self.aliases} - set(own)
        needed = total - buffers + sum(self.sizes[other] for other in others)
        self.parts.update(dict.fromkeys(tensors, number))
        return self.outline.add(name, kind, total - buffers, buffers, needed)


def _tree(names: Sequence[str]) -> _Tree:
    """Return modules by name, with the full names of their tensors as leaves."""
    root: _Tree = {}
    for name in names:
        node = root
        *path, last = name.split(".")
        for part in path:
            inner = node.setdefault(part, {})
            if isinstance(inner, str):
                # A tensor and a module of one name: no module has both, but a file may say so.
                break
            node = inner
        else:
            if not isinstance(node.get(last), dict):
                node[last] = name
                continue
        root[name] = name
    return root


def _is_stack(children: Mapping[str, _Tree]) -> bool:
    numbered = [child for key, child in children.items() if key.isdigit()]
    return len(numbered) > 1 and any(isinstance(each, dict) for child in numbered for each in child.values())


def _names(node: _Tree) -> list[str]:
    found = []
    for each in node.values():
        found += [each] if isinstance(each, str) else _names(each)
    return found


def _rank(key: str) -> tuple[int, int]:
    """Return what sorts the modules of one, as far as their names tell."""
    if key.isdigit():
        return 3, int(key)
    if key.startswith(_LAST) or key.endswith(("_head", "classifier", "_predictions")):
        return 6, 0
    if key.startswith(_FIRST) or "embed" in key:
        return 0, 0
    # What sees and hears comes before the words, and an encoder before its decoder.
    if key.startswith(_EARLY):
        return 1, 0
    if key.startswith(_BETWEEN):
        return 2, 0
    return (5 if any(word in key for word in _NEARLY_LAST) else 4), 0


__all__ = ["outline_of_headers"]
