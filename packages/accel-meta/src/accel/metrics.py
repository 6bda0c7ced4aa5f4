"""Gather values for metrics: each rank leaves out what is padding, then the rest is joined, ragged or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from accel_core.cursor import LoaderCursor, calling_path, side_by_side
from accel_core.errors import AccelError, DataError, UnevenDataError
from accel_core.nested import leaves, map_nested

from .ragged import NOTHING, join_objects, join_rows, rows

if TYPE_CHECKING:
    from accel_core.protocols import Collectives
    from accel_core.window import GradientWindow

_PER_RANK = "use gather() for values that are not one row for each sample of the batch"


def all_tensors(data: Any) -> bool:
    """Tell whether ``data`` holds tensors and nothing else, at least one."""
    found = [isinstance(leaf, torch.Tensor) for _, leaf in leaves(data)]
    return bool(found) and all(found)


def gather(
    data: Any, window: GradientWindow, group: Collectives, *, objects: bool, loader: Any = None
) -> Any:
    """Return ``data`` of all ranks without rows of padding: tensors joined by rank, or one list of objects.

    Raises the same kind of error on every rank: DataError where rows and samples cannot be matched, where
    shapes differ beyond the first dimension, and where it is not known whose batch the values belong to.
    UnevenDataError, at once and on this rank alone, where another rank has left the loop.
    """
    trouble: AccelError | None = None
    cursor: LoaderCursor | None = None
    try:
        cursor = _cursor_of(data, window, loader)
        _reject_absent(cursor, group)
        keep = _keep_objects if objects else _keep_rows
        kept = keep(data, cursor, window, named=loader is not None)
    except UnevenDataError:
        raise
    except AccelError as error:
        trouble, kept = error, data
    return join_objects(kept, trouble, group) if objects else join_rows(kept, trouble, group)


# -- whose values are they -------------------------------------------------------------------------


def _cursor_of(data: Any, window: GradientWindow, loader: Any) -> LoaderCursor | None:
    """Return the running loop that ``data`` belongs to; None outside of loops."""
    running = [cursor for cursor in window.cursors if cursor.number]
    if loader is not None:
        running = [cursor for cursor in running if cursor.owner is loader]
        if not running:
            raise DataError(
                "the loader that was named has no batch in hand",
                where="gather_for_metrics(loader=...)",
                fix="name a prepared loader in the body of a loop over it",
            )
    if not running:
        _reject_late(window)
        return None
    inner = running[-1]
    rivals = [other for other in running[:-1] if _differ(other, inner)]
    if rivals:
        here = calling_path("accel")
        rivals = [other for other in rivals if side_by_side(other, inner, here)]
    if rivals:
        owners = [c for c in (inner, *rivals) if any(c.holds(leaf) for _, leaf in leaves(data))]
        if len(owners) != 1:
            raise DataError(
                f"{len(rivals) + 1} loaders run side by side, and their batches have padding in different"
                " places, so the rows to leave out depend on whose values these are",
                where="gather_for_metrics",
                fix="name the loader that they belong to: gather_for_metrics(values, loader=that_loader)",
            )
        return owners[0]
    return inner


def _differ(one: LoaderCursor, other: LoaderCursor) -> bool:
    if one.valid is None and other.valid is None and not one.ended and not other.ended:
        return False
    return (one.valid, one.world_batch, one.ended) != (other.valid, other.world_batch, other.ended)


def _reject_late(window: GradientWindow) -> None:
    closed = window.closed
    if closed is not None:
        raise DataError(
            "gather_for_metrics was called outside of a loop, and the last batch of the loop that has ended"
            f" had {closed.valid} real samples{_of(closed.world_batch)}: whether these rows are of that batch"
            " is not known",
            where="after the loop",
            fix=f"call it in the body of the loop, for each batch; {_PER_RANK}",
        )


def _of(total: int | None) -> str:
    return "" if total is None else f" of {total}"


def _reject_absent(cursor: LoaderCursor | None, group: Collectives) -> None:
    if cursor is not None and cursor.ended and group.world_size > 1:
        ranks = ", ".join(map(str, cursor.ended))
        raise UnevenDataError(
            f"rank {ranks} has no batch in this step, so nobody answers there",
            ended=cursor.ended,
            where=f"rank {group.rank}, gather_for_metrics, batch {cursor.number}",
            fix="use even_batches=True, or uneven='pad_masked', whose padding is left out here",
        )


# -- leaving out padding, on this rank -------------------------------------------------------------


def _keep_rows(data: Any, cursor: LoaderCursor | None, window: GradientWindow, *, named: bool) -> Any:
    """Return the tensors of ``data`` with the rows of real samples; one without dimensions becomes a row."""
    if cursor is None:
        return map_nested(_row, data)
    found = list(leaves(data))
    counts = {rows(leaf) for _, leaf in found}
    full = _full(counts, cursor)
    if full and not named and _beside_others(cursor, window):
        full = None
    if _doubtful(cursor, window):
        for path, leaf in found:
            where = f"input_data{path}, shape {tuple(leaf.shape)}"
            if cursor.own and rows(leaf) != full:
                _count_per_sample(leaf, cursor, where)
            _reject_others(leaf, rows(leaf), cursor, window, where, named=named)
    size = _size(cursor)
    cursor.asked.update((count, size) for count in counts)
    if full is None and cursor.own is None:
        return map_nested(_row, data)
    return map_nested(lambda leaf: _row(leaf)[: _kept(leaf, cursor, full)], data)


def _keep_objects(data: Any, cursor: LoaderCursor | None, window: GradientWindow, *, named: bool) -> Any:
    """Return the objects of real samples: items of a list, rows of arrays; others cannot be cut."""
    if cursor is None:
        return data
    listed = isinstance(data, (list, tuple))
    if listed and _doubtful(cursor, window):
        _reject_others(None, len(data), cursor, window, f"input_data, {len(data)} objects", named=named)
    cursor.asked.add((len(data) if listed else 1, _size(cursor)))
    if cursor.own is None:
        return data
    if not cursor.own:
        return [] if listed else NOTHING
    size = _size(cursor)
    if listed:
        if len(data) % size:
            raise _cannot_tell(f"{len(data)} objects", cursor, "input_data, gathered as objects")
        return list(data)[: cursor.own * (len(data) // size)]
    for path, leaf in leaves(data):
        if not hasattr(leaf, "ndim"):
            raise _cannot_tell("1 object", cursor, "input_data, gathered as objects")
        _count_per_sample(leaf, cursor, f"input_data{path}, gathered as objects")
    return map_nested(lambda leaf: leaf[: _kept(leaf, cursor)], data)


def _row(leaf: torch.Tensor) -> torch.Tensor:
    return leaf if leaf.ndim else leaf[None]


def _size(cursor: LoaderCursor) -> int:
    from accel_data.stream import count_rows

    return count_rows(cursor.batch) if cursor.rows is None else cursor.rows


def _kept(leaf: Any, cursor: LoaderCursor, full: int | None = None) -> int | None:
    """Return how many rows to keep; None for all."""
    if full is not None and rows(leaf) == full:
        return _size(cursor) if cursor.own is None else cursor.own
    if cursor.own is None:
        return None
    # A rank whose batch is padding altogether has nothing to keep, whatever its rows mean.
    return cursor.own * (leaf.shape[0] // _size(cursor)) if cursor.own else 0


def _full(counts: set[int], cursor: LoaderCursor) -> int | None:
    """Return the size of the batches before where a short last one comes with as many rows; else None.

    So it does where a mean is repeated for each sample: ``gather_for_metrics(loss.repeat(batch_size))``.
    """
    if not cursor.end or any(count not in (size, 1) for count, size in cursor.asked):
        # Where there were several rows a sample, these may be, too.
        return None
    own = _size(cursor)
    return max((n for n in counts if n > own and (n, n) in cursor.asked), default=None)


def _beside_others(cursor: LoaderCursor, window: GradientWindow) -> bool:
    """Tell whether another loop advances together with this one, so that the values may be of its batch."""
    running = [other for other in window.cursors if other.number]
    here = calling_path("accel")
    return running[-1] is not cursor or any(side_by_side(other, cursor, here) for other in running[:-1])


def _count_per_sample(leaf: Any, cursor: LoaderCursor, where: str) -> None:
    """Refuse rows that cannot be dealt to the samples of a batch with padding."""
    if not leaf.ndim or leaf.shape[0] % _size(cursor):
        raise _cannot_tell(f"{rows(leaf)} rows", cursor, where)


def _inside(cursor: LoaderCursor, window: GradientWindow) -> bool:
    """Tell whether a loop that ended on padding has run since this batch was handed out."""
    closed = window.closed
    return closed is not None and closed.outer is cursor and closed.number == cursor.number


def _doubtful(cursor: LoaderCursor, window: GradientWindow) -> bool:
    return cursor.valid is not None or _inside(cursor, window)


def _reject_others(
    leaf: Any, rows: int, cursor: LoaderCursor, window: GradientWindow, where: str, *, named: bool
) -> None:
    """Refuse values that are, or most likely are, not of the batch in hand."""
    if cursor.held(leaf) and not cursor.holds(leaf):
        raise DataError(
            "gather_for_metrics was given values of the batch before the one in hand",
            where=where,
            fix="gather in the same iteration in which the batch is computed",
        )
    size = _size(cursor)
    # Several rows a sample are fine, and so are as many as they come to be, where it is so from the start.
    asked = {count for count, _ in cursor.asked}
    unseen = rows not in asked if _inside(cursor, window) else cursor.number > 1 and not asked
    if unseen and not named and rows not in (size, 1):
        raise DataError(
            f"gather_for_metrics got {rows} rows or objects for a batch of {size} samples: if they were"
            " collected over several batches, the padding among them is not known",
            where=where,
            fix="call it in every iteration, with the values of that batch; if they are all of the batch in"
            f" hand, say of which loader: gather_for_metrics(values, loader=that_loader); {_PER_RANK}",
        )


def _cannot_tell(got: str, cursor: LoaderCursor, where: str) -> DataError:
    size = _size(cursor)
    return DataError(
        f"gather_for_metrics got {got} for a batch of {size} samples, {size - (cursor.own or 0)} of which are"
        " padding, and cannot tell which to remove",
        where=where,
        fix=f"give it one row or object per sample (or a fixed number); {_PER_RANK}",
    )


__all__ = ["all_tensors", "gather"]
