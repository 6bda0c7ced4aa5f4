"""Room for what a model computes: activations on every device that runs, keys and values where layers lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..estimate.activations import Run, cache_bytes, inference_bytes
from ..estimate.architecture import Architecture, architecture
from .outline import Branch, Outline
from .units import shown


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes beside weights. ``caches``: by the number of the part that they lie with."""

    workspace: int = 0
    caches: Mapping[int, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def more(self, reserve: int) -> Needs:
        """Return these, with ``reserve`` bytes more on every device that runs."""
        if not reserve:
            return self
        note = f"{shown(reserve)} stay free on every device that runs the model, as asked."
        return replace(self, workspace=self.workspace + reserve, notes=(*self.notes, note))


def needs_of_config(
    config: Mapping[str, Any], names: Iterable[str], outline: Outline, batch: int, length: int, bits: int
) -> Needs:
    """Return what inference needs by the configuration of a transformer, in numbers of ``bits`` bits.

    Raises ConfigError when the configuration does not say how large its layers are.
    """
    model = architecture(config, names)
    run = Run(batch, length, eager=config.get("_attn_implementation") == "eager")
    inner = inference_bytes(replace(model, vocabulary=0), run, bits)
    scores = inference_bytes(model, run, bits) - inner
    cache = cache_bytes(model, run, bits)
    caches = dict(_spread(outline, model, cache))
    if scores:
        # The scores over the vocabulary come from the last part, where they exceed what layers compute.
        last = len(outline.names) - 1
        caches[last] = caches.get(last, 0) + scores
    note = (
        f"Reserved for {batch} x {length} tokens, by the configuration: {shown(inner)} for activations on"
        f" every device that runs the model"
    )
    if cache:
        note += f", {shown(cache)} for keys and values where their layers run"
    if scores:
        note += f", {shown(scores)} for scores over the vocabulary"
    return Needs(inner, caches, (f"{note}.",))


def _spread(outline: Outline, model: Architecture, cache: int) -> Iterable[tuple[int, int]]:
    """Return the parts that keep ``cache``, with the share of each."""
    if not cache:
        return
    stacks = [stack for stack in stacks_of(outline.root) if len(stack) == model.layers]
    if stacks:
        # A decoder comes after its encoder.
        firsts = [item if isinstance(item, int) else item.first for item in stacks[-1]]
        for part in firsts:
            yield part, -(-cache // len(firsts))
        return
    total = sum(outline.layers) or 1
    for part, size in enumerate(outline.layers):
        if size:
            yield part, -(-cache * size // total)


def stacks_of(item: Branch | int) -> list[list[Branch | int]]:
    """Return what modules hold several of, outermost first, in the order of the model."""
    if isinstance(item, int):
        return []
    found = [list(item.items)] if len(item.items) > 1 else []
    return found + [stack for inner in item.items for stack in stacks_of(inner)]


__all__ = ["Needs", "needs_of_config", "stacks_of"]
