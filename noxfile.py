# /// script
# dependencies = ["nox>=2025.2.9", "uv", "filelock"]
# ///
"""Every check of this repository. The workflows, .ci/run and people run these same sessions.

The packages come from packages/*/pyproject.toml: a new one needs no edit here. All sessions but no_torch and
wheels share one environment (tools/environments.py).
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import changed_packages  # noqa: E402 - tools/ is put on the path above
import environments  # noqa: E402
from pip_settings import uv_environment  # noqa: E402
from workspace import packages  # noqa: E402

# The shared environment is made by tools/environments.py, not by nox.
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "layers", "tests", "integration"]


# The hardware that tests declare by a marker of accel_core.testing.
HARDWARE = ("cpu", "gpu", "mps", "hpu")
# Suites of tests/ that have a session of their own.
SEPARATE = ("faults", "models", "remote", "wheels")
LEAVES = ("preemption", "leaving", "deadline", "stop_signals", "joining")
# Slow suites, run by ci only when the change concerns what they cover.
SLOW = {
    "faults": (
        "packages/accel-state/src/accel_state/checkpoint/",
        *(f"packages/accel-state/src/accel_state/{name}.py" for name in LEAVES),
        "packages/accel-meta/src/accel/preemption_api.py",
        "packages/accel-cli/src/accel_cli/launchers/",
        "packages/accel-core/src/",
        "tests/faults/",
    ),
    "remote": ("packages/accel-state/src/accel_state/checkpoint/remote/", "tests/remote/"),
    "models": ("packages/accel-bigmodel/", "packages/accel-core/src/accel_core/weights/", "tests/models/"),
    "bench": ("tools/bench/",),
}
BASE = {"OMP_NUM_THREADS": "1", **uv_environment()}
# Two files at a time: many tests wait, for a rank or for a limit of seconds.
BY_TWO = ("-n", "2", "--dist", "loadfile")


@functools.cache
def shared() -> str:
    """Return the Python of the shared environment, brought up to date once per run of nox."""
    return str(environments.shared(BASE))


def script(name: str) -> str:
    """Return the path of a command installed in the shared environment."""
    return str(Path(shared()).with_name(name))


@functools.cache
def missing() -> dict[str, str]:
    """Return why each kind of hardware is not on this machine; an empty reason when it is."""
    code = (
        "import json; from accel_core.testing.hardware import missing\n"
        f"print(json.dumps([missing(name) for name in {HARDWARE}]))"
    )
    reasons = subprocess.run([shared(), "-c", code], check=True, capture_output=True, text=True).stdout
    return dict(zip(HARDWARE, json.loads(reasons), strict=True))


def pytest(session: nox.Session, *arguments: str, python: str | None = None) -> None:
    """Run pytest in the shared environment, or with ``python``; what the caller gave nox comes last."""
    session.run(python or shared(), "-m", "pytest", *arguments, *session.posargs, env=BASE, external=True)


@nox.session
def demo(session: nox.Session) -> None:
    """Train on the real handwritten digits: the same script on two processes, on one, and in bf16."""
    for options in (("--num_processes", "2"), (), ("--mixed_precision", "bf16")):
        launch = (script("accel"), "launch", "--cpu", *options, "docs/examples/digits.py")
        session.run(*launch, *session.posargs, env=BASE, external=True)


@nox.session
@nox.parametrize("hardware", HARDWARE)
@nox.parametrize("package", [package.dist for package in packages()])
def tests(session: nox.Session, package: str, hardware: str) -> None:
    """Run one package's own tests on one kind of hardware."""
    if missing()[hardware]:
        session.skip(missing()[hardware])
    # On a machine with nothing but a CPU, tests for other hardware stay: skipped and counted.
    only_cpu = all(missing()[other] for other in HARDWARE if other != "cpu")
    chosen = () if only_cpu else ("--hardware", hardware)
    pytest(session, *BY_TWO, f"packages/{package}/tests", *chosen)


@nox.session
def integration(session: nox.Session) -> None:
    """Run the tests that need several packages, and those of the tools."""
    folders = [
        path for path in sorted((ROOT / "tests").iterdir()) if path.is_dir() and path.name not in SEPARATE
    ]
    found = (str(path.relative_to(ROOT)) for path in folders if any(path.glob("test_*.py")))
    pytest(session, *BY_TWO, *found)


@nox.session
def faults(session: nox.Session) -> None:
    """Kill, corrupt and starve: what must survive does."""
    if not any((ROOT / "tests" / "faults").glob("test_*.py")):
        session.skip("tests/faults holds no tests yet")
    pytest(session, "tests/faults")


@nox.session
def remote(session: nox.Session) -> None:
    """Save to and load from a server that speaks S3, which breaks off, denies and garbles."""
    pytest(session, "tests/remote", python=str(environments.remote(BASE)))


@nox.session
def models(session: nox.Session) -> None:
    """Load, dispatch and quantize real model classes with random weights."""
    pytest(session, *BY_TWO, "tests/models", python=str(environments.models(BASE)))


@nox.session
def no_torch(session: nox.Session) -> None:
    """Run the packages that do not need torch where there is none; a test that needs it skips itself."""
    python, members = environments.without_torch(BASE)
    pytest(
        session,
        *(f"packages/{package.dist}/tests" for package in members),
        "tests/imports",
        python=str(python),
    )


@nox.session
def wheels(session: nox.Session) -> None:
    """Build every package, check each wheel's files, and try each one alone in a clean environment."""
    # Beside uv's environments, so that torch is linked into each rather than copied.
    pytest(session, "tests/wheels", "--basetemp", ".nox/wheels")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and layout with ruff."""
    for arguments in (("check",), ("format", "--check")):
        session.run(shared(), "-m", "ruff", *arguments, *session.posargs, external=True)


@nox.session
def types(session: nox.Session) -> None:
    """Check all types, strictly."""
    session.run(shared(), "-m", "mypy", *session.posargs, external=True)


@nox.session
def layers(session: nox.Session) -> None:
    """Check who may import whom."""
    session.run(script("lint-imports"), *session.posargs, external=True)


@nox.session
def api(session: nox.Session) -> None:
    """Compare the public names and signatures with the snapshots in docs/reference/api."""
    session.run(shared(), "tools/api_diff.py", *session.posargs, external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure side by side with plain PyTorch and with the peer; prints ratios, judges nothing."""
    for program in ("run.py", "saving.py", "bigmodel.py"):
        run = (shared(), f"tools/bench/{program}", "--peer", str(environments.peer(BASE)))
        session.run(*run, *session.posargs, env=BASE, external=True)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run all tests and show which lines none of them reaches, worker processes included."""
    session.run(shared(), "-m", "coverage", "erase", external=True)
    run = (shared(), "-m", "coverage", "run", "-m", "pytest", *(session.posargs or ("packages", "tests")))
    session.run(*run, env=BASE, external=True)
    session.run(shared(), "-m", "coverage", "combine", "--quiet", external=True)
    session.run(shared(), "-m", "coverage", "report", external=True)


@nox.session
def gpu(session: nox.Session) -> None:
    """Run every test that declares a GPU, in one go; without one, this is an error."""
    if missing()["gpu"]:
        session.error(missing()["gpu"])
    pytest(session, "--hardware", "gpu", "packages", "tests")


@nox.session
def ci(session: nox.Session) -> None:
    """Run what .ci/run adds to the tests: static checks, wheels, demo, slow suites that are concerned."""
    files = changed_packages.changed_files(os.environ.get("CHANGED_SINCE"))
    concerned = [name for name, covered in SLOW.items() if changed_packages.touches(files, covered)]
    for name in ["lint", "types", "layers", "api", "no_torch", "wheels", "demo", *concerned]:
        session.notify(name)
    for name in SLOW.keys() - set(concerned):
        session.log(f"{name}: nothing that it covers has changed")
