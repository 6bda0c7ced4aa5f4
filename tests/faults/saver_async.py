"""The same process as ``saver.py``, whose saves run in the background of a program that goes on."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import torch

from accel_state.checkpoint import BackgroundSaver, CheckpointStore, Files


def load_saver():
    """Return the module of this folder that saves while the program waits."""
    spec = importlib.util.spec_from_file_location("faults_saver", Path(__file__).with_name("saver.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save(path: str, value: int, size: int, files: Files | None = None) -> None:
    """Save a checkpoint in which everything is ``value``, and change everything while it is written."""
    saver = BackgroundSaver(lambda channel: CheckpointStore(channel, files=files))
    state = {"a": torch.full((size,), float(value)), "b": torch.full((3,), value)}
    momentum = torch.full((size // 2,), value, dtype=torch.bfloat16)
    snapshot = saver.snapshot(path)
    try:
        snapshot.tensors("unit/model", state)
        snapshot.tensors("unit/optimizer", {"m": momentum})
        snapshot.json("run", {"value": value})
        (snapshot.directory("engine") / "state.bin").write_bytes(bytes([value]) * 3000)
        saver.submit(path, snapshot, step=value)
    except BaseException:
        snapshot.release()
        raise
    while saver.busy:
        momentum.add_(1)
        state["a"].add_(1)
        saver.check()
        time.sleep(0.0005)
    saver.wait()


if __name__ == "__main__":
    saver = load_saver()
    saver.save = save
    if sys.argv[1:2] == ["fill"]:
        saver.fill(sys.argv[2])
    else:
        saver.serve()
