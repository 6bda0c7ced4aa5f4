"""What this package does alone, run from its wheel with only what it declares."""

import tempfile
from pathlib import Path

from accel_trackers import JSONLinesTracker, read_run

with tempfile.TemporaryDirectory() as folder:
    tracker = JSONLinesTracker("smoke", logging_dir=folder, run_id="first")
    tracker.start()
    tracker.store_init_configuration({"rate": 0.5})
    for step in range(3):
        tracker.log({"loss": 1.0 / (step + 1)}, step=step)
    tracker.finish()
    run = read_run(Path(tracker.path))
    assert run.config == {"rate": 0.5}, run.config
    assert len(run.series("loss")) == 3, run.series("loss")
