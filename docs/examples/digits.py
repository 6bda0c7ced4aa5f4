"""Train a small convolutional network on the handwritten digits that scikit-learn ships.

    accel launch --cpu --num_processes 2 docs/examples/digits.py
    accel launch --cpu docs/examples/digits.py
    accel launch --cpu --mixed_precision bf16 docs/examples/digits.py

Data-parallel, with gradient accumulation, a learning rate schedule and exact distributed evaluation.
Writes the learning curve to a picture and prints a table. Needs scikit-learn, matplotlib, rich and tqdm.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from tqdm.auto import tqdm

from accel import Accelerator
from accel.utils import set_seed

Sample = tuple[torch.Tensor, torch.Tensor]


@dataclass
class History:
    """One row per epoch."""

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)


def load_data() -> tuple[Dataset[Sample], Dataset[Sample]]:
    """Return 1437 training and 360 test images of 8x8 pixels in [0, 1], stratified by digit."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16.0, labels, test_size=0.2, random_state=0, stratify=labels)
    x_train, x_test, y_train, y_test = (torch.tensor(part) for part in split)
    train = TensorDataset(x_train.float().reshape(-1, 1, 8, 8), y_train)
    test = TensorDataset(x_test.float().reshape(-1, 1, 8, 8), y_test)
    return train, test


def build_model() -> nn.Module:
    """Return a network of about 60 thousand parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64 * 4 * 4, 40),
        nn.ReLU(),
        nn.Linear(40, 10),
    )


def evaluate(accelerator: Accelerator, model: nn.Module, loader: DataLoader[Sample]) -> tuple[float, int]:
    """Return the accuracy over the whole test set and the number of samples it was computed from."""
    model.eval()
    hits, seen = 0, 0
    with torch.inference_mode():
        for images, labels in loader:
            guesses, truth = accelerator.gather_for_metrics((model(images).argmax(dim=1), labels))
            hits += int((guesses == truth).sum())
            seen += truth.shape[0]
    model.train()
    return hits / seen, seen


def train(accelerator: Accelerator, args: argparse.Namespace) -> tuple[History, int]:
    """Train for ``args.epochs``; return the history and the number of test samples."""
    train_data, test_data = load_data()
    train_loader = DataLoader(train_data, batch_size=args.batch_size, shuffle=True)
    test_loader = DataLoader(test_data, batch_size=64)
    model = build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    # A prepared scheduler moves one step per process and update, so its length is counted in those.
    processes = accelerator.num_processes
    updates = math.ceil(math.ceil(len(train_loader) / processes) / args.accumulation) * args.epochs
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=args.lr, total_steps=updates * processes
    )
    model, optimizer, train_loader, test_loader, scheduler = accelerator.prepare(
        model, optimizer, train_loader, test_loader, scheduler
    )
    criterion = nn.CrossEntropyLoss()
    history, samples = History(), 0
    bar = tqdm(total=args.epochs * len(train_loader), disable=not accelerator.is_main_process, unit="batch")
    for epoch in range(args.epochs):
        total, batches = torch.zeros((), device=accelerator.device), 0
        for images, labels in train_loader:
            with accelerator.accumulate(model):
                loss = criterion(model(images), labels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            total += loss.detach()
            batches += 1
            bar.update()
        history.loss.append(float(accelerator.reduce(total / batches, reduction="mean")))
        accuracy, samples = evaluate(accelerator, model, test_loader)
        history.accuracy.append(accuracy)
        history.rate.append(scheduler.get_last_lr()[0])
        bar.set_postfix(epoch=epoch + 1, loss=f"{history.loss[-1]:.3f}", accuracy=f"{accuracy:.1%}")
    bar.close()
    return history, samples


def draw(history: History, path: Path) -> None:
    """Write the learning curve as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    epochs = range(1, len(history.loss) + 1)
    figure, left = plt.subplots(figsize=(7, 4), layout="constrained")
    left.plot(epochs, history.loss, color="tab:blue", marker="o", label="training loss")
    left.set(xlabel="epoch", ylabel="training loss", yscale="log", title="Handwritten digits")
    right = left.twinx()
    right.plot(
        epochs,
        [100 * value for value in history.accuracy],
        color="tab:orange",
        marker="s",
        label="test accuracy",
    )
    right.set(ylabel="test accuracy (%)")
    left.legend(handles=[*left.lines, *right.lines], loc="center right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def show(history: History, samples: int, accelerator: Accelerator, seconds: float, picture: Path) -> None:
    """Print the final table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Handwritten digits")
    for column in ("epoch", "training loss", "test accuracy", "learning rate"):
        table.add_column(column, justify="right")
    for epoch, row in enumerate(zip(history.loss, history.accuracy, history.rate, strict=True), start=1):
        table.add_row(str(epoch), f"{row[0]:.4f}", f"{row[1]:.2%}", f"{row[2]:.2e}")
    console = Console()
    console.print(table)
    console.print(
        f"{accelerator.num_processes} process(es) on {accelerator.device.type}, mixed precision"
        f" {accelerator.mixed_precision}: {history.accuracy[-1]:.2%} of {samples} test images"
        f" in {seconds:.1f} s"
    )
    console.print(f"learning curve: {picture}")


def main() -> None:
    """Parse the options, train, and show the result on the main process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=32, help="samples per process and micro-batch")
    parser.add_argument("--accumulation", type=int, default=2, help="micro-batches per update")
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, default=Path("digits.png"))
    args = parser.parse_args()
    started = time.monotonic()
    accelerator = Accelerator(gradient_accumulation_steps=args.accumulation)
    set_seed(args.seed)
    history, samples = train(accelerator, args)
    if accelerator.is_main_process:
        draw(history, args.picture)
        show(history, samples, accelerator, time.monotonic() - started, args.picture)


if __name__ == "__main__":
    main()
