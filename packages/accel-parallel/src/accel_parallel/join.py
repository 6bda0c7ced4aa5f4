"""Ranks with unequally many batches: one that has none left answers for itself until all are done."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.join import Join, Joinable, JoinHook
from torch.nn.parallel import DistributedDataParallel

from accel_core.errors import CapabilityError, PrepareError, StateError
from accel_core.protocols import Collectives

from .watch import ReductionWatch


class _Finish(JoinHook):
    """Learn whether this rank was among the last."""

    def __init__(self) -> None:
        self.was_last = False

    def post_hook(self, is_last_joiner: bool) -> None:
        self.was_last = is_last_joiner


class _Companion(Joinable):
    """Goes with a container, on its device and group, and carries a `_Finish`."""

    def __init__(self, container: DistributedDataParallel) -> None:
        super().__init__()
        self.finish = _Finish()
        self._container = container

    def join_hook(self, **kwargs: Any) -> JoinHook:
        return self.finish

    @property
    def join_device(self) -> torch.device:
        device: torch.device = self._container.join_device
        return device

    @property
    def join_process_group(self) -> Any:
        return self._container.join_process_group


def container_of(joinables: Sequence[Any]) -> DistributedDataParallel:
    """Return the one container among ``joinables``.

    Raises PrepareError for what torch cannot join, CapabilityError for what has not been shown to work.
    """
    for position, each in enumerate(joinables):
        if not isinstance(each, Joinable):
            raise PrepareError(
                f"A {type(each).__name__} cannot be joined: it does not answer for a rank without data",
                where=f"joinables[{position}]",
                fix="give the prepared model alone; optimizers are brought up to date in the end",
            )
    check_optimizers([each for each in joinables if not isinstance(each, nn.Module)])
    containers = [each for each in joinables if isinstance(each, DistributedDataParallel)]
    if len(containers) != 1:
        raise CapabilityError(
            f"Uneven inputs can be joined for one shared model at a time, not for {len(containers)}: torch"
            " repeats the communication of models one after the other, whatever their order in the step",
            where="joinables",
            fix="join one model; for several let all ranks have equally many batches (even_batches=True)",
        )
    return containers[0]


def check_optimizers(optimizers: Sequence[Any]) -> None:
    """Raise CapabilityError for an optimizer of which each rank has a part.

    torch lets a rank without data step, so that the others do not wait, but has no gradients there: its
    part of the parameters stays behind, and is sent to all (``ZeroRedundancyOptimizer``, torch 2.13).
    """
    for optimizer in optimizers:
        if isinstance(optimizer, Joinable):
            raise CapabilityError(
                f"Uneven inputs cannot be joined with a {type(optimizer).__name__}: a rank without data has"
                " no gradients for the part of the parameters that it updates for all",
                where="join_uneven_inputs",
                fix="use an optimizer that each rank has in whole, or let all ranks have equally many batches"
                " (even_batches=True)",
            )


def check_container(container: DistributedDataParallel, *, has_hook: bool) -> None:
    """Raise CapabilityError for settings under which a rank without data cannot answer for itself."""
    reasons = {
        "comm_hook: hooks divide by the number of all ranks, and those of PowerSGD keep state": has_hook,
        "static_graph=True: its first backward sends in another order": container.static_graph,
        "SyncBatchNorm: it waits for every rank inside of forward": any(
            isinstance(module, nn.SyncBatchNorm) for module in container.modules()
        ),
    }
    for reason, applies in reasons.items():
        if applies:
            name, why = reason.split(": ", 1)
            raise CapabilityError(
                f"Uneven inputs cannot be joined for a model with {name}: {why}",
                where=f"{type(container.module).__name__}",
                fix="leave it out, or let all ranks have equally many batches (even_batches=True)",
            )


@contextmanager
def joined(
    joinables: Sequence[Any],
    collectives: Collectives,
    watch: ReductionWatch | None,
    *,
    divide_by_initial_world_size: bool,
) -> Iterator[list[int]]:
    """Run torch's ``Join`` over ``joinables``; the list that it gives holds the last ranks in the end."""
    container = container_of(joinables)
    companion = _Companion(container)
    # torch's notice to the others goes out in the forward of the first one.
    parts = [container, *(each for each in joinables if each is not container), companion]
    last: list[int] = []
    join = Join(parts, divide_by_initial_world_size=divide_by_initial_world_size)
    hooks = _watch_forwards(container, watch)
    try:
        yield last
        with warnings.catch_warnings():
            # Join changes the filters of the process, and does not change them back.
            join.__exit__(None, None, None)
        _use_world_size(container)
        flags = collectives.all_gather_object(companion.finish.was_last)
        last.extend(rank for rank, was_last in enumerate(flags) if was_last)
    finally:
        for hook in hooks:
            hook.remove()
        # torch leaves its notices on, and a forward of rank 0 alone would wait for the others.
        Join(parts, enable=False)


def _use_world_size(container: Any) -> None:
    """Let the reducer divide by the number of all ranks again: it keeps the last count of a join."""
    work: Any = dist.all_reduce(
        torch.ones(1, device=container.device), group=container.process_group, async_op=True
    )
    work.wait()
    container.reducer._set_forward_pass_work_handle(work, True)


def _watch_forwards(container: DistributedDataParallel, watch: ReductionWatch | None) -> list[Any]:
    """Hold every forward to what a rank without data will repeat: one forward, then one backward.

    A forward without gradients is repeated without a backward.
    """
    if watch is not None:
        watch.armed = False
    before = container.require_backward_grad_sync

    def enter(*_: Any) -> None:
        nonlocal before
        before = container.require_backward_grad_sync
        if not torch.is_grad_enabled():
            container.require_backward_grad_sync = False
        elif watch is not None and watch.armed:
            raise StateError(
                "A second forward came before the backward of the first, inside of join_uneven_inputs: ranks"
                " without data answer for one forward and one backward at a time",
                where=f"unit {watch.name!r}",
                fix="put both inputs through one forward, and call backward for each before the next",
            )

    def leave(*_: Any) -> None:
        container.require_backward_grad_sync = before

    return [
        container.register_forward_pre_hook(enter, prepend=True),
        container.register_forward_hook(leave, always_call=True),
    ]


# -- what the last rank knows ------------------------------------------------------------------------


def copy_state(holders: Sequence[Any], collectives: Collectives, source: int) -> None:
    """Give every rank the ``state_dict`` of rank ``source`` for each of ``holders``. Collective.

    A rank that ran out of data took fewer steps: its momentum and its learning rate are of another time.
    """
    for holder in holders:
        tensors: list[torch.Tensor] = []
        plan = _strip(holder.state_dict(), tensors)
        plan, shapes = collectives.broadcast_object((plan, [_shape(each) for each in tensors]), source)
        if collectives.rank != source:
            tensors = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in shapes]
        received = [collectives.broadcast(each, source) for each in tensors]
        if collectives.rank != source:
            holder.load_state_dict(_fill(plan, received))


class _Hole(int):
    """Stands for the tensor of that number."""


def _shape(tensor: torch.Tensor) -> tuple[tuple[int, ...], torch.dtype, str]:
    # The type only: each rank has a device of its own.
    return tuple(tensor.shape), tensor.dtype, tensor.device.type


def _strip(value: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors.append(value.detach())
        return _Hole(len(tensors) - 1)
    if type(value) is dict:
        return {key: _strip(item, tensors) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_strip(item, tensors) for item in value)
    return value


def _fill(value: Any, tensors: Sequence[torch.Tensor]) -> Any:
    if isinstance(value, _Hole):
        return tensors[value]
    if type(value) is dict:
        return {key: _fill(item, tensors) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_fill(item, tensors) for item in value)
    return value


__all__ = ["check_container", "check_optimizers", "container_of", "copy_state", "joined"]
