"""What a transformer needs beside its weights: results of layers on the way, and cached keys and values.

Counted from what the layers compute, and checked against what real models hold (tests/models). For training
compare Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from .architecture import Architecture

# What a feed-forward network holds at its peak without gradients, and keeps for the backward, as multiples of
# (inner size, hidden size) and of the inner size, by its activation. Composed ones make many steps.
_PLAIN = ((2.0, 3.0), 2.0)
_COMPOSED = ((4.0, 5.5), 5.0)
_STEPS = {
    "relu": ((2.0, 3.0), 1.0),
    "gelu_new": _COMPOSED,
    "gelu_fast": _COMPOSED,
    "quick_gelu": ((3.0, 3.0), 3.0),
}
_GATED = ((3.0, 4.0), 4.0)
_ROUTED = (4.0, 6.0)


@dataclass(frozen=True, slots=True)
class Run:
    """One batch: how many sequences of how many tokens, with attention that makes all scores or none."""

    batch: int
    length: int
    eager: bool = False

    @property
    def tokens(self) -> int:
        """Return the tokens of the batch."""
        return self.batch * self.length


def cache_bytes(model: Architecture, run: Run, bits: int) -> int:
    """Return the bytes of the keys and values of all tokens, in numbers of ``bits`` bits."""
    if not model.cached:
        return 0
    near = min(run.length, model.window or run.length)
    kept = model.windowed_layers * near + (model.layers - model.windowed_layers) * run.length
    if model.encoder_layers:
        # Each layer of the decoder also keeps the keys and values of what the encoder said.
        kept += model.layers * run.length
    return run.batch * kept * (model.keys + model.values) * bits // 8


def inference_bytes(model: Architecture, run: Run, bits: int) -> int:
    """Return the most bytes of results that a forward without gradients holds at once, cache not counted."""
    hidden, inner = model.hidden, model.inner
    (wide, narrow), _ = _steps(model)
    if model.experts > 1:
        wide, narrow = _ROUTED[0] * model.experts, _ROUTED[1]
    network = wide * inner + narrow * hidden
    # Beside what comes in: queries in three forms while they are rotated, or with their keys and values.
    attention = 3 * hidden + 3 * model.queries + max(model.queries, model.keys + model.values)
    # A decoder beside an encoder may add to its scores, which copies them.
    scores = (2 if model.encoder_layers else 1) * model.vocabulary + 4 * hidden
    most = max(network, attention, scores) * bits / 8
    if run.eager or model.biased:
        # Biases of positions are there once for all sequences, and stay from layer to layer.
        each = (1 + 4 / run.batch) * bits / 8 if model.biased else 4 + _softmax(bits)
        most = max(most, attention * bits / 8 + model.heads * run.length * each)
    return int(run.tokens * most)


def training_bytes(model: Architecture, run: Run, bits: int, *, checkpointing: bool) -> int:
    """Return the bytes of results that are kept for the backward, at its beginning.

    ``checkpointing``: of every layer its input only, and one layer in full while it is computed again.
    """
    one = _kept(model, run, bits, crossed=bool(model.encoder_layers))
    other = _kept(model, run, bits, crossed=False) if model.encoder_layers else 0
    inputs = model.hidden * bits / 8
    # Of the scores over the vocabulary: logarithms, their gradient, and that of the scores themselves. Losses
    # of decoders are computed in 32 bits.
    scores = (12 if model.cached and not model.encoder_layers else 3 * bits / 8) * model.vocabulary
    # The layer whose backward begins also has the gradients of its attention.
    begun = model.heads * run.length * (12 if model.biased else 8 if run.eager else 0)
    if checkpointing:
        # What the scores took is free again when the first layer is computed a second time.
        kept = (model.layers + model.encoder_layers) * inputs + max(
            scores, max(one, other) + begun + 2 * inputs
        )
    else:
        kept = model.layers * one + model.encoder_layers * other + scores + begun
    return int(run.tokens * (kept + 4 * inputs))


def _kept(model: Architecture, run: Run, bits: int, *, crossed: bool) -> float:
    """Return the bytes that one layer keeps for one token; ``crossed``: it listens to an encoder too."""
    width = bits / 8
    # Normalisation by the root mean square works in 32 bits, and keeps its result before and after scaling.
    norm = model.hidden * (4 + 2 * width if model.rms else 2 * width)
    attention = (2 * model.queries + model.keys + model.values) * width + 4 * model.heads
    if model.normed_heads:
        attention += (model.queries + model.keys) * (4 + width)
    if run.eager:
        attention += model.heads * run.length * _softmax(bits)
    biased = 4 * model.heads * run.length if model.biased and not run.eager else 0
    _, multiple = _steps(model)
    network = multiple * model.inner * width
    if model.experts > 1:
        network = model.experts * (network + 2 * model.hidden * width)
    masks = 2 * model.hidden if model.dropout else 0
    norms, times = (3, 2) if crossed else (model.norms, 1)
    return norms * norm + times * attention + biased + network + masks


def _softmax(bits: int) -> float:
    """Return the bytes of one score after a softmax in 32 bits, and of its copy in ``bits`` bits."""
    return 4 if bits >= 32 else 4 + bits / 8


def _steps(model: Architecture) -> tuple[tuple[float, float], float]:
    return _GATED if model.gated else _STEPS.get(model.activation, _PLAIN)


__all__ = ["Run", "cache_bytes", "inference_bytes", "training_bytes"]
