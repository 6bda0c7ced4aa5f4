"""The optimizer wrapper against the optimizer it wraps."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from accel_core.window import GradientWindow
from accel_parallel import AcceleratedOptimizer
from accel_parallel.optimizer import place_state

pytestmark = pytest.mark.cpu


def small(optimizer=torch.optim.SGD, **settings):
    model = nn.Linear(3, 2)
    return model, optimizer(model.parameters(), **{"lr": 0.1, **settings})


def backward(model, value=1.0):
    (model(torch.ones(1, 3)).sum() * value).backward()


def test_it_acts_at_the_end_of_a_window_only():
    model, raw = small()
    window = GradientWindow(2)
    optimizer = AcceleratedOptimizer(raw, window=window)
    before = model.weight.clone()

    window.advance()
    backward(model)
    assert optimizer.step() is None
    optimizer.zero_grad()
    assert torch.equal(model.weight, before)
    assert model.weight.grad is not None
    window.leave()

    window.advance()
    backward(model)
    optimizer.step()
    assert torch.allclose(model.weight, before - 0.1 * 2)
    optimizer.zero_grad()
    assert model.weight.grad is None


def test_zero_grad_takes_its_argument():
    model, raw = small()
    optimizer = AcceleratedOptimizer(raw)
    backward(model)
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(model.weight.grad, torch.zeros(2, 3))
    optimizer.zero_grad(set_to_none=True)
    assert model.weight.grad is None


def test_it_is_an_optimizer_with_the_wrapped_ones_state():
    model, raw = small(torch.optim.Adam)
    optimizer = AcceleratedOptimizer(raw)
    assert isinstance(optimizer, torch.optim.Optimizer)
    backward(model)
    optimizer.step()
    assert optimizer.state is raw.state
    assert optimizer.param_groups is raw.param_groups
    assert optimizer.defaults is raw.defaults
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 3.0})
    assert raw.param_groups[1]["lr"] == 3.0
    assert optimizer.state_dict() == raw.state_dict()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = 7.0
    optimizer.load_state_dict(saved)
    assert raw.param_groups[0]["lr"] == 7.0
    optimizer.param_groups = raw.param_groups[:1]
    assert len(raw.param_groups) == 1
    assert "AcceleratedOptimizer(Adam" in repr(optimizer)


def test_a_closure_is_called_and_its_loss_returned():
    model, raw = small(torch.optim.LBFGS)
    optimizer = AcceleratedOptimizer(raw)
    plain_model = copy.deepcopy(model)
    plain = torch.optim.LBFGS(plain_model.parameters(), lr=0.1)

    def closure_for(which, opt):
        def closure():
            opt.zero_grad()
            loss = which(torch.ones(1, 3)).pow(2).sum()
            loss.backward()
            return loss

        return closure

    assert torch.equal(
        optimizer.step(closure_for(model, optimizer)), plain.step(closure_for(plain_model, plain))
    )
    assert torch.equal(model.weight, plain_model.weight)


def test_hooks_run_when_a_step_is_taken_and_not_otherwise():
    model, raw = small()
    window = GradientWindow(2)
    optimizer = AcceleratedOptimizer(raw, window=window)
    seen = []
    optimizer.register_step_pre_hook(lambda opt, *_: seen.append(("pre", opt is raw)))
    optimizer.register_step_post_hook(lambda opt, *_: seen.append(("post", opt is raw)))
    optimizer.register_state_dict_post_hook(lambda opt, state: {**state, "mine": 1})
    for _ in range(2):
        window.advance()
        backward(model)
        optimizer.step()
        window.leave()
    assert seen == [("pre", True), ("post", True)]
    assert optimizer.state_dict()["mine"] == 1


class WithModes(torch.optim.SGD):
    mode = None
    own = "attribute"

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"


def test_modes_and_attributes_reach_the_wrapped_optimizer():
    _, raw = small(WithModes)
    optimizer = AcceleratedOptimizer(raw)
    optimizer.train()
    assert raw.mode == "train"
    optimizer.eval()
    assert raw.mode == "eval"
    assert optimizer.own == "attribute"
    AcceleratedOptimizer(small()[1]).train()  # one without modes takes no notice
    with pytest.raises(AttributeError, match="nonsense"):
        _ = optimizer.nonsense


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))], ids=["deepcopy", "pickle"]
)
def test_a_copy_steps_even_when_the_original_was_in_the_middle_of_a_window(copied):
    model, raw = small(torch.optim.Adam)
    window = GradientWindow(3)
    optimizer = AcceleratedOptimizer(raw, window=window)
    backward(model)
    optimizer.step()
    window.advance()
    twin = copied(optimizer)
    assert twin.state_dict()["param_groups"] == raw.state_dict()["param_groups"]
    parameter = twin.param_groups[0]["params"][0]
    before = parameter.detach().clone()
    parameter.grad = torch.ones_like(parameter)
    twin.step()
    assert not torch.equal(before, parameter)
    assert torch.equal(before, model.weight)


# -- gradient scaling --------------------------------------------------------------------------


def overflowing(model):
    for parameter in model.parameters():
        parameter.grad[...] = torch.inf


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_skips_the_step_and_is_told(fused):
    model, raw = small(torch.optim.SGD, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = AcceleratedOptimizer(raw, scaler=scaler)
    reference, plain = copy.deepcopy(model), None
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)

    scaler.scale(model(torch.ones(1, 3)).sum()).backward()
    overflowing(model)
    optimizer.step()
    assert optimizer.step_was_skipped
    assert torch.equal(model.weight, reference.weight)
    assert scaler.get_scale() == 4.0
    optimizer.zero_grad()

    scaler.scale(model(torch.ones(1, 3)).sum()).backward()
    optimizer.step()
    assert not optimizer.step_was_skipped
    backward(reference)
    plain.step()
    # Scales are powers of two: dividing by them is exact.
    assert torch.equal(model.weight, reference.weight)


def test_nothing_is_skipped_while_gradients_accumulate_nor_without_a_scaler():
    _, raw = small()
    window = GradientWindow(2)
    optimizer = AcceleratedOptimizer(raw, scaler=torch.amp.GradScaler("cpu"), window=window)
    window.advance()
    assert optimizer.step() is None
    assert optimizer.step_was_skipped is False
    assert AcceleratedOptimizer(raw).step_was_skipped is False


def test_gradients_are_unscaled_once_however_often_it_is_asked():
    model, raw = small()
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    optimizer = AcceleratedOptimizer(raw, scaler=scaler)
    for _ in range(2):
        before = model.weight.detach().clone()
        scaler.scale(model(torch.ones(1, 3)).sum()).backward()
        optimizer.unscale_()
        optimizer.unscale_()
        assert torch.equal(model.weight.grad, torch.ones(2, 3))
        optimizer.step()
        optimizer.zero_grad()
        assert torch.allclose(model.weight, before - 0.1)
    AcceleratedOptimizer(raw).unscale_()  # without a scaler there is nothing to do


def test_a_disabled_scaler_changes_nothing():
    model, raw = small()
    optimizer = AcceleratedOptimizer(raw, scaler=torch.amp.GradScaler("cpu", enabled=False))
    before = model.weight.detach().clone()
    backward(model)
    optimizer.step()
    assert torch.allclose(model.weight, before - 0.1)
    assert not optimizer.step_was_skipped


# -- torch's own schedulers --------------------------------------------------------------------


@pytest.mark.parametrize("wrapped_first", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_torch_schedulers_see_the_steps_and_do_not_warn(wrapped_first, scaled):
    model, raw = small()
    scaler = torch.amp.GradScaler("cpu") if scaled else None
    if wrapped_first:
        optimizer = AcceleratedOptimizer(raw, scaler=scaler)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    else:
        scheduler = torch.optim.lr_scheduler.StepLR(raw, 1)
        optimizer = AcceleratedOptimizer(raw, scaler=scaler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = model(torch.ones(1, 3)).sum()
        (loss if scaler is None else scaler.scale(loss)).backward()
        optimizer.step()
        scheduler.step()
    assert raw.param_groups[0]["lr"] == pytest.approx(0.01)


def test_torch_still_warns_when_the_scheduler_goes_first():
    _, raw = small()
    scheduler = torch.optim.lr_scheduler.StepLR(AcceleratedOptimizer(raw), 1)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()


# -- placement and bad input -------------------------------------------------------------------


def test_state_follows_its_parameter_but_step_counters_stay():
    parameter = nn.Parameter(torch.ones(2, device="meta"))
    raw = torch.optim.Adam([parameter])
    raw.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2), "note": "kept"}
    AcceleratedOptimizer(raw, device_placement=False)
    assert raw.state[parameter]["exp_avg"].device.type == "cpu"
    AcceleratedOptimizer(raw)
    assert raw.state[parameter]["exp_avg"].device.type == "meta"
    assert raw.state[parameter]["step"].device.type == "cpu"
    raw.param_groups[0]["capturable"] = True
    place_state(raw)
    assert raw.state[parameter]["step"].device.type == "meta"
    assert raw.state[parameter]["note"] == "kept"


def test_placing_creates_no_state():
    _, raw = small()
    place_state(raw)
    assert len(raw.state) == 0


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"wraps a torch\.optim\.Optimizer, not Linear"):
        AcceleratedOptimizer(nn.Linear(1, 1))
