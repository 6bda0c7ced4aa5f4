"""A plan is kept: the devices it was made for are given no more than it says, and hold what it says."""

import pytest

from accel_core.testing.standin.fixture import standin  # noqa: F401 - a fixture


def run_planned(offload_buffers):
    import tempfile

    import torch
    from torch import nn

    from accel_bigmodel import dispatch_model, plan_device_map

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(64, 256)
            self.down = nn.Linear(256, 64)
            self.register_buffer("scale", torch.rand(64))

        def forward(self, hidden):
            return hidden + self.down(torch.relu(self.up(hidden))) * self.scale

    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(12))).eval()
    example = torch.randn(2, 8, 64)
    with torch.no_grad():
        expected = model(example)
    block = sum(parameter.nbytes for parameter in model[0].parameters())
    limits = {0: 4 * block, 1: 3 * block, "cpu": 4 * block}
    asked = {"max_memory": limits, "no_split_module_classes": ["Block"], "offload_buffers": offload_buffers}
    plan = plan_device_map(model, "sequential", **asked, batch_size=2, sequence_length=8)
    # Other tests may have left something in this process.
    before = [torch.standin.memory_allocated(number) for number in (0, 1)]
    try:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            dispatch_model(model, plan.device_map, offload_dir=folder, offload_buffers=offload_buffers)
            held = [torch.standin.memory_allocated(number) - before[number] for number in (0, 1)]
            # From here on the devices have what the plan was told, and not a byte more.
            for number in (0, 1):
                torch.standin.reset_peak_memory_stats(number)
                torch.standin.set_limit(limits[number] + before[number], number)
            results = [model(example.to("standin:0")).cpu() for _ in range(3)]
            equal = [torch.equal(result, expected) for result in results]
            peaks = [torch.standin.max_memory_allocated(number) - before[number] for number in (0, 1)]
    finally:
        for number in (0, 1):
            torch.standin.set_limit(1 << 26, number)
    return plan, held, equal, peaks, limits


@pytest.mark.parametrize("offload_buffers", [False, True])
def test_devices_with_no_byte_more_than_planned(standin, offload_buffers):  # noqa: F811
    ((plan, held, equal, peaks, limits),) = standin.run(1, run_planned, offload_buffers)
    assert set(plan.device_map.values()) == {0, 1, "cpu", "disk"}
    assert equal == [True] * 3
    first, second = plan.shares[:2]
    assert (first.device, second.device) == (0, 1)
    buffers = (
        0
        if offload_buffers
        else 64 * 4 * sum(device in ("cpu", "disk") for device in plan.device_map.values())
    )
    # What lies there for good: weights, and the buffers of offloaded blocks. Allocations are rounded up.
    assert first.weights + buffers <= held[0] <= (first.weights + buffers) * 1.05
    assert second.weights <= held[1] <= second.weights * 1.05
    assert peaks[0] <= limits[0]
    assert peaks[1] <= limits[1]


@pytest.mark.gpu
def test_a_real_device_with_no_byte_more_than_planned():
    import torch
    from torch import nn

    from accel_bigmodel import dispatch_model, plan_device_map

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(1024, 8192)
            self.down = nn.Linear(8192, 1024)

        def forward(self, hidden):
            return hidden + self.down(torch.relu(self.up(hidden)))

    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(8))).eval()
    example = torch.randn(2, 32, 1024)
    with torch.no_grad():
        expected = model(example)
    block = sum(parameter.nbytes for parameter in model[0].parameters())
    limits = {0: 5 * block, "cpu": 8 * block}
    plan = plan_device_map(
        model, max_memory=limits, no_split_module_classes=["Block"], batch_size=2, sequence_length=32
    )
    assert set(plan.device_map.values()) == {0, "cpu"}
    device = torch.device(torch.accelerator.current_accelerator().type, 0)
    module = torch.get_device_module(device)
    before = module.memory_allocated(device)
    dispatch_model(model, plan.device_map)
    assert module.memory_allocated(device) - before <= plan.shares[0].weights * 1.01
    module.reset_peak_memory_stats(device)
    with torch.no_grad():
        for _ in range(3):
            result = model(example.to(device)).cpu()
    # Libraries of matrix products keep some tens of megabytes to themselves.
    assert module.max_memory_allocated(device) - before <= limits[0] + 64 * 2**20
    # Sums of 8192 products, in another order, by products that may be rounded to 10 bits.
    torch.testing.assert_close(result, expected, rtol=1e-2, atol=1e-2)
