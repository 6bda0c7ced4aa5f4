"""Plans: room for what is computed, and the reasons that they give."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

from accel_bigmodel import (
    CustomDtype,
    compute_module_sizes,
    compute_module_total_buffer_size,
    plan_device_map,
)
from accel_bigmodel.planning.measured import needs_of_blocks
from accel_bigmodel.planning.walking import outline_of
from accel_core.errors import CapabilityError, ConfigError, UnknownNameError


class Block(nn.Module):
    def __init__(self, width=16, inner=64):
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, hidden):
        return hidden + self.down(torch.relu(self.up(hidden)))


class Config:
    def __init__(self, **values):
        self.__dict__.update(values)

    def to_dict(self):
        return dict(self.__dict__)


class Model(nn.Module):
    _no_split_modules = ("Block",)

    def __init__(self, layers=4, config=None, tied=False):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.norm = nn.BatchNorm1d(16)
        self.lm_head = nn.Linear(16, 50, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight
        if config is not None:
            self.config = config


LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "architectures": ["LlamaForCausalLM"],
}
BLOCK = 4 * (16 * 64 + 64 + 64 * 16 + 16)
TABLE = 4 * 50 * 16


def share(plan, device):
    return next(each for each in plan.shares if each.device == device)


TOKENS = {"batch_size": 3, "sequence_length": 20}
CACHE = 2 * 3 * 20 * (2 * 4) * 4


def workspace(model):
    return share(plan_device_map(model, max_memory={0: 10**7}, **TOKENS), 0).workspace


def test_keys_and_values_are_kept_where_their_layers_run():
    model = Model(config=Config(**LLAMA))
    limits = {0: workspace(model) + TABLE + 2 * (BLOCK + CACHE), 1: 10**6}
    plan = plan_device_map(model, "sequential", max_memory=limits, **TOKENS)
    assert [plan.device_map[f"layers.{number}"] for number in range(4)] == [0, 0, 1, 1]
    assert share(plan, 0).caches == 2 * CACHE
    assert share(plan, 0).free == 0
    # The scores over the vocabulary come on top, as far as they are more than what layers compute.
    assert 2 * CACHE <= share(plan, 1).caches <= 2 * CACHE + 3 * 20 * 50 * 4
    assert share(plan, 0).workspace == share(plan, 1).workspace == workspace(model) > 3 * 20 * 16 * 4
    assert any("by the configuration" in note for note in plan.notes)
    # Without the room that they take, more layers fit.
    bare = plan_device_map(model, "sequential", max_memory=limits)
    assert [bare.device_map.get(f"layers.{number}") for number in range(3)] != [0, 0, 1]


def test_caches_of_offloaded_layers_stay_where_those_run():
    model = Model(config=Config(**LLAMA))
    limits = {0: workspace(model) + TABLE + 2 * BLOCK + 4 * CACHE + 3 * 20 * 50 * 4 + 128, "cpu": 10**6}
    plan = plan_device_map(model, "sequential", max_memory=limits, **TOKENS)
    assert [plan.device_map[f"layers.{number}"] for number in range(4)] == [0, 0, "cpu", "cpu"]
    assert share(plan, "cpu").caches == share(plan, "cpu").workspace == 0
    assert share(plan, 0).caches == 2 * CACHE
    assert share(plan, 0).visitors >= 2 * CACHE + BLOCK + 128
    assert share(plan, 0).free >= 0


def test_half_precision_halves_the_room():
    model = Model(config=Config(**LLAMA))
    wide = plan_device_map(model, max_memory={0: 10**6}, batch_size=2, sequence_length=8)
    half = plan_device_map(model, max_memory={0: 10**6}, batch_size=2, sequence_length=8, dtype="float16")
    four = plan_device_map(
        model, max_memory={0: 10**6}, batch_size=2, sequence_length=8, dtype=CustomDtype.INT4
    )
    assert share(wide, 0).workspace == 2 * share(half, 0).workspace == 2 * share(four, 0).workspace
    assert share(wide, 0).caches == 2 * share(half, 0).caches


def test_without_a_configuration_a_block_is_measured():
    model = Model()
    plan = plan_device_map(model, max_memory={0: 10**6}, batch_size=3, sequence_length=20)
    # At the peak: the input, the wide result and its positive part.
    assert share(plan, 0).workspace == 3 * 20 * (16 + 64 + 64) * 4
    assert any("measured" in note and "Block" in note for note in plan.notes)
    assert all(not parameter.is_meta for parameter in model.parameters())


def test_what_is_measured_is_what_a_real_run_holds():
    """Against torch's own profiler of allocations, on the CPU."""
    block, batch, length = Block(32, 128), 5, 64
    found = needs_of_blocks(block, outline_of(block, ["Block"]), batch, length).workspace
    example = torch.ones(batch, length, 32)
    with (
        torch.no_grad(),
        torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as seen,
    ):
        result = block(example)
    held = most = 0
    changes = [
        event
        for event in seen.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.nbytes()
    ]
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    assert result.shape == example.shape
    # The profiler does not see the input, which was there before.
    assert found == most + example.nbytes


def test_what_cannot_be_measured_is_said():
    class Odd(Block):
        def forward(self, hidden, other):
            return hidden + other

    model = nn.Sequential(Odd(), Odd())
    with pytest.raises(ConfigError, match="reserve='2GiB'"):
        plan_device_map(model, max_memory={0: 10**6}, no_split_module_classes=["Odd"], batch_size=1)
    plan = plan_device_map(model, max_memory={0: 10**6}, no_split_module_classes=["Odd"], reserve="1KB")
    assert share(plan, 0).workspace == 1000


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2"])
def test_wrong_counts(wrong):
    with pytest.raises(ConfigError, match="batch_size"):
        plan_device_map(Model(), max_memory={0: 10**6}, batch_size=wrong)
    with pytest.raises(ConfigError, match="sequence_length"):
        plan_device_map(Model(), max_memory={0: 10**6}, sequence_length=wrong)


def test_wrong_names():
    with pytest.raises(UnknownNameError, match="balanced_low_0"):
        plan_device_map(Model(), "balanced_low_1", max_memory={0: 10**6})
    with pytest.raises(UnknownNameError, match="float16"):
        plan_device_map(Model(), max_memory={0: 10**6}, dtype="float61")


def test_the_reasons():
    plan = plan_device_map(
        Model(layers=6, tied=True),
        "sequential",
        max_memory={0: TABLE + 2 * BLOCK + BLOCK + 200, 1: 2 * BLOCK, "cpu": BLOCK},
    )
    assert dict(plan.device_map) == {
        "embed": 0,
        "layers.0": 0,
        "layers.1": 0,
        "layers.2": 1,
        "layers.3": 1,
        "layers.4": "cpu",
        "layers.5": "disk",
        "norm": "disk",
        "lm_head": 0,
    }
    whys = {row.first: row.why for row in plan.rows}
    assert whys["embed"] == "in the order of the model"
    assert whys["layers.2"] == "layers.2 needs 8.3 KiB, 0 has 64 B left"
    assert whys["layers.4"] == "layers.4 needs 8.3 KiB, 1 has 0 B left; visits 0 to run"
    assert whys["layers.5"] == "layers.5 needs 8.3 KiB, cpu has 0 B left; visits 0 to run"
    assert whys["lm_head"] == "shares a parameter with embed"
    assert [row.name for row in plan.rows][1:3] == ["layers.0 to 1 (2)", "layers.2 to 3 (2)"]
    assert plan.main_device == 0
    assert plan.offloaded == 2 * BLOCK + 128
    text = plan.explain()
    for part in ("DEVICE", "layers.2 to 3 (2)", "shares a parameter with embed", "8.3 KiB stay free on 0"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 100


def test_an_even_share_is_a_reason_too():
    plan = plan_device_map(Model(layers=6), max_memory={0: 10**6, 1: 10**6})
    whys = [row.why for row in plan.rows if row.device == 1]
    assert whys[0] == "0 has its share"
    low = plan_device_map(Model(layers=6), "balanced_low_0", max_memory={0: 10**6, 1: 10**6, 2: 10**6})
    assert low.rows[0].why == "0 is kept free"
    assert share(low, 0).parts == 0


def test_what_does_not_fit_and_by_how_much():
    model = Model()
    total = compute_module_sizes(model)[""]
    plan = plan_device_map(model, max_memory={0: 20_000, "cpu": 10**6})
    text = " ".join(plan.notes)
    assert f"{(total - 20_000) / 1024:.1f} KiB more on 0" in text
    with pytest.raises(CapabilityError, match="does not fit"):
        plan_device_map(model, max_memory={0: 20_000, "disk": 1000})


def test_a_plan_for_programs():
    plan = plan_device_map(Model(), max_memory={0: 30_000, "cpu": 10**6})
    found = json.loads(plan.to_json())
    assert found["device_map"] == plan.device_map
    assert (
        sum(each["weights"] for each in found["devices"]) + compute_module_total_buffer_size(Model())
        == (compute_module_sizes(Model())[""])
    )
    assert pickle.loads(pickle.dumps(plan)) == copy.deepcopy(plan) == plan
    with pytest.raises(AttributeError):
        plan.strategy = "other"


@pytest.mark.parametrize(
    ("dtype", "bits"), [("fp8", 8), (CustomDtype.FP8, 8), (CustomDtype.INT4, 4), ("int2", 2), ("float16", 16)]
)
def test_types_that_torch_packs(dtype, bits):
    model = nn.Linear(3, 5, bias=False)
    assert compute_module_sizes(model, dtype=dtype)[""] == (15 * bits + 7) // 8
    assert compute_module_sizes(model, special_dtypes={"weight": dtype})["weight"] == (15 * bits + 7) // 8


def test_parameters_made_of_others_are_counted_by_what_they_hold():
    from torch.testing._internal.two_tensor import TwoTensor

    model = nn.Linear(4, 4, bias=False)
    model.weight = nn.Parameter(TwoTensor(torch.zeros(4, 4), torch.zeros(4, 4)))
    assert compute_module_sizes(model)[""] == 2 * 64
