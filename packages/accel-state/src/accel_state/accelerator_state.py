"""`AcceleratorState`: the process state, plus the precision and plug-ins that were chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from accel_core import plugins
from accel_core.enums import DistributedType, PrecisionType
from accel_core.environment import RunConfig
from accel_core.errors import StateError, UnknownNameError

from . import process
from .state import PartialState


@dataclass(slots=True)
class _Choices:
    """What the first `AcceleratorState` of the process was made with."""

    process: process.ProcessState
    mixed_precision: str
    dynamo_plugin: Any = None
    fsdp_plugin: Any = None
    torch_tp_plugin: Any = None
    megatron_lm_plugin: Any = None
    parallelism_config: Any = None
    deepspeed_plugins: dict[str, Any] = field(default_factory=dict)
    active_deepspeed: str | None = None


_choices: _Choices | None = None

_DEFAULT_DEEPSPEED = "default"


class AcceleratorState(PartialState):
    """Show the process state with the mixed precision and the plug-ins that were chosen first.

    All instances share them. What is not passed is taken from the first construction or, in the
    first one, from the environment. Raises StateError when something is passed that differs from
    the first construction, UnknownNameError for a mixed precision that nobody offers.
    """

    def __init__(
        self,
        mixed_precision: str | None = None,
        cpu: bool = False,
        dynamo_plugin: Any = None,
        deepspeed_plugin: Any = None,
        fsdp_plugin: Any = None,
        torch_tp_plugin: Any = None,
        megatron_lm_plugin: Any = None,
        parallelism_config: Any = None,
        _from_accelerator: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(cpu, **kwargs)
        given = {
            "dynamo_plugin": dynamo_plugin,
            "fsdp_plugin": fsdp_plugin,
            "torch_tp_plugin": torch_tp_plugin,
            "megatron_lm_plugin": megatron_lm_plugin,
            "parallelism_config": parallelism_config,
        }
        deepspeed = _by_name(deepspeed_plugin)
        wanted = _precision(mixed_precision) if mixed_precision is not None else None
        self._choices = _decide(self._process, wanted, given, deepspeed)

    def __repr__(self) -> str:
        return f"{super().__repr__()}Mixed precision type: {self.mixed_precision}\n"

    @staticmethod
    def _reset_state(reset_partial_state: bool = False) -> None:
        """Forget the choices, and with ``reset_partial_state`` the process set-up too; for tests."""
        global _choices
        _choices = None
        if reset_partial_state:
            process.reset()

    @property
    def initialized(self) -> bool:
        """Tell whether this still shows the choices of the process (tests may reset them)."""
        return _choices is self._choices and super().initialized

    @property
    def mixed_precision(self) -> str:
        """Return the name of the mixed precision policy: ``no``, ``fp16``, ``bf16``, ``fp8``, ..."""
        return self._choices.mixed_precision

    @property
    def distributed_type(self) -> DistributedType:
        """Return the label of the set-up, that of the chosen strategy first; for display only."""
        found = self._choices
        labels = (
            (found.active_deepspeed, DistributedType.DEEPSPEED),
            (found.megatron_lm_plugin, DistributedType.MEGATRON_LM),
            (found.fsdp_plugin, DistributedType.FSDP),
        )
        return next((label for chosen, label in labels if chosen is not None), super().distributed_type)

    @property
    def is_fsdp2(self) -> bool:
        """Tell whether the model is sharded by the second version of FSDP."""
        return getattr(self._choices.fsdp_plugin, "fsdp_version", None) == 2

    # -- plug-ins --------------------------------------------------------------------------------

    @property
    def dynamo_plugin(self) -> Any:
        """Return the compilation settings, or None."""
        return self._choices.dynamo_plugin

    @property
    def fsdp_plugin(self) -> Any:
        """Return the settings of fully sharded data parallel, or None."""
        return self._choices.fsdp_plugin

    @property
    def torch_tp_plugin(self) -> Any:
        """Return the settings of tensor parallel, or None."""
        return self._choices.torch_tp_plugin

    @property
    def megatron_lm_plugin(self) -> Any:
        """Return the settings of Megatron-LM, or None."""
        return self._choices.megatron_lm_plugin

    @property
    def parallelism_config(self) -> Any:
        """Return the sizes of the mesh, or None."""
        return self._choices.parallelism_config

    @property
    def deepspeed_plugins(self) -> dict[str, Any]:
        """Return the DeepSpeed settings by name; empty without DeepSpeed."""
        return dict(self._choices.deepspeed_plugins)

    @property
    def deepspeed_plugin(self) -> Any:
        """Return the active DeepSpeed settings, or None."""
        active = self._choices.active_deepspeed
        return None if active is None else self._choices.deepspeed_plugins[active]

    def get_deepspeed_plugin(self, name: str) -> Any:
        """Return the DeepSpeed settings called ``name``; raise UnknownNameError when there are none."""
        known = self._choices.deepspeed_plugins
        if name not in known:
            raise UnknownNameError("DeepSpeed plugin", name, known)
        return known[name]

    def select_deepspeed_plugin(self, name: str | None = None) -> None:
        """Make the DeepSpeed settings called ``name`` the active ones for what is prepared next."""
        if name is None:
            raise UnknownNameError("DeepSpeed plugin", "None", self._choices.deepspeed_plugins)
        self.get_deepspeed_plugin(name)
        self._choices.active_deepspeed = name


def chosen_precision() -> str | None:
    """Return the mixed precision that this process was set up with, or None before it was."""
    return None if _choices is None or _choices.process is not process.current() else _choices.mixed_precision


def _decide(
    state: process.ProcessState, wanted: str | None, given: Mapping[str, Any], deepspeed: dict[str, Any]
) -> _Choices:
    """Return the choices of the process, made now if these are the first."""
    global _choices
    if _choices is None or _choices.process is not state:
        chosen = wanted or _precision(RunConfig.from_environ().mixed_precision or "no")
        active = next(iter(deepspeed), None)
        _choices = _Choices(state, chosen, **given, deepspeed_plugins=deepspeed, active_deepspeed=active)
        return _choices
    first = _choices
    differing = [
        f"{name}: first {getattr(first, name)!r}, now {value!r}"
        for name, value in {**given, "mixed_precision": wanted}.items()
        if value is not None and value != getattr(first, name)
    ]
    if deepspeed and deepspeed != first.deepspeed_plugins:
        differing.append(
            f"deepspeed_plugin: first {sorted(first.deepspeed_plugins)}, now {sorted(deepspeed)}"
        )
    if differing:
        raise StateError(
            "AcceleratorState was made before with other settings: " + "; ".join(differing),
            fix="pass them to the first AcceleratorState or Accelerator of the process; a test can start "
            "over with AcceleratorState._reset_state(reset_partial_state=True)",
        )
    return first


def _precision(name: str) -> str:
    known = {*PrecisionType.list(), *plugins.names(plugins.PRECISIONS)}
    text = str(name)
    if text.lower() in known:
        return text.lower()
    if text not in known:
        raise UnknownNameError("mixed precision", text, known)
    return text


def _by_name(plugin: Any) -> dict[str, Any]:
    if plugin is None:
        return {}
    return dict(plugin) if isinstance(plugin, Mapping) else {_DEFAULT_DEEPSPEED: plugin}


process.at_reset(AcceleratorState._reset_state)

__all__ = ["AcceleratorState", "chosen_precision"]
