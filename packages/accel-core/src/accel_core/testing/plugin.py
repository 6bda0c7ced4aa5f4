"""The pytest plug-in: ``pytest -p accel_core.testing.plugin``.

Markers ``cpu``, ``gpu``, ``mps`` and ``hpu`` declare the hardware that a test needs; where it is
missing the test is skipped with the reason, and the summary counts the skips. ``--hardware gpu``
keeps only the tests that declare it (``cpu``: those that declare none, or ``cpu``).
``@pytest.mark.world(2, 4)`` runs a test that takes the fixture ``world`` once per number; so does the
attribute ``worlds = (2, 4)`` of its class.
``@pytest.mark.slow`` marks tests of more than a few seconds.

Every test is checked for what it leaves behind, see `accel_core.testing.leaks`;
``@pytest.mark.leaks("env", reason="...")`` allows one kind. Works without torch.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from .hardware import MARKERS, missing
from .leaks import KINDS, Snapshot

if TYPE_CHECKING:
    from .pool import WorkerPool

# So that a failing check of a suite shows its values.
pytest.register_assert_rewrite("accel_core.testing.conformance")

_POOL = pytest.StashKey[Any]()
_NEEDS = "needs "
_OTHER_MARKERS = (
    "world(*sizes): runs on this many processes; the fixture `world` takes each in turn",
    "slow: takes more than a few seconds",
    f"leaks(*kinds, reason): may leave these behind ({', '.join(KINDS)})",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--hardware``."""
    group = parser.getgroup("accel")
    group.addoption("--hardware", choices=tuple(MARKERS), help="run only the tests of this hardware")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers."""
    for line in (*MARKERS.values(), *_OTHER_MARKERS):
        config.addinivalue_line("markers", line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``world`` once per number of its marker."""
    marker = metafunc.definition.get_closest_marker("world")
    sizes = marker.args if marker is not None else getattr(metafunc.cls, "worlds", ())
    own = any("world" in _argnames(mark) for mark in metafunc.definition.iter_markers("parametrize"))
    if not sizes or own or "world" not in metafunc.fixturenames:
        return
    metafunc.parametrize("world", sizes, ids=[f"world{size}" for size in sizes], scope="function")


def _argnames(mark: pytest.Mark) -> list[str]:
    names = mark.args[0] if mark.args else mark.kwargs.get("argnames", ())
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the hardware asked for."""
    hardware = config.getoption("--hardware")
    if hardware is None:
        return
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        (kept if _concerns(item, hardware) else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


def _concerns(item: pytest.Item, hardware: str) -> bool:
    declared = {name for name in MARKERS if item.get_closest_marker(name)}
    return hardware in (declared or {"cpu"})


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the pool's server import torch while tests that do not need it run."""
    if session.config.option.collectonly or not all(map(importlib.util.find_spec, ("torch", "cloudpickle"))):
        return
    if any("pool" in getattr(item, "fixturenames", ()) and not _lacking(item) for item in session.items):
        _pool(session.config).warm_up()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose hardware is missing, before any fixture is made."""
    lacking = _lacking(item)
    if lacking:
        pytest.skip(lacking)


def _lacking(item: pytest.Item) -> str:
    for name in MARKERS:
        marker = item.get_closest_marker(name)
        if marker is not None:
            count = int(marker.kwargs.get("count", marker.args[0] if marker.args else 1))
            reason = missing(name, count)
            if reason:
                return f"{_NEEDS}{name}: {reason}"
    return ""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Count the tests skipped for want of hardware, by hardware and reason."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        if isinstance(report.longrepr, tuple):
            reason = str(report.longrepr[2]).removeprefix("Skipped: ")
            if reason.startswith(tuple(f"{_NEEDS}{name}: " for name in MARKERS)):
                counts[reason.removeprefix(_NEEDS)] += 1
    for reason, number in sorted(counts.items()):
        name, _, why = reason.partition(": ")
        terminalreporter.write_line(f"hardware: {number} skipped for want of {name} ({why})")


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the pool."""
    pool = config.stash.get(_POOL, None)
    if pool is not None:
        pool.close()


def _pool(config: pytest.Config) -> WorkerPool:
    from .pool import WorkerPool

    if _POOL not in config.stash:
        config.stash[_POOL] = WorkerPool()
    pool: WorkerPool = config.stash[_POOL]
    return pool


@pytest.fixture(scope="session")
def pool(pytestconfig: pytest.Config) -> WorkerPool:
    """Return the session's pool of worker processes, see `accel_core.testing.pool.WorkerPool`."""
    pytest.importorskip("torch", reason="the pool of workers needs torch", exc_type=ImportError)
    pytest.importorskip("cloudpickle", reason="the pool of workers needs cloudpickle")
    return _pool(pytestconfig)


@pytest.fixture
def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    from .ports import free_port

    return free_port()


@pytest.fixture
def world() -> int:
    """Return the number of processes, one of those in the test's ``world`` marker."""
    raise pytest.UsageError("The fixture `world` needs a marker that says how many: @pytest.mark.world(2, 4)")


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves something behind, and say what."""
    allowed = _allowed(request.node)
    before = Snapshot.take()
    yield
    found = before.leaked(allowed)
    if found:
        lines = "".join(f"\n  - {line}" for line in found)
        pytest.fail(
            f"{request.node.name} left something behind:{lines}\n"
            'Where that is meant, say so: @pytest.mark.leaks("<kind>", reason="<why>")',
            pytrace=False,
        )


def _allowed(item: pytest.Item) -> frozenset[str]:
    kinds: set[str] = set()
    for marker in item.iter_markers("leaks"):
        unknown = set(marker.args) - set(KINDS)
        if unknown or not marker.args or not marker.kwargs.get("reason"):
            raise pytest.UsageError(
                f"leaks(...) of {item.name} needs kinds out of {', '.join(KINDS)} and a reason; "
                f"it has {marker.args} and reason={marker.kwargs.get('reason')!r}"
            )
        kinds.update(marker.args)
    return frozenset(kinds)
