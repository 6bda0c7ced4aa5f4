"""Which loop a line of code is in: told from the frames of whoever iterates, without torch."""

import pytest

from accel_core.cursor import LoaderCursor, calling_path, side_by_side
from accel_core.window import GradientWindow


class Loader:
    """Does with the window what a prepared loader does."""

    def __init__(self, window, batches, *, padded=True):
        self.window, self.batches, self.padded = window, batches, padded

    def __iter__(self):
        cursor = LoaderCursor(self)
        # The frames of this module are the user's here; the loader's own is this generator.
        self.window.push(cursor)
        try:
            for number in range(self.batches):
                cursor.valid, cursor.world_batch = (
                    (3, 4) if self.padded and number == self.batches - 1 else (None, 4)
                )
                yield cursor.hand_out([number])
        finally:
            self.window.remove(cursor)


def together(window):
    outer, inner = window.cursors
    return side_by_side(outer, inner, calling_path())


def passed(loader):
    yield from loader


def with_zip(window, a, b):
    return [together(window) for _ in zip(a, b, strict=True)]


def with_generators(window, a, b):
    return [together(window) for _ in zip(passed(a), passed(b), strict=True)]


def by_hand(window, a, b):
    one, other = iter(a), iter(b)
    found = []
    for _ in range(2):
        next(one)
        next(other)
        found.append(together(window))
    return found


def second_by_hand(window, a, b):
    other = iter(b)
    found = []
    for _ in a:
        next(other)
        found.append(together(window))
    return found


def second_by_hand_in_a_function(window, a, b):
    other = iter(b)

    def step():
        next(other)
        return together(window)

    return [step() for _ in a]


def given_by_one_generator(window, a, b):
    def pairs():
        for one in a:
            for other in b:
                yield one, other

    return [together(window) for _ in pairs()][:2]


def advanced_in_a_function(window, a, b):
    other = iter(b)

    def advance():
        next(other)

    found = []
    for _ in a:
        advance()
        found.append(together(window))
    return found


@pytest.mark.parametrize(
    "loop",
    [
        with_zip,
        with_generators,
        by_hand,
        second_by_hand,
        second_by_hand_in_a_function,
        given_by_one_generator,
        advanced_in_a_function,
    ],
    ids=lambda f: f.__name__,
)
def test_side_by_side(loop):
    window = GradientWindow()
    assert loop(window, Loader(window, 2), Loader(window, 2)) == [True, True]


def nested(window, a, b):
    found = []
    for _ in a:
        for _ in b:
            found.append(together(window))
    return found


def nested_in_a_function(window, a, b):
    def evaluate():
        return [together(window) for _ in b]

    found = []
    for _ in a:
        found += evaluate()
    return found


def nested_in_generators(window, a, b):
    def evaluate():
        for _ in passed(b):
            yield together(window)

    found = []
    for _ in passed(a):
        found += list(evaluate())
    return found


def asked_from_below(window, a, b):
    def ask():
        return together(window)

    found = []
    for _ in a:
        for _ in b:
            found.append(ask())
    return found


def main_is_a_generator(window, a, b):
    def main():
        for _ in a:
            for _ in b:
                yield together(window)

    return list(main())


@pytest.mark.parametrize(
    "loop",
    [nested, nested_in_a_function, nested_in_generators, asked_from_below, main_is_a_generator],
    ids=lambda f: f.__name__,
)
def test_one_in_the_other(loop):
    window = GradientWindow()
    assert loop(window, Loader(window, 2), Loader(window, 2)) == [False] * 4


def test_a_loop_that_ended_on_padding_is_remembered_until_the_next_begins():
    window = GradientWindow()
    for _ in Loader(window, 2):
        assert window.closed is None
    assert window.closed == (3, 4, None, 0)
    for _ in Loader(window, 2, padded=False):
        assert window.closed is None
    assert window.closed is None
    for _ in Loader(window, 3):
        break
    assert window.closed is None, "the batch in hand had no padding"


def test_an_inner_loop_is_remembered_for_the_batch_in_whose_body_it_ran():
    window = GradientWindow()
    outer = Loader(window, 2, padded=False)
    for (number,) in outer:
        if number == 0:
            for _ in Loader(window, 1):
                pass
            assert window.closed.outer is window.active
            assert window.closed.number == window.active.number == 1
        else:
            assert window.closed.number != window.active.number
    assert window.closed is None, "the outer loop has gone on since, and ended without padding"


def test_batches_are_known_while_they_are_in_hand():
    class Tensor:
        shape = (4,)

    class View(Tensor):
        def __init__(self, base):
            self._base = base

    cursor = LoaderCursor()
    first, second = Tensor(), Tensor()
    cursor.hand_out({"x": first, "n": 1})
    assert cursor.holds(first)
    assert cursor.holds(View(first))
    assert not cursor.holds(second)
    assert not cursor.holds(1), "plain values are shared"
    cursor.valid = 3
    cursor.hand_out({"x": second})
    assert (cursor.held(first), cursor.holds(first), cursor.number) == (True, False, 2)
    del first
    assert all(made() is None for made in cursor.previous), "nothing is kept alive"
