"""What this package does alone, run from its wheel with only what it declares: no torch."""

import subprocess
import sys
import tempfile
from pathlib import Path

accel = str(Path(sys.executable).with_name("accel"))
shown = subprocess.run([accel, "--help"], check=True, capture_output=True, text=True).stdout
assert "launch" in shown, shown

with tempfile.TemporaryDirectory() as folder:
    script = Path(folder) / "script.py"
    script.write_text("import sys\nprint('ran with', *sys.argv[1:])\nsys.exit(7)\n")
    done = subprocess.run(
        [accel, "launch", "--cpu", str(script), "--lr", "1"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 7, done
    assert done.stdout == "ran with --lr 1\n", done
