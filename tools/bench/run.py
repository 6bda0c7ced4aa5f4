"""Measure accel beside plain PyTorch and beside the peer, print one table and keep it in docs/.

    nox -s bench

The peer (``accelerate``) is installed in an environment of its own and only ever run, never read. Whoever
has no such environment leaves ``--peer`` out and gets the table without its column.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from commands import ENVIRONMENT, RUNS, in_turn

HERE = Path(__file__).parent
IN_SECONDS = ("--help", "launch of a no-op script", "import and touch Accelerator")
IN_PER_CENT = ("off by", "in a step of 10 ms")
DOCS = HERE.parents[1] / "docs" / "bench"
GOALS = {
    "training step": "adds <= 15 us",
    "training step of ~10 ms, 2 processes": "<= 1.03x of DDP",
    "audit, in a step of 10 ms": "< 1 %",
    "stream with a vote, in a step of 10 ms": "< 1 %",
    "should_stop, in a step of 10 ms": "< 1 %",
    "loader, per batch": "adds <= 1.5 us",
    "local batch, world size 1": "< 1 us",
    "local batch, world size 8": "< 1 us",
    "local batch, world size 64": "< 1 us",
    "local batch, world size 512": "< 1 us",
    "send_to_device, 12 tensors in place": "< 7 us",
    "gradient of a short last window, off by": "0 %",
    "--help": "adds <= 0.15 s CPU",
    "launch of a no-op script": "adds <= 0.15 s CPU",
    "import and touch Accelerator": "adds <= 60 ms to import torch",
}


def measured(python: str, library: str) -> dict[str, dict[str, float]]:
    """Return the figures of ``measure.py`` in the given interpreter."""
    done = subprocess.run(
        [python, str(HERE / "measure.py"), library], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"measure.py failed for {library}:\n{done.stderr}")
    figures: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return figures


def started(python: str, library: str, console: str) -> dict[str, dict[str, float]]:
    """Return the CPU seconds of the command line, over an empty interpreter, and of the import."""
    script = str(Path(python).parent / console)
    with tempfile.TemporaryDirectory() as folder:
        noop = Path(folder) / "noop.py"
        noop.write_text("pass\n")
        seconds = in_turn(
            {
                "empty": [python, "-c", "pass"],
                "--help": [script, "--help"],
                "launch": [script, "launch", "--cpu", "--num_processes", "1", str(noop)],
            }
        )
    rows = {}
    for row, command in (("--help", "--help"), ("launch of a no-op script", "launch")):
        value, base = seconds[command], seconds["empty"]
        rows[row] = {"plain": base, "prepared": value, "added": value - base}
    rows["import and touch Accelerator"] = imported(python, library)
    return rows


def imported(python: str, library: str) -> dict[str, float]:
    """Return the CPU seconds of importing torch, and of the library after it in the same process."""
    code = (
        "import time; start = time.process_time(); import torch; middle = time.process_time()\n"
        f"import {library}; {library}.Accelerator; print(middle - start, time.process_time() - middle)"
    )
    runs = [
        subprocess.run(
            [python, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT
        ).stdout.split()
        for _ in range(RUNS + 1)
    ][1:]
    plain, added = (statistics.median(map(float, column)) for column in zip(*runs, strict=True))
    return {"plain": plain, "prepared": plain + added, "added": added}


def cell(figures: dict[str, float] | None, unit: str) -> str:
    """Return one cell: what is added over plain where there is a plain, else the figure itself."""
    if figures is None:
        return "-"
    if "added" not in figures:
        return f"{figures['prepared']:.2f} {unit}"
    text = f"+{figures['added']:.3g} {unit}" if figures["added"] >= 0 else f"{figures['added']:.3g} {unit}"
    return text + (f" ({figures['ratio']:.2f}x)" if "ratio" in figures else "")


def table(ours: dict[str, dict[str, float]], peers: dict[str, dict[str, float]], versions: str) -> str:
    """Return the results as a Markdown table."""
    lines = [
        f"Measured {datetime.datetime.now(tz=datetime.UTC).date()}: {versions}.",
        "",
        "| what | plain | accel adds | peer adds | goal |",
        "|---|---|---|---|---|",
    ]
    for name, figures in ours.items():
        unit = "s" if name in IN_SECONDS else "%" if name.endswith(IN_PER_CENT) else "us"
        plain = f"{figures['plain']:.3g} {unit}" if "plain" in figures else "-"
        cells = (name, plain, cell(figures, unit), cell(peers.get(name), unit), GOALS.get(name, ""))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def versions_of(python: str, packages: tuple[str, ...]) -> str:
    """Return ``name version`` of the given packages in another interpreter."""
    code = f"import importlib.metadata as m; print(*(p + ' ' + m.version(p) for p in {packages!r}), sep=', ')"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", help="the Python interpreter of an environment that holds accelerate")
    parser.add_argument("--keep", action="store_true", help="write the table to docs/bench/")
    args = parser.parse_args()
    ours = {**measured(sys.executable, "accel"), **started(sys.executable, "accel", "accel")}
    peers: dict[str, dict[str, float]] = {}
    versions = f"Python {platform.python_version()}, " + versions_of(sys.executable, ("torch", "accel-meta"))
    if args.peer:
        peers = {**measured(args.peer, "accelerate"), **started(args.peer, "accelerate", "accelerate")}
        versions += ", " + versions_of(args.peer, ("accelerate",))
    text = table(ours, peers, versions)
    print(text)
    if args.keep:
        DOCS.mkdir(parents=True, exist_ok=True)
        (DOCS / "loop.md").write_text("# The loop, the loader and the command line\n\n" + text)
        (DOCS / "loop.json").write_text(json.dumps({"accel": ours, "peer": peers}, indent=2) + "\n")


if __name__ == "__main__":
    main()
