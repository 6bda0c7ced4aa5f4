"""Checkpoints into models: checked from the headers, then each tensor read once, to where it will live."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from .checkpoint import audit_checkpoint as audit_checkpoint
    from .checkpoint import load_checkpoint_and_dispatch as load_checkpoint_and_dispatch
    from .checkpoint import load_checkpoint_in_model as load_checkpoint_in_model
    from .checkpoint import load_state_dict as load_state_dict
    from .report import CheckpointReport as CheckpointReport

_NAMES = {
    "CheckpointReport": ".report",
    "audit_checkpoint": ".checkpoint",
    "load_checkpoint_and_dispatch": ".checkpoint",
    "load_checkpoint_in_model": ".checkpoint",
    "load_state_dict": ".checkpoint",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
