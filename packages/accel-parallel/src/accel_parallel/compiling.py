"""Compiling models with ``torch.compile``: in place, so that names of parameters stay what they were.

``torch.compile(model)`` puts the model into another module, and every name gets a prefix
(``_orig_mod.``) that then is in checkpoints too. ``nn.Module.compile`` compiles what calling the
module does instead, and the module stays itself. It is what is used here, with one addition: a class
of torch's own (``nn.Sequential``, ``nn.TransformerEncoderLayer``) is in a file that torch does not
trace when it is called from outside, so ``compile`` would silently do nothing for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from inspect import signature
from types import FunctionType
from typing import Any

import torch
from torch import nn

from accel_core.config import TorchDynamoPlugin
from accel_core.errors import CapabilityError
from accel_core.logging import get_logger

logger = get_logger(__name__)

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
_ISOLATES = "isolate_recompiles" in signature(torch.compile).parameters
"""Since torch 2.13 a call of ``torch.compile`` can have graphs of its own."""


def compile_model(model: nn.Module, settings: TorchDynamoPlugin | None) -> nn.Module:
    """Compile ``model`` in place as ``settings`` say and return it; None, or disabled, changes nothing.

    Tracing happens in the first call. A model that is compiled already, whole or in parts, is left as
    it is. Raises CapabilityError for a scripted model.

    Regional compilation without repeated blocks compiles the whole model, which then is the one region.
    """
    if settings is None or settings.disable or is_compiled_module(model) or has_compiled_regions(model):
        return model
    if isinstance(model, torch.jit.ScriptModule):
        raise CapabilityError(
            f"{type(model).__name__} was scripted by torch.jit and cannot be compiled by torch.compile",
            where="dynamo_backend, dynamo_plugin or ACCELERATE_DYNAMO_BACKEND",
            fix="give the model before it was scripted, or do not compile",
        )
    if settings.use_regional_compilation:
        return compile_regions(model, **settings.to_kwargs())
    _compile([model], _alone(settings.to_kwargs()))
    return model


def compile_regions(module: nn.Module, **compile_kwargs: Any) -> nn.Module:
    """Compile the repeated blocks of ``module`` in place, each class of them once, and return it.

    ``compile_kwargs`` are those of ``torch.compile``. What is around the blocks runs uncompiled.
    A module without repeated blocks is compiled whole. See the recipe "Reducing torch.compile cold
    start compilation time with regional compilation" of the PyTorch tutorials.
    """
    blocks = [block for block in repeated_blocks(module) if not is_compiled_module(block)]
    if blocks:
        _compile(blocks, compile_kwargs)
    elif not is_compiled_module(module) and not has_compiled_regions(module):
        logger.info("%s has no repeated blocks: it is compiled as a whole", type(module).__name__)
        _compile([module], _alone(compile_kwargs))
    return module


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the outermost blocks of ``module`` that repeat, in order.

    A block repeats when its ``nn.ModuleList``, ``nn.Sequential`` or ``nn.ModuleDict`` holds another one
    of the same class. Single layers of torch do not count: compiling one by itself gains nothing.
    """
    found: dict[nn.Module, None] = {}
    _collect(module, found)
    return list(found)


def _collect(module: nn.Module, found: dict[nn.Module, None]) -> None:
    children = list(module.children())
    repeated: set[type] = set()
    if isinstance(module, _CONTAINERS):
        counts = Counter(type(child) for child in children if not _is_layer(child))
        repeated = {cls for cls, count in counts.items() if count > 1}
    for child in children:
        if type(child) in repeated:
            found[child] = None
        else:
            _collect(child, found)


def _is_layer(module: nn.Module) -> bool:
    """Tell whether ``module`` is one of torch's own layers, or a list of modules that cannot be called."""
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return True
    return type(module).__module__.startswith("torch.") and next(module.children(), None) is None


def is_compiled_module(module: nn.Module) -> bool:
    """Tell whether calling ``module`` itself runs compiled code, by ``torch.compile`` or in place."""
    return module.__dict__.get("_compiled_call_impl") is not None or compiled_inner(module) is not None


def has_compiled_regions(module: nn.Module) -> bool:
    """Tell whether parts of ``module``, but not ``module`` itself, are compiled."""
    return not is_compiled_module(module) and any(is_compiled_module(part) for part in module.modules())


def remove_compilation(module: nn.Module) -> bool:
    """Make ``module`` and its parts run uncompiled from now on; return whether any was compiled.

    Only what was compiled in place. The inner module of ``torch.compile`` is for the caller to take.
    """
    compiled = [part for part in module.modules() if part.__dict__.get("_compiled_call_impl") is not None]
    for part in compiled:
        part._compiled_call_impl = None
    return bool(compiled)


def compiled_inner(module: nn.Module) -> nn.Module | None:
    """Return what ``torch.compile(module)`` was made of, or None for other modules."""
    # By its attribute: importing the class takes seconds, and most programs compile nothing.
    # And not by getattr: modules that pass attributes on would answer for what they hold.
    parts = module.__dict__.get("_modules")
    found = parts.get("_orig_mod") if isinstance(parts, dict) else None
    return found if isinstance(found, nn.Module) else None


def _compile(modules: list[nn.Module], arguments: dict[str, Any]) -> None:
    entries: dict[type, Callable[..., Any]] = {}
    for module in modules:
        if _traced(module):
            module.compile(**arguments)
            continue
        kind = type(module)
        if kind not in entries:
            entries[kind] = torch.compile(_entry(kind), **arguments)
        module._compiled_call_impl = partial(entries[kind], module)


def _alone(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return ``arguments`` for a model of its own: others of its class do not count against its graphs."""
    return {"isolate_recompiles": True, **arguments} if _ISOLATES else arguments


def _traced(module: nn.Module) -> bool:
    """Tell whether torch traces the call of ``module`` from outside, which it does unless forward is its own.

    It runs the module's hooks before, untraced.
    """
    return "forward" in module.__dict__ or not type(module).forward.__module__.startswith("torch.")


def _call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call ``module``: a frame outside of torch, so that torch traces it, and what it calls with it."""
    return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]


def _entry(kind: type) -> Callable[..., Any]:
    """Return `_call` with code of its own.

    Compiled graphs are kept with the code that they were traced from, eight at most by default: with one
    code for all, the ninth class of blocks would run uncompiled.
    """
    code = _call.__code__.replace(co_name=f"call_{kind.__name__}")
    return FunctionType(code, _call.__globals__, code.co_name)


__all__ = [
    "compile_model",
    "compile_regions",
    "compiled_inner",
    "has_compiled_regions",
    "is_compiled_module",
    "remove_compilation",
    "repeated_blocks",
]
