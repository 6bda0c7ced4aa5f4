"""What is recorded while a program is profiled, as settings; torch is imported to build the profiler only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

from accel_core.errors import CapabilityError, Fault
from accel_core.spelling import guess

from . import checks
from .base import KwargsHandler

if TYPE_CHECKING:
    import torch.profiler

_ACTIVITIES = ("cpu", "cuda", "xpu", "mtia", "hpu")
_SCHEDULE = ("wait", "warmup", "active", "repeat", "skip_first", "skip_first_wait")
_RECORDED = ("record_shapes", "profile_memory", "with_stack", "with_flops", "with_modules")


@dataclass(frozen=True, slots=True)
class ProfileKwargs(KwargsHandler):
    """What ``Accelerator.profile`` records and where it is written."""

    activities: list[str] | None = None
    schedule_option: dict[str, int] | None = None
    on_trace_ready: Callable[..., Any] | None = None
    record_shapes: bool = False
    profile_memory: bool = False
    with_stack: bool = False
    with_flops: bool = False
    with_modules: bool = False
    output_trace_dir: str | PathLike[str] | None = None

    def faults(self) -> Iterator[Fault]:
        """Yield everything that is wrong."""
        yield from self._activity_faults()
        yield from checks.keys(self, "schedule_option", _SCHEDULE)
        if isinstance(self.schedule_option, Mapping):
            yield from self._schedule_faults(self.schedule_option)
        callback: object = self.on_trace_ready
        if callback is not None and not callable(callback):
            yield Fault("on_trace_ready", callback, "must be callable or None")
        yield from checks.flags(
            self, "record_shapes", "profile_memory", "with_stack", "with_flops", "with_modules"
        )
        folder: object = self.output_trace_dir
        if not isinstance(folder, (str, PathLike, type(None))):
            yield Fault("output_trace_dir", folder, "must be a path or None")

    def _activity_faults(self) -> Iterator[Fault]:
        names: Any = self.activities
        if names is None:
            return
        if not isinstance(names, (list, tuple)) or not names:
            yield Fault("activities", names, 'must be a list of names such as ["cpu", "cuda"] or None')
            return
        for position, name in enumerate(names):
            if name not in _ACTIVITIES:
                # Of the names, "gpu" is most like "xpu".
                word = "cuda" if name == "gpu" else str(name).lower()
                fix = guess(word, _ACTIVITIES)
                yield Fault(f"activities[{position}]", name, f"must be one of {', '.join(_ACTIVITIES)}", fix)

    @staticmethod
    def _schedule_faults(option: Mapping[str, Any]) -> Iterator[Fault]:
        missing = [name for name in _SCHEDULE[:3] if name not in option]
        if missing:
            yield Fault("schedule_option", dict(option), f"lacks {', '.join(missing)}", "0 is possible")
        for name, value in option.items():
            least = 1 if name == "active" else 0
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                yield Fault(
                    f"schedule_option[{name!r}]", value, f"must be a whole number of at least {least}"
                )

    def build(self) -> torch.profiler.profile:
        """Return a profiler of torch with these settings; it is a context that starts and stops it.

        Without ``activities`` everything that this PyTorch can record here is recorded. Call the
        profiler's ``step()`` in each iteration when there is a ``schedule_option``.

        Raises CapabilityError for an activity that cannot be recorded here: torch would leave it out.
        """
        # Not an import statement: this package works without torch, and only who profiles needs it.
        profiler = import_module("torch.profiler")
        options = {name: getattr(self, name) for name in _RECORDED}
        if self.activities is not None:
            options["activities"] = _recordable(self.activities, profiler)
        if self.schedule_option is not None:
            options["schedule"] = profiler.schedule(**self.schedule_option)
        made: torch.profiler.profile = profiler.profile(on_trace_ready=self.on_trace_ready, **options)
        return made


def _recordable(names: list[str], profiler: Any) -> list[Any]:
    """Return torch's activities of these names; raise CapabilityError for one that it would leave out."""
    library = import_module("torch")
    possible = profiler.supported_activities()
    found = []
    for name in names:
        member = profiler.ProfilerActivity.__members__.get(name.upper())
        if member not in possible or not getattr(library, name).is_available():
            others = ", ".join(sorted(other.name.lower() for other in possible))
            raise CapabilityError(
                f"ProfileKwargs: {name!r} cannot be recorded here",
                where=f"torch {library.__version__} can record: {others}",
                fix="leave activities out, and everything that can be is recorded",
            )
        found.append(member)
    return found


__all__ = ["ProfileKwargs"]
