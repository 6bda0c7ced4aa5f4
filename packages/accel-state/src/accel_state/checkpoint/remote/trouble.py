"""Which errors of a remote store pass by themselves, and what is said of those that do not."""

from __future__ import annotations

import errno
import os
from typing import Any

from accel_core.errors import CheckpointError

from ..address import shown


class DamagedError(CheckpointError):
    """Report a checkpoint that was reached and is not as it was saved; one before it may be used."""


_LASTING = {
    errno.EACCES,
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOSYS,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
    getattr(errno, "EDQUOT", errno.ENOSPC),
    getattr(errno, "EREMCHG", errno.ENOENT),
}
_MISTAKES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, TypeError, ValueError)
_PASSING_CODES = {"BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch"}
_PASSING_STATUS = {408, 425, 429}


def passes(error: BaseException) -> bool:
    """Tell whether the same request may work a moment later.

    Rights, names and full disks do not change by waiting. What is not known to last is taken to pass: the
    errors of networks have no common class.
    """
    if not isinstance(error, Exception) or isinstance(error, CheckpointError):
        return False
    response = _response(error)
    if response.get("Error", {}).get("Code") in _PASSING_CODES:
        return True
    status = _status(error, response)
    if status is not None and 400 <= status < 500:
        return status in _PASSING_STATUS
    if isinstance(error, (NotImplementedError, *_MISTAKES)) or "Credential" in type(error).__name__:
        return False
    return not (isinstance(error, OSError) and error.errno in _LASTING) and not isinstance(
        error, (FileNotFoundError, PermissionError)
    )


def no_bucket(error: BaseException) -> bool:
    """Tell whether a store says that there is no such bucket, rather than nothing in it."""
    return bool(_response(error).get("Error", {}).get("Code") == "NoSuchBucket")


def beyond(error: BaseException) -> bool:
    """Tell whether a store says that the object ends before what was asked for."""
    return _status(error, _response(error)) == 416


def garbled(error: BaseException | None) -> bool:
    """Tell whether the driver found that what came is not what the store says it has."""
    return error is not None and "Checksum" in type(error).__name__


def _response(error: BaseException) -> dict[str, Any]:
    """Return what the store answered, where the driver keeps it as botocore does."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _status(error: BaseException, response: dict[str, Any]) -> int | None:
    found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for name in ("status", "status_code", "code"):
        found = found if found is not None else getattr(error, name, None)
    return found if isinstance(found, int) else None


def unreachable(error: BaseException, doing: str, uri: str, tries: int = 1) -> CheckpointError:
    """Return a CheckpointError about ``doing`` something with ``uri``."""
    after = f" after {tries} tries" if tries > 1 else ""
    reason = str(error).strip() or "no reason given"
    return CheckpointError(
        f"Could not {doing}{after}: {type(error).__name__}: {reason[:500]}", where=shown(uri), fix=_fix(error)
    )


def _fix(error: BaseException) -> str:
    if isinstance(error, PermissionError) or _status(error, _response(error)) in {401, 403}:
        return "give these credentials the right to list, read, write and delete there"
    if "Credential" in type(error).__name__:
        return "set the credentials as the driver of this scheme wants them, or pass storage_options="
    if isinstance(error, FileNotFoundError):
        return "create the bucket, or correct its name"
    if isinstance(error, NotImplementedError):
        return "save elsewhere: the driver of this scheme cannot do that"
    if isinstance(error, OSError) and error.errno is not None and error.errno in _LASTING:
        return f"see the reason above ({os.strerror(error.errno)})"
    return "look whether the store can be reached, or give RemoteStore more patience="


__all__ = ["DamagedError", "beyond", "garbled", "no_bucket", "passes", "unreachable"]
