"""Write weights into a folder so that readers find all of the old ones, all of the new ones, or an error."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from accel_core.errors import CheckpointError
from accel_core.sizes import parse_size
from accel_core.trouble import explaining
from accel_core.weights.layout import FAMILIES, PICKLED, SAFE, Family

from ..checkpoint.files import Files
from ..checkpoint.places import STALE_AFTER
from .encode import Writer, check_safe, write_pickled, write_safe, write_text
from .shards import Shard, divide

_TEMPORARY = re.compile(r"\..+\.accel-[0-9a-f]{12}")


def save(
    state: Mapping[str, torch.Tensor],
    directory: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "10GB",
    safe_serialization: bool = True,
    files: Files | None = None,
) -> list[Path]:
    """Write a state dict into ``directory``; return its files, the index last. One process only.

    ``model.safetensors``, or ``model-00001-of-00003.safetensors`` and so on with
    ``model.safetensors.index.json`` when it is larger than ``max_shard_size`` bytes. Without
    ``safe_serialization`` the names begin with ``pytorch_model``, end in ``.bin``, and ``torch.save``
    writes them. Files of an earlier save that would be read with the new ones, or instead of them, are
    removed afterwards.

    Raises CheckpointError for what is no plain tensor and when a file cannot be written (what was there is
    still there then), ConfigError for a size that is none. ``files`` is for tests that stop it.
    """
    own = files if files is not None else Files()
    family: Family = SAFE if safe_serialization else PICKLED
    write: Writer = write_safe if safe_serialization else write_pickled
    shards = divide(state, parse_size(max_shard_size))
    if safe_serialization:
        for shard in shards:
            check_safe(shard)
    folder = _folder(own, Path(directory))
    names = family.names(len(shards))
    pending = {name: folder / f".{name}.accel-{secrets.token_hex(6)}" for name in names}
    if len(shards) > 1:
        pending[family.index] = folder / f".{family.index}.accel-{secrets.token_hex(6)}"
    try:
        for name, shard in zip(names, shards, strict=True):
            write(own, pending[name], shard)
        if len(shards) > 1:
            write_text(own, pending[family.index], _index(names, shards, further=not safe_serialization))
        with explaining("put the files of weights in place", folder):
            _publish(own, folder, pending, family)
    finally:
        for path in pending.values():
            with suppress(OSError):
                own.remove(path)
    return [folder / name for name in pending]


def _folder(files: Files, directory: Path) -> Path:
    """Return the real folder, made if need be, without what dead processes left in it."""
    folder = Path(os.path.realpath(directory))
    with explaining("make the folder for the weights", folder):
        if os.path.lexists(folder) and not folder.is_dir():
            raise CheckpointError(
                f"{directory} is a file, and weights are saved into a folder",
                where=str(folder),
                fix="name the folder; the names of the files in it are fixed",
            )
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        for each in reversed(missing):
            with suppress(FileExistsError):
                files.make_folder(each)
            files.sync_folder(each.parent)
        for old in folder.iterdir():
            with suppress(FileNotFoundError):
                if _TEMPORARY.fullmatch(old.name) and time.time() - old.lstat().st_mtime > STALE_AFTER:
                    files.remove(old)
    return folder


def _index(names: Sequence[str], shards: Sequence[Shard], *, further: bool) -> bytes:
    """Return the text of the index. Further names of a tensor are in it if they are in the file as such."""
    places = {
        name: file
        for file, shard in zip(names, shards, strict=True)
        for name in (shard.names() if further else shard.tensors)
    }
    total = sum(shard.size for shard in shards)
    value = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return (json.dumps(value, indent=2) + "\n").encode()


def _publish(files: Files, folder: Path, pending: Mapping[str, Path], family: Family) -> None:
    """Give the new files their names, the index last, and take away what would be read beside them."""
    index = folder / family.index
    if index.exists() and any((folder / name).exists() for name in pending if family.is_shard(name)):
        # It leads to files that are replaced one after the other: until the last, nothing may lead to them.
        _remove(files, index)
        files.sync_folder(folder)
    for name, path in pending.items():
        if name == family.index:
            files.sync_folder(folder)
        files.replace(path, folder / name)
    files.sync_folder(folder)
    # The format that is read first must not hide the new one; the other may stay.
    hiding = FAMILIES[: FAMILIES.index(family) + 1]
    stale = [
        each
        for each in sorted(folder.iterdir(), key=lambda each: (each.suffix != ".json", each.name))
        if each.name not in pending and any(other.owns(each.name) for other in hiding)
    ]
    for each in stale:
        _remove(files, each)
    if stale:
        files.sync_folder(folder)


def _remove(files: Files, path: Path) -> None:
    # With save_on_each_node on one file system, another process does the same.
    with suppress(FileNotFoundError):
        files.remove(path)


__all__ = ["save"]
