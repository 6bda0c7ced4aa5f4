"""What holds for every device map, counted from the model and the map alone."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from accel_bigmodel.planning import infer_auto_device_map, resolve_device_map
from accel_bigmodel.planning.resolve import main_of

KEEPERS = ("cpu", "disk")


class Block(nn.Sequential):
    """What must not be split."""


class Bare(nn.Sequential):
    """Modules with a parameter and a buffer beside them."""

    def __init__(self, *inner):
        super().__init__(*inner)
        self.bare = nn.Parameter(torch.zeros(3, device="meta"))
        self.register_buffer("table", torch.zeros(2, device="meta"))


def leaf(kind):
    with torch.device("meta"):
        return {
            "square": lambda: nn.Linear(4, 4),
            "wide": lambda: nn.Linear(4, 9, bias=False),
            "table": lambda: nn.Embedding(9, 4),
            "norm": lambda: nn.BatchNorm1d(5),
            "nothing": nn.ReLU,
        }[kind]()


def build(tree):
    if isinstance(tree, str):
        return leaf(tree)
    kind, inner = tree
    return kind(*map(build, inner))


LEAVES = st.sampled_from(["square", "wide", "table", "norm", "nothing"])
TREES = st.recursive(
    LEAVES,
    lambda inner: st.tuples(
        st.sampled_from([nn.Sequential, Block, Bare]), st.lists(inner, min_size=1, max_size=4)
    ),
    max_leaves=14,
)
MODELS = st.tuples(st.just(nn.Sequential), st.lists(TREES, min_size=1, max_size=5))
SIZES = st.integers(0, 900)
LIMITS = st.builds(
    lambda runners, cpu: {**dict(enumerate(runners)), **({} if cpu is None else {"cpu": cpu})},
    st.lists(SIZES, max_size=3),
    st.none() | SIZES,
)


def model_of(tree, ties):
    model = build(tree)
    holders = [
        module for module in model.modules() if isinstance(getattr(module, "weight", None), nn.Parameter)
    ]
    for one, other in ties:
        if holders and holders[one % len(holders)].weight.shape == holders[other % len(holders)].weight.shape:
            holders[other % len(holders)].weight = holders[one % len(holders)].weight
    return model


def place(found, name):
    """Return the device of what is called ``name``, and the name in the map that says so."""
    covering = [key for key in found if key == "" or name == key or name.startswith(f"{key}.")]
    assert len(covering) == 1, f"{name} is placed by {covering}"
    return found[covering[0]]


def wholes(model):
    """Return the modules that are never taken apart, by name."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if any(name.startswith(f"{other}.") or other == "" for other in found):
            continue
        if isinstance(module, Block) or not list(module.children()):
            found[name] = module
    return found


def sizes(tensors):
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())


def usage(model, found, *, offload_buffers=False):
    """Return the bytes on every device, with the most that visits the main one."""
    main = main_of(found)
    held: dict = {}
    visits = [0]
    for name, tensor in model.named_parameters(remove_duplicate=False):
        held.setdefault(place(found, name), {})[id(tensor)] = tensor.nbytes
    for name, tensor in model.named_buffers(remove_duplicate=False):
        device = place(found, name)
        runs = device if device not in KEEPERS or device == main or offload_buffers else main
        held.setdefault(runs, {})[id(tensor)] = tensor.nbytes
    away = set(KEEPERS) - {main}
    for name, module in wholes(model).items():
        if place(found, name) in away:
            moved = list(module.parameters()) + (list(module.buffers()) if offload_buffers else [])
            visits.append(sizes(moved))
    for name, tensor in model.named_parameters():
        if place(found, name) in away:
            visits.append(tensor.nbytes)
    total = {device: sum(inner.values()) for device, inner in held.items()}
    total[main] = total.get(main, 0) + max(visits)
    return total


@settings(max_examples=80, deadline=None)
@given(
    tree=MODELS,
    ties=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=3),
    limits=LIMITS,
    offload_buffers=st.booleans(),
    ahead=st.booleans(),
    clean=st.booleans(),
)
@example(
    # The first part fits the second device only, a later one the first: that one keeps room for the rest.
    tree=(nn.Sequential, ["table", "square", "table", "table"]),
    ties=[],
    limits={0: 80 + 144, 1: 144},
    offload_buffers=False,
    ahead=True,
    clean=True,
)
def test_no_device_is_given_more_than_it_has(tree, ties, limits, offload_buffers, ahead, clean):
    model = model_of(tree, ties)
    found = infer_auto_device_map(
        model,
        limits,
        ["Block"],
        offload_buffers=offload_buffers,
        fallback_allocation=ahead,
        clean_result=clean,
    )
    # Every tensor is placed exactly once: place() says so, and nothing is named that is not there.
    known = {name for name, _ in [*model.named_modules(remove_duplicate=False), *model.named_parameters()]}
    assert set(found) <= known | {name for name, _ in model.named_buffers()}
    for name in wholes(model):
        place(found, name)
    used = usage(model, found, offload_buffers=offload_buffers)
    if set(found.values()) != {"disk"}:
        for device, size in used.items():
            assert device == "disk" or size <= limits[device], (device, used, found)
    # Shared parameters lie on one device, under all their names.
    owners: dict = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        assert owners.setdefault(id(tensor), place(found, name)) == place(found, name)


@settings(max_examples=50, deadline=None)
@given(tree=MODELS, limits=LIMITS)
def test_devices_are_filled_in_the_order_of_the_model(tree, limits):
    model = model_of(tree, [])
    found = infer_auto_device_map(model, limits, ["Block"])
    order = [*limits, "disk"]
    # A module's own tensors come before what is in it.
    names = list(dict.fromkeys(found))
    ranks = [order.index(found[name]) for name in names]
    assert ranks == sorted(ranks)


@settings(max_examples=80, deadline=None)
@given(
    tree=MODELS,
    ties=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=2),
    limits=LIMITS,
    more=st.lists(st.integers(0, 300), min_size=4, max_size=4),
    strategy=st.sampled_from(["sequential", "auto", "balanced_low_0"]),
)
def test_more_memory_never_offloads_more(tree, ties, limits, more, strategy):
    model = model_of(tree, ties)
    larger = {device: size + extra for (device, size), extra in zip(limits.items(), more, strict=False)}

    def away(given):
        found = resolve_device_map(model, strategy, max_memory=given, no_split_module_classes=["Block"])
        lie = {name: place(found, name) for name, _ in model.named_parameters()}
        return [
            sizes(tensor for name, tensor in model.named_parameters() if lie[name] in keepers)
            for keepers in (KEEPERS, ("disk",))
        ]

    before, after = away(limits), away(larger)
    assert after[0] <= before[0]
    assert after[1] <= before[1]


@settings(max_examples=50, deadline=None)
@given(tree=MODELS, limits=st.lists(st.integers(100, 3000), min_size=2, max_size=4))
def test_balance_never_costs_room_and_lowers_the_fullest(tree, limits):
    model = model_of(tree, [])
    limits = dict(enumerate(limits))

    def fullest(strategy):
        found = resolve_device_map(model, strategy, max_memory=limits, no_split_module_classes=["Block"])
        return max(usage(model, found).values()), "disk" in found.values()

    (one, lacking), (other, short) = fullest("sequential"), fullest("balanced")
    assert lacking == short
    assert other <= one or lacking


@settings(max_examples=40, deadline=None)
@given(tree=MODELS, limits=st.lists(st.integers(0, 600), min_size=1, max_size=3))
@example(tree=(nn.Sequential, ["table", "nothing", "norm"]), limits=[100])
def test_looking_ahead_uses_a_device_that_fits_anything(tree, limits):
    model = model_of(tree, [])
    found = infer_auto_device_map(model, dict(enumerate(limits)), ["Block"], fallback_allocation=True)
    if set(found.values()) != {"disk"}:
        return
    # Nothing fits any device: not even the smallest part, beside the largest layer of the others.
    parts = [sizes([*module.parameters(), *module.buffers()]) for module in wholes(model).values()]
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    layers = [sizes(module.parameters()) for module in wholes(model).values()]
    smallest = min((part for part in parts if part), default=None)
    if smallest is not None:
        assert max(limits) < smallest + max(layers) + buffers


def test_every_tensor_is_measured_once(monkeypatch):
    """The time of a map grows with the model, not faster: no tensor is looked at again."""
    model = build((nn.Sequential, [(Block, ["square", "norm"])] * 40))
    counted = []
    original = torch.Tensor.numel

    def numel(tensor):
        counted.append(id(tensor))
        return original(tensor)

    with monkeypatch.context() as patch:
        patch.setattr(nn.Parameter, "numel", numel, raising=False)
        infer_auto_device_map(model, {0: 3000, 1: 3000, "cpu": 3000}, ["Block"], dtype="float16")
    assert sorted(counted) == sorted({id(parameter) for parameter in model.parameters()})


@pytest.mark.parametrize("classes", [["Block"], []])
def test_a_module_that_is_there_twice_lies_on_one_device(classes):
    shared = build((Block, ["square", "square"]))
    model = nn.Sequential(leaf("wide"), shared, leaf("table"), shared)
    found = infer_auto_device_map(model, {0: 144 + 160 + 160, "cpu": 10_000}, classes)
    assert place(found, "1.0") == place(found, "3.0")
    assert usage(model, found)[0] <= 464
