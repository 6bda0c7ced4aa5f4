"""What an estimate counts: layers, types, optimizers' states against the real ones, shards, and refusals."""

import contextlib
import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from accel_bigmodel.estimate import show
from accel_bigmodel.estimate.bits import WANTED
from accel_bigmodel.estimate.blocks import layers
from accel_bigmodel.estimate.memory import estimate_memory
from accel_bigmodel.estimate.optimizers import STATES, state_bytes
from accel_bigmodel.estimate.options import EstimateOptions
from accel_bigmodel.estimate.packed import weights
from accel_bigmodel.estimate.pickled import shapes
from accel_bigmodel.estimate.shapes import ModelHeaders, TensorShape
from accel_bigmodel.estimate.tied import without_ties
from accel_core.errors import ConfigError, UnknownNameError


def headers(tensors, config=None, **more):
    found = {name: TensorShape(*each) for name, each in tensors.items()}
    return ModelHeaders(found, config or {}, "made here", **more)


def of(model, config=None):
    tensors, aliases = shapes(dict(model.state_dict()))
    return ModelHeaders(tensors, config or {}, "a module", aliases=aliases)


def stack(*blocks, outside=()):
    """Return headers of numbered blocks: each a dict of names and shapes."""
    inside = {
        f"model.layers.{number}.{name}": ("F32", shape)
        for number, block in enumerate(blocks)
        for name, shape in block.items()
    }
    return headers(inside | {name: ("F32", shape) for name, shape in outside})


BLOCK = {"attention.q.weight": (8, 8), "mlp.up.weight": (32, 8)}
OTHER = {"attention.q.weight": (8, 8), "experts.0.weight": (32, 8), "experts.1.weight": (32, 8)}


def names(found):
    return list(layers(weights(found)))


def test_the_blocks_of_a_stack_are_layers():
    found = stack(BLOCK, BLOCK, outside=[("model.embed.weight", (20, 8)), ("scale", (1,))])
    assert names(found) == ["", "model.layers.0", "model.layers.1", "model.embed"]


def test_one_block_of_another_kind_changes_nothing():
    assert names(stack(OTHER, BLOCK, BLOCK)) == ["model.layers.0", "model.layers.1", "model.layers.2"]


def test_children_that_are_all_unlike_are_taken_apart():
    wide = {"attention.q.weight": (16, 16), "mlp.up.weight": (64, 16)}
    assert "model.layers.0.attention.q" in names(stack(BLOCK, wide))


def test_numbered_modules_without_inner_modules_are_layers_anyway():
    assert names(of(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))) == ["0", "2"]


def test_stages_of_blocks_are_taken_apart_down_to_the_blocks():
    stages = {
        f"stages.{stage}.blocks.{block}.{part}.weight": ("F32", (2**stage, 4))
        for stage in range(3)
        for block in range(2)
        for part in "ab"
    }
    assert names(headers(stages)) == [f"stages.{s}.blocks.{b}" for s in range(3) for b in range(2)]


def test_models_of_timm_have_single_modules_as_layers():
    found = stack(BLOCK, BLOCK)
    assert estimate_memory(found).largest_layers == ("model.layers.0", "model.layers.1")
    expected = ("model.layers.0.mlp.up", "model.layers.1.mlp.up")
    assert estimate_memory(found, library_name="timm").largest_layers == expected
    own = dataclasses.replace(found, config={"architecture": "resnet50"})
    assert estimate_memory(own).largest_layers == expected


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.lists(st.sampled_from(["a", "b", "0", "1", "2"]), min_size=1, max_size=5).map(".".join),
        st.tuples(st.sampled_from(["F32", "BF16", "I64", "U8"]), st.tuples(st.integers(0, 9))),
        max_size=25,
    ),
    st.booleans(),
)
def test_every_tensor_is_in_one_layer(tensors, blocks):
    found = weights(headers(tensors))
    cut = layers(found, blocks=blocks)
    assert sorted(map(id, found.values())) == sorted(id(each) for inside in cut.values() for each in inside)
    estimate = estimate_memory(headers(tensors))
    for row in estimate.loading:
        assert row.largest_layer <= row.total


def test_names_of_any_depth():
    assert estimate_memory(headers({".".join("a" * 5000): ("F32", (3,))})).loading[0].total == 12


def test_the_figures_of_the_documents():
    # bert-base-cased: the two largest of its matrices, and what its documented figures are made of.
    words, rest = 28996 * 768, 108_310_272 - 28996 * 768
    found = headers({"embeddings.word_embeddings.weight": ("F32", (words,)), "rest": ("F32", (rest,))})
    rows = {row.dtype: row for row in estimate_memory(found).loading}
    assert list(rows) == ["float32", "float16", "bfloat16", "fp8", "int8", "int4"]
    assert rows["float32"].total == 4 * 108_310_272
    for dtype in ("float32", "float16", "bfloat16"):
        assert rows[dtype].training == 4 * rows[dtype].total
    # Nothing is trained in these: they have no gradients.
    assert [rows[dtype].training for dtype in ("fp8", "int8", "int4")] == [None] * 3
    for dtype, bits in WANTED.items():
        assert rows[dtype].total * 32 == rows["float32"].total * bits


def test_integers_keep_their_type_and_are_not_trained():
    found = headers({"a": ("F32", (10,)), "ids": ("I64", (5,)), "mask": ("BOOL", (3,))})
    estimate = estimate_memory(found, ["int4"], EstimateOptions(optimizer="sgd"))
    assert estimate.loading[0].total == 5 + 40 + 3
    assert estimate.parameters == 10
    assert estimate.stored == {"F32": 40, "I64": 40, "BOOL": 3}


def test_statistics_of_a_batch_norm_have_no_gradient():
    (row,) = estimate_memory(of(nn.BatchNorm1d(10)), ["float32"], EstimateOptions(optimizer="adam")).training
    assert (row.weights, row.gradients, row.optimizer) == (168, 80, 160)


PACKED = {
    "gptq": (
        {"quant_method": "gptq", "bits": 4},
        {"x.qweight": ("I32", (64, 10)), "x.scales": ("F16", (9,))},
    ),
    "bitsandbytes": (
        {"load_in_4bit": True, "quant_method": "bitsandbytes"},
        {
            "x.weight": ("U8", (2560, 1)),
            "x.weight.absmax": ("U8", (80,)),
            "x.weight.quant_state.bitsandbytes__nf4": ("U8", (100,)),
        },
    ),
    "int8": (
        {"load_in_8bit": True, "quant_method": "bitsandbytes"},
        {"x.weight": ("I8", (512, 10)), "x.SCB": ("F32", (10,)), "x.weight_format": ("U8", ())},
    ),
    "mxfp4": (
        {"quant_method": "mxfp4"},
        {"x.blocks_blocks": ("U8", (256, 10)), "x.blocks_scales": ("U8", (16,))},
    ),
    "fp8": (
        {"quant_method": "fp8"},
        {"x.weight": ("F8_E4M3", (512, 10)), "x.weight_scale_inv": ("F32", (4, 1))},
    ),
    "compressed": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
        },
        {
            "x.weight_packed": ("I32", (64, 10)),
            "x.weight_scale": ("BF16", (4, 1)),
            "x.weight_shape": ("I64", (2,)),
        },
    ),
}


@pytest.mark.parametrize("kind", PACKED)
def test_numbers_that_a_quantizer_packed_are_counted(kind):
    config, tensors = PACKED[kind]
    found = headers(tensors | {"norm.weight": ("F32", (7,))}, {"quantization_config": config})
    estimate = estimate_memory(found, ["float16"])
    assert estimate.parameters == 5120 + 7
    assert estimate.loading[0].total == 2 * (5120 + 7)
    assert config["quant_method"] in " ".join(estimate.notes)


class Small(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.large = nn.Parameter(torch.zeros(96, 64, dtype=dtype))
        self.cube = nn.Parameter(torch.zeros(3, 5, 7, dtype=dtype))
        self.vector = nn.Parameter(torch.zeros(33, dtype=dtype))


REAL = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "adafactor": torch.optim.Adafactor,
    "rmsprop": torch.optim.RMSprop,
    "sgd": lambda those: torch.optim.SGD(those, lr=0.1),
    "sgd_momentum": lambda those: torch.optim.SGD(those, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", REAL)
def test_the_states_of_an_optimizer_are_those_of_the_real_one(name, dtype):
    model = Small(dtype)
    optimizer = REAL[name](model.parameters())
    sum(parameter.float().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    # Counters of steps are single numbers, and left out.
    real = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.numel() > 1
    )
    found = weights(of(model)).values()
    assert state_bytes(name, found, 8 * dtype.itemsize) == real


def test_states_in_8_bits_keep_small_tensors_in_32():
    model = Small(torch.float32)
    found = weights(of(model)).values()
    blocks = math.ceil(96 * 64 / 256)
    assert state_bytes("adam8bit", found, 32) == 2 * (96 * 64 + 4 * blocks) + 2 * 4 * (105 + 33)
    assert state_bytes("lion8bit", found, 16) == state_bytes("adam8bit", found, 32) // 2


LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
}
LAYER = {
    "self_attn.q_proj.weight": (64, 64),
    "self_attn.k_proj.weight": (16, 64),
    "mlp.gate_proj.weight": (176, 64),
    "input_layernorm.weight": (64,),
}


def llama(**more):
    found = stack(*[LAYER] * 4, outside=[("model.embed_tokens.weight", (100, 64))])
    return dataclasses.replace(found, config=LLAMA | more)


def one(kind, options, dtype="bfloat16", model=None):
    (found,) = getattr(estimate_memory(model or llama(), [dtype], EstimateOptions(**options)), kind)
    return found


def test_the_cache_is_keys_and_values_of_every_layer_and_token():
    row = one("inference", {"batch_size": 3, "sequence_length": 100})
    assert row.cache == 2 * 3 * 100 * 4 * (2 * 8) * 2
    assert row.peak == row.weights + row.cache + row.activations
    # Weights of 4 bits compute in 16.
    narrow = one("inference", {"batch_size": 3, "sequence_length": 100}, "int4")
    assert (narrow.cache, narrow.activations) == (row.cache, row.activations)


@pytest.mark.parametrize(
    ("more", "share"),
    [
        ({"sliding_window": 25}, 0.25),
        ({"sliding_window": 25, "use_sliding_window": False}, 1),
        ({"sliding_window": 1000}, 1),
        ({"sliding_window": 50, "layer_types": ["sliding_attention", "full_attention"] * 2}, 0.75),
        ({"num_key_value_heads": 8}, 4),
        ({"multi_query": True, "num_key_value_heads": None}, 0.5),
        ({"head_dim": 16}, 2),
    ],
    ids=str,
)
def test_what_a_configuration_says_about_the_cache(more, share):
    options = {"sequence_length": 100}
    full = one("inference", options).cache
    assert one("inference", options, model=llama(**more)).cache == full * share


def test_encoders_cache_nothing():
    model = llama(model_type="bert", architectures=["BertForMaskedLM"])
    assert one("inference", {"sequence_length": 100}, model=model).cache == 0


def test_more_is_more():
    base = {"batch_size": 2, "sequence_length": 128}
    for kind in ("inference", "training"):
        peak = one(kind, base).peak
        assert one(kind, base | {"batch_size": 4}).peak > peak
        assert one(kind, base | {"sequence_length": 256}).peak > peak
        assert one(kind, base | {"eager_attention": True}).peak > peak
        assert one(kind, base, "float32").peak > peak
    full, light = one("training", base), one("training", base | {"gradient_checkpointing": True})
    assert light.activations < full.activations
    assert light.weights == full.weights


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_cut_what_they_say(stage):
    base = one("training", {"optimizer": "adam", "master_weights": True})
    cut = one("training", {"optimizer": "adam", "master_weights": True, "shards": 8, "zero_stage": stage})
    assert cut.optimizer == math.ceil(base.optimizer / 8)
    assert cut.master == math.ceil(base.master / 8)
    assert cut.gradients == (math.ceil(base.gradients / 8) if stage >= 2 else base.gradients)
    assert cut.weights == (math.ceil(base.weights / 8) if stage >= 3 else base.weights)
    assert (cut.gathered > 0) is (stage == 3)


def test_several_shards_cut_everything_unless_told_otherwise():
    assert one("training", {"shards": 4}) == one("training", {"shards": 4, "zero_stage": 3})


def test_a_master_copy_is_beside_narrow_weights_only():
    count = sum(tensor.elements for tensor in llama().tensors.values())
    narrow = one("training", {"master_weights": True})
    assert (narrow.weights, narrow.gradients) == (2 * count, 2 * count)
    assert (narrow.master, narrow.optimizer) == (4 * count, 8 * count)
    assert one("training", {"master_weights": True}, "float32").master == 0
    assert one("training", {"master_weights": True}, "fp8").gradients == 2 * count


def test_types_that_cannot_be_trained_have_no_row():
    rows = estimate_memory(llama(), None, EstimateOptions(optimizer="adam")).training
    assert [row.dtype for row in rows] == ["float32", "float16", "bfloat16"]


def test_without_options_there_is_the_table_alone():
    estimate = estimate_memory(llama())
    assert (estimate.inference, estimate.training) == ((), ())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0, "sequence_length": 4}, "batch_size=0: must be at least 1"),
        ({"batch_size": 2}, "sequence_length=None: is needed"),
        ({"shards": 0}, "shards=0"),
        ({"zero_stage": 4, "shards": 2}, "zero_stage=4"),
        ({"zero_stage": 0, "shards": 2}, "has no effect with zero_stage=0"),
        ({"zero_stage": 2}, "has no effect on one shard"),
    ],
    ids=str,
)
def test_options_that_cannot_be(options, text):
    with pytest.raises(ConfigError, match=text):
        EstimateOptions(**options)


def test_a_configuration_that_does_not_say_enough():
    with pytest.raises(ConfigError) as caught:
        estimate_memory(stack(BLOCK), None, EstimateOptions(sequence_length=8))
    assert {fault.value for fault in caught.value.faults} == {
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
    }


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**18),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([[], ["sliding_attention"], [None], {}, {"bits": 4}, {"config_groups": {"a": 1}}]),
)
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads")
KEYS = [*LLAMA, "quantization_config", "layer_types", "sliding_window", "is_encoder_decoder", "text_config"]
KEYS += ["head_dim", "num_experts_per_tok", "hidden_act", "multi_query", "tie_word_embeddings", "d_model"]


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING), st.booleans())
def test_any_configuration_gives_an_estimate_or_says_what_is_missing(config, eager):
    more = EstimateOptions(batch_size=2, sequence_length=16, eager_attention=eager)
    model = dataclasses.replace(llama(), config=LLAMA | config)
    if not all(type(model.config[key]) is int and model.config[key] > 0 for key in NEEDED):
        # What is not a size may still be found under another name.
        with contextlib.suppress(ConfigError):
            estimate_memory(without_ties(model), None, more)
        return
    estimate = estimate_memory(without_ties(model), None, more)
    assert all(row.peak >= row.weights > 0 for row in (*estimate.inference, *estimate.training))
    assert "\n".join(show.lines("m", estimate, 80))
    json.dumps(show.facts("m", estimate))


@pytest.mark.parametrize(
    ("dtypes", "options", "text"),
    [
        (["float33"], {}, "Did you mean 'float32'"),
        (None, {"optimizer": "adamm"}, "Did you mean 'adam'"),
    ],
)
def test_unknown_names(dtypes, options, text):
    with pytest.raises(UnknownNameError, match=text):
        estimate_memory(llama(), dtypes, EstimateOptions(**options))


def test_a_sequence_beyond_the_limit_is_said():
    notes = estimate_memory(llama(), None, EstimateOptions(sequence_length=1000)).notes
    assert "512" in " ".join(notes)


def test_every_optimizer_has_a_row():
    for name in STATES:
        assert one("training", {"optimizer": name}).peak > 0
