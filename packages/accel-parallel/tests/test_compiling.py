"""Compilation in place: which blocks, how often, under which names; models out of containers again."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from accel_core.config import TorchDynamoPlugin
from accel_core.errors import CapabilityError, NotInstalledError
from accel_parallel import (
    check_backend,
    compile_model,
    compile_regions,
    extract_model,
    has_compiled_regions,
    is_compiled_module,
)
from accel_parallel.compiling import repeated_blocks

# Torch's own, from inside of its tracing.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")

CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def forward(self, x):
        return x + self.inner(x)


class Net(nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


class Branches(nn.Module):
    """Blocks under names, in two lists, one list inside a block, one block twice, and one alone."""

    def __init__(self):
        super().__init__()
        shared = Block()
        self.named = nn.ModuleDict({"a": Net(2), "b": Net(3)})
        self.listed = nn.ModuleList([shared, shared, nn.Linear(4, 4), nn.Linear(4, 4)])
        self.alone = nn.Sequential(Block(), nn.Linear(4, 4))


class Counting:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def clean():
    yield
    torch.compiler.reset()


def outputs_and_gradients(model, x):
    model.zero_grad()
    out = model(x)
    out.square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters())]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


MODELS = {
    "blocks": (Net, 1, 1),
    "a container of torch": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), 1, 1),
    "one layer": (lambda: nn.Linear(4, 4), 1, 1),
    # The first layer's input needs no gradient, those of the others do: two graphs for all layers.
    "layers of torch": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), 10, enable_nested_tensor=False
        ),
        1,
        2,
    ),
}


@pytest.mark.parametrize("regional", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_it_computes_the_same_under_the_same_names_and_compiles_once(name, regional):
    make, whole, regions = MODELS[name]
    model = make()
    plain = copy.deepcopy(model)
    x = torch.randn(2, 3, 4)
    expected = outputs_and_gradients(plain, x)
    backend = Counting()
    settings = TorchDynamoPlugin(backend=backend, fullgraph=True, use_regional_compilation=regional)
    assert compile_model(model, settings) is model
    for _ in range(4):
        assert same(outputs_and_gradients(model, x), expected)
    assert backend.graphs == (regions if regional else whole)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]


def test_the_outermost_repeated_blocks_are_the_regions():
    model = Branches()
    found = repeated_blocks(model)
    names = {module: name for name, module in model.named_modules()}
    # The list holds the shared block twice, but it is one: it does not repeat.
    assert [names[block] for block in found] == ["named.a", "named.b"]
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))) == []
    assert len(repeated_blocks(Net(5))) == 5
    assert repeated_blocks(Net(1)) == []


def test_what_is_around_the_blocks_is_not_compiled():
    model, backend = Net(), Counting()
    assert compile_regions(model, backend=backend) is model
    assert has_compiled_regions(model)
    assert not is_compiled_module(model)
    assert [is_compiled_module(block) for block in model.blocks] == [True] * 3
    assert not is_compiled_module(model.first)
    # A second time changes nothing.
    compiled = model.blocks[0]._compiled_call_impl
    compile_regions(model, backend=backend)
    assert model.blocks[0]._compiled_call_impl is compiled
    compile_model(model, TorchDynamoPlugin(backend=backend))
    assert not is_compiled_module(model)


def test_hooks_of_the_model_run_each_time_and_compile_nothing_anew():
    model, backend, seen = Net(), Counting(), []
    model.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    model.blocks[1].register_forward_pre_hook(lambda _m, args: seen.append(len(seen)))
    compile_regions(model, backend=backend)
    for _ in range(5):
        model(torch.randn(2, 4))
    assert len(seen) == 10
    assert backend.graphs == 1


def test_many_models_of_one_class_are_all_compiled():
    """Torch keeps eight graphs for a class and runs the ninth model uncompiled, unless they are isolated."""

    class Sized(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = nn.Linear(width, 2)

        def forward(self, x):
            return self.layer(x)

    backend = Counting()
    for width in range(1, 12):
        compile_model(Sized(width), TorchDynamoPlugin(backend=backend))(torch.ones(1, width))
        compile_model(nn.Linear(width, 3), TorchDynamoPlugin(backend=backend))(torch.ones(1, width))
    assert backend.graphs == 22


@pytest.mark.parametrize("settings", [None, TorchDynamoPlugin(backend="eager", disable=True)])
def test_nothing_is_compiled_unless_asked(settings):
    model = Net()
    assert compile_model(model, settings) is model
    assert not is_compiled_module(model)
    assert not has_compiled_regions(model)


def test_a_compiled_model_can_be_copied_and_pickled():
    model = compile_model(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), TorchDynamoPlugin(backend="eager"))
    x = torch.randn(2, 4)
    expected = model(x)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(stored, weights_only=False),
    ):
        assert not is_compiled_module(other)
        assert torch.equal(other(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_is_refused():
    scripted = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(CapabilityError, match="scripted by torch.jit and cannot be compiled"):
        compile_model(scripted, TorchDynamoPlugin(backend="eager"))


def test_backends_that_are_not_here_are_told_apart():
    check_backend(TorchDynamoPlugin(backend="inductor"), CPU)
    check_backend(TorchDynamoPlugin(backend=Counting()), CPU)
    with pytest.raises(NotInstalledError, match="'tvm' is not installed.*\n.*pip install apache-tvm"):
        check_backend(TorchDynamoPlugin(backend="tvm"), CPU)
    with pytest.raises(CapabilityError, match=r"has no torch.compile backend 'nvprims_n[\s\S]*inductor"):
        check_backend(TorchDynamoPlugin(backend="NVPRIMS_NVFUSER"), CPU)
    with pytest.raises(CapabilityError, match="'cudagraphs' does nothing on cpu: it is for cuda"):
        check_backend(TorchDynamoPlugin(backend="cudagraphs"), CPU)


# -- out again ----------------------------------------------------------------------------------------------


def in_ddp(model):
    return DistributedDataParallel(model)


def test_models_come_out_of_containers_and_compilation(pool):
    def run():
        model = Net()
        outside = torch.compile(in_ddp(model), backend="eager")
        inside = in_ddp(torch.compile(model, backend="eager"))
        x = torch.randn(2, 4)
        kept = extract_model(outside)
        found = {
            "container": extract_model(in_ddp(model)) is model,
            "off, outside": extract_model(outside, keep_torch_compile=False) is model,
            "off, inside": extract_model(inside, keep_torch_compile=False) is model,
            "kept, inside": extract_model(inside) is inside.module,
            # Compiled around the container: the same compilation around the model, the container untouched.
            "kept, outside": is_compiled_module(kept) and kept._orig_mod is model,
            "still shared": type(outside._orig_mod) is DistributedDataParallel,
            "computes": torch.equal(kept(x), model(x)),
            "plain": extract_model(model) is model,
        }
        regional = in_ddp(compile_regions(Net(), backend="eager"))
        found["regions kept"] = has_compiled_regions(extract_model(regional))
        off = extract_model(regional, keep_torch_compile=False)
        found["regions off"] = off is regional.module and not has_compiled_regions(off)
        return found

    for found in pool.run_in_group(2, run):
        assert all(found.values()), found


def test_parts_come_out_of_their_containers_when_asked(pool):
    def run():
        part = Net()
        model = nn.Sequential(in_ddp(part), nn.ModuleList([torch.compile(in_ddp(Block()), backend="eager")]))
        wrapped = in_ddp(model)
        names = list(extract_model(wrapped).state_dict())
        assert extract_model(wrapped, recursive=True) is model
        kept = list(model.state_dict())
        assert torch.equal(model[1][0](torch.ones(1, 4)), model[1][0]._orig_mod(torch.ones(1, 4)))
        extract_model(wrapped, recursive=True, keep_torch_compile=False)
        return names, kept, model[0] is part, list(model.state_dict())

    def keys(first, second):
        block = [f"{second}.{name}" for name in Block().state_dict()]
        return [*(f"{first}.{name}" for name in Net().state_dict()), *block]

    for names, kept, taken, off in pool.run_in_group(2, run):
        assert names == keys("0.module", "1.0._orig_mod.module")
        assert kept == keys("0", "1.0._orig_mod")
        assert taken
        assert off == keys("0", "1.0")
