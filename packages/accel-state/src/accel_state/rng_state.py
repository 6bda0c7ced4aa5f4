"""The states of this process's generators as tensors, and back on as many processes as there are now."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from accel_core.errors import CheckpointError
from accel_core.generators import pack_numpy, pack_python, unpack_numpy, unpack_python

from . import process

if TYPE_CHECKING:
    from accel_core.protocols import Device


@dataclass(frozen=True, slots=True)
class RestoredRNG:
    """What came of `restore`: names of generators, ``python``, ``numpy``, ``torch`` or a kind of hardware."""

    restored: tuple[str, ...]
    """They continue the state of a saved rank."""
    derived: tuple[str, ...]
    """They were seeded anew, from the saved states and the rank: a rank that was not there when saved."""
    missing: tuple[str, ...]
    """They were saved and are not here, or are here and were not saved: they stay as they are."""


class _Generator(NamedTuple):
    read: Callable[[], torch.Tensor]
    write: Callable[[torch.Tensor], None]
    """Raises ValueError, TypeError or RuntimeError for what is no state."""
    seed: Callable[[bytes], object]


def capture() -> dict[str, torch.Tensor]:
    """Return the states of all global generators of this process: uint8 tensors on the CPU, by name.

    ``python``; ``numpy``, when somebody has imported it; ``torch`` for its CPU generator; and the hardware
    this process computes on, by its kind. Nothing is imported and no device is touched for it.
    """
    return {name: generator.read() for name, generator in _generators(numpy="numpy" in sys.modules).items()}


def restore(states: Sequence[Mapping[str, torch.Tensor]], rank: int, world_size: int) -> RestoredRNG:
    """Put the generators of rank ``rank`` where the saved ``states`` were; return which ones.

    ``states``: what `capture` gave on each of the saved ranks, in rank order. On the same number of ranks
    each continues its own state. On another number: a generator that stood alike on all saved ranks
    continues on all; otherwise ranks that were there continue theirs, and further ones are seeded with
    the 16 bytes of BLAKE2b over the name, the rank and all saved states. Raises CheckpointError for no
    states, a rank outside of the world, or a tensor that is no state.
    """
    if not states or not 0 <= rank < world_size:
        raise CheckpointError(
            f"The random states of {len(states)} ranks cannot be restored on rank {rank} of {world_size}",
            fix="pass what capture() gave on each saved rank, and a rank below world_size",
        )
    saved = sorted({name for state in states for name in state})
    here = _generators(numpy="numpy" in saved or "numpy" in sys.modules)
    restored, derived = [], []
    missing = sorted(set(saved) ^ set(here))
    for name in (name for name in saved if name in here):
        held = [state[name] for state in states if name in state]
        own = states[rank].get(name) if rank < len(states) else None
        if own is None and len(held) == len(states) and all(other.equal(held[0]) for other in held):
            own = held[0]
        try:
            if own is not None:
                here[name].write(own.detach().cpu())
                restored.append(name)
            else:
                here[name].seed(_digest(name, rank, held))
                derived.append(name)
        except (RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The saved state of the generator {name!r} cannot be restored: {error}",
                where=f"rank {rank} of {world_size}",
                fix="it is damaged, or from another version of the library: save the state anew",
            ) from error
    return RestoredRNG(tuple(restored), tuple(derived), tuple(missing))


def _digest(name: str, rank: int, held: Sequence[torch.Tensor]) -> bytes:
    digest = blake2b(f"{name},{rank}".encode(), digest_size=16)
    for state in held:
        digest.update(_bytes(state))
    return digest.digest()


def _generators(*, numpy: bool) -> dict[str, _Generator]:
    """Return the generators of this process by name."""
    found = {
        "python": _Generator(
            lambda: _tensor(pack_python(random.getstate())),
            lambda state: random.setstate(unpack_python(_bytes(state))),
            random.seed,
        ),
        "torch": _Generator(
            torch.default_generator.get_state,
            _set_torch,
            lambda seed: torch.default_generator.manual_seed(_number(seed)),
        ),
    }
    if numpy and (module := _numpy()) is not None:
        found["numpy"] = _numpy_generator(module)
    hardware = process.chosen_hardware()
    if hardware.name != "cpu":
        found[hardware.name] = _hardware_generator(hardware)
    return found


def _set_torch(state: torch.Tensor) -> None:
    torch.default_generator.set_state(state.clone())


def _numpy() -> Any:
    try:
        return import_module("numpy")
    except ImportError:
        return None


def _numpy_generator(numpy: Any) -> _Generator:
    return _Generator(
        lambda: _tensor(pack_numpy(numpy.random.get_state(legacy=False))),
        lambda state: numpy.random.set_state(_with_arrays(unpack_numpy(_bytes(state)), numpy)),
        lambda seed: numpy.random.seed([int.from_bytes(seed[at : at + 4], "little") for at in (0, 4, 8, 12)]),
    )


def _with_arrays(state: Any, numpy: Any) -> Any:
    """Return ``state`` with NumPy's arrays in the place of Python's."""
    if isinstance(state, dict):
        return {key: _with_arrays(value, numpy) for key, value in state.items()}
    return numpy.asarray(state) if hasattr(state, "typecode") else state


def _hardware_generator(hardware: Device) -> _Generator:
    return _Generator(
        hardware.rng.get_state,
        hardware.rng.set_state,
        lambda seed: hardware.rng.seed(_number(seed)),
    )


def _number(seed: bytes) -> int:
    # Some backends take no more than 63 bits.
    return int.from_bytes(seed[:8], "little") >> 1


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _bytes(state: torch.Tensor) -> bytes:
    return bytes(state.to("cpu", torch.uint8).tolist())


__all__ = ["RestoredRNG", "capture", "restore"]
