"""Weighted backward passes: many sums of losses become the gradient of one weighted mean.

A mean of means is not the mean when micro-batches or ranks hold unequally many tokens. With weights,
each backward adds up the gradient of a *sum*; weights are added up over the window and over the ranks
that read different data; one factor at the end of the window makes the sum the mean over all of them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from accel_core.errors import CollectiveError, DataError, StateError, UnknownNameError

if TYPE_CHECKING:
    from accel_core.protocols import Collectives
    from accel_core.window import GradientWindow

_KINDS = ("a whole number", "a fraction")


class _Brought(NamedTuple):
    """What one rank brought: its weights, and the index of their kind."""

    weight: float
    kind: int


class Weighting:
    """The weights of one accelerator's windows.

    ``window``: which micro-batch is computed. ``batches``: the ranks that read different data; after a
    synchronised backward, gradients are the mean over them.
    """

    __slots__ = ("_batches", "_factor", "_kind", "_latest", "_pending", "_reference", "_sum", "_window")

    def __init__(self, window: GradientWindow, batches: Collectives) -> None:
        self._window = window
        self._batches = batches
        self._sum = 0.0
        self._latest = 0.0
        self._kind = 0
        self._pending = 1.0
        self._factor: float | None = None
        """What a sum is multiplied by once the total is known."""
        self._reference: float | None = None
        """Sums are divided by it first, to be about as large as means: half precision overflows."""

    def term(self, loss: torch.Tensor, weight: Any, reduction: str) -> torch.Tensor:
        """Return what to compute gradients of; the weight is counted.

        Raises TypeError or DataError for a ``weight`` that is none, UnknownNameError for the
        ``reduction``, StateError for a second weight in one micro-batch, DataError when the weights of
        all ranks are zero, and CollectiveError when ranks disagree.
        """
        value, kind = self._checked(weight, reduction)
        self._count(value, kind)
        factor = self._next_factor(value)
        if reduction == "mean":
            factor *= value
        return loss if factor == 1.0 else loss * factor

    def _next_factor(self, value: float) -> float:
        """Return by what the sum of this backward is multiplied."""
        window, reference = self._window, self._reference
        if self._factor is not None:
            return self._factor
        if window.sync_gradients:
            # Before gradients are computed: a rank that stops here must not leave others in a reduction.
            factor = self._total()
            if window.position <= 1 or reference is None:
                return factor
            # The gradients of earlier micro-batches are multiplied with those to come, in one pass.
            self._pending = factor * reference
            return 1.0 / reference
        if reference is None:
            brought = self._exchange(value)
            reference = self._reference = _power_of_two(sum(each.weight for each in brought) / len(brought))
        window.unsettled = True
        return 1.0 / reference

    def settle(self) -> float:
        """Return what gradients are to be multiplied by now; 1.0 unless this backward closed the window."""
        factor, self._pending = self._pending, 1.0
        return factor

    def progress(self) -> dict[str, float | int | None]:
        """Return what this rank has counted of an open window, as JSON."""
        return {
            "sum": self._sum,
            "latest": self._latest,
            "kind": self._kind,
            "factor": self._factor,
            "reference": self._reference,
        }

    def go_on(self, progress: Mapping[str, Any]) -> None:
        """Stand where ``progress`` was told."""
        self._sum, self._latest, self._kind = progress["sum"], progress["latest"], progress["kind"]
        self._factor, self._reference = progress["factor"], progress["reference"]
        self._pending = 1.0

    # -- one rank --------------------------------------------------------------------------------

    def _checked(self, weight: Any, reduction: str) -> tuple[float, int]:
        if reduction not in {"sum", "mean"}:
            raise UnknownNameError("reduction", str(reduction), ("mean", "sum"))
        window = self._window
        if window.alone or window.uneven:
            raise StateError(
                "backward(weight=...) needs ranks that step together, and these do not",
                where="inside of LocalSGD" if window.alone else "inside of join_uneven_inputs",
                fix="leave weight out and give the mean of the loss, or let all ranks have equally many"
                " batches (even_batches=True)",
            )
        if window.position and not window.inside:
            raise StateError(
                "backward(weight=...) was called outside of accumulate() while a window is open",
                where=f"after micro-batch {window.position} of {window.num_steps}",
                fix="call it inside of: with accelerator.accumulate(model)",
            )
        try:
            value, kind = _number(weight)
            if value == 0 and reduction == "mean":
                raise DataError(
                    "backward() got the mean of a loss over nothing: its weight is 0",
                    where=self._where(),
                    fix="give the sum of the loss, which is 0 over nothing: backward(loss_sum, weight=0)",
                )
        except (TypeError, DataError):
            if window.sync_gradients and self._batches.world_size > 1:
                # The others wait for this rank's word; so they learn who stopped.
                with suppress(CollectiveError):
                    self._batches.vote(_encode(math.nan, 0))
            raise
        return value, kind

    def _count(self, value: float, kind: int) -> None:
        window = self._window
        again = window.inside and window.backwards > 1
        if again:
            if value != self._latest:
                raise StateError(
                    f"One micro-batch was given two weights, {self._latest:g} and {value:g}: its samples are"
                    " counted once",
                    where=self._where(),
                    fix="give each loss of a micro-batch the same weight, or add the losses and call"
                    " backward once",
                )
            return
        if window.position <= 1:
            self._sum, self._factor, self._pending = 0.0, None, 1.0
        self._sum += value
        self._latest, self._kind = value, kind

    def _where(self) -> str:
        window = self._window
        place = f"micro-batch {max(1, window.position)} of {window.num_steps}"
        return f"rank {self._batches.rank}, {place}"

    # -- between the ranks -----------------------------------------------------------------------

    def _exchange(self, value: float) -> list[_Brought]:
        """Return what each rank brought, the own ``value`` among it."""
        if self._batches.world_size == 1:
            return [_Brought(value, self._kind)]
        try:
            brought = [_decode(each) for each in self._batches.vote(_encode(value, self._kind))()]
        except CollectiveError as error:
            raise CollectiveError(
                f"The ranks could not add up the weights of a window: {error.what}",
                where=error.where,
                fix="call backward with weight= on every rank for every micro-batch, or on none; on a rank"
                " without samples backward(0 * loss, weight=0)",
            ) from error
        self._compare(brought)
        return brought

    def _compare(self, brought: Sequence[_Brought]) -> None:
        bad = [rank for rank, each in enumerate(brought) if math.isnan(each.weight)]
        if bad:
            raise CollectiveError(
                f"rank {', '.join(map(str, bad))} gave backward() a weight that is no count",
                per_rank=brought,
                where=self._where(),
                fix="see the error of that rank",
            )
        # Nothing at all has no kind.
        kinds = {each.kind for each in brought if each.weight != 0}
        if len(kinds) > 1:
            table = ", ".join(f"rank {rank}: {_KINDS[each.kind]}" for rank, each in enumerate(brought))
            raise CollectiveError(
                f"The ranks give backward() weights of different types ({table})",
                per_rank=brought,
                where=self._where(),
                fix="count the same thing on every rank: for example int(mask.sum())",
            )

    def _total(self) -> float:
        """Note the total of the window, and return by what a sum becomes this rank's part of the mean."""
        brought = self._exchange(self._sum)
        window, ranks = self._window, len(brought)
        total = math.fsum(each.weight for each in brought)
        window.unsettled = False
        if total == 0:
            raise DataError(
                "The weights of a window add up to 0: its gradient is the mean over nothing",
                where=f"all {ranks} rank(s), {max(1, window.position)} micro-batch(es)",
                fix="leave out windows without samples, on every rank alike",
            )
        window.weight = total
        window.weighings += 1
        self._reference = _power_of_two(total / (ranks * max(1, window.position)))
        # Synchronised gradients are the mean over the ranks, not the sum.
        self._factor = ranks / total
        return self._factor


def _number(weight: Any) -> tuple[float, int]:
    """Return ``weight`` as a number, and the index of its kind. A tensor on a device is waited for."""
    if type(weight) is int and weight >= 0:  # by far the most frequent
        return float(weight), 0
    if isinstance(weight, torch.Tensor):
        if weight.numel() != 1:
            raise TypeError(
                f"backward() takes one weight for the whole loss, not a tensor of shape {tuple(weight.shape)}"
            )
        weight = weight.item()
    if isinstance(weight, bool) or not isinstance(weight, Real):
        raise TypeError(f"backward() takes a number as weight, not {type(weight).__name__}")
    value = float(weight)
    if not (math.isfinite(value) and value >= 0):
        raise DataError(
            f"backward() got weight={weight!r}: a weight counts samples or tokens",
            where="backward(loss, weight=...)",
            fix="give a finite number of at least 0, for example int(mask.sum())",
        )
    return value, 0 if isinstance(weight, Integral) else 1


def _encode(value: float, kind: int) -> int:
    """Return a float64 as an integer whose last two bits are ``kind``: 51 bits of the number remain."""
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return (bits & ~3) | kind


def _decode(ballot: int) -> _Brought:
    weight: float = struct.unpack("<d", struct.pack("<q", ballot & ~3))[0]
    return _Brought(weight, ballot & 3)


def _power_of_two(value: float) -> float:
    """Return the power of two nearest below ``value``; dividing by it rounds nothing."""
    return math.ldexp(1.0, math.frexp(value)[1] - 1) if value > 0 else 1.0


__all__ = ["Weighting"]
