"""On a CUDA or ROCm device: placement, scaled steps of fused optimizers, and the container on its device."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from accel_core import plugins
from accel_core.config import DistributedDataParallelKwargs
from accel_core.protocols import LonelyCollectives, StrategyContext, Unit
from accel_parallel import AcceleratedOptimizer

pytestmark = pytest.mark.gpu


class AsItIs:
    def convert(self, model):
        return model


def strategy(name, **settings):
    context = StrategyContext(
        device=torch.device("cuda", 0),
        hardware=None,
        collectives=LonelyCollectives(),
        precision=AsItIs(),
        settings=settings,
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


@pytest.mark.parametrize(
    ("hook", "wrapper"), [("fp16", "no"), ("bf16", "no"), ("power_sgd", "bf16"), ("batched_power_sgd", "no")]
)
def test_communication_hooks_run_on_its_backend(hook, wrapper):
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        options = {"start_powerSGD_iter": 2} if "power" in hook else {}
        settings = DistributedDataParallelKwargs(
            comm_hook=hook, comm_wrapper=wrapper, comm_state_option=options
        )
        model = nn.Linear(32, 16)
        unit = strategy("ddp", ddp=settings).wrap(Unit(name="m", model=model))
        for _ in range(4):
            model.zero_grad()
            unit.model(torch.ones(1, 32, device="cuda")).sum().backward()
        # A gradient of ones has rank 1 and is exact in half precision; a bucket as one square is not quite.
        assert torch.allclose(model.weight.grad, torch.ones_like(model.weight), atol=0.3)
    finally:
        dist.destroy_process_group()
