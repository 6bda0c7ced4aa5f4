"""Measure models larger than a device beside plain PyTorch and beside the peer; print one table.

    python bigmodel.py --peer PYTHON [--keep]     both libraries, a table, kept in docs/bench
    python bigmodel.py accel                      one library in this interpreter, JSON

A model of 1.5 GiB in shards of safetensors, all in the page cache, and one of 20,800 small modules. Plain and
measured run in turn; each figure is the median over the rounds, each ratio the median of the rounds' own.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib
import json
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from run import versions_of
from safetensors.torch import save_file
from saving import Row, measured_by, peak, row, timed
from torch import nn

ROUNDS = 5
MIB = 1536
WIDTH = 2048
BLOCKS_OF_MANY = 1300
DOCS = Path(__file__).parents[2] / "docs" / "bench"
DISK, COPY = "load, blocks on disk", "written beside the checkpoint by that load"
ONE, MANY = "forward of 1 token, weights on disk", "forward of 64 tokens, weights on disk"
MEMORY, HOST = "load into CPU memory", "memory beside the weights during that load"
MAP, SKELETON = "device map of 20,800 modules", "skeleton of 20,800 modules"
BESIDE = {
    ONE: "the same, in memory",
    MANY: "the same, in memory",
    MEMORY: "read the bytes",
    SKELETON: 'build under torch.device("meta")',
}
GOALS = {
    DISK: "< 0.3 s",
    COPY: "0 MiB",
    ONE: "<= 1.05x",
    MANY: "<= 1.05x",
    MEMORY: "<= 1.10x",
    MAP: "< 0.1 s",
    SKELETON: "<= 0.60x",
}
OURS = {HOST}
"""Rows of one library: what the peer loads need not be in memory then, and a difference would say nothing."""
UNITS = {COPY: "MiB", HOST: "MiB"}


class Block(nn.Module):
    """Two layers and a norm around a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` with what the layers add."""
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Model(nn.Module):
    """Blocks of 128 MiB each."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the blocks in a row."""
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


class Small(nn.Module):
    """Sixteen modules with itself and their containers."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({name: nn.Linear(64, 64) for name in ("q", "k", "v", "o")})
        self.mlp = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.Dropout(0.1))
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(3))
        self.table = nn.Embedding(512, 64)


def many() -> nn.Module:
    """Return a model of 1,300 blocks."""
    return nn.Sequential(*(Small() for _ in range(BLOCKS_OF_MANY)))


def write(folder: Path, blocks: int) -> None:
    """Write random weights in shards with an index, without ever building the model."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Model(blocks).state_dict().items()}
    index: dict[str, str] = {}
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, shape in shapes.items():
        number = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 0
        file = f"model-{number:05d}.safetensors"
        index[name] = file
        shards.setdefault(file, {})[name] = torch.randn(shape) * 0.02
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def bytes_of(folder: Path) -> int:
    """Return the bytes of all files in ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_bytes(folder: Path) -> list[bytearray]:
    """Return the bytes of all weights."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        memory = bytearray(path.stat().st_size)
        with path.open("rb", buffering=0) as stream:
            view = memoryview(memory)
            while view:
                view = view[stream.readinto(view) :]
        found.append(memory)
    return found


class Bench:
    """All measurements of one library."""

    def __init__(self, library: str, place: Path, mib: int) -> None:
        self.library = importlib.import_module(library)
        self.place = place
        self.blocks = max(1, mib // 128)
        self.folder = place / "checkpoint"
        self.folder.mkdir()
        write(self.folder, self.blocks)

    def skeleton(self) -> nn.Module:
        """Return the model without weights."""
        with self.library.init_empty_weights():
            return Model(self.blocks)

    def load(self, device_map: dict[str, str]) -> nn.Module:
        """Return the model with its weights."""
        away = self.place / "away"
        shutil.rmtree(away, ignore_errors=True)
        away.mkdir()
        model: nn.Module = self.library.load_checkpoint_and_dispatch(
            self.skeleton(), str(self.folder), device_map=device_map, offload_folder=str(away)
        )
        return model

    def on_disk(self) -> nn.Module:
        """Return the model with its blocks on the disk."""
        return self.load({"first": "cpu", "blocks": "disk"})

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Yield every figure."""
        # First, while there is no freed memory that would be used again.
        weights = bytes_of(self.folder)
        yield HOST, {"prepared": (peak(lambda: self.load({"": "cpu"})) - weights) / 2**20}
        times = [timed(self.on_disk) for _ in range(ROUNDS + 1)][1:]
        yield DISK, {"prepared": statistics.median(times)}
        yield COPY, {"prepared": bytes_of(self.place / "away") / 2**20}
        yield from self.forwards()
        yield MEMORY, self.in_turn(lambda: read_bytes(self.folder), lambda: self.load({"": "cpu"}))
        yield SKELETON, self.in_turn(self.under_meta, self.empty_many)
        model = self.empty_many()
        limits = {0: "100MiB", 1: "200MiB", "cpu": "10GiB"}

        def plan() -> None:
            self.library.infer_auto_device_map(model, max_memory=limits, no_split_module_classes=["Small"])

        times = [timed(plan) for _ in range(ROUNDS + 1)][1:]
        yield MAP, {"prepared": statistics.median(times)}

    def forwards(self) -> Iterator[tuple[str, Row]]:
        """Yield forwards with weights in memory and on the disk, in turn."""
        inside, away = self.load({"": "cpu"}), self.on_disk()
        with torch.inference_mode():
            for name, tokens in ((ONE, 1), (MANY, 64)):
                x = torch.randn(tokens, WIDTH)
                # Kernels for one row round differently where weights do not begin at 16 bytes, see the guide.
                torch.testing.assert_close(away(x), inside(x))

                def plain(x: torch.Tensor = x) -> Any:
                    return inside(x)

                def prepared(x: torch.Tensor = x) -> Any:
                    return away(x)

                yield name, self.in_turn(plain, prepared, rounds=9)

    @staticmethod
    def under_meta() -> nn.Module:
        """Build many modules as plain PyTorch builds them without memory."""
        with torch.device("meta"):
            return many()

    def empty_many(self) -> nn.Module:
        """Build many modules with the library."""
        with self.library.init_empty_weights():
            return many()

    @staticmethod
    def in_turn(plain: Callable[[], object], prepared: Callable[[], object], rounds: int = ROUNDS) -> Row:
        """Return medians in seconds, after one round that is not counted."""
        times = []
        for _ in range(rounds + 1):
            gc.collect()
            bare = timed(plain)
            gc.collect()
            times.append((bare, timed(prepared)))
        return row(times[1:])


def cell(name: str, figures: Row | None) -> str:
    """Return one cell of the table."""
    if figures is None:
        return "-"
    text = f"{figures['prepared']:.3g} {UNITS.get(name, 's')}"
    return text + (f" ({figures['ratio']:.2f}x)" if "ratio" in figures else "")


def table(ours: dict[str, Row], peers: dict[str, Row], versions: str) -> str:
    """Return the results as a Markdown table."""
    lines = [
        f"Measured {datetime.datetime.now(tz=datetime.UTC).date()}: {versions}.",
        "",
        "| what | beside | that takes | accel | peer | goal |",
        "|---|---|---|---|---|---|",
    ]
    for name in (DISK, COPY, ONE, MANY, MEMORY, HOST, SKELETON, MAP):
        figures = ours[name]
        plain = f"{figures['plain']:.3g} s" if "plain" in figures else ""
        peer = None if name in OURS else peers.get(name)
        cells = (name, BESIDE.get(name, ""), plain, cell(name, figures), cell(name, peer))
        lines.append(f"| {' | '.join((*cells, GOALS.get(name, '')))} |")
    return "\n".join(lines) + "\n"


PAGE = """# Models larger than a device

A model of 1.5 GiB in shards of safetensors, in the page cache, computing on the CPU with one thread; and one
of 20,800 small modules. One process, one machine without an accelerator. "Read the bytes" reads all files
into memory that is new, as a load into CPU memory must.

"""


def main() -> None:
    """Measure one library, or both, print and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", nargs="?", help="measure only this one, in this interpreter")
    parser.add_argument("--peer", help="the Python interpreter of an environment that holds accelerate")
    parser.add_argument("--keep", action="store_true", help="write the table to docs/bench/")
    parser.add_argument("--mib", type=int, default=MIB, help="the size of the model, for a try")
    args = parser.parse_args()
    if args.library:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(dict(Bench(args.library, Path(folder), args.mib).rows())))
        return
    more = ("--mib", str(args.mib))
    ours = measured_by(__file__, sys.executable, "accel", more)
    peers = measured_by(__file__, args.peer, "accelerate", more) if args.peer else {}
    versions = f"Python {platform.python_version()}, " + versions_of(sys.executable, ("torch", "accel-meta"))
    if args.peer:
        versions += ", " + versions_of(args.peer, ("accelerate",))
    text = table(ours, peers, versions)
    print(text)
    if args.keep:
        DOCS.mkdir(parents=True, exist_ok=True)
        (DOCS / "bigmodel.md").write_text(PAGE + text)
        (DOCS / "bigmodel.json").write_text(json.dumps({"accel": ours, "peer": peers}, indent=2) + "\n")


if __name__ == "__main__":
    main()
