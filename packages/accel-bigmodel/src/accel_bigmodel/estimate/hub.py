"""Headers of a model on the Hub."""

from __future__ import annotations

from accel_core.errors import NotInstalledError

from .shapes import ModelHeaders


def read_hub(name: str, *, revision: str | None, token: str | bool | None, offline: bool) -> ModelHeaders:
    """Return the headers of the model ``name``."""
    raise NotInstalledError("library", "huggingface_hub", "accel-bigmodel[estimate]")


__all__ = ["read_hub"]
