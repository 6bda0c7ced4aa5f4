"""Headers of files on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accel_core.errors import CheckpointError
from accel_core.plain_json import parse
from accel_core.trouble import explaining
from accel_core.weights.header import read_header
from accel_core.weights.index import WeightFiles, locate, real_file
from accel_core.weights.layout import SAFE

from .shapes import ModelHeaders, NoHeadersError, TensorShape
from .tied import without_ties

CONFIG = "config.json"
SAFE_ENDING = SAFE.ending
_MOST_CONFIG = 16 << 20


def read_local(path: Path, source: str = "") -> ModelHeaders:
    """Return the headers of a folder, a file of weights or an index. Raises CheckpointError."""
    folder = path if path.is_dir() else path.parent
    config = read_config(folder / CONFIG)
    files = _files(path, config)
    source = source or str(path)
    if all(each.suffix == SAFE_ENDING for each in files.files):
        return without_ties(ModelHeaders(_safe(files), config, source))
    from .pickled import read_pickled

    tensors, aliases = read_pickled(files)
    kind = "read by torch from files that have no headers"
    return without_ties(ModelHeaders(tensors, config, f"{source}, {kind}", aliases=aliases))


def read_config(path: Path) -> dict[str, Any]:
    """Return what a configuration says, nothing when there is none. Raises CheckpointError."""
    with explaining("read the configuration", path):
        if not path.is_file():
            return {}
        if path.stat().st_size > _MOST_CONFIG:
            raise CheckpointError("A configuration is far too large", where=str(path))
        text = path.read_bytes()
    value = parse(text, str(path))
    if not isinstance(value, dict):
        raise CheckpointError("The configuration is no JSON object", where=str(path))
    return value


def _files(path: Path, config: dict[str, Any]) -> WeightFiles:
    try:
        return locate(path)
    except CheckpointError as error:
        found = sorted(path.glob(f"*{SAFE_ENDING}")) if path.is_dir() else []
        indexed = path.is_dir() and any(path.glob("*.index.json"))
        if len(found) == 1 and not indexed and not SAFE.is_shard(found[0].name):
            # One file under a name of its own, as diffusers and adapters have it, leaves no doubt.
            return WeightFiles(found[0], (found[0],), None)
        if found or indexed or not config or not path.is_dir():
            raise
        raise NoHeadersError(error.what, config=config, where=error.where, fix=error.fix) from error


def _safe(files: WeightFiles) -> dict[str, TensorShape]:
    places = {file: read_header(real_file(file), str(file)) for file in files.files}
    chosen = files.assign({file: list(names) for file, names in places.items()})
    found = {}
    for name, file in chosen.items():
        place = places[file][name]
        found[name] = TensorShape(place.code, place.shape)
    return found


__all__ = ["CONFIG", "SAFE_ENDING", "read_config", "read_local"]
