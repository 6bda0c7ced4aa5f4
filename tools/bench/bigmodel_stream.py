"""Measure forwards of a model whose weights come to an accelerator block by block; print one table.

    python bigmodel_stream.py                     on the accelerator of this machine
    python bigmodel_stream.py --standin --mib 8   a try of this program, on the stand-in device

Beside the forward: the time that the bytes alone take from pinned memory to the device, and the forward
with all weights on the device. A forward that is bound by transfers should take no more than 1 / 0.85 of the
first, one that is bound by computing hardly more than the second. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from accel_bigmodel import dispatch_model

ROUNDS = 5
LEARN = 2
"""Passes that are not counted: the order is not known yet."""


class Block(nn.Module):
    """Two layers and a norm around a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` with what the layers add."""
        added: torch.Tensor = self.down(nn.functional.gelu(self.up(self.norm(x))))
        return x + added


class Bench:
    """All measurements on one device."""

    def __init__(self, device: torch.device, mib: int, blocks: int, dtype: torch.dtype) -> None:
        self.device = device
        self.width = int((mib * 2**20 / dtype.itemsize / 8) ** 0.5) // 16 * 16
        self.blocks = blocks
        self.dtype = dtype
        torch.manual_seed(0)
        self.state = {
            name: (torch.randn(value.shape) * 0.02).to(dtype)
            for name, value in self.skeleton().state_dict().items()
        }
        self.bytes = sum(value.nbytes for value in self.state.values())

    def skeleton(self) -> nn.Module:
        """Return the model without weights."""
        with torch.device("meta"):
            return nn.Sequential(*(Block(self.width) for _ in range(self.blocks))).to(self.dtype).eval()

    def timed(self, function: Callable[[], object], *, learn: int = 1) -> float:
        """Return the median of the seconds that ``function`` takes on the device."""
        times = []
        for _ in range(learn + ROUNDS):
            torch.accelerator.synchronize(self.device)
            begin = time.perf_counter()
            function()
            torch.accelerator.synchronize(self.device)
            times.append(time.perf_counter() - begin)
        return statistics.median(times[learn:])

    def bandwidth(self) -> float:
        """Return the bytes that go from pinned memory to the device in a second."""
        size = min(256 << 20, self.bytes)
        source = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        target = torch.empty(size, dtype=torch.uint8, device=self.device)
        return size / self.timed(lambda: target.copy_(source, non_blocking=True), learn=3)

    def forwards(self, folder: Path, rows: int) -> Iterator[tuple[str, float]]:
        """Yield what a forward of ``rows`` rows takes with the weights in several places."""
        x = torch.randn(rows, self.width, dtype=self.dtype, device=self.device)
        model = self.skeleton()
        model.load_state_dict(self.state, assign=True)
        model.to(self.device)
        expected, seconds = self.run(model, x)
        yield "on the device", seconds
        del model
        for name, options in self.places(folder):
            model = self.skeleton()
            place = "disk" if "offload_index" in options else "cpu"
            dispatch_model(model, {"": place}, main_device=self.device, **options)
            found, seconds = self.run(model, x)
            assert torch.equal(found, expected)
            yield name, seconds
            del model

    @torch.inference_mode()
    def run(self, model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return what ``model`` makes of ``x``, and the seconds that it takes."""
        found = model(x)
        return found, self.timed(lambda: model(x), learn=LEARN)

    def places(self, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield places of the weights, as arguments of `dispatch_model`."""
        yield "in memory", {"state_dict": self.state}
        pinned = {name: value.pin_memory() for name, value in self.state.items()}
        yield "in pinned memory", {"state_dict": pinned}
        del pinned
        path = folder / "model.safetensors"
        save_file(self.state, path)
        index = {name: {"safetensors_file": str(path), "weight_name": name} for name in self.state}
        yield "on disk, in the page cache", {"offload_index": index}


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=256, help="the size of a block")
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 4096], help="of the inputs")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--standin", action="store_true", help="run on the stand-in device")
    args = parser.parse_args()
    if args.standin:
        from accel_core.testing.standin import load

        load().set_limit(2**34)
    kind = torch.accelerator.current_accelerator()
    if kind is None:
        raise SystemExit("there is no accelerator on this machine")
    device = torch.device(kind.type, torch.accelerator.current_device_index())
    bench = Bench(device, args.mib, args.blocks, getattr(torch, args.dtype))
    speed = bench.bandwidth()
    least = bench.bytes / speed
    results: dict[str, Any] = {"bytes": bench.bytes, "bandwidth": speed, "forwards": {}}
    size = f"{bench.bytes / 2**30:.2f} GiB in {args.blocks} blocks"
    lines = [
        f"{size}; {speed / 1e9:.1f} GB/s from pinned memory, {least:.3g} s for all weights.",
        "",
        "| rows | weights | forward | of the bandwidth | beside the longer of both bounds |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for rows in args.rows:
            found = dict(bench.forwards(Path(folder), rows))
            results["forwards"][rows] = found
            bound = max(least, found["on the device"])
            for name, seconds in found.items():
                cells = (
                    str(rows),
                    name,
                    f"{seconds:.3g} s",
                    f"{least / seconds:.0%}",
                    f"{seconds / bound:.2f}x",
                )
                lines.append(f"| {' | '.join(cells)} |")
    print(json.dumps(results) if args.json else "\n".join(lines))


if __name__ == "__main__":
    main()
