"""What every implementation of `Strategy` must do, compared with plain PyTorch on the same global batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import pytest

from accel_core.protocols import Strategy, StrategyContext
from accel_core.testing.reference import cpu_context

from . import strategy_checks as checks
from .base import Conformance

if TYPE_CHECKING:
    from accel_core.testing.pool import WorkerPool

Factory = Callable[[StrategyContext], Strategy]
Context = Callable[[], StrategyContext]
Program = Callable[["checks.Bench"], None]


class StrategyConformance(Conformance):
    """Override ``factory``, which builds the strategy from a context; ``context`` where the CPU will not do.

    Both are called in workers of the pool, so cloudpickle must be able to send them. ``tolerance`` is
    relative to the largest value compared: in fp64 what reordered sums differ by.
    """

    worlds: ClassVar[tuple[int, ...]] = (1, 2)
    tolerance: ClassVar[float] = 1e-12

    @pytest.fixture
    def factory(self) -> Factory:
        """Return what builds the strategy."""
        raise NotImplementedError

    @pytest.fixture
    def context(self) -> Context:
        """Return what builds the context: by default CPU, gloo over all ranks, full precision."""
        return cpu_context

    @pytest.fixture
    def on_ranks(
        self, pool: WorkerPool, world: int, factory: Factory, context: Context
    ) -> Callable[[Program], None]:
        """Run a check on every rank."""

        def run(program: Program) -> None:
            pool.run(world, checks.run_check, program, factory, context, self.tolerance)

        return run

    def test_it_is_a_strategy(self, on_ranks: Callable[[Program], None]) -> None:
        """Name, parts and batch ranks are there."""
        on_ranks(checks.check_parts)

    def test_wrap_keeps_the_unit(self, on_ranks: Callable[[Program], None]) -> None:
        """Name, and number and order of optimizers and schedulers, survive wrapping."""
        on_ranks(checks.check_wrap)

    def test_unwrap_gives_the_users_model(self, on_ranks: Callable[[Program], None]) -> None:
        """Unwrapping undoes wrapping, and leaves other models as they are."""
        on_ranks(checks.check_unwrap)

    def test_loss_and_gradients_equal_plain_torch(self, on_ranks: Callable[[Program], None]) -> None:
        """Three steps: each rank's part of the batch gives the gradient of the whole batch."""
        on_ranks(checks.check_parity)

    def test_ranks_start_from_the_same_weights(self, on_ranks: Callable[[Program], None]) -> None:
        """Rank 0's weights and buffers win when ranks made different ones."""
        on_ranks(checks.check_same_start)

    def test_no_sync_then_sync_equals_one_big_batch(self, on_ranks: Callable[[Program], None]) -> None:
        """Accumulated micro-batches give the gradient of the big batch, window after window."""
        on_ranks(checks.check_accumulation)

    @pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")], ids=["one", "two", "inf"])
    @pytest.mark.parametrize("max_norm", [0.01, 1e6], ids=["clips", "leaves"])
    def test_clip_norm(self, on_ranks: Callable[[Program], None], norm_type: float, max_norm: float) -> None:
        """Clipping and the norm returned are those of torch on the full gradient."""
        on_ranks(checks.ClipNorm(max_norm, norm_type))

    def test_clip_value(self, on_ranks: Callable[[Program], None]) -> None:
        """Clamping is that of torch on the full gradient."""
        on_ranks(checks.check_clip_value)

    def test_scale(self, on_ranks: Callable[[Program], None]) -> None:
        """Gradients are multiplied; parameters without one are skipped."""
        on_ranks(checks.check_scale)

    def test_full_state_round_trip(self, on_ranks: Callable[[Program], None]) -> None:
        """The full state has the plain model's names and values, and loads into another model."""
        on_ranks(checks.check_full)

    @pytest.mark.parametrize("fault", ["missing", "unexpected", "mismatched"])
    def test_strict_load_names_what_is_wrong(self, on_ranks: Callable[[Program], None], fault: str) -> None:
        """Strict raises CheckpointError with the name; not strict reports it and loads the rest."""
        on_ranks(checks.WrongState(fault))

    def test_save_and_load_resume_exactly(self, on_ranks: Callable[[Program], None]) -> None:
        """Model and optimizer saved and loaded into a fresh unit take the same next step, bit by bit."""
        on_ranks(checks.check_save_load)

    def test_load_of_nothing_is_an_error(self, on_ranks: Callable[[Program], None]) -> None:
        """An empty checkpoint is refused."""
        on_ranks(checks.check_load_nothing)

    def test_evaluation_unit(self, on_ranks: Callable[[Program], None]) -> None:
        """A model without optimizer, and one without trainable parameters, wrap and compute."""
        on_ranks(checks.check_evaluation)

    def test_inputs_without_buffers_do_nothing(self, on_ranks: Callable[[Program], None]) -> None:
        """The context may be used where sequences are whole."""
        on_ranks(checks.check_inputs)


__all__ = ["StrategyConformance"]
