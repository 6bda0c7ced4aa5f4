"""What the system refuses, as a CheckpointError that says which file, why, and what to do."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CheckpointError

_FIXES = {
    errno.ENOSPC: "free some space, keep fewer checkpoints, or save elsewhere",
    errno.EDQUOT: "raise the quota, keep fewer checkpoints, or save elsewhere",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or save in smaller parts",
    errno.EACCES: "give the user of this process the right to write here, or save elsewhere",
    errno.EPERM: "give the user of this process the right to write here, or save elsewhere",
    errno.EROFS: "save to a file system that is mounted for writing",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.EIO: "look at the system's log: the device or the network file system failed",
    errno.ESTALE: "look at the network file system: the folder was replaced under this process",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EEXIST: "write every name once, on one rank",
}


def explained(error: OSError, doing: str, path: Path) -> CheckpointError:
    """Return a CheckpointError about ``doing`` something with ``path``."""
    code = error.errno or 0
    reason = error.strerror or type(error).__name__
    if code in {errno.ENOSPC, errno.EDQUOT}:
        reason += _space(path)
    return CheckpointError(
        f"Could not {doing}: {reason}",
        where=str(path),
        fix=_FIXES.get(code, "see the error of the operating system above"),
    )


@contextmanager
def explaining(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a CheckpointError about ``doing`` something with ``path``."""
    try:
        yield
    except OSError as error:
        raise explained(error, doing, path) from error


def _space(path: Path) -> str:
    for folder in path.parents:
        try:
            usage = shutil.disk_usage(folder)
        except OSError:
            continue
        return f" ({usage.free:,} of {usage.total:,} bytes are free)"
    return ""


__all__ = ["explained", "explaining"]
