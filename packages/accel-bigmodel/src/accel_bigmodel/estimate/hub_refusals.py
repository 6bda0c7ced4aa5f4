"""What the Hub refuses, and that it does not answer, in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accel_core.errors import CheckpointError

_CLIENTS = {"requests", "urllib3", "httpx", "httpcore", "httpx2", "httpcore2"}


class UnreachableError(CheckpointError):
    """Report a Hub that does not answer at all."""


@contextmanager
def answering(hub: Any, api: Any, name: str, revision: str | None) -> Iterator[None]:
    """Say in our words what the Hub refused."""
    errors = hub.errors
    page = f"{api.endpoint.rstrip('/')}/{name}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{name} is gated: its owner wants to know who reads it",
            where=page,
            fix="ask for access on that page, then log in with 'hf auth login' or set HF_TOKEN",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{name} has no revision {revision!r}", where=page) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no model {name} that you may see",
            where=page,
            fix="check the name; for a private model log in with 'hf auth login' or set HF_TOKEN",
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{name!r} is no name of a model: {error}") from error
    except errors.HfHubHTTPError as error:
        denied = getattr(error.response, "status_code", 0) in {401, 403}
        fix = "log in again with 'hf auth login', or set another HF_TOKEN" if denied else "try again later"
        raise CheckpointError(f"The Hub refused to answer: {_line(error)}", where=page, fix=fix) from error
    except errors.LocalEntryNotFoundError as error:
        raise UnreachableError(
            f"The Hub does not answer: {_line(error)}", where=page, fix="check the network"
        ) from error
    except Exception as error:
        if not _network(error):
            raise
        raise UnreachableError(
            f"The Hub does not answer: {_line(error)}", where=page, fix="check the network"
        ) from error


def _network(error: Exception) -> bool:
    """Tell whether a request failed; the client that the library uses depends on its version."""
    homes = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or bool(homes & _CLIENTS)


def _line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:300]


__all__ = ["UnreachableError", "answering"]
