import pickle

import pytest

from accel_core import errors
from accel_core.errors import (
    AccelError,
    AlreadyShardedError,
    CollectiveError,
    ConfigError,
    Fault,
    NotInstalledError,
    TopologyError,
    UnevenDataError,
    UnknownNameError,
)

EXAMPLES = [
    AccelError("it broke", where="rank 3", fix="mend it"),
    ConfigError("settings", [Fault("a", 1, "is odd", "take 2")]),
    ConfigError("settings", [Fault("a", 1, "is odd"), Fault("b", None, "is missing", "say it")]),
    UnknownNameError("device", "cudo", ["cuda", "cpu"]),
    NotInstalledError("tracker", "jsonl", "accel-trackers"),
    UnevenDataError("ended", ended=[1, 3], where="step 4", fix="pad"),
    CollectiveError("shapes differ", per_rank=["[1]", "[2]"]),
    TopologyError("impossible", where="environment"),
]


def test_text_has_what_where_and_fix():
    assert str(EXAMPLES[0]) == "it broke.\n  where: rank 3\n  fix:   mend it"
    assert str(AccelError("why?")) == "why?"


def test_one_fault_is_a_sentence_and_several_a_list():
    assert str(EXAMPLES[1]) == "settings: a=1: is odd.\n  fix:   take 2"
    assert (
        str(EXAMPLES[2])
        == "settings: 2 settings are wrong:\n  - a=1: is odd\n  - b=None: is missing (say it)"
    )


def test_an_unknown_name_has_the_nearest_and_the_known():
    error = EXAMPLES[3]
    assert (error.nearest, error.known) == ("cuda", ("cpu", "cuda"))
    assert str(error) == "Unknown device 'cudo'. Did you mean 'cuda'? Known: cpu, cuda."
    assert UnknownNameError("device", "x", []).nearest is None


def test_not_installed_has_the_pip_line():
    assert EXAMPLES[4].fix == "pip install accel-trackers"
    assert isinstance(EXAMPLES[4], ImportError)


@pytest.mark.parametrize("error", EXAMPLES, ids=[f"{type(e).__name__}-{i}" for i, e in enumerate(EXAMPLES)])
def test_errors_cross_processes_with_their_data(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)
    assert copy.args == error.args


def test_every_error_is_ours_and_in_the_tree_of_the_module():
    for name in errors.__all__:
        cls = getattr(errors, name)
        if cls is Fault:
            continue
        assert issubclass(cls, AccelError)
        assert name in errors.__doc__


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (ConfigError, ValueError),
        (UnknownNameError, ValueError),
        (NotInstalledError, ImportError),
        (TopologyError, ValueError),
        (AlreadyShardedError, ValueError),
    ],
)
def test_errors_are_also_what_python_programs_expect(cls, builtin):
    assert issubclass(cls, builtin)


def test_a_list_of_faults_is_followed_by_no_empty_line() -> None:
    assert str(AccelError("two:\n- a\n- b\n", where="here")) == "two:\n- a\n- b\n  where: here"
