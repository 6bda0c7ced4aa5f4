"""The process that starts and watches the workers of one machine: the only one of ours that imports torch.

``python -P -m accel_cli.launchers._elastic_main [--quiet] [--debug] [--grace_period=N] -- <torchrun's own>``
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._workers import REQUEUE, Told, free_port, watched

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure


def main(arguments: Sequence[str]) -> int:
    """Run torch's elastic launcher; return the exit code of the first worker that failed, or 0.

    75 when it was stopped and every worker has saved and left with 75, so that a scheduler comes back.
    """
    split = list(arguments).index("--")
    mode, words = set(arguments[:split]), list(arguments[split + 1 :])
    from torch.distributed import run
    from torch.distributed.elastic import multiprocessing
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    args = run.parse_args(words)  # type: ignore[no-untyped-call]
    if args.rdzv_backend == "static" and args.master_port == 0:
        args.master_port = free_port()
    told = Told(_grace(mode), quiet="--quiet" in mode)
    # Where torch's agent looks for the class of its workers.
    shown: Any = vars(multiprocessing)
    shown["SubprocessContext"] = watched(
        told, shown["SubprocessContext"], ChildFailedError, SignalException, _first_sentence
    )
    told.listen()
    if "--debug" not in mode:
        # Its log of a failure says in twenty lines what `describe` says in two.
        import logging

        logging.disable(logging.ERROR)
    try:
        run.run(args)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        if "--debug" in mode:
            import traceback

            traceback.print_exc()
        if "--quiet" not in mode:
            print(describe(error, log_dir=args.log_dir), file=sys.stderr)
        return exit_code(error.failures[first_failure(error)].exitcode)
    except SignalException as stopped:
        if told.all_left():
            told.say(f"stopped by {stopped.sigval.name}; {_LEFT}")
            return REQUEUE
        told.say(f"stopped by {stopped.sigval.name}, and so were its processes.")
        return 128 + stopped.sigval
    except (OSError, RuntimeError, ValueError) as error:
        # Torch's own refusals: a rendezvous that it does not know, an address where nobody answers.
        if "--debug" in mode:
            raise
        print(f"accel launch: error: {_plain(error)}\n  fix:   {_OWN_ERROR_FIX}", file=sys.stderr)
        return 1
    return 0


_LEFT = f"the processes left with code {REQUEUE}, to be started again."


def _grace(mode: set[str]) -> float:
    given = [word.partition("=")[2] for word in mode if word.startswith("--grace_period=")]
    return float(given[0]) if given else 30.0


_OWN_ERROR_FIX = "check the options of the rendezvous; --debug shows where in torch's launcher this happened"


def _plain(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def first_failure(error: ChildFailedError) -> int:
    """Return the rank that failed first.

    When one fails, torch ends the others with SIGTERM within the same second, and lists them too:
    a rank that ended in another way goes before these.
    """
    return min(
        error.failures,
        key=lambda rank: (
            error.failures[rank].exitcode == -signal.SIGTERM,
            error.failures[rank].timestamp,
            rank,
        ),
    )


def exit_code(code: int) -> int:
    """Return ``code`` as a shell shows it: 128 + n for a process that signal n ended."""
    return code if code >= 0 else 128 - code


def describe(error: ChildFailedError, *, log_dir: str | None) -> str:
    """Return which ranks failed and how, the first one first, and where to look."""
    first = first_failure(error)
    codes = {each.exitcode for each in error.failures.values()}
    if REQUEUE in codes <= {REQUEUE, -signal.SIGTERM}:
        return f"accel launch: {_LEFT}"
    others = [
        rank for rank in error.failures if rank != first and error.failures[rank].exitcode != -signal.SIGTERM
    ]
    lines = [f"accel launch: {_sentence(rank, error.failures[rank])}" for rank in (first, *others)]
    cause = error.failures[first]
    if cause.error_file_data and cause.error_file != "<N/A>":
        lines.append(f"  cause: {cause.message.strip().splitlines()[-1]}")
    lines.append(f"  fix:   {_where_to_look(first, log_dir)}")
    return "\n".join(lines)


def _first_sentence(error: ChildFailedError) -> str:
    first = first_failure(error)
    return _sentence(first, error.failures[first])


def _where_to_look(rank: int, log_dir: str | None) -> str:
    if log_dir:
        return f"rank {rank}'s output is under {log_dir}"
    return f"read rank {rank}'s output above; --log_dir FOLDER --tee 3 keeps the output of each rank apart"


def _sentence(rank: int, failure: ProcessFailure) -> str:
    who = f"rank {rank} (process {failure.pid})"
    if failure.exitcode < 0:
        return f"{who} was ended by {failure.signal_name()}."
    return f"{who} exited with code {failure.exitcode}."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
