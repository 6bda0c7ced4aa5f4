"""Plans for real model classes, from the model and from its files alone."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

import pytest
import torch

from accel_bigmodel import find_tied_parameters, infer_auto_device_map, init_empty_weights, plan_device_map
from accel_bigmodel.commands.device_map import DeviceMap
from accel_bigmodel.drawing.command import plan_headers
from accel_bigmodel.estimate.headers import read_headers

transformers = pytest.importorskip("transformers")

SMALL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 64, "n_layer": 6, "n_head": 4, "vocab_size": 300}),
    "bert": (
        "BertConfig",
        "BertForMaskedLM",
        {
            "hidden_size": 64,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "vocab_size": 300,
        },
    ),
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            "hidden_size": 64,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 128,
            "vocab_size": 300,
        },
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {"d_model": 64, "num_layers": 4, "num_heads": 4, "d_kv": 16, "d_ff": 128, "vocab_size": 300},
    ),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 128,
            "num_local_experts": 4,
            "vocab_size": 300,
        },
    ),
}


def made(name: str) -> Any:
    config, model, values = SMALL[name]
    return getattr(transformers, model)(getattr(transformers, config)(**values))


def place(device_map: Any, name: str) -> Any:
    covering = [key for key in device_map if key == "" or name == key or name.startswith(f"{key}.")]
    assert len(covering) == 1, (name, covering)
    return device_map[covering[0]]


@pytest.mark.parametrize("name", SMALL)
def test_layers_stay_whole_and_nothing_is_given_more_than_it_has(name: str) -> None:
    config, kind, values = SMALL[name]
    with init_empty_weights():
        model = getattr(transformers, kind)(getattr(transformers, config)(**values))
    total = sum(parameter.nbytes for parameter in model.parameters())
    limits = {0: int(total * 0.6), 1: int(total * 0.3), "cpu": int(total * 0.2)}
    found = infer_auto_device_map(model, limits)
    devices = {key: place(found, key) for key, _ in model.named_parameters(remove_duplicate=False)}
    held: dict[Any, dict[int, int]] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        held.setdefault(devices[key], {})[id(parameter)] = parameter.nbytes
    assert {0, 1} <= set(held)
    for device, tensors in held.items():
        assert device == "disk" or sum(tensors.values()) <= limits[device]
    classes = {
        each for module in model.modules() for each in getattr(module, "_no_split_modules", None) or ()
    }
    layers = [key for key, module in model.named_modules() if type(module).__name__ in classes]
    assert len(layers) >= 4
    for layer in layers:
        assert len({device for key, device in devices.items() if key.startswith(f"{layer}.")}) == 1


@pytest.mark.parametrize("name", SMALL)
def test_the_files_give_the_plan_of_the_model(name: str, tmp_path: Any) -> None:
    model = made(name)
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    total = sum(parameter.nbytes for parameter in model.parameters())
    limits = {0: int(total * 0.6), 1: int(total * 0.25), "cpu": total}
    parser = ArgumentParser()
    DeviceMap().configure(parser)
    texts = [f"{device}={size}" for device, size in limits.items()]
    asked = parser.parse_args([str(tmp_path), "--strategy", "sequential", "--max_memory", *texts])
    headers = read_headers(tmp_path)
    drawn = plan_headers(headers, asked)
    # Files have no buffers that are made anew; those of these models are in their first part.
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    limits[0] += buffers
    real = plan_device_map(model, "sequential", max_memory=limits, offload_buffers=True)
    assert sum(row.bytes for row in drawn.rows) == total
    # Nor do they tell that BERT's output is tied to its input, with a bias that has two names.
    tied = {key for group in find_tied_parameters(model) for key in group}
    for key in set(headers.tensors) - tied:
        assert place(drawn.device_map, key) == place(real.device_map, key), key


def test_the_cache_of_a_llama_is_as_large_as_planned() -> None:
    model = made("llama").eval()
    plan = plan_device_map(model, max_memory={0: 10**9}, batch_size=3, sequence_length=40)
    with torch.no_grad():
        cache = model(torch.ones(3, 40, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    scores = 3 * 40 * 300 * 4
    assert held <= plan.shares[0].caches <= held + scores
    assert any("by the configuration" in note for note in plan.notes)
