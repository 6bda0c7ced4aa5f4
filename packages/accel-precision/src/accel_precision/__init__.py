"""Mixed precision policies, casting and gradient scaling for PyTorch."""

from .__about__ import __version__ as __version__
