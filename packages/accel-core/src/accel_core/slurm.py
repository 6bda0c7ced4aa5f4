"""SLURM's short notations for nodes and tasks."""

from __future__ import annotations

import re

_RUN = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM node list such as ``node[003-007,010],gpu1``.

    Raises ValueError when the notation cannot be read.
    """
    host = ""
    rest = nodes.strip()
    while rest and not rest.startswith(","):
        if rest.startswith("["):
            ranges, closed, rest = rest[1:].partition("]")
            # The first number of the first range, with its leading zeros.
            number = re.match(r"\d+", ranges)
            if not closed or number is None:
                raise ValueError("must be a SLURM node list such as node[003-007,010]")
            host += number.group()
        else:
            part = re.match(r"[^\[\],]+", rest)
            if part is None:
                raise ValueError("must be a SLURM node list such as node[003-007,010]")
            host += part.group()
            rest = rest[part.end() :]
    if not host:
        raise ValueError("must be a SLURM node list such as node[003-007,010]")
    return host


def tasks_per_node(text: str) -> list[int]:
    """Return the number of tasks of each node from SLURM's notation, ``2(x3),1`` for ``[2, 2, 2, 1]``.

    Raises ValueError when the notation cannot be read.
    """
    counts: list[int] = []
    for part in text.strip().split(","):
        run = _RUN.fullmatch(part.strip())
        if run is None:
            raise ValueError("must be a SLURM task list such as 2(x3),1")
        counts += [int(run.group(1))] * int(run.group(2) or 1)
    return counts


__all__ = ["first_host", "tasks_per_node"]
