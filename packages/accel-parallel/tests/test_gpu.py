"""On a CUDA or ROCm device: placement, scaled steps of fused optimizers, and the container on its device."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from accel_core import plugins
from accel_core.protocols import LonelyCollectives, StrategyContext, Unit
from accel_parallel import AcceleratedOptimizer

pytestmark = pytest.mark.gpu


class AsItIs:
    def convert(self, model):
        return model


def strategy(name):
    context = StrategyContext(
        device=torch.device("cuda", 0), hardware=None, collectives=LonelyCollectives(), precision=AsItIs()
    )
    return plugins.find(plugins.STRATEGIES, name)(context)


def test_model_and_optimizer_state_are_placed():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    unit = strategy("single").wrap(Unit(name="m", model=model, optimizers=(optimizer,)))
    assert unit.model.weight.device == torch.device("cuda", 0)
    state = optimizer.state[model.weight]
    assert state["exp_avg"].device == torch.device("cuda", 0)
    assert state["step"].device.type == "cpu"
    optimizer.zero_grad()
    unit.model(torch.ones(1, 3, device="cuda")).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_skips_the_step_and_is_told(fused):
    model = nn.Linear(3, 2).cuda()
    scaler = torch.amp.GradScaler("cuda", init_scale=8.0)
    optimizer = AcceleratedOptimizer(torch.optim.Adam(model.parameters(), fused=fused), scaler=scaler)
    for overflow in (True, False):
        before = model.weight.detach().clone()
        scaler.scale(model(torch.ones(1, 3, device="cuda")).sum()).backward()
        if overflow:
            model.weight.grad.fill_(torch.inf)
        optimizer.unscale_()
        optimizer.step()
        optimizer.zero_grad()
        assert optimizer.step_was_skipped is overflow
        assert torch.equal(before, model.weight) is overflow
    assert scaler.get_scale() == 4.0


def test_the_container_is_on_its_device():
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        unit = strategy("ddp").wrap(Unit(name="m", model=nn.Linear(3, 2)))
        assert unit.model.device_ids == [0]
        unit.model(torch.ones(1, 3, device="cuda")).sum().backward()
    finally:
        dist.destroy_process_group()
