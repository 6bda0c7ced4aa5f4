"""`PartialState`: documented properties and methods, in one process and in several."""

import os
from dataclasses import replace

import pytest
import torch

from accel_core.errors import ConfigError, StateError, UnknownNameError
from accel_state import AcceleratorState, PartialState, process


@pytest.fixture(autouse=True)
def fresh():
    yield
    process.reset()


def test_all_instances_are_views_of_one_state():
    first, second = PartialState(), PartialState()
    assert first == second
    assert hash(first) == hash(second)
    assert first.process_state is process.current()
    assert first == AcceleratorState()
    PartialState._reset_state()
    assert not first.initialized
    assert PartialState() != first


def test_alone():
    state = PartialState(cpu=True)
    assert (state.num_processes, state.process_index, state.local_process_index) == (1, 0, 0)
    assert state.is_main_process
    assert state.is_local_main_process
    assert state.is_last_process
    assert not state.use_distributed
    assert not state.debug
    assert not state.fork_launched
    assert state.device == torch.device("cpu")
    assert state.backend is None
    assert state.timeout is None
    assert state.initialized
    state.wait_for_everyone()
    state.set_device()
    state.destroy_process_group()
    assert repr(state).splitlines() == [
        "Distributed environment: NO",
        "Num processes: 1",
        "Process index: 0",
        "Local process index: 0",
        "Device: cpu",
    ]


def test_default_device_is_the_first_accelerator_or_the_cpu():
    assert PartialState(cpu=True).default_device.type == (
        torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    )


def test_cpu_after_another_device_says_what_differs():
    PartialState()
    process._current = replace(process.current(), device=torch.device("cuda", 0))
    with pytest.raises(StateError, match=r"device: set up on cuda:0, asked for cpu"):
        PartialState(cpu=True)


def test_an_unknown_setting_gets_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'timeout'"):
        PartialState(timeot=3)


@pytest.mark.world(2, 4)
def test_in_a_group(pool, world):
    def run():
        state = PartialState()
        shown = repr(state)
        assert "Backend: gloo" in shown
        assert "Timeout: 0:30:00" in shown
        assert state.use_distributed
        return (
            state.process_index,
            state.num_processes,
            state.is_main_process,
            state.is_last_process,
            state.distributed_type == "MULTI_CPU",
        )

    assert pool.run(world, run) == [
        (rank, world, rank == 0, rank == world - 1, True) for rank in range(world)
    ]


@pytest.mark.world(4)
def test_two_machines_of_two(pool, world):
    """Local ranks 0 1 0 1: what is done once per machine happens twice."""

    def run():
        state = PartialState()
        done = []
        state.on_local_main_process(lambda: done.append("local main"))()
        state.on_main_process(lambda: done.append("main"))()
        state.on_last_process(lambda: done.append("last"))()
        state.on_local_process(lambda: done.append("local 1"), local_process_index=1)()
        state.print("hello from a machine")
        return done

    env = [{"LOCAL_RANK": str(r % 2), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": str(r // 2)} for r in range(4)]
    found = pool.run(world, run, env=env)
    assert found == [["local main", "main"], ["local 1"], ["local main"], ["last", "local 1"]]
    assert ["hello from a machine" in text for text in pool.output] == [True, False, True, False]


@pytest.mark.world(2)
def test_decorators_with_and_without_arguments(pool, world):
    def run():
        state = PartialState()

        @state.on_main_process
        def plain(a, b=1):
            """Add."""
            return a + b

        @state.on_main_process()
        def called():
            return "called"

        @state.on_process(process_index=1)
        def second():
            return "second"

        @state.on_local_process(local_process_idx=1)
        def local():
            return "local"

        assert plain.__name__ == "plain"
        assert plain.__doc__ == "Add."
        return plain(1, b=2), called(), second(), local(), state.on_process(lambda: 7, process_index=0)()

    assert pool.run(world, run) == [(3, "called", None, None, 7), (None, None, "second", "local", None)]


def test_decorators_refuse_what_would_never_run():
    state = PartialState()
    with pytest.raises(ConfigError, match="process_index=None: must be a whole number"):
        state.on_process(lambda: 1)
    with pytest.raises(ConfigError, match="process_index=-1"):
        state.on_process(process_index=-1)
    with pytest.raises(ConfigError, match="second name"):
        state.on_local_process(local_process_index=0, local_process_idx=0)
    with pytest.raises(ConfigError, match="function=3: must be a function"):
        state.on_main_process(3)


@pytest.mark.world(2)
def test_the_main_process_goes_first(pool, world, tmp_path):
    def run():
        state = PartialState()
        for context in (state.main_process_first, state.local_main_process_first):
            path = tmp_path / context.__name__
            with context():
                seen = path.exists()
                if state.is_main_process:
                    path.write_text("there")
            yield_seen.append(seen)
            state.wait_for_everyone()
        return yield_seen

    yield_seen: list[bool] = []
    assert pool.run(world, run) == [[False, False], [True, True]]


@pytest.mark.world(2)
def test_a_failure_of_the_first_does_not_hang_the_others(pool, world):
    def run():
        state = PartialState()
        try:
            with state.main_process_first():
                if state.is_main_process:
                    raise OSError("disk full")
                return "ran"
        except OSError as error:
            return str(error)

    assert pool.run(world, run) == ["disk full", "ran"]


@pytest.mark.world(2)
def test_split_between_processes(pool, world):
    def run():
        state = PartialState()
        with state.split_between_processes(["a dog", "a cat", "a chicken"], apply_padding=True) as part:
            padded = part
        with AcceleratorState().split_between_processes(["a dog", "a cat", "a chicken"]) as part:
            return padded, part

    assert pool.run(world, run) == [
        (["a dog", "a cat"], ["a dog", "a cat"]),
        (["a chicken", "a chicken"], ["a chicken"]),
    ]


@pytest.mark.world(2)
def test_destroying_one_group_keeps_the_other(pool, world):
    def run():
        import torch.distributed as dist

        state = PartialState()
        extra = dist.new_group([0, 1])
        state.destroy_process_group(extra)
        state.wait_for_everyone()
        state.destroy_process_group()
        assert not dist.is_initialized()
        return os.environ["RANK"]

    assert pool.run(world, run) == ["0", "1"]
