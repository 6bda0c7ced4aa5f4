"""What this package does alone, run from its wheel with only what it declares."""

import tempfile

import torch
from torch import nn

from accel_bigmodel import (
    cpu_offload,
    disk_offload,
    estimate_memory,
    infer_auto_device_map,
    init_empty_weights,
    load_checkpoint_and_dispatch,
    load_state_dict,
    read_headers,
)


def build() -> nn.Module:
    """Return a small model."""
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval()


x = torch.randn(3, 8)
plain = build()
with init_empty_weights(include_buffers=True):
    empty = build()
assert infer_auto_device_map(empty, {"cpu": "1MiB"}) == {"": "cpu"}

with tempfile.TemporaryDirectory() as folder:
    torch.save(plain.state_dict(), f"{folder}/weights.bin")
    assert load_state_dict(f"{folder}/weights.bin").keys() == plain.state_dict().keys()
    assert estimate_memory(read_headers(f"{folder}/weights.bin"))
    places = {"0": "cpu", "1": "cpu", "2": "disk"}
    loaded = load_checkpoint_and_dispatch(empty, f"{folder}/weights.bin", places, offload_folder=folder)
    assert loaded[2].weight.is_meta
    assert torch.equal(loaded(x), plain(x))
    wanted = plain(x)
    assert torch.equal(disk_offload(plain, f"{folder}/away")(x), wanted)

other = build()
wanted = other(x)
assert torch.equal(cpu_offload(other, "cpu")(x), wanted)
