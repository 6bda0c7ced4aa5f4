"""The state of a run: what save_state writes, what load_state gives back, and what both refuse."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from accel import Accelerator
from accel.utils import ProjectConfiguration
from accel_core.errors import CapabilityError, CheckpointError, ConfigError, StateError
from accel_state import process


@pytest.fixture(autouse=True)
def fresh():
    process.reset()
    yield
    process.reset()


def model():
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.4), nn.Linear(8, 1))


def setup(folder, *, seed=0, schedule=None, **options):
    process.reset()
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True, project_dir=str(folder), **options)
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    make = schedule or (lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5))
    return accelerator, *accelerator.prepare(net, optimizer, make(optimizer))


def step(accelerator, net, optimizer, scheduler):
    with accelerator.accumulate(net):
        noise = torch.randn(6, 4) + float(np.random.randn()) + random.random()
        loss = net(noise).pow(2).mean()
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return loss.item(), scheduler.get_last_lr()


def test_a_run_goes_on_as_if_nothing_had_happened(tmp_path):
    run = setup(tmp_path)
    for _ in range(3):
        step(*run)
    path = run[0].save_state()
    wanted = [step(*run) for _ in range(6)]
    run = setup(tmp_path, seed=9)
    report = run[0].load_state(path)
    assert report.ok
    assert {"model_0.0.weight", "model_0/optimizer_0", "scheduler", "random_states/torch"} <= set(
        report.restored
    )
    assert [step(*run) for _ in range(6)] == wanted


@pytest.mark.parametrize("done", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_run_goes_on_within_an_accumulation_window(tmp_path, done, weighted):
    def micro(accelerator, net, optimizer, scheduler, number):
        with accelerator.accumulate(net):
            loss = net(torch.randn(6, 4)).pow(2)
            if weighted:
                accelerator.backward(loss.sum(), weight=5 + number)
            else:
                accelerator.backward(loss.mean())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        return loss.sum().item()

    run = setup(tmp_path, gradient_accumulation_steps=3)
    for number in range(done):
        micro(*run, number)
    run[0].save_state()
    wanted = [micro(*run, number) for number in range(8)]
    run = setup(tmp_path, seed=9, gradient_accumulation_steps=3)
    run[0].resume()
    assert [micro(*run, number) for number in range(8)] == wanted


def test_it_can_be_saved_in_the_body_of_a_micro_batch(tmp_path):
    run = setup(tmp_path, gradient_accumulation_steps=2)
    accelerator, net, optimizer, scheduler = run
    for number in range(4):
        with accelerator.accumulate(net):
            accelerator.backward(net(torch.ones(2, 4)).mean())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            accelerator.save_state(tmp_path / f"within_{number}")
    wanted = [each.clone() for each in net.parameters()]
    for number in range(4):
        accelerator, net, optimizer, scheduler = setup(tmp_path, seed=3, gradient_accumulation_steps=2)
        accelerator.load_state(tmp_path / f"within_{number}")
        for _ in range(3 - number):
            with accelerator.accumulate(net):
                accelerator.backward(net(torch.ones(2, 4)).mean())
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), wanted, strict=True)), number


SCHEDULES = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 1 / (n + 1)),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=50),
    "multi step": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 4, 4]),
    "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
    "cosine restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "sequential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, total_iters=3), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
        milestones=[3],
    ),
    "chained": lambda o: torch.optim.lr_scheduler.ChainedScheduler(
        [torch.optim.lr_scheduler.ConstantLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "polynomial": lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 9),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_of_torch_come_back_without_pickle(tmp_path, schedule):
    run = setup(tmp_path, schedule=SCHEDULES[schedule])
    for _ in range(3):
        step(*run)
    run[0].save_state()
    wanted = [step(*run) for _ in range(5)]
    run = setup(tmp_path, seed=4, schedule=SCHEDULES[schedule])
    run[0].resume()
    assert [step(*run) for _ in range(5)] == wanted


def test_the_loss_scale_comes_back(tmp_path):
    run = setup(tmp_path, mixed_precision="fp16")
    for _ in range(3):
        step(*run)
    run[0].scaler.update(2048.0)
    saved = run[0].scaler.state_dict()
    run[0].save_state()
    wanted = [step(*run) for _ in range(4)]
    run = setup(tmp_path, seed=4, mixed_precision="fp16")
    run[0].resume()
    assert run[0].scaler.state_dict() == saved
    assert [step(*run) for _ in range(4)] == wanted


# -- the folder ------------------------------------------------------------------------------------


def test_files_have_the_documented_names_and_no_pickle(tmp_path):
    run = setup(tmp_path)
    step(*run)
    folder = tmp_path / "checkpoints" / "checkpoint_0"
    assert run[0].save_state() == str(folder)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "manifest.json",
        "model.safetensors",
        "optimizer.json",
        "optimizer/tensors.safetensors",
        "random_states_0.safetensors",
        "run.json",
        "scheduler.json",
    }
    state = load_file(folder / "model.safetensors")
    net = model()
    net.load_state_dict(state)
    assert json.loads((folder / "run.json").read_text())["step"] == 1


def test_automatic_names_count_and_old_ones_go_after_the_commit(tmp_path):
    config = ProjectConfiguration(project_dir=str(tmp_path), automatic_checkpoint_naming=True, total_limit=2)
    run = setup(tmp_path, project_config=config)
    for _ in range(4):
        step(*run)
        run[0].save_state()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "checkpoint_2",
        "checkpoint_3",
    ]
    assert run[0].save_iteration == 4


def test_numbers_go_on_after_all_that_are_there(tmp_path):
    run = setup(tmp_path)
    for _ in range(3):
        run[0].save_state()
    run = setup(tmp_path)
    run[0].load_state(tmp_path / "checkpoints" / "checkpoint_1")
    assert run[0].save_state().endswith("checkpoint_3")
    run = setup(tmp_path)
    run[0].resume()
    assert run[0].save_state().endswith("checkpoint_4")


def test_a_new_run_does_not_write_over_an_old_one(tmp_path):
    setup(tmp_path)[0].save_state()
    with pytest.raises(CheckpointError, match="did not continue it"):
        setup(tmp_path)[0].save_state()


def test_resume_starts_anew_where_there_is_nothing(tmp_path):
    run = setup(tmp_path)
    assert run[0].resume() is None
    with pytest.raises(CheckpointError, match="There is no checkpoint to load"):
        run[0].load_state()


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path, caplog):
    run = setup(tmp_path)
    for _ in range(2):
        step(*run)
        run[0].save_state()
    file = tmp_path / "checkpoints" / "checkpoint_1" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    run = setup(tmp_path, seed=2)
    run[0].resume()
    assert "checkpoint_1 is damaged" in caplog.text
    assert run[0].save_state().endswith("checkpoint_2")


# -- registered objects ----------------------------------------------------------------------------


class Counter:
    def __init__(self, value=0):
        self.value = value

    def state_dict(self):
        return {"value": self.value, "seen": {1, 2}, "table": {3: np.arange(3)}, "mean": torch.tensor(2.5)}

    def load_state_dict(self, state):
        assert state["seen"] == {1, 2}
        assert (state["table"][3] == np.arange(3)).all()
        assert state["mean"].item() == 2.5
        self.value = state["value"]


class Other(Counter):
    pass


def test_registered_objects_are_found_by_name(tmp_path):
    run = setup(tmp_path)
    first, ema = Counter(3), Counter(5)
    run[0].register_for_checkpointing(first, ema=ema)
    run[0].register_for_checkpointing(first)
    run[0].save_state()
    run = setup(tmp_path)
    ema, first = Counter(), Counter()
    run[0].register_for_checkpointing(ema=ema)
    run[0].register_for_checkpointing(first)
    report = run[0].resume()
    assert (first.value, ema.value) == (3, 5)
    assert {"custom/ema", "custom/custom_checkpoint_0"} <= set(report.restored)


def test_a_scheduler_that_was_not_prepared_can_be_registered(tmp_path):
    accelerator, _, optimizer, _ = setup(tmp_path)
    plain = torch.optim.lr_scheduler.StepLR(optimizer.optimizer, 1, 0.99)
    accelerator.register_for_checkpointing(plain)
    optimizer.step()
    plain.step()
    accelerator.save_state()
    plain.step()
    accelerator.load_state()
    assert plain.last_epoch == 1


@pytest.mark.parametrize("bad", [object(), 3, Counter])
def test_only_objects_with_a_state_can_be_registered(tmp_path, bad):
    with pytest.raises(ValueError, match="state_dict"):
        setup(tmp_path)[0].register_for_checkpointing(bad)


def test_a_name_is_given_once(tmp_path):
    run = setup(tmp_path)
    run[0].register_for_checkpointing(ema=Counter())
    with pytest.raises(ValueError, match="'ema' is taken"):
        run[0].register_for_checkpointing(ema=Counter())


class Pickled(Counter):
    def state_dict(self):
        return {"deep": [1, object()]}


def test_state_that_would_need_pickle_is_refused_before_anything_is_written(tmp_path):
    run = setup(tmp_path)
    run[0].register_for_checkpointing(bomb=Pickled())
    with pytest.raises(CheckpointError, match="without pickle") as caught:
        run[0].save_state()
    assert "deep.1" in caught.value.where
    assert not (tmp_path / "checkpoints").exists()


# -- what does not fit -----------------------------------------------------------------------------


def test_another_run_is_refused_with_all_differences_and_nothing_is_changed(tmp_path):
    run = setup(tmp_path)
    run[0].register_for_checkpointing(ema=Counter(), old=Counter(), kind=Counter())
    run[0].save_state()
    run = setup(tmp_path, seed=3, mixed_precision="fp16")
    run[0].register_for_checkpointing(ema=Counter(), new=Counter(), kind=Other())
    before = [each.clone() for each in run[1].parameters()]
    drawn = torch.get_rng_state()
    with pytest.raises(CheckpointError, match="of another run") as caught:
        run[0].resume()
    told = caught.value.where
    assert "not in the checkpoint: custom/new, scaler" in told
    assert "only in the checkpoint: custom/old" in told
    assert "custom/kind: a Counter was saved, this is a Other" in told
    assert all(torch.equal(a, b) for a, b in zip(run[1].parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), drawn)


def test_what_fits_can_be_taken_explicitly(tmp_path):
    run = setup(tmp_path)
    run[0].register_for_checkpointing(old=Counter())
    run[0].save_state()
    wanted = [each.clone() for each in run[1].parameters()]
    run = setup(tmp_path, seed=3)
    new = Counter(7)
    run[0].register_for_checkpointing(new=new)
    report = run[0].load_state(strict=False)
    assert report.missing == ("custom/new",)
    assert report.unexpected == ("custom/old",)
    assert new.value == 7
    assert all(torch.equal(a, b) for a, b in zip(run[1].parameters(), wanted, strict=True))


def test_a_model_of_another_shape_is_refused(tmp_path):
    setup(tmp_path)[0].save_state()
    process.reset()
    accelerator = Accelerator(cpu=True, project_dir=str(tmp_path))
    net = nn.Sequential(nn.Linear(4, 9), nn.Dropout(0.4), nn.Linear(9, 1))
    optimizer = torch.optim.AdamW(net.parameters())
    accelerator.prepare(net, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2))
    with pytest.raises(CheckpointError, match="nothing was changed") as caught:
        accelerator.resume()
    assert "0.weight: (8, 4) in the checkpoint, (9, 4) in the model" in caught.value.where


def test_a_window_of_another_length_is_refused_while_one_is_open(tmp_path):
    run = setup(tmp_path, gradient_accumulation_steps=3)
    step(*run)
    run[0].save_state()
    run = setup(tmp_path, gradient_accumulation_steps=2)
    with pytest.raises(CheckpointError, match="window of 3 micro-batches, this run has windows of 2"):
        run[0].resume()


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    from accel_state.checkpoint import CheckpointStore

    with CheckpointStore().save(tmp_path / "other") as sink:
        sink.json("thing", 1)
    with pytest.raises(CheckpointError, match="save_state did not write it"):
        setup(tmp_path)[0].load_state(tmp_path / "other")
    (tmp_path / "plain").mkdir()
    with pytest.raises(CheckpointError, match="is not a committed checkpoint"):
        setup(tmp_path)[0].load_state(tmp_path / "plain")


# -- where it cannot be saved ----------------------------------------------------------------------


def test_between_a_backward_and_its_step_nothing_can_be_saved(tmp_path):
    accelerator, net, optimizer, _ = setup(tmp_path)
    with accelerator.accumulate(net):
        with pytest.raises(StateError, match="no gradient came of it yet"):
            accelerator.save_state()
        accelerator.backward(net(torch.ones(2, 4)).mean())
        with pytest.raises(StateError, match="no optimizer has applied them"):
            accelerator.save_state()
        optimizer.step()
        accelerator.save_state()


def test_local_sgd_is_left_first(tmp_path):
    from accel.local_sgd import LocalSGD

    accelerator, net, *_ = setup(tmp_path)
    with LocalSGD(accelerator=accelerator, model=net, local_sgd_steps=2, enabled=True):
        if accelerator._window.alone:
            with pytest.raises(StateError, match="do not step together"):
                accelerator.save_state()


def test_pickle_is_not_written_or_read(tmp_path):
    run = setup(tmp_path)
    with pytest.raises(CapabilityError, match="safetensors and JSON only"):
        run[0].save_state(safe_serialization=False)
    run[0].save_state()
    with pytest.raises(CapabilityError, match="no code in them"):
        run[0].load_state(load_kwargs={"weights_only": False})
    run[0].load_state(load_kwargs={"weights_only": True, "map_location": "cpu"})
    with pytest.raises(TypeError, match="max_shard_size"):
        run[0].save_state(max_shard_size="1GB")
    with pytest.raises(TypeError, match="depth"):
        run[0].load_state(depth=1)


def test_without_a_project_dir_a_folder_is_needed():
    accelerator = Accelerator(cpu=True)
    for method in (accelerator.save_state, accelerator.load_state, accelerator.resume):
        with pytest.raises(ConfigError, match="project_dir"):
            method()


# -- hooks -----------------------------------------------------------------------------------------


def test_hooks_may_write_models_their_own_way(tmp_path):
    accelerator, net, *_ = setup(tmp_path)

    def save(models, weights, folder):
        assert models == [net]
        assert weights[0].keys() == net.state_dict().keys()
        torch.save(accelerator.unwrap_model(models[0]).state_dict(), f"{folder}/own.pt")
        weights.pop()

    handle = accelerator.register_save_state_pre_hook(save)
    path = accelerator.save_state()
    assert (tmp_path / "checkpoints/checkpoint_0/own.pt").exists()
    assert not (tmp_path / "checkpoints/checkpoint_0/model.safetensors").exists()
    wanted = [each.clone() for each in net.parameters()]
    nn.init.zeros_(net[0].weight)
    with pytest.raises(CheckpointError, match="register_load_state_pre_hook"):
        accelerator.load_state(path)

    def load(models, folder):
        models.pop().load_state_dict(torch.load(f"{folder}/own.pt"))

    accelerator.register_load_state_pre_hook(load)
    accelerator.load_state(path)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), wanted, strict=True))
    handle.remove()
    assert (tmp_path / "checkpoints/checkpoint_1") == type(tmp_path)(accelerator.save_state())
    assert (tmp_path / "checkpoints/checkpoint_1/model.safetensors").exists()


# -- several models --------------------------------------------------------------------------------


def several(folder, *, names):
    process.reset()
    accelerator = Accelerator(cpu=True, project_dir=str(folder))
    first, second = nn.Linear(2, 2), nn.Linear(3, 1)
    both = torch.optim.Adam([*first.parameters(), *second.parameters()], lr=0.1)
    own = torch.optim.SGD(second.parameters(), lr=0.1, momentum=0.9)
    both = accelerator.prepare(both)
    if names:
        units = accelerator.prepare(actor=first, critic=(second, own))
        return accelerator, units.actor.model, *units.critic, both
    return accelerator, *accelerator.prepare(first, second, own), both


@pytest.mark.parametrize("names", [False, True])
def test_several_models_and_an_optimizer_over_both(tmp_path, names):
    def train(accelerator, first, second, own, both):
        accelerator.backward(first(torch.ones(1, 2)).sum() + second(torch.ones(1, 3)).pow(2).sum())
        own.step()
        both.step()
        both.zero_grad()
        return [each.tolist() for model in (first, second) for each in model.parameters()]

    run = several(tmp_path, names=names)
    train(*run)
    path = run[0].save_state()
    wanted = train(*run), train(*run)
    run = several(tmp_path, names=names)
    run[0].load_state(path)
    assert (train(*run), train(*run)) == wanted
    folder = tmp_path / "checkpoints/checkpoint_0"
    models = ("actor/model", "critic/model") if names else ("model", "model_1")
    assert all((folder / f"{name}.safetensors").exists() for name in models)


def test_units_under_other_names_are_another_run(tmp_path):
    several(tmp_path, names=True)[0].save_state()
    with pytest.raises(CheckpointError, match="of another run") as caught:
        several(tmp_path, names=False)[0].resume()
    assert "only in the checkpoint: model of actor, model of critic" in caught.value.where
