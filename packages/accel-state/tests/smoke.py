"""What this package does alone, run from its wheel with only what it declares."""

import tempfile

import torch

from accel_state import CheckpointStore, PartialState, gather, set_seed

state = PartialState(cpu=True)
assert (state.process_index, state.num_processes, state.is_main_process) == (0, 1, True)
assert gather({"x": torch.ones(3)})["x"].tolist() == [1.0, 1.0, 1.0]

set_seed(3)
first = torch.rand(4)
set_seed(3)
assert torch.equal(first, torch.rand(4))

with tempfile.TemporaryDirectory() as folder:
    store = CheckpointStore()
    with store.save(f"{folder}/one") as sink:
        sink.tensors("model", {"a": first})
    assert store.latest(folder) == f"{folder}/one"
    assert torch.equal(store.open(f"{folder}/one").tensors("model")["a"], first)
