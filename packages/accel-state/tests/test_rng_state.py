"""The states of generators as tensors: exact, on the same and on another number of ranks."""

import random
import sys

import pytest
import torch

from accel_core.errors import CheckpointError
from accel_state import process, rng_state

np = pytest.importorskip("numpy")


@pytest.fixture(autouse=True)
def fresh():
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()
    yield
    random.setstate(states[0])
    torch.set_rng_state(states[1])
    np.random.set_state(states[2])
    process.reset()


def draw():
    # An odd number of normal draws, so that each library keeps one for the next call.
    return (
        random.gauss(0, 1),
        random.random(),
        float(np.random.randn()),
        np.random.randint(0, 1 << 30, 5).tolist(),
        torch.randn(7).tolist(),
        torch.randint(0, 1 << 30, (3,)).tolist(),
    )


def seeded(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    draw()
    return rng_state.capture()


def drawn(states, rank, world):
    told = rng_state.restore(states, rank, world)
    return told, draw()


@pytest.mark.parametrize("steps", range(4))
def test_a_state_continues_exactly_where_it_was(steps):
    seeded(steps)
    for _ in range(steps):
        draw()
    state = rng_state.capture()
    expected = [draw(), draw()]
    seeded(99)
    told = rng_state.restore([state], 0, 1)
    assert [draw(), draw()] == expected
    assert (told.restored, told.derived, told.missing) == (("numpy", "python", "torch"), (), ())
    assert {tensor.dtype for tensor in state.values()} == {torch.uint8}


def test_capturing_draws_nothing_and_a_state_is_not_changed_by_use():
    state = seeded(3)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    first = draw()
    assert drawn([state], 0, 1)[1] == first
    assert drawn([state], 0, 1)[1] == first
    assert all(state[name].equal(kept[name]) for name in kept)


def test_any_bit_generator_of_numpy():
    kinds = np.random.PCG64, np.random.Philox, np.random.SFC64
    before = np.random.get_bit_generator()
    try:
        for kind in kinds:
            np.random.set_bit_generator(kind(5))
            np.random.randn(3)
            state = rng_state.capture()
            expected = np.random.randn(4).tolist()
            rng_state.restore([state], 0, 1)
            assert np.random.randn(4).tolist() == expected
    finally:
        np.random.set_bit_generator(before)


class TestAnotherNumberOfRanks:
    def test_equal_states_stay_equal(self):
        states = [seeded(4), seeded(4)]
        expected = draw()
        for world in (1, 4):
            for rank in range(world):
                told, got = drawn(states, rank, world)
                assert got == expected
                assert told.derived == ()

    def test_ranks_that_were_there_continue_and_further_ones_are_new(self):
        states = [seeded(1), seeded(2)]
        before = [drawn(states, rank, 2)[1] for rank in range(2)]
        after = [drawn(states, rank, 4) for rank in range(4)]
        assert [got for _, got in after[:2]] == before
        assert [told.derived for told, _ in after] == [(), (), *[("numpy", "python", "torch")] * 2]
        assert after[2][1] == drawn(states, 2, 4)[1], "the same each time"
        for part in range(len(before[0])):
            assert len({repr(got[part]) for _, got in after}) == 4
        assert drawn(states, 0, 1)[1] == before[0]

    def test_each_kind_is_looked_at_by_itself(self):
        states = [seeded(1), seeded(1)]
        torch.manual_seed(9)
        states[1] = states[1] | {"torch": rng_state.capture()["torch"]}
        told, _ = drawn(states, 2, 3)
        assert (told.restored, told.derived) == (("numpy", "python"), ("torch",))

    def test_the_derivation_never_changes(self):
        # A checkpoint is resumed years later: these numbers are part of the format.
        states = [{"torch": torch.full((8,), rank, dtype=torch.uint8)} for rank in range(2)]
        rng_state.restore(states, 2, 3)
        assert torch.randint(0, 1000, (4,)).tolist() == [769, 398, 953, 427]


def test_what_was_not_saved_or_is_not_here_is_told():
    state = seeded(1)
    del state["python"]
    told = rng_state.restore([state | {"cuda": torch.zeros(16, dtype=torch.uint8)}], 0, 1)
    assert told.missing == ("cuda", "python")
    assert told.restored == ("numpy", "torch")


@pytest.mark.parametrize("name", ["python", "numpy", "torch"])
@pytest.mark.parametrize("damage", ["empty", "zeros", "letters"])
def test_damaged_states_are_named(name, damage):
    broken = {
        "empty": torch.empty(0, dtype=torch.uint8),
        "zeros": torch.zeros(40, dtype=torch.uint8),
        "letters": torch.tensor(list(b'{"bit_generator": 3}'), dtype=torch.uint8),
    }[damage]
    with pytest.raises(CheckpointError, match=f"generator '{name}' cannot be restored"):
        rng_state.restore([{name: broken}], 0, 1)


@pytest.mark.parametrize(("states", "rank", "world"), [([], 0, 1), ([{}], 1, 1), ([{}], -1, 2)])
def test_impossible_worlds(states, rank, world):
    with pytest.raises(CheckpointError, match="cannot be restored on rank"):
        rng_state.restore(states, rank, world)


def test_numpy_is_not_imported_for_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "numpy")
    assert sorted(rng_state.capture()) == ["python", "torch"]
    assert "numpy" not in sys.modules
