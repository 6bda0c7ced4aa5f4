"""Run the real command in a folder of its own, without the settings of the machine that tests run on."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

OURS = ("ACCELERATE_", "OMP_NUM_THREADS", "MASTER_", "CUDA_VISIBLE_DEVICES", "OMPI_", "PMI_", "MV2_")

SHOW = """
import json, os, sys
shown = {
    "argv": sys.argv, "name": __name__, "pid": os.getpid(), "torch": "torch" in sys.modules,
    "environ": dict(os.environ), "flags": {"dev": sys.flags.dev_mode, "orig": sys.orig_argv},
}
with open(f"shown.{os.environ.get('RANK', '0')}.json", "w") as file:
    json.dump(shown, file)
"""


class Folder:
    """A working folder with scripts, and the command run in it."""

    def __init__(self, path):
        self.path = path
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
        self.environ["HF_HOME"] = str(path / "home")

    def write(self, name, text):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def command(self, *words):
        return [sys.executable, "-m", "accel_cli", *map(str, words)]

    def run(self, *words, env=(), command=None):
        return subprocess.run(
            command or self.command(*words),
            cwd=self.path,
            env={**self.environ, **dict(env)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def launch(self, *words, **kwargs):
        return self.run("launch", *words, **kwargs)

    def shown(self, rank=0):
        return json.loads((self.path / f"shown.{rank}.json").read_text())


@pytest.fixture
def folder(tmp_path):
    made = Folder(tmp_path)
    made.write("show.py", SHOW)
    return made


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory):
    made = Folder(tmp_path_factory.mktemp("shared"))
    made.write("show.py", SHOW)
    return made
