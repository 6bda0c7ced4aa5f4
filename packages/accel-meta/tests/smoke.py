"""What this package does, run from its wheel with only what it declares."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from accel import Accelerator

torch.manual_seed(0)
inputs = torch.randn(32, 3)
loader = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=4)
model = nn.Linear(3, 1)

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)
losses = []
for _ in range(5):
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
assert losses[-1] < losses[0] / 10, losses
