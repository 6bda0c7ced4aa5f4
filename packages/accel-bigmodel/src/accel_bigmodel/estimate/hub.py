"""Headers of a model on the Hub: a few ranges of its files, through the Hub's own library."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accel_core.errors import CheckpointError, NotInstalledError
from accel_core.weights.header import checked
from accel_core.weights.index import WeightFiles, read_places
from accel_core.weights.layout import FAMILIES, PICKLED, SAFE

from .hub_refusals import UnreachableError, answering
from .local import CONFIG, SAFE_ENDING, read_config, read_local
from .shapes import ModelHeaders, NoHeadersError, TensorShape
from .tied import without_ties

_AT_ONCE = 8
_LIKELY = tuple(name for family in FAMILIES for name in (family.single, family.index))


def read_hub(name: str, *, revision: str | None, token: str | bool | None, offline: bool) -> ModelHeaders:
    """Return the headers of the model ``name``.

    What the cache of the Hub's library holds is used when ``offline``, and when the Hub cannot be reached.
    Raises CheckpointError with the answer of the Hub, NoHeadersError for a model without safetensors,
    NotInstalledError.
    """
    hub = _library()
    if offline or hub.constants.HF_HUB_OFFLINE:
        return _cached(hub, name, revision, "and this run is offline")
    # Looked up now: the library reads the variable once, when it is imported.
    api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    try:
        with answering(hub, api, name, revision):
            return _online(hub, api, name, revision)
    except UnreachableError as error:
        try:
            return _cached(hub, name, revision, "and the Hub cannot be reached")
        except CheckpointError as missing:
            raise error from missing


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise NotInstalledError("library", "huggingface_hub", "accel-bigmodel[estimate]") from error
    return huggingface_hub


def _online(hub: Any, api: Any, name: str, revision: str | None) -> ModelHeaders:
    about = api.model_info(name, revision=revision, files_metadata=True)
    sizes = {each.rfilename: each.size for each in about.siblings or ()}
    # All files of one commit, whatever is pushed meanwhile.
    remote = _Remote(hub, api, name, about.sha or revision, sizes)
    library = about.library_name or ""
    config = read_config(remote.fetched(CONFIG)) if CONFIG in sizes else {}
    where = f"{name} on {_host(api.endpoint)}"
    weights = _files(remote, sizes)
    if weights is None:
        raise NoHeadersError(
            _without(name, sizes),
            config=config,
            library=library,
            where=where,
            fix="name a folder on this machine that holds the model",
        )
    headers = remote.headers(weights.files)
    chosen = weights.assign({file: list(held) for file, held in headers.items()})
    tensors = {key: headers[file][key] for key, file in chosen.items()}
    return without_ties(ModelHeaders(tensors, config, f"{where}, headers only", library))


def _files(remote: _Remote, sizes: Mapping[str, int | None]) -> WeightFiles | None:
    """Return the files of weights, by their paths in the repository."""
    if SAFE.single not in sizes and SAFE.index in sizes:
        places = {key: Path(file) for key, file in read_places(remote.fetched(SAFE.index)).items()}
        return WeightFiles(Path(SAFE.index), tuple(dict.fromkeys(places.values())), places)
    lone = [name for name in sizes if name.endswith(SAFE_ENDING) and "/" not in name]
    single = SAFE.single if SAFE.single in sizes else lone[0] if len(lone) == 1 else None
    return None if single is None else WeightFiles(Path(single), (Path(single),), None)


def _without(name: str, sizes: Mapping[str, int | None]) -> str:
    if PICKLED.single in sizes or PICKLED.index in sizes:
        return f"{name} has weights in torch files only, which have no headers that can be read from afar"
    inner = sorted({file.rpartition("/")[0] for file in sizes if file.endswith(SAFE_ENDING) and "/" in file})
    if inner:
        return f"{name} has its weights in folders ({', '.join(inner[:5])}), a model each"
    return f"{name} has no weights in safetensors"


class _Remote:
    """One commit of a repository."""

    def __init__(
        self, hub: Any, api: Any, name: str, commit: str | None, sizes: Mapping[str, int | None]
    ) -> None:
        self._hub = hub
        self._api = api
        self._name = name
        self._commit = commit
        self._sizes = sizes

    def fetched(self, file: str) -> Path:
        """Return a small file, from the cache or downloaded into it."""
        with _quiet(self._hub):
            return Path(self._api.hf_hub_download(self._name, file, revision=self._commit))

    def headers(self, files: Sequence[Path]) -> dict[Path, dict[str, TensorShape]]:
        """Return the headers of ``files``, several at a time."""
        missing = [file.as_posix() for file in files if file.as_posix() not in self._sizes]
        if missing:
            raise CheckpointError(
                f"The index names the file {missing[0]!r}, which is not there", where=self._name
            )
        with ThreadPoolExecutor(min(_AT_ONCE, len(files))) as pool:
            return dict(zip(files, pool.map(self._header, files), strict=True))

    def _header(self, path: Path) -> dict[str, TensorShape]:
        file = path.as_posix()
        where = f"{file} of {self._name}"
        try:
            said = self._api.parse_safetensors_file_metadata(self._name, file, revision=self._commit)
            tensors = {
                name: {"dtype": each.dtype, "shape": each.shape, "data_offsets": list(each.data_offsets)}
                for name, each in said.tensors.items()
            }
        except self._hub.errors.SafetensorsParsingError as error:
            raise _wrong(where, str(error)) from error
        # What the library makes of JSON that is no header at all.
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, self._hub.errors.HfHubHTTPError):
                raise
            raise _wrong(where, f"{type(error).__name__}: {error}") from error
        size = self._sizes[file]
        data = max((end for each in tensors.values() for end in _numbers(each["data_offsets"])), default=0)
        if size is not None and data > size - 8:
            raise _wrong(where, f"it tells of {data:,} bytes of data in a file of {size:,}")
        return {
            name: TensorShape(place.code, place.shape)
            for name, place in checked(tensors, 0, data, where).items()
        }


def _numbers(values: list[Any]) -> list[int]:
    return [value for value in values if type(value) is int]


def _wrong(where: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"The header of a tensor file is wrong: {reason[:300]}",
        where=where,
        fix="try again; if it stays, the file is damaged, or was made to mislead",
    )


def _cached(hub: Any, name: str, revision: str | None, why: str) -> ModelHeaders:
    found = {file: hub.try_to_load_from_cache(name, file, revision=revision) for file in (*_LIKELY, CONFIG)}
    there = {file: Path(path) for file, path in found.items() if isinstance(path, str)}
    weights = [path for file, path in there.items() if file != CONFIG]
    source = f"{name} in the cache of the Hub's library"
    if weights:
        return read_local(weights[0].parent, source)
    config = read_config(there[CONFIG]) if CONFIG in there else {}
    raise NoHeadersError(
        f"The weights of {name} are not in the cache of the Hub's library, {why}",
        config=config,
        where=str(hub.constants.HF_HUB_CACHE),
        fix="run once with access to the Hub, or name a folder with the model",
    )


@contextmanager
def _quiet(hub: Any) -> Iterator[None]:
    """Show no progress bars for files of a few kilobytes."""
    utils = hub.utils
    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _host(endpoint: str) -> str:
    return endpoint.partition("://")[2].rstrip("/")


__all__ = ["read_hub"]
