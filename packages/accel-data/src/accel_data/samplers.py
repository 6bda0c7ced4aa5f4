"""The samplers of a loader, and a random one whose order follows from a seed and an epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler

from .order import Order, Reading, epoch_seed, fresh_seed, random_order


class SeedableRandomSampler(RandomSampler):
    """Shuffle in an order that depends on the seed and the epoch, and on nothing else.

    The order of epoch ``e`` is ``torch.randperm(n, generator=g)`` with ``g`` seeded by
    ``accel_data.epoch_seed(seed, e)`` (``replacement`` and ``num_samples`` as in
    ``torch.utils.data.RandomSampler``, drawn from the same ``g``). It is the same for every number of
    processes, and iterating twice without ``set_epoch`` gives the same order twice.

    ``data_seed``: the seed; None takes ``generator.initial_seed()``, or without a generator one draw from
    torch's global generator.
    """

    def __init__(
        self,
        data_source: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
        data_seed: int | None = None,
    ) -> None:
        super().__init__(data_source, replacement=replacement, num_samples=num_samples, generator=generator)
        if data_seed is None:
            data_seed = fresh_seed() if generator is None else generator.initial_seed()
        self.seed = int(data_seed)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is read next."""
        self.epoch = epoch

    def order(self) -> Order:
        """Return all indices of the chosen epoch."""
        generator = torch.Generator()
        generator.manual_seed(epoch_seed(self.seed, self.epoch))
        return random_order(
            len(self.data_source), self.num_samples, replacement=self.replacement, generator=generator
        )

    def accel_reading(self) -> Reading:
        """Tell sharded batch samplers how to read this order by slices."""
        return Reading(lambda: self.num_samples, self.order)

    def __iter__(self) -> Iterator[int]:
        order: Any = self.order()
        return iter(order)


def samplers_of(loader: DataLoader[Any]) -> list[Any]:
    """Return every sampler and batch sampler of ``loader``, each once, outermost first."""
    found: list[Any] = []
    pending = [loader.batch_sampler, loader.sampler]
    while pending:
        sampler = pending.pop(0)
        if sampler is not None and not any(sampler is other for other in found):
            found.append(sampler)
            pending += [getattr(sampler, "batch_sampler", None), getattr(sampler, "sampler", None)]
    return found


__all__ = ["SeedableRandomSampler", "samplers_of"]
