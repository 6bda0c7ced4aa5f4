"""From a torch loader to one that reads this rank's part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from accel_core.errors import AlreadyShardedError, PrepareError
from accel_core.protocols.collectives import Collectives, LonelyCollectives
from accel_core.window import GradientWindow

from . import contract, hf
from .base import PreparedLoader
from .batches import BatchSamplerShard
from .checks import check_in_order, check_iteration, check_kept, check_loader, mesh_place
from .ending import check_policy
from .order import fresh_seed
from .plan import LoaderPlan, Seeding, Synchronize, check_rng_types
from .samplers import SeedableRandomSampler, samplers_of
from .shard import DataLoaderShard
from .stream import CarryValidity, IterableDatasetShard, count_rows


@dataclass(frozen=True, slots=True)
class _Cut:
    """How the data is divided."""

    num_processes: int
    process_index: int
    split_batches: bool
    even_batches: bool
    dispatch_batches: bool


def prepare_data_loader(
    dataloader: DataLoader[Any],
    device: torch.device | str | None = None,
    num_processes: int | None = None,
    process_index: int | None = None,
    split_batches: bool = False,
    put_on_device: bool = False,
    rng_types: Sequence[Any] | None = None,
    dispatch_batches: bool | None = None,
    even_batches: bool = True,
    slice_fn_for_dispatch: Callable[..., Any] | None = None,
    use_seedable_sampler: bool = False,
    data_seed: int | None = None,
    non_blocking: bool = False,
    use_stateful_dataloader: bool = False,
    torch_device_mesh: Any = None,
    *,
    sharding: str = "auto",
    audit: str = "first_batches",
    uneven: str | None = None,
    collectives: Collectives | None = None,
    window: GradientWindow | None = None,
    synchronize: Synchronize | None = None,
) -> PreparedLoader:
    """Return ``dataloader`` rebuilt to read this rank's part, with every other setting kept.

    ``num_processes`` and ``process_index`` default to those of ``collectives`` (one process without it).
    ``dispatch_batches=True``: rank 0 alone reads and sends each rank its part; None and False: each rank
    reads its own part, iterable datasets included. ``rng_types`` defaults to ``["generator"]``.

    A shuffling sampler without a generator of its own gets a seed here (``data_seed``, or one draw from
    torch's global generator on rank 0): its order follows from that seed and the epoch, for any number of
    processes. A generator of the user's is kept, and follows rank 0's at each iteration;
    ``use_seedable_sampler=True`` takes only its seed. Other samplers are walked and never replaced; one
    with a ``generator`` attribute of None is given a seeded generator.

    ``sharding``: ``"global"``: every rank holds the same whole data, which is divided here; ``"sharded"``:
    each rank's loader reads its own part already, and is kept; ``"auto"``: what `accel_data.contract`
    recognises as sharded is kept, everything else is global. ``audit``: how long ranks compare what they
    read, ``"first_batches"``, ``"epoch"`` or ``"off"``.

    ``uneven``: what happens where ranks run out of data at different steps. ``stop_all``: all stop when the
    first one ends. ``pad_masked``: those that have ended repeat their last batch with no sample counted.
    ``cycle``: they begin again, with the next epoch, until all have ended once. ``independent``: each goes
    its own way. None: ``pad_masked`` for ranks that hold data of their own, with ``even_batches``; an error
    for streams otherwise; nothing for map-style data, where ``even_batches=False`` asks for unequal numbers.

    Raises:
        AlreadyShardedError: the loader was prepared before, or is sharded already and ``"global"`` was said.
        PrepareError: the loader cannot be divided like this, or was divided for other ranks; the text says
            why.
        UnknownNameError: ``sharding``, ``audit``, ``uneven`` or an entry of ``rng_types`` is no such thing.
        DataError: the data sets or samplers of the ranks do not belong together.
        AuditError: a sampler repeats samples at its end; while iterating, what the audit finds.
        NotInstalledError: ``use_stateful_dataloader=True`` without torchdata.
    """
    group = collectives or LonelyCollectives()
    if torch_device_mesh is not None and num_processes is None:
        num_processes, process_index = mesh_place(torch_device_mesh)
    world = group.world_size if num_processes is None else num_processes
    rank = group.rank if process_index is None else process_index
    cut = _Cut(world, rank, split_batches, even_batches, bool(dispatch_batches))
    check_loader(dataloader)
    kept = _agree(dataloader, group, cut, sharding)
    files = {} if kept else _deal_files(dataloader, cut)
    plan = LoaderPlan(
        device=torch.device(device) if put_on_device and device is not None else None,
        non_blocking=non_blocking,
        rng_types=check_rng_types(["generator"] if rng_types is None else rng_types),
        collectives=group,
        world=world,
        rank=rank,
        window=window or GradientWindow(),
        synchronize=synchronize,
        uneven=check_policy(uneven),
        even_batches=even_batches,
        kept=kept or bool(files),
    )
    if not dispatch_batches:
        from .audit import make_audit

        plan.audit = make_audit(
            audit, dataloader, group, world, kept=plan.kept, even=even_batches, uneven=uneven
        )
    replaced = files | _fix_order(
        dataloader, plan, use_seedable_sampler=use_seedable_sampler, data_seed=data_seed
    )
    stateful = use_stateful_dataloader or keeps_state(dataloader)
    if dispatch_batches:
        return _dispatched(dataloader, plan, cut, replaced, slice_fn_for_dispatch, stateful=stateful)
    return _sharded(dataloader, plan, cut, replaced, stateful=stateful)


def _dispatched(
    loader: DataLoader[Any],
    plan: LoaderPlan,
    cut: _Cut,
    replaced: dict[str, Any],
    slice_fn: Callable[..., Any] | None,
    *,
    stateful: bool,
) -> PreparedLoader:
    """Return the loader that rank 0 reads for all."""
    from .dispatch import DataLoaderDispatcher

    if stateful:
        raise PrepareError(
            "the position of a dispatched loader cannot be saved yet: rank 0 alone reads, and ahead",
            where="prepare_data_loader(dispatch_batches=True)",
            fix="use dispatch_batches=False, or a plain DataLoader and skip_first_batches to resume",
        )
    check_in_order(loader, pads=cut.even_batches and cut.num_processes > 1)
    return DataLoaderDispatcher.dispatch(
        loader,
        plan,
        replaced,
        split_batches=cut.split_batches,
        even_batches=cut.even_batches,
        slice_fn=slice_fn,
    )


def _sharded(
    loader: DataLoader[Any], plan: LoaderPlan, cut: _Cut, replaced: dict[str, Any], *, stateful: bool
) -> PreparedLoader:
    """Return the loader that reads this rank's part."""
    if isinstance(loader.dataset, IterableDataset):
        replaced |= _shard_stream(loader, plan, cut)
    elif not plan.kept:
        replaced |= _shard_batches(loader, cut, replaced)
    if plan.audit is not None:
        replaced |= plan.audit.install(loader, replaced)
    if stateful:
        from .stateful import StatefulDataLoaderShard, stateful_base

        return StatefulDataLoaderShard.rebuild(stateful_base(loader), plan, **replaced)
    return DataLoaderShard.rebuild(loader, plan, **replaced)


def keeps_state(loader: object) -> bool:
    """Tell whether ``loader`` saves and loads its position by itself, as torchdata's does."""
    return all(callable(getattr(loader, name, None)) for name in ("state_dict", "load_state_dict"))


def _fix_order(
    loader: DataLoader[Any], plan: LoaderPlan, *, use_seedable_sampler: bool, data_seed: int | None
) -> dict[str, Any]:
    """Make the order the same on all ranks; return the attributes of the loader that this replaces."""
    if isinstance(loader.dataset, IterableDataset):
        own = getattr(loader.dataset, "generator", None)
        plan.generator = own if isinstance(own, torch.Generator) else None
        return {}
    # In the instance only: what a class computes cannot be set.
    drawing = [item for item in samplers_of(loader) if "generator" in getattr(item, "__dict__", ())]
    if not drawing or isinstance(drawing[-1], SeedableRandomSampler):
        return {}
    sampler = drawing[-1]
    own = sampler.generator
    if own is not None and not isinstance(own, torch.Generator):
        return {}
    batches: Any = loader.batch_sampler
    holder = loader if batches is None else batches
    plain = (
        type(sampler) is RandomSampler
        and type(batches) in (BatchSampler, type(None))
        and holder.sampler is sampler
    )
    if own is not None and not (plain and use_seedable_sampler):
        plan.generator = own
        return {}
    seed = _shared_seed(plan.collectives, own, data_seed)
    if not plain:
        sampler.generator = torch.Generator()
        plan.seeding = Seeding(sampler.generator, seed)
        return {}
    # Private, because only it tells "as many as there are", which a growing dataset changes, from a number.
    count = getattr(sampler, "_num_samples", sampler.num_samples)
    seedable = SeedableRandomSampler(sampler.data_source, sampler.replacement, count, data_seed=seed)
    replaced: dict[str, Any] = {"sampler": seedable}
    if batches is not None:
        replaced["batch_sampler"] = BatchSampler(seedable, batches.batch_size, batches.drop_last)
    return replaced


def _shared_seed(group: Collectives, own: torch.Generator | None, data_seed: int | None) -> int:
    """Return rank 0's seed on every rank."""
    if data_seed is None:
        # Drawn on every rank, so that global generators that stood alike still do.
        data_seed = fresh_seed() if own is None else own.initial_seed()
    return int(group.broadcast_object(int(data_seed)))


def _shard_batches(loader: DataLoader[Any], cut: _Cut, replaced: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes that make a map-style loader read one rank's part."""
    if cut.num_processes == 1:
        return {}
    # Where batch_size is None, the sampler's items are what the dataset is asked for: whole batches, or not.
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    batches = replaced.get(name, getattr(loader, name))
    if name == "sampler" and not isinstance(batches, BatchSampler):
        raise PrepareError(
            "with batch_size=None each item of the dataset is a batch of its own; completing the last round "
            "would repeat whole batches, and how many samples they hold is not known",
            where=f"prepare_data_loader on {cut.num_processes} processes",
            fix="let the loader make the batches (batch_size=...), or pass sampler=BatchSampler(...)",
        )
    shard = BatchSamplerShard(
        batches, cut.num_processes, cut.process_index, cut.split_batches, cut.even_batches
    )
    check_in_order(loader, pads=cut.even_batches and not shard.drop_last)
    return {name: shard}


def _agree(loader: DataLoader[Any], group: Collectives, cut: _Cut, sharding: str) -> bool:
    """Return whether ``loader`` is kept as it is; make sure that all ranks bring what belongs together."""
    kept = contract.is_sharded(loader, sharding, cut.num_processes, cut.process_index)
    if group.world_size > 1 and not cut.dispatch_batches:
        facts = contract.gather_facts(group, contract.facts_of(loader))
        if not kept and contract.own_parts(facts, group.rank):
            if sharding == "global":
                raise AlreadyShardedError(
                    "the data set of datasets holds another part on each rank; sharding it again would leave "
                    f"out all but 1/{cut.num_processes} of the data",
                    where="prepare_data_loader(sharding='global')",
                    fix="use sharding='auto' to keep it as it is, or prepare the data set before .shard(...)",
                )
            kept = True
        indexed = not isinstance(loader.dataset, IterableDataset)
        contract.check_alike(facts, group.rank, kept=kept, indexed=indexed)
    kept = kept and cut.num_processes > 1
    if kept:
        check_kept(dispatch_batches=cut.dispatch_batches, split_batches=cut.split_batches)
    return kept


def _deal_files(loader: DataLoader[Any], cut: _Cut) -> dict[str, Any]:
    """Return the attributes that give this rank whole files of a stream of ``datasets``; none: not possible.

    So nothing is read by more than one rank. Only where files can be dealt out evenly and ends agree.
    """
    if cut.num_processes == 1 or cut.dispatch_batches or cut.split_batches or not cut.even_batches:
        return {}
    if not isinstance(loader.dataset, IterableDataset) or not hf.is_hf(loader.dataset):
        return {}
    own = hf.split_by_node(loader.dataset, cut.num_processes, cut.process_index)
    return {} if own is None else {"dataset": own}


def _shard_stream(loader: DataLoader[Any], plan: LoaderPlan, cut: _Cut) -> dict[str, Any]:
    """Return the attributes that make a loader of a stream read one rank's part."""
    if cut.num_processes == 1 or plan.kept:
        return {}
    check_in_order(loader, pads=cut.even_batches and not loader.drop_last)
    whole = loader.batch_size is None
    shard = IterableDatasetShard(
        loader.dataset,
        batch_size=1 if loader.batch_size is None else loader.batch_size,
        drop_last=loader.drop_last,
        num_processes=cut.num_processes,
        process_index=cut.process_index,
        split_batches=cut.split_batches and not whole,
        even_batches=cut.even_batches,
    )
    if loader.num_workers > 1:
        shard.dealing = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
    replaced: dict[str, Any] = {"dataset": shard}
    if not whole:
        # The samples of one rank come in whole local batches, whatever the size of a world batch is.
        replaced["batch_sampler"] = BatchSampler(loader.sampler, shard.local_size, loader.drop_last)
    if cut.even_batches:
        check_iteration(loader)
        shard.marks = True
        shard.measure = count_rows if whole else None
        replaced["collate_fn"] = CarryValidity(loader.collate_fn)
        plan.watch_ends = True
    return replaced


__all__ = ["prepare_data_loader"]
