"""Where the configuration file is. A module of its own: every start asks, and mostly there is no file."""

from __future__ import annotations

import os
from collections.abc import Mapping

from accel_core.environment.machine import HF_HOME, XDG_CACHE_HOME

FILE_NAME = "default_config.yaml"


def default_path(environ: Mapping[str, str] | None = None) -> str:
    """Return where the default configuration file is, whether or not there is one.

    In ``accelerate`` under HF_HOME, else in ``huggingface/accelerate`` under XDG_CACHE_HOME, else
    under ``~/.cache``.
    """
    environ = os.environ if environ is None else environ
    home, cache = (environ.get(name, "").strip() for name in (HF_HOME, XDG_CACHE_HOME))
    folder = (home, "accelerate") if home else (cache or "~/.cache", "huggingface", "accelerate")
    # Not pathlib, which takes longer to import than the rest of a command line does to start.
    return os.path.join(os.path.expanduser(folder[0]), *folder[1:], FILE_NAME)  # noqa: PTH111, PTH118


__all__ = ["FILE_NAME", "default_path"]
