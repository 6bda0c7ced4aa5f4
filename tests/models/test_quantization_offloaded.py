"""Quantized models that do not fit: saved, generating, in threads, and on a GPU where there is one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from accel import Accelerator
from accel_bigmodel import (
    BnbQuantizationConfig,
    TorchaoQuantizationConfig,
    cpu_offload,
    init_empty_weights,
    load_and_quantize_model,
)
from accel_core.testing.standin.fixture import StandIn, standin  # noqa: F401 - a fixture
from accel_state import process

bnb = pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao.quantization")
transformers = pytest.importorskip("transformers")

CONFIGS: dict[str, Any] = {
    "8bit": BnbQuantizationConfig(load_in_8bit=True),
    "nf4": BnbQuantizationConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bf16"),
    "nested": BnbQuantizationConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype="bf16", bnb_4bit_use_double_quant=True
    ),
    "torchao": TorchaoQuantizationConfig(),
}
every = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
IDS = torch.arange(10)[None]
AWAY = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu",
        "model.rotary_emb": "cpu", "lm_head": "disk"}  # fmt: skip


@pytest.fixture(autouse=True)
def no_state() -> Iterator[None]:
    """Forget who this process is after each test."""
    yield
    process.reset()


def llama() -> Any:
    torch.manual_seed(4)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def skeleton() -> Any:
    with init_empty_weights():
        return llama()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    llama().save_pretrained(path, max_shard_size="300kB")
    return path


def without_the_fast_kernel(made: nn.Module) -> nn.Module:
    """Compute 4 bits as files have them; for CPUs with AVX-512 BF16, bitsandbytes lays others out anew."""
    for module in made.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return made


@torch.no_grad()
def generated(made: Any) -> torch.Tensor:
    device = made.get_input_embeddings().weight.device
    ids = IDS.to("cpu" if device.type == "meta" else device)
    found: torch.Tensor = made.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    return found.cpu()


@every
def test_generates_and_is_saved_from_where_it_lies(config: Any, folder: Path, tmp_path: Path) -> None:
    whole: Any = without_the_fast_kernel(load_and_quantize_model(skeleton(), config, folder))
    made: Any = load_and_quantize_model(
        skeleton(), config, folder, device_map=AWAY, offload_folder=tmp_path / "away"
    )
    without_the_fast_kernel(made)
    assert torch.equal(generated(made), generated(whole))
    Accelerator(cpu=True).save_model(made, tmp_path / "new", max_shard_size="100kB")
    assert all(parameter.is_meta for parameter in made.model.layers[0].parameters())
    wanted = whole.state_dict()
    for device_map in (None, {"": "disk"}):
        again = load_and_quantize_model(skeleton(), config, tmp_path / "new", device_map=device_map)
        if device_map is None:
            state = again.state_dict()
            assert state.keys() == wanted.keys()
            assert all(torch.equal(state[name], value) for name, value in wanted.items())
        assert torch.equal(generated(without_the_fast_kernel(again)), generated(whole))


@every
def test_offloaded_after_it_was_quantized(config: Any, folder: Path, tmp_path: Path) -> None:
    whole: Any = without_the_fast_kernel(load_and_quantize_model(skeleton(), config, folder))
    wanted = {name: value.clone() for name, value in whole.state_dict().items()}
    text = generated(whole)
    made = cpu_offload(whole, "cpu")
    assert torch.equal(generated(made), text)
    Accelerator(cpu=True).save_model(made, tmp_path / "new")
    assert all(parameter.is_meta for parameter in made.model.layers[0].parameters())
    again = load_and_quantize_model(skeleton(), config, tmp_path / "new")
    state = again.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], value) for name, value in wanted.items())


@every
def test_forwards_in_threads(config: Any, folder: Path, tmp_path: Path) -> None:
    made: Any = load_and_quantize_model(
        skeleton(), config, folder, device_map={"": "disk"}, offload_folder=tmp_path / "away"
    )
    inputs = [
        torch.randint(0, 96, (2, 5), generator=torch.Generator().manual_seed(seed)) for seed in range(8)
    ]

    @torch.no_grad()
    def run(ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = made(ids).logits
        return found

    wanted = [run(ids) for ids in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, right in zip(pool.map(run, inputs), wanted, strict=True):
            assert torch.equal(found, right)
    assert all(parameter.is_meta for parameter in made.parameters())


def test_the_documented_example_uses_one_skeleton_twice(folder: Path, tmp_path: Path) -> None:
    config, empty = CONFIGS["8bit"], skeleton()
    first = load_and_quantize_model(
        empty, weights_location=folder, bnb_quantization_config=config, device_map="auto"
    )
    wanted = generated(first)
    Accelerator(cpu=True).save_model(first, tmp_path)
    second = load_and_quantize_model(
        empty, weights_location=tmp_path, bnb_quantization_config=config, device_map="auto"
    )
    assert torch.equal(generated(second), wanted)


def test_modules_are_kept_in_float32(folder: Path) -> None:
    made: Any = load_and_quantize_model(
        skeleton(),
        BnbQuantizationConfig(
            load_in_8bit=True,
            keep_in_fp32_modules=["norm", "down_proj"],
            skip_modules=["lm_head", "0.self_attn"],
        ),
        folder,
    )
    assert made.model.norm.weight.dtype == torch.float32
    assert made.model.layers[0].mlp.down_proj.weight.dtype == torch.float32
    assert made.model.layers[0].self_attn.q_proj.weight.dtype == torch.float16
    assert isinstance(made.model.layers[1].self_attn.q_proj, bnb.nn.Linear8bitLt)
    assert isinstance(made.model.layers[0].mlp.up_proj, bnb.nn.Linear8bitLt)


# On a GPU


@pytest.mark.gpu
@every
def test_on_a_gpu_with_parts_elsewhere(config: Any, folder: Path, tmp_path: Path) -> None:
    whole: Any = load_and_quantize_model(skeleton(), config, folder)
    assert {parameter.device.type for parameter in whole.parameters()} == {
        torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
    }
    away: Any = {**AWAY, "model.embed_tokens": 0, "model.norm": 0, "model.rotary_emb": 0}
    made: Any = load_and_quantize_model(
        skeleton(), config, folder, device_map=away, offload_folder=tmp_path / "away"
    )
    assert made.model.layers[0].mlp.up_proj.bias is None
    assert all(parameter.is_meta for parameter in made.model.layers.parameters())
    assert torch.equal(generated(made), generated(whole))
    Accelerator().save_model(made, tmp_path / "new")
    again: Any = load_and_quantize_model(skeleton(), config, tmp_path / "new")
    assert torch.equal(generated(again), generated(whole))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["8bit", "nf4", "nested"])
def test_on_a_gpu_as_by_hand(kind: str, folder: Path) -> None:
    config = CONFIGS[kind]
    made: Any = load_and_quantize_model(skeleton(), config, folder)
    plain = llama().model.layers[0].mlp.up_proj.to(config.torch_dtype)
    if config.load_in_8bit:
        hand = bnb.nn.Linear8bitLt(128, 256, False, has_fp16_weights=False, threshold=6.0)
    else:
        hand = bnb.nn.Linear4bit(
            128,
            256,
            False,
            compute_dtype=torch.bfloat16,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
        )
    hand.load_state_dict(plain.state_dict())
    hand = hand.to(config.torch_dtype).to(made.device).eval()
    x = torch.randn(3, 128, dtype=config.torch_dtype, device=made.device)
    with torch.no_grad():
        assert torch.equal(made.model.layers[0].mlp.up_proj(x), hand(x))


@pytest.mark.gpu
def test_the_peak_on_a_gpu_is_the_quantized_model_and_one_weight(tmp_path: Path) -> None:
    whole = nn.Sequential(*[nn.Linear(2048, 2048, bias=False) for _ in range(12)])
    torch.save(whole.state_dict(), tmp_path / "pytorch_model.bin")
    with init_empty_weights():
        bare = nn.Sequential(*[nn.Linear(2048, 2048, bias=False) for _ in range(12)])
    torch.accelerator.reset_peak_memory_stats()
    before = torch.accelerator.memory_allocated()
    made = load_and_quantize_model(bare, CONFIGS["8bit"], tmp_path)
    peak = torch.accelerator.max_memory_allocated() - before
    kept = sum(parameter.nbytes for parameter in made.parameters())
    # The weight in float32, in float16, and what the kernel makes of it.
    assert peak <= kept + 4 * whole[0].weight.nbytes


def test_a_map_may_come_before_anything_else() -> None:
    """Sizes are asked for first, without data; that leaves nothing behind in the libraries."""
    program = Path(__file__).with_name("quantized_first.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", program], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["nested", "True", "nf4", "True", "8bit", "True", "torchao", "True"]


# On the stand-in device, by what the libraries have for devices that they do not know


def run_on_standin(kind: str, folder: str, away: str) -> bool:
    config = CONFIGS[kind]
    whole: Any = load_and_quantize_model(skeleton(), config, folder, device_map="standin:0")
    places: Any = {**AWAY, "model.embed_tokens": 0, "model.norm": 1, "model.rotary_emb": 0}
    made: Any = load_and_quantize_model(skeleton(), config, folder, device_map=places, offload_folder=away)
    ids = IDS.to("standin")
    with torch.no_grad():
        wanted, found = whole(ids).logits, made(ids).logits
    assert wanted.device.type == found.device.type == "standin"
    assert all(parameter.is_meta for parameter in made.model.layers.parameters())
    return torch.equal(wanted.cpu(), found.cpu())


@pytest.mark.parametrize("kind", CONFIGS)
def test_on_another_device(standin: StandIn, kind: str, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    assert standin.run(1, run_on_standin, kind, str(folder), str(tmp_path / "away")) == [True]
