"""The guard alone: signals, deadlines, hooks, and that all ranks hear of them at one check."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any

import pytest

from accel_core.config import PreemptionKwargs
from accel_core.errors import CheckpointError, CollectiveError, ConfigError, StateError
from accel_state import preemption, process, rejoining
from accel_state.deadline import Deadline
from accel_state.lastwords import default_store
from accel_state.leaving import leave, read_marker, remove_marker, restart_count, write_marker
from accel_state.preemption import PreemptionGuard
from accel_state.stop_signals import StopSignals


@pytest.fixture
def guard() -> Iterator[Any]:
    made: list[PreemptionGuard] = []

    def make(**settings: Any) -> PreemptionGuard:
        made.append(PreemptionGuard(PreemptionKwargs(**settings)))
        return made[-1]

    yield make
    for each in made:
        each.close()


# -- one process -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_stops_at_the_next_check(guard: Any, name: str) -> None:
    mine = guard()
    assert not mine.check()
    assert mine.reason is None
    signal.raise_signal(getattr(signal, name))
    assert mine.check()
    assert mine.check()
    assert (mine.reason.kind, mine.reason.text, mine.reason.rank) == ("signal", name, 0)
    assert str(mine.reason) == f"{name}, rank 0"


def test_handlers_of_the_user_are_called_and_restored(guard: Any) -> None:
    seen: list[int] = []

    def own(number: int, _: object) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGUSR1, own)
    try:
        mine = guard()
        assert signal.getsignal(signal.SIGUSR1) is not own
        signal.raise_signal(signal.SIGUSR1)
        assert seen == [signal.SIGUSR1]
        assert mine.check()
        mine.close()
        assert signal.getsignal(signal.SIGUSR1) is own
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_signals_that_were_not_asked_for_are_left_alone(guard: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    guard(signals=("SIGUSR1",))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_sigterm_does_what_it_did_once_it_is_no_echo() -> None:
    """In a child, since it ends: the first is noted, an echo of it ignored, a later one kills."""
    child = os.fork()
    if child == 0:
        signals = StopSignals(["SIGTERM"], again_after=0.2)
        signals.watch()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.3)
        if signals.received is signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_who_leaves_is_not_ended_by_signals_that_come_until_the_very_end() -> None:
    """The launcher sends some to the others when the first is gone, which may be anywhere at their exit."""
    child = os.fork()
    if child == 0:
        signals = StopSignals(["SIGTERM", "SIGUSR1"], again_after=0)
        signals.watch()
        signals.ignore()
        signals.close()
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.raise_signal(number)
        os._exit(75)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75


def test_a_forked_child_is_none_of_the_ranks(guard: Any) -> None:
    """SIGUSR1 to every process of a job must not end a loader's worker; SIGTERM still does."""
    mine = guard()
    ends = []
    for name in ("SIGUSR1", "SIGTERM"):
        child = os.fork()
        if child == 0:
            signal.raise_signal(getattr(signal, name))
            os._exit(7 if mine.signals.received is None else 8)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert ends == [7, -signal.SIGTERM]
    assert not mine.check()


def test_another_thread_is_told_that_signals_are_not_heard(
    guard: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[PreemptionGuard] = []
    thread = threading.Thread(target=lambda: found.append(guard()), name="trainer")
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert "SIGTERM and SIGUSR1 will end this process as before" in caplog.text
    assert "'trainer'" in caplog.text
    found[0].request_stop()
    assert found[0].check()


def test_a_request_and_its_reason(guard: Any) -> None:
    mine = guard()
    mine.request_stop("the disk is nearly full")
    mine.request_stop("something later")
    assert mine.check()
    assert (mine.reason.kind, mine.reason.text) == ("request", "the disk is nearly full")


def test_hooks_are_asked_until_one_says_yes(guard: Any) -> None:
    answers = iter([False, None, "spot notice"])
    mine = guard()
    assert mine.stop_when(answers.__next__)
    assert [mine.check() for _ in range(4)] == [False, False, True, True]
    assert (mine.reason.kind, mine.reason.text) == ("hook", "spot notice")

    named = guard()

    @named.stop_when
    def enough() -> bool:
        return True

    assert named.check()
    assert named.reason.text == "enough"
    with pytest.raises(TypeError, match="something to call"):
        named.stop_when("enough")


def test_what_a_hook_raises_comes_out(guard: Any) -> None:
    mine = guard()
    mine.stop_when(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mine.check()


# -- deadlines -------------------------------------------------------------------------------------


def test_a_deadline_leaves_the_margin_and_one_and_a_half_of_the_longest_save(guard: Any) -> None:
    mine = guard(deadline=timedelta(hours=1), margin=600)
    assert not mine.check()
    mine.note_save(1000)
    mine.note_save(10)
    assert not mine.check()  # 2100 of 3600 seconds
    mine.note_save(2000, "runs/checkpoint_3", 7)
    assert mine.check()
    assert mine.reason.kind == "deadline"
    assert mine.reason.text.startswith("deadline ")
    assert (mine.saved, mine.step) == ("runs/checkpoint_3", 7)


@pytest.mark.parametrize("form", ["seconds", "span", "local time"])
def test_a_deadline_in_every_form(form: str) -> None:
    span = timedelta(seconds=100)
    local = datetime.now(UTC).astimezone().replace(tzinfo=None) + span
    deadline = {"seconds": 100, "span": span, "local time": local}[form]
    found = Deadline(PreemptionKwargs(deadline=deadline), {})
    assert 0 < found.at - time.monotonic() <= 100
    assert "PreemptionKwargs" in found.text


def test_a_zone_is_heeded_and_a_moment_that_is_over_stops_at_once(guard: Any) -> None:
    later = Deadline(PreemptionKwargs(deadline=datetime.now(UTC) + timedelta(hours=2)), {})
    assert 7000 < later.at - time.monotonic() <= 7200
    assert guard(deadline=datetime(2020, 1, 1, tzinfo=UTC)).check()


def test_the_end_of_the_job_counts_where_it_comes_first() -> None:
    end = {"SLURM_JOB_END_TIME": str(int(time.time()) + 50)}
    assert 40 < Deadline(PreemptionKwargs(), end).at - time.monotonic() <= 50
    both = Deadline(PreemptionKwargs(deadline=1000), end)
    assert "SLURM_JOB_END_TIME" in both.text
    assert "PreemptionKwargs" in Deadline(PreemptionKwargs(deadline=20), end).text
    assert Deadline(PreemptionKwargs(job_deadline=False), end).at == inf
    assert Deadline(PreemptionKwargs(), {}).at == inf
    for wrong in ("soon", "9" * 40):
        with pytest.raises(ConfigError, match=r"SLURM_JOB_END_TIME.*seconds since 1970"):
            Deadline(PreemptionKwargs(), {"SLURM_JOB_END_TIME": wrong})


def test_steps_count_by_the_middle_of_the_latest() -> None:
    """Ranks hear of a stop two looks later; one long step, an evaluation, must not move the end."""
    found = Deadline(PreemptionKwargs(deadline=100, margin=0), {})
    assert found.needed == 0
    found._looks.extend([0.0, 10.0, 20.0, 3000.0, 3010.0, 3020.0])
    assert found.needed == 20


# -- two processes ---------------------------------------------------------------------------------


@pytest.mark.world(2)
def test_one_rank_s_signal_stops_all_at_one_check(pool: Any, world: int) -> None:
    def run() -> tuple[int, str]:
        group = process.start(cpu=True).collectives
        mine = PreemptionGuard(collectives=group, every=0)
        at = 0
        for at in range(10):
            if at == 3 and group.rank == 1:
                signal.raise_signal(signal.SIGUSR1)
            if mine.check():
                break
        mine.close(wait=True)
        return at, str(mine.reason)

    # Cast at check 3, heard at check 4.
    assert pool.run(world, run) == [(4, "SIGUSR1, rank 1")] * 2


@pytest.mark.world(2)
def test_reasons_of_one_rank_reach_all(pool: Any, world: int) -> None:
    def run() -> list[tuple[str, str]]:
        group = process.start(cpu=True).collectives
        found = []
        for case in range(3):
            late = {"deadline": 1} if case == 0 and group.rank == 1 else {}
            mine = PreemptionGuard(PreemptionKwargs(**late), group, every=0)
            if group.rank == 1 and case == 1:
                mine.stop_when(lambda: "two minutes are left")
            if case == 2:
                mine.request_stop(f"rank {group.rank} is tired")
            assert not mine.check()
            assert mine.check()
            assert mine.reason is not None
            found.append((mine.reason.kind, mine.reason.text, mine.reason.rank))
            mine.close()
        return found

    first, second = pool.run(world, run)
    assert first == second
    assert [(kind, rank) for kind, _, rank in first] == [("deadline", 1), ("hook", 1), ("request", 0)]
    assert [text for _, text, _ in first][1:] == ["two minutes are left", "rank 0 is tired"]


@pytest.mark.world(2)
def test_quick_steps_share_a_vote_and_all_still_stop_at_one_check(pool: Any, world: int) -> None:
    """Ranks measure different times: how many checks a vote is for must be the same all the same."""

    def run() -> tuple[int, int, int]:
        group = process.start(cpu=True).collectives
        votes = 0

        class Counted(type(group)):  # type: ignore[misc]
            def group(self, ranks: Any) -> Any:
                return self

            def vote(self, ballot: int) -> Any:
                nonlocal votes
                votes += 1
                return super().vote(ballot)

        mine = PreemptionGuard(collectives=Counted(), every=0.1)
        for _ in range(60):
            time.sleep(0.002 * (1 + group.rank))
            assert not mine.check()
        before = votes
        if group.rank == 1:
            mine.request_stop()
        at = 0
        while not mine.check():
            at += 1
        mine.close(wait=True)
        return before, votes, at

    (first, end, at), other = pool.run(world, run)
    assert (first, end, at) == other
    assert first <= 20  # one for each check at first, then for up to 16 of them
    assert at <= 32


@pytest.mark.world(2)
def test_votes_of_the_guard_are_not_taken_for_others(pool: Any, world: int) -> None:
    def run() -> list[int]:
        group = process.start(cpu=True).collectives
        mine = PreemptionGuard(collectives=group, every=0)
        mine.check()
        # Another's votes, in between and on one rank before, on the other after the check.
        if group.rank == 0:
            other = group.vote(10)
            mine.check()
        else:
            mine.check()
            other = group.vote(20)
        found = other()
        mine.close(wait=True)
        return found

    assert pool.run(world, run) == [[10, 20]] * 2


@pytest.mark.world(2)
def test_ranks_that_meet_in_a_new_group_go_on_asking(pool: Any, world: int) -> None:
    """As `find_executable_batch_size` does where a rank has no memory left."""

    def run() -> tuple[bool, bool, bool]:
        state = process.start(cpu=True)
        mine = PreemptionGuard(collectives=state.collectives, every=0)
        before = mine.check()
        store = default_store()
        rejoining.leave(state)
        rejoining.rejoin(state, store, "again")
        if state.topology.rank == 1:
            mine.request_stop()
        found = before, mine.check(), mine.check()
        mine.close(wait=True)
        return found

    assert pool.run(world, run) == [(False, False, True)] * 2


@pytest.mark.world(2)
def test_ranks_at_different_batches_are_told_apart(pool: Any, world: int) -> None:
    def run() -> None:
        group = process.start(cpu=True).collectives
        mine = PreemptionGuard(collectives=group, every=0)
        assert not mine.check(5 + group.rank)
        mine.check(6)

    for error in pool.failures(world, run):
        assert isinstance(error, CollectiveError)
        assert "should_stop was asked for at different batches" in str(error)
        assert "batches by rank: 5, 6" in str(error)


@pytest.mark.world(2)
def test_a_rank_that_does_not_ask_is_named_in_debug_mode(pool: Any, world: int) -> None:
    def run() -> None:
        group = process.start(cpu=True).collectives
        mine = PreemptionGuard(collectives=group, every=0)
        for _ in range(4 - 2 * group.rank):
            mine.check()

    debug = {"ACCELERATE_DEBUG_MODE": "1", "ACCELERATE_DEBUG_TIMEOUT": "1"}
    error = pool.failures(world, run, env=debug)[0]
    assert isinstance(error, CollectiveError)
    assert "should_stop: vote waits for rank 1" in str(error)
    assert "equally often on all ranks" in str(error)


# -- one for the process ---------------------------------------------------------------------------


def test_a_process_has_one_guard_until_it_is_reset() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        mine = preemption.start(PreemptionKwargs(deadline=1000))
        assert preemption.start() is mine
        assert preemption.start(PreemptionKwargs(deadline=1000)) is mine
        with pytest.raises(StateError, match="guarded already"):
            preemption.start(PreemptionKwargs(deadline=2000))
        process.reset()
        assert preemption.current() is None
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        preemption.close()


# -- leaving ---------------------------------------------------------------------------------------


def test_a_marker_appears_whole_and_is_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert read_marker(folder) is None
    path = write_marker(folder, {"format": 1, "reason": "SIGTERM"})
    write_marker(folder, {"format": 1, "reason": "again"})
    assert read_marker(folder) == {"format": 1, "reason": "again"}
    assert [each.name for each in folder.iterdir()] == [path.name] == ["preempted.json"]
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"No marker can be read"):
        read_marker(folder)
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="no marker of this version"):
        read_marker(folder)
    remove_marker(folder)
    remove_marker(folder)
    assert read_marker(folder) is None
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_marker(tmp_path / "file", {})


@pytest.mark.parametrize("code", [0, -1, 126, True, "75", None])
def test_a_code_that_says_something_else_is_refused(guard: Any, code: Any) -> None:
    with pytest.raises(ConfigError, match="must be from 1 to 125"):
        leave(guard(), code)


def test_a_thread_cannot_leave(guard: Any) -> None:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            leave(guard())
        except StateError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


def test_restarts_are_counted_by_the_launcher() -> None:
    assert restart_count({}) == 0
    assert restart_count({"TORCHELASTIC_RESTART_COUNT": "3"}) == 3
    with pytest.raises(ConfigError, match="TORCHELASTIC_RESTART_COUNT"):
        restart_count({"TORCHELASTIC_RESTART_COUNT": "many"})
