"""One walk over nested containers, used for batches, collectives and conversions alike.

Containers are lists, tuples, named tuples and mappings (any class that can be rebuilt from a
mapping); everything else is a leaf. No tensor library is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def is_namedtuple(data: object) -> bool:
    """Tell whether ``data`` is an instance of a named tuple class."""
    return isinstance(data, tuple) and hasattr(data, "_fields") and hasattr(data, "_asdict")


def rebuild_sequence(original: Any, items: Iterator[Any]) -> Any:
    """Return a sequence of the same class as ``original`` that holds ``items``."""
    cls = type(original)
    if is_namedtuple(original):
        return cls(*items)
    return cls(items)


def rebuild_mapping(original: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """Return a mapping of the same class as ``original`` that holds ``items``.

    A ``defaultdict`` keeps its factory; a class that takes no mapping is copied and refilled.
    """
    cls: Any = type(original)
    if cls is dict:
        return items
    factory = getattr(original, "default_factory", None)
    if factory is not None:
        return cls(factory, items)
    try:
        return cls(items)
    except TypeError:
        copied: Any = original.copy()  # type: ignore[attr-defined]
        for key, value in items.items():
            copied[key] = value
        return copied


def map_nested(function: Callable[[Any], Any], data: Any, *, skip_keys: frozenset[str] | None = None) -> Any:
    """Return ``data`` with ``function`` applied to every leaf; containers keep their classes.

    Values under the mapping keys in ``skip_keys`` are passed through as they are.
    """
    if isinstance(data, (list, tuple)):
        return rebuild_sequence(data, (map_nested(function, item, skip_keys=skip_keys) for item in data))
    if isinstance(data, Mapping):
        return rebuild_mapping(
            data,
            {
                key: item
                if skip_keys and key in skip_keys
                else map_nested(function, item, skip_keys=skip_keys)
                for key, item in data.items()
            },
        )
    return function(data)


def leaves(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(path, leaf)`` for every leaf; paths read like ``[0]['ids']`` and serve error texts."""
    if isinstance(data, (list, tuple)):
        for index, item in enumerate(data):
            yield from leaves(item, f"{path}[{index}]")
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from leaves(value, f"{path}[{key!r}]")
    else:
        yield path, data


def first_leaf(data: Any, accept: Callable[[Any], bool]) -> Any:
    """Return the first leaf that ``accept`` takes, or None."""
    return next((leaf for _, leaf in leaves(data) if accept(leaf)), None)


__all__ = ["first_leaf", "is_namedtuple", "leaves", "map_nested", "rebuild_mapping", "rebuild_sequence"]
