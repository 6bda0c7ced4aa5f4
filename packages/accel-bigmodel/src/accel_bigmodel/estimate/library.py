"""Models that only a library knows: built from their configuration, without memory for their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from accel_core.errors import CheckpointError, NotInstalledError, UnknownNameError

from ..skeleton import init_empty_weights
from .pickled import shapes
from .shapes import ModelHeaders


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A model to build: a folder or a name on the Hub, and what is known of it."""

    name: str
    config: Mapping[str, Any]
    revision: str | None = None
    token: str | bool | None = None
    offline: bool = False
    trust_remote_code: bool = False


def build_headers(wanted: Wanted, library: str) -> ModelHeaders:
    """Return the headers that the files of a model would have, by building its class in ``library``.

    Code of the model's repository runs only with ``trust_remote_code``. Raises NotInstalledError,
    UnknownNameError for a library that is not known here, CheckpointError for what it cannot build.
    """
    if library not in _BUILDERS:
        raise UnknownNameError("library", library, _BUILDERS, fix="say --library_name transformers or timm")
    model = _BUILDERS[library](wanted)
    # What a file would hold. The tensors themselves, so that two names of one are seen.
    tensors, aliases = shapes(model.state_dict(keep_vars=True))
    source = f"{wanted.name}, built by {library} without its weights"
    return ModelHeaders(tensors, wanted.config, source, library, aliases)


def _transformers(wanted: Wanted) -> nn.Module:
    try:
        here: Any = import_module("transformers")
    except ImportError as error:
        raise NotInstalledError("library", "transformers", "transformers") from error
    own_code = isinstance(wanted.config.get("auto_map"), Mapping)
    if own_code and not wanted.trust_remote_code and not _known(here, wanted.config):
        raise CheckpointError(
            f"{wanted.name} is made by code in its own repository, which was not run",
            fix="read that code; if you trust it, add --trust_remote_code, and it runs on this machine",
        )
    where: dict[str, Any] = {"trust_remote_code": own_code and wanted.trust_remote_code}
    if not Path(wanted.name).exists():
        where |= {"revision": wanted.revision, "token": wanted.token, "local_files_only": wanted.offline}
    with _building("transformers", wanted.name), init_empty_weights():
        config = here.AutoConfig.from_pretrained(wanted.name, **where)
        names = config.architectures or [""]
        cls = getattr(here, names[0], None)
        if cls is not None:
            model: nn.Module = cls(config)
        else:
            keywords = {"trust_remote_code": True} if where["trust_remote_code"] else {}
            model = here.AutoModel.from_config(config, **keywords)
    return model


def _known(transformers: Any, config: Mapping[str, Any]) -> bool:
    return bool(config.get("model_type") in transformers.CONFIG_MAPPING)


def _timm(wanted: Wanted) -> nn.Module:
    try:
        timm: Any = import_module("timm")
    except ImportError as error:
        raise NotInstalledError("library", "timm", "timm") from error
    # Without its weights a model of timm is its architecture and the number of classes.
    name, classes = wanted.config.get("architecture"), wanted.config.get("num_classes")
    if not isinstance(name, str):
        raise CheckpointError(f"The configuration of {wanted.name} names no architecture of timm")
    more = wanted.config.get("model_args")
    keywords: dict[str, Any] = dict(more) if isinstance(more, Mapping) else {}
    if isinstance(classes, int):
        keywords["num_classes"] = classes
    with _building("timm", wanted.name), init_empty_weights():
        model: nn.Module = timm.create_model(name, pretrained=False, **keywords)
    return model


class _building:  # noqa: N801 - used like a function, in a with statement
    """Say which library could not build what, whatever it raises."""

    def __init__(self, library: str, name: str) -> None:
        self._what = f"{library} cannot build {name}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception):
            line = next(iter(str(error).splitlines()), "")[:300]
            raise CheckpointError(f"{self._what}: {type(error).__name__}: {line}") from error


_BUILDERS: dict[str, Callable[[Wanted], nn.Module]] = {"timm": _timm, "transformers": _transformers}

__all__ = ["Wanted", "build_headers"]
