"""The public names, and what importing the package costs."""

import subprocess
import sys

import pytest

import accel_data


def test_every_public_name_is_there():
    assert set(accel_data.__all__) <= set(dir(accel_data))
    for name in accel_data.__all__:
        assert getattr(accel_data, name).__name__ == name


def test_a_wrong_name_gets_the_nearest():
    with pytest.raises(AttributeError, match="Did you mean 'DataLoaderShard'"):
        accel_data.DataLoaderShards  # noqa: B018


def test_the_door_imports_nothing_heavy_and_no_other_package():
    code = (
        "import sys, accel_data; assert 'torch' not in sys.modules; "
        "import accel_data.dispatch, accel_data.prepare, accel_data.skip, accel_data.stateful; "
        "found = {m.partition('.')[0] for m in sys.modules if m.startswith('accel')}; "
        "assert found == {'accel_core', 'accel_data'}, found; assert 'torchdata' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
