"""The command itself: what is there, what is not, and what was meant."""

import os
import re
import subprocess

import pytest

from accel_cli.discovery import Offer, find, offers, one_line_help
from accel_core import plugins
from accel_core.errors import StateError, UnknownNameError
from accel_core.protocols.command import Command


def test_the_overview_lists_every_command_with_its_line(folder):
    done = folder.run("--help")
    assert done.returncode == 0
    # How wide the first column is, depends on what is installed.
    assert re.search(r"^  launch +Start a script on one process or many", done.stdout, re.MULTILINE)
    assert re.search(r"^  env +Show versions", done.stdout, re.MULTILINE)
    assert folder.run("-h").stdout == done.stdout


def test_nothing_is_a_mistake(folder):
    done = folder.run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: accel COMMAND" in done.stderr


def test_the_version(folder):
    assert folder.run("--version").stdout.startswith("accel-cli ")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["lanch"], "Did you mean 'launch'?"),
        (["completely-else"], "Known: "),
        (["config"], "'accel config' is not available in this version"),
        (["--cpu"], "options come after the sub-command"),
        (["env", "--confg_file", "x"], "Did you mean --config_file?"),
        (["env", "--config_file", "nope.yaml"], "nope.yaml"),
    ],
)
def test_a_mistake_is_answered_with_what_was_meant(folder, words, text):
    done = folder.run(*words)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["env"]], ids=" ".join)
def test_a_reader_that_leaves_is_no_error(folder, words):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody:
        done = subprocess.run(
            folder.command(*words), stdout=nobody, stderr=subprocess.PIPE, text=True, check=False, timeout=100
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_a_command_of_ours_that_is_not_installed_gets_the_pip_line(folder, monkeypatch, capsys):
    from accel_cli.main import main

    monkeypatch.setitem(plugins._OFFERED_BY[plugins.COMMANDS], "far-away", "accel-bigmodel")
    assert main(["far-away"]) == 2
    assert "pip install accel-bigmodel" in capsys.readouterr().err


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution with a command on the path, as pip would."""

    def put(name, lines, source="", help_line=""):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[accel.commands]\n{lines}\n[other]\nx = y:z\n")
        if source:
            (tmp_path / f"{name}.py").write_text(source)

    plugins.offered.cache_clear()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    yield put
    plugins.offered.cache_clear()


SOURCE = """
print("imported")
class Hello:
    name = "hello"
    help: str = "Say hello."
    def configure(self, parser):
        parser.add_argument("who")
    def run(self, arguments):
        print("hello", arguments.who)
        return 5
"""


def test_a_third_party_adds_a_command(folder, install):
    install("greeter", "hello = greeter:Hello [extra]  # note", SOURCE)
    folder.environ["PYTHONPATH"] = os.environ["PYTHONPATH"]
    overview = folder.run("--help").stdout
    assert re.search(r"^  hello +Say hello\.$", overview, re.MULTILINE)
    assert "imported" not in overview
    done = folder.run("hello", "you")
    assert (done.returncode, done.stdout) == (5, "imported\nhello you\n")
    assert folder.run("helo").stderr.count("Did you mean 'hello'?") == 1


def test_a_command_whose_source_says_nothing_is_described_by_where_it_is_from(install):
    install("quiet_one", "q = quiet_one.missing:Q")
    offer = next(offer for offer in offers() if offer.name == "q")
    assert offer == Offer("q", "quiet_one.missing:Q", "quiet-one")
    assert one_line_help(offer) == "from quiet-one"


def test_two_distributions_with_one_name_are_an_error(install):
    install("first", "same = first:A")
    install("second", "same = second:B")
    with pytest.raises(StateError, match="first:A"):
        find("same")


def test_the_quick_look_sees_what_the_metadata_library_sees():
    quick = {
        (offer.name, offer.value)
        for group in (plugins.COMMANDS, plugins.LAUNCHERS)
        for offer in offers(group)
    }
    slow = {
        (point.name, point.value)
        for group in (plugins.COMMANDS, plugins.LAUNCHERS)
        for point in plugins.offered(group).values()
    }
    assert quick == slow != set()


@pytest.mark.parametrize("name", ["launch", "env"])
def test_our_commands_satisfy_the_protocol(name):
    command = find(name)()
    assert isinstance(command, Command)
    assert command.name == name
    assert one_line_help(next(offer for offer in offers() if offer.name == name)) == command.help


def test_an_unknown_name_carries_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        find("launc")
    assert caught.value.nearest == "launch"
