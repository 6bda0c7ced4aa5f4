"""Move a learning rate schedule many steps at once, to where as many single steps would take it.

A schedule that is written in samples or tokens moves thousands of steps per update. torch's ``step(epoch)``
is no way to do that: it is deprecated, not every schedule has it, and it forgets what was done to the
learning rate outside of the schedule.

A class is moved by what it is known to compute, and known by its methods: a subclass that overrides
``get_lr`` or ``step`` is another schedule, and takes its steps one by one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import lr_scheduler as torch_schedules
from torch.optim.lr_scheduler import LRScheduler

Mover = Callable[[Any, int], None]


def advance(scheduler: LRScheduler, steps: int) -> None:
    """Take ``steps`` steps; rates are those of single steps up to rounding, the state too."""
    move = mover(scheduler)
    if move is None or steps < 2:
        single(scheduler, steps)
    else:
        move(scheduler, steps)


def mover(scheduler: LRScheduler) -> Mover | None:
    """Return what moves ``scheduler`` many steps at the cost of few, or None when nothing does."""
    kind = type(scheduler)
    for known, move in _MOVERS.items():
        if isinstance(scheduler, known) and all(
            getattr(kind, name, None) is getattr(known, name, None)
            for name in ("step", "get_lr", "_get_closed_form_lr")
        ):
            parts = getattr(scheduler, "_schedulers", ())
            return move if all(_can_be_part(scheduler, part) for part in parts) else None
    return None


def single(scheduler: Any, steps: int) -> None:
    """Take steps one by one."""
    for _ in range(steps):
        scheduler.step()


def _can_be_part(whole: LRScheduler, part: LRScheduler) -> bool:
    move = mover(part)
    # Chained factors may be applied in any order; what is added to a rate may not.
    return move is _scale if isinstance(whole, torch_schedules.ChainedScheduler) else move is not None


# Every mover below leaves the last step to the schedule: it sets the rates, momenta and `get_last_lr`.


def _by_position(scheduler: Any, steps: int) -> None:
    """Move a schedule whose rate depends on its position alone."""
    _skip(scheduler, steps - 1)
    scheduler.step()


def _skip(scheduler: Any, steps: int) -> None:
    scheduler.last_epoch += steps
    scheduler._step_count += steps


def _scale(scheduler: Any, steps: int) -> None:
    """Move a schedule that multiplies the present rate, whoever else changed that, by a factor each step."""
    before = scheduler._get_closed_form_lr()
    if any(float(rate) == 0.0 for rate in before):
        _to_closed_form(scheduler, steps)
        return
    _skip(scheduler, steps - 1)
    groups = scheduler.optimizer.param_groups
    for group, old, new in zip(groups, before, scheduler._get_closed_form_lr(), strict=True):
        # On its course it is put there exactly: factors of many updates would add up their rounding.
        _set_rate(group, new if _equal(group["lr"], old, old) else group["lr"] * (new / old))
    scheduler.step()


def _to_closed_form(scheduler: Any, steps: int) -> None:
    """Move a schedule that is where its formula says; one that is not takes single steps."""
    groups = scheduler.optimizer.param_groups
    rates = zip(groups, scheduler._get_closed_form_lr(), scheduler.base_lrs, strict=True)
    if not all(_equal(group["lr"], rate, base) for group, rate, base in rates):
        single(scheduler, steps)
        return
    _skip(scheduler, steps - 1)
    for group, rate in zip(groups, scheduler._get_closed_form_lr(), strict=True):
        _set_rate(group, rate)
    scheduler.step()


def _equal(rate: Any, expected: Any, scale: Any) -> bool:
    # A million single steps are off by about 1e-10; whoever changes a rate changes it by more than 1e-6.
    return abs(float(rate) - float(expected)) <= 1e-6 * abs(float(scale))


def _set_rate(group: dict[str, Any], rate: Any) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(float(rate))
    else:
        group["lr"] = rate


def _restart(scheduler: Any, steps: int) -> None:
    """Move warm restarts: one round per restart, and none where all cycles are equally long."""
    left = scheduler.T_cur + steps - 1
    if scheduler.T_mult == 1:
        left %= scheduler.T_i
    while left >= scheduler.T_i:
        left -= scheduler.T_i
        scheduler.T_i *= scheduler.T_mult
    scheduler.T_cur = left
    scheduler.last_epoch += steps - 1
    scheduler.step()


def _in_sequence(scheduler: Any, steps: int) -> None:
    """Move each schedule of a sequence to its end; the step onto a milestone is the sequence's own."""
    end = scheduler.last_epoch + steps
    while scheduler.last_epoch < end:
        following = scheduler.last_epoch + 1
        index = bisect_right(scheduler._milestones, following)
        if index and scheduler._milestones[index - 1] == following:
            scheduler.step()
            continue
        stop = end
        if index < len(scheduler._milestones):
            stop = min(end, scheduler._milestones[index] - 1)
        part = scheduler._schedulers[index]
        advance(part, stop - scheduler.last_epoch)
        scheduler.last_epoch = stop
        scheduler._last_lr = part.get_last_lr()


def _in_chain(scheduler: Any, steps: int) -> None:
    """Move the factors of a chain one after the other."""
    for part in scheduler._schedulers:
        advance(part, steps - 1)
    scheduler.step()


_MOVERS: dict[type[LRScheduler], Mover] = {
    torch_schedules.LambdaLR: _by_position,
    torch_schedules.OneCycleLR: _by_position,
    torch_schedules.CyclicLR: _by_position,
    torch_schedules.StepLR: _scale,
    torch_schedules.MultiStepLR: _scale,
    torch_schedules.ConstantLR: _scale,
    torch_schedules.LinearLR: _scale,
    torch_schedules.ExponentialLR: _scale,
    torch_schedules.PolynomialLR: _scale,
    torch_schedules.CosineAnnealingLR: _to_closed_form,
    torch_schedules.CosineAnnealingWarmRestarts: _restart,
    torch_schedules.SequentialLR: _in_sequence,
    torch_schedules.ChainedScheduler: _in_chain,
}

__all__ = ["advance", "mover", "single"]
