"""The interfaces between the packages. At most 8 methods each; torch only for type checkers."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from .abilities import ExplainsFailures as ExplainsFailures
    from .abilities import GuardsSteps as GuardsSteps
    from .abilities import JoinsUneven as JoinsUneven
    from .abilities import SyncsLate as SyncsLate
    from .abilities import TrainsAlone as TrainsAlone
    from .collectives import Collectives as Collectives
    from .collectives import LonelyCollectives as LonelyCollectives
    from .collectives import ReduceOp as ReduceOp
    from .command import Command as Command
    from .command import Launcher as Launcher
    from .command import LaunchSpec as LaunchSpec
    from .device import Device as Device
    from .device import DeviceMemory as DeviceMemory
    from .device import DeviceRNG as DeviceRNG
    from .device import MemoryInfo as MemoryInfo
    from .device import Support as Support
    from .precision import Precision as Precision
    from .precision import PrecisionPlan as PrecisionPlan
    from .precision import Scaler as Scaler
    from .quantizer import Quantizer as Quantizer
    from .state import CheckpointIO as CheckpointIO
    from .state import LoadReport as LoadReport
    from .state import StateSink as StateSink
    from .state import StateSource as StateSource
    from .state import UnitState as UnitState
    from .strategy import GradientOps as GradientOps
    from .strategy import Strategy as Strategy
    from .strategy import StrategyBase as StrategyBase
    from .strategy import StrategyContext as StrategyContext
    from .strategy import Unit as Unit
    from .tracker import NullTracker as NullTracker
    from .tracker import Tracker as Tracker

_NAMES = {
    "CheckpointIO": ".state",
    "Collectives": ".collectives",
    "Command": ".command",
    "Device": ".device",
    "DeviceMemory": ".device",
    "DeviceRNG": ".device",
    "ExplainsFailures": ".abilities",
    "GradientOps": ".strategy",
    "GuardsSteps": ".abilities",
    "JoinsUneven": ".abilities",
    "LaunchSpec": ".command",
    "Launcher": ".command",
    "LoadReport": ".state",
    "LonelyCollectives": ".collectives",
    "MemoryInfo": ".device",
    "NullTracker": ".tracker",
    "Precision": ".precision",
    "PrecisionPlan": ".precision",
    "Quantizer": ".quantizer",
    "ReduceOp": ".collectives",
    "Scaler": ".precision",
    "StateSink": ".state",
    "StateSource": ".state",
    "Strategy": ".strategy",
    "StrategyBase": ".strategy",
    "StrategyContext": ".strategy",
    "Support": ".device",
    "SyncsLate": ".abilities",
    "Tracker": ".tracker",
    "TrainsAlone": ".abilities",
    "Unit": ".strategy",
    "UnitState": ".state",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
