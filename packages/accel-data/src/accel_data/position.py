"""The position of a loader: what is saved of it, and how another loader, on other ranks too, goes there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import BatchSampler, IterableDataset

from accel_core.errors import DataError

from .apart import from_tensors, to_tensors
from .batches import BatchSamplerShard
from .ending import policy
from .order import reading_of
from .progress import Pending, Run
from .samplers import SeedableRandomSampler
from .stream import IterableDatasetShard
from .streamstate import keeps_place

VERSION = 1
_NEEDED = {"version", "epoch", "begun", "ended", "samples", "batches", "own", "origin", "kind", "world"} | {
    "rank", "kept", "workers", "round", "dispatched", "length", "order", "seed", "generator", "alive",
}  # fmt: skip


# -- saving ----------------------------------------------------------------------------------------


def describe(loader: Any, *, resume_left: bool) -> dict[str, Any]:
    """Return the position of ``loader``; see `PreparedLoader.position`."""
    counter = loader._plan.epoch
    if counter.pending is not None:
        return dict(counter.pending.saved)
    run: Run | None = counter.run
    if run is not None:
        run.look()
    left = counter.running and (run is None or not run.active)
    inside = run is not None and run.steps > 0 and (run.active or (left and resume_left))
    found = _facts(loader) | {
        "version": VERSION,
        "epoch": counter.value,
        "begun": False,
        "ended": False,
        "samples": 0,
        "batches": 0,
        "own": 0,
        "origin": 0,
        "seed": _seed(loader),
        "generator": _state_of(loader._plan.generator),
        "alive": loader.persistent_workers and loader._iterator is not None,
    }
    if inside and run is not None:
        return found | _inside(loader, run)
    if left:
        # A loop that was left early is over: the next one is the next epoch, here and after a restart.
        found["epoch"] += 1
    return found


def _state_of(generator: torch.Generator | None) -> torch.Tensor | None:
    return None if generator is None else generator.get_state()


def _inside(loader: Any, run: Run) -> dict[str, Any]:
    """Return what a position in the middle of an epoch holds besides."""
    if run.ended:
        return {"epoch": run.epoch, "begun": True, "ended": True}
    _check_sayable(loader, run)
    found: dict[str, Any] = {
        "epoch": run.epoch,
        "begun": True,
        "samples": _samples(loader, run),
        "batches": run.steps,
        "own": _own(loader, run),
        "origin": run.origin,
        "alive": run.reused,
        "generator_start": run.generator,
    }
    if found["samples"] is not None and not isinstance(loader.dataset, IterableDataset):
        found["mark"] = run.tail.mark(found["samples"])
    if run.start is not None:
        found["start"] = to_tensors(run.start)
    if run.snapshots is not None:
        found["state"] = run.snapshots.before(found["own"] - 1)
    if run.latest is not None:
        found["loader"] = run.latest
    return found


def _check_sayable(loader: Any, run: Run) -> None:
    """Refuse positions that nobody can go on from."""
    if loader.num_workers and not getattr(loader, "in_order", True):
        raise DataError(
            "with in_order=False batches come in an order of their own: how far the data is read is unknown",
            where=f"position() of {type(loader).__name__} in the middle of an epoch",
            fix="use in_order=True, or save between epochs",
        )
    if run.first and run.resumed is None and not loader._plainly_iterated():
        raise DataError(
            f"a {type(loader).__name__} iterates in its own way: how its batches go together with those that "
            "were left out is unknown",
            where="position() of what skip_first_batches returned",
            fix="go on with resume_at, or save between epochs",
        )
    if run.known and policy(loader) == "cycle":
        raise DataError(
            "a rank has begun its data again (uneven='cycle'), and where it is in them cannot be saved",
            where=f"position() of {type(loader).__name__}, epoch {run.epoch}",
            fix="save before the shortest data end or between epochs, or use uneven='pad_masked'",
        )


def _own(loader: Any, run: Run) -> int:
    """Return how many of the steps this rank had a batch of its own for."""
    before = run.resumed
    if before is not None and before.own < before.batches:
        return before.own
    return min(run.steps, run.known.get(loader._plan.collectives.rank, run.steps))


def _samples(loader: Any, run: Run) -> int | None:
    """Return the samples of the whole order up to the batch in hand; None when nobody knows."""
    number = run.steps - run.first
    if not loader._plainly_iterated():
        return None
    if loader._reader_alone:
        before = _dispatched_before(loader, run)
        return None if run.samples is None or before is None else before + run.samples
    if loader._course() is not None:
        return run.tail.consumed(run.walked + max(0, min(number, _own(loader, run) - run.first)))
    stream = loader.dataset
    if isinstance(stream, IterableDatasetShard):
        size: int | None = stream.round_size
        known = loader.num_workers < 2 or stream.deals()
    else:
        size = 1 if loader.batch_sampler is None else loader.batch_size
        streams = isinstance(stream, IterableDataset)
        known = loader.num_workers < 2 if streams else type(loader._batches) is BatchSampler
    return run.origin + run.steps * size if known and size is not None else None


def _dispatched_before(loader: Any, run: Run) -> int | None:
    if run.resumed is not None and run.resumed.samples:
        return run.resumed.samples
    size: int | None = loader.total_batch_size
    return run.first and (None if size is None else run.first * size)


def _seed(loader: Any) -> int | None:
    sampler, seeding = loader.get_sampler(), loader._plan.seeding
    if isinstance(sampler, SeedableRandomSampler):
        return sampler.seed
    return None if seeding is None else int(seeding.seed)


def _facts(loader: Any) -> dict[str, Any]:
    """Return how the data is read."""
    world, rank = loader._plan.place
    batches = loader._batches
    if isinstance(batches, BatchSamplerShard) and batches.num_processes > 1:
        world, rank = batches.num_processes, batches.process_index
    stream = isinstance(loader.dataset, IterableDataset)
    sampler = None if stream else loader.get_sampler()
    if sampler is None:
        sampler = getattr(loader.dataset, "unsharded", loader.dataset) if stream else batches
    return {
        "kind": "stream" if stream else "indexed",
        "world": world,
        "rank": rank,
        "kept": loader._plan.kept,
        "workers": loader.num_workers,
        "round": loader.total_batch_size,
        "dispatched": loader._reader_alone,
        "length": None if stream else _length(sampler),
        "order": type(sampler).__name__,
    }


def _length(sampler: Any) -> int | None:
    """Return the samples of an order that is known for sure."""
    reading = reading_of(sampler)
    return None if reading is None else reading.length()


# -- going there -----------------------------------------------------------------------------------


def resume(loader: Any, position: Mapping[str, Any]) -> None:
    """Let ``loader`` go on from ``position``; see `PreparedLoader.resume_at`."""
    _check_whole(position)
    inside = position["begun"] and not position["ended"]
    pending = _pending(loader, position) if inside else None
    if position["ended"]:
        pending = Pending(position, position["epoch"], ended=True)
    plan, counter = loader._plan, loader._plan.epoch
    sampler = loader.get_sampler()
    if position["seed"] is not None:
        if isinstance(sampler, SeedableRandomSampler):
            sampler.seed = position["seed"]
        elif plan.seeding is not None:
            plan.seeding.seed = position["seed"]
    if plan.generator is not None and position["generator"] is not None:
        plan.generator.set_state(position["generator"].cpu())
    plan.skip, plan.anew = 0, False
    counter.pending = counter.run = None
    counter.go(position["epoch"])
    counter.quiet = bool(position["alive"])
    loader._tell_all(position["epoch"])
    counter.pending = pending


def _check_whole(position: Mapping[str, Any]) -> None:
    """Refuse what `describe` did not make."""
    missing = _NEEDED - position.keys()
    numbers = [position.get(name) for name in ("epoch", "batches", "own", "origin", "world")]
    numbers.append(position.get("samples") or 0)
    if missing or any(not isinstance(number, int) or number < 0 for number in numbers):
        lacks = f": it lacks {', '.join(sorted(missing))}" if missing else ""
        raise DataError(
            f"this is no position of a loader{lacks}",
            where="resume_at",
            fix="pass what position() of a prepared loader returned",
        )
    if position["version"] != VERSION:
        raise DataError(
            f"this position is of version {position['version']}, known is {VERSION}",
            where="resume_at",
            fix="resume with the version of accel-data that saved it, or save between epochs",
        )


def _pending(loader: Any, position: Mapping[str, Any]) -> Pending:
    """Return how ``loader`` goes on in the middle of an epoch, or raise DataError with the reason."""
    here = _facts(loader)
    _check_alike(here, position)
    cut = ["world", "round", "workers", "dispatched"]
    if here["kept"]:
        cut.append("rank")
    same = all(here[name] == position[name] for name in cut)
    found = Pending(
        position,
        position["epoch"],
        batches=position["batches"],
        own=position["own"],
        origin=position["origin"],
        same=same,
        generator=position.get("generator_start"),
        state=position.get("state") if same and loader.num_workers == 0 else None,
        loader=position.get("loader") if same else None,
    )
    if "start" in position:
        found.start = from_tensors(position["start"])
    if here["kind"] == "stream":
        _place_stream(loader, position, found)
    elif position["samples"] is not None:
        found.samples, found.mark = position["samples"], position.get("mark")
    elif same:
        found.drop = found.own * loader._ranks_per_batch()
    else:
        raise _unknown(position)
    return found


def check_order(run: Run) -> None:
    """Raise DataError when a resumed iteration walks another order than the one that was saved."""
    resumed = run.resumed
    if resumed is None or resumed.mark is None:
        return
    mark = run.tail.mark(resumed.samples)
    if mark is not None and mark != resumed.mark:
        raise DataError(
            "the sampler gives another order than in the run that was saved: some samples would be read "
            "twice and others never",
            where=f"epoch {run.epoch}, after {resumed.samples} samples",
            fix="let its order follow from set_epoch(epoch), from a torch.Generator that it keeps as "
            ".generator, or from the global generators",
        )


def _check_alike(here: Mapping[str, Any], position: Mapping[str, Any]) -> None:
    """Refuse to go on in another order than the one that was saved."""
    where = f"epoch {position['epoch']}, after {position['batches']} batches"
    if here["kept"] or position["kept"]:
        names = ("world", "rank", "kept")
        if any(here[name] != position[name] for name in names):
            held = "holds its own part" if position["kept"] else "read a part of the whole"
            raise DataError(
                f"when this position was saved, rank {position['rank']} of {position['world']} {held}; "
                f"here rank {here['rank']} of {here['world']} {'holds' if here['kept'] else 'reads'} one: "
                "what ranks hold themselves cannot be dealt out anew in the middle of an epoch",
                where=where,
                fix="resume on as many ranks, each with its own position; or save between epochs; or give "
                "every rank the whole data (sharding='global')",
            )
    for name, what in (("kind", "kind of data"), ("order", "order"), ("length", "length of the order")):
        if here[name] != position[name]:
            raise DataError(
                f"the {what} is {here[name]}, and was {position[name]} when the position was saved: what is "
                "left of it is not what the run had not seen",
                where=where,
                fix="resume with the same data and sampler, or from a checkpoint saved between epochs",
            )


def _place_stream(loader: Any, position: Mapping[str, Any], found: Pending) -> None:
    """Decide what of a stream is read and dropped."""
    found.samples = position["samples"] or 0
    if found.same:
        found.drop, found.skip = found.own * loader._ranks_per_batch(), found.origin
        if found.state is not None:
            found.drop -= _jump(loader, found)
        return
    if position["samples"] is None:
        raise _unknown(position)
    found.origin, found.batches, found.own = found.samples, 0, 0
    if isinstance(loader.dataset, IterableDatasetShard):
        found.skip = found.samples
        return
    size = loader.batch_size or 1
    if not loader.num_workers and loader._plainly_iterated():
        found.skip = found.samples
    elif loader.num_workers < 2 and not found.samples % size:
        found.drop = found.samples // size
    else:
        raise DataError(
            f"the stream was read up to sample {found.samples}, where batches of {size}, read by "
            f"{loader.num_workers} worker processes, cannot go on",
            where=f"epoch {found.epoch}",
            fix="use num_workers=0, or 1 with a batch size that divides this number, to end the epoch",
        )


def _jump(loader: Any, found: Pending) -> int:
    """Return how many batches need not be read again, because the dataset knows its place behind them."""
    if found.state is not None and not loader._reader_alone and keeps_place(loader):
        return min(int(found.state["batches"]), found.own)
    if found.state is not None:
        found.state = {**found.state, "latest": found.state["start"], "batches": 0}
    return 0


def _unknown(position: Mapping[str, Any]) -> DataError:
    why = "the class of the loader iterates in its own way"
    if position["kind"] == "stream" and position["workers"] > 1:
        why = f"{position['workers']} worker processes read parts of a stream that it divides itself"
    return DataError(
        f"how many samples of the whole were read is not known: {why}",
        where=f"epoch {position['epoch']}, after {position['batches']} batches",
        fix=f"resume on {position['world']} ranks with the same batch size and as many workers, or save "
        "between epochs",
    )


__all__ = ["VERSION", "check_order", "describe", "resume"]
