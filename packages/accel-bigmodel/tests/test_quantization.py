"""Loading with quantized layers, by a quantizer in plain torch: what does not depend on a library."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from accel_bigmodel import (
    BnbQuantizationConfig,
    init_empty_weights,
    load_and_quantize_model,
    offloaded_state,
    remove_hook_from_submodules,
)
from accel_core import plugins
from accel_core.errors import (
    CapabilityError,
    CheckpointError,
    ConfigError,
    NotInstalledError,
    PrepareError,
    StateError,
    UnknownNameError,
)
from accel_core.testing.quantizing import RowLinear, RowQuantizer
from accel_core.testing.standin.fixture import StandIn, standin  # noqa: F401 - a fixture

safetensors = pytest.importorskip("safetensors.torch")


@dataclass(frozen=True)
class Rows:
    torch_dtype: torch.dtype = torch.float32
    skip_modules: list[str] | None = None
    keep_in_fp32_modules: list[str] | None = None
    quantizer: ClassVar[str] = "rows"


@dataclass(frozen=True)
class Breaking(Rows):
    after: int = 2
    seen: list[int] = field(default_factory=list)
    quantizer: ClassVar[str] = "breaking"


class BreakingQuantizer(RowQuantizer):
    """Works for a while."""

    def quantize(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        if weight.device.type != "meta":
            self.config.seen.append(1)
            if len(self.config.seen) > self.config.after:
                raise OSError("the disk is on fire")
        return super().quantize(weight)


def offered_here(_group: str) -> dict[str, Any]:
    made = {"rows": RowQuantizer, "breaking": BreakingQuantizer}
    return {name: SimpleNamespace(load=lambda found=found: found) for name, found in made.items()}


@pytest.fixture(autouse=True)
def entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offer the quantizers of this file as an installed distribution would."""
    monkeypatch.setattr(plugins, "offered", offered_here)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(torch.tanh(self.up(self.norm(x))))
        return x + result


class Model(nn.Module):
    """An embedding that is tied to the head, blocks, and buffers of both kinds."""

    def __init__(self, width: int = 16, count: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(count))
        self.register_buffer("scale", torch.full((width,), 0.5))
        self.register_buffer("steps", torch.arange(width), persistent=False)
        self.head = nn.Linear(width, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) * self.scale
        x = x + (self.steps / 100).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = self.head(x)
        return result


IDS = torch.arange(12).view(2, 6)


def model() -> Model:
    torch.manual_seed(1)
    return Model().eval()


def skeleton() -> Model:
    with init_empty_weights():
        return Model().eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.mkdir()
    safetensors.save_model(model(), path / "model.safetensors")
    return path


def by_hand(dtype: torch.dtype = torch.float32) -> Model:
    """Return the model with every second weight replaced by what the quantizer makes of it."""
    made = model().to(dtype)
    for block in made.blocks:
        for layer in (block.up, block.down):
            parts = RowQuantizer().quantize(layer.weight.detach())
            layer.weight = nn.Parameter((parts["weight"] * parts["weight.scale"]).to(dtype))
    return made


@torch.no_grad()
def output(made: nn.Module) -> torch.Tensor:
    result: torch.Tensor = made(IDS)
    return result


def tensors(made: nn.Module) -> dict[str, int]:
    found = dict(made.named_parameters(remove_duplicate=False))
    return {name: id(tensor) for name, tensor in found.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_has_its_weights(dtype: torch.dtype) -> None:
    made = model()
    assert load_and_quantize_model(made, Rows(dtype)) is made
    assert torch.equal(output(made), output(by_hand(dtype)))
    assert made.is_quantized_by_rows
    assert made.head.weight is made.embed.weight
    assert {type(block.up) for block in made.blocks} == {RowLinear}
    assert made.blocks[0].up.bias.dtype == made.scale.dtype == dtype
    assert made.steps.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_skeleton_and_a_folder(folder: Path, dtype: torch.dtype) -> None:
    made = load_and_quantize_model(skeleton(), Rows(dtype), folder)
    assert torch.equal(output(made), output(by_hand(dtype)))
    assert made.head.weight is made.embed.weight


def test_a_skeleton_and_a_file_of_torch(tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "pytorch_model.bin")
    made = load_and_quantize_model(skeleton(), Rows(), tmp_path / "pytorch_model.bin")
    assert torch.equal(output(made), output(by_hand()))


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    first = load_and_quantize_model(model(), Rows())
    safetensors.save_model(first, tmp_path / "model.safetensors")
    again = load_and_quantize_model(skeleton(), Rows(), tmp_path)
    assert torch.equal(output(again), output(first))
    wanted = first.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())


MAPS: list[Any] = [
    "auto",
    "cpu",
    {"": "disk"},
    {"embed": "cpu", "head": "cpu", "scale": "cpu", "blocks": "disk"},
    {"embed": "disk", "head": "disk", "scale": "cpu", "blocks.0": "disk", "blocks.1": "cpu",
     "blocks.2.norm": "cpu", "blocks.2.up": "disk", "blocks.2.down": "cpu"},
]  # fmt: skip


@pytest.mark.parametrize("device_map", MAPS, ids=str)
@pytest.mark.parametrize("saved", ["plain", "quantized"])
def test_placements(tmp_path: Path, folder: Path, device_map: Any, saved: str) -> None:
    source, away = folder, tmp_path / "away"
    if saved == "quantized":
        source = tmp_path / "quantized"
        source.mkdir()
        safetensors.save_model(load_and_quantize_model(model(), Rows()), source / "model.safetensors")
    files = away if saved == "plain" else None
    made = load_and_quantize_model(skeleton(), Rows(), source, device_map=device_map, offload_folder=files)
    wanted = output(by_hand())
    for _ in range(2):
        assert torch.equal(output(made), wanted)
    on_disk = device_map not in ("auto", "cpu")
    # What the checkpoint has as it is needed is used where it lies.
    assert away.exists() == (on_disk and saved == "plain")
    if away.exists():
        assert not any("embed" in file.name or "norm" in file.name for file in away.iterdir())
    assert (made.blocks[0].up.weight.device.type == "meta") == on_disk
    assert made.hf_device_map


def test_a_model_that_has_its_weights_is_offloaded(tmp_path: Path) -> None:
    made = load_and_quantize_model(model(), Rows(), device_map={"": "disk"}, offload_folder=tmp_path)
    assert {parameter.device.type for parameter in made.parameters()} == {"meta"}
    assert torch.equal(output(made), output(by_hand()))


def test_a_folder_for_what_has_to_be_written_is_asked_for_first(folder: Path) -> None:
    made = skeleton()
    before = tensors(made)
    with pytest.raises(ConfigError, match=r"offload_folder.*'blocks.0.up.weight'"):
        load_and_quantize_model(made, Rows(), folder, device_map={"": "disk"})
    assert tensors(made) == before


def test_modules_that_are_kept() -> None:
    made = load_and_quantize_model(
        model(), Rows(torch.bfloat16, skip_modules=["1.up", "head"], keep_in_fp32_modules=["blocks.2"])
    )
    kinds = [(type(block.up), type(block.down)) for block in made.blocks]
    assert kinds == [(RowLinear, RowLinear), (nn.Linear, RowLinear), (nn.Linear, nn.Linear)]
    assert made.blocks[1].up.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in made.blocks[2].parameters()} == {torch.float32}


def test_a_tied_head_is_quantized_when_nothing_is_to_be_kept() -> None:
    made = load_and_quantize_model(model(), Rows(skip_modules=[]))
    assert type(made.head) is RowLinear
    assert torch.equal(made.embed.weight, model().embed.weight)
    wanted = RowQuantizer().quantize(model().embed.weight.detach())
    assert torch.equal(made.head.weight, wanted["weight"])


def test_the_last_layer_is_kept_by_default() -> None:
    made = load_and_quantize_model(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), Rows())
    assert [type(layer) for layer in made] == [RowLinear, nn.ReLU, nn.Linear]


def test_the_output_embeddings_of_a_model_that_says_which_are_kept() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(4, 4)
            self.inner = nn.Linear(4, 4)

        def get_output_embeddings(self) -> nn.Module:
            return self.out

    made = load_and_quantize_model(Named(), Rows())
    assert [type(made.out), type(made.inner)] == [nn.Linear, RowLinear]


def test_a_module_at_two_places_stays_one() -> None:
    layer = nn.Linear(4, 4)
    made = load_and_quantize_model(nn.Sequential(layer, nn.ReLU(), layer), Rows(skip_modules=[]))
    assert type(made[0]) is RowLinear
    assert made[0] is made[2]


def test_subclasses_are_left_alone() -> None:
    made = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8), nn.Linear(8, 8))
    load_and_quantize_model(made, Rows())
    assert isinstance(made[0], nn.MultiheadAttention)
    assert not isinstance(made[0].out_proj, RowLinear)
    assert isinstance(made[1], RowLinear)


def test_names_that_no_module_has() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'head'"):
        load_and_quantize_model(model(), Rows(skip_modules=["haed"]))
    with pytest.raises(UnknownNameError, match="Unknown module 'blocks.7'"):
        load_and_quantize_model(model(), Rows(keep_in_fp32_modules=["blocks.7"]))


def test_layers_that_the_quantizer_refuses_are_all_named() -> None:
    made = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 4))
    with pytest.raises(ConfigError, match=r"0: it has an odd number of outputs; 1: it has"):
        load_and_quantize_model(made, Rows())
    assert all(type(layer) is nn.Linear for layer in made)


def test_nothing_to_quantize() -> None:
    with pytest.raises(PrepareError, match="nothing to quantize"):
        load_and_quantize_model(nn.Sequential(nn.LayerNorm(3)), Rows())
    with pytest.raises(PrepareError, match="nothing to quantize"):
        load_and_quantize_model(model(), Rows(skip_modules=["blocks", "head"]))


def test_what_are_no_settings() -> None:
    for wrong in (None, {"load_in_8bit": True}, BnbQuantizationConfig):
        with pytest.raises(ConfigError, match="are no settings of a quantizer"):
            load_and_quantize_model(model(), wrong)


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name, made in (("bitsandbytes", "bnb.BnbQuantizer"), ("torchao", "ao.TorchaoQuantizer")):
        from importlib import import_module

        module, _, factory = made.partition(".")
        found = import_module(f"accel_bigmodel.quantization.{module}")
        monkeypatch.setattr(found, "find_spec", lambda name: None)
        with pytest.raises(NotInstalledError) as caught:
            getattr(found, factory)(None)
        assert caught.value.fix == f"pip install {name}"


def test_a_skeleton_without_weights() -> None:
    with pytest.raises(CheckpointError, match=r"no data: embed.weight, .*and \d more") as caught:
        load_and_quantize_model(skeleton(), Rows())
    assert "weights_location" in caught.value.fix


def test_buffers_that_nobody_has() -> None:
    with init_empty_weights(include_buffers=True):
        bare = Model()
    with pytest.raises(CheckpointError, match="steps"):
        load_and_quantize_model(bare, Rows(), "nowhere")


def change(state: dict[str, torch.Tensor], **values: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = {
        **state,
        **{name.replace("__", "."): value for name, value in values.items() if value is not None},
    }
    gone = {name.replace("__", ".") for name, value in values.items() if value is None}
    return {name: value for name, value in state.items() if name not in gone and name != "head.weight"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"blocks__1__up__weight": None}, "blocks.1.up.weight"),
        ({"scale": None}, "scale"),
        ({"blocks__1__up__weight": torch.zeros(3, 4)}, r"blocks.1.up.weight: \(3, 4\), not \(32, 16\)"),
        ({"blocks__1__up__bias": torch.zeros(32, dtype=torch.int8)}, "blocks.1.up.bias: torch.int8, not"),
        ({"blocks__1__up__weight": torch.zeros(32, 16, dtype=torch.int8)}, "blocks.1.up"),
        ({"blocks__1__up__weight__scale": torch.zeros(3)}, "blocks.1.up"),
        ({"embed__weight": torch.zeros(20, 16, dtype=torch.int8)}, "embed.weight: torch.int8"),
    ],
)
def test_weights_that_do_not_fit(
    tmp_path: Path, values: dict[str, torch.Tensor | None], message: str
) -> None:
    safetensors.save_file(change(model().state_dict(), **values), tmp_path / "model.safetensors")
    made = skeleton()
    before = tensors(made)
    with pytest.raises(CheckpointError, match=message):
        load_and_quantize_model(made, Rows(), tmp_path)
    assert tensors(made) == before


def test_weights_that_nothing_has_a_use_for_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = change(model().state_dict(), more=torch.zeros(3), steps=torch.zeros(16))
    safetensors.save_file(extra, tmp_path / "model.safetensors")
    load_and_quantize_model(skeleton(), Rows(), tmp_path)
    assert "more" in caplog.text
    assert "steps" not in caplog.text


def test_what_fails_half_way_gives_the_skeleton_back(folder: Path) -> None:
    made = skeleton()
    before, kinds = tensors(made), [type(module) for module in made.modules()]
    with pytest.raises(OSError, match="on fire"):
        load_and_quantize_model(made, Breaking(after=3), folder)
    assert tensors(made) == before
    assert [type(module) for module in made.modules()] == kinds
    assert torch.equal(output(load_and_quantize_model(made, Rows(), folder)), output(by_hand()))


def test_values_that_overflow_are_no_quantized_nothing(tmp_path: Path) -> None:
    state = model().state_dict()
    state["blocks.1.up.weight"][3, 2] = 1e6
    safetensors.save_file(change(state), tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"blocks.1.up.weight has values .* too large for torch.float16"
    ):
        load_and_quantize_model(skeleton(), Rows(torch.float16), tmp_path)
    load_and_quantize_model(skeleton(), Rows(torch.bfloat16), tmp_path)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "to"])
def test_casts_are_refused_before_anything_is_changed(cast: str) -> None:
    made = load_and_quantize_model(model(), Rows())
    wanted = output(made)
    for one in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        with pytest.raises(CapabilityError, match="dtype of a quantized model cannot be changed"):
            getattr(one, cast)(*([torch.float16] if cast == "to" else []))
        assert torch.equal(output(one), wanted)
        assert torch.equal(output(one.to("cpu").cpu().train().eval()), wanted)


def test_a_dispatched_model_is_refused() -> None:
    from accel_bigmodel import dispatch_model

    made = dispatch_model(model(), {"": "cpu"}, force_hooks=True)
    with pytest.raises(PrepareError, match="dispatched already"):
        load_and_quantize_model(made, Rows())


def test_maps_are_made_of_the_sizes_after_quantization(folder: Path, tmp_path: Path) -> None:
    plain = sum(parameter.nbytes for parameter in model().blocks.parameters())
    quantized = load_and_quantize_model(model(), Rows())
    small = sum(parameter.nbytes for parameter in quantized.blocks.parameters())
    assert small < plain / 2
    rest = sum(tensor.nbytes for tensor in quantized.state_dict().values()) - small
    fits = load_and_quantize_model(
        skeleton(), Rows(), folder, device_map="sequential", max_memory={"cpu": 2 * (rest + small)},
        offload_folder=tmp_path / "away",
    )  # fmt: skip
    assert set(fits.hf_device_map.values()) == {"cpu"}


def run_on_standin(folder: str, away: str) -> list[bool]:
    plugins.offered = offered_here  # type: ignore[assignment]
    results = []
    with torch.no_grad():
        wanted = by_hand().to("standin")(IDS.to("standin"))
    for device_map in (
        None,
        "standin:0",
        {"embed": 0, "head": 0, "scale": 0, "blocks": "cpu"},
        {"embed": 0, "head": 0, "scale": 0, "blocks.0": 1, "blocks.1": "disk", "blocks.2": "cpu"},
    ):
        made: Any = load_and_quantize_model(
            skeleton(), Rows(), folder, device_map=device_map, offload_folder=away
        )
        with torch.no_grad():
            got = made(IDS.to("standin"))
        assert got.device.type == "standin"
        results.append(torch.equal(got, wanted))
    quantized = load_and_quantize_model(model(), Rows(), device_map="cpu")
    blocks = sum(parameter.nbytes for parameter in quantized.blocks.parameters())
    room = sum(tensor.nbytes for tensor in quantized.state_dict().values())
    # Half of the blocks do not fit beside the rest, once the largest layer that comes and goes has its room.
    made = load_and_quantize_model(
        skeleton(), Rows(), folder, device_map="sequential", max_memory={0: room - blocks // 2, "cpu": 2**20}
    )
    assert set(map(str, made.hf_device_map.values())) == {"0", "cpu"}
    with torch.no_grad():
        results.append(torch.equal(made(IDS.to("standin")), wanted))
    return results


def test_on_another_device(standin: StandIn, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    assert standin.run(1, run_on_standin, str(folder), str(tmp_path / "away")) == [[True] * 5]


def load_under_a_limit(folder: str, count: int, limit: int) -> int:
    plugins.offered = offered_here  # type: ignore[assignment]
    torch.standin.set_limit(limit)
    try:
        with init_empty_weights():
            made = Model(256, count)
        load_and_quantize_model(made, Rows(skip_modules=["head"]), folder, device_map="standin:0")
        return sum(parameter.nbytes for parameter in made.parameters())
    finally:
        torch.standin.set_limit(2**40)


def test_the_peak_is_the_quantized_model_and_one_weight(standin: StandIn, tmp_path: Path) -> None:  # noqa: F811
    whole = Model(256, 6)
    safetensors.save_model(whole, tmp_path / "model.safetensors")
    largest = whole.blocks[0].up.weight.nbytes
    total = sum(parameter.nbytes for parameter in whole.parameters())
    small = load_and_quantize_model(Model(256, 6), Rows(skip_modules=["head"]))
    quantized = sum(parameter.nbytes for parameter in small.parameters())
    # Beside the weight itself, this quantizer makes its absolute values, scaled ones, and rounded ones.
    limit = quantized + 5 * largest
    assert limit < total
    assert standin.run(1, load_under_a_limit, str(tmp_path), 6, limit) == [quantized]


@pytest.mark.parametrize("first", ["cpu", {"": "disk"}], ids=str)
def test_the_same_object_is_loaded_again(folder: Path, tmp_path: Path, first: Any) -> None:
    made = load_and_quantize_model(skeleton(), Rows(), folder, device_map=first, offload_folder=tmp_path)
    with pytest.raises(PrepareError, match="quantized already"):
        load_and_quantize_model(made, Rows())
    layer = made.blocks[0].up
    with pytest.raises(CheckpointError, match="no file"):
        load_and_quantize_model(made, Rows(), tmp_path / "nowhere")
    assert made.blocks[0].up is layer
    assert torch.equal(output(made), output(by_hand()))
    load_and_quantize_model(made, Rows(torch.bfloat16), folder)
    assert torch.equal(output(made), output(by_hand(torch.bfloat16)))
    assert not any("_hf_hook" in module.__dict__ for module in made.modules())
    with pytest.raises(CapabilityError, match="cannot be changed"):
        made.half()


@pytest.mark.parametrize(
    "away", [{"": "disk"}, {"embed": "cpu", "head": "cpu", "scale": "cpu", "blocks": "disk"}]
)
def test_what_is_offloaded_is_saved_from_where_it_lies(folder: Path, tmp_path: Path, away: Any) -> None:
    made = load_and_quantize_model(skeleton(), Rows(), folder, device_map=away, offload_folder=tmp_path / "a")
    state = dict(offloaded_state(made))
    wanted = load_and_quantize_model(skeleton(), Rows(), folder).state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], value) for name, value in wanted.items())


def test_copies_and_what_is_taken_back_into_memory(folder: Path, tmp_path: Path) -> None:
    made = load_and_quantize_model(
        skeleton(), Rows(), folder, device_map={"": "disk"}, offload_folder=tmp_path / "away"
    )
    wanted = output(by_hand())
    for one in (copy.deepcopy(made), made):
        assert torch.equal(output(one), wanted)
        with pytest.raises((CapabilityError, StateError)):
            one.half()
        with pytest.raises(StateError, match="offloaded"):
            one.to("cpu")
        remove_hook_from_submodules(one)
        assert not any(parameter.is_meta for parameter in one.parameters())
        assert torch.equal(output(one), wanted)
