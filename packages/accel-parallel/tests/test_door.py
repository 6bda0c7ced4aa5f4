"""The package door: every name is there, nothing is loaded before it is used; the README's examples run."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import accel_parallel

pytestmark = pytest.mark.cpu
README = Path(__file__).parents[1] / "README.md"


def test_every_name_is_there_and_documented():
    assert sorted(accel_parallel._NAMES) == sorted(set(accel_parallel.__all__) - {"__version__"})
    for name in accel_parallel._NAMES:
        thing = getattr(accel_parallel, name)
        assert thing.__doc__, name
        assert thing is getattr(importlib.import_module(thing.__module__), name)


def test_an_unknown_name_is_told_with_the_nearest():
    wrong = accel_parallel.__all__[0][:-1]
    with pytest.raises(AttributeError, match=f"Did you mean '{accel_parallel.__all__[0]}'"):
        getattr(accel_parallel, wrong)


def test_importing_the_package_loads_neither_torch_nor_its_modules():
    code = (
        "import sys, accel_parallel; "
        "print(sorted(m for m in sys.modules if m == 'torch' or m.startswith('accel_parallel.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['accel_parallel.__about__']"


EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_of_the_readme_run(example):
    exec(compile(example, str(README), "exec"), {})
