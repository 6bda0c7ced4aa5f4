"""The user's function: what it must look like, and how it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from accel_core.errors import AccelError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class BatchSizeCallError(AccelError, TypeError):
    """Report a function that cannot be given a batch size first, or a call that does not fit to it."""


def signature_without_size(
    function: Callable[..., Any], owner: str = "find_executable_batch_size"
) -> inspect.Signature:
    """Return the signature of ``function`` as callers see it: without its first parameter, the batch size.

    Raises BatchSizeCallError when the first parameter is none that takes a batch size.
    """
    if not callable(function):
        raise BatchSizeCallError(
            f"{owner} needs a function, not {type(function).__name__}",
            fix="write @find_executable_batch_size(starting_batch_size=...), the number by its name",
        )
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    first = parameters[0] if parameters else None
    name = name_of(function)
    if first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL:
        return signature
    if first is None or first.kind not in _POSITIONAL:
        raise BatchSizeCallError(
            f"{name}{signature} takes no batch size: it must be the first positional parameter",
            where=_place(function),
            fix=f"write def {name}(batch_size, ...)",
        )
    if first.name in {"self", "cls"}:
        raise BatchSizeCallError(
            f"{name}{signature} is a method: its first parameter would be the batch size",
            where=_place(function),
            fix=f"decorate a function inside the method, where it sees {first.name}",
        )
    return signature.replace(parameters=parameters[1:])


class SizedCall:
    """One call of the user's function with the batch size still to come."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            inspect.signature(function).bind(1, *args, **kwargs)
        except TypeError as error:
            raise _wrong_call(function, args, kwargs, error) from None
        self.name = name_of(function)
        self._function = function
        self._args = args
        self._kwargs = kwargs

    def __call__(self, size: int) -> Any:
        """Call the function with batch size ``size``."""
        return self._function(size, *self._args, **self._kwargs)


def _wrong_call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], error: TypeError
) -> BatchSizeCallError:
    name, seen = name_of(function), signature_without_size(function)
    words = [*(_short(value) for value in args), *(f"{key}={_short(value)}" for key, value in kwargs.items())]
    what = f"{name}({', '.join(words)}) does not fit: {error}"
    try:
        seen.bind(*args[1:], **kwargs)
    except TypeError:
        pass
    else:
        if args:
            what = f"A batch size was passed to {name}: the decorator passes it as the first argument"
    return BatchSizeCallError(what, where=_place(function), fix=f"call {name}{seen}")


def name_of(function: Callable[..., Any]) -> str:
    """Return what to call ``function`` in a message."""
    return str(getattr(function, "__name__", type(function).__name__))


def _place(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""


def _short(value: object) -> str:
    return repr(value) if isinstance(value, (int, float, str, bool, type(None))) else type(value).__name__


__all__ = ["BatchSizeCallError", "SizedCall", "name_of", "signature_without_size"]
