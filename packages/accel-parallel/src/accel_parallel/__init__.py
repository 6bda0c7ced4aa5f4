"""How processes share one PyTorch model: strategies, optimizer and scheduler wrappers."""

from .__about__ import __version__ as __version__
