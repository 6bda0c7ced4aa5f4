"""Every documented option, in both spellings, with its documented default."""

import argparse
import ast
from pathlib import Path

import pytest

from accel_cli.commands.launch import Launch
from accel_cli.launch_options import GROUPS

OPTIONS = {option.name: (option, group) for group in GROUPS for option in group.options}


def documented():
    """Return names, default, choices and kind of every line of the documented list."""
    lines = (Path(__file__).parent / "launch_flags.txt").read_text().splitlines()
    return [_case(line) for line in lines if line.startswith("   -") and "--help" not in line]


def _case(line):
    names, default, choices, kind = (part.strip() for part in line.split("|"))
    said = choices.removeprefix("choices").strip()
    return pytest.param(
        names.split(","),
        ast.literal_eval(default.removeprefix("default").strip()),
        None if said == "-" else ast.literal_eval(said),
        kind,
        id=names,
    )


@pytest.fixture(scope="module")
def parser():
    made = argparse.ArgumentParser(allow_abbrev=False)
    Launch().configure(made)
    return made


@pytest.mark.parametrize(("names", "default", "choices", "kind"), documented())
def test_a_documented_option(parser, names, default, choices, kind):
    long = next(name for name in names if name.startswith("--")).removeprefix("--").replace("-", "_")
    option, _ = OPTIONS[long]
    assert set(names) == set(option.spellings())
    # A switch that is off may be documented as None or False.
    assert (option.default or None) == (default or None)
    assert (list(option.choices) if option.choices else None) == choices
    assert (option.kind is None) == (kind in ("StoreTrue", "StoreConst"))
    value = [] if option.kind is None else [(choices or ["1"])[0]]
    parsed = [vars(parser.parse_args([name, *value, "script.py"])) for name in names]
    assert len(parsed[0]) == 2
    assert all(found == parsed[0] for found in parsed)


OURS = {"grace_period"}


def test_no_option_is_there_that_is_not_documented_or_ours():
    listed = {name.removeprefix("--").replace("-", "_") for case in documented() for name in case.values[0]}
    assert set(OPTIONS) - listed == OURS


def test_what_is_not_given_is_not_there(parser):
    assert vars(parser.parse_args(["script.py"])) == {"training_script": ["script.py"]}


@pytest.mark.parametrize(
    "option", [option for option, group in OPTIONS.values() if group.available], ids=lambda o: o.name
)
def test_what_can_be_used_is_described(option):
    assert len(option.help) > 10


def test_the_help_shows_what_can_be_used_and_names_the_rest(folder):
    done = folder.launch("--help")
    assert done.returncode == 0
    for text in (
        "--num_processes N",
        "Hardware Selection Arguments",
        "-t, --tee",
        "refused in this version",
        "DeepSpeed",
    ):
        assert text in done.stdout
    for text in ("--num-processes", "--zero_stage", "==SUPPRESS=="):
        assert text not in done.stdout
