"""The example in the README runs as it stands, and its formula for the order holds."""

import re
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from accel_data import epoch_seed, prepare_data_loader

README = Path(__file__).parents[1] / "README.md"
PER_RANK = 150


def test_the_example_of_the_readme_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    example = example.replace("    ...", "    seen.append(batch)")
    whole = torch.arange(32 * 2 * PER_RANK)
    read = []
    for rank in (0, 1):
        seen = []
        exec(
            compile(example, str(README), "exec"),
            {"dataset": whole, "world_size": 2, "rank": rank, "seen": seen},
        )
        epochs = [torch.cat(seen[start : start + PER_RANK]) for start in range(0, 3 * PER_RANK, PER_RANK)]
        assert not torch.equal(epochs[0], epochs[1])
        # Gone on in the middle of epoch 1.
        assert torch.equal(torch.cat(seen[3 * PER_RANK :]), epochs[1][120 * 32 :])
        read.append(epochs)
    for epoch in range(3):
        assert torch.equal(torch.cat([read[0][epoch], read[1][epoch]]).sort().values, whole)


def test_the_order_is_the_one_that_the_readme_says():
    loader = prepare_data_loader(DataLoader(torch.arange(50), batch_size=50, shuffle=True), data_seed=3)
    for epoch in range(2):
        generator = torch.Generator()
        generator.manual_seed(epoch_seed(3, epoch))
        assert next(iter(loader)).tolist() == torch.randperm(50, generator=generator).tolist()
