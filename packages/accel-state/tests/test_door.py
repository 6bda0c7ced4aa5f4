"""The public names, what importing the package loads, and the snippets of the README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import accel_state

README = Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_every_name_is_there_and_listed():
    assert set(accel_state.__all__) <= set(dir(accel_state))
    for name in accel_state.__all__:
        value = getattr(accel_state, name)
        assert getattr(value, "__name__", name).rpartition(".")[2] == name


def test_type_checkers_and_programs_see_the_same_names():
    text = Path(accel_state.__file__).read_text()
    assert sorted(re.findall(r"    from \S+ import (\w+) as \1", text)) == sorted(accel_state.__all__)


def test_importing_the_door_loads_nothing_behind_it():
    code = (
        "import sys, accel_state\n"
        "print('torch' in sys.modules, sorted(name for name in sys.modules if 'accel_state' in name))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False ['accel_state', 'accel_state.__about__']"


def test_a_wrong_name_gets_the_nearest():
    with pytest.raises(AttributeError, match="Did you mean 'PartialState'"):
        accel_state.PartailState  # noqa: B018


@pytest.mark.world(1, 2)
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.split("\n")[0])
def test_the_readme_runs(pool, world, snippet):
    pool.run(world, lambda: exec(snippet, {"__name__": "__main__"}))
