"""What every implementation of `Launcher` must do."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pytest

from accel_core.errors import LaunchError
from accel_core.protocols import Launcher, LaunchSpec

from .base import Conformance, fresh_python, importable

SCRIPT = """
import json, os, pathlib, sys
out = pathlib.Path(sys.argv[1]) / (os.environ.get("RANK", "0") + ".json")
out.write_text(json.dumps({
    "argv": sys.argv[2:], "mark": os.environ.get("MARK"), "world": os.environ.get("WORLD_SIZE", "1"),
    "name": __name__,
}))
sys.exit(int(sys.argv[2]))
"""
BODY = """
import json
from accel_core.protocols import LaunchSpec
fields = json.loads(sys.argv[1])
fields["arguments"] = tuple(fields["arguments"])
launcher, spec = Class(), LaunchSpec(**fields)
launcher.check(spec)
sys.exit(launcher.launch(spec))
"""


class LauncherConformance(Conformance):
    """Override ``launcher``; its class must be importable and need no arguments.

    ``processes`` are the numbers of processes that it starts on this machine.
    """

    processes: ClassVar[tuple[int, ...]] = (1,)

    @pytest.fixture
    def launcher(self) -> Launcher:
        """Return the launcher, as its entry point's factory does."""
        raise NotImplementedError

    @pytest.fixture
    def script(self, tmp_path: Path) -> Path:
        """Return a script that notes how it was started and exits with its second argument."""
        path = tmp_path / "noting.py"
        path.write_text(SCRIPT, encoding="utf-8")
        return path

    def test_it_is_a_launcher(self, launcher: Launcher) -> None:
        """Its name is there."""
        assert isinstance(launcher, Launcher)
        assert launcher.name

    def test_check_accepts_what_can_be_started(self, launcher: Launcher, script: Path) -> None:
        """A script that is there passes for every number of processes."""
        for number in self.processes:
            launcher.check(LaunchSpec(script=str(script), num_processes=number))

    def test_check_refuses_a_missing_script(self, launcher: Launcher, tmp_path: Path) -> None:
        """The path is named, before anything is started."""
        with pytest.raises(LaunchError, match=r"no_such_script\.py"):
            launcher.check(
                LaunchSpec(script=str(tmp_path / "no_such_script.py"), num_processes=self.processes[0])
            )

    def test_check_refuses_unknown_options(self, launcher: Launcher, script: Path) -> None:
        """An option that it does not understand is named and not ignored."""
        spec = LaunchSpec(
            script=str(script), num_processes=self.processes[0], options={"no_such_option": "1"}
        )
        with pytest.raises(LaunchError, match="no_such_option"):
            launcher.check(spec)

    def test_launch(self, launcher: Launcher, script: Path, tmp_path: Path) -> None:
        """Every process gets its arguments and variables; a clean end is exit code 0."""
        for number in self.processes:
            done = self._launch(launcher, script, tmp_path, number, "0")
            assert done.returncode == 0, done.stderr
            notes = [
                json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(number)
            ]
            expected = {"argv": ["0", "a b", "--flag"], "mark": "ü", "world": str(number), "name": "__main__"}
            assert notes == [expected] * number

    def test_exit_code_is_the_scripts(self, launcher: Launcher, script: Path, tmp_path: Path) -> None:
        """A script that fails fails the launch, with its own code."""
        for number in self.processes:
            done = self._launch(launcher, script, tmp_path, number, "3")
            assert done.returncode == 3, done.stderr

    def _launch(
        self, launcher: Launcher, script: Path, folder: Path, number: int, code: str
    ) -> subprocess.CompletedProcess[str]:
        if not importable(launcher):
            pytest.skip("the class of the launcher cannot be imported by name")
        arguments = (str(folder), code, "a b", "--flag")
        spec = LaunchSpec(
            script=str(script), arguments=arguments, num_processes=number, environment={"MARK": "ü"}
        )
        fields: dict[str, Any] = asdict(spec)
        return fresh_python(launcher, BODY, json.dumps(fields))


__all__ = ["LauncherConformance"]
