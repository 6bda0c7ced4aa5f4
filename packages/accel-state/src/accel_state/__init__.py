"""Processes, devices, collectives and random numbers for PyTorch programs."""

from .__about__ import __version__ as __version__
