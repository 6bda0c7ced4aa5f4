from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_core.errors import ConfigError
from accel_core.window import GradientWindow, LoaderCursor


def walk(window, losses, cursor=None, *, known=True):
    """Run a training loop with numbers for gradients; return the gradient of every optimizer step.

    The gradient of a loss is the loss itself, so the right step is the mean of its window. Exact
    fractions, so that nothing is hidden in rounding.
    """
    steps = []
    gradient = Fraction(0)
    for index, loss in enumerate(losses):
        if cursor is not None:
            cursor.remaining = len(losses) - index if known else None
            cursor.end = index == len(losses) - 1
        closes = window.advance()
        gradient += Fraction(loss) / window.divisor
        if closes:
            gradient *= Fraction(window.correction).limit_denominator(10_000)
            window.corrected()
            assert window.correction == 1.0
            steps.append(gradient)
            gradient = Fraction(0)
        window.leave()
    return steps, gradient


def means(losses, size):
    windows = [losses[start : start + size] for start in range(0, len(losses), size)]
    return [sum(map(Fraction, part)) / len(part) for part in windows]


losses = st.lists(st.integers(-100, 100), min_size=1, max_size=40)


@given(losses, st.integers(1, 12), st.booleans())
def test_every_step_is_the_mean_of_its_window_the_short_last_one_too(values, num_steps, known):
    window, cursor = GradientWindow(num_steps), LoaderCursor()
    window.push(cursor)
    steps, left = walk(window, values, cursor, known=known)
    window.remove(cursor)
    assert steps == means(values, num_steps)
    assert left == 0


@given(st.lists(losses, min_size=1, max_size=4), st.integers(1, 8), st.booleans())
def test_epochs_do_not_run_into_each_other(epochs, num_steps, known):
    window = GradientWindow(num_steps)
    for values in epochs:
        cursor = LoaderCursor()
        window.push(cursor)
        steps, _ = walk(window, values, cursor, known=known)
        window.remove(cursor)
        assert steps == means(values, num_steps)


@given(losses, losses, st.integers(1, 8))
def test_without_synchronising_at_the_end_windows_run_over_it(first, second, num_steps):
    window = GradientWindow(num_steps, sync_with_dataloader=False)
    steps = []
    for values in (first, second):
        cursor = LoaderCursor()
        window.push(cursor)
        done, _ = walk(window, values, cursor)
        steps += done
        window.remove(cursor)
    whole = (len(first) + len(second)) // num_steps
    assert len(steps) == whole
    # A window is a full one wherever it closes, so nothing needs a correction; what runs over the
    # end of the first loader is counted with the second one's start.
    assert window.position == (len(first) + len(second)) % num_steps
    assert window.divisor == num_steps


@given(losses, st.integers(1, 8))
def test_a_loop_without_a_prepared_loader_counts_to_the_full_window(values, num_steps):
    window = GradientWindow(num_steps)
    steps, _ = walk(window, values)
    assert steps == means(values[: len(values) // num_steps * num_steps], num_steps)
    assert window.position == len(values) % num_steps


def test_sync_gradients_is_true_before_the_first_and_at_each_close():
    window = GradientWindow(2)
    assert window.sync_gradients
    assert [window.advance() or window.leave() for _ in range(1)] == [None]
    assert not window.sync_gradients
    assert window.advance()
    assert window.sync_gradients


def test_the_inner_loader_speaks_and_the_outer_continues_after_it():
    window = GradientWindow(2)
    outer, inner = LoaderCursor("outer"), LoaderCursor("inner")
    assert window.active is None
    window.push(outer)
    window.push(inner)
    assert window.active is inner
    window.remove(inner)
    assert window.active is outer
    window.remove(inner)
    window.push(inner)
    window.remove(outer)
    assert window.active is inner
    window.remove(inner)
    assert window.active is None


def test_an_evaluation_inside_a_window_leaves_it_as_it_is():
    window = GradientWindow(4)
    training = LoaderCursor()
    training.remaining = 4
    window.push(training)
    window.advance()
    window.leave()
    evaluation = LoaderCursor()
    window.push(evaluation)
    evaluation.end = True
    window.remove(evaluation)
    training.remaining = 3
    assert not window.advance()
    assert (window.position, window.divisor) == (2, 4)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", None, True])
def test_a_wrong_number_of_steps(wrong):
    with pytest.raises(ConfigError, match="must be a whole number of at least 1"):
        GradientWindow(wrong)
