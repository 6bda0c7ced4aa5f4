"""Settings: the documented classes, layers with provenance, and the configuration file."""

from typing import TYPE_CHECKING

from accel_core.lazy import lazy_door

if TYPE_CHECKING:
    from .base import Config as Config
    from .base import KwargsHandler as KwargsHandler
    from .base import defaults_of as defaults_of
    from .compiling import TorchDynamoPlugin as TorchDynamoPlugin
    from .file import ConfigFile as ConfigFile
    from .file import config_path as config_path
    from .file import default_config as default_config
    from .file import read_config as read_config
    from .file import write_config as write_config
    from .handlers import AutocastKwargs as AutocastKwargs
    from .handlers import DistributedDataParallelKwargs as DistributedDataParallelKwargs
    from .handlers import GradScalerKwargs as GradScalerKwargs
    from .handlers import InitProcessGroupKwargs as InitProcessGroupKwargs
    from .layers import CODE as CODE
    from .layers import COMMAND_LINE as COMMAND_LINE
    from .layers import CONFIG_FILE as CONFIG_FILE
    from .layers import DEFAULT as DEFAULT
    from .layers import ENVIRONMENT as ENVIRONMENT
    from .layers import ORDER as ORDER
    from .layers import Layer as Layer
    from .layers import Layers as Layers
    from .layers import Resolved as Resolved
    from .layers import Said as Said
    from .preemption import PreemptionKwargs as PreemptionKwargs
    from .profile import ProfileKwargs as ProfileKwargs
    from .run import DataLoaderConfiguration as DataLoaderConfiguration
    from .run import GradientAccumulationPlugin as GradientAccumulationPlugin
    from .run import ProjectConfiguration as ProjectConfiguration

_NAMES = {
    "AutocastKwargs": ".handlers",
    "CODE": ".layers",
    "COMMAND_LINE": ".layers",
    "CONFIG_FILE": ".layers",
    "Config": ".base",
    "ConfigFile": ".file",
    "DEFAULT": ".layers",
    "DataLoaderConfiguration": ".run",
    "DistributedDataParallelKwargs": ".handlers",
    "ENVIRONMENT": ".layers",
    "GradScalerKwargs": ".handlers",
    "GradientAccumulationPlugin": ".run",
    "InitProcessGroupKwargs": ".handlers",
    "KwargsHandler": ".base",
    "Layer": ".layers",
    "Layers": ".layers",
    "ORDER": ".layers",
    "PreemptionKwargs": ".preemption",
    "ProfileKwargs": ".profile",
    "ProjectConfiguration": ".run",
    "Resolved": ".layers",
    "Said": ".layers",
    "TorchDynamoPlugin": ".compiling",
    "config_path": ".file",
    "default_config": ".file",
    "defaults_of": ".base",
    "read_config": ".file",
    "write_config": ".file",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
