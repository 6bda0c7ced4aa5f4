"""The order of one epoch as something that can be sliced, so that a rank reads only its own indices."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

Order = range | Sequence[Any]
"""Indices in the order in which the whole world reads them; ``len`` and slices cost what they return."""


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the generator seed of one epoch: the first 8 bytes of BLAKE2b over ``"<seed>,<epoch>"``.

    Little-endian and unsigned. A hash and not a sum, so that epoch 1 of seed 0 is not epoch 0 of seed 1.
    """
    return int.from_bytes(blake2b(f"{seed},{epoch}".encode(), digest_size=8).digest(), "little")


def fresh_seed() -> int:
    """Return a seed drawn from torch's global generator, which moves on by one draw."""
    return int(torch.empty((), dtype=torch.int64).random_().item())


def _buffer(length: int) -> tuple[array[int], torch.Tensor]:
    """Return an array and a tensor over the same memory: torch fills it, Python slices it."""
    # An array slice with tolist() costs about a third of a tensor slice with tolist().
    indices = array("q", bytes(8 * length))
    tensor = torch.frombuffer(indices, dtype=torch.int64) if length else torch.empty(0, dtype=torch.int64)
    return indices, tensor


def random_order(
    population: int, count: int, *, replacement: bool, generator: torch.Generator | None
) -> array[int]:
    """Return ``count`` indices below ``population``, drawn as ``torch.utils.data.RandomSampler`` draws them.

    Without replacement: whole permutations one after another, the last one cut.
    """
    indices, tensor = _buffer(count)
    if replacement:
        torch.randint(population, (count,), generator=generator, out=tensor)
        return indices
    for start in range(0, count - population + 1, population):
        torch.randperm(population, generator=generator, out=tensor[start : start + population])
    rest = count % population if population else 0
    if rest:
        tensor[count - rest :] = torch.randperm(population, generator=generator)[:rest]
    return indices


class Reading:
    """How the indices of a sampler can be had by slices: their number, and the order of the next epoch."""

    __slots__ = ("draw", "finish", "length")

    def __init__(
        self,
        length: Callable[[], int],
        draw: Callable[[], Order],
        finish: Callable[[], None] | None = None,
    ) -> None:
        self.length = length
        self.draw = draw
        self.finish = finish
        """What walking the sampler to its end would still do, for example draw once more."""


def _torch_random(sampler: RandomSampler) -> Reading:
    def population() -> int:
        return len(sampler.data_source)

    def draw() -> Order:
        generator = sampler.generator
        if generator is None:
            generator = torch.Generator()
            generator.manual_seed(fresh_seed())
        return random_order(
            population(), sampler.num_samples, replacement=sampler.replacement, generator=generator
        )

    def finish() -> None:
        # RandomSampler draws a last permutation even when it needs no index of it. The user's generator
        # must stand where plain torch leaves it, or the second epoch differs.
        if (
            sampler.generator is not None
            and not sampler.replacement
            and not sampler.num_samples % population()
        ):
            torch.randperm(population(), generator=sampler.generator)

    return Reading(lambda: sampler.num_samples, draw, finish)


def reading_of(sampler: object) -> Reading | None:
    """Return how to read ``sampler`` by slices, or None when only walking it tells its indices.

    Exact classes only: a subclass may iterate in another way.
    """
    if isinstance(sampler, (list, tuple, range)):
        return Reading(lambda: len(sampler), lambda: sampler)
    if type(sampler) is SequentialSampler:
        source = sampler.data_source
        return Reading(lambda: len(source), lambda: range(len(source)))
    if type(sampler) is RandomSampler:
        return _torch_random(sampler)
    if type(sampler) is DistributedSampler:
        return Reading(lambda: len(sampler), lambda: list(sampler))
    own = getattr(sampler, "accel_reading", None)
    return own() if own is not None else None


def own_rounds(order: array[int], base: int, stop: int, stride: int, first: int, size: int) -> array[int]:
    """Return ``order[at + first : at + first + size]`` for ``at`` in ``range(base, stop, stride)``, joined.

    So that a rank keeps its own indices only, side by side in memory.
    """
    indices, tensor = _buffer((stop - base) // stride * size)
    if indices:
        rounds = torch.frombuffer(order, dtype=torch.int64)[base:stop].view(-1, stride)
        tensor.view(-1, size).copy_(rounds[:, first : first + size])
    return indices


def local_slices(order: Order, first: int, stop: int, stride: int, size: int) -> Iterator[list[Any]]:
    """Yield ``order[at : at + size]`` as lists for ``at`` in ``range(first, stop, stride)``."""
    # Three loops instead of a test per batch.
    if isinstance(order, array):
        return (order[at : at + size].tolist() for at in range(first, stop, stride))
    if isinstance(order, list):
        return (order[at : at + size] for at in range(first, stop, stride))
    return (list(order[at : at + size]) for at in range(first, stop, stride))


__all__ = ["Order", "Reading", "epoch_seed", "fresh_seed", "local_slices", "random_order", "reading_of"]
