"""The gradient scaler: as torch's for one optimizer, and right for several."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from accel_core.errors import StateError
from accel_core.protocols import Scaler
from accel_precision import GradScaler, get_grad_scaler

pytestmark = pytest.mark.cpu


class Trainer:
    """One weight and one optimizer; ``run`` is one update whose gradient is 1, or infinite."""

    def __init__(self, scaler):
        self.scaler = scaler
        self.weight = nn.Parameter(torch.zeros(1))
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0)

    def run(self, overflow=False, unscale=False):
        self.scaler.scale(self.weight.sum()).backward()
        if overflow:
            self.weight.grad.fill_(torch.inf)
        if unscale:
            self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=12))
def test_with_one_optimizer_it_is_torchs_scaler(steps):
    arguments = {"init_scale": 16.0, "growth_interval": 2}
    ours, torchs = Trainer(GradScaler("cpu", **arguments)), Trainer(torch.amp.GradScaler("cpu", **arguments))
    for overflow, unscale, read in steps:
        for each in (ours, torchs):
            each.run(overflow, unscale)
        if read:
            assert ours.scaler.get_scale() == torchs.scaler.get_scale()
        assert torch.equal(ours.weight, torchs.weight)
    assert ours.scaler.state_dict() == torchs.scaler.state_dict()


def joint(scaler, *, clip, steps=3):
    """Train two weights with an optimizer each from one loss; each optimizer steps and updates by itself."""
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizers = [torch.optim.SGD([weight], lr=1.0) for weight in weights]
    for _ in range(steps):
        scaler.scale(weights[0].sum() + 2 * weights[1].sum()).backward()
        if clip:
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
        for optimizer in optimizers:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return [weight.item() for weight in weights]


@pytest.mark.parametrize("clip", [False, True])
def test_two_optimizers_of_one_backward_use_its_scale(clip):
    # The scale grows after every step, so a scale of the wrong moment would show.
    assert joint(GradScaler("cpu", init_scale=8.0, growth_interval=1), clip=clip) == [-3.0, -6.0]
    assert joint(torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1), clip=clip) != [-3.0, -6.0]


def test_an_overflow_of_one_of_two_lowers_the_scale_once():
    scaler = GradScaler("cpu", init_scale=8.0)
    first, second = Trainer(scaler), Trainer(scaler)
    scaler.scale(first.weight.sum() + second.weight.sum()).backward()
    first.weight.grad.fill_(torch.inf)
    for each in (first, second):
        scaler.step(each.optimizer)
        scaler.update()
    assert (first.weight.item(), second.weight.item()) == (0.0, -1.0)
    assert scaler.get_scale() == 4.0


@pytest.mark.parametrize("call", ["step", "unscale_"])
def test_stepping_after_the_scale_was_read_is_an_error_and_not_a_wrong_step(call):
    scaler = GradScaler("cpu", init_scale=8.0)
    first, second = Trainer(scaler), Trainer(scaler)
    scaler.scale(first.weight.sum() + second.weight.sum()).backward()
    scaler.step(first.optimizer)
    scaler.update()
    scaler.get_scale()
    with pytest.raises(StateError, match="already updated"):
        getattr(scaler, call)(second.optimizer)
    first.optimizer.zero_grad()
    first.run()  # a new backward clears it
    assert first.weight.item() == -2.0


def test_unscaling_twice_is_torchs_error():
    trainer = Trainer(GradScaler("cpu"))
    trainer.scaler.scale(trainer.weight.sum()).backward()
    trainer.scaler.unscale_(trainer.optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        trainer.scaler.unscale_(trainer.optimizer)


class Wrapper(torch.optim.Optimizer):
    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_a_wrapped_optimizer_is_the_one_inside():
    trainer = Trainer(GradScaler("cpu", init_scale=8.0))
    trainer.scaler.scale(trainer.weight.sum()).backward()
    trainer.scaler.unscale_(Wrapper(Wrapper(trainer.optimizer)))
    trainer.scaler.step(trainer.optimizer)
    assert trainer.weight.item() == -1.0


def test_a_given_scale_counts_at_once():
    trainer = Trainer(GradScaler("cpu", init_scale=8.0))
    trainer.run()
    trainer.scaler.update(32.0)
    assert trainer.scaler.get_scale() == 32.0
    trainer.run()
    assert trainer.weight.item() == -2.0


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))], ids=["deepcopy", "pickle"]
)
def test_state_and_copies_count_the_last_step(copied):
    trainer = Trainer(GradScaler("cpu", init_scale=8.0, growth_interval=1))
    trainer.run()
    twin = copied(trainer.scaler)
    assert twin.get_scale() == trainer.scaler.get_scale() == 16.0
    fresh = GradScaler("cpu")
    fresh.load_state_dict(trainer.scaler.state_dict())
    assert fresh.state_dict() == trainer.scaler.state_dict()


def test_lists_of_losses_are_scaled():
    scaler = GradScaler("cpu", init_scale=4.0)
    assert [each.item() for each in scaler.scale([torch.ones(()), torch.ones(())])] == [4.0, 4.0]


def test_disabled_it_is_not_there():
    scaler = GradScaler("cpu", enabled=False)
    trainer = Trainer(scaler)
    trainer.run()
    assert trainer.weight.item() == -1.0
    assert scaler.state_dict() == {}
    assert scaler.get_scale() == 1.0


def test_the_documented_function():
    scaler = get_grad_scaler(init_scale=4.0, device=torch.device("cpu"))
    assert isinstance(scaler, GradScaler)
    assert isinstance(scaler, Scaler)
    assert scaler.get_scale() == 4.0
    assert isinstance(get_grad_scaler("MULTI_GPU", growth_interval=3), GradScaler)
    sharded = get_grad_scaler("FSDP", device=torch.device("cpu"))
    assert type(sharded).__name__ == "ShardedGradScaler"
