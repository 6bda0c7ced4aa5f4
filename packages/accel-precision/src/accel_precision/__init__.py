"""Mixed precision policies, casting and gradient scaling for PyTorch."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

from .__about__ import __version__ as __version__

if TYPE_CHECKING:
    from .functions import get_grad_scaler as get_grad_scaler
    from .functions import get_mixed_precision_context_manager as get_mixed_precision_context_manager
    from .outputs import convert_outputs_to_fp32 as convert_outputs_to_fp32
    from .outputs import convert_to_fp32 as convert_to_fp32
    from .policies import AutocastForward as AutocastForward
    from .policies import AutocastPrecision as AutocastPrecision
    from .policies import BFloat16 as BFloat16
    from .policies import Float16 as Float16
    from .policies import FullPrecision as FullPrecision
    from .policies import restore_forward as restore_forward
    from .scaler import GradScaler as GradScaler

_NAMES = {
    "AutocastForward": ".policies",
    "AutocastPrecision": ".policies",
    "BFloat16": ".policies",
    "Float16": ".policies",
    "FullPrecision": ".policies",
    "GradScaler": ".scaler",
    "convert_outputs_to_fp32": ".outputs",
    "convert_to_fp32": ".outputs",
    "get_grad_scaler": ".functions",
    "get_mixed_precision_context_manager": ".functions",
    "restore_forward": ".policies",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
