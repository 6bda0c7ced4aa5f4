"""Who decides whether models are compiled and how, and what comes back out of them."""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
import torch
from torch import nn

from accel import Accelerator
from accel.compilation import compilation
from accel.utils import (
    DynamoBackend,
    TorchDynamoPlugin,
    compile_regions,
    extract_model_from_parallel,
    has_compiled_regions,
    is_compiled_module,
)
from accel_core.environment import RunConfig
from accel_core.errors import ConfigError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer(x).tanh()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


# -- who decides --------------------------------------------------------------------------------------------

Plugin = TorchDynamoPlugin
INDUCTOR = DynamoBackend.INDUCTOR
EAGER = DynamoBackend.EAGER

DECIDED: dict[str, tuple[Any, TorchDynamoPlugin | None, dict[str, Any], TorchDynamoPlugin | None]] = {
    "nobody asks": (None, None, {}, None),
    "the argument": ("inductor", None, {}, Plugin(backend=INDUCTOR)),
    "the argument says no": ("no", None, {"dynamo_backend": "INDUCTOR"}, None),
    "the argument outranks the environment": (
        "EAGER",
        None,
        {"dynamo_backend": "INDUCTOR"},
        Plugin(backend=EAGER),
    ),
    "the environment": (
        None,
        None,
        {"dynamo_backend": "INDUCTOR", "dynamo_use_dynamic": True, "dynamo_mode": "max-autotune"},
        Plugin(backend=INDUCTOR, dynamic=True, mode="max-autotune"),
    ),
    "the environment says no": (None, None, {"dynamo_backend": "NO", "dynamo_mode": "max-autotune"}, None),
    "a plugin without a backend is compiled by torch's own": (
        None,
        Plugin(mode="reduce-overhead"),
        {},
        Plugin(backend=INDUCTOR, mode="reduce-overhead"),
    ),
    "a plugin without a backend, the environment has one": (
        None,
        Plugin(fullgraph=True),
        {"dynamo_backend": "EAGER", "dynamo_use_fullgraph": False},
        Plugin(backend=EAGER, fullgraph=True),
    ),
    "a plugin without a backend, the environment says no": (
        None,
        Plugin(fullgraph=True),
        {"dynamo_backend": "NO"},
        None,
    ),
    "what the plugin leaves open comes from the environment": (
        None,
        Plugin(backend=INDUCTOR, dynamic=False),
        {"dynamo_backend": "EAGER", "dynamo_use_dynamic": True, "dynamo_use_regional_compilation": True},
        Plugin(backend=INDUCTOR, dynamic=False, use_regional_compilation=True),
    ),
    "plugin and argument complete each other": (
        "eager",
        Plugin(fullgraph=True),
        {},
        Plugin(backend=EAGER, fullgraph=True),
    ),
    "disabled": ("inductor", Plugin(disable=True), {}, None),
    "settings that ask for nothing": (
        None,
        None,
        {"dynamo_mode": "default", "dynamo_use_fullgraph": False},
        None,
    ),
}


@pytest.mark.parametrize("case", DECIDED)
def test_code_comes_before_the_environment_before_torch(case: str) -> None:
    backend, plugin, environment, expected = DECIDED[case]
    assert compilation(backend, plugin, RunConfig(**environment)) == expected


def test_a_setting_without_effect_is_refused() -> None:
    run = RunConfig(dynamo_mode="max-autotune", dynamo_use_dynamic=True)
    with pytest.raises(ConfigError) as caught:
        compilation(None, None, run)
    assert [fault.field for fault in caught.value.faults] == [
        "ACCELERATE_DYNAMO_MODE",
        "ACCELERATE_DYNAMO_USE_DYNAMIC",
    ]


def test_the_environment_compiles(pool: Any) -> None:
    def run() -> tuple[bool, bool, bool]:
        model = Accelerator(cpu=True).prepare(Net())
        os.environ["ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"] = "false"
        whole = Accelerator(cpu=True).prepare(Net())
        off = Accelerator(cpu=True, dynamo_backend="no").prepare(Net())
        return has_compiled_regions(model), is_compiled_module(whole), is_compiled_module(off)

    names = ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION")
    env = dict(zip(names, ("aot_eager", "true"), strict=True))
    assert pool.run(1, run, env=env) == [(True, True, False)]


def test_each_accelerator_has_its_own(pool: Any) -> None:
    def run() -> list[Any]:
        first = Accelerator(cpu=True, dynamo_backend="eager")
        second = Accelerator(cpu=True)
        third = Accelerator(cpu=True, dynamo_plugin=TorchDynamoPlugin(backend="aot_eager"))  # type: ignore[arg-type]
        found = [is_compiled_module(each.prepare(Net())) for each in (first, second, third)]
        return [*found, first.dynamo_plugin, second.dynamo_plugin, third.dynamo_plugin]

    plugins = [Plugin(backend=EAGER), None, Plugin(backend=DynamoBackend.AOT_EAGER)]
    assert pool.run(1, run) == [[True, False, True, *plugins]]


@pytest.mark.parametrize(
    ("backend", "kind", "text"),
    [
        ("tvm", "NotInstalledError", "pip install apache-tvm"),
        ("ofi", "CapabilityError", "has no torch.compile backend 'ofi'"),
        ("cudagraphs", "CapabilityError", "does nothing on cpu"),
    ],
)
def test_a_backend_that_is_not_here_is_refused_at_once(backend: str, kind: str, text: str, pool: Any) -> None:
    (error,) = pool.failures(1, lambda: Accelerator(cpu=True, dynamo_backend=backend))
    assert type(error).__name__ == kind
    assert text in str(error)


def test_a_strategy_that_does_not_compile_is_refused(pool: Any) -> None:
    def run() -> None:
        from dataclasses import replace

        from accel_parallel.strategies.single import Single

        class Plain(Single):
            name = "plain"

            def wrap(self, unit: Any) -> Any:
                return replace(unit)

        accelerator = Accelerator(cpu=True, dynamo_backend="eager")
        accelerator._strategy = Plain(accelerator._strategy.context)  # type: ignore[attr-defined]
        accelerator.prepare(Net())

    (error,) = pool.failures(1, run)
    assert type(error).__name__ == "CapabilityError"
    assert "strategy 'plain' does not compile models" in str(error)


# -- and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("regional", [False, True])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_unwrapping_takes_off_what_is_asked(world: int, regional: bool, precision: str, pool: Any) -> None:
    def run() -> dict[str, bool]:
        plugin = TorchDynamoPlugin(backend="eager", use_regional_compilation=regional)  # type: ignore[arg-type]
        accelerator = Accelerator(cpu=True, mixed_precision=precision, dynamo_plugin=plugin)
        original = Net()
        x = torch.randn(2, 4)
        plain = original(x)
        model = accelerator.prepare(original)
        mixed = model(x)

        def compiled(module: nn.Module) -> bool:
            return is_compiled_module(module) or has_compiled_regions(module)

        kept = accelerator.unwrap_model(model)
        found = {
            "same": kept is original is extract_model_from_parallel(model),
            "kept": compiled(kept) and torch.equal(kept(x), mixed),
        }
        full = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        found["forward"] = compiled(full) and torch.equal(full(x), plain)
        off = extract_model_from_parallel(model, keep_torch_compile=False)
        found["off"] = off is original and not compiled(off) and torch.equal(off(x), plain)
        # The container goes on with the model as it is now.
        found["container"] = torch.equal(model(x), plain)
        return found

    for found in pool.run(world, run):
        assert all(found.values()), found


def test_a_model_that_the_user_compiled_comes_back(pool: Any) -> None:
    def run() -> dict[str, bool]:
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        model = Net()
        x = torch.randn(2, 4)
        plain = model(x)
        expected = accelerator.prepare(copy.deepcopy(model))(x)
        before = accelerator.prepare(torch.compile(model, backend="eager"))
        found = {"computes": torch.equal(before(x), expected)}
        off = accelerator.unwrap_model(before, keep_fp32_wrapper=False, keep_torch_compile=False)
        found["before"] = off is model and torch.equal(off(x), plain)
        other = Net()
        after = torch.compile(accelerator.prepare(other), backend="eager")
        found["after, kept"] = is_compiled_module(accelerator.unwrap_model(after))
        found["after, off"] = accelerator.unwrap_model(after, keep_torch_compile=False) is other
        restored = accelerator.unwrap_model(after, keep_fp32_wrapper=False, keep_torch_compile=False)
        found["forward"] = "forward" not in restored.__dict__
        return found

    for world in (1, 2):
        for found in pool.run(world, run):
            assert all(found.values()), found


def test_a_part_that_the_user_compiled_leaves_no_trace_in_names(pool: Any) -> None:
    """A checkpoint must not depend on who compiled what."""

    def run() -> tuple[list[str], bool]:
        from accel_core.protocols import Unit

        accelerator = Accelerator(cpu=True)
        model = Net()
        model.blocks[1] = torch.compile(model.blocks[1], backend="eager")  # type: ignore[assignment]
        unit = Unit(name="net", model=accelerator.prepare(model))
        states = accelerator._strategy.states
        full = states.full(unit)
        doubled = {name: 2 * value.detach() for name, value in full.items()}
        states.load_full(unit, doubled)
        same = all(torch.equal(value, doubled[name]) for name, value in states.full(unit).items())
        return list(full), same

    expected = list(Net().state_dict())
    for world in (1, 2):
        assert pool.run(world, run) == [(expected, True)] * world


def test_regions_can_be_compiled_without_an_accelerator() -> None:
    model = compile_regions(Net(), backend="eager")
    assert has_compiled_regions(model)
    torch.compiler.reset()
