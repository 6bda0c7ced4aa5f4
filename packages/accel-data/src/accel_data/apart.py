"""The global generators of this process, and a place of their own for them while an iteration is resumed."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from hashlib import blake2b
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch

from accel_core.errors import DataError
from accel_core.generators import pack_numpy, pack_python, unpack_numpy, unpack_python


class HostStates(NamedTuple):
    """Where the generators of torch (CPU), Python and NumPy stand; NumPy's is None if nobody imported it."""

    torch: torch.Tensor
    python: tuple[Any, ...]
    numpy: Any


def host_states() -> HostStates:
    """Return where the generators stand."""
    numpy: Any = sys.modules.get("numpy")
    drawn = None if numpy is None else numpy.random.get_state(legacy=False)
    return HostStates(torch.get_rng_state(), random.getstate(), drawn)


def set_host_states(states: HostStates) -> None:
    """Put the generators where ``states`` were."""
    torch.set_rng_state(states.torch)
    random.setstate(states.python)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and states.numpy is not None:
        numpy.random.set_state(states.numpy)


def to_tensors(states: HostStates) -> dict[str, torch.Tensor]:
    """Return ``states`` as uint8 tensors by name."""
    found = {"torch": states.torch.clone(), "python": _tensor(pack_python(states.python))}
    if states.numpy is not None:
        found["numpy"] = _tensor(pack_numpy(states.numpy))
    return found


def from_tensors(found: Mapping[str, Any]) -> HostStates:
    """Return what `to_tensors` was given. Raises DataError for something else."""
    try:
        numpy: Any = sys.modules.get("numpy")
        drawn = None
        if numpy is not None and "numpy" in found:
            drawn = _with_arrays(unpack_numpy(bytes(found["numpy"].tolist())), numpy)
        python = unpack_python(bytes(found["python"].tolist()))
        return HostStates(found["torch"].to("cpu", torch.uint8).clone(), python, drawn)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            "the random states in a loader's position cannot be read",
            where="resume_at",
            fix="pass what position() of a prepared loader returned, unchanged",
        ) from error


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _with_arrays(state: Any, numpy: Any) -> Any:
    if isinstance(state, dict):
        return {key: _with_arrays(value, numpy) for key, value in state.items()}
    return numpy.asarray(state) if hasattr(state, "typecode") else state


class Apart:
    """While it is entered, draws from the global generators come from states of its own.

    So that what torch and samplers draw where an iteration begins has no effect on the run, which had
    these draws behind it when its position was saved. It may be entered many times, until `settle`.
    ``start``: where it begins; None: at a seed that follows from the present state and ``salt``.
    """

    def __init__(self, start: HostStates | None = None, salt: int = 0) -> None:
        self._inner = start
        self._salt = salt
        self._outer: HostStates | None = None
        self._over = False

    def __enter__(self) -> Self:
        if self._over or self._outer is not None:
            return self
        self._outer = host_states()
        if self._inner is not None:
            set_host_states(self._inner)
        else:
            # Not the present state: the next epoch will draw its seed for worker processes from that.
            digest = blake2b(bytes(self._outer.torch.tolist()), digest_size=8, salt=_eight(self._salt))
            torch.default_generator.manual_seed(int.from_bytes(digest.digest(), "little") >> 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def settle(self) -> None:
        """Leave it for good."""
        self._leave()
        self._over = True

    def _leave(self) -> None:
        if self._outer is not None:
            self._inner = host_states()
            set_host_states(self._outer)
            self._outer = None


def _eight(number: int) -> bytes:
    return (number & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")


__all__ = ["Apart", "HostStates", "from_tensors", "host_states", "set_host_states", "to_tensors"]
