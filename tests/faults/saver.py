"""A process that imports torch once and forks for every save that a test asks for, to be killed there.

Commands and answers are lines of JSON. ``at`` and ``how``: SIGKILL itself before the operation of that
number, or with half of it done. ``delay``: the parent sends SIGKILL after so many seconds. ``limit``: no
file may grow beyond so many bytes. ``user``: become this user first.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from accel_core.errors import CheckpointError
from accel_state.checkpoint import CheckpointStore, Files


class Killing(Files):
    """Count the operations, and end this process at one of them as ``kill -9`` does."""

    def __init__(self, at: int, how: str) -> None:
        self.at, self.how, self.count = at, how, 0

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name not in vars(Files):
            return found

        def counted(*arguments):
            self.count += 1
            if self.count != self.at:
                return found(*arguments)
            if self.how == "half":
                half = (
                    (arguments[0], arguments[1][: len(arguments[1]) // 2]) if name == "write" else arguments
                )
                found(*half)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        return counted


def save(path: str, value: int, size: int, files: Files | None = None) -> None:
    """Save a checkpoint in which everything is ``value``."""
    with CheckpointStore(files=files).save(path, step=value) as sink:
        sink.tensors("unit/model", {"a": torch.full((size,), float(value)), "b": torch.full((3,), value)})
        sink.tensors("unit/optimizer", {"m": torch.full((size // 2,), value, dtype=torch.bfloat16)})
        sink.json("run", {"value": value})
        (sink.directory("engine") / "state.bin").write_bytes(bytes([value]) * 3000)


def value_of(source) -> int:
    """Return what everything in a checkpoint agrees on; fail when it is a mixture."""
    found = {source.json("run")["value"], source.manifest.step}
    for name in ("unit/model", "unit/optimizer"):
        found |= {int(each) for tensor in source.tensors(name).values() for each in tensor.unique()}
    found |= set((source.directory("engine") / "state.bin").read_bytes())
    assert len(found) == 1, f"mixed: {found}"
    return found.pop()


def child(command: dict, answer: int) -> None:
    """Save as told, and write down what came of it."""
    if "limit" in command:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (command["limit"], resource.RLIM_INFINITY))
    if "user" in command:
        os.setuid(command["user"])
    files = Killing(command.get("at", 0), command.get("how", ""))
    said = {"error": ""}
    begin = time.perf_counter()
    try:
        save(command["path"], command["value"], command.get("size", 4000), files)
    except CheckpointError as error:
        said["error"] = str(error)
    os.write(answer, json.dumps(said | {"count": files.count, "took": time.perf_counter() - begin}).encode())


def serve() -> None:
    """Fork for each line of standard input, and answer with how the child ended."""
    for line in sys.stdin:
        command = json.loads(line)
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                child(command, writing)
            finally:
                os._exit(0)
        os.close(writing)
        if "delay" in command:
            time.sleep(command["delay"])
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        with os.fdopen(reading, "rb") as stream:
            text = stream.read()
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(json.dumps({"killed": killed} | (json.loads(text) if text else {})), flush=True)


def fill(folder: str) -> None:
    """Save on a small file system with ever less room; print each error, and what is there afterwards."""
    place, store = Path(folder), CheckpointStore()
    save(f"{folder}/one", 1, 4000)
    total = os.statvfs(folder).f_frsize * os.statvfs(folder).f_bavail
    errors, filler = [], place / "filler"
    for free in range(total // 8192 * 8192, -1, -8192):
        filler.write_bytes(b"x" * (total - free))
        error = ""
        try:
            save(f"{folder}/one", 2, 100_000)
        except (CheckpointError, OSError) as caught:
            # An OSError of what a component writes by itself stays what it is.
            error = str(caught)
        filler.unlink()
        source = store.open_latest(place)
        left = sorted(each.name for each in place.iterdir())
        errors.append((error, value_of(source), left))
        del source
        if not error:
            save(f"{folder}/one", 1, 4000)
    print(json.dumps(errors))


if __name__ == "__main__":
    if sys.argv[1:2] == ["fill"]:
        fill(sys.argv[2])
    else:
        serve()
