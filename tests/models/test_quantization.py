"""bitsandbytes and torchao as they are: the same values as by hand, saved without loss, offloaded."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from accel import Accelerator
from accel_bigmodel import (
    BnbQuantizationConfig,
    TorchaoQuantizationConfig,
    dispatch_model,
    init_empty_weights,
    load_and_quantize_model,
)
from accel_core.errors import CapabilityError, CheckpointError, ConfigError
from accel_state import process

bnb = pytest.importorskip("bitsandbytes")
torchao = pytest.importorskip("torchao.quantization")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

EIGHT = BnbQuantizationConfig(load_in_8bit=True)
NF4 = BnbQuantizationConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bf16")
FP4 = BnbQuantizationConfig(load_in_4bit=True, bnb_4bit_compute_dtype="fp32")
NESTED = BnbQuantizationConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_compute_dtype="bf16",
    bnb_4bit_use_double_quant=True,
)
INT8 = TorchaoQuantizationConfig()
CONFIGS = {"8bit": EIGHT, "nf4": NF4, "fp4": FP4, "nested": NESTED, "torchao": INT8}
BNB = {name: config for name, config in CONFIGS.items() if config is not INT8}
every = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
every_bnb = pytest.mark.parametrize("config", BNB.values(), ids=BNB)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(torch.relu(self.up(self.norm(x))))
        return x + result


class Model(nn.Module):
    def __init__(self, width: int = 128, count: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(count))
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = self.head(x)
        return result


IDS = torch.arange(24).view(2, 12)


def model() -> Model:
    torch.manual_seed(2)
    return Model().eval()


def skeleton() -> Model:
    with init_empty_weights():
        return Model().eval()


@torch.no_grad()
def output(made: nn.Module) -> torch.Tensor:
    result: torch.Tensor = made(IDS)
    return result


@pytest.fixture(autouse=True)
def no_state() -> Iterator[None]:
    """Forget who this process is after each test."""
    yield
    process.reset()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights")
    safetensors.save_model(model(), path / "model.safetensors")
    return path


def by_hand(config: Any) -> Model:
    """Return the model quantized as the documents of the libraries say."""
    made = model().to(config.torch_dtype)
    if config is INT8:
        torchao.quantize_(made.blocks, torchao.Int8WeightOnlyConfig())
        return made
    for block in made.blocks:
        for name in ("up", "down"):
            old = getattr(block, name)
            has_bias = old.bias is not None
            if config.load_in_8bit:
                new = bnb.nn.Linear8bitLt(
                    old.in_features, old.out_features, has_bias, has_fp16_weights=False, threshold=6.0
                )
            else:
                new = bnb.nn.Linear4bit(
                    old.in_features,
                    old.out_features,
                    has_bias,
                    compute_dtype=config.bnb_4bit_compute_dtype,
                    compress_statistics=config.bnb_4bit_use_double_quant,
                    quant_type=config.bnb_4bit_quant_type,
                ).to(config.torch_dtype)
            new.load_state_dict(old.state_dict())
            if has_bias:
                new.bias.data = new.bias.data.to(config.torch_dtype)
            setattr(block, name, new.to("cpu"))
    return made.eval()


@every
def test_a_skeleton_computes_as_what_was_quantized_by_hand(config: Any, folder: Path) -> None:
    made = load_and_quantize_model(skeleton(), config, folder)
    hand = by_hand(config)
    if config is not INT8:
        state = made.state_dict()
        for name, value in hand.state_dict().items():
            assert torch.equal(state[name].to(value.dtype), value), name
        kind = bnb.nn.Linear8bitLt if config.load_in_8bit else bnb.nn.Linear4bit
        assert isinstance(made.blocks[0].up, kind)
        assert made.is_loaded_in_8bit if config.load_in_8bit else made.is_loaded_in_4bit
    assert torch.equal(output(made), output(hand))
    assert output(made).dtype == config.torch_dtype
    assert type(made.head) is nn.Linear
    assert made.head.weight is made.embed.weight


@every
def test_a_model_that_has_its_weights(config: Any, folder: Path) -> None:
    wanted = output(load_and_quantize_model(skeleton(), config, folder))
    assert torch.equal(output(load_and_quantize_model(model(), config)), wanted)


@every
@pytest.mark.parametrize("after", ["at once", "after forwards"])
def test_saved_and_loaded_to_the_bit(config: Any, after: str, folder: Path, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    made = load_and_quantize_model(skeleton(), config, folder)
    wanted_state = {name: value.clone() for name, value in made.state_dict().items()}
    wanted = output(made)
    if after == "after forwards":
        output(made.train())
        output(made.eval())
    accelerator.save_model(made, tmp_path, max_shard_size="40kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = load_and_quantize_model(skeleton(), config, tmp_path)
    assert torch.equal(output(again), wanted)
    state = again.state_dict()
    assert state.keys() == wanted_state.keys()
    for name, value in wanted_state.items():
        assert torch.equal(state[name], value), name
    # What was running goes on as it was.
    assert torch.equal(output(made), wanted)


@every
@pytest.mark.parametrize("saved", ["plain", "quantized"])
@pytest.mark.parametrize("device_map", [{"": "disk"}, {"embed": "cpu", "head": "cpu", "blocks.0": "disk", "blocks.1": "cpu"}], ids=["disk", "mixed"])  # fmt: skip  # noqa: E501
def test_offloaded(config: Any, saved: str, device_map: Any, folder: Path, tmp_path: Path) -> None:
    reference = load_and_quantize_model(skeleton(), config, folder)
    # The kernel for CPUs with AVX-512 BF16 wants another layout, which files do not have.
    for module in reference.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    source, away = folder, tmp_path / "away"
    if saved == "quantized":
        source = tmp_path / "quantized"
        Accelerator(cpu=True).save_model(reference, source)
    files = away if saved == "plain" else None
    made = load_and_quantize_model(skeleton(), config, source, device_map=device_map, offload_folder=files)
    for module in made.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    for _ in range(2):
        assert torch.equal(output(made), output(reference))
    assert away.exists() == (saved == "plain")
    assert made.blocks[0].up.bias.device.type == "meta"
    assert all(parameter.device.type == "meta" for parameter in made.blocks[0].parameters())


@every_bnb
def test_casts_are_refused_and_moves_are_not(config: Any) -> None:
    made = load_and_quantize_model(model(), config)
    wanted = output(made)
    for one in (made, copy.deepcopy(made)):
        for cast in (one.half, one.float, lambda one=one: one.to(torch.bfloat16), one.blocks[0].up.half):
            with pytest.raises(CapabilityError, match="cannot be changed"):
                cast()
        assert torch.equal(output(one.to("cpu")), wanted)


@pytest.mark.leaks("env", reason="bitsandbytes compiles what it has no kernel for, and torch sets a variable")
@pytest.mark.leaks("threads", reason="torch keeps the threads that have compiled")
@pytest.mark.parametrize("shape", [(100, 36), (64, 100), (7, 5), (64, 33)])
@pytest.mark.parametrize("config", [EIGHT, NF4, NESTED], ids=["8bit", "nf4", "nested"])
def test_layers_of_any_shape_compute(shape: tuple[int, int], config: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(*shape), nn.Linear(shape[1], 4)).to(config.torch_dtype).eval()
    x = torch.randn(3, shape[0], dtype=config.torch_dtype)
    wanted = plain(x).float()
    made = load_and_quantize_model(copy.deepcopy(plain), config)
    with torch.no_grad():
        got = made(x).float()
    assert (got - wanted).norm() < 0.35 * wanted.norm()
    Accelerator(cpu=True).save_model(made, tmp_path)
    with init_empty_weights():
        bare = nn.Sequential(nn.Linear(*shape), nn.Linear(shape[1], 4)).eval()
    with torch.no_grad():
        assert torch.equal(load_and_quantize_model(bare, config, tmp_path)(x).float(), got)


def test_gradients_reach_the_input(folder: Path) -> None:
    for config in BNB.values():
        made = load_and_quantize_model(skeleton(), config, folder, device_map={"": "cpu"})
        x = torch.randn(2, 128, dtype=config.torch_dtype, requires_grad=True)
        made.blocks[0](x).float().sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("config", [NF4, FP4, NESTED], ids=["nf4", "fp4", "nested"])
def test_four_bits_are_as_they_were_after_fast_forwards(config: Any, folder: Path) -> None:
    made: Any = load_and_quantize_model(skeleton(), config, folder)
    layer = made.blocks[0].up
    wanted = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    x = torch.randn(3, 128, dtype=config.torch_dtype, requires_grad=True)
    gradient = torch.autograd.grad(layer(x).sum(), x)[0]
    first = output(made)
    for _ in range(2):
        assert torch.equal(output(made), first)
        assert torch.equal(torch.autograd.grad(layer(x).sum(), x)[0], gradient)
        output(made)
        again = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert torch.equal(again, wanted)
        twin = copy.deepcopy(layer)
        with torch.no_grad():
            assert torch.equal(twin(x.detach()), layer(x.detach()))
        again = bnb.functional.dequantize_4bit(twin.weight.data, twin.weight.quant_state)
        assert torch.equal(again, wanted)


OTHERS = [
    (EIGHT, NF4, "8 bits of bitsandbytes.*4 bits of bitsandbytes, nf4"),
    (NF4, EIGHT, "4 bits of bitsandbytes, nf4.*8 bits"),
    (NF4, FP4, "nf4.*fp4"),
    (NF4, NESTED, "without double quantization"),
    (NESTED, NF4, "with double quantization"),
    (EIGHT, INT8, "8 bits of bitsandbytes.*torchao"),
    (INT8, EIGHT, "torchao.*8 bits of bitsandbytes"),
]


@pytest.mark.parametrize(("first", "second", "message"), OTHERS)
def test_loaded_with_other_settings(first: Any, second: Any, message: str, tmp_path: Path) -> None:
    Accelerator(cpu=True).save_model(load_and_quantize_model(model(), first), tmp_path)
    bare = skeleton()
    before = [id(parameter) for parameter in bare.parameters()]
    with pytest.raises(CheckpointError, match="quantized before, in another way") as caught:
        load_and_quantize_model(bare, second, tmp_path)
    import re

    assert re.search(message, str(caught.value))
    assert "blocks.0.up" in caught.value.where
    assert [id(parameter) for parameter in bare.parameters()] == before


def text(value: Any) -> torch.Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def state_of(tensor: torch.Tensor) -> Any:
    return json.loads(bytes(tensor.tolist()))


FOUR = "blocks.0.up.weight.quant_state.bitsandbytes__nf4"
AO = "blocks.0.up.weight.torchao"
DAMAGE: list[tuple[Any, str, Callable[[torch.Tensor], torch.Tensor | None]]] = [
    (EIGHT, "blocks.0.up.SCB", lambda _: None),
    (EIGHT, "blocks.0.up.SCB", lambda old: old[:5]),
    (EIGHT, "blocks.0.up.SCB", lambda old: old.half()),
    (EIGHT, "blocks.0.up.weight", lambda _: None),
    (EIGHT, "blocks.0.up.weight", lambda old: old.float()),
    (EIGHT, "blocks.0.up.weight_format", lambda _: torch.tensor(2, dtype=torch.uint8)),
    (NF4, "blocks.0.up.weight.absmax", lambda _: None),
    (NF4, "blocks.0.up.weight.absmax", lambda old: old[1:]),
    (NF4, "blocks.0.up.weight.quant_map", lambda old: old[1:]),
    (NF4, "blocks.0.up.weight", lambda old: old[1:]),
    (NF4, FOUR, lambda _: None),
    (NF4, FOUR, lambda old: old[:-4]),
    (NF4, FOUR, lambda _: text([1, 2])),
    (NF4, FOUR, lambda old: text({**state_of(old), "blocksize": 0})),
    (NF4, FOUR, lambda old: text({**state_of(old), "blocksize": "64"})),
    (NF4, FOUR, lambda old: text({**state_of(old), "shape": [256, 64]})),
    (NF4, FOUR, lambda old: text({**state_of(old), "quant_type": "fp4"})),
    (NF4, FOUR, lambda old: text({**state_of(old), "dtype": "nn"})),
    (NESTED, "blocks.0.up.weight.nested_quant_map", lambda _: None),
    (NESTED, "blocks.0.up.weight.nested_absmax", lambda _: None),
    (NESTED, FOUR, lambda old: text({**state_of(old), "nested_offset": "one"})),
    (INT8, "blocks.0.up.weight.qdata", lambda old: old[1:]),
    (INT8, "blocks.0.up.weight.scale", lambda _: None),
    (INT8, "blocks.0.up.weight.scale", lambda old: old[1:]),
    (INT8, AO, lambda _: text({"class": "os.system", "settings": {}})),
    (INT8, AO, lambda _: text({"class": "Int8Tensor", "settings": {"dtype": {"dtype": "save"}}})),
    (INT8, AO, lambda _: text({"class": "Int8Tensor", "settings": {}})),
]  # fmt: skip


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, torch.Tensor]]:
    return {name: load_and_quantize_model(model(), config).state_dict() for name, config in CONFIGS.items()}


@pytest.mark.parametrize("number", range(len(DAMAGE)))
def test_damaged_parts(number: int, states: dict[str, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    config, name, spoil = DAMAGE[number]
    kind = next(key for key, value in CONFIGS.items() if value is config)
    state = {key: value for key, value in states[kind].items() if key != "head.weight"}
    changed = spoil(state.pop(name))
    if changed is not None:
        state[name] = changed.contiguous()
    safetensors.save_file(state, tmp_path / "model.safetensors")
    bare = skeleton()
    before = [id(parameter) for parameter in bare.parameters()]
    with pytest.raises(CheckpointError) as caught:
        load_and_quantize_model(bare, config, tmp_path)
    assert "blocks.0.up" in f"{caught.value.what} {caught.value.where}"
    assert [id(parameter) for parameter in bare.parameters()] == before


def test_four_bits_of_torchao_say_what_they_need() -> None:
    with pytest.raises(CapabilityError, match="torchao cannot compute int4 weights on cpu") as caught:
        load_and_quantize_model(model(), TorchaoQuantizationConfig(weights="int4"), device_map="cpu")
    assert "mslk" in str(caught.value)
    with pytest.raises(ConfigError, match="no multiple of group_size=256"):
        load_and_quantize_model(model(), TorchaoQuantizationConfig(weights="int4", group_size=256))


@pytest.mark.parametrize("config", [EIGHT, INT8], ids=["bitsandbytes", "torchao"])
def test_a_device_that_is_not_there(config: Any, folder: Path) -> None:
    made = skeleton()
    with pytest.raises(CapabilityError, match="cannot compute .* on xpu:0"):
        load_and_quantize_model(made, config, folder, device_map="xpu:0")
    assert type(made.blocks[0].up) is nn.Linear


# transformers' own


def llama() -> Any:
    torch.manual_seed(4)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def theirs(config: BnbQuantizationConfig) -> Any:
    return transformers.BitsAndBytesConfig(
        load_in_8bit=config.load_in_8bit,
        load_in_4bit=config.load_in_4bit,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=config.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=config.bnb_4bit_compute_dtype,
    )


@pytest.fixture
def without_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers use what this package has instead of the library that it asks for by name."""
    for name in ("quantizers.quantizer_bnb_4bit", "quantizers.quantizer_bnb_8bit", "integrations.accelerate"):
        monkeypatch.setattr(f"transformers.{name}.is_accelerate_available", lambda: True)
    monkeypatch.setattr("transformers.integrations.accelerate.dispatch_model", dispatch_model, raising=False)


@pytest.mark.usefixtures("without_the_peer")
@every_bnb
def test_a_llama_as_transformers_quantizes_it(config: Any, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "plain", max_shard_size="60kB")
    other = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=theirs(config), dtype=config.torch_dtype
    ).eval()
    # Before any forward: afterwards, bitsandbytes saves what its kernel for this CPU has made of the scales.
    other.save_pretrained(tmp_path / "theirs")
    with init_empty_weights():
        bare = llama()
    made = load_and_quantize_model(bare, config, tmp_path / "plain").eval()
    ours, wanted = made.state_dict(), other.state_dict()
    for name, value in wanted.items():
        assert torch.equal(ours[name], value), name
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(made(ids).logits, other(ids).logits)
        first = made.generate(ids, max_new_tokens=5, do_sample=False)
        assert torch.equal(first, other.generate(ids, max_new_tokens=5, do_sample=False))
    with init_empty_weights():
        bare = llama()
    again = load_and_quantize_model(bare, config, tmp_path / "theirs").eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, made(ids).logits)
    # And what is saved here, transformers loads.
    Accelerator(cpu=True).save_model(made, tmp_path / "ours")
    written = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "ours" / "config.json").write_text(json.dumps(written))
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        assert torch.equal(back(ids).logits, made(ids).logits)
