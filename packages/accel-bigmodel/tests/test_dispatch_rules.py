"""What a dispatched model promises, and what is refused."""

import copy
import pickle

import pytest
import torch
from torch import nn

from accel_bigmodel import (
    AlignDevicesHook,
    ModelHook,
    add_hook_to_module,
    cpu_offload,
    disk_offload,
    dispatch_model,
    init_empty_weights,
    offload_state_dict,
    remove_hook_from_submodules,
)
from accel_bigmodel.aligning import DispatchedTensors
from accel_bigmodel.dispatch import dispatch
from accel_core.errors import CheckpointError, ConfigError, StateError, UnknownNameError
from accel_core.testing.standin.fixture import standin  # noqa: F401 - a fixture


class Block(nn.Module):
    """Attention over all that it has seen so far."""

    def __init__(self, number):
        super().__init__()
        self.number = number
        self.qkv = nn.Linear(4, 12)
        self.norm = nn.LayerNorm(4)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x, cache=None):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        if cache is not None:
            if self.number in cache:
                k, v = (torch.cat(pair, 1) for pair in zip(cache[self.number], (k, v), strict=True))
            cache[self.number] = (k, v)
        return x + torch.softmax(q @ k.transpose(1, 2) * self.scale, -1) @ v


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.blocks = nn.ModuleList([Block(number) for number in range(4)])
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids, cache=None):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, cache=cache)
        return {"scores": self.head(x), "cache": cache}


def decoder():
    torch.manual_seed(0)
    return Decoder().eval()


def generate(model, device="cpu", steps=5):
    ids, cache, seen = torch.tensor([[1, 2]], device=device), {}, []
    with torch.no_grad():
        for _ in range(steps):
            scores = model(ids, cache=cache)["scores"][:, -1]
            seen.append(scores.cpu())
            ids = scores.argmax(-1, keepdim=True)
    return torch.stack(seen)


BLOCKS = {
    "embed": "cpu",
    "head": "cpu",
    "blocks.0": "disk",
    "blocks.1": "cpu",
    "blocks.2": "disk",
    "blocks.3": "cpu",
}


def test_a_loop_with_a_cache(tmp_path):
    expected = generate(decoder())
    for model in (
        cpu_offload(decoder()),
        disk_offload(decoder(), tmp_path / "a", offload_buffers=True),
        dispatch_model(decoder(), BLOCKS, offload_dir=tmp_path / "b", skip_keys="cache"),
    ):
        assert torch.equal(generate(model), expected)
        assert torch.equal(generate(model), expected)


def loop_on_devices(folder):
    reference = decoder().to("standin:0")
    expected = generate(reference, "standin:0")
    device_map = {"embed": 0, "head": 1, "blocks.0": 1, "blocks.1": "cpu", "blocks.2": "disk", "blocks.3": 1}
    model = dispatch_model(decoder(), device_map, offload_dir=folder, skip_keys=["cache"])
    assert model.hf_device_map == device_map
    for device in ("cpu", "standin:0", "standin:1"):
        assert torch.equal(generate(model, device), expected)
    cache = {}
    output = model(torch.tensor([[1, 2]], device="standin:1"), cache=cache)
    assert output["scores"].device == torch.device("standin:1")
    # What was skipped is the same object, with tensors where their blocks compute.
    assert output["cache"] is cache
    assert [str(cache[number][0].device) for number in range(4)] == [
        "standin:1",
        "standin:0",
        "standin:0",
        "standin:1",
    ]
    # Tied over two devices: one copy for each.
    assert model.embed.weight.device != model.head.weight.device
    try:
        model.to("cpu")
    except StateError as error:
        return str(error)
    return None


def test_a_loop_with_a_cache_on_devices(standin, tmp_path):  # noqa: F811
    assert "a part of it is offloaded" in standin.run(1, loop_on_devices, str(tmp_path))[0]


def memory_on_devices():
    device = torch.standin
    model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(16)]).eval()
    size = 256 * 257 * 4
    x = torch.randn(2, 256)
    with torch.no_grad():
        expected = copy.deepcopy(model).to("standin:1")(x.to("standin:1")).cpu()
        cpu_offload(model, "standin:1")
        device.reset_peak_memory_stats(1)
        before = device.memory_allocated(1)
        assert torch.equal(model(x), expected)
        # One block, the next one, and one whose memory a stream still holds, of sixteen.
        assert device.max_memory_allocated(1) - before < 5 * size
        device.reset_peak_memory_stats(1)
        with torch.autocast("standin", dtype=torch.bfloat16):
            model(x)
            # What autocast casts is no longer kept than the block it was cast from.
            assert device.max_memory_allocated(1) - before < 6 * size
            assert device.memory_allocated(1) - before < 4 * size
        device.set_limit(before + 3 * size // 2, 1)
        big = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 1024), nn.Linear(1024, 256))
        cpu_offload(big, "standin:1")
        with pytest.raises(torch.OutOfMemoryError):
            big(x)
        assert all(parameter.device.type == "meta" for parameter in big.parameters())
        device.set_limit(1 << 26, 1)
        assert big(x).shape == (2, 256)
    return True


def test_memory_on_devices(standin):  # noqa: F811
    assert standin.run(1, memory_on_devices) == [True]


def split_on_devices():
    model = dispatch_model(decoder(), {"embed": 0, "blocks": 1, "head": 0}, skip_keys="cache")
    assert model.embed.weight is model.head.weight
    with pytest.raises(StateError, match="it lies on standin:0, standin:1"):
        model.to("standin:0")
    model.half()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    model.float()
    reference = generate(copy.deepcopy(decoder()).half().float().to("standin:1"), "standin:1")
    assert torch.equal(generate(model), reference)
    remove_hook_from_submodules(model)
    assert next(model.to("cpu").parameters()).device.type == "cpu"

    one = dispatch_model(decoder(), {"": 1})
    assert not any(hasattr(module, "_hf_hook") for module in one.modules())
    assert one.head.weight is one.embed.weight
    assert one.to("standin:0").embed.weight.device == torch.device("standin:0")
    hooked = dispatch_model(one, {"": 1}, force_hooks=True)
    assert torch.equal(generate(hooked), generate(decoder().to("standin:1"), "standin:1"))
    return True


def test_split_over_devices(standin):  # noqa: F811
    assert standin.run(1, split_on_devices) == [True]


def hooks_of_single_modules():
    from accel_bigmodel import align_module_device, cpu_offload_with_hook

    x = torch.randn(2, 4)
    layer = nn.Linear(4, 4)
    expected = copy.deepcopy(layer).to("standin")(x.to("standin")).cpu()
    add_hook_to_module(layer, AlignDevicesHook("standin:1", io_same_device=True))
    assert layer.weight.device == torch.device("standin:1")
    output = layer(x)
    assert output.device.type == "cpu"
    assert torch.equal(output, expected)
    with align_module_device(layer, "cpu"):
        assert layer.weight.device.type == "cpu"
        layer.weight.data.zero_()
    assert layer.weight.device == torch.device("standin:1")
    assert not layer.weight.any()

    first, one = cpu_offload_with_hook(nn.Linear(4, 4))
    second, two = cpu_offload_with_hook(nn.Linear(4, 4), "standin:1", prev_module_hook=one)
    assert first(x).device == torch.device("standin:0")
    assert (first.weight.device.type, second.weight.device.type) == ("standin", "cpu")
    assert second(x).device == torch.device("standin:1")
    assert (first.weight.device.type, second.weight.device.type) == ("cpu", "standin")
    two.offload()
    assert second.weight.device.type == "cpu"

    away = cpu_offload(nn.Linear(4, 4), "standin:1")
    with align_module_device(away, "standin:0"):
        assert away.weight.device == torch.device("standin:0")
    with align_module_device(away):
        assert away.weight.device == torch.device("standin:1")
        with pytest.raises(StateError, match="in use on standin:1"), align_module_device(away, "cpu"):
            pass
    assert away.weight.device.type == "meta"
    return True


def test_hooks_of_single_modules_on_devices(standin):  # noqa: F811
    assert standin.run(1, hooks_of_single_modules) == [True]


@pytest.mark.gpu
def test_a_loop_with_a_cache_on_a_gpu(tmp_path):
    device = torch.accelerator.current_accelerator()
    expected = generate(decoder().to(device), device)
    device_map = {"embed": 0, "head": 0, "blocks.0": 0, "blocks.1": "cpu", "blocks.2": "disk", "blocks.3": 0}
    model = dispatch_model(decoder(), device_map, offload_dir=tmp_path, skip_keys=["cache"])
    for where in ("cpu", device):
        assert torch.equal(generate(model, where), expected)
    assert torch.equal(generate(cpu_offload(decoder(), 0)), expected)


def test_all_moves_of_an_offloaded_model_are_refused(tmp_path):
    model = cpu_offload(decoder())
    moves = [
        lambda each: each.to("cpu"),
        lambda each: each.to(torch.float16),
        lambda each: each.half(),
        lambda each: each.double(),
        lambda each: each.cpu(),
        lambda each: each.to_empty(device="cpu"),
        lambda each: nn.Sequential(each).to(torch.float16),
    ]
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for move in moves:
            with pytest.raises(StateError, match="'embed.weight' for one") as raised:
                move(each)
            assert "remove_hook_from_submodules" in raised.value.fix
        assert torch.equal(generate(each), generate(decoder()))
    remove_hook_from_submodules(model)
    assert model.half().embed.weight.dtype == torch.float16
    assert "_apply" not in vars(model)


def test_shapes_alone():
    """On the meta device nothing is computed, and nothing is read."""
    model = cpu_offload(decoder(), "meta", offload_buffers=True)
    scores = model(torch.tensor([[1, 2]], device="meta"))["scores"]
    assert (scores.device.type, scores.shape) == ("meta", (1, 2, 9))
    remove_hook_from_submodules(model)
    assert torch.equal(generate(model), generate(decoder()))


def test_a_copy_has_a_lane_of_its_own():
    model = cpu_offload(decoder())
    other = copy.deepcopy(model)
    lanes = [
        {id(each._hf_hook.lane) for each in one.modules() if hasattr(each, "_hf_hook")}
        for one in (model, other)
    ]
    # None, for the model's own hook; and one for all others.
    assert [len(each) for each in lanes] == [2, 2]
    assert lanes[0] & lanes[1] == {id(None)}
    assert torch.equal(generate(other), generate(model))


def test_removed_hooks_leave_the_model_as_it_was(tmp_path):
    for offload in (cpu_offload, lambda model: disk_offload(model, tmp_path, offload_buffers=True)):
        model = decoder()
        names = set(vars(model))
        state = model.state_dict()
        remove_hook_from_submodules(offload(model))
        assert torch.equal(generate(model), generate(decoder()))
        assert set(vars(model)) - {"_apply"} == names
        assert list(model.state_dict()) == list(state)
        assert model.head.weight is model.embed.weight
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_dispatched_again_and_others_hooks_stay(tmp_path):
    model = decoder()
    hook = add_hook_to_module(model.head, ModelHook())._hf_hook
    for device_map in (BLOCKS, {"": "cpu"}, {"": "disk"}, {"embed": "disk", "head": "disk", "blocks": "cpu"}):
        dispatch_model(model, device_map, offload_dir=tmp_path)
        assert torch.equal(generate(model), generate(decoder()))
        assert sum(hasattr(module, "_hf_hook") for module in model.modules()) < 16
    remove_hook_from_submodules(model.embed)
    assert hook in model.head._hf_hook.hooks


def test_the_disk_holds_what_the_model_has(tmp_path):
    """Whatever lay in the folder before."""
    torch.manual_seed(1)
    offload_state_dict(tmp_path, Decoder().state_dict())
    for model in (
        disk_offload(decoder(), tmp_path),
        dispatch_model(decoder(), {"": "disk"}, offload_dir=tmp_path),
    ):
        assert torch.equal(generate(model), generate(decoder()))


def test_skeletons_find_their_weights_in_the_folder(tmp_path):
    offload_state_dict(tmp_path, decoder().state_dict())
    with init_empty_weights():
        model, other = Decoder().eval(), Decoder().eval()
    assert torch.equal(generate(disk_offload(model, tmp_path)), generate(decoder()))
    device_map = {"": "cpu", "blocks": "disk"}
    with pytest.raises(CheckpointError, match="no weights for 'embed.weight'"):
        dispatch_model(other, device_map, offload_dir=tmp_path)
    assert not any(hasattr(module, "_hf_hook") for module in other.modules())
    state = {"embed.weight": decoder().embed.weight}
    weights = DispatchedTensors(model)
    dispatch(other, device_map, offloaded=weights)
    assert torch.equal(generate(other), generate(decoder()))
    assert torch.equal(other.head.weight, state["embed.weight"])


def test_weights_that_are_given(tmp_path):
    state = decoder().state_dict()
    with init_empty_weights():
        model = Decoder().eval()
    assert torch.equal(generate(cpu_offload(model, "cpu", state_dict=state)), generate(decoder()))
    with init_empty_weights():
        model = Decoder().eval()
    dispatch_model(model, {"": "disk"}, state_dict=state, offload_dir=tmp_path)
    assert torch.equal(generate(model), generate(decoder()))
    with init_empty_weights():
        model = Decoder().eval()
    from accel_bigmodel.offload.folder import read_index

    index = read_index(tmp_path / "index.json")
    dispatch_model(model, {"": "disk"}, offload_index=index, offload_dir=tmp_path)
    assert torch.equal(generate(model), generate(decoder()))
    assert model.embed._hf_hook.weights_map.dataset.index == index


def test_what_is_read_of_a_dispatched_model(tmp_path):
    model = dispatch_model(decoder(), BLOCKS, offload_dir=tmp_path, offload_buffers=True)
    tensors = DispatchedTensors(model)
    state = decoder().state_dict()
    assert list(tensors) == list(state)
    assert len(tensors) == len(state)
    assert all(torch.equal(tensors[name], state[name]) for name in state)


class Uncalled(nn.Module):
    """Uses the weights of a layer that it does not call."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.linear(x, self.layer.weight)


def test_modules_whose_weights_are_used_without_a_call():
    x = torch.randn(2, 4)
    model = nn.Sequential(Uncalled(), nn.Linear(4, 4))
    expected = model(x)
    cpu_offload(model)
    # Torch would compute with whatever the memory holds.
    with pytest.raises(
        StateError, match=r"'0.layer.weight' is offloaded, and linear was to use it"
    ) as raised:
        model(x)
    assert "preload_module_classes" in raised.value.fix
    cpu_offload(model, preload_module_classes=["Uncalled"])
    assert torch.equal(model(x), expected)
    assert not hasattr(model[0].layer, "_hf_hook")
    assert model[0].layer.weight.device.type == "meta"


def test_layers_of_torch_that_read_inside_are_known():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        expected = layer(x)
        cpu_offload(layer)
        # In one step inside of torch, which needs all weights at once.
        assert torch.equal(layer(x), expected)


def test_running_statistics_go_on(tmp_path):
    plain = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model = disk_offload(copy.deepcopy(plain), tmp_path, offload_buffers=True)
    for _ in range(3):
        x = torch.randn(8, 4)
        assert torch.equal(model(x), plain(x))
    remove_hook_from_submodules(model)
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("device_map", "arguments", "error", "text"),
    [
        ({"embed": "cpu", "head": "cpu"}, {}, ConfigError, "no device for blocks.0.scale"),
        ({"": "cpu", "bloks": "cpu"}, {}, UnknownNameError, "'blocks'"),
        ({"": "cpu", "blocks": "dsik"}, {}, UnknownNameError, "'disk'"),
        ({"": "cpu", "blocks": "disk"}, {}, ConfigError, "offload_dir"),
        ({"": "cpu", "blocks": "cuda:99"}, {}, ConfigError, "blocks='cuda:99': is no device of this machine"),
        ({"": "cpu"}, {"main_device": 99}, ConfigError, "main_device=99: is no device of this machine"),
    ],
)
def test_maps_that_cannot_be(device_map, arguments, error, text):
    model = decoder()
    with pytest.raises(error, match=text):
        dispatch_model(model, device_map, **arguments)
    assert not any(hasattr(module, "_hf_hook") for module in model.modules())
    assert torch.equal(generate(model), generate(decoder()))


def test_weights_of_another_shape_are_refused():
    state = decoder().state_dict() | {"blocks.3.qkv.bias": torch.ones(3)}
    with init_empty_weights():
        skeleton = Decoder()
    for model in (decoder(), skeleton):
        with pytest.raises(CheckpointError, match=r"'blocks.3.qkv.bias' has shape \(12,\)"):
            cpu_offload(model, "cpu", state_dict=state)
        assert not any(hasattr(module, "_hf_hook") for module in model.modules())


def test_tensors_without_data_are_named():
    with init_empty_weights():
        model = Decoder()
    for run in (lambda: dispatch_model(model, {"": "cpu"}), lambda: cpu_offload(model, "cpu")):
        with pytest.raises(CheckpointError, match=r"'embed.weight', 'blocks.0.qkv.weight'.* and \d+ more"):
            run()
    assert not any(hasattr(module, "_hf_hook") for module in model.modules())


def test_a_recurrent_module_inside_of_one_that_is_taken_whole():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(4, 4)

        def forward(self, x):
            return self.rnn(x)[0]

    model = Reader()
    x = torch.randn(3, 1, 4)
    expected = model(x)
    cpu_offload(model, preload_module_classes=["Reader"])
    assert not hasattr(model.rnn, "_hf_hook")
    assert torch.equal(model(x), expected)
    assert {weight.device.type for weight in model.rnn._flat_weights} == {"meta"}
    remove_hook_from_submodules(model)
    assert torch.equal(model(x), expected)
