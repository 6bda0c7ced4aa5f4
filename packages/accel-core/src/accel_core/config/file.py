"""The configuration file that ``accel config`` writes and ``accel launch`` reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import MappingProxyType
from typing import Any

from accel_core.errors import ConfigError, Fault
from accel_core.spelling import guess

from .layers import CONFIG_FILE, Layer
from .location import FILE_NAME, default_path
from .schema import SECTIONS, TOP, USES, Key, decode


def config_path(environ: Mapping[str, str] | None = None) -> Path:
    """Return where the default configuration file is, as `accel_core.config.location.default_path` says."""
    return Path(default_path(environ))


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A configuration file that was read and checked. Keys whose value is null are left out."""

    path: Path
    values: Mapping[str, Any]
    """By key; a section's value is a mapping of its own keys."""
    lines: Mapping[str, int] = field(default_factory=dict)
    """The line of each key, sections' keys as ``section.key``."""

    def section(self, name: str) -> dict[str, Any]:
        """Return what section ``name`` says, by field of its family; other keys under their own names."""
        known = SECTIONS[name]
        return {known[key].field or key: value for key, value in self.values.get(name, {}).items()}

    def run_layer(self) -> Layer:
        """Return what the file says on the fields of `accel_core.environment.RunConfig`."""
        values: dict[str, Any] = {}
        labels: dict[str, str] = {}

        def say(name: str, value: object, key: str) -> None:
            values[name] = value
            labels[name] = f"{self.path}:{self.lines[key]}" if key in self.lines else str(self.path)

        for key, known in TOP.items():
            if known.field is not None and key in self.values:
                say(known.field, self.values[key], key)
        for key, value in self.values.get("dynamo_config", {}).items():
            say(key, value, f"dynamo_config.{key}")
        steps = self.values.get("deepspeed_config", {}).get("gradient_accumulation_steps")
        if steps is not None:
            say("gradient_accumulation_steps", steps, "deepspeed_config.gradient_accumulation_steps")
        use = USES.get(self.values.get("distributed_type", ""))
        if use is not None:
            say(use, True, "distributed_type")
        if self.values.get("parallelism_config"):
            say("use_parallelism_config", True, "parallelism_config")
        return Layer(CONFIG_FILE, values, labels)


def read_config(path: str | os.PathLike[str]) -> ConfigFile:
    """Return the configuration file ``path``, YAML or JSON.

    Raises ConfigError with the file, and the line of each fault: text that is no YAML, a key that
    is unknown (with the nearest) or given twice, a value that its key cannot hold.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        fix = "check the path"
        raise ConfigError(
            "configuration file", [Fault("path", str(path), f"cannot be read: {reason}", fix)]
        ) from error
    data, lines, found = _parse(path, text)
    values = dict(_checked(data, found, lines))
    if found:
        raise ConfigError(f"configuration file {path}", found)
    return ConfigFile(path, MappingProxyType(values), MappingProxyType(lines))


def default_config(environ: Mapping[str, str] | None = None) -> ConfigFile | None:
    """Return the default configuration file, or None when there is none."""
    path = config_path(environ)
    return read_config(path) if path.is_file() else None


def write_config(path: str | os.PathLike[str], values: Mapping[str, Any]) -> Path:
    """Write ``values`` as configuration file ``path``, all of it or nothing; folders are made.

    Raises ConfigError for anything that `read_config` would refuse.
    """
    import yaml

    path = Path(path)
    found: list[Fault] = []
    checked = dict(_checked(values, found, {}))
    if found:
        raise ConfigError(f"configuration file {path}", found)
    plain = {key: _plain(value) for key, value in checked.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=".config-", delete=False) as file:
        try:
            if path.suffix == ".json":
                json.dump(plain, file, indent=2, sort_keys=True)
            else:
                yaml.safe_dump(plain, file, allow_unicode=True)
        except BaseException:
            with suppress(OSError):
                Path(file.name).unlink()
            raise
    Path(file.name).replace(path)
    return path


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _parse(path: Path, text: str) -> tuple[dict[str, Any], dict[str, int], list[Fault]]:
    """Return the YAML mapping in ``text``, the line of each key, and keys that were given twice."""
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            found: list[Fault] = []
            lines = dict(_lines(root, "", found))
            data = {} if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else "contents"
        reason = getattr(error, "problem", None) or str(error)
        line = text.splitlines()[mark.line].strip() if mark and mark.line < len(text.splitlines()) else ""
        raise ConfigError(
            f"configuration file {path}", [Fault(where, line, f"is no YAML: {reason}")]
        ) from error
    except RecursionError:
        nested = Fault("contents", f"{text[:40]}...", "is nested too deeply")
        raise ConfigError(f"configuration file {path}", [nested]) from None
    if not isinstance(data, dict):
        raise ConfigError(f"configuration file {path}", [Fault("contents", data, "must be keys with values")])
    return data, lines, found


def _lines(node: Any, prefix: str, found: list[Fault]) -> Iterator[tuple[str, int]]:
    """Yield each key with its line, two levels deep; YAML itself would let the second of two keys win."""
    if getattr(node, "id", "") != "mapping":
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if name in seen:
            found.append(Fault(name, value.value, f"is given twice, in lines {seen[name]} and {line}"))
        seen[name] = line
        yield name, line
        if not prefix:
            yield from _lines(value, f"{key.value}.", found)


def _checked(
    data: Mapping[Any, Any], found: list[Fault], lines: Mapping[str, int]
) -> Iterator[tuple[str, Any]]:
    """Yield every key with its decoded value; add what is wrong to ``found``."""
    for key, value in data.items():
        if key in SECTIONS:
            if value is None:
                continue
            if not isinstance(value, Mapping):
                found.append(_fault(key, value, "must be a table of keys", lines))
                continue
            yield key, dict(_decoded(value, SECTIONS[key], found, lines, prefix=f"{key}."))
        else:
            yield from _decoded({key: value}, TOP, found, lines, others=SECTIONS)


def _decoded(
    data: Mapping[Any, Any],
    known: Mapping[str, Key],
    found: list[Fault],
    lines: Mapping[str, int],
    *,
    prefix: str = "",
    others: Mapping[str, object] = MappingProxyType({}),
) -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if key not in known:
            names = [*known, *others]
            fix = guess(str(key), names) or f"known: {', '.join(sorted(names))}"
            found.append(_fault(f"{prefix}{key}", value, "is an unknown key", lines, fix))
        elif value is not None and value not in ("", []):
            try:
                yield key, decode(known[key].codec, value)
            except ValueError as error:
                found.append(_fault(f"{prefix}{key}", value, str(error), lines))


def _fault(key: str, value: object, reason: str, lines: Mapping[str, int], fix: str = "") -> Fault:
    place = f"{key} (line {lines[key]})" if key in lines else key
    return Fault(place, value, reason, fix)


__all__ = ["FILE_NAME", "ConfigFile", "config_path", "default_config", "read_config", "write_config"]
