"""What the ``Accelerator`` does with whole models: write and read their weights."""

from __future__ import annotations


class ModelAPI:
    """Whole models as files; nothing yet."""


__all__ = ["ModelAPI"]
