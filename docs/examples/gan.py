"""Train a small generative adversarial network on the handwritten digits that scikit-learn ships.

    accel launch --cpu --num_processes 2 docs/examples/gan.py
    accel launch --cpu docs/examples/gan.py --accumulation 2

Two models and two optimizers as named units, two losses for the discriminator, alternating updates, exact
on any number of processes. Prints a table and a few digits. Needs scikit-learn and rich.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from accel import Accelerator
from accel.utils import set_seed

NOISE = 16
Pair = tuple[torch.Tensor, ...]


@dataclass
class Gan:
    """The two players and what trains them."""

    generator: nn.Module
    discriminator: nn.Module
    generator_optimizer: Optimizer
    discriminator_optimizer: Optimizer


def load_data() -> TensorDataset:
    """Return 1797 images of 8x8 pixels in [-1, 1], each with noise of its own.

    The noise is part of the data, so that one process and many see the same for each image.
    """
    images = torch.tensor(load_digits().images, dtype=torch.get_default_dtype()) / 8 - 1
    noise = torch.randn(len(images), NOISE, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images[:, None], noise.to(images))


def build(lr: float = 2e-3) -> Gan:
    """Return two networks of about 50 thousand parameters each.

    Normalised per image, not per batch: statistics of a batch depend on how it is spread over processes.
    """
    generator = nn.Sequential(
        nn.Linear(NOISE, 128 * 2 * 2),
        nn.Unflatten(1, (128, 2, 2)),
        nn.GroupNorm(1, 128),
        nn.ReLU(),
        nn.ConvTranspose2d(128, 32, 2, stride=2),
        nn.GroupNorm(1, 32),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 2, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 1, 3, padding=1),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 2, stride=2),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 2, stride=2),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(128 * 2 * 2, 1),
    )
    return Gan(
        generator,
        discriminator,
        Adam(generator.parameters(), lr=lr, betas=(0.5, 0.999)),
        Adam(discriminator.parameters(), lr=lr / 4, betas=(0.5, 0.999)),
    )


def prepare(accelerator: Accelerator, gan: Gan) -> Gan:
    """Return the players ready for this set-up, as units that checkpoints and errors call by name."""
    (generator, generator_optimizer), (discriminator, discriminator_optimizer) = accelerator.prepare(
        generator=(gan.generator, gan.generator_optimizer),
        discriminator=(gan.discriminator, gan.discriminator_optimizer),
    )
    return Gan(generator, discriminator, generator_optimizer, discriminator_optimizer)


def loss_of(logits: torch.Tensor, real: bool) -> torch.Tensor:
    """Return the mean cross-entropy of taking all images for ``real`` ones."""
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Let gradients pass through ``model`` to its input and leave none in its parameters."""
    model.requires_grad_(False)
    try:
        yield model
    finally:
        model.requires_grad_(True)


def update(accelerator: Accelerator, gan: Gan, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Train both players on one micro-batch; return their losses on it."""
    # One window for both: the two updates of a window close with the same micro-batch.
    with accelerator.accumulate(gan.generator, gan.discriminator):
        fakes = gan.generator(noise)
        on_real = loss_of(gan.discriminator(images), real=True)
        accelerator.backward(on_real)
        on_fake = loss_of(gan.discriminator(fakes.detach()), real=False)
        # A second loss of the same model and micro-batch; without add= it would be taken for a slip.
        accelerator.backward(on_fake, add=True)
        gan.discriminator_optimizer.step()
        gan.discriminator_optimizer.zero_grad()
        # The generator's loss goes through the discriminator, whose gradients it must not touch. So the
        # discriminator is not shared here: its own module is called, beside what averages its gradients.
        with frozen(accelerator.unwrap_model(gan.discriminator)) as judge:
            fooled = loss_of(judge(fakes), real=True)
        accelerator.backward(fooled, add=True)
        gan.generator_optimizer.step()
        gan.generator_optimizer.zero_grad()
    return torch.stack([(on_real + on_fake).detach(), fooled.detach()])


def train(accelerator: Accelerator, gan: Gan, loader: DataLoader[Pair]) -> torch.Tensor:
    """Train for one epoch over a prepared loader; return both mean losses over all processes."""
    losses = torch.stack([update(accelerator, gan, images, noise) for images, noise in loader])
    return accelerator.reduce(losses.mean(dim=0), reduction="mean")


@torch.inference_mode()
def distance(gan: Gan, images: torch.Tensor, noise: torch.Tensor) -> float:
    """Return how far made images are from the nearest real one, as a root mean square per pixel."""
    made = gan.generator(noise).flatten(1)
    return float(torch.cdist(made, images.flatten(1)).amin(dim=1).mean() / made.shape[1] ** 0.5)


def draw(images: torch.Tensor) -> str:
    """Return images of 8x8 pixels in [-1, 1] side by side, as text."""
    shades = " .:-=+*#%@"
    levels = ((images.squeeze(1) + 1) / 2 * (len(shades) - 1)).round().int().tolist()
    rows = ("   ".join("".join(shades[v] * 2 for v in image[row]) for image in levels) for row in range(8))
    return "\n".join(rows)


def main() -> None:
    """Parse the options, train, and show the result on the main process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=32, help="samples per process and micro-batch")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches per update")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.monotonic()
    accelerator = Accelerator(gradient_accumulation_steps=args.accumulation)
    set_seed(args.seed)
    data = load_data()
    images, noise = (part.to(accelerator.device) for part in next(iter(DataLoader(data, 512))))
    gan = prepare(accelerator, build())
    loader = accelerator.prepare(DataLoader(data, batch_size=args.batch_size, shuffle=True))
    columns = ("epoch", "discriminator loss", "generator loss", "distance to real digits")
    table = Table(*columns, title="GAN on digits")
    table.add_row("0", "", "", f"{distance(gan, images, noise):.3f}")
    for epoch in range(1, args.epochs + 1):
        losses = train(accelerator, gan, loader)
        if epoch % 5 == 0 or epoch == args.epochs:
            found = distance(gan, images, noise)
            table.add_row(str(epoch), f"{losses[0]:.3f}", f"{losses[1]:.3f}", f"{found:.3f}")
    if accelerator.is_main_process:
        with torch.inference_mode():
            made = gan.generator(noise[:4])
        console = Console(highlight=False)
        console.print(table)
        console.print(draw(made.cpu()), markup=False, highlight=False)
        console.print(
            f"{accelerator.num_processes} process(es) on {accelerator.device.type}, mixed precision"
            f" {accelerator.mixed_precision}, {time.monotonic() - started:.1f} s"
        )


if __name__ == "__main__":
    main()
