"""Weights that a model has under two names: counted once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .shapes import ModelHeaders, TensorShape

_OUTPUTS = ("lm_head.weight", "embed_out.weight", "predictions.decoder.weight", "output_projection.weight")
_INPUTS = (
    *("embed_tokens.weight", "shared.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight"),
    *("tok_embeddings.weight", "embeddings.weight", "embedding.weight"),
)


def without_ties(headers: ModelHeaders) -> ModelHeaders:
    """Return ``headers`` with what the configuration ties counted once, under the name of the input."""
    found = _tied(headers.tensors, headers.config)
    if not found:
        return headers
    kept = {name: tensor for name, tensor in headers.tensors.items() if name not in found}
    return replace(headers, tensors=kept, aliases={**headers.aliases, **found})


def _tied(tensors: Mapping[str, TensorShape], config: Mapping[str, Any]) -> dict[str, str]:
    """Return the names that loading makes aliases, and what they are aliases of.

    Only where the configuration says so: a file that holds both an input and an output embedding, without
    a word on tying, is believed.
    """
    if not _says_tied(config):
        return {}
    inputs = [name for name in tensors if _ends(name, _INPUTS)]
    found = {}
    for number, first in enumerate(inputs):
        others = [name for name in tensors if _ends(name, _OUTPUTS)]
        # An encoder and a decoder that read with the same table.
        others += inputs[number + 1 :] if _ends(first, ("shared.weight",)) else []
        for other in others:
            if tensors[other].shape == tensors[first].shape and other not in found and first not in found:
                found[other] = first
    return found


def _says_tied(config: Mapping[str, Any]) -> bool:
    text = config.get("text_config")
    return any(
        isinstance(part, Mapping) and part.get("tie_word_embeddings") is True for part in (config, text)
    )


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


__all__ = ["without_ties"]
