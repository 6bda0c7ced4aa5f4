"""Environment variables that hold for a block only."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_core.environment import clear_environment, patch_environment
from accel_core.errors import ConfigError

NAMES = st.from_regex(r"accel_patch_[a-z]{1,3}", fullmatch=True)
VALUES = st.one_of(st.integers(), st.booleans(), st.text(st.characters(codec="ascii", min_codepoint=32)))


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.dictionaries(NAMES, st.just("before"), max_size=3))
def test_a_patch_holds_within_the_block_and_leaves_nothing(patch, before):
    start = dict(os.environ)
    try:
        os.environ.update({name.upper(): value for name, value in before.items()})
        outside = dict(os.environ)
        with patch_environment(**patch):
            assert {name: os.environ[name.upper()] for name in patch} == {n: str(v) for n, v in patch.items()}
            untouched = {name: value for name, value in outside.items() if name.lower() not in patch}
            assert untouched.items() <= os.environ.items()
        assert dict(os.environ) == outside
        with pytest.raises(ZeroDivisionError), patch_environment(**patch):
            _ = 1 / 0
        assert dict(os.environ) == outside
    finally:
        os.environ.clear()
        os.environ.update(start)


def test_a_cleared_environment_comes_back_and_what_was_set_meanwhile_goes(monkeypatch):
    monkeypatch.setenv("ACCEL_PATCH", "kept")
    with clear_environment():
        assert not os.environ
        os.environ["ACCEL_OTHER"] = "1"
        os.environ["ACCEL_PATCH"] = "changed"
    assert os.environ["ACCEL_PATCH"] == "kept"
    assert "ACCEL_OTHER" not in os.environ


@pytest.mark.parametrize("value", [None, "a\0b"])
def test_what_no_variable_can_hold_is_refused_before_anything_is_set(value):
    with pytest.raises(ConfigError, match="accel_patch"), patch_environment(accel_first=1, accel_patch=value):
        raise AssertionError
    assert "ACCEL_FIRST" not in os.environ
