"""Hooks around forwards: what they see, what is left when they go, and copies that have their own."""

import copy
import functools
import inspect
import pickle
import threading

import pytest
import torch
from torch import nn

from accel_bigmodel import (
    AlignDevicesHook,
    CpuOffload,
    ModelHook,
    SequentialHook,
    UserCpuOffloadHook,
    add_hook_to_module,
    align_module_device,
    attach_align_device_hook,
    attach_align_device_hook_on_blocks,
    attach_execution_device_hook,
    cpu_offload,
    cpu_offload_with_hook,
    has_offloaded_params,
    remove_hook_from_module,
    remove_hook_from_submodules,
)
from accel_core.errors import CheckpointError


class Noted(ModelHook):
    """Write down what happens."""

    def __init__(self, name, notes, fails=""):
        self.name, self.notes, self.fails = name, notes, fails

    def note(self, what):
        self.notes.append(f"{what} {self.name}")
        if what == self.fails:
            raise ArithmeticError(what)

    def init_hook(self, module):
        self.note("init")
        return module

    def pre_forward(self, module, *args, **kwargs):
        self.note("pre")
        return args, {**kwargs, "log": [*kwargs.get("log", []), self.name]}

    def post_forward(self, module, output):
        self.note("post")
        return [*output, self.name]

    def abandon(self, module):
        self.notes.append(f"abandon {self.name}")

    def detach_hook(self, module):
        self.note("detach")
        return module


class Echo(nn.Module):
    def forward(self, x, /, *, log=(), fails=False):
        """Return what came in."""
        if fails:
            raise ArithmeticError("forward")
        return [x, *log]


def test_one_hook():
    notes = []
    module = Echo()
    hook = Noted("a", notes)
    assert add_hook_to_module(module, hook) is module
    assert module._hf_hook is hook
    assert module(1) == [1, "a", "a"]
    assert remove_hook_from_module(module) is module
    assert notes == ["init a", "pre a", "post a", "detach a"]
    assert module(1) == [1]
    assert {"forward", "_old_forward", "_hf_hook"}.isdisjoint(vars(module))


def test_appended_hooks_run_in_a_row():
    notes = []
    module = add_hook_to_module(Echo(), Noted("a", notes))
    for name in "bc":
        add_hook_to_module(module, Noted(name, notes), append=True)
    del notes[:]
    assert module(1) == [1, "a", "b", "c", "a", "b", "c"]
    assert notes == ["pre a", "pre b", "pre c", "post a", "post b", "post c"]
    assert isinstance(module._hf_hook, SequentialHook)
    assert [hook.name for hook in module._hf_hook.hooks] == ["a", "b", "c"]
    del notes[:]
    remove_hook_from_module(module)
    assert notes == ["detach a", "detach b", "detach c"]


def test_another_hook_takes_the_place_of_the_first():
    notes = []
    module = add_hook_to_module(Echo(), Noted("a", notes))
    add_hook_to_module(module, Noted("b", notes))
    assert module(1) == [1, "b", "b"]
    assert notes == ["init a", "detach a", "init b", "pre b", "post b"]
    remove_hook_from_module(module)
    assert module(1) == [1]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("forward", ["pre a", "pre b", "pre c", "abandon c", "abandon b", "abandon a"]),
        ("pre", ["pre a", "pre b", "abandon a"]),
        ("post", ["pre a", "pre b", "pre c", "post a", "post b", "abandon c"]),
    ],
)
def test_what_began_ends_when_something_fails(where, expected):
    notes = []
    module = Echo()
    for name in "abc":
        add_hook_to_module(module, Noted(name, notes, where if name == "b" else ""), append=True)
    del notes[:]
    with pytest.raises(ArithmeticError, match=where):
        module(1, fails=where == "forward")
    assert notes == expected


def test_the_forward_looks_as_it_did():
    module = Echo()
    plain = inspect.signature(module.forward)
    add_hook_to_module(module, ModelHook())
    assert inspect.signature(module.forward) == plain
    assert inspect.unwrap(module.forward).__doc__ == "Return what came in."
    assert module.forward.__func__ is Echo.forward
    assert module.forward.__self__ is module
    assert module.forward.__name__ == "forward"
    assert module.forward.__code__ is Echo.forward.__code__
    assert not hasattr(module.forward, "nothing")


def test_a_forward_that_was_put_in_the_module_comes_back():
    module = Echo()
    own = module.forward = functools.partial(Echo.forward, module, log=["own"])
    add_hook_to_module(module, ModelHook())
    assert module(1) == [1, "own"]
    remove_hook_from_module(module)
    assert module.forward is own


def test_no_grad():
    class Plain(ModelHook):
        no_grad = True

    module = nn.Linear(2, 2)
    assert module(torch.ones(1, 2)).requires_grad
    add_hook_to_module(module, Plain())
    assert not module(torch.ones(1, 2)).requires_grad
    add_hook_to_module(module, ModelHook(), append=True)
    assert module._hf_hook.no_grad
    assert not module(torch.ones(1, 2)).requires_grad


def test_hooks_go_from_everything_inside():
    notes = []
    model = nn.Sequential(Echo(), nn.Sequential(Echo()))
    for module in model.modules():
        add_hook_to_module(module, Noted("a", notes))
    remove_hook_from_module(model)
    assert hasattr(model[1][0], "_hf_hook")
    remove_hook_from_submodules(model)
    assert not any(hasattr(module, "_hf_hook") for module in model.modules())
    assert notes.count("detach a") == 4


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.randn(3))
        self.register_buffer("shift", torch.randn(3))

    def forward(self, x, fails=False):
        x = self.linear(x) * self.scale + self.shift
        if fails:
            raise ArithmeticError("forward")
        return x


def kinds(model):
    return {name: tensor.device.type for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["deepcopy", "pickle"])
@pytest.mark.parametrize("offload", [True, False])
def test_a_copy_has_hooks_and_weights_of_its_own(kind, offload):
    model = Inner()
    x = torch.randn(2, 3)
    expected = model(x)
    if offload:
        cpu_offload(model, offload_buffers=True)
    else:
        attach_execution_device_hook(model, "cpu")
    model(x)
    other = copy.deepcopy(model) if kind == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert other.forward.module is other
    assert other._hf_hook is not model._hf_hook
    remove_hook_from_submodules(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(other(x), expected)
    assert set(kinds(other).values()) == {"meta" if offload else "cpu"}
    remove_hook_from_submodules(other)
    assert torch.equal(other(x), expected)
    assert set(kinds(other).values()) == {"cpu"}


def test_offloaded_weights_are_there_during_the_forward_only():
    module = Inner()
    x = torch.randn(2, 3)
    expected = module(x)
    weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    seen = []
    module.linear.register_forward_hook(lambda inner, args, output: seen.append(module.scale.device.type))
    hook = AlignDevicesHook("cpu", offload=True, weights_map=weights, offload_buffers=True)
    add_hook_to_module(module, hook)
    assert kinds(module) == {"scale": "meta", "shift": "meta", "linear.weight": "cpu", "linear.bias": "cpu"}
    assert hook.original_devices == dict.fromkeys(["scale", "shift"], torch.device("cpu"))
    assert isinstance(module.scale, nn.Parameter)
    assert module.scale.requires_grad
    assert torch.equal(module(x), expected)
    assert seen == ["cpu"]
    assert module.scale.device.type == "meta"
    weights["scale"].zero_()
    assert torch.equal(module(x), weights["shift"].expand(2, 3))
    assert has_offloaded_params(module)
    assert not has_offloaded_params(module.linear)
    remove_hook_from_module(module)
    assert set(kinds(module).values()) == {"cpu"}
    assert not module.scale.any()


def test_a_forward_that_raises_leaves_the_module_as_it_was():
    model = cpu_offload(Inner())
    x = torch.randn(2, 3)
    expected = model(x)
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            model(x, fails=True)
        assert model.scale.device.type == model.linear.weight.device.type == "meta"
    assert torch.equal(model(x), expected)
    with pytest.raises(RuntimeError, match="shapes"):
        model(torch.ones(2, 7))
    assert model.linear.weight.device.type == "meta"
    assert torch.equal(model(x), expected)


def test_gradients_reach_inputs_through_offloaded_weights():
    plain = Inner()
    model = cpu_offload(copy.deepcopy(plain))
    x = torch.randn(2, 3, requires_grad=True)
    plain(x).sum().backward()
    expected, x.grad = x.grad, None
    model(x).sum().backward()
    assert torch.equal(x.grad, expected)


def test_threads_use_one_model_at_once():
    model = Inner()
    inputs = [torch.randn(2, 3) for _ in range(8)]
    expected = [model(x) for x in inputs]
    cpu_offload(model)
    start = threading.Barrier(8)
    wrong = []

    def work(number):
        start.wait()
        for _ in range(50):
            if not torch.equal(model(inputs[number]), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert kinds(model) == {"scale": "meta", "shift": "cpu", "linear.weight": "meta", "linear.bias": "meta"}


def test_threads_begin_with_a_copy_at_once():
    model = cpu_offload(Inner())
    x = torch.randn(2, 3)
    expected = model(x)
    for _ in range(20):
        other = copy.deepcopy(model)
        start, seen = threading.Barrier(4), []

        def work(other=other, start=start, seen=seen):
            start.wait()
            seen.append(torch.equal(other(x), expected))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [True] * 4


def test_others_may_run_the_two_halves_by_hand():
    """As peft and transformers do; and they exchange the weights between the halves."""
    model = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    hook = AlignDevicesHook("cpu", offload=True)
    add_hook_to_module(model, hook)
    hook.pre_forward(model)
    hook.weights_map = {name: torch.zeros_like(each) for name, each in model.named_parameters()}
    hook.post_forward(model, torch.tensor([]))
    assert model.weight.device.type == "meta"
    assert torch.equal(model(x), torch.zeros(2, 3))
    hook.execution_device = 0 if torch.accelerator.is_available() else torch.device("cpu")
    assert torch.equal(model(x), torch.zeros(2, 3))


def test_a_hook_like_another_is_made_of_its_attributes():
    """As peft, transformers and diffusers do."""
    old = AlignDevicesHook("cpu", offload=True, weights_map={"weight": torch.ones(2, 2)}, skip_keys=["cache"])
    arguments = inspect.signature(AlignDevicesHook.__init__).parameters
    new = AlignDevicesHook(**{name: value for name, value in vars(old).items() if name in arguments})
    assert len(arguments) == 9
    for name in list(arguments)[1:]:
        assert getattr(new, name) is getattr(old, name)
    assert repr(new) == (
        "AlignDevicesHook(execution_device='cpu', offload=True, io_same_device=False, offload_buffers=False, "
        "place_submodules=False, skip_keys=['cache'])"
    )


def test_a_subclass_of_others_may_add_to_it():
    class Own(AlignDevicesHook):
        def pre_forward(self, module, *args, **kwargs):
            args, kwargs = super().pre_forward(module, *args, **kwargs)
            self.seen = module.weight.device.type
            return args, kwargs

    module = nn.Linear(2, 2)
    hook = Own("cpu", offload=True)
    add_hook_to_module(module, hook)
    module(torch.ones(1, 2))
    assert (hook.seen, module.weight.device.type) == ("cpu", "meta")


def test_weights_that_nobody_has():
    with torch.device("meta"):
        module = nn.Linear(2, 2)
    hook = AlignDevicesHook("cpu", offload=True, weights_map={"weight": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match="'bias' of Linear has no data"):
        add_hook_to_module(module, hook)
    assert not hasattr(module, "_hf_hook")
    with pytest.raises(CheckpointError, match="'weight' has no data"):
        add_hook_to_module(module, AlignDevicesHook("cpu"))


def test_weights_of_another_module():
    """As when an embedding was made larger, and the hook of the first is put on the new one."""
    old = add_hook_to_module(nn.Embedding(3, 2), AlignDevicesHook("cpu", offload=True))
    new = nn.Embedding(4, 2)
    with pytest.raises(
        CheckpointError, match=r"shape \(4, 2\), and the offloaded weights have 'weight' of shape"
    ):
        add_hook_to_module(new, old._hf_hook)
    assert new.weight.device.type == "cpu"
    assert not hasattr(new, "_hf_hook")


def test_a_hook_without_a_device_moves_nothing():
    module = add_hook_to_module(nn.Linear(2, 2), AlignDevicesHook(io_same_device=True))
    assert module(torch.ones(1, 2)).shape == (1, 2)
    add_hook_to_module(module, AlignDevicesHook(offload=True))
    assert module.weight.device.type == "meta"
    assert module(torch.ones(1, 2)).shape == (1, 2)


def test_recurrent_modules_keep_a_list_of_weights():
    module = nn.LSTM(3, 3)
    x = torch.randn(4, 1, 3)
    expected = module(x)[0]
    cpu_offload(module)
    assert {each.device.type for each in module._flat_weights} == {"meta"}
    assert torch.equal(module(x)[0], expected)
    assert {each.device.type for each in module._flat_weights} == {"meta"}
    remove_hook_from_submodules(module)
    assert torch.equal(module(x)[0], expected)


def test_hooks_on_everything_inside():
    model = nn.Sequential(Inner(), nn.ReLU(), nn.Linear(3, 3))
    attach_execution_device_hook(model, "cpu", skip_keys="cache")
    hooked = {name for name, module in model.named_modules() if hasattr(module, "_hf_hook")}
    assert hooked == {"0", "0.linear", "2"}
    assert all(not model.get_submodule(name)._hf_hook.offload for name in hooked)
    x = torch.randn(2, 3)
    expected = model(x)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attach_align_device_hook(
        model[0], "cpu", offload=True, weights_map=weights, module_name="0", preload_module_classes=["Inner"]
    )
    assert model[0]._hf_hook.hooks[1].place_submodules
    assert kinds(model[0])["linear.weight"] == "meta"
    assert torch.equal(model(x), expected)
    remove_hook_from_submodules(model)
    assert torch.equal(model(x), expected)


def test_hooks_on_blocks():
    model = nn.Sequential(Inner(), nn.Linear(3, 3), nn.Linear(3, 3))
    x = torch.randn(2, 3)
    expected = model(x)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attach_align_device_hook_on_blocks(
        model,
        execution_device={"0": "cpu", "1": "cpu", "2": "cpu"},
        offload={"0": True, "1": False, "2": True},
        weights_map=weights,
    )
    away = {name for name, kind in kinds(model).items() if kind == "meta"}
    assert away == {"0.linear.weight", "0.linear.bias", "0.scale", "2.weight", "2.bias"}
    assert model._hf_hook.io_same_device
    assert torch.equal(model(x), expected)


def test_aligned_for_a_while():
    module = cpu_offload(Inner())
    with align_module_device(module):
        assert module.scale.device.type == "cpu"
        assert module.linear.weight.device.type == "meta"
        value = module.scale.detach().clone()
    assert module.scale.device.type == "meta"
    remove_hook_from_submodules(module)
    assert torch.equal(module.scale, value)
    before = module.scale
    with align_module_device(module, "meta"):
        assert module.scale.device.type == module.shift.device.type == "meta"
        assert module.linear.weight.device.type == "cpu"
    # Nothing can have been written to tensors without data.
    assert module.scale is before
    assert torch.equal(module.scale, value)
    with align_module_device(module):
        assert module.scale is before


def test_a_model_that_waits_on_the_cpu():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = second(first(torch.ones(1, 2)))
    first, one = cpu_offload_with_hook(first, "cpu")
    second, two = cpu_offload_with_hook(second, "cpu", prev_module_hook=one)
    assert isinstance(one, UserCpuOffloadHook)
    assert isinstance(first._hf_hook, CpuOffload)
    assert second._hf_hook.prev_module_hook is one
    assert torch.equal(second(first(torch.ones(1, 2))), expected)
    two.offload()
    one.remove()
    assert not hasattr(first, "_hf_hook")
