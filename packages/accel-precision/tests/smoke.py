"""What this package does alone, run from its wheel with only what it declares."""

import torch

from accel_precision import convert_to_fp32

half = {"x": torch.ones(2, dtype=torch.bfloat16), "n": torch.ones(2, dtype=torch.int64)}
full = convert_to_fp32(half)
assert full["x"].dtype is torch.float32, full
assert full["n"].dtype is torch.int64, full
