"""The tensors of a model, by name: dtype and shape from the headers of its files, without their data."""

from __future__ import annotations

import os
import re
from pathlib import Path

from accel_core.errors import CheckpointError

from .local import read_local
from .shapes import ModelHeaders, TensorShape


def read_headers(
    path_or_name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    offline: bool = False,
) -> ModelHeaders:
    """Read the headers of a model's files: a folder, a file of weights, an index, or a name on the Hub.

    What exists on this machine is read here. Otherwise a name like ``owner/model`` is looked up on the Hub
    (``revision``, ``token``), of which only headers and the configuration are fetched; with ``offline``, in
    the cache of the Hub's library alone.

    Raises CheckpointError for what is not there, may not be read, or has headers that cannot be true;
    NotInstalledError for a name on the Hub when ``huggingface_hub`` is missing.
    """
    given = Path(path_or_name)
    if given.exists():
        return read_local(given)
    name = os.fspath(path_or_name)
    if not may_be_on_the_hub(name):
        raise CheckpointError(f"There is no file or folder {name}", fix="check the path")
    from .hub import read_hub

    return read_hub(name, revision=revision, token=token, offline=offline)


def may_be_on_the_hub(name: str) -> bool:
    """Tell whether ``name`` is written like that of a model on the Hub: ``model`` or ``owner/model``."""
    part = r"\w(?:[\w.-]*\w)?"
    ended = name.endswith((".git", ".safetensors", ".json", ".bin"))
    return not ended and re.fullmatch(rf"{part}(?:/{part})?", name, re.ASCII) is not None


__all__ = ["ModelHeaders", "TensorShape", "may_be_on_the_hub", "read_headers"]
