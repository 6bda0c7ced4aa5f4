"""Memory on one process: what counts as used up, giving it back, and the search for a batch size."""

import errno
import gc
import inspect
import random
import resource
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel_core.errors import CapabilityError, CollectiveError, ConfigError
from accel_state import memory
from accel_state.memory import (
    BatchSizeCallError,
    clear_device_cache,
    find_executable_batch_size,
    release_memory,
    should_reduce_batch_size,
)
from accel_state.memory.sizes import Sizes, largest

MIB = 2**20


def _wrapped():
    error = CollectiveError("all_gather_object failed")
    error.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    return error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError("Unable to allocate 8 GiB for an array"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 123 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("NPU out of memory. Tried to allocate 1 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("RESOURCE_EXHAUSTED: Attempting to allocate 1.00G"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        _wrapped(),
    ],
    ids=str,
)
def test_what_means_memory(error):
    assert should_reduce_batch_size(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x3 and 4x1)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."),
        OSError(errno.ENOSPC, "No space left on device"),
        CollectiveError("rank 1 ran out of memory"),
        KeyboardInterrupt(),
    ],
    ids=str,
)
def test_what_does_not(error):
    assert not should_reduce_batch_size(error)


def test_an_error_raised_while_memory_was_handled_is_another_error():
    error = KeyError("cleanup")
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    assert not should_reduce_batch_size(error)


# -- giving it back --------------------------------------------------------------------------------------


def test_release_memory_returns_none_for_each_and_frees_cycles():
    class Node:
        pass

    first, second = Node(), Node()
    first.other, second.other = second, first
    seen = weakref.ref(first)
    gc.disable()
    try:
        first, second = release_memory(first, second)
        assert (first, second) == (None, None)
        assert seen() is not None, "its names held it until now"
        release_memory()
        assert seen() is None
    finally:
        gc.enable()
    assert release_memory() == []


def test_clear_device_cache_collects_only_when_asked():
    loop = [torch.ones(3)]
    seen = weakref.ref(loop[0])
    loop.append(loop)
    gc.disable()
    try:
        del loop
        clear_device_cache()
        assert seen() is not None
        clear_device_cache(garbage_collection=True)
        assert seen() is None
    finally:
        gc.enable()


def test_signatures_are_the_documented_ones():
    kept = [
        name
        for name, parameter in inspect.signature(find_executable_batch_size).parameters.items()
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    assert kept == ["function", "starting_batch_size", "reduce_batch_size_fn"]
    assert str(inspect.signature(clear_device_cache)).startswith("(garbage_collection: 'bool' = False)")


# -- the search --------------------------------------------------------------------------------------------


def until(limit, tried):
    def train(batch_size, *rest, **named):
        tried.append(batch_size)
        if batch_size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (batch_size, *rest, named)

    return train


def test_sizes_are_halved_and_every_call_starts_anew():
    tried = []
    train = find_executable_batch_size(until(10, tried))
    assert train("model", rate=1) == (8, "model", {"rate": 1})
    assert tried == [128, 64, 32, 16, 8]
    assert train()[0] == 8
    assert tried[5:] == [128, 64, 32, 16, 8]


def test_as_a_decorator_with_and_without_arguments():
    @find_executable_batch_size
    def plain(batch_size, rate=0.1):
        """Train."""
        return batch_size

    @find_executable_batch_size(starting_batch_size=7)
    def given_a_size(batch_size):
        return batch_size

    assert (plain(), given_a_size()) == (128, 7)
    assert (plain.__name__, plain.__doc__, str(inspect.signature(plain))) == ("plain", "Train.", "(rate=0.1)")


def test_a_reducing_function_takes_nothing_or_the_size():
    tried = []
    sizes = iter([100, 50, 9])
    assert find_executable_batch_size(until(10, tried), reduce_batch_size_fn=lambda: next(sizes))()[0] == 9
    assert find_executable_batch_size(until(10, tried), 20, lambda size: size - 5)()[0] == 10
    assert tried == [128, 100, 50, 9, 20, 15, 10]


@pytest.mark.parametrize(
    ("returned", "what"), [(8, "less than 8"), (9, "less than 8"), (2.5, "whole"), (None, "whole")]
)
def test_a_reducing_function_that_does_not_reduce_ends_the_search(returned, what):
    tried = []
    with pytest.raises(ConfigError, match=what):
        find_executable_batch_size(until(1, tried), 8, lambda: returned)()
    assert tried == [8]


@pytest.mark.parametrize(
    "reduce", [None, lambda size: size // 3, lambda size: -1], ids=["halves", "thirds", "below zero"]
)
def test_reaching_zero(reduce):
    tried = []
    with pytest.raises(
        CapabilityError, match="No executable batch size found, reached zero: train"
    ) as caught:
        find_executable_batch_size(until(0, tried), 4, reduce)()
    assert isinstance(caught.value, RuntimeError)
    assert (
        f"batch sizes tried: {', '.join(map(str, tried))}; at last: CUDA out of memory" in caught.value.where
    )


@pytest.mark.parametrize("wrong", [0, -1, 2.0, "8", None, True])
def test_a_wrong_start(wrong):
    with pytest.raises(ConfigError, match="starting_batch_size"):
        find_executable_batch_size(lambda batch_size: None, starting_batch_size=wrong)


def test_other_errors_pass_untouched():
    calls = []

    @find_executable_batch_size
    def train(batch_size):
        calls.append(batch_size)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="^mine$") as caught:
        train()
    assert calls == [128]
    assert caught.traceback[-1].name == "train"


class Trainer:
    def train(self, batch_size):
        return batch_size


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: None, "takes no batch size"),
        (lambda *, batch_size: None, "takes no batch size"),
        (Trainer.train, "is a method"),
        (64, "needs a function, not int"),
    ],
    ids=["none", "by name only", "method", "number"],
)
def test_a_function_without_a_place_for_the_size(function, message):
    with pytest.raises(BatchSizeCallError, match=message) as caught:
        find_executable_batch_size(function)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("function", [Trainer().train, partial(lambda a, b: a, b=1), lambda *sizes: sizes[0]])
def test_functions_that_have_one(function):
    assert find_executable_batch_size(function, 3)() == 3


def test_calls_that_do_not_fit_show_the_right_one():
    @find_executable_batch_size
    def train(batch_size, model, rate=0.1):
        return batch_size

    with pytest.raises(BatchSizeCallError, match="A batch size was passed to train.*") as caught:
        train(64, "model", 0.5)
    assert caught.value.fix == "call train(model, rate=0.1)"
    with pytest.raises(
        BatchSizeCallError, match=r"train\(\) does not fit: missing a required argument: 'model'"
    ):
        train()
    with pytest.raises(BatchSizeCallError, match=r"train\('m', speed=1\) does not fit: .*'speed'"):
        train("m", speed=1)
    assert train("m") == 128


def test_a_type_error_of_the_function_itself_is_its_own():
    @find_executable_batch_size
    def train(batch_size):
        return len(batch_size)

    with pytest.raises(TypeError, match="has no len") as caught:
        train()
    assert type(caught.value) is TypeError


# -- what a failed attempt leaves ----------------------------------------------------------------------------


def test_locals_of_a_failed_attempt_are_gone_before_the_next():
    seen = []

    def deep(batch_size, held):
        own = torch.ones(2)
        seen.append(weakref.ref(own))
        if batch_size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    @find_executable_batch_size(starting_batch_size=4)
    def train(batch_size):
        assert all(each() is None for each in seen)
        held = torch.ones(2, requires_grad=True)
        loop = [held]
        loop.append(loop)
        seen.append(weakref.ref(held))
        try:
            deep(batch_size, held)
        except torch.OutOfMemoryError as error:
            raise RuntimeError("out of memory in deep") from error
        return batch_size

    assert train() == 1
    assert len(seen) == 6


def test_an_exception_that_is_being_handled_outside_is_left_alone():
    @find_executable_batch_size(starting_batch_size=2)
    def train(batch_size):
        if batch_size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def outer():
        kept = [1]
        yield kept
        raise ValueError("outside")

    traces = []
    try:
        list(outer())
    except ValueError as error:
        train()
        traces.append(error.__traceback__.tb_next)
    assert traces[0].tb_frame.f_locals["kept"] == [1]


def test_generators_start_each_attempt_alike():
    def train(batch_size, limit):
        drawn = random.random(), np.random.rand(), torch.rand(1).item()
        if batch_size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return drawn

    found = find_executable_batch_size(train, starting_batch_size=8)
    results = []
    for limit in (8, 1):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        results.append(found(limit))
    assert results[0] == results[1]


@pytest.mark.world(1)
def test_a_real_limit_of_memory(pool):
    """The system gives this process 200 MiB more than it has: what a failed attempt held must come back."""

    def run():
        tried = []

        @find_executable_batch_size(starting_batch_size=64)
        def train(batch_size):
            tried.append(batch_size)
            held = []
            for _ in range(batch_size):
                held.append(torch.ones(32 * MIB // 4))
            return batch_size

        page = resource.getpagesize()
        held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * page
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (held + 200 * MIB, hard))
        try:
            return train(), train(), tried
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    ((first, second, tried),) = pool.run(1, run)
    assert first == second
    assert first in {2, 4}, "128 MiB fit into 200 when the heap is not in the way"
    assert tried[:4] == [64, 32, 16, 8]


# -- bisection --------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(0, 400))
def test_bisection_finds_the_largest_that_fits(start, limit):
    asked = []

    def fits(size):
        asked.append(size)
        return size <= limit

    assert largest(range(1, start + 1), fits) == min(start, limit)
    assert len(asked) <= start.bit_length() + 1
    divisors = Sizes(start, divisors=True)
    want = max((size for size in range(1, start + 1) if start % size == 0 and size <= limit), default=0)
    assert largest(divisors.ladder(), fits) == want


@given(st.integers(1, 300))
def test_sizes_go_down_to_zero(start):
    for sizes in (Sizes(start), Sizes(start, divisors=True)):
        size, steps = start, 0
        while size:
            below = sizes.below(size)
            assert 0 <= below < size
            size, steps = below, steps + 1
        assert steps <= start


def test_a_trial_is_bisected_and_the_function_runs_once_with_its_answer():
    trials, runs = [], []
    train = find_executable_batch_size(until(100, runs), 128, trial=until(37, trials))
    assert train("m") == (37, "m", {})
    assert runs == [37]
    assert len(trials) <= 8


def test_where_the_trial_was_too_hopeful_the_function_goes_on_down():
    runs = []
    assert find_executable_batch_size(until(10, runs), 128, trial=until(37, []))()[0] == 9
    assert runs == [37, 18, 9]


def test_a_trial_that_never_fits():
    runs = []
    with pytest.raises(CapabilityError, match="reached zero"):
        find_executable_batch_size(until(10, runs), 8, trial=until(0, []))()
    assert runs == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"keep_global_batch": 3}, "must be an Accelerator"),
        ({"trial": lambda size: 1, "reduce_batch_size_fn": lambda: 1}, "contradicts trial"),
        ({"reduce_batch_size_fn": 2}, "must be a function"),
    ],
)
def test_wrong_arguments(words, message):
    with pytest.raises(ConfigError, match=message):
        find_executable_batch_size(lambda batch_size: None, **words)


def test_a_trial_without_a_place_for_the_size():
    with pytest.raises(BatchSizeCallError, match="takes no batch size"):
        find_executable_batch_size(lambda batch_size: None, trial=lambda: None)
    assert memory.find_executable_batch_size is find_executable_batch_size
