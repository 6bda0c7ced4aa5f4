"""The guides' snippets run as they stand; the extension in them is found, and passes its suites."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guide"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (GUIDE / page).read_text(), re.DOTALL)


def run(folder: Path, *words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    if path is not None:
        clean["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), clean.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**clean, "HF_HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("number", range(3))
def test_first_steps(tmp_path: Path, number: int) -> None:
    snippets = blocks("first_steps.md", "python")
    assert len(snippets) == 3
    (tmp_path / "snippet.py").write_text(snippets[number])
    done = run(tmp_path, "-m", "accel_cli", "launch", "--cpu", "snippet.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


OWN_TESTS = {"first_steps.md", "extending.md"}
PAGES = sorted(page.name for page in GUIDE.glob("*.md") if page.name not in OWN_TESTS)


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs_in_order(tmp_path: Path, page: str) -> None:
    """Blocks of one page are one script: a later one may use what an earlier one made."""
    text = "\n".join(blocks(page, "python"))
    assert text, "a guide without code that runs"
    (tmp_path / "page.py").write_text(text)
    done = run(tmp_path, "-m", "accel_cli", "launch", "--cpu", "page.py")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_several_models_on_two_processes(tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text("\n".join(blocks("several_models.md", "python")))
    done = run(tmp_path, "-m", "accel_cli", "launch", "--cpu", "--num_processes", "2", "page.py")
    assert done.returncode == 0, done.stderr


def test_every_import_that_first_steps_names() -> None:
    for line in re.findall(r"`(from accel[. ][^`]*)`", (GUIDE / "first_steps.md").read_text()):
        exec(line.replace(", ...", ""), {})


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Put the guide's distribution where pip would, and its test beside it."""
    folder = tmp_path / "site"
    folder.mkdir()
    project = tomllib.loads(blocks("extending.md", "toml")[0])["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    name, version = project["name"], project["version"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines: list[str] = []
    for group, offers in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in offers.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for text in blocks("extending.md", "python"):
        name = text.partition("\n")[0].removeprefix("# ")
        (folder / name).write_text(text)
    return folder


def test_the_extension_is_found_and_used(tmp_path: Path, site: Path) -> None:
    listing = run(tmp_path, "-m", "accel_cli", "--help", path=site)
    assert re.search(r"csv-keys +List what a run of the CSV tracker recorded\.", listing.stdout)
    use = (
        "from accel_trackers import filter_trackers\n"
        "(cls,) = filter_trackers('csv', logging_dir='logs')\n"
        "tracker = cls('run', 'logs')\n"
        "tracker.start()\n"
        "tracker.log({'loss': 0.5, 'rate': 0.1}, step=1)\n"
        "tracker.finish()\n"
    )
    done = run(tmp_path, "-c", use, path=site)
    assert done.returncode == 0, done.stderr
    done = run(tmp_path, "-m", "accel_cli", "csv-keys", "logs/run.csv", path=site)
    assert (done.returncode, done.stdout) == (0, "loss\nrate\n")
    assert "Did you mean 'csv-keys'?" in run(tmp_path, "-m", "accel_cli", "csv-key", path=site).stderr


def test_the_extension_passes_its_suites(tmp_path: Path, site: Path) -> None:
    words = ("-m", "pytest", "-q", "-p", "accel_core.testing.plugin", "-p", "no:cacheprovider")
    done = run(tmp_path, *words, str(site / "test_accel_csv.py"), path=site)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed", done.stdout), done.stdout
    assert "failed" not in done.stdout


def test_every_group_and_suite_in_the_table_is_real() -> None:
    from accel_core import plugins
    from accel_core.testing import conformance

    text = (GUIDE / "extending.md").read_text()
    rows = re.findall(r"^\| `(accel\.\w+)` .*? \| `(\w+)` \|", text, re.MULTILINE)
    assert len(rows) == 6
    for group, suite in rows:
        assert plugins.names(group)
        assert issubclass(getattr(conformance, suite), conformance.Conformance)


def test_every_file_that_the_guides_name_is_there() -> None:
    root = GUIDE.parents[1]
    for page in GUIDE.glob("*.md"):
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (page.parent / link).exists(), link
        for name in re.findall(r"`(accel_\w+/[\w/]+\.py)`", text):
            assert list(root.glob(f"packages/*/src/{name}")), name
