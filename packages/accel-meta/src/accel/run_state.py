"""The state of a run: what is saved of it, under which names, and how it is given back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from accel_core.errors import CheckpointError
from accel_core.protocols import LoadReport
from accel_parallel.encoding import decode, encode
from accel_state import rng_state
from accel_state.checkpoint.agreement import together

from . import checkpoint_layout as layout
from . import run_window
from .run_parts import (
    HookStates,
    Parts,
    check_units,
    load_units,
    names_of,
    stored_tensors,
)

if TYPE_CHECKING:
    import torch

    from accel_core.protocols import Collectives, Scaler, StateSink, StateSource, Strategy
    from accel_core.window import GradientWindow

    from .preparation import Registry
    from .weighting import Weighting

FORMAT = 1
Encoded = tuple[Any, dict[str, "torch.Tensor"]]


@dataclass(slots=True)
class RunState:
    """Everything that one ``Accelerator`` has to save and restore.

    ``group``: all ranks. ``weighting``: the weights of the open window, None when there are none.
    """

    registry: Registry
    strategy: Strategy
    window: GradientWindow
    scaler: Scaler | None
    group: Collectives
    weighting: Callable[[], Weighting] | None = None
    external: tuple[str, ...] = ()
    """Units whose models are left to hooks."""
    ending: bool = False
    """The run was asked to stop: loops that it left by ``break`` are to go on where they were left."""
    _encoded: dict[str, Encoded] = field(default_factory=dict)
    _known: Parts | None = None

    @property
    def _parts(self) -> Parts:
        if self._known is None:
            self._known = Parts(self.registry)
        return self._known

    # -- saving ----------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Return the number of updates so far: of the optimizer that has taken most."""
        return max((each.updates for each in self.registry.optimizers), default=0)

    def collect(self) -> list[dict[str, Any]]:
        """Return what each rank knows, by rank, and encode what one rank writes for all. Collective.

        Raises StateError where a run cannot be saved, CheckpointError for what would need pickle; on every
        rank, before anything is written.
        """
        return together(self.group, self._own, "tell its state")

    def save(self, sink: StateSink, ranks: list[dict[str, Any]]) -> None:
        """Write all of it; ``ranks`` is what `collect` returned. Collective."""
        together(self.group, lambda: self._write(sink, ranks), "write its state")
        laid_out = layout.LaidOutSink(sink, without=self.external)
        for unit in self._parts.units:
            self.strategy.states.save(unit, laid_out)

    def _own(self) -> dict[str, Any]:
        registry = self.registry
        run_window.check_place(self.window, registry)
        self._encoded = {
            **{name: _encoded(each.state_dict(), name) for name, each in names_of(registry, "scheduler")},
            **{
                f"{layout.CUSTOM}/{name}": _encoded(each.state_dict(), name)
                for name, each in registry.custom.items()
            },
            **self._parts.loose.encoded(),
        }
        if self.scaler is not None:
            self._encoded[layout.SCALER] = _encoded(self._scale(self.scaler), layout.SCALER)
        loaders = names_of(registry, "dataloader")
        positions = {name: each.position(resume_left=self.ending) for name, each in loaders}
        return {
            "window": run_window.window_state(
                self.window, registry, None if self.weighting is None else self.weighting()
            ),
            "loaders": {name: _encoded(position, name) for name, position in positions.items()},
        }

    def _scale(self, scaler: Scaler) -> dict[str, Any]:
        if self.window.at_end is None:
            return scaler.state_dict()
        # The window is over but for its last micro-batch: a run that goes on begins behind it.
        found: dict[str, Any] = getattr(scaler, "state_after_update", scaler.state_dict)()
        return found

    def _write(self, sink: StateSink, ranks: list[dict[str, Any]]) -> None:
        rank = self.group.rank
        sink.tensors(f"{layout.RANDOM}_{rank}", rng_state.capture())
        if run_window.is_open(self.window):
            sink.tensors(f"{layout.GRADIENTS}_{rank}", run_window.gradients(self.registry))
        if rank:
            return
        sink.json(layout.RUN, self._summary(ranks))
        for name, encoded in self._encoded.items():
            _put(sink, name, encoded)
        for name in ranks[0]["loaders"]:
            _put_ranks(sink, f"{layout.LOADERS}/{name}", [each["loaders"][name] for each in ranks])

    def _summary(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        registry = self.registry
        return {
            "format": FORMAT,
            "world_size": len(ranks),
            "step": self.step,
            "parts": self._live(),
            "external": list(self.external),
            "optimizers": {name: each.progress() for name, each in self._parts.wrappers.items()},
            "schedules": {name: list(each.marks) for name, each in names_of(registry, "scheduler")},
            "comm_hooks": HookStates(self.strategy, registry).told(),
            "windows": [each["window"] for each in ranks],
            "cleared": run_window.cleared(self.window, registry),
        }

    # -- loading ---------------------------------------------------------------------------------

    def load(self, source: StateSource, *, strict: bool = True) -> LoadReport:
        """Give back what was saved, on any number of ranks, and return what that was. Collective.

        Raises CheckpointError that lists what is missing, left over or does not fit; ``strict=False``
        restores what fits.
        """
        together(self.group, lambda: self._check(source, strict=strict), "fit the checkpoint")
        run = source.json(layout.RUN)
        missing, unexpected, changed = self._compare(run)
        # State of another class may be taken without a word, and mean something else.
        taken = run["parts"].keys() - changed.keys()
        reports = [load_units(self.strategy, self._parts.units, source, self.external, strict=strict)]
        reports += together(self.group, lambda: [self._give_back(source, run, taken)], "take its state")[
            self.group.rank
        ]
        return LoadReport(
            restored=tuple(name for report in reports for name in report.restored),
            missing=(*(name for report in reports for name in report.missing), *missing),
            unexpected=(*(name for report in reports for name in report.unexpected), *unexpected),
            mismatched={
                **{name: why for report in reports for name, why in report.mismatched.items()},
                **changed,
            },
        )

    def _check(self, source: StateSource, *, strict: bool) -> None:
        names = set(source.names())
        if layout.RUN not in names:
            raise CheckpointError(
                "The checkpoint holds no state of a run: save_state did not write it",
                where=f"it holds {', '.join(sorted(names)[:8]) or 'nothing'}",
                fix="for a folder that another library wrote, load_state(folder, legacy=True)",
            )
        run = source.json(layout.RUN)
        if run.get("format") != FORMAT:
            raise CheckpointError(
                f"The run was saved in format {run.get('format')!r}, this version reads {FORMAT}",
                fix="load it with the version that wrote it",
            )
        lost = [name for name in run["external"] if name not in self.external]
        if lost:
            raise CheckpointError(
                f"The model of {', '.join(lost)} was written by a hook, and no hook has loaded it",
                fix="register_load_state_pre_hook a function that loads it and takes it out of the list",
            )
        if strict:
            HookStates(self.strategy, self.registry).check(run["comm_hooks"])
        missing, unexpected, changed = self._compare(run)
        if strict and (missing or unexpected or changed):
            lines = [f"not in the checkpoint: {', '.join(missing)}"] if missing else []
            lines += [f"only in the checkpoint: {', '.join(unexpected)}"] if unexpected else []
            raise CheckpointError(
                "The checkpoint is of another run than this; nothing was changed",
                where="\n         ".join([*lines, *(f"{name}: {why}" for name, why in changed.items())]),
                fix="prepare and register what the run that saved it had, under the same names;"
                " strict=False restores what is in both",
            )
        run_window.check_open(
            self.window, run["windows"], scaled=layout.SCALER in run["parts"], scales=self.scaler is not None
        )
        check_units(self.strategy, self._parts.units, source, self.external, strict=strict)
        self._parts.loose.check(source)

    def _live(self) -> dict[str, str]:
        """Return what this run has, by name, and of which class it is where another would be wrong."""
        registry = self.registry
        live = {f"model of {unit.name}": "" for unit in self._parts.units}
        live.update({name: type(each.scheduler).__name__ for name, each in names_of(registry, "scheduler")})
        live.update({f"{layout.LOADERS}/{name}": "" for name, _ in names_of(registry, "dataloader")})
        custom = registry.custom.items()
        live.update({f"{layout.CUSTOM}/{name}": type(each).__name__ for name, each in custom})
        live.update(dict.fromkeys(self._parts.loose.names(), ""))
        if self.scaler is not None:
            live[layout.SCALER] = ""
        return live

    def _compare(self, run: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, str]]:
        """Return what is only here, what is only in the checkpoint, and what is of another class."""
        live, saved = self._live(), run["parts"]
        changed = {
            name: f"a {saved[name]} was saved, this is a {kind}"
            for name, kind in live.items()
            if name in saved and saved[name] != kind
        }
        return tuple(n for n in live if n not in saved), tuple(n for n in saved if n not in live), changed

    def _give_back(self, source: StateSource, run: Mapping[str, Any], saved: set[str]) -> LoadReport:
        group, registry = self.group, self.registry
        world = run["world_size"]
        restored = []
        run_window.forget_gradients(registry)
        run_window.restore_cleared(registry, run.get("cleared", ()))
        for name, optimizer in self._parts.wrappers.items():
            if name in run["optimizers"]:
                optimizer.go_on(run["optimizers"][name])
        restored += self._parts.loose.load(source)
        for name, scheduler in names_of(registry, "scheduler"):
            if name in saved:
                scheduler.load_state_dict(_get(source, name))
                restored.append(name)
        self._restore_window(source, run)
        for name, scheduler in names_of(registry, "scheduler"):
            if name in saved:
                scheduler.marks = tuple(run["schedules"][name])
        if self.scaler is not None and layout.SCALER in saved:
            self.scaler.load_state_dict(_get(source, layout.SCALER))
            restored.append(layout.SCALER)
        for name, each in registry.custom.items():
            if f"{layout.CUSTOM}/{name}" in saved:
                each.load_state_dict(_get(source, f"{layout.CUSTOM}/{name}"))
                restored.append(f"{layout.CUSTOM}/{name}")
        HookStates(self.strategy, registry).go_on(run["comm_hooks"])
        for name, loader in names_of(registry, "dataloader"):
            label = f"{layout.LOADERS}/{name}"
            if label in saved:
                positions = _get_ranks(source, label)
                loader.resume_at(positions[group.rank if len(positions) == group.world_size else 0])
                restored.append(label)
        # Last: what was done above may have drawn numbers.
        states = [source.tensors(f"{layout.RANDOM}_{rank}") for rank in range(world)]
        drawn = rng_state.restore(states, group.rank, group.world_size)
        restored += [f"{layout.RANDOM}/{kind}" for kind in (*drawn.restored, *drawn.derived)]
        unused = {kind for state in states for kind in state}.intersection(drawn.missing)
        return LoadReport(
            restored=tuple(restored), unexpected=tuple(f"{layout.RANDOM}/{kind}" for kind in sorted(unused))
        )

    def _restore_window(self, source: StateSource, run: Mapping[str, Any]) -> None:
        group, windows = self.group, run["windows"]
        rank, world = group.rank, group.world_size
        weights = run_window.restore_window(self.window, windows, rank, world, self.registry)
        if weights is not None and self.weighting is not None:
            self.weighting().go_on(weights)
        if "open" not in windows[0]:
            return
        parts = [source.tensors(f"{layout.GRADIENTS}_{number}") for number in range(len(windows))]
        run_window.restore_gradients(self.registry, parts, rank, world, weighted=bool(self.window.weighted))


def _encoded(value: Any, name: str) -> Encoded:
    tensors: dict[str, torch.Tensor] = {}
    return encode(value, name, tensors), tensors


def _put(sink: StateSink, name: str, encoded: Encoded) -> None:
    content, tensors = encoded
    sink.json(name, content)
    if tensors:
        sink.tensors(f"{name}/tensors", tensors)


def _get(source: StateSource, name: str) -> Any:
    return decode(source.json(name), stored_tensors(source, name))


def _put_ranks(sink: StateSink, name: str, each: Sequence[Encoded]) -> None:
    """Store what each rank said, once where all said the same."""
    alike = all(content == each[0][0] for content, _ in each) and all(_equal(t, each[0][1]) for _, t in each)
    kept = each[:1] if alike else each
    sink.json(name, {"ranks": len(each), "each": [content for content, _ in kept]})
    tensors = {f"{rank}/{key}": value for rank, (_, own) in enumerate(kept) for key, value in own.items()}
    if tensors:
        sink.tensors(f"{name}/tensors", tensors)


def _get_ranks(source: StateSource, name: str) -> list[Any]:
    content, stored = source.json(name), stored_tensors(source, name)
    found = []
    for rank, each in enumerate(content["each"]):
        start = f"{rank}/"
        own = {key.removeprefix(start): value for key, value in stored.items() if key.startswith(start)}
        found.append(decode(each, own))
    return found * content["ranks"] if len(found) == 1 else found


def _equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(value.equal(other[key]) for key, value in one.items())


__all__ = ["FORMAT", "RunState"]
