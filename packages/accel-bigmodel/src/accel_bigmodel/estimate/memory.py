"""The estimate: what loading, running and training a model takes, for each type of number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from accel_core.errors import UnknownNameError

from .activations import cache_bytes, inference_bytes, training_bytes
from .architecture import Architecture, architecture
from .bits import WANTED
from .blocks import layers
from .optimizers import STATES, state_bytes
from .options import EstimateOptions
from .packed import Weight, packed_bits, quantizer, weights
from .shapes import ModelHeaders

_MOST_NAMES = 3


@dataclass(frozen=True, slots=True)
class Loading:
    """Bytes of a model in one type: its largest layer, all of it, and the documented figure for training.

    ``training`` is None for types that have no gradients.
    """

    dtype: str
    largest_layer: int
    total: int
    training: int | None


@dataclass(frozen=True, slots=True)
class Inference:
    """Bytes on one device while a batch is computed without gradients."""

    dtype: str
    weights: int
    gathered: int
    cache: int
    activations: int

    @property
    def peak(self) -> int:
        """Return the sum."""
        return self.weights + self.gathered + self.cache + self.activations


@dataclass(frozen=True, slots=True)
class Training:
    """Bytes on one device when the backward of a batch begins, from the second step on."""

    dtype: str
    weights: int
    gathered: int
    gradients: int
    master: int
    optimizer: int
    activations: int

    @property
    def peak(self) -> int:
        """Return the sum."""
        states = self.gradients + self.master + self.optimizer
        return self.weights + self.gathered + states + self.activations


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """What a model takes; sizes in bytes. ``largest_layers``: the names of those that are the largest."""

    source: str
    parameters: int
    stored: Mapping[str, int]
    largest_layers: tuple[str, ...]
    loading: tuple[Loading, ...]
    inference: tuple[Inference, ...]
    training: tuple[Training, ...]
    options: EstimateOptions
    notes: tuple[str, ...]


def estimate_memory(
    headers: ModelHeaders,
    dtypes: Sequence[str] | None = None,
    options: EstimateOptions | None = None,
    *,
    library_name: str | None = None,
) -> MemoryEstimate:
    """Return what the model behind ``headers`` takes in each of ``dtypes`` (default: all known).

    ``library_name``: the library that has the model's class, where the repository does not say; models of
    timm are cut into single modules, others into blocks.

    Raises UnknownNameError for a dtype or an optimizer, ConfigError for options that a configuration does not
    have the numbers for.
    """
    options = options or EstimateOptions()
    chosen = list(dict.fromkeys(dtypes or WANTED))
    for dtype in chosen:
        if dtype not in WANTED:
            raise UnknownNameError("dtype", dtype, WANTED)
    model = _Model(headers, options, library_name)
    stored: Counter[str] = Counter()
    for tensor in headers.tensors.values():
        stored[tensor.code] += tensor.bytes
    return MemoryEstimate(
        source=headers.source,
        parameters=model.gradients.elements,
        stored=dict(stored.most_common()),
        largest_layers=model.largest(32)[1],
        loading=tuple(map(model.loading, chosen)),
        inference=tuple(map(model.inference, chosen)) if model.run else (),
        training=tuple(map(model.training, filter(model.trains, chosen))) if options.detailed else (),
        options=options,
        notes=(*headers.notes, *model.notes()),
    )


class _Model:
    def __init__(self, headers: ModelHeaders, options: EstimateOptions, library: str | None) -> None:
        named = weights(headers)
        self.headers = headers
        self.trained = [weight for weight in named.values() if weight.trained]
        self.all = _Sum(named.values())
        self.gradients = _Sum(self.trained)
        self.options = options
        self.run = options.run
        self.optimizer = options.optimizer or "adam"
        if self.optimizer not in STATES:
            raise UnknownNameError("optimizer", self.optimizer, STATES)
        # Its classes do not say what must stay together, and its repositories have "architecture".
        single = (library or headers.library or _library(headers)) == "timm"
        self.layers = {name: _Sum(inside) for name, inside in layers(named, blocks=not single).items()}
        self.shape: Architecture | None = None
        if self.run is not None:
            self.shape = architecture(headers.config, headers.tensors)

    def largest(self, bits: int) -> tuple[int, tuple[str, ...]]:
        sizes = {name: inside.bytes(bits) for name, inside in self.layers.items()}
        most = max(sizes.values(), default=0)
        return most, tuple(name for name, size in sizes.items() if size == most)

    def loading(self, dtype: str) -> Loading:
        bits = WANTED[dtype]
        total = self.all.bytes(bits)
        training: int | None
        if bits < 16:
            training = None
        elif self.optimizer.startswith("adam") and "8" not in self.optimizer:
            # As documented: weights, gradients and two states of Adam, all in this type.
            training = 4 * total
        else:
            states = state_bytes(self.optimizer, self.trained, bits)
            training = total + self.gradients.bytes(bits) + states
        return Loading(dtype, self.largest(bits)[0], total, training)

    def inference(self, dtype: str) -> Inference:
        assert self.run is not None
        assert self.shape is not None
        bits = WANTED[dtype]
        return Inference(
            dtype,
            self._cut(self.all.bytes(bits), 3),
            self._gathered(bits, 2),
            # What computes is 16 bits at least, whatever the weights are stored in.
            cache_bytes(self.shape, self.run, max(bits, 16)),
            inference_bytes(self.shape, self.run, max(bits, 16)),
        )

    def trains(self, dtype: str) -> bool:
        """Tell whether weights of this type can be trained: narrow ones only beside their master copy."""
        return WANTED[dtype] >= 16 or (dtype == "fp8" and self.options.master_weights)

    def training(self, dtype: str) -> Training:
        bits = WANTED[dtype]
        computed = max(bits, 16)
        master = self.options.master_weights and bits < 32
        activations = 0
        if self.run is not None and self.shape is not None:
            checkpointing = self.options.gradient_checkpointing
            activations = training_bytes(self.shape, self.run, computed, checkpointing=checkpointing)
        return Training(
            dtype,
            self._cut(self.all.bytes(bits), 3),
            # The layer that computes, the next one, and gradients on their way to where they belong.
            self._gathered(bits, 2) + self._gathered(computed, 1),
            self._cut(self.gradients.bytes(computed), 2),
            self._cut(self.gradients.bytes(32), 1) if master else 0,
            self._cut(state_bytes(self.optimizer, self.trained, 32 if master else bits), 1),
            activations,
        )

    def _cut(self, count: int, stage: int) -> int:
        return -(-count // self.options.shards) if self.options.stage >= stage else count

    def _gathered(self, bits: int, most: int) -> int:
        """Return the bytes of whole layers that are there beside the shards."""
        if self.options.stage < 3 or self.options.shards == 1:
            return 0
        return min(most * self.largest(bits)[0], self.all.bytes(bits))

    def notes(self) -> list[str]:
        found = []
        if packed_bits(self.headers.config) is not None:
            how = quantizer(self.headers.config)
            found.append(f"The files were quantized by {how}; the rows are for its weights in other types.")
        limit = self.shape.positions if self.shape is not None else None
        if self.run is not None and limit and self.run.length > limit:
            found.append(f"Its configuration says that sequences have {limit:,} tokens at most.")
        if len(self.headers.aliases) > 0:
            names = ", ".join(list(self.headers.aliases)[:_MOST_NAMES])
            found.append(f"Tied weights are counted once: {names}.")
        return found


class _Sum:
    """Weights together: the bytes of those that keep their type, and the numbers of the others."""

    def __init__(self, those: Iterable[Weight]) -> None:
        self.fixed = self.elements = 0
        for weight in those:
            if weight.fixed is None:
                self.elements += weight.elements
            else:
                self.fixed += weight.fixed

    def bytes(self, bits: int) -> int:
        return self.fixed + -(-self.elements * bits // 8)


def _library(headers: ModelHeaders) -> str:
    config = headers.config
    return "timm" if "architecture" in config and "architectures" not in config else ""


__all__ = ["Inference", "Loading", "MemoryEstimate", "Training", "estimate_memory"]
