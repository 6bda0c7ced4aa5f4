"""The stand-in device behaves as a device does, and memory tools see it as one."""

import pytest
import torch
from torch import nn

from accel_core.testing.standin.fixture import standin  # noqa: F401 - a fixture
from accel_state.checkpoint import BackgroundSaver, CheckpointStore
from accel_state.memory import find_executable_batch_size

MIB = 2**20
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_it_computes_as_the_cpu_does(standin):  # noqa: F811
    def run():
        def trained(device):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4)).to(device)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
            x, y = torch.randn(16, 8).to(device), torch.randint(0, 4, (16,)).to(device)
            for _ in range(5):
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
            return [parameter.detach().cpu() for parameter in model.parameters()]

        # The same kernels, called through torch's fallback.
        for ours, cpu in zip(trained("standin:1"), trained("cpu"), strict=True):
            torch.testing.assert_close(ours, cpu, rtol=1e-6, atol=1e-7)
        with torch.autocast("standin", dtype=torch.bfloat16):
            assert nn.Linear(4, 4).to("standin")(torch.ones(2, 4, device="standin")).dtype == torch.bfloat16
        return torch.accelerator.current_accelerator().type, torch.accelerator.device_count()

    assert standin.run(1, run) == [("standin", 2)]


def test_memory_is_counted_limited_and_given_back(standin):  # noqa: F811
    def run():
        device = torch.standin
        device.set_limit(8 * MIB, 1)
        before = device.memory_allocated(0)
        held = torch.ones(MIB, device="standin:1")
        assert (device.memory_allocated(1), device.memory_allocated(0)) == (4 * MIB, before)
        assert device.mem_get_info(1) == (4 * MIB, 8 * MIB)
        with pytest.raises(
            torch.OutOfMemoryError, match="standin:1 out of memory. Tried to allocate 8388608"
        ):
            torch.empty(2 * MIB, device="standin:1")
        del held
        assert (device.memory_allocated(1), device.max_memory_allocated(1)) == (0, 4 * MIB)
        device.reset_peak_memory_stats(1)
        assert device.max_memory_allocated(1) == 0
        with pytest.raises(RuntimeError, match="on the same device"):
            torch.ones(2, device="standin:0") + torch.ones(2, device="standin:1")
        return True

    assert standin.run(1, run) == [True]


def test_the_largest_batch_of_a_real_model_under_a_real_limit(standin):  # noqa: F811
    """Activations are what grows; each attempt starts with an empty device."""

    def run():
        device = torch.standin
        tried, begun_with = [], []

        def train(batch_size):
            tried.append(batch_size)
            begun_with.append(device.memory_allocated(0))
            model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4))).to("standin")
            optimizer = torch.optim.AdamW(model.parameters())
            for _ in range(2):
                model(torch.ones(batch_size, 256, device="standin")).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            return device.max_memory_allocated(0)

        fits = find_executable_batch_size(train, starting_batch_size=2048)()
        device.set_limit(fits, 0)
        peak = find_executable_batch_size(train, starting_batch_size=16384)()
        assert peak <= fits
        return tried, begun_with

    ((tried, begun_with),) = standin.run(1, run)
    assert tried == [2048, 16384, 8192, 4096, 2048]
    assert begun_with == [0] * 5


def test_state_is_copied_out_of_it_and_saved_in_the_background(standin, tmp_path):  # noqa: F811
    def run():
        saver = BackgroundSaver(CheckpointStore)
        for value in (1, 2):
            whole = torch.full((6, 4), float(value), device="standin:1")
            snapshot = saver.snapshot(tmp_path / "one")
            snapshot.tensors("t", {"half": whole[3:], "whole": whole, "turned": (whole + 1).t()})
            saver.submit(tmp_path / "one", snapshot)
            whole.zero_()
        saver.wait()
        found = CheckpointStore().open(tmp_path / "one").tensors("t")
        assert found["half"].data_ptr() == found["whole"][3:].data_ptr()
        return {
            name: (str(each.device), tuple(each.shape), each.unique().tolist())
            for name, each in found.items()
        }

    half, whole, turned = ("cpu", (3, 4), [2.0]), ("cpu", (6, 4), [2.0]), ("cpu", (4, 6), [3.0])
    assert standin.run(1, run) == [{"half": half, "whole": whole, "turned": turned}]
