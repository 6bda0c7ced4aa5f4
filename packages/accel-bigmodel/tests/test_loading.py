"""Checkpoints into models: the values of plain PyTorch wherever they lie, and nothing half loaded."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from accel_bigmodel import (
    CheckpointReport,
    audit_checkpoint,
    init_empty_weights,
    load_checkpoint_and_dispatch,
    load_checkpoint_in_model,
    load_state_dict,
)
from accel_bigmodel.loading.naming import opened
from accel_bigmodel.loading.placing import plan
from accel_core.errors import CheckpointError, ConfigError, StateError, UnknownNameError

safetensors = pytest.importorskip("safetensors.torch")


class Marked(nn.Parameter):
    """What libraries make of parameters."""


class Model(nn.Module):
    """Tied and nested weights, buffers of both kinds, integers, a frozen and a marked parameter."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)) for _ in range(3)])
        self.norm = nn.LayerNorm(8)
        self.scale = Marked(torch.rand(8), requires_grad=False)
        self.scale.tag = "kept"
        self.register_buffer("shift", torch.rand(8), persistent=False)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x) * self.scale + self.shift)


IDS = torch.tensor([1, 5, 9])


def trained(dtype=torch.float32):
    torch.manual_seed(3)
    model = Model().to(dtype)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) * 3)
    model.shift.fill_(0.5)
    return model.eval()


def skeleton():
    with init_empty_weights():
        model = Model()
    # Not in any checkpoint.
    model.shift.fill_(0.5)
    return model.eval()


def saved(folder, model=None, *, kind="safe", shards=1, drop=("head.weight",), **more):
    """Write a checkpoint as other libraries do; return its folder."""
    folder = Path(folder)
    state = {name: value for name, value in (model or trained()).state_dict().items() if name not in drop}
    state |= more
    ending, write = (
        (".safetensors", safetensors.save_file) if kind == "safe" else (".bin", lambda s, p: torch.save(s, p))
    )
    stem = "model" if kind == "safe" else "pytorch_model"
    if shards == 1:
        write(state, folder / f"{stem}{ending}")
        return folder
    names = list(state)
    places = {}
    for number in range(shards):
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}{ending}"
        part = names[number::shards]
        write({name: state[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / f"{stem}{ending}.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def snapshot(model):
    """Return what a model is, to see that nothing of it changed."""
    return {
        name: (id(tensor), tensor.device, None if tensor.is_meta else tensor.detach().clone())
        for name, tensor in model.state_dict(keep_vars=True).items()
    }


def unchanged(model, before):
    after = snapshot(model)
    assert list(after) == list(before)
    for name in after:
        assert after[name][:2] == before[name][:2], name
        assert after[name][2] is None or torch.equal(after[name][2], before[name][2]), name


# -- where things go -----------------------------------------------------------------------------

MAPS = {
    "nowhere said": None,
    "the CPU": {"": "cpu"},
    "a device": "cpu",
    "the disk": {"": "disk"},
    "mixed": {"embed": "cpu", "head": "cpu", "blocks.0": "disk", "blocks.1": "cpu", "blocks.2.0": "disk"}
    | {"blocks.2.1": "cpu", "norm": "disk", "scale": "disk", "shift": "cpu"},
    "tied and parted": {"embed": "disk", "blocks": "cpu", "norm": "cpu", "scale": "cpu", "head": "cpu"},
}


@pytest.mark.parametrize("kind", ["safe", "torch"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("where", list(MAPS))
def test_every_place_gives_the_output_of_the_model(tmp_path, kind, shards, where):
    expected = trained()(IDS)
    folder = saved(tmp_path, kind=kind, shards=shards)
    options = {} if kind == "safe" else {"offload_folder": tmp_path / "offload"}
    model = load_checkpoint_and_dispatch(skeleton(), folder, MAPS[where], **options)
    assert torch.equal(model(IDS), expected)
    assert torch.equal(model(IDS), expected)
    if kind == "safe":
        assert not (tmp_path / "offload").exists()


def test_what_is_on_the_disk_stays_in_the_files_of_the_checkpoint(tmp_path):
    folder = saved(tmp_path)
    model = load_checkpoint_and_dispatch(skeleton(), folder, {"": "disk"})
    assert {tensor.device.type for tensor in model.parameters()} == {"meta"}
    # Buffers are small and computed with: they are there, unless they are to be offloaded, too.
    assert model.blocks[0][1].running_mean.device.type == "cpu"
    model = load_checkpoint_and_dispatch(skeleton(), folder, {"": "disk"}, offload_buffers=True)
    assert model.blocks[0][1].running_mean.device.type == "meta"
    assert torch.equal(model(IDS), trained()(IDS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


def test_loading_and_dispatching_in_two_steps(tmp_path):
    from accel_bigmodel import dispatch_model

    folder = saved(tmp_path)
    model = skeleton()
    places = {"embed": "cpu", "head": "cpu", "blocks": "disk", "norm": "cpu", "scale": "cpu"}
    report = load_checkpoint_in_model(model, folder, places)
    assert set(report.offloaded) == {
        f"blocks.{n}.{key}" for n in range(3) for key in ("0.weight", "0.bias", "1.weight", "1.bias")
    }
    model = dispatch_model(model, places)
    assert torch.equal(model(IDS), trained()(IDS))


def test_a_copy_is_made_of_what_cannot_be_used_in_place_and_the_folder_must_be_named(tmp_path):
    folder = saved(tmp_path, kind="torch")
    model = skeleton()
    before = snapshot(model)
    with pytest.raises(CheckpointError, match="offload_folder="):
        load_checkpoint_and_dispatch(model, folder, {"": "disk"})
    unchanged(model, before)


def test_a_model_that_has_values_keeps_its_tensors(tmp_path):
    folder = saved(tmp_path)
    torch.manual_seed(9)
    model = Model()
    before = {name: id(tensor) for name, tensor in model.named_parameters()}
    version = model.embed.weight._version
    load_checkpoint_in_model(model, folder)
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == before
    assert model.embed.weight._version > version
    for name, value in trained().state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_skeleton_gets_parameters_as_it_had_them(tmp_path):
    folder = saved(tmp_path)
    model = skeleton()
    load_checkpoint_in_model(model, folder)
    assert model.head.weight is model.embed.weight
    assert type(model.scale) is Marked
    assert model.scale.tag == "kept"
    assert not model.scale.requires_grad
    assert model.embed.weight.requires_grad
    # Values in memory of their own: the file may go.
    (folder / "model.safetensors").write_bytes(b"")
    assert torch.equal(model(IDS), trained()(IDS))


def test_recurrent_layers_know_their_new_weights(tmp_path):
    torch.manual_seed(0)
    real = nn.LSTM(4, 3)
    safetensors.save_file(real.state_dict(), tmp_path / "model.safetensors")
    with init_empty_weights():
        model = nn.LSTM(4, 3)
    load_checkpoint_in_model(model, tmp_path)
    inputs = torch.rand(5, 2, 4)
    assert torch.equal(model(inputs)[0], real(inputs)[0])


PARTS = ["embed", "blocks.0", "blocks.1.0", "blocks.1.1", "blocks.2", "norm", "scale", "shift", "head"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    places=st.lists(st.sampled_from(["cpu", "disk"]), min_size=len(PARTS), max_size=len(PARTS)),
    stored=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    wanted=st.sampled_from([None, torch.float32, torch.bfloat16]),
    kind=st.sampled_from(["safe", "torch"]),
    shards=st.integers(1, 4),
    empty=st.booleans(),
    buffers=st.booleans(),
)
def test_any_places_and_dtypes(tmp_path_factory, places, stored, wanted, kind, shards, empty, buffers):
    folder = saved(tmp_path_factory.mktemp("any"), trained(stored), kind=kind, shards=shards)
    expected = trained(stored).to(wanted or torch.float32)
    start = skeleton() if empty else Model().eval()
    start.shift = start.shift.to(wanted or torch.float32)
    start.shift.fill_(0.5)
    model = load_checkpoint_and_dispatch(
        start,
        folder,
        dict(zip(PARTS, places, strict=True)),
        offload_folder=folder / "offload",
        dtype=wanted,
        offload_buffers=buffers,
        strict=True,
    )
    assert torch.equal(model(IDS), expected(IDS))


# -- dtypes --------------------------------------------------------------------------------------


def dtypes(model):
    return {name: tensor.dtype for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("where", ["the CPU", "mixed", "the disk"])
def test_floating_point_tensors_are_converted_and_others_are_not(tmp_path, where):
    expected = trained().bfloat16()
    model = load_checkpoint_and_dispatch(
        skeleton().bfloat16(), saved(tmp_path), MAPS[where], dtype="bfloat16"
    )
    assert dtypes(model) == dtypes(expected)
    assert model.blocks[0][1].num_batches_tracked.dtype == torch.int64
    assert torch.equal(model(IDS), expected(IDS))


def test_without_a_dtype_the_models_own_counts(tmp_path):
    folder = saved(tmp_path, trained(torch.float16))
    model = skeleton()
    report = load_checkpoint_in_model(model, folder)
    assert dtypes(model) == dtypes(trained())
    assert report.recast["embed.weight"] == "float16 to float32"
    assert torch.equal(model.embed.weight, trained(torch.float16).embed.weight.float())


def test_modules_that_stay_in_float32(tmp_path):
    folder = saved(tmp_path, trained(torch.bfloat16))
    model = skeleton()
    load_checkpoint_in_model(model, folder, dtype=torch.bfloat16, keep_in_fp32_modules=["norm", "blocks.1"])
    found = dtypes(model)
    assert found["norm.weight"] == found["blocks.1.0.weight"] == torch.float32
    assert found["blocks.0.0.weight"] == found["blocks.2.0.weight"] == torch.bfloat16
    assert torch.equal(model.norm.weight, trained(torch.bfloat16).norm.weight.float())


def test_a_dtype_that_torch_does_not_have(tmp_path):
    with pytest.raises(UnknownNameError, match="bfloat16"):
        load_checkpoint_in_model(skeleton(), saved(tmp_path), dtype="bfloat61")


# -- audit ---------------------------------------------------------------------------------------


def refused(model, folder, *, match, **options):
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_checkpoint_in_model(model, folder, **options)
    unchanged(model, before)
    return str(caught.value)


def test_a_tensor_that_would_stay_without_data_is_named(tmp_path):
    folder = saved(tmp_path, drop=("head.weight", "norm.bias", "blocks.1.0.weight"))
    text = refused(skeleton(), folder, match="nothing was loaded")
    assert "without data, and not in the checkpoint (2): blocks.1.0.weight, norm.bias" in text
    model = skeleton()
    report = load_checkpoint_in_model(model, folder, partial=True)
    assert report.missing == report.left_on_meta == ("blocks.1.0.weight", "norm.bias")
    assert not report.ok
    assert model.norm.bias.is_meta
    assert not model.norm.weight.is_meta


def test_a_tied_tensor_that_is_nowhere_is_named_under_all_its_names(tmp_path):
    folder = saved(tmp_path, drop=("head.weight", "embed.weight"))
    assert "(2): embed.weight, head.weight" in refused(skeleton(), folder, match="nothing was loaded")


def test_what_is_missing_and_left_over_in_a_model_with_values(tmp_path, caplog):
    folder = saved(tmp_path, drop=("head.weight", "norm.bias"), other=torch.ones(1))
    with caplog.at_level(logging.WARNING):
        report = load_checkpoint_in_model(Model(), folder)
    assert (report.missing, report.unexpected) == (("norm.bias",), ("other",))
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "not loaded (1): norm.bias. They keep the values that they have.",
        "not in the model (1): other. They are left out.",
    ]
    text = refused(Model(), folder, match="nothing was loaded", strict=True)
    assert "not in the checkpoint (1): norm.bias" in text
    assert "not in the model (1): other" in text
    assert "strict=False" in text


@pytest.mark.parametrize("options", [{}, {"strict": True}, {"partial": True}])
def test_a_checkpoint_without_a_name_in_common_is_always_an_error(tmp_path, options):
    state = {
        f"module.{name}": value for name, value in trained().state_dict().items() if name != "head.weight"
    }
    safetensors.save_file(state, tmp_path / "model.safetensors")
    text = refused(Model(), tmp_path, match="nothing was loaded", **options)
    assert "begin with 'module.': load into the module that holds this one" in text
    assert "strict=False" not in text


def test_what_is_offered_is_there(tmp_path):
    folder = saved(tmp_path, drop=("head.weight", "norm.bias"))
    assert "partial=True" in refused(skeleton(), folder, match="nothing was loaded")
    with pytest.raises(CheckpointError, match="nothing was loaded") as caught:
        load_checkpoint_and_dispatch(skeleton(), folder, {"": "cpu"})
    assert "partial" not in str(caught.value)


def test_lazy_modules_take_the_shapes_of_the_checkpoint(tmp_path):
    real = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).eval()
    safetensors.save_file(real.state_dict(), tmp_path / "model.safetensors")
    inputs = torch.rand(2, 5)
    for where in (None, {"": "cpu"}, {"": "disk"}):
        with init_empty_weights():
            model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()).eval()
        model = load_checkpoint_and_dispatch(model, tmp_path, where)
        assert torch.equal(model(inputs), real(inputs))


def test_an_audit_loads_nothing_and_raises_nothing(tmp_path, caplog):
    folder = saved(
        tmp_path,
        drop=("head.weight", "norm.bias"),
        **{"norm.weight": torch.ones(9), "other": torch.ones(1)},
    )
    model = skeleton()
    before = snapshot(model)
    with caplog.at_level(logging.DEBUG):
        report = audit_checkpoint(model, folder, dtype="bfloat16")
    unchanged(model, before)
    assert not caplog.records
    assert report.left_on_meta == report.missing == ("norm.bias",)
    assert report.unexpected == ("other",)
    assert report.mismatched == {"norm.weight": "shape (9,) in the checkpoint, (8,) in the model"}
    assert report.recast["embed.weight"] == "float32 to bfloat16"
    assert not report.ok


def test_a_load_does_not_mind_what_is_around_it(tmp_path):
    folder = saved(tmp_path)
    for where in (None, {"": "cpu"}, MAPS["mixed"]):
        model = skeleton()
        with torch.inference_mode(), torch.device("meta"):
            load_checkpoint_and_dispatch(model, folder, where, dtype=torch.float64)
        assert not any(tensor.is_inference() for tensor in model.parameters())
        assert torch.equal(model(IDS), trained().double()(IDS))
    model = skeleton()
    with torch.inference_mode(), torch.device("meta"):
        load_checkpoint_in_model(model, folder)
    model(IDS).sum().backward()
    assert torch.equal(model(IDS), trained()(IDS))


def test_a_checkpoint_that_fits_says_nothing(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG):
        report = load_checkpoint_in_model(skeleton(), saved(tmp_path), strict=True)
    assert isinstance(report, CheckpointReport)
    assert report.ok
    assert report.tied == {"head.weight": "embed.weight"}
    assert set(report.restored) == set(trained().state_dict())
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("norm.weight", torch.ones(9), "norm.weight: shape (9,) in the checkpoint, (8,) in the model"),
        ("norm.weight", torch.ones(8, 1), "shape (8, 1) in the checkpoint"),
        ("norm.weight", torch.ones(8).to(torch.int8), "int8 in the checkpoint, float32 in the model"),
        (
            "blocks.0.1.num_batches_tracked",
            torch.tensor(1.5),
            "float32 in the checkpoint, int64 in the model",
        ),
        ("norm.weight", torch.ones(8).to(torch.complex64), "complex64 in the checkpoint"),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_another_shape_or_kind_of_number_is_always_an_error(tmp_path, name, value, text, strict):
    folder = saved(tmp_path, **{name: value})
    assert text in refused(skeleton(), folder, match="nothing was loaded", strict=strict)


def test_tied_weights_that_differ_in_the_checkpoint(tmp_path):
    model = trained()
    same = saved(tmp_path, model, drop=(), **{"head.weight": model.head.weight.detach().clone()})
    assert load_checkpoint_in_model(skeleton(), same).ok
    saved(tmp_path, model, drop=(), **{"head.weight": model.head.weight.detach() + 1})
    text = refused(skeleton(), tmp_path, match="nothing was loaded")
    assert "head.weight: other values than 'embed.weight', though in the model they are one tensor" in text


def test_equal_bits_are_equal_even_where_they_are_no_numbers(tmp_path):
    model = trained()
    model.embed.weight.data[0] = torch.nan
    saved(tmp_path, model, drop=(), **{"head.weight": model.head.weight.detach().clone()})
    assert load_checkpoint_in_model(skeleton(), tmp_path).ok


def test_a_scale_of_eight_bit_weights_is_not_dropped(tmp_path):
    weight = torch.ones(8).to(torch.float8_e4m3fn)
    folder = saved(tmp_path, **{"norm.weight": weight, "norm.weight_scale_inv": torch.ones(1)})
    assert "scaled by 'norm.weight_scale_inv'" in refused(skeleton(), folder, match="nothing was loaded")
    folder = saved(tmp_path, **{"norm.weight": weight})
    assert load_checkpoint_in_model(skeleton(), folder).recast["norm.weight"] == "float8_e4m3fn to float32"


@pytest.mark.parametrize(
    ("rename", "hint"),
    [
        (lambda name: f"model.{name}", "begin with 'model.'"),
        (lambda name: name.replace("norm", "nrom"), "'norm.weight' may be called 'nrom.weight'"),
    ],
)
def test_the_error_says_what_the_matter_may_be(tmp_path, rename, hint):
    state = {rename(name): value for name, value in trained().state_dict().items() if name != "head.weight"}
    safetensors.save_file(state, tmp_path / "model.safetensors")
    assert hint in refused(skeleton(), tmp_path, match="nothing was loaded")


def test_the_checkpoint_of_a_part_of_the_model(tmp_path):
    safetensors.save_file(trained().norm.state_dict(), tmp_path / "model.safetensors")
    with init_empty_weights():
        model = nn.ModuleDict({"norm": nn.LayerNorm(8)})
    assert "is of the part 'norm' of the model" in refused(model, tmp_path, match="nothing was loaded")


def test_buffers_on_meta_that_no_checkpoint_has(tmp_path):
    folder = saved(tmp_path)
    with init_empty_weights(include_buffers=True):
        model = Model()
    text = refused(model, folder, match="nothing was loaded")
    assert "(1): shift" in text
    assert "include_buffers=False" in text
    assert "complete the checkpoint" not in text
    # Older checkpoints do have them.
    folder = saved(tmp_path, shift=torch.full((8,), 0.5))
    load_checkpoint_in_model(model.eval(), folder)
    assert torch.equal(model(IDS), trained()(IDS))


def test_what_modules_keep_beside_tensors(tmp_path):
    class Counting(nn.Linear):
        count = 0

        def get_extra_state(self):
            return torch.tensor(self.count)

        def set_extra_state(self, state):
            self.count = int(state)

    real = Counting(2, 2)
    real.count = 7
    safetensors.save_file(real.state_dict(), tmp_path / "model.safetensors")
    with init_empty_weights():
        model = Counting(2, 2)
    assert load_checkpoint_in_model(model, tmp_path, strict=True).ok
    assert model.count == 7
    safetensors.save_file(
        {"weight": real.weight.data, "bias": real.bias.data}, tmp_path / "model.safetensors"
    )
    assert load_checkpoint_in_model(Counting(2, 2), tmp_path).missing == ("_extra_state",)


@pytest.mark.parametrize("where", [None, {"": "cpu"}, {"": "disk"}])
def test_modules_rename_what_older_versions_saved(tmp_path, where):
    from torch.nn.utils.parametrizations import weight_norm

    def build():
        return nn.Sequential(weight_norm(nn.Linear(3, 2)), nn.Linear(2, 2))

    real = build()
    state = {name: value.detach().clone() for name, value in real.state_dict().items()}
    old = {"original0": "weight_g", "original1": "weight_v"}
    for new, name in old.items():
        state[f"0.{name}"] = state.pop(f"0.parametrizations.weight.{new}")
    safetensors.save_file(state, tmp_path / "model.safetensors")
    model = build()
    model = load_checkpoint_and_dispatch(model, tmp_path, where, strict=True)
    inputs = torch.rand(2, 3)
    assert torch.equal(model(inputs), real(inputs))


class Listing(nn.Module):
    """Parameters in containers that nobody calls."""

    def __init__(self):
        super().__init__()
        self.several = nn.ParameterList([torch.rand(3, 3), torch.rand(3)])
        self.named = nn.ParameterDict({"scale": torch.rand(3)})
        self.layer = nn.Linear(3, 3)

    def forward(self, inputs):
        return self.layer(inputs @ self.several[0] + self.several[1]) * self.named["scale"]


@pytest.mark.parametrize(
    "places", [{"": "disk"}, {"0": "disk", "1": "cpu"}, {"0.several": "disk", "1": "cpu"}]
)
def test_parameters_in_containers(tmp_path, places):
    real = nn.Sequential(Listing(), Listing())
    safetensors.save_file(
        {k: v.clone() for k, v in real.state_dict().items()}, tmp_path / "model.safetensors"
    )
    with init_empty_weights():
        model = nn.Sequential(Listing(), Listing())
    if "0.several" in places:
        places |= {"0.named": "disk", "0.layer": "disk"}
    model = load_checkpoint_and_dispatch(model, tmp_path, places)
    inputs = torch.rand(2, 3)
    assert torch.equal(model(inputs), real(inputs))
    assert model[0].layer.weight.is_meta


def test_a_weight_that_no_hook_would_bring_is_an_error_and_no_number(tmp_path, monkeypatch):
    from accel_bigmodel import wiring

    folder = saved(tmp_path)
    sort = wiring.Wiring._sort

    def forget(self, unit, names):
        sort(self, unit, names)
        if unit.name == "norm":
            unit.away.clear()

    monkeypatch.setattr(wiring.Wiring, "_sort", forget)
    with pytest.raises(CheckpointError, match=r"2 tensors .* no data when it runs: norm.weight, norm.bias"):
        load_checkpoint_and_dispatch(skeleton(), folder, {"": "disk"})


def test_modules_may_make_something_new_of_what_was_saved(tmp_path):
    class Fused(nn.Linear):
        def __init__(self):
            super().__init__(2, 4, bias=False)
            self._register_load_state_dict_pre_hook(self._fuse)

        def _fuse(self, state, prefix, *_):
            if f"{prefix}q" in state:
                state[f"{prefix}weight"] = torch.cat([state.pop(f"{prefix}q"), state.pop(f"{prefix}k")])

    safetensors.save_file({"q": torch.ones(2, 2), "k": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with init_empty_weights():
        model = Fused()
    assert load_checkpoint_in_model(model, tmp_path, strict=True).ok
    assert model.weight.tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]


# -- arguments -----------------------------------------------------------------------------------


def test_maps_that_are_wrong(tmp_path):
    folder = saved(tmp_path)
    with pytest.raises(ConfigError, match="norm"):
        load_checkpoint_in_model(skeleton(), folder, {"embed": "cpu", "head": "cpu", "blocks": "cpu"})
    with pytest.raises(UnknownNameError, match="blocks"):
        load_checkpoint_in_model(skeleton(), folder, {"": "cpu", "block": "cpu"})


def test_a_name_of_the_hub_is_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"snapshot_download\('org/model-7b'\)"):
        load_checkpoint_in_model(skeleton(), "org/model-7b")
    (tmp_path / "org" / "model-7b").mkdir(parents=True)
    saved(tmp_path / "org" / "model-7b")
    assert load_checkpoint_in_model(skeleton(), "org/model-7b").ok


def test_a_model_whose_weights_are_elsewhere_is_not_loaded_into(tmp_path):
    folder = saved(tmp_path)
    model = load_checkpoint_and_dispatch(skeleton(), folder, {"": "disk"})
    for load in (load_checkpoint_in_model, load_checkpoint_and_dispatch):
        with pytest.raises(StateError, match="offloaded already, with 'scale' for one"):
            load(model, folder)
    assert torch.equal(model(IDS), trained()(IDS))


def test_tensors_of_one_file_where_they_are_wanted(tmp_path):
    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    found = load_state_dict(file)
    state = trained().state_dict()
    assert set(found) == set(state) - {"head.weight"}
    assert all(torch.equal(found[name], state[name]) for name in found)
    moved = load_state_dict(file, {"": "cpu", "embed": "meta", "norm": "disk"})
    assert {name for name in moved if moved[name].is_meta} == {"embed.weight"}
    torch.save(dict(state), tmp_path / "a.bin")
    assert set(load_state_dict(tmp_path / "a.bin")) == set(state)


# -- memory --------------------------------------------------------------------------------------


def sparse(path, shapes):
    """Write a file of zeros that takes no memory to write."""
    header, place = {}, 0
    for name, shape in shapes.items():
        end = place + shape[0] * shape[1] * 4
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)


def kilobytes(field):
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(field)).split()[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize("where", ["the disk", "the CPU", "the CPU, converted"])
def test_the_host_has_no_more_at_any_time_than_what_stays(tmp_path, where):
    mebi = 2**20
    # Larger than what malloc keeps for itself when it is given back, also in half the size.
    rows, count = 80 * mebi // 4 // 1024, 3
    sparse(tmp_path / "model.safetensors", {f"{n}.weight": [rows, 1024] for n in range(count)})
    with init_empty_weights():
        model = nn.ModuleList([nn.Linear(1024, rows, bias=False) for _ in range(count)])
    narrow = where.endswith("converted")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not reset the peak")
    before = kilobytes("VmRSS")
    load_checkpoint_and_dispatch(
        model,
        tmp_path,
        {"": "disk" if where == "the disk" else "cpu"},
        dtype=torch.bfloat16 if narrow else None,
    )
    peak = (kilobytes("VmHWM") - before) * 1024
    stays = {"the disk": 0, "the CPU": 240 * mebi, "the CPU, converted": 120 * mebi}[where]
    # A buffer of 16 MiB for each of two threads where something is converted, threads, modules of Python.
    assert stays * 0.9 <= peak <= stays + (32 * mebi if narrow else 0) + 16 * mebi


def test_nothing_of_a_plan_is_in_the_model_before_everything_is_read(tmp_path):
    folder = saved(tmp_path, shards=3)
    file = sorted(folder.glob("*.safetensors"))[1]
    model = skeleton()
    weights = opened(folder, model)
    file.write_bytes(file.read_bytes()[:-8])
    before = snapshot(model)
    from accel_bigmodel.loading.audit import Rules, audit
    from accel_bigmodel.loading.placing import carry_out

    found = audit(model, weights, Rules())
    made = plan(found.matches, weights, lambda *_: torch.device("cpu"))
    with pytest.raises(CheckpointError, match="ends 8 bytes before"):
        carry_out(made, weights, model)
    unchanged(model, before)
