"""The part of ``Accelerator`` that tells how it was set up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accel_core.config import InitProcessGroupKwargs, TorchDynamoPlugin

if TYPE_CHECKING:
    from accel_core.config import ProjectConfiguration
    from accel_core.window import GradientWindow
    from accel_state import AcceleratorState

    from .preparation import Registry
    from .resolve import Settings


class ConfigurationAPI:
    """Show the settings that an ``Accelerator`` was resolved to."""

    state: AcceleratorState
    _settings: Settings
    _window: GradientWindow
    _registry: Registry

    if not TYPE_CHECKING:  # a type checker would take every attribute for one that is there

        def __getattr__(self, name: str) -> Any:
            from .later import missing

            raise missing(name)

    @property
    def mixed_precision(self) -> str:
        """Return the name of the precision policy."""
        return self._settings.mixed_precision

    @property
    def split_batches(self) -> bool:
        """Return whether a loader's batch is cut between the ranks instead of multiplied by them."""
        return self._settings.loader.split_batches

    @property
    def dispatch_batches(self) -> bool | None:
        """Return whether rank 0 reads for all."""
        return self._settings.loader.dispatch_batches

    @property
    def even_batches(self) -> bool:
        """Return whether the last batches are completed so that all ranks have equally many samples."""
        return self._settings.loader.even_batches

    @property
    def use_seedable_sampler(self) -> bool:
        """Return whether shuffling was asked to come from the data seed."""
        return self._settings.loader.use_seedable_sampler

    @property
    def non_blocking(self) -> bool:
        """Return whether batches move to the device without waiting."""
        return self._settings.loader.non_blocking

    @property
    def use_stateful_dataloader(self) -> bool:
        """Return whether prepared loaders keep a state of their own."""
        return self._settings.loader.use_stateful_dataloader

    @property
    def rng_types(self) -> list[str]:
        """Return the random number generators that ranks synchronise at the start of each iteration."""
        return list(self._settings.rng_types)

    @property
    def dynamo_plugin(self) -> TorchDynamoPlugin | None:
        """Return how models are compiled, None when they are not."""
        found = self._settings.handlers.get("dynamo")
        return found if isinstance(found, TorchDynamoPlugin) else None

    @property
    def project_configuration(self) -> ProjectConfiguration:
        """Return where this project keeps its files."""
        return self._settings.project

    @property
    def project_dir(self) -> str | None:
        """Return the folder of this project."""
        return self._settings.project.project_dir

    @property
    def logging_dir(self) -> str | None:
        """Return the folder for logs."""
        return self._settings.project.logging_dir

    @property
    def save_iteration(self) -> int:
        """Return the number of the next checkpoint."""
        return self._settings.project.iteration

    @property
    def sync_gradients(self) -> bool:
        """Return whether the latest micro-batch closed its window."""
        return self._window.sync_gradients

    @sync_gradients.setter
    def sync_gradients(self, value: bool) -> None:
        self._window.sync_gradients = value

    @property
    def gradient_accumulation_steps(self) -> int:
        """Return the number of micro-batches in a full window."""
        return self._window.num_steps

    @gradient_accumulation_steps.setter
    def gradient_accumulation_steps(self, value: int) -> None:
        self._window.resize(value)

    @property
    def optimizer_step_was_skipped(self) -> bool:
        """Return whether a prepared optimizer skipped its latest step because gradients overflowed."""
        return any(optimizer.step_was_skipped for optimizer in self._registry.optimizers)

    def _handler(self, name: str) -> dict[str, Any]:
        handler = self._settings.handlers.get(name)
        return {} if handler is None else handler.to_kwargs()

    def _process_options(self) -> dict[str, Any]:
        handler = self._settings.handlers.get("init")
        if not isinstance(handler, InitProcessGroupKwargs):
            return {}
        return {**handler.to_kwargs(), "backend": handler.wanted_backend}
