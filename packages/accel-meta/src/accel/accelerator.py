"""The ``Accelerator``: the four lines in the user's loop. It delegates; the packages below do the work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from operator import attrgetter
from typing import IO, TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from accel_core.config import (
    AutocastKwargs,
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    KwargsHandler,
    ProjectConfiguration,
    TorchDynamoPlugin,
)
from accel_parallel import AcceleratedOptimizer, extract_model
from accel_parallel.inspection import bare
from accel_state import AcceleratorState, GradientState, operations
from accel_state.memory.holders import hold
from accel_state.memory.release import clear_device_cache
from accel_state.process import start as process_state

from . import arguments, resolve
from .accumulation import Accumulate
from .model_api import ModelAPI
from .preemption_api import PreemptionAPI
from .preparation import Registry
from .prepare_api import PrepareAPI
from .state_api import StateAPI
from .tools_api import ToolsAPI
from .uneven_api import UnevenAPI

if TYPE_CHECKING:
    from accel_core.protocols import Precision, Scaler, Strategy

    from .weighting import Weighting

T = TypeVar("T")
_NOT_GIVEN: Any = None


class Accelerator(PrepareAPI, UnevenAPI, ToolsAPI, StateAPI, ModelAPI, PreemptionAPI):
    """Run one training loop on whatever processes and devices it was launched on.

    >>> accelerator = Accelerator()
    >>> model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    >>> for inputs, targets in loader:
    ...     loss = criterion(model(inputs), targets)
    ...     accelerator.backward(loss)
    ...     optimizer.step()
    ...     optimizer.zero_grad()

    ``strategy``, ours: how processes share models, by the name under which an installed package offers
    it; by default alone on one process, data-parallel on several.

    Raises ConfigError, UnknownNameError or CapabilityError for settings that are wrong, unknown or
    impossible here, and StateError when this process was set up differently before.
    """

    def __init__(
        self,
        device_placement: bool = True,
        split_batches: bool = _NOT_GIVEN,
        mixed_precision: str | None = None,
        gradient_accumulation_steps: int = 1,
        cpu: bool = False,
        dataloader_config: DataLoaderConfiguration | None = None,
        deepspeed_plugin: Any = None,
        fsdp_plugin: Any = None,
        torch_tp_plugin: Any = None,
        megatron_lm_plugin: Any = None,
        rng_types: Sequence[str] | None = None,
        log_with: Any = None,
        project_dir: str | None = None,
        project_config: ProjectConfiguration | None = None,
        gradient_accumulation_plugin: GradientAccumulationPlugin | None = None,
        step_scheduler_with_optimizer: bool = True,
        kwargs_handlers: Sequence[KwargsHandler] | None = None,
        dynamo_backend: str | None = None,
        dynamo_plugin: TorchDynamoPlugin | None = None,
        deepspeed_plugins: Any = None,
        parallelism_config: Any = None,
        *,
        strategy: str | None = None,
    ) -> None:
        later = {
            "deepspeed_plugin": deepspeed_plugin,
            "deepspeed_plugins": deepspeed_plugins,
            "fsdp_plugin": fsdp_plugin,
            "torch_tp_plugin": torch_tp_plugin,
            "megatron_lm_plugin": megatron_lm_plugin,
            "parallelism_config": parallelism_config,
            "log_with": log_with,
        }
        arguments.refuse((name for name, value in later.items() if value is not None), "Accelerator(...)")
        self._settings = resolve.settings(
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=gradient_accumulation_steps,
            accumulation=gradient_accumulation_plugin,
            loader=dataloader_config,
            split_batches=split_batches,
            project=project_config,
            project_dir=project_dir,
            handlers=kwargs_handlers,
            rng_types=rng_types,
            dynamo_backend=dynamo_backend,
            dynamo_plugin=dynamo_plugin,
            flags={
                "device_placement": device_placement,
                "cpu": cpu,
                "step_scheduler_with_optimizer": step_scheduler_with_optimizer,
            },
        )
        self.device_placement = device_placement
        self.step_scheduler_with_optimizer = step_scheduler_with_optimizer
        self._start(cpu, strategy)
        self._registry = Registry()
        hold(self, attrgetter("_registry.models"))
        if "preemption" in self._settings.handlers:
            _ = self.preemption  # signals are heard, and deadlines counted, from now on

    def _start(self, cpu: bool, strategy: str | None) -> None:
        """Join the processes, then build what the loop calls into. The order is the dependency."""
        settings = self._settings
        self.state = AcceleratorState(
            mixed_precision=settings.mixed_precision,
            cpu=cpu,
            _from_accelerator=True,
            **self._process_options(),
        )
        process = self._process = process_state()
        self._precision: Precision = resolve.precision(settings.mixed_precision, process, settings.handlers)
        self.scaler: Scaler | None = self._precision.scaler(**self._handler("scaler"))
        self._strategy: Strategy = resolve.strategy(process, self._precision, settings.handlers, strategy)
        self.gradient_state = GradientState(settings.accumulation)
        self._window = self.gradient_state.window

    @cached_property
    def _weighting(self) -> Weighting:
        from .weighting import Weighting

        return Weighting(self._window, self._strategy.batches)

    # -- the step ----------------------------------------------------------------------------

    def accumulate(self, *models: nn.Module) -> AbstractContextManager[None]:
        """Return the context of one micro-batch; gradients are synchronised when it closes its window.

        Without ``models`` it holds for all prepared ones. One forward and backward per model belongs in it.
        One that raises before its backward is not counted, and can be tried again. Raises StateError inside
        another one, and for other models than those that the open window began with: one window counts
        for all of them.
        """
        return Accumulate(self._window, self._strategy, models or self._registry.models)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which ``model`` computes gradients without synchronising them between ranks."""
        return self._strategy.no_sync(model)

    def backward(
        self,
        loss: torch.Tensor,
        *,
        weight: Any = None,
        reduction: str = "sum",
        add: bool = False,
        **kwargs: Any,
    ) -> None:
        """Compute gradients of a mean ``loss``; over a window they add up to the mean over its micro-batches.

        A window cut short by the end of the data is the mean over the micro-batches that it has.

        With ``weight``, the number of samples or tokens in ``loss`` on this rank, gradients are those of
        the mean over all of them, in the window and on all ranks that read different data, however
        unequally they are spread. ``loss`` is then their sum, or with ``reduction="mean"`` their mean.
        Collective when the window closes. A weight that is a tensor on a device is waited for.

        ``add``: another loss of a micro-batch that had its backward. Further arguments go to
        ``Tensor.backward``.

        Raises StateError for a second backward in a micro-batch without ``add`` and for windows that mix
        weighted and unweighted ones, DataError and TypeError for weights that count nothing, and
        CollectiveError when ranks disagree about them; CheckpointError when a save in the background failed.
        """
        window = self._window
        for saver in self._saving:
            saver.check()
        if window.inside:
            window.admit(weighted=weight is not None, add=add)
        window.filled = True
        if weight is not None:
            loss = self._weighting.term(loss, weight, reduction)
        elif reduction != "sum":
            raise arguments.reduction_without_weight(reduction)
        elif window.divisor != 1:
            loss = loss / window.divisor
        if self.scaler is None:
            self._strategy.backward(loss, sync=window.sync_gradients, **kwargs)
        else:
            self._backward_scaled(self.scaler, loss, **kwargs)
        factor = window.correction if weight is None else self._weighting.settle()
        if factor != 1.0:
            self._strategy.gradients.scale_(self._window_parameters(), factor)
            window.corrected()

    def _backward_scaled(self, scaler: Scaler, loss: torch.Tensor, **kwargs: Any) -> None:
        """Compute gradients times the loss scale, and make sure that they are added to such only."""
        held = [(each, each.before_backward()) for each in self._registry.optimizers]
        self._strategy.backward(scaler.scale(loss), sync=self._window.sync_gradients, **kwargs)
        for optimizer, gradients in held:
            if gradients is not None:
                optimizer.after_backward(gradients)

    def _window_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the open window accumulates for: all, unless it names its models."""
        models = self._window.models
        if not models or models == self._registry.models:
            return self._registry.parameters()
        found = {id(p): p for model in models for p in model.parameters()}  # type: ignore[attr-defined]
        return list(found.values())

    def unscale_gradients(self, optimizer: Optimizer | Sequence[Optimizer] | None = None) -> None:
        """Divide gradients by the loss scale, once per step, for all or the given prepared optimizers.

        Within an open window nothing is divided: scaled gradients are still to be added.
        """
        if self.scaler is None:
            return
        chosen: Iterable[Any] = self._registry.optimizers if optimizer is None else optimizer  # type: ignore[assignment]
        for each in [chosen] if isinstance(chosen, Optimizer) else chosen:
            prepared = self._registry.made_of(each)
            if isinstance(prepared, AcceleratedOptimizer):
                prepared.unscale_()

    def clip_grad_norm_(
        self, parameters: torch.Tensor | Iterable[torch.Tensor], max_norm: float, norm_type: float = 2
    ) -> torch.Tensor:
        """Clip the total norm of the gradients in place; return the norm before clipping.

        Within an open window nothing is clipped, since gradients are partial; the norm so far is returned.
        """
        chosen = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        if not self._window.sync_gradients:
            return self._strategy.gradients.clip_norm_(chosen, float("inf"), norm_type)
        self._unscale_over(chosen)
        return self._strategy.gradients.clip_norm_(chosen, max_norm, norm_type)

    def clip_grad_value_(self, parameters: torch.Tensor | Iterable[torch.Tensor], clip_value: float) -> None:
        """Clamp every gradient element into ``[-clip_value, clip_value]``; not within an open window."""
        if not self._window.sync_gradients:
            return
        chosen = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        self._unscale_over(chosen)
        self._strategy.gradients.clip_value_(chosen, clip_value)

    def _unscale_over(self, parameters: Sequence[torch.Tensor]) -> None:
        """Divide the gradients of the optimizers that hold any of ``parameters`` by the loss scale."""
        if self.scaler is None:
            return
        wanted = {id(parameter) for parameter in parameters}
        for optimizer in self._registry.optimizers:
            if any(id(held) in wanted for group in optimizer.param_groups for held in group["params"]):
                optimizer.unscale_()

    def autocast(self, autocast_handler: AutocastKwargs | None = None) -> AbstractContextManager[None]:
        """Return the context in which operations outside the model compute in the mixed precision."""
        handler = autocast_handler or self._settings.handlers.get("autocast")
        if not isinstance(handler, AutocastKwargs):
            return self._precision.autocast()
        return self._precision.autocast(enabled=handler.enabled, cache_enabled=handler.cache_enabled)

    # -- between the ranks -------------------------------------------------------------------

    def gather(self, tensor: T) -> T:
        """Return the nested tensors of all ranks, concatenated along dimension 0 by rank. Collective."""
        gathered: T = operations.gather(tensor)
        return gathered

    def gather_for_metrics(
        self, input_data: Any, use_gather_object: bool = False, *, loader: Any = None
    ) -> Any:
        """Gather values of the batch in hand and remove those of samples that were only padding. Collective.

        Tensors have one row, or a fixed number of rows, per sample; ranks may have unequal numbers. Anything
        else is gathered as objects: a list with one item per sample. ``loader``: the prepared loader whose
        batch they are of, where several run side by side. Raises DataError, on every rank, when padding
        cannot be told apart, and UnevenDataError when a rank has no batch in this step.
        """
        from . import metrics

        objects = use_gather_object or not metrics.all_tensors(input_data)
        group = self._strategy.batches
        return metrics.gather(input_data, self._window, group, objects=objects, loader=loader)

    def reduce(self, tensor: T, reduction: str = "sum", scale: float = 1.0) -> T:
        """Return the nested tensors reduced by ``sum``, ``mean`` or ``none``, then scaled. Collective."""
        reduced: T = operations.reduce(tensor, reduction=reduction, scale=scale)
        return reduced

    def pad_across_processes(self, tensor: T, dim: int = 0, pad_index: int = 0, pad_first: bool = False) -> T:
        """Return the nested tensors padded along ``dim`` to the largest size of any rank. Collective."""
        padded: T = operations.pad_across_processes(tensor, dim=dim, pad_index=pad_index, pad_first=pad_first)
        return padded

    # -- the rest ----------------------------------------------------------------------------

    def save(self, obj: Any, f: str | os.PathLike[str] | IO[bytes], safe_serialization: bool = False) -> None:
        """Write ``obj`` to ``f`` on the main process; on one of each machine with ``save_on_each_node``.

        The file appears whole or not at all. ``save_on_each_node`` is a setting of ProjectConfiguration.
        ``safe_serialization`` writes a mapping of names to tensors as safetensors. Raises as `utils.save`.
        """
        from accel_state.saving import save

        save(obj, f, self.project_configuration.save_on_each_node, safe_serialization)

    def unwrap_model(
        self, model: nn.Module, keep_fp32_wrapper: bool = True, keep_torch_compile: bool = True
    ) -> nn.Module:
        """Return the model that was given to ``prepare``.

        ``keep_fp32_wrapper`` keeps its forward in mixed precision; without it the original forward is
        restored. ``keep_torch_compile`` keeps compilation; without it the model runs uncompiled from now
        on. Its names are the same either way, except for one that was compiled by ``torch.compile(model)``.
        """
        found = extract_model(self._strategy.unwrap(model), keep_torch_compile=keep_torch_compile)
        if not keep_fp32_wrapper:
            for part in {found, bare(found)}:
                self._precision.restore(part)
        return found

    def free_memory(self, *objects: Any) -> list[Any]:
        """Forget everything prepared, give cached memory back, and return one None per object given.

        A window that is open is given up, and a save in the background is waited for.

        >>> model, optimizer = accelerator.free_memory(model, optimizer)
        """
        released: list[Any] = [None] * len(objects)
        del objects
        for saver in self._saving:
            saver.free()
        self._registry.clear()
        self._window.restart()
        clear_device_cache(garbage_collection=True)
        return released

    def clear(self, *objects: Any) -> list[Any]:
        """Do what `free_memory` does, under its other documented name."""
        return self.free_memory(*objects)

    def __repr__(self) -> str:
        return (
            f"Accelerator(rank {self.process_index} of {self.num_processes}, device={self.device},"
            f" strategy={self._strategy.name}, mixed_precision={self.mixed_precision},"
            f" gradient_accumulation_steps={self.gradient_accumulation_steps})"
        )
