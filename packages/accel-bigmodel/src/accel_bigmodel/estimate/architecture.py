"""What a configuration says about the shape of a transformer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from accel_core.errors import ConfigError, Fault

_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "model_dim")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_decoder_layers", "decoder_layers")
_ENCODER = ("encoder_layers", "num_encoder_layers", "num_layers")
_DECODER = ("num_decoder_layers", "decoder_layers", "num_layers", "num_hidden_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv", "multi_query_group_num")
_INNER = (
    "intermediate_size",
    "n_inner",
    "d_ff",
    "ffn_dim",
    "decoder_ffn_dim",
    "hidden_dim",
    "ffn_hidden_size",
)
_ACTIVATION = ("hidden_act", "activation_function", "hidden_activation", "dense_act_fn", "activation")
_DROPOUT = ("hidden_dropout_prob", "resid_pdrop", "dropout_rate", "dropout", "hidden_dropout")
_NORM = re.compile(r"(?:.*_)?(?:(?:layer)?norm|ln)(?:_?\w*)|LayerNorm", re.ASCII)
_HEAD_NORMS = {"q_norm", "k_norm", "query_norm", "key_norm", "q_layernorm", "k_layernorm"}
_GATES = ("gate_proj", "gate_up_proj", "wi_1", "w3", "gate_and_up", "Wi")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The sizes of a transformer that decide what it needs beside its weights. Counts are of numbers."""

    hidden: int
    layers: int
    """Of the decoder, or of all there is."""
    encoder_layers: int
    """Beside ``layers``: those of an encoder that a decoder listens to."""
    heads: int
    queries: int
    """All heads together, for one token; ``keys`` and ``values`` likewise."""
    keys: int
    values: int
    inner: int
    experts: int
    """How many feed-forward networks a token goes through."""
    gated: bool
    activation: str
    rms: bool
    norms: int
    """How many normalisations of everything a layer has."""
    normed_heads: bool
    """Whether queries and keys are normalised by themselves."""
    vocabulary: int
    """0 for a model that gives no scores over a vocabulary."""
    cached: bool
    """Whether keys and values are kept between tokens."""
    window: int | None
    windowed_layers: int
    biased: bool
    """Whether attention adds a bias per position, which needs all scores at once."""
    dropout: bool
    positions: int | None


def architecture(config: Mapping[str, Any], names: Iterable[str]) -> Architecture:
    """Return the sizes that ``config`` states, helped by the ``names`` of the tensors.

    Raises ConfigError that lists what is missing.
    """
    text = config.get("text_config")
    own = {**config, **text} if isinstance(text, Mapping) else dict(config)
    hidden, heads = _number(own, _HIDDEN), _number(own, _HEADS)
    paired = own.get("is_encoder_decoder") is True
    layers = _number(own, _DECODER if paired else _LAYERS)
    missing = [
        Fault("config.json", keys[0], "is not there, nor one of its other names", "leave the sequence out")
        for keys, value in ((_HIDDEN, hidden), (_LAYERS, layers), (_HEADS, heads))
        if not value
    ]
    if missing:
        raise ConfigError("activations of this model", missing)
    assert hidden
    assert layers
    assert heads
    names = list(names)
    parts = {part for name in names for part in name.split(".")}
    head = _number(own, ("head_dim", "d_kv", "kv_channels")) or hidden // heads
    key_heads = 1 if own.get("multi_query") is True else _number(own, _KEY_HEADS) or heads
    # DeepSeek's: keys of two parts, values of their own width.
    wide = (_number(own, ("qk_nope_head_dim",)) or 0) + (_number(own, ("qk_rope_head_dim",)) or 0) or head
    activation = next((own[key] for key in _ACTIVATION if isinstance(own.get(key), str)), "gelu")
    kinds = own.get("layer_types")
    window = _number(own, ("sliding_window",)) if own.get("use_sliding_window", True) else None
    windowed = kinds.count("sliding_attention") if isinstance(kinds, list) else layers if window else 0
    experts = _number(own, ("num_experts_per_tok", "num_experts_per_token", "moe_topk")) or 1
    return Architecture(
        hidden=hidden,
        layers=layers,
        encoder_layers=(_number(own, _ENCODER) or layers) if paired else 0,
        heads=heads,
        queries=heads * wide,
        keys=key_heads * wide,
        values=key_heads * (_number(own, ("v_head_dim",)) or head),
        inner=(_number(own, ("moe_intermediate_size",)) if experts > 1 else None)
        or _number(own, _INNER)
        or 4 * hidden,
        experts=experts,
        gated=bool(parts & set(_GATES)) or str(own.get("feed_forward_proj", "")).startswith("gated"),
        activation=activation,
        rms=any(key in own for key in ("rms_norm_eps", "rms_norm_epsilon")) or own.get("model_type") == "t5",
        norms=_norms(names),
        normed_heads=bool(parts & _HEAD_NORMS),
        vocabulary=_vocabulary(own, parts),
        cached=paired or _decodes(own),
        window=window,
        windowed_layers=windowed if window else 0,
        biased="relative_attention_num_buckets" in own,
        dropout=any(isinstance(own.get(key), float) and own[key] > 0 for key in _DROPOUT),
        positions=_number(own, ("max_position_embeddings", "n_positions")),
    )


def _norms(names: Iterable[str]) -> int:
    """Return how many normalisations the layers have: 2, unless their tensors show more."""
    found: Counter[str] = Counter()
    for name in names:
        *path, module, last = ("", "", *name.split("."))
        if last == "weight" and _NORM.fullmatch(module) and module not in _HEAD_NORMS:
            numbers = [place for place, part in enumerate(path) if part.isdigit()]
            if numbers:
                found[".".join(path[: numbers[0] + 1])] += 1
    return max(2, *found.values(), 2)


def _number(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    return next((config[key] for key in keys if type(config.get(key)) is int and config[key] > 0), None)


def _named(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _vocabulary(config: Mapping[str, Any], parts: set[str]) -> int:
    scores = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining")
    if _named(config).endswith(scores) or parts & {"lm_head", "embed_out"}:
        return _number(config, ("vocab_size", "n_vocab", "padded_vocab_size")) or 0
    return 0


def _decodes(config: Mapping[str, Any]) -> bool:
    """Tell whether a model without an encoder continues texts; encoders alone cache nothing."""
    if config.get("is_decoder") is True or _named(config).endswith(("ForCausalLM", "LMHeadModel")):
        return True
    encoders = ("bert", "electra", "vit", "deit", "clip", "dino", "wav2vec", "hubert", "whisper_encoder")
    kind = str(config.get("model_type", ""))
    other = ("ForMaskedLM", "ForPreTraining")
    return not any(word in kind for word in encoders) and not _named(config).endswith(other)


__all__ = ["Architecture", "architecture"]
