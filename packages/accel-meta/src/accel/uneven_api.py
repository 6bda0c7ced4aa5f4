"""The part of ``Accelerator`` for ranks that do not have equally much to do."""

from __future__ import annotations


class UnevenAPI:
    """Join ranks whose inputs end at different times, and synchronise out of turn."""
