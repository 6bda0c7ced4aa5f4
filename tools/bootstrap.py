"""Run nox sessions on a machine that has only Python and pip.

    python3 tools/bootstrap.py SESSION... [-- ARGS]
    python3 tools/bootstrap.py list

Makes a small environment in ``.nox/`` with nox and uv on first use, then starts nox. A session may be one of
noxfile.py or a group named below; what follows ``--`` goes to the sessions.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

from pip_settings import uv_environment

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".nox" / "bootstrap-{}.{}".format(*sys.version_info)
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
# What the README calls "test" is every suite that needs no rare hardware and no long time.
GROUPS = {"test": ["tests", "integration"]}


def main(arguments: list[str]) -> int:
    """Run the named sessions and return nox's exit code."""
    # The one file that an older Python may start.
    if sys.version_info < (3, 11):  # noqa: UP036
        print(f"accel needs Python 3.11 or newer; this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    split = arguments.index("--") if "--" in arguments else len(arguments)
    names, rest = arguments[:split], arguments[split:]
    if not names or names[0].startswith("-"):
        print(__doc__)
        return 2
    sessions = [session for name in names for session in GROUPS.get(name, [name])]
    python = ready()
    environment = {**os.environ, **uv_environment()}
    what = ["--list"] if names == ["list"] else ["--sessions", *sessions, *rest]
    command = [str(python), "-m", "nox", "--noxfile", str(ROOT / "noxfile.py"), *what]
    return subprocess.run(command, check=False, env=environment).returncode


def ready() -> Path:
    """Return the Python of an environment with nox and uv, made anew when what it needs has changed."""
    import tomllib

    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["nox"]
    wanted = hashlib.sha256(repr((needs, CONSTRAINTS.read_text(), sys.version)).encode()).hexdigest()
    python = HOME / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = HOME / "stamp"
    if not (stamp.exists() and stamp.read_text() == wanted):
        # Without pip inside: some systems ship Python without ensurepip, and the pip outside serves as well.
        venv.create(HOME, clear=True, with_pip=False)
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        subprocess.run([*pip, "install", "--quiet", "--constraint", str(CONSTRAINTS), *needs], check=True)
        stamp.write_text(wanted)
    return python


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
