"""``accel launch``: start a script on one process or many, on one machine or several.

Also ``python -m accel_cli.commands.launch``; interpreter options, as in ``python -u -m ...``, are
passed on to the script's interpreter.
"""

from __future__ import annotations

import os
import sys
from argparse import PARSER, ArgumentParser, Namespace

from accel_core.config.location import default_path

from .. import config_file
from ..launch_options import GROUPS
from ..options import add_groups

_EPILOG = """\
Every option can be written with underscores or with dashes. What is not given is taken from the
environment (ACCELERATE_*), then the config file, then the defaults. Everything after the script
belongs to the script.

Understood, but refused in this version, because it would be ignored: the options of """


class Launch:
    """Start a script on one process or many."""

    name = "launch"
    help = "Start a script on one process or many, on this machine or several."

    def configure(self, parser: ArgumentParser) -> None:
        """Add every documented option, and the script with all that follows it."""
        parser.usage = "accel launch [options] script.py [arguments of the script ...]"
        titles = [group.title.removesuffix(" Arguments") for group in GROUPS if not group.available]
        parser.epilog = _EPILOG + ", ".join(titles) + "."
        add_groups(parser, GROUPS)
        parser.add_argument(
            "training_script",
            nargs=PARSER,
            metavar="script.py",
            help="the script, and the arguments it is to get",
        )

    def run(self, arguments: Namespace) -> int:
        """Resolve the settings, check them, and hand over to a launcher; does not return when that worked."""
        from ..discovery import find
        from ..settings import plan

        given = dict(vars(arguments))
        command = given.pop("training_script")
        if command[0] == "--":
            command = command[1:]
        chosen = plan(given, _from_file(given), command)
        launcher = find(chosen.launcher, "accel.launchers")()
        launcher.check(chosen.spec)
        code: int = launcher.launch(chosen.spec)
        return code


def _from_file(given: dict[str, object]) -> config_file.FromFile:
    """Return what the named config file says, or the default one where there is one."""
    named = given.pop("config_file", None)
    if named is not None:
        return config_file.settings(str(named))
    default = default_path()
    if not os.path.isfile(default):
        return config_file.NOTHING
    found = config_file.settings(default)
    if not given.get("quiet"):
        print(f"accel launch: settings that are not given come from {default}", file=sys.stderr)
    return found


if __name__ == "__main__":
    from ..main import run

    sys.exit(run(Launch(), sys.argv[1:]))
