"""One process: become the script."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from accel_core.errors import LaunchError
from accel_core.protocols.command import LaunchSpec

from ..interpreter import command_line
from ..target import check_target


class ExecLauncher:
    """Replace this process by the script: same process id, nothing of ours left in its memory.

    Signals, exit code, standard streams and start-up time are the script's own, because there is
    no second process that could stand between.
    """

    name = "exec"

    def check(self, spec: LaunchSpec) -> None:
        """Raise LaunchError when there is more than one process to start, or nothing to run."""
        if spec.num_processes != 1 or spec.num_machines != 1:
            raise LaunchError(
                f"The exec launcher starts one process, not {spec.num_processes} on "
                f"{spec.num_machines} machines",
                fix="use the launcher 'elastic'",
            )
        if spec.options:
            raise LaunchError(
                f"The exec launcher has no use for {', '.join(sorted(spec.options))}",
                fix="use the launcher 'elastic'",
            )
        check_target(spec)

    def launch(self, spec: LaunchSpec) -> NoReturn:
        """Become the script; never return."""
        environment = {**os.environ, **spec.environment}
        if spec.main_address is not None:
            environment["MASTER_ADDR"] = spec.main_address
        if spec.main_port:
            environment["MASTER_PORT"] = str(spec.main_port)
        become(command_line(spec), environment)


def become(words: list[str], environment: dict[str, str]) -> NoReturn:
    """Replace this process by ``words``; raise LaunchError when the system refuses."""
    # What was printed before must not be lost with this process, nor come after the script's own.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # whoever started us may have closed it
            stream.flush()
    try:
        os.execvpe(words[0], words, environment)  # noqa: S606  (there is no shell to inject into)
    except OSError as error:
        raise LaunchError(
            f"{words[0]!r} could not be started: {error.strerror}",
            fix="a script needs a first line such as #!/bin/sh to be run with --no_python",
        ) from error


__all__ = ["ExecLauncher", "become"]
