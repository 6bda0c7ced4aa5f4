"""What this package does alone, run from its wheel with only what it declares."""

import torch

from accel_parallel import AcceleratedOptimizer

weight = torch.nn.Parameter(torch.ones(2))
optimizer = AcceleratedOptimizer(torch.optim.SGD([weight], lr=0.5))
weight.sum().backward()
optimizer.step()
optimizer.zero_grad()
assert weight.tolist() == [0.5, 0.5], weight
