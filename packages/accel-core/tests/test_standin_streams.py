"""The stand-in's streams run later, its events order them, and its log shows who forgot to wait."""

import pytest

pytest.importorskip("torch")

import torch

from accel_core.testing.standin.fixture import standin  # noqa: F401 - a fixture
from accel_core.testing.standin.races import races

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_copies_are_queued_and_events_order_them(standin):  # noqa: F811
    def run():
        device = torch.device("standin:1")
        source = torch.arange(4.0).pin_memory()
        assert source.is_pinned()
        assert not torch.empty(3).is_pinned()
        side = torch.Stream(device=device)
        torch.standin.set_delay(0.05)
        torch.accelerator.set_device_index(1)
        target = torch.empty(4, device=device)
        before = torch.accelerator.current_stream(device)
        torch.accelerator.set_stream(side)
        target.copy_(source, non_blocking=True)
        done = side.record_event()
        torch.accelerator.set_stream(before)
        early, queried = target.cpu().tolist(), done.query()
        before.wait_event(done)
        late = target.cpu().tolist()
        # Without non_blocking, and from memory that is not pinned, it has happened when the call returns.
        torch.accelerator.set_stream(side)
        target.copy_(source + 1)
        target.copy_(target.cpu() + 1, non_blocking=True)
        torch.accelerator.set_stream(before)
        at_once = target.cpu().tolist()
        done.synchronize()
        side.synchronize()
        torch.accelerator.synchronize(1)
        return all(each != each for each in early), queried, late, at_once, side.query(), done.query()

    late, at_once = [0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 5.0]
    assert standin.run(1, run) == [(True, False, late, at_once, True, True)]


def test_pinned_memory_is_counted_and_may_be_refused(standin):  # noqa: F811
    def run():
        held = torch.empty(100, pin_memory=True)
        counted = torch.standin.pinned_memory()
        del held
        torch.standin.set_pinning(False)
        with pytest.raises(RuntimeError, match="no memory can be pinned"):
            torch.empty(1, pin_memory=True)
        return counted, torch.standin.pinned_memory(), torch.standin.max_pinned_memory()

    assert standin.run(1, run) == [(400, 0, 400)]


def test_the_log_shows_who_forgot_to_wait(standin):  # noqa: F811
    def run():
        device = torch.device("standin:0")
        source = torch.arange(4.0).pin_memory()
        main, side = torch.accelerator.current_stream(device), torch.Stream(device=device)

        def traced(*, begin: bool, end: bool, keep: bool = False, host: bool = False):
            torch.standin.trace(True)
            target = torch.empty(4, device=device)
            if begin:
                side.wait_event(main.record_event())
            torch.accelerator.set_stream(side)
            target.copy_(source, non_blocking=True)
            torch.accelerator.set_stream(main)
            if end:
                main.wait_event(side.record_event())
            if host:
                side.synchronize()
            if keep:
                target.record_stream(side)
            else:
                target.cpu()
            del target
            torch.standin.trace(False)
            return [each.replace(str((0, side.stream_id)), "side") for each in races(torch.standin.traced())]

        return [
            traced(begin=True, end=True),
            traced(begin=False, end=True),
            traced(begin=True, end=False),
            traced(begin=True, end=False, host=True),
            traced(begin=True, end=False, keep=True),
        ]

    right, no_begin, no_end, host, kept = standin.run(1, run)[0]
    assert right == host == kept == []
    assert no_begin == ["write on stream side does not wait for write on stream (0, 0)"]
    assert no_end == [
        "read on stream (0, 0) does not wait for write on stream side",
        "free on stream (0, 0) does not wait for write on stream side",
    ]


def test_accesses_to_other_memory_are_no_races():
    log = [
        ("alloc", 0, 0, 100, 10),
        ("alloc", 0, 1, 120, 10),
        ("write", 0, 0, 105, 5),
        ("write", 0, 1, 120, 10),
        # Taken before the log began.
        ("write", 0, 1, 50, 10),
        ("write", 0, 0, 115, 5),
        ("free", 0, 0, 100, 10),
        ("free", 0, 0, 500, 10),
    ]
    assert races(log) == []
    assert races([*log[:4], ("read", 0, 1, 109, 1)]) == [
        "read on stream (0, 1) does not wait for write on stream (0, 0)"
    ]
