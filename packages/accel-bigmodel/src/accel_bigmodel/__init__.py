"""PyTorch models larger than a device."""

from .__about__ import __version__ as __version__
