"""States of generators as bytes, and back."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_core.generators import pack_numpy, pack_python, unpack_numpy, unpack_python


@given(seed=st.integers(0, 2**64), draws=st.integers(0, 3))
def test_pythons_state_comes_back_exactly(seed, draws):
    generator = random.Random(seed)
    for _ in range(draws):
        generator.gauss(0, 1)
    state = generator.getstate()
    packed = pack_python(state)
    assert isinstance(packed, bytes)
    assert unpack_python(packed) == state


@pytest.mark.parametrize("kind", ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"])
def test_numpys_state_comes_back_exactly(kind):
    numpy = pytest.importorskip("numpy")
    generator = numpy.random.RandomState(getattr(numpy.random, kind)(7))
    generator.randn(3)
    state = generator.get_state(legacy=False)
    back = unpack_numpy(pack_numpy(state))
    expected = generator.randn(4).tolist()
    other = numpy.random.RandomState(getattr(numpy.random, kind)(1))
    other.set_state(_arrays(back, numpy))
    assert other.randn(4).tolist() == expected


def _arrays(state, numpy):
    if isinstance(state, dict):
        return {key: _arrays(value, numpy) for key, value in state.items()}
    return numpy.asarray(state) if hasattr(state, "typecode") else state


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\x00", b"[]", b"[3, 1, null]", b'{"a": 1}', b'[3, "%%", null]']
)
def test_other_bytes_are_refused(damage):
    with pytest.raises(ValueError, match="no state of Python's generator"):
        unpack_python(damage)
    with pytest.raises(ValueError, match="no state of NumPy's generator"):
        unpack_numpy(damage)
