"""The part of ``Accelerator`` for ranks that do not have equally much to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

from torch import nn

from accel_core.errors import CapabilityError, CollectiveError, ConfigError, Fault, StateError
from accel_core.logging import get_logger
from accel_core.protocols import JoinsUneven, SyncsLate

if TYPE_CHECKING:
    from accel_core.protocols import Scaler, Strategy
    from accel_core.window import GradientWindow

    from .preparation import Registry

logger = get_logger(__name__)

_COLLECTIVE = (
    "gather",
    "gather_for_metrics",
    "reduce",
    "pad_across_processes",
    "wait_for_everyone",
    "main_process_first",
    "local_main_process_first",
    "check_trigger",
)


class UnevenAPI:
    """Join ranks whose inputs end at different times, and synchronise out of turn."""

    _strategy: Strategy
    _registry: Registry
    _window: GradientWindow
    scaler: Scaler | None

    def trigger_sync_in_backward(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which ``backward`` synchronises what forwards under ``no_sync`` left local.

        >>> with accelerator.no_sync(model):
        ...     first, second = criterion(model(a), x), criterion(model(b), y)
        >>> accelerator.backward(first)  # added up on this rank
        >>> with accelerator.trigger_sync_in_backward(model):
        ...     accelerator.backward(second)  # the sum of both is averaged over the ranks

        Nothing changes on one process. Raises CapabilityError where it cannot be done, StateError when no
        `backward` came.
        """
        strategy = self._strategy
        if strategy.batches.world_size == 1:
            return nullcontext()
        if not isinstance(strategy, SyncsLate):
            raise CapabilityError(
                f"The strategy {strategy.name!r} cannot synchronise after a forward that did not",
                where="trigger_sync_in_backward",
                fix="run the last forward outside of no_sync",
            )
        return strategy.sync_next(model)

    @contextmanager
    def join_uneven_inputs(
        self,
        joinables: Sequence[Any],
        even_batches: bool | None = None,
        *,
        divide_by_initial_world_size: bool = False,
    ) -> Iterator[None]:
        """Train one epoch on unequally many batches per rank; those who are done wait for the others.

        ``joinables``: the prepared model, in a list. Optimizers that are divided between the ranks are
        refused: in torch a rank without data has no gradients for its part, and leaves it behind.
        ``even_batches`` overrides that of prepared map-style loaders while it lasts. Gradients are the mean
        over the ranks that have a batch; ``divide_by_initial_world_size``, ours, divides by all ranks
        instead, as torch does by default. In the end every rank has the model, and the state of optimizers,
        schedulers and loss scale, of a rank that had the most batches. Every micro-batch is synchronised.

        On one process only ``even_batches`` is regarded. Raises CapabilityError or PrepareError for what
        cannot be joined, StateError for an open window, CollectiveError for a gather or barrier inside:
        a rank that is done would never answer.
        """
        with ExitStack() as stack:
            self._override(even_batches, stack)
            if self._strategy.batches.world_size == 1:
                yield
                return
            strategy = self._joining()
            window = self._window
            stack.callback(setattr, window, "sync_each_batch", window.sync_each_batch)
            window.sync_each_batch = window.uneven = True
            stack.callback(self._unseal)
            with strategy.join(
                joinables, divide_by_initial_world_size=divide_by_initial_world_size
            ) as longest:
                models = [each for each in joinables if isinstance(each, nn.Module)]
                hook = models[0].register_forward_pre_hook(lambda *_: self._seal())
                stack.callback(hook.remove)
                yield
        if self._window.position:
            raise StateError(
                "join_uneven_inputs ended inside of an accumulation window: its gradients are this rank's",
                where=f"after micro-batch {self._window.position} of {self._window.num_steps}",
                fix="let the loops inside run to their end",
            )
        if len(longest) < self._strategy.batches.world_size:
            self._catch_up(max(longest))

    def _joining(self) -> JoinsUneven:
        """Return the strategy as one that joins; raise for what does not go together with that."""
        strategy, window = self._strategy, self._window
        if not isinstance(strategy, JoinsUneven):
            raise CapabilityError(
                f"The strategy {strategy.name!r} cannot go on without a rank that has run out of data",
                where="join_uneven_inputs",
                fix="let all ranks have equally many batches (even_batches=True)",
            )
        if window.position:
            raise StateError(
                "join_uneven_inputs was entered inside of an accumulation window",
                where=f"after micro-batch {window.position} of {window.num_steps}",
                fix="enter it before the loop",
            )
        if window.num_steps > 1 and not window.sync_with_dataloader:
            reason = "windows that go on from loop to loop would be of different lengths on different ranks"
            fault = Fault("sync_with_dataloader", False, reason, "leave it at True")
            raise ConfigError("join_uneven_inputs", [fault])
        if window.tally is not None:
            raise CapabilityError(
                "Schedules counted in samples or tokens cannot be moved where ranks have different numbers of"
                " batches",
                where="join_uneven_inputs, prepare(scheduler, schedule_in=...)",
                fix="count in updates, or let all ranks have equally many batches (even_batches=True)",
            )
        from accel_parallel.join import check_optimizers

        check_optimizers([each.optimizer for each in self._registry.optimizers])
        return strategy

    def _override(self, even_batches: bool | None, stack: ExitStack) -> None:
        """Set ``even_batches`` of every loader that has it; tell of the others."""
        if even_batches is None:
            return
        given: object = even_batches
        if not isinstance(given, bool):
            fault = Fault("even_batches", given, "must be True, False or None")
            raise ConfigError("join_uneven_inputs", [fault])
        if self._strategy.batches.world_size == 1:
            return
        loaders = self._registry.loaders
        from accel_data.evenness import can_be_uneven, set_even_batches

        for loader in filter(can_be_uneven, loaders):
            stack.callback(set_even_batches, loader, set_even_batches(loader, even_batches))
        if not all(map(can_be_uneven, loaders)):
            logger.warning(
                "even_batches=%s has no effect on loaders of iterable datasets, dispatched loaders and those"
                " that were sharded before; set it in DataLoaderConfiguration",
                even_batches,
            )

    def _seal(self) -> None:
        """Refuse what all ranks take part in: from the first step on they stand at different ones."""
        if self._window.sealed:
            return
        self._window.sealed = True
        for name in _COLLECTIVE:
            setattr(self, name, _refusal(name))

    def _unseal(self) -> None:
        self._window.uneven = self._window.sealed = False
        for name in _COLLECTIVE:
            self.__dict__.pop(name, None)

    def _catch_up(self, source: int) -> None:
        """Give every rank what rank ``source`` knows beside the model."""
        from accel_parallel.join import copy_state

        registry = self._registry
        scaler = [] if self.scaler is None else [self.scaler]
        copy_state([*registry.optimizers, *registry.schedulers, *scaler], self._strategy.batches, source)


def _refusal(name: str) -> Any:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise CollectiveError(
            f"{name} was called inside of join_uneven_inputs: a rank without data would never answer",
            where=f"accelerator.{name}",
            fix="call it after the context; for metrics keep values in a list until then",
        )

    return refuse


__all__ = ["UnevenAPI"]
