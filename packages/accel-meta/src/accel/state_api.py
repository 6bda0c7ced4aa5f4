"""What the ``Accelerator`` saves of a run, and how it goes on from it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from accel_core.errors import CapabilityError, CheckpointError
from accel_core.logging import get_logger
from accel_state.process import start as process_state

if TYPE_CHECKING:
    import os

    from torch.utils.hooks import RemovableHandle

    from accel_core.protocols import LoadReport, Scaler, StateSource, Strategy
    from accel_core.window import GradientWindow
    from accel_state.checkpoint import BackgroundSaver

    from .checkpoint_places import Places
    from .preparation import Registry
    from .resolve import Settings
    from .run_state import RunState

logger = get_logger(__name__)

SaveHook = Callable[[list[Any], list[dict[str, Any]], str], None]
LoadHook = Callable[[list[Any], str], None]


class StateAPI:
    """Save the state of a run, and go on from it, on any number of processes."""

    scaler: Scaler | None
    _registry: Registry
    _strategy: Strategy
    _window: GradientWindow
    _saving: tuple[BackgroundSaver, ...] = ()
    """What saves in the background, one for each kind of store; a backward asks whether it has failed."""

    _settings: Settings

    # -- what belongs to it ------------------------------------------------------------------------

    def register_for_checkpointing(self, *objects: Any, **named: Any) -> None:
        """Save and restore ``objects`` with the run: anything with ``state_dict`` and ``load_state_dict``.

        Those given by keyword are found again under that name; the others are called
        ``custom_checkpoint_0``, ``custom_checkpoint_1``, ... in the order in which they are registered.
        What was prepared is saved anyway. Raises ValueError for an object without these methods and for a
        name that is taken.
        """
        registry = self._registry
        bad = [type(each).__name__ for each in (*objects, *named.values()) if not _has_state(each)]
        if bad:
            raise ValueError(
                "register_for_checkpointing takes objects with state_dict() and load_state_dict(), and"
                f" these have not both: {', '.join(bad)}"
            )
        known = {id(each) for each in registry.custom.values()}
        for each in objects:
            if id(each) not in known and registry.made_of(each) is None:
                known.add(id(each))
                registry.custom[f"custom_checkpoint_{_unnamed(registry.custom)}"] = each
        for name, each in named.items():
            if registry.custom.get(name, each) is not each or name.startswith("custom_checkpoint_"):
                raise ValueError(f"the name {name!r} is taken: register_for_checkpointing({name}=...)")
            registry.custom[name] = each

    def register_save_state_pre_hook(self, hook: SaveHook) -> RemovableHandle:
        """Call ``hook(models, weights, output_dir)`` on every rank before `save_state` writes models.

        ``weights`` are the models' states. A hook that writes a model its own way, into ``output_dir``,
        takes its state out of the list: ``weights.pop()``. The handle that is returned removes the hook.
        """
        return _hooked(self._save_hooks, hook)

    def register_load_state_pre_hook(self, hook: LoadHook) -> RemovableHandle:
        """Call ``hook(models, input_dir)`` on every rank before `load_state` loads models.

        A hook that loads a model itself takes it out of the list: ``models.pop()``.
        """
        return _hooked(self._load_hooks, hook)

    @cached_property
    def _save_hooks(self) -> OrderedDict[int, SaveHook]:
        return OrderedDict()

    @cached_property
    def _load_hooks(self) -> OrderedDict[int, LoadHook]:
        return OrderedDict()

    # -- saving ------------------------------------------------------------------------------------

    def save_state(
        self,
        output_dir: str | os.PathLike[str] | None = None,
        safe_serialization: bool = True,
        *,
        block: bool = True,
        step: int | None = None,
        **save_model_func_kwargs: Any,
    ) -> str:
        """Save everything that the run needs to go on exactly, and return where. Collective.

        Models, optimizers, schedulers, the loss scale, the place in the data, an open accumulation window,
        random generators and registered objects, in a folder that appears whole or not at all. Without
        ``output_dir``, or with ``automatic_checkpoint_naming``, it is
        ``project_dir/checkpoints/checkpoint_N``, and more than ``total_limit`` of them are removed
        afterwards, oldest first.

        ``block=False``, ours: copy the state, go on, and write it in the background; an error is raised by
        the next backward or save, and by `wait_for_checkpoint`. ``step``, ours: the number shown for it,
        by default the updates so far. There is no pickle: ``safe_serialization=False`` is refused.

        Raises StateError between a backward and its step, CheckpointError when it cannot be written.
        """
        if save_model_func_kwargs:
            raise _unknown("save_state", save_model_func_kwargs)
        if not safe_serialization:
            raise CapabilityError(
                "save_state writes safetensors and JSON only: a pickle runs code when it is loaded",
                where="save_state(safe_serialization=False)",
                fix="leave it out; for one model as a file of torch.save use"
                " save_model(safe_serialization=False)",
            )
        begun = time.perf_counter()
        self.wait_for_checkpoint()
        target, automatic = self._checkpoints.next(output_dir)
        state = self._run_state()
        ranks = state.collect()
        number = state.step if step is None else step

        def finish(store: Any) -> None:
            from accel_state import preemption

            guard = preemption.current()
            if guard is not None:
                guard.note_save(time.perf_counter() - begun, target, number)
            if automatic:
                self._checkpoints.rotate(store)

        if block:
            self._save_now(state, ranks, target, number, finish)
        else:
            self._save_later(state, ranks, target, number, finish)
        self._checkpoints.saved(automatic=automatic)
        logger.info("Saved the state of the run, update %s, to %s", number, target)
        return target

    def _save_now(
        self, state: RunState, ranks: list[Any], target: str, step: int, finish: Callable[[Any], None]
    ) -> None:
        from accel_state.checkpoint.agreement import together

        store = self._store(target)
        with store.save(target, step=step) as sink:
            if self._save_hooks:
                state.external = self._call_save_hooks(str(sink.folder))
            state.save(sink, ranks)
        together(process_state().collectives, lambda: finish(store), "remove older checkpoints")

    def _save_later(
        self, state: RunState, ranks: list[Any], target: str, step: int, finish: Callable[[Any], None]
    ) -> None:
        if self._save_hooks:
            raise CapabilityError(
                "save_state(block=False) was called with hooks that write files of their own: they would"
                " write what the model is by then",
                where="register_save_state_pre_hook",
                fix="save with block=True, or remove the hooks",
            )
        saver = self._saver_for(target)
        snapshot = saver.snapshot(near=target)
        state.save(snapshot, ranks)
        saver.submit(target, snapshot, step=step, after=lambda: finish(self._store(target, lonely=True)))

    def wait_for_checkpoint(self) -> None:
        """Wait until what is saved in the background is there; raise the error when it failed. Collective."""
        for saver in self._saving:
            saver.wait()

    @cached_property
    def _savers(self) -> dict[str, BackgroundSaver]:
        return {}

    def _saver_for(self, target: str) -> BackgroundSaver:
        from accel_state.checkpoint import BackgroundSaver, address, resolve

        kind = address.scheme_of(target) if address.is_uri(target) else ""
        if kind not in self._savers:
            group = process_state().collectives
            self._savers[kind] = BackgroundSaver(lambda each: resolve.store_for(target, each), group)
            self._saving = tuple(self._savers.values())
        return self._savers[kind]

    def _call_save_hooks(self, folder: str) -> tuple[str, ...]:
        """Let hooks write models; return the units that they took."""
        from accel_state.checkpoint.agreement import together

        units = self._registry.units
        weights = [self._strategy.states.full(unit) for unit in units]
        left = list(weights)

        def call() -> None:
            for hook in tuple(self._save_hooks.values()):
                hook(list(self._registry.models), left, folder)

        together(process_state().collectives, call, "call a hook of save_state")
        kept = {id(each) for each in left}
        return tuple(unit.name for unit, own in zip(units, weights, strict=True) if id(own) not in kept)

    # -- loading -----------------------------------------------------------------------------------

    def load_state(
        self,
        input_dir: str | os.PathLike[str] | None = None,
        load_kwargs: Mapping[str, Any] | None = None,
        *,
        strict: bool = True,
        legacy: bool = False,
        **load_model_func_kwargs: Any,
    ) -> LoadReport:
        """Go on from a checkpoint, verified first, and return what was restored, by name. Collective.

        On any number of processes: the data go on at the same sample of the global order. Loops over
        prepared loaders continue where the saved one stood, and ``loader.iteration`` is its epoch. Without
        ``input_dir`` it is the newest checkpoint of ``project_dir/checkpoints`` that verifies.

        ``strict=False``, ours: restore what fits, and report what is missing, left over or of another
        shape; by default that is an error. ``legacy=True``, ours: the folder was written by another
        library's ``save_state``, as pickles; tensors and plain values are read, and no code is run. The place
        in the data is not in it. Raises CheckpointError, also when nothing is there.
        """
        if load_model_func_kwargs or load_kwargs:
            _check_load_arguments({**(load_kwargs or {}), **load_model_func_kwargs})
        if legacy:
            return self._load_legacy(input_dir, strict=strict)
        if input_dir is None:
            directory = self._checkpoints.directory("load_state")
            report = self._load_latest(directory, strict=strict)
            if report is None:
                raise CheckpointError(
                    "There is no checkpoint to load",
                    where=directory,
                    fix="pass the folder of one, or call resume(), which starts anew where there is none",
                )
            return report
        self.wait_for_checkpoint()
        target = self._checkpoints.named(input_dir)
        store = self._store(target)
        return self._load(store, store.open_together(target), target, strict=strict)

    def resume(
        self, directory: str | os.PathLike[str] | None = None, *, strict: bool = True
    ) -> LoadReport | None:
        """Go on from the newest checkpoint of ``directory``, or return None when there is none. Collective.

        ``directory`` is by default ``project_dir/checkpoints``. Damaged checkpoints are named and skipped.
        So a script that is started again continues by itself. Raises as `load_state`.
        """
        found = (
            self._checkpoints.directory("resume") if directory is None else self._checkpoints.named(directory)
        )
        return self._load_latest(found, strict=strict)

    def _load_latest(self, directory: str, *, strict: bool) -> LoadReport | None:
        self.wait_for_checkpoint()
        store = self._store(directory)
        source = store.open_latest_together(directory)
        return None if source is None else self._load(store, source, str(source.path), strict=strict)

    def _load_legacy(self, input_dir: str | os.PathLike[str] | None, *, strict: bool) -> LoadReport:
        from .legacy_state import load_legacy

        if input_dir is None:
            raise CheckpointError(
                "load_state(legacy=True) was given no folder",
                fix="name the one to load: load_state(folder, ...)",
            )
        self._window.restart()
        return load_legacy(
            self._checkpoints.named(input_dir),
            registry=self._registry,
            strategy=self._strategy,
            scaler=self.scaler,
            group=process_state().collectives,
            strict=strict,
        )

    def _load(self, store: Any, source: StateSource, target: str, *, strict: bool) -> LoadReport:
        from accel_state.checkpoint.agreement import together

        state = self._run_state()
        if self._load_hooks:
            left = list(self._registry.models)
            local = getattr(source, "local", None)
            folder = target if local is None else str(local())

            def call() -> None:
                for hook in tuple(self._load_hooks.values()):
                    hook(left, folder)

            together(process_state().collectives, call, "call a hook of load_state")
            kept = {id(model) for model in left}
            state.external = tuple(unit.name for unit in self._registry.units if id(unit.model) not in kept)
        report = state.load(source, strict=strict)
        self._checkpoints.loaded(target, store)
        logger.info("Going on from %s, after update %s", target, state.step)
        return report

    # -- inside ------------------------------------------------------------------------------------

    def _run_state(self) -> RunState:
        from accel_state import preemption

        from .run_state import RunState

        guard = preemption.current()
        return RunState(
            ending=guard is not None and guard.reason is not None,
            registry=self._registry,
            strategy=self._strategy,
            window=self._window,
            scaler=self.scaler,
            group=process_state().collectives,
            weighting=lambda: self._weighting,  # type: ignore[attr-defined]
        )

    @cached_property
    def _checkpoints(self) -> Places:
        from .checkpoint_places import Places

        return Places(self._settings.project)

    @staticmethod
    def _store(path: str, *, lonely: bool = False) -> Any:
        from accel_core.protocols import LonelyCollectives
        from accel_state.checkpoint import resolve

        return resolve.store_for(path, LonelyCollectives() if lonely else process_state().collectives)


def _hooked(hooks: OrderedDict[int, Any], hook: Callable[..., None]) -> RemovableHandle:
    from torch.utils.hooks import RemovableHandle

    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def _has_state(thing: Any) -> bool:
    methods = (getattr(thing, name, None) for name in ("state_dict", "load_state_dict"))
    return not isinstance(thing, type) and all(map(callable, methods))


def _unnamed(custom: Mapping[str, Any]) -> int:
    return sum(1 for name in custom if name.startswith("custom_checkpoint_"))


def _check_load_arguments(given: dict[str, Any]) -> None:
    """Refuse what would change nothing, or run code."""
    if given.pop("weights_only", True) is not True:
        raise CapabilityError(
            "load_state reads safetensors and JSON: there is no code in them to run",
            where="weights_only=False",
            fix="leave it out",
        )
    # State goes to where the objects that get it are.
    given.pop("map_location", None)
    if given:
        raise _unknown("load_state", given)


def _unknown(method: str, given: Mapping[str, Any]) -> TypeError:
    return TypeError(f"{method}() takes no argument {', '.join(map(repr, given))}")


__all__ = ["StateAPI"]
