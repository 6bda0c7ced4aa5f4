"""Going on from a folder that another library's ``save_state`` wrote: by position, as it was saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accel_core.errors import CheckpointError
from accel_core.logging import get_logger
from accel_core.protocols import LoadReport
from accel_state import rng_state
from accel_state.checkpoint.agreement import together
from accel_state.legacy import LegacyCheckpoint, read_legacy

from . import run_window

if TYPE_CHECKING:
    from accel_core.protocols import Collectives, Scaler, Strategy

    from .preparation import Registry

logger = get_logger(__name__)

_SAMPLERS = ("sampler", "dl_state_dict")


def load_legacy(
    folder: str,
    *,
    registry: Registry,
    strategy: Strategy,
    scaler: Scaler | None,
    group: Collectives,
    strict: bool,
) -> LoadReport:
    """Give models, optimizers, schedulers, objects and generators what ``folder`` holds. Collective.

    Such a folder knows no names: the n-th model gets the n-th file. The place in the data is not in it.
    Raises CheckpointError where counts differ or a file cannot be read without running code, unless not
    ``strict``.
    """
    # Each rank reads for itself: what comes of it are views of files, which no rank could send.
    read: list[LegacyCheckpoint] = []
    together(group, lambda: read.append(read_legacy(folder)), "read the old checkpoint")
    found = read[0]
    missing, unexpected = _differences(found, registry, scaler)
    together(group, lambda: _refuse(found, missing, unexpected, strict=strict), "fit the old checkpoint")
    pairs = zip(registry.units, found.models, strict=False)
    models = [(unit, values) for unit, values in pairs if values is not None]
    check = getattr(strategy.states, "check_full", None)
    if check is not None:
        # All of them before the first is changed.
        together(
            group,
            lambda: [check(*each, strict=strict) for each in models],
            "fit the models of the old checkpoint",
        )
    reports = [strategy.states.load_full(unit, values, strict=strict) for unit, values in models]
    restored = [name for report in reports for name in report.restored]
    together(group, lambda: restored.extend(_rest(found, registry, scaler, group)), "take its state")
    if any(name.startswith(_SAMPLERS) for name in found.unread) or found.samplers or found.loaders:
        logger.warning(
            "The place in the data is not taken from %s: use skip_first_batches and set_epoch", folder
        )
    return LoadReport(
        restored=tuple(restored),
        missing=(*(name for report in reports for name in report.missing), *missing),
        unexpected=(*(name for report in reports for name in report.unexpected), *unexpected),
        mismatched={name: why for report in reports for name, why in report.mismatched.items()},
    )


def _differences(
    found: LegacyCheckpoint, registry: Registry, scaler: Scaler | None
) -> tuple[list[str], list[str]]:
    """Return what the folder lacks, and what it has too much."""
    missing, unexpected = [], []
    pairs: list[tuple[str, int, Sequence[Any]]] = [
        ("model", len(registry.units), found.models),
        ("optimizer", len(registry.optimizers), found.optimizers),
        ("scheduler", len(registry.schedulers), found.schedulers),
        ("custom_checkpoint", len(registry.custom), found.custom),
        ("scaler", int(scaler is not None), [] if found.scaler is None else [found.scaler]),
    ]
    for name, here, there in pairs:
        present = sum(1 for each in there if each is not None)
        missing += [f"{name}_{number}" for number in range(present, here)]
        unexpected += [f"{name}_{number}" for number in range(here, present)]
    return missing, unexpected


def _refuse(
    found: LegacyCheckpoint, missing: Sequence[str], unexpected: Sequence[str], *, strict: bool
) -> None:
    # Samplers are pickled objects; what they would tell is not the place in the data anyway.
    unread = {name: why for name, why in found.unread.items() if not name.startswith(_SAMPLERS)}
    if not strict or not (missing or unexpected or unread):
        return
    lines = [f"not in the folder: {', '.join(missing)}"] if missing else []
    lines += [f"only in the folder: {', '.join(unexpected)}"] if unexpected else []
    lines += [f"{name}: {why}" for name, why in unread.items()]
    raise CheckpointError(
        "The old checkpoint does not fit this run; nothing was changed",
        where="\n         ".join(lines),
        fix="prepare and register what the run that saved it had, in the same order; strict=False takes"
        " what fits",
    )


def _rest(
    found: LegacyCheckpoint, registry: Registry, scaler: Scaler | None, group: Collectives
) -> list[str]:
    run_window.forget_gradients(registry)
    given: list[tuple[str, Any, Any]] = [
        *_numbered("optimizer", [each.optimizer for each in registry.optimizers], found.optimizers),
        *_numbered("scheduler", [each.scheduler for each in registry.schedulers], found.schedulers),
        *_numbered("custom_checkpoint", list(registry.custom.values()), found.custom),
    ]
    if scaler is not None and found.scaler is not None:
        given.append(("scaler", scaler, found.scaler))
    for name, thing, state in given:
        try:
            thing.load_state_dict(state)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{name} does not take its old state: {error}",
                where=str(found.path),
                fix="prepare and register objects in the order of the run that saved it",
            ) from error
    restored = [name for name, _, _ in given]
    if found.random_states:
        drawn = rng_state.restore(found.generators(), group.rank, group.world_size)
        restored += [f"random_states/{kind}" for kind in (*drawn.restored, *drawn.derived)]
    return restored


def _numbered(name: str, things: Sequence[Any], states: Sequence[Any]) -> list[tuple[str, Any, Any]]:
    pairs = enumerate(zip(things, states, strict=False))
    return [(f"{name}_{number}", thing, state) for number, (thing, state) in pairs if state is not None]


__all__ = ["load_legacy"]
