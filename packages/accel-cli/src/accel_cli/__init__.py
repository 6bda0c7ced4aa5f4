"""The accel command line; starts without torch."""

from .__about__ import __version__ as __version__
