"""Lanes on an accelerator: values are right while copies and kernels overlap, in the memory of two blocks."""

import threading

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from accel_bigmodel import dispatch_model

pytestmark = pytest.mark.gpu
WIDTH, LAYERS = 1024, 12


def device():
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return torch.device(found.type, torch.accelerator.current_device_index())


def models():
    """Return a model on the device, and its skeleton with its weights on the CPU."""
    torch.manual_seed(0)
    layers = [layer for _ in range(LAYERS) for layer in (nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))]
    plain = nn.Sequential(*layers).eval()
    state = {name: value.detach().clone() for name, value in plain.state_dict().items()}
    with torch.device("meta"):
        skeleton = nn.Sequential(*(type(layer)(*_sizes(layer)) for layer in layers)).eval()
    return plain.to(device()), skeleton, state


def _sizes(layer):
    return (WIDTH, WIDTH) if isinstance(layer, nn.Linear) else (WIDTH,)


@pytest.mark.parametrize("kind", ["memory", "pinned", "mapped"])
@pytest.mark.parametrize("rows", [1, 512])
def test_outputs_are_equal_in_the_memory_of_two_blocks(tmp_path, kind, rows):
    plain, model, state = models()
    options = {"state_dict": state}
    if kind == "pinned":
        options = {"state_dict": {name: value.pin_memory() for name, value in state.items()}}
    if kind == "mapped":
        save_file(state, tmp_path / "model.safetensors")
        path = str(tmp_path / "model.safetensors")
        options = {"offload_index": {n: {"safetensors_file": path, "weight_name": n} for n in state}}
    place = "disk" if kind == "mapped" else "cpu"
    dispatch_model(model, {"": place}, main_device=device(), offload_buffers=True, **options)
    x = torch.randn(rows, WIDTH, device=device())
    memory = torch.get_device_module(device())
    with torch.inference_mode():
        expected = plain(x)
        largest = 4 * WIDTH * (WIDTH + 1)
        for step in range(20):
            before = memory.memory_allocated()
            memory.reset_peak_memory_stats()
            assert torch.equal(model(x), expected), step
            # What is used, what is ahead and a little more of it, and activations.
            assert memory.max_memory_allocated() - before <= 2.5 * largest + 8 * x.nbytes


def test_threads_on_streams_of_their_own():
    plain, model, state = models()
    dispatch_model(model, {"": "cpu"}, main_device=device(), state_dict=state, offload_buffers=True)
    x = torch.randn(64, WIDTH, device=device())
    with torch.inference_mode():
        expected = plain(x)
    torch.accelerator.synchronize()
    wrong = []

    def run():
        torch.accelerator.set_stream(torch.Stream(device=device()))
        with torch.inference_mode():
            for step in range(20):
                found = model(x)
                torch.accelerator.current_stream().synchronize()
                if not torch.equal(found, expected):
                    wrong.append(step)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
