"""Interfaces, settings, environment contract, errors and conformance suites of accel; no torch needed."""

from typing import TYPE_CHECKING

from .__about__ import __version__ as __version__
from .lazy import lazy_door

if TYPE_CHECKING:
    from . import config as config
    from . import enums as enums
    from . import environment as environment
    from . import errors as errors
    from . import logging as logging
    from . import nested as nested
    from . import plugins as plugins
    from . import protocols as protocols
    from . import topology as topology
    from . import window as window
    from .errors import AccelError as AccelError
    from .errors import CapabilityError as CapabilityError
    from .errors import ConfigError as ConfigError
    from .errors import Fault as Fault
    from .errors import NotInstalledError as NotInstalledError
    from .errors import TopologyError as TopologyError
    from .errors import UnknownNameError as UnknownNameError
    from .logging import get_logger as get_logger
    from .nested import map_nested as map_nested
    from .topology import Topology as Topology
    from .window import GradientWindow as GradientWindow
    from .window import LoaderCursor as LoaderCursor

_NAMES = {
    "AccelError": ".errors",
    "CapabilityError": ".errors",
    "ConfigError": ".errors",
    "Fault": ".errors",
    "GradientWindow": ".window",
    "LoaderCursor": ".window",
    "NotInstalledError": ".errors",
    "Topology": ".topology",
    "TopologyError": ".errors",
    "UnknownNameError": ".errors",
    "config": ".config",
    "enums": ".enums",
    "environment": ".environment",
    "errors": ".errors",
    "get_logger": ".logging",
    "logging": ".logging",
    "map_nested": ".nested",
    "nested": ".nested",
    "plugins": ".plugins",
    "protocols": ".protocols",
    "topology": ".topology",
    "window": ".window",
}
__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_door(__name__, _NAMES)
