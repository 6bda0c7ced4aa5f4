"""The state of a run where it is easily lost: between steps, in halves, and where only a part fits."""

from __future__ import annotations

from collections import OrderedDict
from enum import IntEnum

import numpy as np
import pytest
import torch
from torch import nn

from accel import Accelerator
from accel_core.errors import CheckpointError, StateError
from accel_state import process


@pytest.fixture(autouse=True)
def fresh():
    process.reset()
    yield
    process.reset()


def begin(folder, **options):
    process.reset()
    torch.manual_seed(0)
    return Accelerator(cpu=True, project_dir=str(folder), **options)


def one(folder, *, kind=torch.optim.SGD, net=None, rate=0.1, **options):
    accelerator = begin(folder, **options)
    net = net or nn.Linear(2, 1)
    return accelerator, *accelerator.prepare(net, kind(net.parameters(), lr=rate))


# -- fp16 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overflow", [False, True])
def test_the_scale_of_a_window_saved_in_its_closing_body_counts_its_step(tmp_path, overflow):
    def micro(accelerator, net, optimizer, *, save=False, big=1.0):
        with accelerator.accumulate(net):
            accelerator.backward(net(torch.ones(2, 2)).float().mean() * big)
            optimizer.step()
            optimizer.zero_grad()
            if save:
                accelerator.save_state()

    run = one(tmp_path, mixed_precision="fp16", gradient_accumulation_steps=2)
    accelerator = run[0]
    micro(*run)
    micro(*run, save=True, big=float("inf") if overflow else 1.0)
    wanted = accelerator.scaler.state_dict()
    weights = run[1].weight.tolist()
    run = one(tmp_path, mixed_precision="fp16", gradient_accumulation_steps=2)
    run[0].resume()
    assert run[0].scaler.state_dict() == wanted
    assert wanted["_growth_tracker"] == (0 if overflow else 1)
    assert run[1].weight.tolist() == weights


def test_a_run_may_be_rolled_back_after_gradients_were_clipped_and_not_applied(tmp_path):
    accelerator, net, optimizer = one(tmp_path, mixed_precision="fp16")

    def micro(*, apply=True):
        with accelerator.accumulate(net):
            accelerator.backward(net(torch.ones(2, 2)).float().mean())
            accelerator.clip_grad_norm_(net.parameters(), 1.0)
            if apply:
                optimizer.step()
                optimizer.zero_grad()
        return net.weight.tolist()

    micro()
    accelerator.save_state()
    wanted = micro()
    micro(apply=False)
    accelerator.load_state()
    assert micro() == wanted


def test_a_window_of_scaled_gradients_is_no_part_of_a_run_without_a_scale(tmp_path):
    accelerator, net, optimizer = one(tmp_path, mixed_precision="fp16", gradient_accumulation_steps=2)
    with accelerator.accumulate(net):
        accelerator.backward(net(torch.ones(2, 2)).float().mean())
        optimizer.step()
    accelerator.save_state()
    accelerator, net, _ = one(tmp_path, gradient_accumulation_steps=2)
    nn.init.zeros_(net.weight)
    with pytest.raises(CheckpointError, match="gradients are with a loss scale, this run is without"):
        accelerator.load_state(strict=False)
    assert not net.weight.any()
    assert net.weight.grad is None


def test_weights_of_the_next_window_are_divided_by_what_they_would_have_been(tmp_path):
    def micro(accelerator, net, optimizer, weight):
        with accelerator.accumulate(net):
            accelerator.backward(net(torch.full((1, 2), 1.4, dtype=torch.half)).sum(), weight=weight)
            optimizer.step()
            optimizer.zero_grad()
        return net.weight.tolist()

    def start():
        torch.manual_seed(0)
        net = nn.Linear(2, 1, bias=False).half()
        nn.init.zeros_(net.weight)
        return one(tmp_path, net=net, rate=1.0, gradient_accumulation_steps=2)

    run = start()
    for _ in range(2):
        micro(*run, 1)
    nn.init.zeros_(run[1].weight)
    run[0].save_state()
    # In half precision 1.4 / 2**24 is as good as 1 / 2**24, and 2.8 / 2**24 is not.
    wanted = [micro(*run, weight) for weight in (2**24, 2**20)]
    run = start()
    run[0].resume()
    assert [micro(*run, weight) for weight in (2**24, 2**20)] == wanted


@pytest.mark.world(2)
def test_sums_of_another_number_of_ranks_are_divided_by_another_number(pool, world, tmp_path):
    def micro(run, rows, value):
        accelerator, net, optimizer = run
        with accelerator.accumulate(net):
            loss = net(torch.full((rows, 2), value)).float().sum() / 65536
            accelerator.backward(loss, weight=rows)
            optimizer.step()
        return optimizer.step_was_skipped

    def saved():
        run = one(tmp_path, mixed_precision="fp16", gradient_accumulation_steps=2)
        assert not any([micro(run, 1, 1.0), micro(run, 1, 1.0)])
        run[0].save_state()

    pool.run(world, saved)
    run = one(tmp_path, mixed_precision="fp16", gradient_accumulation_steps=2)
    run[0].resume()
    # The sum of 8 * 16000 is more than half precision can hold, and their mean is not.
    assert not any([micro(run, 8, 16000.0), micro(run, 8, 16000.0)])


# -- several units ---------------------------------------------------------------------------------


def two(folder, inputs, *, loose=False):
    accelerator = begin(folder)
    first, second = nn.Linear(2, 2), nn.Linear(inputs, 1)
    if loose:
        held = [*first.parameters(), second.weight, *([second.bias] if inputs == 3 else [])]
        return accelerator, *accelerator.prepare(first, second, torch.optim.Adam(held))
    return accelerator, *accelerator.prepare(first, second)


def test_nothing_is_changed_when_a_later_unit_does_not_fit(tmp_path):
    two(tmp_path, 3)[0].save_state()
    accelerator, first, _ = two(tmp_path, 4)
    nn.init.zeros_(first.weight)
    with pytest.raises(CheckpointError, match="'model_1'; nothing was changed"):
        accelerator.resume()
    assert not first.weight.any()


def test_nothing_is_changed_when_an_optimizer_of_several_models_does_not_fit(tmp_path):
    two(tmp_path, 3, loose=True)[0].save_state()
    accelerator = begin(tmp_path)
    first, second = nn.Linear(2, 2), nn.Linear(3, 1)
    optimizer = torch.optim.Adam([*first.parameters(), second.weight])
    first, *_ = accelerator.prepare(first, second, optimizer)
    nn.init.zeros_(first.weight)
    with pytest.raises(CheckpointError, match="holds other parameters"):
        accelerator.resume()
    assert not first.weight.any()


def test_nothing_is_changed_when_a_window_of_another_length_is_open(tmp_path):
    accelerator, net, optimizer = one(tmp_path, gradient_accumulation_steps=3)
    with accelerator.accumulate(net):
        accelerator.backward(net(torch.ones(1, 2)).sum())
        optimizer.step()
    accelerator.save_state()
    accelerator, net, _ = one(tmp_path, gradient_accumulation_steps=2)
    nn.init.zeros_(net.weight)
    with pytest.raises(CheckpointError, match="this run has windows of 2"):
        accelerator.load_state(strict=False)
    assert not net.weight.any()


# -- what only seems to fit ------------------------------------------------------------------------


class Kept:
    def __init__(self, value=None):
        self.value = value

    def state_dict(self):
        return self.value

    def load_state_dict(self, state):
        self.value = state


class Other(Kept):
    pass


def test_state_of_another_class_is_reported_and_not_taken(tmp_path):
    def start(schedule, kept):
        accelerator, _, optimizer = one(tmp_path)
        scheduler = accelerator.prepare(schedule(optimizer.optimizer))
        accelerator.register_for_checkpointing(kept=kept)
        return accelerator, scheduler

    start(lambda o: torch.optim.lr_scheduler.StepLR(o, 2), Kept(1))[0].save_state()
    kept = Other(7)
    accelerator, scheduler = start(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 9), kept)
    report = accelerator.load_state(strict=False)
    assert report.mismatched == {
        "scheduler": "a StepLR was saved, this is a CosineAnnealingLR",
        "custom/kept": "a Kept was saved, this is a Other",
    }
    assert not {"scheduler", "custom/kept"} & set(report.restored)
    assert not hasattr(scheduler.scheduler, "step_size")
    assert kept.value == 7


class Colour(IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [np.float64(1.5), np.float64("inf"), np.str_("x"), OrderedDict(b=1, a=[2]), bytearray(b"\0x")],
    ids=["float", "infinity", "text", "ordered", "bytes"],
)
def test_values_come_back_with_their_type(tmp_path, value):
    kept = Kept({"it": value})
    accelerator = begin(tmp_path)
    accelerator.register_for_checkpointing(kept=kept)
    accelerator.save_state()
    kept.value = None
    accelerator.load_state()
    assert type(kept.value["it"]) is type(value)
    assert kept.value["it"] == value


def test_members_of_an_enum_are_refused_like_other_objects(tmp_path):
    accelerator = begin(tmp_path)
    accelerator.register_for_checkpointing(kept=Kept({"colour": Colour.RED}))
    with pytest.raises(CheckpointError, match="Colour cannot be written"):
        accelerator.save_state()


# -- gradients that are zeros ----------------------------------------------------------------------


# Not in the body with gradients that are cleared first: whether that is to come cannot be known there.
@pytest.mark.parametrize(("place", "zero_first"), [("body", False), ("loop", False), ("loop", True)])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_parameters_that_an_update_does_not_use_move_on_as_they_did(tmp_path, place, zero_first, set_to_none):
    def start():
        net = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
        return one(tmp_path, net=net, kind=torch.optim.Adam)

    def micro(accelerator, net, optimizer, part, *, save=False):
        with accelerator.accumulate(net):
            if zero_first:
                optimizer.zero_grad(set_to_none=set_to_none)
            accelerator.backward(net[part](torch.ones(1, 2)).sum())
            optimizer.step()
            if not zero_first:
                optimizer.zero_grad(set_to_none=set_to_none)
            if save and place == "body":
                accelerator.save_state()
        if save and place == "loop":
            accelerator.save_state()
        return [each.tolist() for each in net.parameters()]

    run = start()
    micro(*run, 0)
    micro(*run, 1, save=True)
    wanted = micro(*run, 0), micro(*run, 0)
    run = start()
    run[0].resume()
    assert (micro(*run, 0), micro(*run, 0)) == wanted


# -- sparse gradients ------------------------------------------------------------------------------


def test_sparse_gradients_are_saved_around_and_not_within_a_window(tmp_path):
    def start():
        net = nn.EmbeddingBag(5, 2, sparse=True)
        return one(tmp_path, net=net, kind=torch.optim.SparseAdam, gradient_accumulation_steps=2)

    def micro(accelerator, net, optimizer, *, save=False):
        with accelerator.accumulate(net):
            accelerator.backward(net(torch.tensor([[1, 2]])).sum())
            if save:
                with pytest.raises(StateError, match="no optimizer has applied them"):
                    accelerator.save_state()
            optimizer.step()
            optimizer.zero_grad()

    run = start()
    micro(*run)
    with pytest.raises(StateError, match="sparse gradients, of model_0.weight"):
        run[0].save_state()
    micro(*run, save=True)
    run[0].save_state()
    micro(*run)
    micro(*run)
    wanted = run[1].weight.tolist()
    run = start()
    run[0].resume()
    micro(*run)
    micro(*run)
    assert run[1].weight.tolist() == wanted


# -- hooks -----------------------------------------------------------------------------------------


@pytest.mark.world(2)
@pytest.mark.parametrize("saving", [True, False], ids=["save", "load"])
def test_a_hook_that_fails_on_one_rank_fails_on_all(pool, world, tmp_path, saving):
    def run():
        accelerator = Accelerator(cpu=True, project_dir=str(tmp_path))
        accelerator.prepare(nn.Linear(2, 1))

        def fail(*_):
            if accelerator.process_index == 1:
                raise ValueError("no space for it")

        if saving:
            accelerator.register_save_state_pre_hook(fail)
        else:
            accelerator.save_state()
            accelerator.register_load_state_pre_hook(fail)
        with pytest.raises(CheckpointError, match=r"Rank 1 could not call a hook of .*no space for it"):
            accelerator.save_state() if saving else accelerator.load_state()
        return accelerator.gather(torch.ones(1)).tolist()

    assert pool.run(world, run, timeout=20) == [[1.0, 1.0]] * 2
    assert saving is not (tmp_path / "checkpoints" / "checkpoint_0").exists()
