"""Train a small language model on lines of unequal length, so that every character counts the same.

    accel launch --cpu --num_processes 2 docs/examples/weighted.py
    accel launch --cpu docs/examples/weighted.py --accumulation 2
    accel launch --cpu docs/examples/weighted.py --batch_size 16

Batches hold unequally many characters, and the mean of their means is not the mean. With ``weight=``, losses
are sums, and gradients those of one mean over all characters of an update, on all processes. The learning
rate falls with the characters read. So the three lines above print the same table. Needs rich.
"""

from __future__ import annotations

import argparse
import builtins
import math
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from accel import Accelerator
from accel.utils import set_seed

LINES = 256
PAD = 0
Line = list[int]


class Lines(Dataset[Line]):
    """Lines of text as characters."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Line:
        return self.lines[index]


def load_data() -> Lines:
    """Return lines of Python's own documentation as characters: 3 to 77 a line, 50 on average."""
    docs = "\n".join(str(getattr(builtins, name).__doc__) for name in sorted(dir(builtins)))
    lines = sorted({line.strip() for line in docs.splitlines() if line.strip().isascii()} - {""})
    return Lines([list(line.encode()) for line in lines[:: len(lines) // LINES][:LINES]])


def collate(lines: list[Line]) -> torch.Tensor:
    """Return a batch (B, T + 2): each line with a line feed on either side, then padding."""
    return pad_sequence(
        [torch.tensor([10, *line, 10]) for line in lines], batch_first=True, padding_value=PAD
    )


class Model(nn.Module):
    """Predict the next character from those before it."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.characters = nn.Embedding(128, width)
        self.memory = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 128)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Return logits (B, T, 128) for text (B, T)."""
        logits: torch.Tensor = self.head(self.memory(self.characters(text))[0])
        return logits


def train(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LambdaLR,
    loader: DataLoader[Line],
) -> tuple[float, int]:
    """Train for one epoch; return the mean loss per character over all processes, and the characters."""
    seen = torch.zeros(2, dtype=torch.float64)
    for text in loader:
        with accelerator.accumulate(model):
            target = text[:, 1:]
            logits = model(text[:, :-1]).flatten(0, 1)
            loss = cross_entropy(logits, target.flatten(), ignore_index=PAD, reduction="sum")
            characters = int((target != PAD).sum())
            accelerator.backward(loss, weight=characters)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        seen += torch.tensor([float(loss.detach()), characters])
    total, count = accelerator.reduce(seen.to(accelerator.device), reduction="sum").tolist()
    return total / count, int(count)


def main() -> None:
    """Parse the options, train, and show the result on the main process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=8, help="lines per process and micro-batch")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches per update")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.monotonic()
    accelerator = Accelerator(gradient_accumulation_steps=args.accumulation)
    set_seed(args.seed)
    data = load_data()
    # In each line every character but the first is predicted.
    total = args.epochs * sum(len(line) + 1 for line in data.lines)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = LambdaLR(optimizer, lambda read: (1 + math.cos(math.pi * min(1.0, read / total))) / 2)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler, schedule_in="tokens")
    loader = accelerator.prepare(DataLoader(data, args.batch_size, shuffle=True, collate_fn=collate))
    table = Table("characters", "loss per character", "learning rate", title="Python's own words")
    read = 0
    for _ in range(args.epochs):
        loss, count = train(accelerator, model, optimizer, scheduler, loader)
        read += count
        table.add_row(f"{read}", f"{loss:.3f}", f"{scheduler.get_last_lr()[0]:.2e}")
    if accelerator.is_main_process:
        console = Console(highlight=False)
        console.print(table)
        console.print(f"{accelerator.num_processes} process(es), {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
