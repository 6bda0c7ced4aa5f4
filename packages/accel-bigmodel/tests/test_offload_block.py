"""Blocks: the values are there while they are used, and nothing is lost on the way."""

import threading
from collections import OrderedDict

import pytest
import torch
from torch import nn

from accel_bigmodel import Lane, OffloadedBlock, OffloadedWeightsLoader, PrefixedDataset, TiedTensors
from accel_bigmodel.offload.folder import offload_state_dict
from accel_bigmodel.offload.order import Order
from accel_bigmodel.weights import open_weights
from accel_core.errors import CheckpointError

CPU = torch.device("cpu")


class Fresh(dict):
    """Values that are made anew every time, as by a cast."""

    def __getitem__(self, key):
        return super().__getitem__(key).clone()


def block_of(module, source=None, *, wrap=dict, **options):
    """Return a parked block with all tensors of ``module``, and its source."""
    names = [*module.state_dict(), *(options.pop("more", ()))]
    if source is None:
        source = wrap({name: value.detach().clone() for name, value in module.state_dict().items()})
    block = OffloadedBlock(module, names, source, "", CPU, **options)
    block.park()
    return block, source


def test_placeholders_are_like_the_tensors():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double()
    module[0].weight.requires_grad_(False)
    module[0].bias.note = "kept"
    before = {
        name: (isinstance(each, nn.Parameter), each.dtype, each.shape, each.requires_grad)
        for name, each in [*module.named_parameters(), *module.named_buffers()]
    }
    block, _ = block_of(module)
    after = dict([*module.named_parameters(), *module.named_buffers()])
    assert all(each.device.type == "meta" for each in after.values())
    shown = {
        name: (isinstance(each, nn.Parameter), each.dtype, each.shape, each.requires_grad)
        for name, each in after.items()
    }
    assert shown == before
    assert module[0].bias.note == "kept"
    # What is set on a placeholder holds for the value.
    module[0].bias.requires_grad_(False)
    module[0].weight.other = 3
    for _ in range(2):
        block.enter()
        assert isinstance(module[0].weight, nn.Parameter)
        assert not module[0].bias.requires_grad
        assert (module[0].bias.note, module[0].weight.other) == ("kept", 3)
        block.leave()
        module[0].bias.requires_grad_(True)
        block.enter()
        assert module[0].bias.requires_grad
        block.leave()
        module[0].bias.requires_grad_(False)


@pytest.mark.parametrize("kind", ["memory", "loader", "prefixed", "mapped", "fresh", "folder"])
def test_outputs_are_equal_bit_by_bit(tmp_path, kind):
    from safetensors.torch import save_file

    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2, dtype=torch.float32)).eval()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    if kind in {"loader", "prefixed"}:
        state = OffloadedWeightsLoader(state_dict=state)
    if kind == "prefixed":
        state = PrefixedDataset(state, "")
    if kind == "mapped":
        save_file(state, tmp_path / "model.safetensors")
        state = open_weights(tmp_path)
    if kind == "folder":
        offload_state_dict(tmp_path, state)
        state = OffloadedWeightsLoader(save_folder=tmp_path)
    if kind == "fresh":
        state = Fresh(state)
    x = torch.randn(4, 8)
    expected = module(x)
    block, _ = block_of(module, state)
    for _ in range(3):
        block.enter()
        assert torch.equal(module(x), expected)
        if kind != "fresh":
            assert module[0].weight.data_ptr() == state["0.weight"].data_ptr()
        block.leave()
        assert module[0].weight.device.type == "meta"
    block.restore(CPU)
    assert torch.equal(module(x), expected)
    # Files may be written to by others; memory is not taken twice.
    in_memory = kind in {"memory", "loader", "prefixed"}
    assert (module[0].weight.data_ptr() == state["0.weight"].data_ptr()) == in_memory
    assert isinstance(module[0].weight, nn.Parameter)


def test_values_on_the_device_are_put_in_place_and_are_the_same_objects():
    module = nn.Linear(2, 2)
    block, _ = block_of(module)
    block.enter()
    first = module.weight
    block.leave()
    block.enter()
    assert module.weight is first
    block.leave()


def test_several_forwards_at_once_share_the_values():
    module = nn.Linear(2, 2)
    block, _ = block_of(module)
    block.enter()
    first = module.weight
    block.enter()
    assert module.weight is first
    block.leave()
    assert module.weight is first
    block.leave()
    assert module.weight.device.type == "meta"


def test_threads():
    module = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).eval()
    x = torch.randn(4, 16)
    expected = module(x)
    block, _ = block_of(module, wrap=Fresh)
    wrong = []

    def run():
        for _ in range(200):
            block.enter()
            try:
                if not torch.equal(module(x), expected):
                    wrong.append("output")
            except Exception as error:
                wrong.append(error)
            finally:
                block.leave()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert module[0].weight.device.type == "meta"


def test_tied_tensors_are_one_object_and_one_memory():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    for wrap in (dict, Fresh):
        module = Tied()
        # A checkpoint has one of the names only.
        source = wrap({"embed.weight": module.embed.weight.detach().clone()})
        tied = TiedTensors([["embed.weight", "head.weight"]])
        blocks = [
            OffloadedBlock(each, ["weight"], source, prefix, CPU, tied=tied)
            for prefix, each in (("embed.", module.embed), ("head.", module.head))
        ]
        for block in blocks:
            block.park()
        assert module.embed.weight is module.head.weight
        assert module.embed.weight.device.type == "meta"
        for block in blocks:
            block.enter()
        assert module.embed.weight is module.head.weight
        blocks[0].leave()
        assert module.head.weight.device.type == "cpu"
        blocks[1].leave()
        assert module.embed.weight is module.head.weight
        for block in blocks:
            block.restore(CPU)
        assert module.embed.weight is module.head.weight
        assert module.embed.weight.device.type == "cpu"


def test_what_a_forward_changes_stays():
    for wrap in (dict, Fresh):
        module = nn.BatchNorm1d(4)
        plain = nn.BatchNorm1d(4)
        block, _ = block_of(module, wrap=wrap)
        for step in range(3):
            x = torch.randn(6, 4) + step
            block.enter()
            ours = module(x)
            block.leave()
            assert torch.equal(ours, plain(x))
        block.enter()
        assert torch.equal(module.running_mean, plain.running_mean)
        assert module.num_batches_tracked == 3
        block.leave()
        block.restore(CPU)
        assert torch.equal(module.running_var, plain.running_var)


def test_what_a_forward_puts_in_place_stays():
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("cache", torch.zeros(1))
            self.register_buffer("once", torch.ones(1))

        def forward(self, x):
            self.cache = torch.cat([self.cache, x])
            self.once = None
            return self.cache

    module = Growing()
    block, _ = block_of(module)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            block.enter()
            module(torch.ones(1))
            block.leave()
    assert module.cache.tolist() == [0.0, 1.0, 1.0]
    assert module.once is None
    block.restore(CPU)
    assert module.cache.tolist() == [0.0, 1.0, 1.0]


def test_what_somebody_puts_in_place_of_a_placeholder_is_used():
    module = nn.Linear(2, 1, bias=False)
    block, _ = block_of(module)
    placeholder = module.weight
    block.enter()
    expected = module(torch.ones(1, 2))
    block.leave()
    own = nn.Parameter(torch.full((1, 2), 7.0))
    swapped = {"weight": own}

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            block.enter()
            try:
                return self.inner(x)
            finally:
                block.leave()

    called = torch.func.functional_call(Inside(), {"inner.weight": own}, (torch.ones(1, 2),))
    assert called.item() == 14.0
    # And it does not stay when it was put there for a while.
    assert module.weight is placeholder
    block.enter()
    assert torch.equal(module(torch.ones(1, 2)), expected)
    block.leave()
    module.weight = swapped["weight"]
    block.enter()
    assert module.weight is own
    block.leave()
    assert module.weight is own


def test_values_that_are_replaced_in_a_state_dict_are_seen():
    module = nn.Linear(1, 1, bias=False)
    own = {"weight": torch.ones(1, 1)}
    block, _ = block_of(module, PrefixedDataset(OffloadedWeightsLoader(state_dict=own), ""))
    block.enter()
    assert module.weight.item() == 1.0
    block.leave()
    own["weight"] = torch.full((1, 1), 2.0)
    block.enter()
    assert module.weight.item() == 2.0
    block.leave()


def test_a_value_that_is_missing_leaves_the_module_as_it_was():
    module = nn.Linear(2, 2)
    source = {"weight": torch.ones(2, 2)}
    block = OffloadedBlock(module, ["weight", "bias"], source, "", CPU)
    block.park()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no 'bias'"):
            block.enter()
        assert module.weight.device.type == "meta"
    source["bias"] = torch.ones(2)
    block.enter()
    assert module.bias.tolist() == [1.0, 1.0]
    block.leave()


def test_made_inside_inference_mode_used_outside():
    module = nn.Linear(2, 2)
    block, _ = block_of(module)
    with torch.inference_mode():
        block.enter()
        module(torch.ones(1, 2))
        block.leave()
    block.enter()
    inputs = torch.ones(1, 2, requires_grad=True)
    module(inputs).sum().backward()
    assert inputs.grad is not None
    block.leave()


def test_weights_that_were_made_inside_inference_mode():
    with torch.inference_mode():
        module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
        block, source = block_of(module)
        block.enter()
        expected = module(torch.ones(1, 2))
        block.leave()
    assert source["0.weight"].is_inference()
    block.enter()
    assert torch.equal(module(torch.ones(1, 2)), expected)
    assert module[0].weight.data_ptr() == source["0.weight"].data_ptr()
    block.leave()
    block.restore(CPU)
    module(torch.ones(1, 2)).sum().backward()


def test_subclasses_of_parameters_keep_their_class():
    class Own(nn.Parameter):
        pass

    module = nn.Linear(2, 2, bias=False)
    module.weight = Own(torch.ones(2, 2), requires_grad=False)
    block, _ = block_of(module)
    assert type(module.weight) is Own
    block.enter()
    assert type(module.weight) is Own
    block.leave()


def test_order_is_learnt_and_learnt_anew():
    def wrong(order, blocks):
        missed = 0
        for block in blocks:
            missed += order.guess() != block
            order.saw(block)
        return missed

    order = Order()
    assert order.guess() is None
    assert order.last == -1
    wrong(order, [0, 1, 2, 3])
    # What comes after the end is seen once.
    assert wrong(order, [0, 1, 2, 3] * 3) == 1
    assert wrong(order, [3, 2, 1, 0] * 4) <= 9
    assert wrong(order, [3, 2, 1, 0] * 2) == 0
    # A block that is used several times in a pass.
    twice = [0, 1, 0, 2, 0, 1, 1, 3]
    wrong(order, twice * 3)
    assert wrong(order, twice * 4) == 0
    shared = [7, *([8] * 12), 9]
    wrong(order, shared * 3)
    assert wrong(order, shared * 4) == 0


def test_order_forgets_what_never_repeats():
    order = Order()
    for number in range(40_000):
        order.saw((number * 7919) % 10_007)
    assert len(order._after) <= 3 + (1 << 14)


def test_pages_are_asked_for_while_the_system_has_to_read(monkeypatch):
    asked, waits = [], iter([0, 1, *([1] * 500)])
    monkeypatch.setattr("accel_bigmodel.offload.cold._waits", lambda: next(waits))

    class Source(OrderedDict):
        def will_need(self, names):
            asked.append(list(names))
            done.set()

    lane, source, blocks = Lane(CPU), Source(), []
    for number in range(3):
        source[f"{number}.weight"] = torch.ones(1, 1)
        module = nn.Linear(1, 1, bias=False)
        blocks.append(OffloadedBlock(module, ["weight"], source, f"{number}.", CPU, lane=lane))
        blocks[-1].park()

    def use(block):
        done.clear()
        block.enter()
        block.leave()
        # After what it may have had to do.
        lane._worker.submit(idle.set)
        assert idle.wait(10)
        idle.clear()
        return done.is_set()

    done, idle = threading.Event(), threading.Event()
    assert [use(block) for block in blocks] == [True, True, False]
    assert asked == [["1.weight"], ["2.weight"]]
    # The end is followed by the begin, once that was seen.
    use(blocks[0])
    asked.clear()
    for block in (blocks[1], blocks[2]):
        use(block)
    assert asked == [["2.weight"], ["0.weight"]]
    # Nothing had to be read for a while.
    for _ in range(30):
        for block in blocks:
            use(block)
    asked.clear()
    assert [use(block) for block in blocks] == [False] * 3
    assert asked == []
    lane._stop()
