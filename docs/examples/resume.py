"""Train, be killed, go on: the end is the same, bit for bit, as without the kill.

    accel launch --cpu --num_processes 2 docs/examples/resume.py
    accel launch --cpu --num_processes 2 --max_restarts 1 docs/examples/resume.py --kill_at 23

A small network on the handwritten digits that scikit-learn ships, with shuffled data, dropout, gradient
accumulation and a schedule. The state is saved in the background every few micro-batches, also in the middle
of an accumulation window. With ``--kill_at N`` every process kills itself, as a machine that is lost would,
after its N-th micro-batch; the launcher starts all of them again, and they go on from the newest checkpoint
that is whole. The last line is a hash of the weights. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from accel import Accelerator
from accel.utils import ProjectConfiguration, set_seed


class Progress:
    """What the loop counts itself; registered, it is saved with everything else."""

    def __init__(self) -> None:
        self.batches = 0

    def state_dict(self) -> dict[str, int]:
        """Return what to save."""
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take what was saved."""
        self.batches = state["batches"]


def fingerprint(model: nn.Module) -> str:
    """Return a hash of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def main() -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--project_dir", type=Path, default=Path("resume_run"))
    parser.add_argument("--save_every", type=int, default=5, help="micro-batches between checkpoints")
    parser.add_argument("--kill_at", type=int, help="micro-batch after which the first attempt is killed")
    args = parser.parse_args()
    project = ProjectConfiguration(
        project_dir=str(args.project_dir), automatic_checkpoint_naming=True, total_limit=2
    )
    accelerator = Accelerator(gradient_accumulation_steps=3, project_config=project)
    set_seed(0)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16.0).float(), torch.tensor(labels))
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.2), nn.Linear(96, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    model, optimizer, scheduler, loader = accelerator.prepare(
        model, optimizer, scheduler, loader, schedule_in="updates"
    )
    set_seed(7, device_specific=True)  # dropout differs between the processes
    progress = Progress()
    accelerator.register_for_checkpointing(progress=progress)

    report = accelerator.resume()
    # Killed early, the first attempt may leave no checkpoint; the launcher's count tells the second from it.
    first_attempt = report is None and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if report is not None:
        accelerator.print(f"going on after {progress.batches} micro-batches")
    for _ in range(loader.iteration, args.epochs):
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(inputs), targets))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            progress.batches += 1
            if progress.batches % args.save_every == 0:
                accelerator.save_state(block=False)
            if first_attempt and progress.batches == args.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    accelerator.wait_for_checkpoint()
    accelerator.print(
        f"{progress.batches} micro-batches, weights {fingerprint(accelerator.unwrap_model(model))}"
    )


if __name__ == "__main__":
    main()
