"""What the command costs before the script runs: counted in modules, not in seconds."""

import os
import sys

import pytest

# Each costs more than the modules of ours that it would serve, or needs what may not be installed.
HEAVY = {
    *("torch", "yaml", "numpy", "rich", "typing_extensions", "importlib.metadata", "email", "json", "http"),
    *("subprocess", "asyncio", "socket", "logging", "multiprocessing", "concurrent.futures", "zipfile"),
    *("tempfile", "shutil", "unittest"),
}

WATCH = """
import sys
before = set(sys.modules)
def note():
    open("modules.txt", "w").write("\\n".join(sorted(set(sys.modules) - before)))
sys.addaudithook(lambda event, arguments: note() if event == "os.exec" else None)
from accel_cli.main import main
sys.argv[0] = "accel"
main()
note()
"""


@pytest.fixture
def modules(folder):
    def count(*words):
        folder.write("watch.py", WATCH)
        done = folder.run(command=[sys.executable, "-S", "-P", "watch.py", *words], env=_path())
        assert done.returncode == 0, done.stderr
        return set((folder.path / "modules.txt").read_text().splitlines())

    return count


def _path():
    """Return where packages are: with -S, which leaves the machine's own start-up files out of the count."""
    return {"PYTHONPATH": os.pathsep.join(sys.path)}


# Measured 46 and 91, with what every interpreter loads; the slack is for cutting our own in other ways.
@pytest.mark.parametrize(
    ("words", "most"),
    [(("--help",), 60), (("launch", "--cpu", "show.py"), 110)],
    ids=["help", "launch"],
)
def test_few_and_light_modules(modules, words, most):
    loaded = modules(*words)
    assert loaded & HEAVY == set()
    assert len(loaded) <= most, sorted(loaded)


def test_yaml_is_loaded_for_a_config_file_only(modules, folder):
    folder.write("conf.yaml", "mixed_precision: bf16\n")
    assert "yaml" in modules("launch", "--config_file", "conf.yaml", "show.py")
    assert "yaml" not in modules("launch", "show.py")


def test_only_the_chosen_command_is_imported(modules):
    assert "accel_cli.commands.env" not in modules("launch", "show.py")
    assert not {"accel_cli.commands.launch", "accel_cli.launch_options", "argparse"} & modules("--help")


def test_a_launch_works_where_torch_cannot_be_imported(folder):
    folder.write("block/torch/__init__.py", "raise ImportError('torch was imported')")
    done = folder.launch("--cpu", "show.py", env={"PYTHONPATH": str(folder.path / "block")})
    assert done.returncode == 0, done.stderr
    assert folder.shown()["torch"] is False
