"""Skeletons of real modules: no memory, same shapes, tied weights tied, other threads untouched."""

import copy
import gc
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.init import xavier_uniform_
from torch.nn.modules import module as torch_module

from accel_bigmodel import find_tied_parameters, init_empty_weights, init_on_device
from accel_bigmodel.skeleton import _copy_to


class Model(nn.Module):
    """Ties made in the three ways that models use."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        shared = nn.Parameter(torch.randn(3))
        self.left, self.right = nn.ParameterList([shared]), nn.ParameterList([shared])
        self.frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
        self.alias = self.block[0]
        self.register_parameter("none", None)
        self.register_buffer("positions", torch.arange(5))
        self.register_buffer("nothing", None)
        # Modules compute with real numbers while they are built.
        self.rate = float(torch.linspace(0, 1, 3)[1])


def with_peak(function):
    """Return what ``function`` returns, and how many bytes this process had more meanwhile."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the peak is read from /proc")
    status = Path("/proc/self/status")

    def kilobytes(field):
        return int(
            next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1]
        )

    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not reset the peak")
    before = kilobytes("VmRSS")
    result = function()
    return result, (kilobytes("VmHWM") - before) * 1024


def devices(tensors):
    return {tensor.device.type for tensor in tensors}


def shape_of(model):
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: (tensor.shape, tensor.dtype, tensor.requires_grad, type(tensor)) for name, tensor in named}


@pytest.mark.parametrize("include_buffers", [None, False, True])
def test_a_skeleton_is_the_model_without_data(include_buffers):
    real = Model()
    with init_empty_weights(include_buffers=include_buffers):
        skeleton = Model()
    assert devices(skeleton.parameters()) == {"meta"}
    assert devices(skeleton.buffers()) == {"meta" if include_buffers else "cpu"}
    assert shape_of(skeleton) == shape_of(real)
    assert find_tied_parameters(skeleton) == find_tied_parameters(real) != []
    assert skeleton.rate == 0.5


def test_a_checkpoint_makes_it_the_model_again():
    real = Model().eval()
    with init_empty_weights():
        skeleton = Model().eval()
    skeleton.load_state_dict(real.state_dict(), assign=True)
    inputs = torch.randn(3, 4)
    assert torch.equal(skeleton.head(skeleton.block(inputs)), real.head(real.block(inputs)))


def test_the_memory_of_what_was_moved_is_given_back_inside_the_context():
    with init_empty_weights():
        source = nn.Parameter(torch.zeros(3))
        gone = weakref.ref(source)
        holder = nn.Module()
        holder.weight = source
        del source
        gc.collect()
        assert gone() is None
        assert holder.weight.device.type == "meta"


def test_a_device_with_numbers_keeps_them():
    torch.manual_seed(3)
    real = nn.Linear(3, 2)
    torch.manual_seed(3)
    with init_on_device("cpu", include_buffers=True):
        built = nn.Linear(3, 2)
    assert torch.equal(real.weight, built.weight)


def test_contexts_nest_and_end():
    with init_empty_weights():
        with init_on_device("cpu"):
            inner = nn.Linear(2, 2)
        outer = nn.Linear(2, 2)
        with pytest.raises(RuntimeError, match="stop"), init_on_device("cpu"):
            raise RuntimeError("stop")
        after = nn.Linear(2, 2)
    assert [layer.weight.device.type for layer in (inner, outer, after)] == ["cpu", "meta", "meta"]
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_nothing_stays_behind():
    before = (
        len(torch_module._global_parameter_registration_hooks),
        len(torch_module._global_buffer_registration_hooks),
    )
    with init_empty_weights(), init_empty_weights():
        pass
    after = (
        len(torch_module._global_parameter_registration_hooks),
        len(torch_module._global_buffer_registration_hooks),
    )
    assert before == after


def test_other_threads_build_as_always():
    built = {}
    inside, done = threading.Event(), threading.Event()

    def elsewhere():
        inside.wait(30)
        built["other"] = nn.Linear(2, 2)
        with init_on_device("cpu"):
            built["own"] = nn.Linear(2, 2)
        done.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with init_empty_weights():
        inside.set()
        assert done.wait(30)
        here = nn.Linear(2, 2)
    thread.join(30)
    found = [layer.weight.device.type for layer in (built["other"], built["own"], here)]
    assert found == ["cpu", "cpu", "meta"]


def test_it_works_as_a_decorator():
    @init_empty_weights()
    def build():
        return nn.Linear(2, 2)

    assert [build().weight.device.type for _ in range(2)] == ["meta", "meta"]


def test_lazy_modules_take_shape_on_the_device():
    with init_empty_weights(include_buffers=True):
        lazy = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    lazy(torch.randn(2, 5, device="meta"))
    assert lazy[0].weight.shape == (3, 5)
    assert devices([*lazy.parameters(), *lazy.buffers()]) == {"meta"}


def test_subclasses_and_attributes_are_kept():
    class Marked(nn.Parameter):
        pass

    holder = nn.Module()
    source = Marked(torch.zeros(3))
    source.tag = "quantized"
    with init_empty_weights():
        holder.weight = source
    assert type(holder.weight) is Marked
    assert holder.weight.tag == "quantized"
    assert source.device.type == "cpu"


def test_a_moved_copy_owns_its_data():
    source = torch.ones(3)
    moved = _copy_to(source, torch.device("meta"))
    assert moved.device.type == "meta"
    assert torch.equal(source, torch.ones(3))


def test_a_skeleton_can_be_copied():
    with init_empty_weights():
        model = Model()
    assert find_tied_parameters(copy.deepcopy(model)) == find_tied_parameters(model)


# -- initialisers --------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch):
    """Tell which initialisers really ran on a meta tensor."""
    names = []
    for name in ("normal_", "uniform_", "fill_", "zero_"):
        original = getattr(torch.Tensor, name)

        def noting(self, *args, _name=name, _original=original, **options):
            names.append((_name, self.device.type))
            return _original(self, *args, **options)

        monkeypatch.setattr(torch.Tensor, name, noting)
    return names


class ByHand(nn.Module):
    """What models bring of their own: functions by name, methods on ``data``, values to compute with."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 4))
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("table", torch.empty(4))
        self.reset_parameters()

    def reset_parameters(self):
        xavier_uniform_(self.weight)
        self.weight.data.normal_(0, 0.02).uniform_(to=3).fill_(2).zero_()
        torch.nn.init.trunc_normal_(tensor=self.weight)
        torch.nn.init.ones_(self.table).mul_(3)
        with torch.no_grad():
            self.scale.zero_()


def test_no_initialiser_runs_on_what_has_no_memory(ran):
    with init_empty_weights():
        model = nn.Sequential(
            Model(),
            ByHand(),
            nn.LSTM(3, 4),
            nn.MultiheadAttention(4, 2),
            nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 8), 1),
        )
    assert [name for name, device in ran if device == "meta"] == []
    assert devices(model.parameters()) == {"meta"}
    # Buffers stay real, with their values.
    assert model[1].table.tolist() == [3, 3, 3, 3]
    # Outside of the context, torch is as it was: also for the same tensors.
    torch.nn.init.normal_(model[1].weight)
    assert ("normal_", "meta") in ran


def test_real_tensors_get_their_values_inside_of_the_context():
    with init_empty_weights():
        weight = nn.Parameter(torch.empty(4, 4))
        torch.nn.init.eye_(weight)
        value = torch.zeros(2).fill_(3)
        torch.manual_seed(0)
        numbers = torch.empty(3).normal_()
        layer = nn.Linear(4, 4)
        after = torch.randn(1)
    assert weight.data.equal(torch.eye(4))
    assert value.tolist() == [3, 3]
    assert layer.weight.is_meta
    # What is skipped draws no numbers.
    torch.manual_seed(0)
    assert numbers.equal(torch.empty(3).normal_())
    assert after.equal(torch.randn(1))


def test_other_threads_run_their_initialisers():
    shape, found = (64, 64), {}

    def elsewhere():
        found["real"] = nn.Linear(*shape).weight.std().item()
        found["meta"] = torch.empty(3, device="meta").normal_().shape

    with init_empty_weights():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(30)
    assert 0.06 < found["real"] < 0.09  # 1/8 / sqrt(3), of 4096 numbers
    assert found["meta"] == (3,)


def test_torch_is_left_as_it_was_found():
    def state():
        owners = (torch.Tensor, torch.nn.init, torch.nn.modules.activation, torch.nn.modules.transformer)
        return [dict(vars(owner)) for owner in owners]

    before = state()
    with init_empty_weights(), init_on_device("meta"):
        assert state() != before
    assert state() == before


def test_full_collections_wait_and_young_garbage_does_not():
    before = gc.get_threshold()
    with init_empty_weights(), init_on_device("meta"):
        assert gc.get_threshold()[:2] == before[:2]
        assert gc.get_threshold()[2] > 1e6
    assert gc.get_threshold() == before
    try:
        with init_empty_weights():
            # Whoever decides otherwise is right.
            gc.set_threshold(500, 5, 5)
        assert gc.get_threshold() == (500, 5, 5)
        gc.set_threshold(0)
        with init_empty_weights():
            assert gc.get_threshold()[0] == 0
        assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*before)


def test_what_somebody_else_replaced_meanwhile_stays(monkeypatch):
    def own(tensor):
        return tensor

    monkeypatch.setattr(torch.nn.init, "ones_", torch.nn.init.ones_)
    with init_empty_weights():
        torch.nn.init.ones_ = own
    assert torch.nn.init.ones_ is own


def test_a_hundred_billion_parameters_take_megabytes():
    def build():
        with init_empty_weights():
            return nn.Sequential(*[nn.Linear(10000, 10000) for _ in range(1000)])

    build()  # what a first time imports is not the model's
    model, peak = with_peak(build)
    assert sum(parameter.numel() for parameter in model.parameters()) > 100e9
    # 2,000 parameters and 1,000 modules as Python objects: some kilobytes each.
    assert peak < 64 * 2**20
