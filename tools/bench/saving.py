"""Measure saving and loading the state of a run beside bare files and beside the peer; print one table.

    python saving.py --peer PYTHON [--keep]     both libraries, a table, kept in docs/bench
    python saving.py accel                      one library in this interpreter, JSON

The state has about 1 GiB: a model and Adam's two moments. Bare and prepared run in turn on one disk; each
figure is the median over the rounds, each ratio the median of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import inspect
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from commands import ENVIRONMENT
from run import versions_of
from safetensors.torch import load_file, save_file
from torch import nn

Row = dict[str, float]
ROUNDS = 5
WIDTH = 2048
MIB = 1024
"""Size of the state."""
DOCS = Path(__file__).parents[2] / "docs" / "bench"
SAVE, FIRST = "save, flushed and hashed", "first save in the background, program held up"
WARM, COLD = "load, verified, files in memory", "load, verified, files on disk"
HELD, PEAK = "save in the background, program held up", "memory on top during a save"
CHECK = "look for a failed save, none in flight"
PLAIN = {
    SAVE: "one safetensors file, fsync",
    WARM: "read it into memory",
    COLD: "read it into memory",
    HELD: "copy the state in memory",
    FIRST: "clone the state",
}
GOALS = {
    SAVE: "<= 1.25x",
    COLD: "<= 1.25x",
    HELD: "<= 1.10x",
    PEAK: "< 10 % of the state",
    CHECK: "< 1 us",
}


def parts(mib: int = MIB) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model and an Adam that has made a step, of so many MiB together."""
    torch.manual_seed(0)
    layers = max(1, mib // (3 * 4 * WIDTH * WIDTH >> 20))
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return all tensors of more than one number, by name."""
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor) and value.numel() > 1:
                named[f"{name}.{key}"] = value
    return named


def flushed(path: Path) -> None:
    """Return once the device has ``path``."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)


def timed(action: Callable[[], object]) -> float:
    """Return how many seconds ``action`` took."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turn(plain: Callable[[], object], prepared: Callable[[], object], before: Callable[[], object]) -> Row:
    """Return medians in seconds; ``before`` runs before each and is not counted."""
    times: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        before()
        bare = timed(plain)
        before()
        times.append((bare, timed(prepared)))
    return row(times)


def row(times: Iterable[tuple[float, float]]) -> Row:
    """Return the medians of both and of their ratios."""
    pairs = list(times)
    bare, prepared = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(after / first for first, after in pairs)
    return {"plain": bare, "prepared": prepared, "ratio": ratio}


def forget(folder: Path) -> None:
    """Have the next read of the files in ``folder`` come from the disk."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def resident(key: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    raise RuntimeError(key)


def peak(action: Callable[[], object]) -> int:
    """Return by how many bytes this process grew at most during ``action``."""
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    action()
    return resident("VmHWM") - before


def measured(library: str, place: Path, mib: int) -> dict[str, Row]:
    """Return all figures of one library."""
    accelerator = importlib.import_module(library).Accelerator(cpu=True, project_dir=str(place))
    raw = parts(mib)
    state = state_of(*raw)
    accelerator.prepare(*raw)
    size = sum(value.numel() * value.element_size() for value in state.values())
    bare, ours = place / "bare.safetensors", place / "ours"
    live = {name: torch.zeros_like(value) for name, value in state.items()}

    def save_bare() -> None:
        save_file(state, bare)
        flushed(bare)
        flushed(place)

    def clean() -> None:
        bare.unlink(missing_ok=True)
        shutil.rmtree(ours, ignore_errors=True)
        os.sync()

    def load_bare() -> None:
        for name, value in load_file(bare).items():
            live[name].copy_(value)

    def save() -> None:
        accelerator.save_state(str(ours))

    def load() -> None:
        # What it restores lies in memory of the program afterwards, as in the bare load.
        accelerator.load_state(str(ours))

    rows: dict[str, Row] = {}
    if "block" in inspect.signature(accelerator.save_state).parameters:
        rows |= in_background(accelerator, state, live, ours)
    rows[SAVE] = in_turn(save_bare, save, clean)
    clean()
    rows[PEAK] = {"prepared": 100 * peak(save) / size}
    save_bare()
    load_bare()
    load()
    rows[WARM] = in_turn(load_bare, load, lambda: None)
    rows[COLD] = in_turn(load_bare, load, lambda: forget(place))
    return rows


def in_background(
    accelerator: Any, state: dict[str, torch.Tensor], live: dict[str, torch.Tensor], place: Path
) -> dict[str, Row]:
    """Return how long a save in the background holds the program up, and what asking for it costs."""
    clone = timed(lambda: [value.clone() for value in state.values()])
    times = []
    for number in range(ROUNDS + 1):
        shutil.rmtree(place, ignore_errors=True)
        os.sync()
        copy = timed(lambda: [live[name].copy_(value) for name, value in state.items()])
        held = timed(lambda: accelerator.save_state(str(place), block=False))
        times.append((copy if number else clone, held))
        accelerator.wait_for_checkpoint()
    checks = 100_000
    from accel_state.checkpoint import BackgroundSaver, CheckpointStore

    check = BackgroundSaver(CheckpointStore).check
    seconds = timed(lambda: [check() for _ in range(checks)])
    return {
        HELD: row(times[1:]),
        FIRST: row(times[:1]),
        CHECK: {"prepared": seconds / checks * 1e6},
    }


def cell(name: str, figures: Row | None) -> str:
    """Return one cell of the table."""
    if figures is None:
        return "-"
    unit = {PEAK: "%", CHECK: "us"}.get(name, "s")
    text = f"{figures['prepared']:.3g} {unit}"
    return text + (f" ({figures['ratio']:.2f}x)" if "ratio" in figures else "")


def table(ours: dict[str, Row], peers: dict[str, Row], versions: str) -> str:
    """Return the results as a Markdown table."""
    lines = [
        f"Measured {datetime.datetime.now(tz=datetime.UTC).date()}: {versions}.",
        "",
        "| what | beside | that takes | accel | peer | goal |",
        "|---|---|---|---|---|---|",
    ]
    for name in (HELD, FIRST, CHECK, SAVE, PEAK, WARM, COLD):
        plain = f"{ours[name]['plain']:.3g} s" if "plain" in ours[name] else ""
        cells = (
            name,
            PLAIN.get(name, ""),
            plain,
            cell(name, ours[name]),
            cell(name, peers.get(name)),
            GOALS.get(name, ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measured_by(program: str, python: str, library: str, more: Sequence[str]) -> dict[str, Row]:
    """Return what a program of this folder says of one library in the given interpreter."""
    command = [python, program, library, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    figures: dict[str, Row] = json.loads(done.stdout.splitlines()[-1])
    return figures


PAGE = """# Saving and loading

State of about 1 GiB (a model and Adam's moments), one process, one disk. The peer's `save_state` neither
flushes nor hashes what it writes, its `load_state` verifies nothing, and it has no save in the background.
Memory that is written to for the first time is slow; the copies of a save in the background are kept, so
only the first save pays for that. Nothing of a run is changed before every byte was verified, so a load
reads twice: beside a disk that is not felt; where all files are in memory already, it is a second pass at the
speed of memory, and on two cores the load takes about one and a half times as long as the bare copy.

"""


def main() -> None:
    """Measure one library, or both, print and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", nargs="?", help="measure only this one, in this interpreter")
    parser.add_argument("--peer", help="the Python interpreter of an environment that holds accelerate")
    parser.add_argument("--keep", action="store_true", help="write the table to docs/bench/")
    parser.add_argument("--folder", help="a folder on the disk to measure on")
    parser.add_argument("--mib", type=int, default=MIB, help="the size of the state, for a try")
    args = parser.parse_args()
    if args.library:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            print(json.dumps(measured(args.library, Path(folder), args.mib)))
        return
    more = ("--mib", str(args.mib), *(("--folder", args.folder) if args.folder else ()))
    ours = measured_by(__file__, sys.executable, "accel", more)
    peers = measured_by(__file__, args.peer, "accelerate", more) if args.peer else {}
    versions = f"Python {platform.python_version()}, " + versions_of(sys.executable, ("torch", "accel-meta"))
    if args.peer:
        versions += ", " + versions_of(args.peer, ("accelerate",))
    text = table(ours, peers, versions)
    print(text)
    if args.keep:
        DOCS.mkdir(parents=True, exist_ok=True)
        (DOCS / "checkpoints.md").write_text(PAGE + text)
        (DOCS / "checkpoints.json").write_text(json.dumps({"accel": ours, "peer": peers}, indent=2) + "\n")


if __name__ == "__main__":
    main()
