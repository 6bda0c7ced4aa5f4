"""How models are compiled, as settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from accel_core.enums import DynamoBackend
from accel_core.errors import Fault
from accel_core.spelling import guess

from . import checks
from .base import KwargsHandler

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""The modes of ``torch.compile``."""
ENTRY_POINTS = "torch_dynamo_backends"
"""Where installed packages offer torch backends of their own.

See https://docs.pytorch.org/docs/stable/torch.compiler_custom_backends.html
"""
_TUNELESS = (DynamoBackend.EAGER, DynamoBackend.AOT_EAGER)
"""Backends that would ignore a mode and options."""


@dataclass(frozen=True, slots=True)
class TorchDynamoPlugin(KwargsHandler):
    """How models are compiled; None leaves a setting to the environment and then to ``torch.compile``.

    ``backend``: a documented name in any case, a name that an installed package offers to torch, or a
    function as torch takes it. ``use_regional_compilation``: compile repeated blocks once each, and
    leave what is around them uncompiled. ``disable``: compile nothing.
    """

    backend: DynamoBackend | str | Callable[..., Any] | None = None
    mode: str | None = None
    fullgraph: bool | None = None
    dynamic: bool | None = None
    options: dict[str, Any] | None = None
    disable: bool = False
    use_regional_compilation: bool | None = None

    def __post_init__(self) -> None:
        checks.as_member(self, "backend", DynamoBackend)
        KwargsHandler.__post_init__(self)

    def faults(self) -> Iterator[Fault]:
        """Yield everything that is wrong."""
        yield from _backend_faults(self.backend)
        yield from checks.one_of(self, "mode", MODES, optional=True)
        yield from checks.flags(self, "fullgraph", "dynamic", "use_regional_compilation", optional=True)
        yield from checks.instance(self, "options", dict)
        yield from checks.flags(self, "disable")
        tuned = self.mode not in (None, "default")
        if tuned and self.options:
            yield Fault("options", self.options, f"cannot be given beside mode={self.mode!r}", "give one")
        if self.backend in _TUNELESS and (tuned or self.options):
            given = "mode" if tuned else "options"
            fix = "leave it out, or use the backend inductor"
            yield Fault(given, getattr(self, given), f"would be ignored by the backend {self.backend}", fix)

    def to_dict(self) -> dict[str, Any]:
        """Return every setting by name, the backend as ``torch.compile`` spells it."""
        found = KwargsHandler.to_dict(self)
        named = isinstance(self.backend, DynamoBackend)
        # A function that is an object is this object, not a copy of it.
        found["backend"] = str(self.backend).lower() if named else self.backend
        return found

    def to_kwargs(self) -> dict[str, Any]:
        """Return the arguments of ``torch.compile`` that differ from their defaults."""
        found = KwargsHandler.to_kwargs(self)
        found.pop("use_regional_compilation", None)
        return found


def _backend_faults(backend: object) -> Iterator[Fault]:
    if backend is None or callable(backend) or isinstance(backend, DynamoBackend):
        return
    from importlib.metadata import entry_points

    offered = sorted(entry_points(group=ENTRY_POINTS).names)
    if backend not in offered:
        known = [*DynamoBackend.list(), *offered]
        word = str(backend)
        fix = guess(word.upper(), DynamoBackend.list()) or guess(word, offered)
        yield Fault("backend", backend, f"must be one of {', '.join(known)}, a function or None", fix)


__all__ = ["ENTRY_POINTS", "MODES", "TorchDynamoPlugin"]
