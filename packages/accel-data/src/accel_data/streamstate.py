"""The place that a dataset of samples one after another keeps itself, as those of ``datasets`` do."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from . import hf

_EVERY = 64
"""Batches from one note to the next: more than are ever read ahead, and few enough to read again."""


def keeps_place(loader: Any) -> bool:
    """Tell whether the dataset of ``loader``, in this process, says where it is and goes there exactly."""
    dataset = getattr(loader.dataset, "unsharded", loader.dataset)
    able = all(callable(getattr(dataset, name, None)) for name in ("state_dict", "load_state_dict"))
    return able and loader.num_workers == 0 and (not hf.is_hf(dataset) or hf.keeps_place(dataset))


class Snapshots:
    """Note now and then where a dataset is, so that going on there reads few samples twice.

    ``first``: batches before the first one that `watch` sees. ``start``: where the epoch began, if it was
    noted by an earlier run.
    """

    def __init__(self, dataset: Any, first: int = 0, start: Any = None) -> None:
        self._dataset = dataset
        self._start = deepcopy(dataset.state_dict()) if start is None else start
        self._number = first
        self._kept: deque[tuple[int, Any]] = deque(maxlen=2)

    def watch(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield ``batches``, which are read from the dataset one by one."""
        for batch in batches:
            self._number += 1
            if not self._number % _EVERY:
                self._kept.append((self._number, deepcopy(self._dataset.state_dict())))
            yield batch

    def before(self, batches: int) -> Mapping[str, Any]:
        """Return the latest note that is not behind the ``batches``-th batch, and that of the start."""
        number, state = next((note for note in reversed(self._kept) if note[0] <= batches), (0, self._start))
        return {"start": deepcopy(self._start), "latest": deepcopy(state), "batches": number}


__all__ = ["Snapshots", "keeps_place"]
