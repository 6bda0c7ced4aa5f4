"""What this package does alone, run from its wheel with only what it declares."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from accel_data import prepare_data_loader

whole = DataLoader(TensorDataset(torch.arange(8)), batch_size=2)
loaders = [prepare_data_loader(whole, num_processes=2, process_index=rank, rng_types=[]) for rank in range(2)]
parts = [[batch.tolist() for (batch,) in loader] for loader in loaders]
assert parts == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]], parts
