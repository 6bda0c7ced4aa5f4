"""Several processes: hand over to torch's elastic launcher, in an interpreter of its own."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn

from accel_core.errors import LaunchError
from accel_core.protocols.command import LaunchSpec

from ..interpreter import command_line
from ..target import check_target
from .exec import become

OPTIONS = frozenset(
    {
        "role",
        "rdzv_backend",
        "rdzv_conf",
        "max_restarts",
        "grace_period",
        "monitor_interval",
        "log_dir",
        "tee",
        "quiet",
        "debug",
    }
)


class ElasticLauncher:
    """Start the processes of this machine through ``torch.distributed.run``, and wait for them.

    This process is replaced by the one that imports torch, so there is one parent only: it gets
    the signals, passes them on to the workers, gives them time to leave, and exits as the first worker
    that failed.
    """

    name = "elastic"

    def check(self, spec: LaunchSpec) -> None:
        """Raise LaunchError for what cannot be started: sizes, addresses, a busy port, no such script."""
        unknown = sorted(set(spec.options) - OPTIONS)
        if unknown:
            raise LaunchError(f"The elastic launcher has no option {', '.join(unknown)}")
        per_machine, left = divmod(spec.num_processes, spec.num_machines)
        if left or not per_machine:
            raise LaunchError(
                f"{spec.num_processes} processes cannot be shared equally by {spec.num_machines} machines",
                fix=f"make --num_processes (over all machines) a multiple of {spec.num_machines}",
            )
        if not 0 <= spec.machine_rank < spec.num_machines:
            raise LaunchError(
                f"--machine_rank {spec.machine_rank} is not one of the {spec.num_machines} machines",
                fix=f"number them from 0 to {spec.num_machines - 1}",
            )
        if spec.num_machines > 1 and not (spec.main_address and spec.main_port):
            raise LaunchError(
                "Several machines need to know where machine 0 is",
                fix="give --main_process_ip and --main_process_port, the same on every machine",
            )
        check_target(spec)
        check_folder(spec.options.get("log_dir", ""))
        if spec.num_machines == 1 and spec.main_address:
            check_address(spec.main_address)
        if spec.main_port and spec.machine_rank == 0:
            check_port(spec.main_port)

    def launch(self, spec: LaunchSpec) -> NoReturn:
        """Become the launcher process; never return."""
        # -P: a file of the user's beside the script, say logging.py, must not shadow what torch imports.
        words = [sys.executable, "-P", "-m", "accel_cli.launchers._elastic_main", *_mode(spec)]
        become([*words, *torchrun_arguments(spec)], {**os.environ, **spec.environment})


def _mode(spec: LaunchSpec) -> list[str]:
    words = [f"--{name}" for name in ("quiet", "debug") if spec.options.get(name) == "true"]
    if "grace_period" in spec.options:
        words.append(f"--grace_period={spec.options['grace_period']}")
    return [*words, "--"]


def torchrun_arguments(spec: LaunchSpec) -> list[str]:
    """Return ``spec`` in the words of torchrun's own command line."""
    options = dict(spec.options)
    backend = options.get("rdzv_backend", "static")
    address = spec.main_address or "127.0.0.1"
    words = [
        f"--nnodes={spec.num_machines}",
        f"--nproc-per-node={spec.num_processes // spec.num_machines}",
        f"--rdzv-backend={backend}",
    ]
    if backend == "static":
        # Port 0 stands for "a free one": it is chosen as late as possible, see _elastic_main.
        words += [
            f"--node-rank={spec.machine_rank}",
            f"--master-addr={address}",
            f"--master-port={spec.main_port or 0}",
        ]
    else:
        words += [f"--rdzv-endpoint={address}:{spec.main_port or 0}", "--rdzv-id=accel"]
    for name in ("role", "rdzv_conf", "max_restarts", "monitor_interval", "log_dir", "tee"):
        if options.get(name):
            words.append(f"--{name.replace('_', '-')}={options[name]}")
    return [*words, "--no-python", *command_line(spec, unbuffered=True)]


def check_port(port: int) -> None:
    """Raise LaunchError when somebody on this machine listens on ``port`` already."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the rendezvous does: connections that are only waiting for their time-out are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise LaunchError(
                f"Port {port} cannot be used on this machine: {error.strerror}",
                where="--main_process_port (or main_process_port in the config file)",
                fix="take another port, or 0 for a free one; another run may still be using this one",
            ) from error


def check_address(address: str) -> None:
    """Raise LaunchError when ``address``, where the only machine is to be found, is not this machine.

    The processes would wait for each other there for a quarter of an hour.
    """
    import socket

    where = "--main_process_ip (or main_process_ip in the config file)"
    fix = "leave it out on one machine; for several, give --num_machines and --machine_rank too"
    try:
        found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise LaunchError(
            f"The address {address!r} is not known here: {error}", where=where, fix=fix
        ) from error
    for family, kind, protocol, _, place in found:
        with suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.bind(place)
            return
    raise LaunchError(f"The address {address!r} is not that of this machine", where=where, fix=fix)


def check_folder(path: str) -> None:
    """Raise LaunchError when nothing can be written under ``path``, which need not exist yet."""
    if not path:
        return
    there = os.path.abspath(path)
    while not os.path.exists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise LaunchError(f"{there!r} is a file", where=f"--log_dir {path}", fix="name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise LaunchError(f"{there!r} cannot be written to by this user", where=f"--log_dir {path}")


__all__ = ["OPTIONS", "ElasticLauncher", "check_address", "check_folder", "check_port", "torchrun_arguments"]
