"""What a profile records and writes is read back from the files that torch wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from accel import Accelerator
from accel.utils import ProfileKwargs
from accel_core.errors import CapabilityError, ConfigError, StateError
from accel_state import process


def events(path: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == name]


def multiply(count: int = 1) -> None:
    left, right = torch.ones(40, 50), torch.ones(50, 60)
    for _ in range(count):
        left @ right


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    process.reset()


def test_without_anything_the_profiler_is_given_and_nothing_written(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with accelerator.profile() as profiler:
        multiply(3)
    assert isinstance(profiler, torch.profiler.profile)
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts["aten::mm"] == 3
    assert not list(tmp_path.iterdir())


def test_flops_memory_shapes_and_stacks_are_recorded(accelerator: Accelerator, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    handler = ProfileKwargs(
        activities=["cpu"],
        record_shapes=True,
        profile_memory=True,
        with_stack=True,
        with_flops=True,
        with_modules=True,
        output_trace_dir=str(folder),
    )
    with accelerator.profile(handler) as profiler:
        multiply(2)
        torch.nn.Linear(4, 3)(torch.ones(2, 4))
    path = folder / "profile_0.json"
    assert list(folder.iterdir()) == [path]
    averages = {event.key: event for event in profiler.key_averages()}
    # Two multiplications of 40 x 50 by 50 x 60, an addition and a multiplication for each product.
    assert averages["aten::mm"].flops == 2 * 2 * 40 * 50 * 60
    # Two results of 40 x 60 fp32.
    assert averages["aten::mm"].self_cpu_memory_usage == 2 * 4 * 40 * 60
    trace = json.loads(path.read_text())
    assert [trace[key] for key in ("record_shapes", "profile_memory", "with_stack", "with_flops")] == [1] * 4
    for event in events(path, "aten::mm"):
        assert event["args"]["Input Dims"] == [[40, 50], [50, 60]]
    assert 4 * 40 * 60 in {event["args"]["Bytes"] for event in events(path, "[memory]")}
    assert any("multiply" in event["name"] for event in trace["traceEvents"] if "name" in event)


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")
def test_a_schedule_writes_one_trace_for_each_cycle(accelerator: Accelerator, tmp_path: Path) -> None:
    seen: list[int] = []
    handler = ProfileKwargs(
        activities=["cpu"],
        schedule_option={"skip_first": 2, "wait": 1, "warmup": 1, "active": 3, "repeat": 2},
        on_trace_ready=lambda profiler: seen.append(profiler.step_num),
        output_trace_dir=str(tmp_path),
    )
    with accelerator.profile(handler) as profiler:
        for step in range(15):
            multiply(step)
            profiler.step()
    # Recorded are the steps 4 to 6 and 9 to 11, and step number n multiplies n times.
    assert seen == [7, 12]
    names = ("profile_0.json", "profile_0_1.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert [len(events(tmp_path / name, "aten::mm")) for name in names] == [4 + 5 + 6, 9 + 10 + 11]
    for name, steps in zip(names, ((4, 5, 6), (9, 10, 11)), strict=True):
        marks = {f"ProfilerStep#{step}" for step in steps}
        trace = json.loads((tmp_path / name).read_text())["traceEvents"]
        assert {event["name"] for event in trace if event["name"].startswith("ProfilerStep#")} == marks


def test_the_documented_loop_that_ends_too_early_is_told(pool: Any, tmp_path: Path) -> None:
    """Eight steps of which ten are skipped record nothing."""

    def run() -> tuple[list[str], list[str]]:
        import logging

        told: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("accel_state").addHandler(handler)
        option = {"wait": 5, "warmup": 1, "active": 3, "repeat": 2, "skip_first": 10}
        kwargs = ProfileKwargs(schedule_option=option, output_trace_dir=str(tmp_path))
        with Accelerator(cpu=True, kwargs_handlers=[kwargs]).profile() as profiler:
            for _ in range(8):
                profiler.step()
        logging.getLogger("accel_state").removeHandler(handler)
        return told, [path.name for path in tmp_path.iterdir()]

    ((told,), files) = pool.run(1, run)[0]
    assert "No trace was written" in told
    assert "8 step(s)" in told
    assert files == []


def test_every_rank_writes_a_trace_of_its_own(pool: Any, tmp_path: Path) -> None:
    def run() -> None:
        accelerator = Accelerator(cpu=True, kwargs_handlers=[ProfileKwargs(output_trace_dir=str(tmp_path))])
        with accelerator.profile():
            multiply(accelerator.process_index + 1)
            torch.distributed.all_reduce(torch.ones(3))
        # One rank alone: nobody waits for the other.
        if accelerator.is_main_process:
            with accelerator.profile(ProfileKwargs(output_trace_dir=str(tmp_path / "main"))):
                multiply()

    pool.run(2, run)
    for rank in (0, 1):
        path = tmp_path / f"profile_{rank}.json"
        assert len(events(path, "aten::mm")) == rank + 1
        assert len(events(path, "gloo:all_reduce")) == 1
        assert json.loads(path.read_text())["distributedInfo"]["rank"] == rank
    assert [path.name for path in (tmp_path / "main").iterdir()] == ["profile_0.json"]


def test_a_trace_is_written_when_the_body_fails(accelerator: Accelerator, tmp_path: Path) -> None:
    with pytest.raises(TypeError), accelerator.profile(ProfileKwargs(output_trace_dir=str(tmp_path))):
        multiply(count=sum([multiply() or 1, "no count"]))  # type: ignore[list-item]
    assert len(events(tmp_path / "profile_0.json", "aten::mm")) == 1


def test_build_gives_a_profiler_without_an_accelerator() -> None:
    with ProfileKwargs(activities=["cpu"], record_shapes=True).build() as profiler:
        multiply()
    (found,) = [
        event for event in profiler.key_averages(group_by_input_shape=True) if event.key == "aten::mm"
    ]
    assert found.input_shapes == [[40, 50], [50, 60]]


# -- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cuda", "xpu", "mtia", "hpu"])
def test_an_activity_that_this_machine_lacks_is_refused(accelerator: Accelerator, name: str) -> None:
    module = getattr(torch, name, None)
    if module is not None and module.is_available():
        pytest.skip(f"there is a device of kind {name} here")
    text = f"'{name}' cannot be recorded here[\\s\\S]*can record: cpu"
    handler = ProfileKwargs(activities=["cpu", name])
    with pytest.raises(CapabilityError, match=text), accelerator.profile(handler):
        pytest.fail("the body ran")


def test_a_profiler_in_a_profiler_is_refused(accelerator: Accelerator) -> None:
    with accelerator.profile() as outer:
        with pytest.raises(StateError, match="runs in this process already"), accelerator.profile():
            pytest.fail("the body ran")
        multiply()
    assert "aten::mm" in {event.key for event in outer.key_averages()}


def test_a_folder_that_cannot_be_is_said_before_the_body_runs(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    handler = ProfileKwargs(output_trace_dir=str(tmp_path / "file" / "folder"))
    with pytest.raises(ConfigError, match="output_trace_dir.*cannot be made"), accelerator.profile(handler):
        pytest.fail("the body ran")


def test_a_handler_that_takes_the_trace_away_is_told(accelerator: Accelerator, tmp_path: Path) -> None:
    handler = ProfileKwargs(
        on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(tmp_path / "mine.json")),
        output_trace_dir=str(tmp_path / "theirs"),
    )
    text = "on_trace_ready has written it elsewhere"
    with pytest.raises(StateError, match=text), accelerator.profile(handler):
        multiply()
    assert len(events(tmp_path / "mine.json", "aten::mm")) == 1


def test_another_kind_of_handler_is_refused(accelerator: Accelerator) -> None:
    with pytest.raises(ConfigError, match="profile_handler.*must be a ProfileKwargs or None"):
        accelerator.profile("cpu")  # type: ignore[arg-type]
