"""Lanes on the stand-in device: blocks are there in time, in little memory, and nothing is read too early."""

import gc
import random
import threading
import time

import pytest
import torch
from torch import nn

from accel_bigmodel import Lane, OffloadedBlock, TiedTensors
from accel_core.testing.standin.fixture import standin  # noqa: F401 - a fixture
from accel_core.testing.standin.races import races

pytestmark = [pytest.mark.timeout(600)]
WIDTH = 64


class Chain:
    """Some layers, each of them a block whose weights are on the CPU, and the same layers as they were."""

    def __init__(self, count=6, *, limit=1 << 16, source=None, device="standin:0", tie=False, layer=None):
        torch.manual_seed(0)
        self.device = torch.device(device)
        make = layer or (lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)))
        self.plain = nn.ModuleList([make() for _ in range(count)]).eval()
        if tie:
            self.plain[-1][0].weight = self.plain[0][0].weight
        torch.manual_seed(0)
        self.layers = nn.ModuleList([make() for _ in range(count)]).eval()
        self.layers.load_state_dict(self.plain.state_dict())
        state = {name: value.detach().clone() for name, value in self.plain.state_dict().items()}
        groups = []
        if tie:
            groups = [["0.0.weight", f"{count - 1}.0.weight"]]
            del state[groups[0][1]]
        self.source = source(state) if source else state
        self.lane = Lane(self.device, limit)
        self.tied = TiedTensors(groups)
        self.blocks = []
        for number, layer in enumerate(self.layers):
            names = list(layer.state_dict())
            block = OffloadedBlock(
                layer, names, self.source, f"{number}.", self.device, tied=self.tied, lane=self.lane
            )
            block.park()
            self.blocks.append(block)
        # The same layers on the other device, where nobody moves them: the same operators, to the last bit.
        self.plain.to("standin:1")
        self.size = sum(value.nbytes for value in self.layers[0].state_dict().values())

    def __call__(self, x, order=None):
        x = x.to(self.device)
        for number in order or range(len(self.layers)):
            self.blocks[number].enter()
            try:
                x = self.layers[number](x)
            finally:
                self.blocks[number].leave()
        return x.cpu()

    def expected(self, x, order=None):
        x = x.to("standin:1")
        for number in order or range(len(self.plain)):
            x = self.plain[number](x)
        return x.cpu()


def traced(function):
    """Run ``function`` and return its result with the races that it left in the log."""
    torch.standin.trace(True)
    try:
        result = function()
        torch.accelerator.synchronize()
    finally:
        torch.standin.trace(False)
        log = torch.standin.traced()
    assert any(entry[0] == "wait" for entry in log)
    return result, races(log)


@pytest.mark.parametrize("device", ["standin:0", "standin:1"])
def test_outputs_are_equal_blocks_are_ahead_and_nothing_races(standin, device):  # noqa: F811
    def run():
        chain, x = Chain(device=device), torch.randn(4, WIDTH)
        torch.standin.set_delay(0.002)

        def loops():
            return [torch.equal(chain(x), chain.expected(x)) for _ in range(4)]

        with torch.no_grad():
            equal, found = traced(loops)
        return equal, found, chain.lane.ahead, chain.lane.late

    equal, found, ahead, late = standin.run(1, run)[0]
    assert equal == [True] * 4
    assert found == []
    # The first of all, and the first of the second pass: nobody knew that there would be one.
    assert (ahead, late) == (22, 2)


def test_who_did_not_wait_would_be_seen(standin):  # noqa: F811
    """The two tests above can fail: without the waits, values are wrong and the log says why."""

    def run():
        from accel_bigmodel.offload.transfer import Transfer

        x = torch.randn(4, WIDTH)
        torch.standin.set_delay(0.01)
        results = []
        whole = {name: getattr(Transfer, name) for name in ("_join", "give_up")}
        for name, right in whole.items():
            setattr(Transfer, name, lambda self: None)
            chain = Chain()

            def both(chain=chain):
                # The second order makes a wrong guess, which is given up.
                return [torch.equal(chain(x, o), chain.expected(x, o)) for o in ([0, 1, 2, 3], [0, 2, 4, 5])]

            with torch.no_grad():
                equal, found = traced(both)
            results.append((all(equal), bool(found)))
            setattr(Transfer, name, right)
            torch.accelerator.synchronize()
        return results

    assert standin.run(1, run) == [[(False, True), (True, True)]]


def test_a_device_with_room_for_two_blocks(standin):  # noqa: F811
    def run():
        chain, x = Chain(8), torch.randn(1, WIDTH)
        torch.standin.set_delay(0.001)
        small = 8 * x.nbytes
        outcomes = []
        for blocks in (2, 1):
            torch.standin.set_limit(blocks * (chain.size + 1024) + small)
            torch.standin.reset_peak_memory_stats()
            before = (chain.lane.ahead, chain.lane.late)
            with torch.no_grad():
                equal = [torch.equal(chain(x), chain.expected(x)) for _ in range(5)]
            chain.lane.drop()
            peak = torch.standin.max_memory_allocated()
            left = torch.standin.memory_allocated()
            ahead, late = chain.lane.ahead - before[0], chain.lane.late - before[1]
            outcomes.append((all(equal), peak <= blocks * (chain.size + 1024) + small, left, ahead, late))
        return outcomes

    two, one = standin.run(1, run)[0]
    assert two[:3] == (True, True, 0)
    assert two[3] >= 36
    # With room for one only, it is moved when it is needed, and nothing fails.
    assert one[:3] == (True, True, 0)
    assert one[3] == 0


def test_a_device_without_room_says_so_and_recovers(standin):  # noqa: F811
    def run():
        chain, x = Chain(3), torch.randn(1, WIDTH)
        torch.standin.set_limit(chain.size // 2)
        with torch.no_grad():
            for _ in range(2):
                with pytest.raises(torch.OutOfMemoryError):
                    chain(x)
            parked = [each.device.type for each in chain.layers.parameters()]
            torch.standin.set_limit(1 << 26)
            return set(parked), torch.equal(chain(x), chain.expected(x))

    assert standin.run(1, run) == [({"meta"}, True)]


def test_memory_does_not_grow_in_a_loop(standin):  # noqa: F811
    def run():
        chain, x = Chain(), torch.randn(2, WIDTH)
        levels = []
        with torch.inference_mode():
            for _ in range(12):
                torch.standin.reset_peak_memory_stats()
                chain(x)
                levels.append((torch.standin.memory_allocated(), torch.standin.max_memory_allocated()))
        return levels, torch.standin.max_pinned_memory(), chain.size

    levels, pinned, size = standin.run(1, run)[0]
    assert len(set(levels[2:])) == 1
    # One block waits for the next pass; at the most one more is used.
    assert levels[-1][0] < 1.1 * size
    assert levels[-1][1] < 2.2 * size
    assert pinned <= 1 << 16


def test_small_blocks_between_large_ones_hold_nobody_up(standin):  # noqa: F811
    def run():
        sizes, ahead = iter([1, 8] * 8), []
        chain = Chain(8, layer=lambda: nn.Linear(WIDTH, WIDTH) if next(sizes) == 8 else nn.LayerNorm(WIDTH))
        x = torch.randn(2, WIDTH)
        large = chain.layers[1].weight.numel() * 4 + 256 + WIDTH * 4
        small = 1024
        for layer in chain.layers:
            layer.register_forward_pre_hook(lambda *_: ahead.append(len(chain.lane._pending)))
        torch.standin.reset_peak_memory_stats()
        with torch.no_grad():
            equal = [torch.equal(chain(x), chain.expected(x)) for _ in range(4)]
        peak = torch.standin.max_memory_allocated()
        return equal, ahead[24:], peak <= 2 * large + 2 * small + 8 * x.nbytes, chain.lane.late

    equal, ahead, fits, late = standin.run(1, run)[0]
    assert equal == [True] * 4
    # While a large one computes, the next large one is on its way too, behind the small one between them.
    assert ahead == [2, 3] * 4
    assert fits
    assert late == 2


def test_branches_repetitions_and_orders_that_change(standin):  # noqa: F811
    def run():
        draw = random.Random(3)
        chain, x = Chain(8), torch.randn(2, WIDTH)
        torch.standin.set_delay(0.0005)
        orders = [
            *[[0, 1, 0, 2, 0, 3]] * 4,
            *[[7, 6, 5, 4, 3, 2, 1, 0]] * 3,
            *[sorted(draw.sample(range(8), 3)) for _ in range(6)],
            *[[5, 5, 5, 5, 6]] * 3,
            *[[draw.randrange(8) for _ in range(5)] for _ in range(6)],
        ]

        def all_of_them():
            return [torch.equal(chain(x, order), chain.expected(x, order)) for order in orders]

        with torch.no_grad():
            equal, found = traced(all_of_them)
        before = chain.lane.late
        for _ in range(6):
            chain(x, [0, 1, 0, 2, 0, 3])
        return all(equal), found, chain.lane.late - before

    equal, found, late = standin.run(1, run)[0]
    assert equal
    assert found == []
    # 36 blocks; it knows the order again after the first of the six passes.
    assert late <= 6


def test_a_forward_that_fails_on_the_way(standin):  # noqa: F811
    def run():
        chain, x = Chain(), torch.randn(2, WIDTH)
        torch.standin.set_delay(0.002)

        def broken():
            with torch.no_grad():
                chain(x)
                for place in (0, 3, 5):
                    hook = chain.layers[place].register_forward_pre_hook(lambda *_: 1 / 0)
                    with pytest.raises(ZeroDivisionError):
                        chain(x)
                    hook.remove()
                    assert all(each.device.type == "meta" for each in chain.layers.parameters())
                    assert torch.equal(chain(x), chain.expected(x))

        return traced(broken)[1], torch.standin.memory_allocated() < 2 * chain.size

    assert standin.run(1, run) == [([], True)]


def test_a_source_that_fails(standin):  # noqa: F811
    class Failing(dict):
        broken = False

        def __getitem__(self, key):
            if self.broken and key.startswith("2."):
                raise OSError("the disk is gone")
            return super().__getitem__(key)

    def run():
        chain, x = Chain(source=Failing), torch.randn(2, WIDTH)
        with torch.no_grad():
            chain(x)
            chain.source.broken = True
            with pytest.raises(OSError, match="the disk is gone"):
                chain(x)
            parked = {each.device.type for each in chain.layers.parameters()}
            chain.source.broken = False
            return parked, torch.equal(chain(x), chain.expected(x))

    assert standin.run(1, run) == [({"meta"}, True)]


def test_a_source_that_comes_to_hold_other_tensors(standin):  # noqa: F811
    def run():
        chain, x = Chain(2), torch.randn(2, WIDTH)
        with torch.no_grad():
            chain(x)
            chain(x)
            chain.source["0.0.weight"] = chain.source["0.0.weight"].t()
            chain.plain[0][0].weight = nn.Parameter(chain.plain[0][0].weight.t())
            chain.source["1.0.weight"] = torch.ones(WIDTH, WIDTH)
            chain.plain[1][0].weight.data.fill_(1)
            equal = [torch.equal(chain(x), chain.expected(x)) for _ in range(4)]
            # The first block is on the device already, for the pass that comes next.
            assert chain.lane._pending is not None
            chain.source["0.0.bias"].fill_(2)
            chain.plain[0][0].bias.data.fill_(2)
            return equal, [torch.equal(chain(x), chain.expected(x)) for _ in range(2)]

    assert standin.run(1, run) == [([True] * 4, [True] * 2)]


def test_threads_with_streams_of_their_own(standin):  # noqa: F811
    def run():
        chain, wrong = Chain(tie=True), []
        torch.standin.set_delay(0.0002)
        torch.standin.set_limit(1 << 26)

        def work(seed, *, own):
            if own:
                torch.accelerator.set_stream(torch.Stream(device=chain.device))
            x = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed))
            with torch.no_grad():
                for _ in range(15):
                    if not torch.equal(chain(x), chain.expected(x)):
                        wrong.append(seed)

        def together():
            threads = [threading.Thread(target=work, args=(n,), kwargs={"own": n > 0}) for n in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        found = traced(together)[1]
        parked = {each.device.type for each in chain.layers.parameters()}
        return wrong, found, parked

    assert standin.run(1, run) == [([], [], {"meta"})]


def test_threads_orders_by_chance_and_little_memory(standin):  # noqa: F811
    """Whatever happens, a forward is right or says that there is no room, and the next one is right."""

    def work(chain, seed, wrong):
        draw = random.Random(seed)
        if draw.random() < 0.6:
            torch.accelerator.set_stream(torch.Stream(device=chain.device))
        with torch.inference_mode():
            for _ in range(10):
                order = [draw.randrange(8) for _ in range(draw.randrange(1, 9))]
                x = torch.full((2, WIDTH), draw.random())
                try:
                    found = chain(x, order)
                except torch.OutOfMemoryError:
                    wrong.append("no room")
                    continue
                if not torch.equal(found, chain.expected(x, order)):
                    wrong.append((seed, order))

    def run():
        outcomes = []
        for seed in range(8):
            torch.standin.reset()
            draw = random.Random(seed)
            chain, wrong = Chain(8, limit=draw.choice([8192, 1 << 16]), tie=seed % 2 == 0), []
            torch.standin.set_delay(draw.choice([0, 0.0001]))
            before = torch.standin.memory_allocated()
            torch.standin.set_limit(before + int(chain.size * draw.choice([1.1, 2.2, 9])) + 3000)

            def together(chain=chain, wrong=wrong, seed=seed):
                threads = [
                    threading.Thread(target=work, args=(chain, 10 * seed + number, wrong))
                    for number in range(1 + seed % 4)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()

            found = traced(together)[1]
            parked = {each.device.type for each in chain.layers.parameters()}
            torch.standin.set_limit(1 << 26)
            x = torch.ones(1, WIDTH)
            after = torch.equal(chain(x), chain.expected(x))
            outcomes.append((found, parked, after, [each for each in wrong if each != "no room"]))
        return outcomes

    assert standin.run(1, run) == [[([], {"meta"}, True, [])] * 8]


def test_tied_tensors_that_several_blocks_use_at_once(standin):  # noqa: F811
    def run():
        chain, x = Chain(4, tie=True), torch.randn(2, WIDTH)
        with torch.no_grad():
            equal = [torch.equal(chain(x), chain.expected(x)) for _ in range(3)]
            first, last = chain.blocks[0], chain.blocks[-1]
            first.enter()
            last.enter()
            one = chain.layers[0][0].weight is chain.layers[-1][0].weight
            first.leave()
            still = torch.equal(chain.layers[-1][0].weight.cpu(), chain.source["0.0.weight"])
            last.leave()
        return equal, one, still

    assert standin.run(1, run) == [([True] * 3, True, True)]


def test_memory_that_is_pinned_goes_directly(standin):  # noqa: F811
    def run():
        x = torch.randn(2, WIDTH)
        outcomes = []
        for kind in ("pinned", "plain", "refused"):
            torch.standin.reset()
            torch.standin.set_delay(0.001)

            def source(state, kind=kind):
                return {k: v.pin_memory() for k, v in state.items()} if kind == "pinned" else state

            chain = Chain(source=source)
            held = torch.standin.pinned_memory()
            torch.standin.set_pinning(kind != "refused")

            def twice(chain=chain):
                return torch.equal(chain(x), chain.expected(x)) and torch.equal(chain(x), chain.expected(x))

            with torch.no_grad():
                equal, found = traced(twice)
            outcomes.append((equal, found, torch.standin.max_pinned_memory() - held))
            del chain
        return outcomes

    pinned, plain, refused = standin.run(1, run)[0]
    assert pinned == refused == (True, [], 0)
    assert plain == (True, [], 1 << 16)


def test_staging_is_smaller_than_the_blocks(standin):  # noqa: F811
    """Buffers are used again while copies from them are queued: too early would be seen in the values."""

    def run():
        outcomes = []
        for limit in (4, 64, 4096, 5000):
            torch.standin.reset()
            torch.standin.set_delay(0.0001)
            held = torch.standin.pinned_memory()
            chain = Chain(2, limit=limit, layer=lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)))
            x = torch.randn(2, 8)
            with torch.no_grad():
                equal = torch.equal(chain(x), chain.expected(x)) and torch.equal(chain(x), chain.expected(x))
            outcomes.append((equal, torch.standin.max_pinned_memory() <= held + limit))
        return outcomes

    assert standin.run(1, run) == [[(True, True)] * 4]


def test_all_kinds_of_tensors(standin):  # noqa: F811
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 5).t())
            self.register_buffer("flags", torch.tensor([True, False, True]))
            self.register_buffer("scalar", torch.tensor(3, dtype=torch.int64))
            self.register_buffer("brain", torch.randn(7).bfloat16())
            self.register_buffer("nothing", torch.empty(0, 4))
            self.register_buffer("spread", torch.randn(4, 1).expand(4, 3))
            self.register_buffer("stepped", torch.randn(10)[::2])
            self.register_buffer(
                "wide", torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
            )
            self.register_buffer("imaginary", torch.randn(3, dtype=torch.complex64).conj())

    def run():
        torch.manual_seed(0)
        module = Mixed()
        device = torch.device("standin:1")
        source = dict([*module.named_parameters(), *module.named_buffers()])
        lane = Lane(device)
        block = OffloadedBlock(module, list(source), source, "", device, lane=lane)
        block.park()
        for _ in range(3):
            block.enter()
            for name, value in source.items():
                there = getattr(module, name)
                assert there.device == device
                assert torch.equal(there.cpu(), value.detach()), name
                assert (there.dtype, there.shape) == (value.dtype, value.shape)
                if name not in {"spread", "stepped"}:
                    assert there.stride() == value.stride()
            assert isinstance(module.weight, nn.Parameter)
            block.leave()
        return lane.late

    assert standin.run(1, run) == [3]


def test_what_a_forward_changes_stays(standin):  # noqa: F811
    def run():
        chain = Chain(3, layer=lambda: nn.BatchNorm1d(WIDTH))
        chain.layers.train()
        chain.plain.train()
        with torch.no_grad():
            for step in range(3):
                x = torch.randn(8, WIDTH) + step
                torch.testing.assert_close(chain(x), chain.expected(x), rtol=0, atol=0)
        for block in chain.blocks:
            block.restore(torch.device("cpu"))
        ours, plain = chain.layers.state_dict(), chain.plain.state_dict()
        return all(torch.equal(ours[name], plain[name].cpu()) for name in plain), chain.lane.ahead

    equal, ahead = standin.run(1, run)[0]
    assert equal
    assert ahead >= 6


def test_restored_blocks_are_on_the_device(standin):  # noqa: F811
    def run():
        chain, x = Chain(2, tie=True), torch.randn(2, WIDTH)
        for block in chain.blocks:
            block.restore(chain.device)
        assert chain.layers[0][0].weight is chain.layers[1][0].weight
        with torch.no_grad():
            there = x.to(chain.device)
            for layer in chain.layers:
                there = layer(there)
            return torch.equal(there.cpu(), chain.expected(x))

    assert standin.run(1, run) == [True]


def test_dispatched_models_use_lanes(standin):  # noqa: F811
    def run():
        from accel_bigmodel import dispatch_model

        torch.manual_seed(0)

        def build():
            model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(5)), nn.LayerNorm(WIDTH))
            # A module that is called twice.
            return model.insert(2, model[-1]).eval()

        plain = build()
        state = {name: value.detach().clone() for name, value in plain.state_dict().items()}
        with torch.device("meta"):
            model = build()
        plain.to("standin:1")
        dispatch_model(model, {"": "cpu"}, main_device="standin:0", state_dict=state)
        x = torch.randn(2, WIDTH)
        expected = plain(x.to("standin:1")).cpu()
        torch.standin.set_delay(0.001)

        def loops():
            return [torch.equal(model(x), expected) for _ in range(4)]

        with torch.inference_mode():
            equal, found = traced(loops)
        lane = model[0]._hf_hook.lane
        return equal, found, lane.late

    equal, found, late = standin.run(1, run)[0]
    assert equal == [True] * 4
    assert found == []
    # Of 28: the first ones, the norm that comes a second time, and the begin of the second pass.
    assert late <= 4


def test_the_thread_ends_when_nothing_is_left_to_move(standin):  # noqa: F811
    def run():
        chain, x = Chain(2), torch.randn(2, WIDTH)
        with torch.no_grad():
            chain(x)
        name = f"weights to {chain.device}"
        running = [thread for thread in threading.enumerate() if thread.name == name]
        del chain
        gc.collect()
        end = time.monotonic() + 10
        while any(thread.is_alive() for thread in running) and time.monotonic() < end:
            time.sleep(0.01)
        return len(running), [thread.is_alive() for thread in running], torch.standin.memory_allocated()

    assert standin.run(1, run) == [(1, [False], 0)]
