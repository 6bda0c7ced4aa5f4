"""Samples are counted once, for the loader that gradients come from."""

from accel_core.tally import SampleTally
from accel_core.window import GradientWindow, LoaderCursor


def hand_out(cursor: LoaderCursor, real: int | None, padding: int = 0) -> None:
    cursor.world_batch = None if real is None else real + padding
    cursor.valid = real if padding else None
    cursor.hand_out()


def test_everything_since_the_last_note_counts() -> None:
    tally, cursor = SampleTally(), LoaderCursor()
    for real in (3, 4):
        hand_out(cursor, real)
    tally.note(cursor, needed=True)
    tally.note(cursor, needed=True)
    hand_out(cursor, 1, padding=7)
    tally.note(cursor, needed=False)
    assert (tally.total, tally.notes, tally.unknown) == (8, 3, 0)


def test_what_nobody_can_count_is_not_zero() -> None:
    tally, cursor = SampleTally(), LoaderCursor()
    hand_out(cursor, 3)
    hand_out(cursor, None)
    hand_out(cursor, 3)
    tally.note(cursor, needed=True)
    tally.note(None, needed=True)
    tally.note(None, needed=False)
    assert (tally.total, tally.notes, tally.unknown) == (0, 0, 2)


def test_a_tally_begins_where_the_loop_is() -> None:
    cursor = LoaderCursor()
    hand_out(cursor, 5)
    tally = SampleTally([cursor])
    hand_out(cursor, 2)
    tally.note(cursor, needed=True)
    assert tally.total == 2


def test_a_window_notes_its_loader_in_backward_and_step() -> None:
    window, cursor = GradientWindow(), LoaderCursor()
    window.filled = True
    window.tally = SampleTally()
    window.push(cursor)
    hand_out(cursor, 2)
    window.filled = True
    hand_out(cursor, 2)
    window.complete()
    window.remove(cursor)
    window.complete()
    assert (window.tally.total, window.tally.unknown) == (4, 0)
    window.filled = True
    assert window.tally.unknown == 1


def test_a_micro_batch_can_be_taken_back() -> None:
    window = GradientWindow(3)
    for closes in (False, False, True):
        window.advance()
        window.retract()
        assert window.sync_gradients == (window.position == 0)
        assert window.advance() is closes
        window.filled = True
        window.leave()
    assert window.position == 0
