"""Every argument of ``Accelerator`` is honoured or refused with the reason, and so is the environment."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
import torch
from torch import nn

from accel import Accelerator
from accel.later import METHODS
from accel.utils import (
    AutocastKwargs,
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    TorchDynamoPlugin,
)

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a dict for settings of loaders": (
        {"dataloader_config": {"split_batches": True}},
        "dataloader_config.*must be a DataLoaderConfiguration",
    ),
    "a class": ({"dataloader_config": DataLoaderConfiguration}, "must be a DataLoaderConfiguration"),
    "a number for a plugin": ({"gradient_accumulation_plugin": 4}, "must be a GradientAccumulationPlugin"),
    "a text for a project": ({"project_config": "here"}, "must be a ProjectConfiguration"),
    "one handler": ({"kwargs_handlers": AutocastKwargs()}, "must be a list of handlers"),
    "a text for a truth": (
        {"cpu": "no", "device_placement": "no"},
        "2 settings.*device_placement='no'.*cpu=",
    ),
    "no such generator": ({"rng_types": ["dice"]}, "Unknown rng_types entry 'dice'"),
    "letters of a generator": ({"rng_types": "dice"}, "Unknown rng_types entry 'dice'"),
    "two projects": (
        {"project_dir": "a", "project_config": ProjectConfiguration("b")},
        "project_dir='a': contradicts",
    ),
    "two numbers": (
        {"gradient_accumulation_steps": 2, "gradient_accumulation_plugin": GradientAccumulationPlugin(3)},
        "contradicts GradientAccumulationPlugin",
    ),
    "trackers": ({"log_with": "tensorboard"}, "does not have.*log_with"),
    "no such compiler": ({"dynamo_backend": "eagr"}, "backend='eagr'.*did you mean 'EAGER'"),
    "two compilers": (
        {"dynamo_backend": "eager", "dynamo_plugin": TorchDynamoPlugin(backend="inductor")},
        "dynamo_backend='eager': contradicts TorchDynamoPlugin.backend='INDUCTOR'",
    ),
    "a dict for a compiler": ({"dynamo_plugin": {"backend": "eager"}}, "must be a TorchDynamoPlugin"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_named_before_anything_starts(pool: Any, case: str) -> None:
    arguments, text = WRONG[case]

    def make() -> str:
        try:
            Accelerator(**arguments)
        except Exception as error:
            from accel_state import process

            assert process.current() is None
            return str(error).replace("\n", " ")
        return "accepted"

    said = pool.run(1, make)[0]
    assert re.search(text, said), said


@pytest.mark.parametrize(
    "variable",
    [
        "ACCELERATE_USE_FSDP",
        "ACCELERATE_USE_DEEPSPEED",
        "ACCELERATE_USE_MEGATRON_LM",
        "ACCELERATE_USE_PARALLELISM_CONFIG",
        "ACCELERATE_DOWNCAST_BF16",
    ],
)
def test_what_the_environment_asks_for_is_not_ignored(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Another launcher sets these; training without them would be another training."""
    monkeypatch.setenv(variable, "true")
    with pytest.raises(RuntimeError, match=f"does not have what was asked for with {variable}"):
        Accelerator()


def test_a_misspelt_variable_is_told(pool: Any) -> None:
    def make() -> list[str]:
        import logging

        told: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("accel").addHandler(handler)
        os.environ["ACCELERATE_MIXED_PRECISON"] = "bf16"
        os.environ["ACCELERATE_OF_SOMEBODY_ELSE"] = "1"
        try:
            Accelerator(cpu=True)
        finally:
            del os.environ["ACCELERATE_MIXED_PRECISON"], os.environ["ACCELERATE_OF_SOMEBODY_ELSE"]
            logging.getLogger("accel").removeHandler(handler)
        return told

    (told,) = pool.run(1, make)[0]
    assert "Did you mean ACCELERATE_MIXED_PRECISION?" in told


def test_a_plugin_without_a_number_leaves_it_open(pool: Any) -> None:
    def make() -> list[int]:
        plugin = GradientAccumulationPlugin(sync_each_batch=True)
        found = [
            Accelerator(cpu=True, gradient_accumulation_plugin=plugin),
            Accelerator(cpu=True, gradient_accumulation_plugin=plugin, gradient_accumulation_steps=3),
        ]
        os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "4"
        try:
            found += [
                Accelerator(cpu=True, gradient_accumulation_plugin=plugin),
                Accelerator(cpu=True, gradient_accumulation_plugin=GradientAccumulationPlugin(5)),
                Accelerator(cpu=True),
            ]
        finally:
            del os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"]
        assert found[2].gradient_state.plugin_kwargs["sync_each_batch"] is True
        return [accelerator.gradient_accumulation_steps for accelerator in found]

    assert pool.run(1, make)[0] == [1, 3, 4, 5, 4]


def test_autocast_kwargs_hold_in_the_prepared_model(pool: Any) -> None:
    def compute() -> list[tuple[str, bool]]:
        seen: list[tuple[str, bool]] = []
        for options in ({}, {"enabled": False}, {"cache_enabled": False}):
            accelerator = Accelerator(
                cpu=True, mixed_precision="bf16", kwargs_handlers=[AutocastKwargs(**options)]
            )
            model = nn.Sequential(nn.Linear(2, 2))
            model[0].register_forward_hook(
                lambda _, __, y: seen.append((str(y.dtype), torch.is_autocast_cache_enabled()))
            )
            accelerator.prepare(model)(torch.ones(1, 2))
        return seen

    # The same as the library whose names these are, run on the same model.
    assert pool.run(1, compute)[0] == [
        ("torch.bfloat16", True),
        ("torch.float32", True),
        ("torch.bfloat16", False),
    ]


def test_precisions_are_read_in_any_case(pool: Any) -> None:
    assert pool.run(1, lambda: Accelerator(cpu=True, mixed_precision="BF16").mixed_precision)[0] == "bf16"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_of_a_later_version_says_so(name: str) -> None:
    assert not hasattr(Accelerator, name), "it is here now: take it off the list"
    bare = Accelerator.__new__(Accelerator)
    with pytest.raises(AttributeError, match=f"Accelerator.{name} is not in this version of accel"):
        getattr(bare, name)
    with pytest.raises(AttributeError, match="'Accelerator' object has no attribute 'nonsense'"):
        _ = bare.nonsense  # type: ignore[attr-defined]
