"""Seeds and generator states, in one process and made equal in several."""

import random

import pytest
import torch

from accel_core.enums import RNGType
from accel_core.errors import CapabilityError, ConfigError, UnknownNameError
from accel_state import process, set_seed, synchronize_rng_state, synchronize_rng_states


@pytest.fixture(autouse=True)
def fresh():
    states = random.getstate(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    torch.set_rng_state(states[1])
    torch.use_deterministic_algorithms(False)
    process.reset()


def _draw():
    np = pytest.importorskip("numpy")
    return random.random(), float(np.random.rand()), torch.rand(3).tolist()


def test_equal_seeds_draw_equal_numbers():
    assert set_seed(7) == 7
    first = _draw()
    set_seed(8)
    other = _draw()
    set_seed(7)
    assert _draw() == first
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_the_cpu_stream_is_that_of_manual_seed():
    set_seed(7)
    ours = torch.rand(3)
    torch.manual_seed(7)
    assert torch.rand(3).equal(ours)


def test_deterministic_is_asked_of_torch():
    set_seed(1, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "1", None, True])
def test_bad_seeds_are_named_and_change_nothing(seed):
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match="seed="):
        set_seed(seed)
    assert torch.get_rng_state().equal(before)


@pytest.mark.world(2)
def test_device_specific_adds_the_rank(pool, world):
    def run():
        used = set_seed(2**32 - 1, device_specific=True)
        return used, torch.rand(2).tolist()

    (first, drawn), (second, other) = pool.run(world, run)
    assert (first, second) == (2**32 - 1, 0)
    assert drawn != other


@pytest.mark.world(2, 4)
def test_states_of_rank_0_reach_everybody(pool, world):
    def run():
        rank = process.start().topology.rank
        generator = torch.Generator().manual_seed(rank)
        torch.manual_seed(rank)
        synchronize_rng_states(["torch", RNGType.GENERATOR], generator)
        together = torch.rand(2).tolist(), torch.rand(2, generator=generator).tolist()
        torch.manual_seed(rank)
        synchronize_rng_state()
        generator.manual_seed(rank)
        synchronize_rng_state("generator", generator)
        again = torch.rand(2).tolist(), torch.rand(2, generator=generator).tolist()
        return together, again

    found = pool.run(world, run)
    torch.manual_seed(0)
    expected = torch.rand(2).tolist()
    generator = torch.Generator().manual_seed(0)
    pair = expected, torch.rand(2, generator=generator).tolist()
    assert found == [(pair, pair)] * world


def test_unknown_and_absent_kinds_are_told_apart():
    with pytest.raises(UnknownNameError, match="Did you mean 'torch'"):
        synchronize_rng_state("troch")
    with pytest.raises(ConfigError, match="generator=None"):
        synchronize_rng_states(["generator"])
    with pytest.raises(ConfigError, match=r"pass \['torch'\]"):
        synchronize_rng_states("torch")
    if not torch.cuda.is_available():
        with pytest.raises(CapabilityError, match="'cuda' cannot be synchronised: .*CUDA"):
            synchronize_rng_states([RNGType.CUDA])
