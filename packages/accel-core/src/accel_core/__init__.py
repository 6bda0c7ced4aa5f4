"""Interfaces, configuration, environment contract, errors and conformance suites of accel; no torch needed."""

from .__about__ import __version__ as __version__
