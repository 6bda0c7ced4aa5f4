"""Experiment trackers behind one small interface; no torch needed."""

from .__about__ import __version__ as __version__
