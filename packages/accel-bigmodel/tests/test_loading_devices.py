"""Loading onto an accelerator: each value there once, no second copy, nothing changed when it is full."""

import pytest
import torch
from torch import nn

from accel_bigmodel import (
    init_empty_weights,
    init_on_device,
    load_checkpoint_and_dispatch,
    load_checkpoint_in_model,
)
from accel_bigmodel.weights import pages as pages_module
from accel_bigmodel.weights.filling import fill
from accel_bigmodel.weights.mapped import Location
from accel_bigmodel.weights.pages import Pages
from accel_core.errors import CheckpointError
from accel_core.testing.standin.fixture import standin  # noqa: F401 - a fixture

safetensors = pytest.importorskip("safetensors.torch")


class Model(nn.Module):
    """Three layers of 1 MiB, a tie, a buffer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(512, 512) for _ in range(3)])
        self.again = nn.Linear(512, 512, bias=False)
        self.again.weight = self.layers[0].weight
        self.norm = nn.BatchNorm1d(512)

    def forward(self, inputs):
        for layer in self.layers:
            inputs = torch.relu(layer(inputs))
        return self.norm(self.again(inputs))


def trained():
    torch.manual_seed(3)
    return Model().eval()


def skeleton():
    with init_empty_weights():
        return Model().eval()


def peak(device, function):
    """Return the bytes that ``function`` took of the device at most, and what it returned."""
    module = torch.get_device_module(device)
    module.synchronize(device)
    before = module.memory_allocated(device)
    module.reset_peak_memory_stats(device)
    result = function()
    module.synchronize(device)
    return module.max_memory_allocated(device) - before, result


def values_on(device, folder):
    """Load onto ``device`` in several ways; return what went wrong."""
    wrong = []
    real = trained()
    state = real.state_dict()
    device = torch.device(device)
    module = torch.get_device_module(device)

    def check(label, model, expected=state):
        for name, tensor in model.state_dict().items():
            if tensor.device != device:
                wrong.append(f"{label}: {name} is on {tensor.device}")
            elif not torch.equal(tensor.cpu(), expected[name]):
                wrong.append(f"{label}: {name} has other values")
        if model.again.weight is not model.layers[0].weight:
            wrong.append(f"{label}: untied")

    model = skeleton()
    most, _ = peak(device, lambda: load_checkpoint_in_model(model, folder, {"": device}))
    check("plain", model)
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    # Allocators round up each of twelve tensors.
    if not size <= most <= size + 12 * 4096:
        wrong.append(f"{most:,} bytes on the device for {size:,}")
    with init_on_device(device, include_buffers=True):
        again = Model().eval()
    most, _ = peak(device, lambda: load_checkpoint_in_model(again, folder))
    check("in place", again)
    if most > 4096:
        wrong.append(f"{most:,} bytes for a load in place")
    narrow = skeleton()
    load_checkpoint_in_model(narrow, folder, {"": device}, dtype=torch.bfloat16)
    check("narrow", narrow, trained().bfloat16().state_dict())
    inputs = torch.randn(4, 512)
    expected = model(inputs.to(device)).cpu()
    places = {"layers.0": device, "again": device, "layers.1": "cpu", "layers.2": "disk", "norm": device}
    for name, options in (("mixed", {}), ("with buffers", {"offload_buffers": True})):
        spread = load_checkpoint_and_dispatch(skeleton(), folder, places, **options)
        for _ in range(2):
            if not torch.equal(spread(inputs.to(device)).cpu(), expected):
                wrong.append(f"{name}: other outputs")
    module.synchronize(device)
    return wrong


def saved(folder):
    state = {name: value for name, value in trained().state_dict().items() if name != "again.weight"}
    safetensors.save_file(state, folder / "model.safetensors")
    return str(folder)


def test_values_on_the_stand_in(standin, tmp_path):  # noqa: F811
    assert standin.run(1, values_on, "standin:1", saved(tmp_path)) == [[]]


@pytest.mark.gpu
def test_values_on_a_gpu(tmp_path):
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    assert values_on(torch.device(accelerator.type, 0), saved(tmp_path)) == []


def test_a_device_that_is_full_changes_nothing(standin, tmp_path):  # noqa: F811
    folder = saved(tmp_path)

    def load():
        torch.standin.set_limit(2 * 2**20)
        model = skeleton()
        before = dict(model.named_parameters())
        try:
            load_checkpoint_in_model(model, folder, {"": "standin:0"})
        except torch.OutOfMemoryError:
            pass
        finally:
            torch.standin.set_limit(2**34)
        same = all(model.get_parameter(name) is tensor for name, tensor in before.items())
        return same, torch.standin.memory_allocated(0)

    assert standin.run(1, load) == [(True, 0)]


# -- reading -------------------------------------------------------------------------------------


def written(path, count):
    torch.manual_seed(0)
    data = torch.randint(0, 256, (count,), dtype=torch.uint8)
    path.write_bytes(data.numpy().tobytes())
    return data


@pytest.mark.parametrize("piece", [48, 1 << 10, 1 << 24])
def test_every_byte_once_whatever_the_pieces(tmp_path, monkeypatch, piece):
    from accel_bigmodel.weights import filling

    monkeypatch.setattr(filling, "PIECE", piece)
    monkeypatch.setattr(filling, "_SMALL", 64)
    data = written(tmp_path / "a", 50_000)
    wanted, expected = [], []
    place = 8
    for number, length in enumerate([0, 16, 4096, 3, 40_000, 32, 5_000]):
        shape = (length // 16, 2, 2) if length % 16 == 0 else (length,)
        dtype = torch.float32 if length % 16 == 0 else torch.uint8
        part = data[place : place + length].clone().view(dtype).view(shape)
        # Some are converted on their way.
        target = torch.float64 if number % 3 == 2 else dtype
        tensor = torch.full(shape, 7, dtype=target)
        wanted.append((tensor, Location(tmp_path / "a", place, place + length, dtype, shape)))
        expected.append(part.to(target))
        place += length
    fill(reversed(wanted))
    for (tensor, _), value in zip(wanted, expected, strict=True):
        # Random bytes make numbers that are none.
        assert torch.equal(tensor.nan_to_num(3), value.nan_to_num(3))


def test_a_file_that_is_too_short_is_known_before_anything_is_written(tmp_path):
    written(tmp_path / "a", 100)
    here, there = torch.zeros(50, dtype=torch.uint8), torch.zeros(60, dtype=torch.uint8)
    places = [
        (here, Location(tmp_path / "a", 0, 50, torch.uint8, (50,))),
        (there, Location(tmp_path / "a", 50, 110, torch.uint8, (60,))),
    ]
    with pytest.raises(CheckpointError, match="ends 10 bytes before"):
        fill(places)
    assert not here.any()
    with pytest.raises(CheckpointError, match="No such file"):
        fill([(here, Location(tmp_path / "b", 0, 50, torch.uint8, (50,)))])


def test_an_error_in_one_thread_ends_all(tmp_path, monkeypatch):
    from accel_bigmodel.weights import filling

    monkeypatch.setattr(filling, "_SMALL", 64)
    monkeypatch.setattr(filling, "PIECE", 64)
    monkeypatch.setattr(filling, "_long_enough", lambda places: deque_of(places))
    written(tmp_path / "a", 6400)
    tensor = torch.zeros(12_800, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="The file ends"):
        fill([(tensor, Location(tmp_path / "a", 0, 12_800, torch.uint8, (12_800,)))])


def deque_of(places):
    assert list(places)


def test_pages_are_of_the_size_that_was_faster():
    for faster in (True, False):
        pages = Pages()
        tried = []
        for _ in range(8):
            large = pages.choose()
            tried.append(large)
            pages.note(large, 16 << 20, 1.0 if large is faster else 2.0)
        # Two pieces of each, then the better one; until that becomes slow.
        assert sorted(tried[:4]) == [False, False, True, True]
        assert tried[4:] == [faster] * 4
        pages.note(faster, 16 << 20, 100.0)
        assert pages.choose() is not faster


def test_large_pages_are_asked_for_inside_of_the_memory_only(monkeypatch):
    asked = []
    monkeypatch.setattr(pages_module, "_advise", lambda: lambda *place: asked.append(place))
    mebi = 1 << 20
    pages_module.ask_for_large(mebi, 6 * mebi)
    pages_module.ask_for_large(2 * mebi, 4 * mebi)
    pages_module.ask_for_large(mebi, 2 * mebi)
    assert asked == [(2 * mebi, 4 * mebi), (2 * mebi, 4 * mebi)]
