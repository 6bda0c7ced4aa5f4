"""Which process runs what: decorators and contexts shared by every view of the process state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, overload

from accel_core.errors import ConfigError, Fault

P = ParamSpec("P")
R = TypeVar("R")
Runs = Callable[P, R | None]


class Execution:
    """Run code on chosen processes only. Subclasses say who this process is."""

    @property
    def num_processes(self) -> int:
        """Return the number of processes."""
        raise NotImplementedError

    @property
    def process_index(self) -> int:
        """Return this process's rank."""
        raise NotImplementedError

    @property
    def local_process_index(self) -> int:
        """Return this process's rank on its machine."""
        raise NotImplementedError

    def wait_for_everyone(self) -> None:
        """Wait until every process has come here."""
        raise NotImplementedError

    @property
    def is_main_process(self) -> bool:
        """Tell whether this is rank 0."""
        return self.process_index == 0

    @property
    def is_local_main_process(self) -> bool:
        """Tell whether this is the first process of its machine."""
        return self.local_process_index == 0

    @property
    def is_last_process(self) -> bool:
        """Tell whether this is the highest rank."""
        return self.process_index == self.num_processes - 1

    # -- order -----------------------------------------------------------------------------------

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Let rank 0 run the body first; the others run it when rank 0 is done."""
        yield from self._goes_first(self.is_main_process)

    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """Let the first process of each machine run the body first; the others run it afterwards."""
        yield from self._goes_first(self.is_local_main_process)

    def _goes_first(self, first: bool) -> Iterator[None]:
        if not first:
            self.wait_for_everyone()
        try:
            yield
        finally:
            # Also after an error in the body: the others must not wait for a process that has failed.
            if first:
                self.wait_for_everyone()

    # -- decorators ------------------------------------------------------------------------------

    @overload
    def on_main_process(self, function: Callable[P, R]) -> Runs[P, R]: ...
    @overload
    def on_main_process(self, function: None = None) -> Callable[[Callable[P, R]], Runs[P, R]]: ...
    def on_main_process(self, function: Any = None) -> Any:
        """Run the decorated function on rank 0 only; elsewhere it returns None."""
        return _decorator(function, lambda: self.is_main_process)

    @overload
    def on_local_main_process(self, function: Callable[P, R]) -> Runs[P, R]: ...
    @overload
    def on_local_main_process(self, function: None = None) -> Callable[[Callable[P, R]], Runs[P, R]]: ...
    def on_local_main_process(self, function: Any = None) -> Any:
        """Run the decorated function on the first process of each machine only; elsewhere it returns None."""
        return _decorator(function, lambda: self.is_local_main_process)

    def on_last_process(self, function: Callable[P, R]) -> Runs[P, R]:
        """Run the decorated function on the highest rank only; elsewhere it returns None."""
        return _only_if(function, lambda: self.is_last_process)

    @overload
    def on_process(self, function: Callable[P, R], process_index: int | None = None) -> Runs[P, R]: ...
    @overload
    def on_process(
        self, function: None = None, process_index: int | None = None
    ) -> Callable[[Callable[P, R]], Runs[P, R]]: ...
    def on_process(self, function: Any = None, process_index: int | None = None) -> Any:
        """Run the decorated function on rank ``process_index`` only; elsewhere it returns None."""
        index = _index("on_process", "process_index", process_index)
        return _decorator(function, lambda: self.process_index == index)

    @overload
    def on_local_process(
        self,
        function: Callable[P, R],
        local_process_index: int | None = None,
        *,
        local_process_idx: int | None = None,
    ) -> Runs[P, R]: ...
    @overload
    def on_local_process(
        self,
        function: None = None,
        local_process_index: int | None = None,
        *,
        local_process_idx: int | None = None,
    ) -> Callable[[Callable[P, R]], Runs[P, R]]: ...
    def on_local_process(
        self,
        function: Any = None,
        local_process_index: int | None = None,
        *,
        local_process_idx: int | None = None,
    ) -> Any:
        """Run the decorated function on one process of each machine only; elsewhere it returns None.

        ``local_process_idx`` is a second name of ``local_process_index`` that the guides use.
        """
        if local_process_index is not None and local_process_idx is not None:
            fault = Fault(
                "local_process_idx", local_process_idx, "is a second name of local_process_index", "pass one"
            )
            raise ConfigError("on_local_process", [fault])
        given = local_process_index if local_process_index is not None else local_process_idx
        index = _index("on_local_process", "local_process_index", given)
        return _decorator(function, lambda: self.local_process_index == index)

    # -- output ----------------------------------------------------------------------------------

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print once per machine; the arguments are those of the built-in ``print``."""
        if self.is_local_main_process:
            print(*args, **kwargs)


def _decorator(function: Any, condition: Callable[[], bool]) -> Any:
    if function is None:
        return lambda inner: _only_if(inner, condition)
    return _only_if(function, condition)


def _only_if(function: Callable[P, R], condition: Callable[[], bool]) -> Runs[P, R]:
    if not callable(function):
        raise ConfigError("process decorator", [Fault("function", function, "must be a function")])

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R | None:
        return function(*args, **kwargs) if condition() else None

    return run


def _index(owner: str, name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(owner, [Fault(name, value, "must be a whole number from 0", f"@{owner}({name}=0)")])
    return value


__all__ = ["Execution"]
