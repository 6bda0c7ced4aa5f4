"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_python_examples(capsys):
    (block,) = blocks("python")
    names = {"__name__": "readme"}
    exec(compile(block, str(README), "exec"), names)
    assert (capsys.readouterr().out, names["code"]) == ("hello you\n", 0)


def test_command_lines(folder):
    lines = [line.removeprefix("$ ").split() for line in blocks("console")[0].splitlines()]
    assert len(lines) == 4
    folder.write("train.py", "import os, sys; print('ran', *sys.argv[1:], flush=True)")
    folder.write("my_package/__init__.py", "")
    folder.write("my_package/train.py", "print('ran module')")
    printed = []
    for words in lines:
        if "--num_processes" in words:
            pytest.importorskip("torch")
        start = folder.command() if words[0] == "accel" else folder.command()[:1]
        done = folder.run(command=[*start, *words[1:]])
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    # Two ranks write to one stream unbuffered, as under torchrun, so their lines may mix.
    printed[1] = printed[1].count("ran")
    assert printed == ["ran --epochs 3\n", 2, "ran module\n", "ran\n"]
