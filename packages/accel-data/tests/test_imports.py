"""What importing the package costs."""

import subprocess
import sys


def test_the_door_imports_nothing_heavy_and_no_other_package():
    code = (
        "import sys, accel_data; assert 'torch' not in sys.modules; "
        "import accel_data.dispatch, accel_data.prepare, accel_data.skip, accel_data.stateful; "
        "found = {m.partition('.')[0] for m in sys.modules if m.startswith('accel')}; "
        "assert found == {'accel_core', 'accel_data'}, found; assert 'torchdata' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
