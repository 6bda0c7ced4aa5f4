"""What this package does alone, run from its wheel with only what it declares."""

import torch

from accel_state import PartialState, gather, set_seed

state = PartialState(cpu=True)
assert (state.process_index, state.num_processes, state.is_main_process) == (0, 1, True)
assert gather({"x": torch.ones(3)})["x"].tolist() == [1.0, 1.0, 1.0]

set_seed(3)
first = torch.rand(4)
set_seed(3)
assert torch.equal(first, torch.rand(4))
