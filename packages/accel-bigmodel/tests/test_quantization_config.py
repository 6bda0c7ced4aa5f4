"""Settings of quantized models, without the libraries that quantize."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

from accel_bigmodel import BnbQuantizationConfig, TorchaoQuantizationConfig
from accel_core.errors import ConfigError


def test_the_documented_defaults() -> None:
    fields = {item.name: item.default for item in dataclasses.fields(BnbQuantizationConfig)}
    assert fields == {
        "load_in_8bit": False,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": False,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": "fp16",
        "torch_dtype": None,
        "skip_modules": None,
        "keep_in_fp32_modules": None,
    }


@pytest.mark.parametrize(
    ("given", "compute", "dtype"),
    [
        ({"load_in_8bit": True}, torch.float16, torch.float16),
        ({"load_in_8bit": True, "bnb_4bit_compute_dtype": "bf16"}, torch.bfloat16, torch.float16),
        ({"load_in_4bit": True}, torch.float16, torch.float16),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "bf16"}, torch.bfloat16, torch.bfloat16),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}, torch.float32, torch.float32),
        ({"load_in_4bit": True, "torch_dtype": "fp32"}, torch.float16, torch.float32),
        ({"load_in_4bit": True, "torch_dtype": torch.bfloat16}, torch.float16, torch.bfloat16),
    ],
)
def test_dtypes_by_name_and_by_default(
    given: dict[str, object], compute: torch.dtype, dtype: torch.dtype
) -> None:
    config = BnbQuantizationConfig(**given)  # type: ignore[arg-type]
    assert (config.bnb_4bit_compute_dtype, config.torch_dtype) == (compute, dtype)


@pytest.mark.parametrize(
    ("given", "faulty"),
    [
        ({}, {"load_in_8bit"}),
        ({"load_in_8bit": True, "load_in_4bit": True}, {"load_in_4bit"}),
        ({"load_in_8bit": 1}, {"load_in_8bit"}),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "int4"}, {"bnb_4bit_quant_type"}),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": None}, {"bnb_4bit_quant_type"}),
        ({"load_in_4bit": True, "bnb_4bit_use_double_quant": "yes"}, {"bnb_4bit_use_double_quant"}),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "fp8"}, {"bnb_4bit_compute_dtype"}),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": None}, {"bnb_4bit_compute_dtype"}),
        ({"load_in_8bit": True, "torch_dtype": torch.int8}, {"torch_dtype"}),
        ({"load_in_8bit": True, "torch_dtype": "nn"}, {"torch_dtype"}),
        ({"load_in_8bit": True, "llm_int8_threshold": -1}, {"llm_int8_threshold"}),
        ({"load_in_8bit": True, "llm_int8_threshold": "six"}, {"llm_int8_threshold"}),
        ({"load_in_8bit": True, "skip_modules": "lm_head"}, {"skip_modules"}),
        ({"load_in_8bit": True, "keep_in_fp32_modules": [0]}, {"keep_in_fp32_modules"}),
        (
            {"bnb_4bit_quant_type": "x", "torch_dtype": 3, "skip_modules": [""]},
            {"load_in_8bit", "bnb_4bit_quant_type", "torch_dtype", "skip_modules"},
        ),
    ],
)
def test_everything_wrong_is_said_at_once(given: dict[str, object], faulty: set[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        BnbQuantizationConfig(**given)  # type: ignore[arg-type]
    assert {fault.field for fault in caught.value.faults} == faulty


def test_a_threshold_of_zero_switches_it_off_and_whole_numbers_will_do() -> None:
    assert BnbQuantizationConfig(load_in_8bit=True, llm_int8_threshold=0).llm_int8_threshold == 0
    assert BnbQuantizationConfig(load_in_8bit=True, llm_int8_threshold=6).llm_int8_threshold == 6


def test_the_settings_of_torchao() -> None:
    config = TorchaoQuantizationConfig()
    assert (config.weights, config.group_size, config.torch_dtype) == ("int8", 128, torch.bfloat16)
    with pytest.raises(ConfigError) as caught:
        TorchaoQuantizationConfig(weights="int3", group_size=100, torch_dtype="fp8", skip_modules="a")  # type: ignore[arg-type]
    assert {fault.field for fault in caught.value.faults} == {
        "weights",
        "group_size",
        "torch_dtype",
        "skip_modules",
    }


def test_settings_cannot_change_and_travel_between_processes() -> None:
    config = BnbQuantizationConfig(load_in_4bit=True, skip_modules=["head"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.load_in_4bit = False  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(config)) == config
