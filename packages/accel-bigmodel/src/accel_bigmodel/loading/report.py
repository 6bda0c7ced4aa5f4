"""What a checkpoint and a model have in common, and the errors about what they have not."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from accel_core.errors import CheckpointError
from accel_core.protocols import LoadReport
from accel_core.spelling import nearest

_MOST_SHOWN = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CheckpointReport(LoadReport):
    """What a checkpoint gives a model, by the model's names.

    ``restored``, ``missing``, ``unexpected`` and ``mismatched`` as in the base; ``missing`` are tensors of
    the model, those that lie on meta among them, ``mismatched`` those of another shape or kind of number.
    ``recast``: floating-point tensors that are converted, with both dtypes. ``tied``: names that are not in
    the checkpoint, and the name in it of the tensor that they share. ``left_on_meta``: what would have no
    data after the load. ``offloaded``: what is read when it is used.
    """

    recast: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    left_on_meta: tuple[str, ...] = ()
    offloaded: tuple[str, ...] = ()


def with_offloaded(report: CheckpointReport, names: Iterable[str]) -> CheckpointReport:
    """Return ``report`` with the names of what is read when it is used."""
    return replace(report, offloaded=tuple(names))


def refuse(
    report: CheckpointReport,
    where: str,
    *,
    strict: bool,
    partial: bool | None,
    computed: Collection[str] = (),
) -> None:
    """Raise CheckpointError unless the checkpoint may be loaded; say once what is left out, if it may.

    ``computed``: those of ``left_on_meta`` that no checkpoint has, because the model works them out.
    ``partial``: None where the caller has no such choice to offer.
    """
    lines = [_line(f"of another shape or type: {name}: {what}") for name, what in report.mismatched.items()]
    fixes = ["build the model that this checkpoint is of"] if report.mismatched else []
    if report.left_on_meta and not partial:
        lines.append(_line("in the model, without data, and not in the checkpoint", report.left_on_meta))
        if computed:
            fixes.append(
                "build the skeleton with include_buffers=False: buffers that are not saved are then computed"
            )
        lost = [name for name in report.left_on_meta if name not in set(computed)]
        if lost:
            fixes.append(
                _guess(lost, report.unexpected)
                or "complete the checkpoint; tie the weights of the model before loading, if it shares them"
            )
            fixes += [] if partial is None else ["partial=True loads what there is"]
    real = [name for name in report.missing if name not in set(report.left_on_meta)]
    nothing = bool(real and report.unexpected) and not report.restored
    if real and (strict or nothing):
        # Without a name in common, this is another model, or another part of it: nobody wants that.
        lines.append(_line("not in the checkpoint", real))
        fixes.append(_guess(real, report.unexpected))
        fixes += [] if nothing else ["strict=False leaves them as they are"]
    if report.unexpected and (strict or lines):
        lines.append(_line("not in the model", report.unexpected))
        if strict and not nothing:
            fixes.append("strict=False leaves them out")
    if lines:
        raise CheckpointError(
            "The checkpoint does not fit the model; nothing was loaded",
            where="\n         ".join([where, *lines]),
            fix="; ".join(dict.fromkeys(each for each in fixes if each)),
        )
    _say(real, report.unexpected, where)


def _say(missing: Sequence[str], unexpected: Sequence[str], where: str) -> None:
    if missing:
        _log.warning("%s: %s. They keep the values that they have.", where, _line("not loaded", missing))
    if unexpected:
        _log.warning("%s: %s. They are left out.", where, _line("not in the model", unexpected))


def _line(text: str, names: Collection[str] = ()) -> str:
    if not names:
        return text
    shown = ", ".join(list(names)[:_MOST_SHOWN])
    rest = f", and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return f"{text} ({len(names)}): {shown}{rest}"


def _guess(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Return what may be the matter, or nothing: a prefix that one of the two has, or another spelling."""
    others = set(unexpected)
    for name in missing[:_MOST_SHOWN]:
        longer = next((each for each in unexpected if each.endswith(f".{name}")), None)
        if longer is not None:
            prefix = longer.removesuffix(name)
            return f"names in the checkpoint begin with {prefix!r}: load into the module that holds this one"
        parts = name.split(".")
        shorter = next(
            (".".join(parts[n:]) for n in range(1, len(parts)) if ".".join(parts[n:]) in others), None
        )
        if shorter is not None:
            prefix = name.removesuffix(shorter).rstrip(".")
            return f"the checkpoint is of the part {prefix!r} of the model: load into that"
    near = nearest(missing[0], unexpected) if unexpected else None
    if near is not None:
        return f"{missing[0]!r} may be called {near!r} in the checkpoint: rename one of them"
    return ""


__all__ = ["CheckpointReport", "refuse", "with_offloaded"]
