"""The same PyTorch training loop on one CPU, one accelerator, many accelerators or many machines."""

from .__about__ import __version__ as __version__
