from __future__ import annotations

import json
import subprocess
import sys

import pytest

from changed_packages import changed_files, concerned, touches
from workspace import ROOT, packages

ALL = {"accel-core", "accel-extra", "accel-state"}


def test_a_change_concerns_its_package_and_the_dependents(repository, git):
    known = packages(repository)
    (repository / "packages/accel-state/src/accel_state/new.py").write_text("")
    files = changed_files("HEAD", repository)
    assert files == ["packages/accel-state/src/accel_state/new.py"]
    assert concerned(files, known) == {"accel-state", "accel-extra"}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("packages/accel-core/src/accel_core/x.py", ALL),
        ("packages/accel-extra/tests/test_x.py", {"accel-extra"}),
        ("packages/accel-core/README.md", set()),
        ("pyproject.toml", ALL),
        ("noxfile.py", ALL),
        ("tools/constraints.txt", ALL),
        ("tools/bench/step.py", set()),
        ("docs/guide/start.md", set()),
    ],
)
def test_what_a_path_concerns(repository, file, expected):
    assert concerned([file], packages(repository)) == expected


def test_unknown_changes_concern_everything(repository):
    assert concerned(None, packages(repository)) == ALL


@pytest.mark.parametrize("file", ["packages/accel-stat/src/x.py", "packages/notes.txt"])
def test_a_path_of_no_package_is_an_error(repository, file):
    with pytest.raises(ValueError, match="belongs to no package"):
        concerned([file], packages(repository))


def test_on_main_the_commit_before_is_compared(repository, git):
    assert changed_files(None, repository) is None
    (repository / "noxfile.py").write_text("")
    git("add", ".")
    git("commit", "--quiet", "--message", "second")
    assert changed_files(None, repository) == ["noxfile.py"]


def test_on_a_branch_everything_since_main_is_compared(repository, git):
    git("checkout", "--quiet", "-b", "topic")
    for name in ("one.txt", "two.txt"):
        (repository / name).write_text("")
        git("add", ".")
        git("commit", "--quiet", "--message", name)
    git("mv", "LICENSE", "COPYING")
    assert changed_files(None, repository) == ["COPYING", "LICENSE", "one.txt", "two.txt"]


def test_an_unknown_commit_is_not_guessed_at(repository, git):
    assert changed_files("0" * 40, repository) is None


def test_patterns_cross_folders():
    assert touches(["packages/accel-core/src/a/b.py"], ["packages/*/src/"])
    assert not touches(["packages/accel-core/tests/b.py"], ["packages/*/src/"])
    assert touches(None, ["tests/faults/"])


def test_the_matrix_is_one_line_of_json():
    command = [sys.executable, str(ROOT / "tools" / "changed_packages.py"), "--all"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads(output) == [package.dist for package in packages()]
    assert output.count("\n") == 1
