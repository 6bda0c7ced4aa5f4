"""Sharded, dispatched and exactly counted data loading for PyTorch."""

from .__about__ import __version__ as __version__
