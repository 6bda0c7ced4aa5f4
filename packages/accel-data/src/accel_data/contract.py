"""Who divides the data of a loader: accel, or somebody before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.utils.data import ChainDataset, ConcatDataset, DataLoader, DistributedSampler, Subset

from accel_core.errors import AlreadyShardedError, DataError, PrepareError, UnknownNameError
from accel_core.protocols.collectives import Collectives

from . import hf
from .batches import BatchSamplerShard
from .samplers import samplers_of
from .stream import IterableDatasetShard

SHARDING = ("auto", "global", "sharded")

_FIX_WORDS = (
    "say sharding='sharded' if every rank has its own part, or give every rank the whole data and let accel "
    "divide it (sharding='global')"
)


class Declared(NamedTuple):
    """Something in a loader that gives each rank its own part; None: it does not say which."""

    by: str
    world: int | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What ranks tell each other about a loader when it is prepared."""

    length: int | None
    sampler: tuple[Any, ...] | None
    part: hf.Part | None
    shuffle: str | None
    split: bool
    """Its stream deals out shuffled files, so that shuffles must be alike although ranks differ."""


def check_word(sharding: str) -> None:
    """Refuse a word that is not a way to share data."""
    if sharding not in SHARDING:
        raise UnknownNameError("sharding", str(sharding), SHARDING)


def declared(loader: DataLoader[Any]) -> Declared | None:
    """Return what divides the data of ``loader`` already, as far as its samplers and data sets say.

    Known are torch's ``DistributedSampler`` and any sampler with ``num_replicas`` and ``rank``; streams of
    Hugging Face ``datasets`` after ``split_dataset_by_node``; what accel made; and data sets that declare
    it: ``accel_sharding = "sharded"``, with ``num_replicas`` and ``rank`` where they know them.
    """
    for sampler in samplers_of(loader):
        if isinstance(sampler, BatchSamplerShard):
            if sampler.num_processes > 1:
                return Declared("BatchSamplerShard", sampler.num_processes, sampler.process_index)
        elif isinstance(sampler, DistributedSampler) or _knows_rank(sampler):
            return Declared(
                type(sampler).__name__, _number(sampler, "num_replicas"), _number(sampler, "rank")
            )
    for dataset in _datasets(loader.dataset):
        name = type(dataset).__name__
        if isinstance(dataset, IterableDatasetShard):
            if dataset.num_processes > 1:
                return Declared(name, dataset.num_processes, dataset.process_index)
        elif split := hf.node(dataset):
            return Declared("split_dataset_by_node of datasets", *split)
        elif _declares(dataset):
            return Declared(name, _number(dataset, "num_replicas"), _number(dataset, "rank"))
    return None


def _declares(dataset: Any) -> bool:
    said = getattr(dataset, "accel_sharding", None)
    if said is None:
        return False
    if said not in ("global", "sharded"):
        raise UnknownNameError(
            f"accel_sharding of {type(dataset).__name__}", str(said), ("global", "sharded")
        )
    return bool(said == "sharded")


def _knows_rank(sampler: Any) -> bool:
    return hasattr(sampler, "num_replicas") and hasattr(sampler, "rank")


def _number(thing: Any, name: str) -> int | None:
    value = getattr(thing, name, None)
    return value if isinstance(value, int) else None


def _datasets(dataset: Any) -> Iterator[Any]:
    """Yield a data set and those that torch's own containers hold."""
    yield dataset
    inside = [dataset.dataset] if isinstance(dataset, Subset) else []
    if isinstance(dataset, (ConcatDataset, ChainDataset)):
        inside = list(dataset.datasets)
    for child in inside:
        yield from _datasets(child)


def is_sharded(loader: DataLoader[Any], sharding: str, world: int, rank: int) -> bool:
    """Tell whether ``loader`` is kept as it is, as far as this rank alone can tell.

    Raises:
        UnknownNameError: ``sharding`` is not a known word.
        AlreadyShardedError: ``sharding="global"`` for what is sharded already.
        PrepareError: it was sharded for other ranks than ours.
    """
    check_word(sharding)
    found = declared(loader)
    if found is None:
        return sharding == "sharded"
    if sharding == "global":
        raise AlreadyShardedError(
            f"its {found.by} already gives each rank its own part; sharding it again would leave out all but "
            f"1/{world} of the data",
            where="prepare_data_loader(sharding='global')",
            fix="use sharding='auto' to keep it as it is, or build the loader with shuffle=True or a plain "
            "sampler and let prepare shard it",
        )
    if found.world not in (None, world) or found.rank not in (None, rank):
        raise PrepareError(
            f"its {found.by} was made for rank {found.rank} of {found.world}, but this is rank {rank} of "
            f"{world} ranks that read different data: some samples would be read twice or never",
            where=f"prepare_data_loader(sharding={sharding!r}), rank {rank}",
            fix=f"make it for {world} ranks and this process's rank {rank}, or pass plain data and let accel "
            "divide it",
        )
    return True


def facts_of(loader: DataLoader[Any]) -> Facts:
    """Return what the other ranks must know of ``loader``."""
    sampler = next((item for item in samplers_of(loader) if isinstance(item, DistributedSampler)), None)
    settings = None
    if sampler is not None:
        settings = tuple(getattr(sampler, name, None) for name in ("seed", "shuffle", "drop_last"))
    return Facts(
        length=_length(loader.dataset),
        sampler=settings,
        part=hf.part(loader.dataset),
        shuffle=hf.shuffle_state(loader.dataset),
        split=hf.node(loader.dataset) is not None,
    )


def _length(thing: Any) -> int | None:
    try:
        return len(thing)
    except (TypeError, NotImplementedError, AttributeError):
        return None


def own_parts(facts: list[Facts], rank: int) -> bool:
    """Tell whether data sets of ``datasets`` differ on all ranks, as after ``.shard(...)``.

    Raises:
        DataError: they differ on some ranks only, or hold the same samples in another order.
    """
    parts = [item.part for item in facts]
    if any(part is None for part in parts):
        return False
    texts = [part[0] for part in parts if part is not None]
    if len(set(texts)) == 1:
        return False
    whole = [place for place, part in enumerate(parts) if part is not None and part[1]]
    if len(set(texts)) == len(texts) and not whole:
        return True
    same = [place for place, text in enumerate(texts) if texts.count(text) > 1]
    what = (
        f"ranks {_listed(whole)} hold all of the data in an order of their own"
        if whole
        else f"ranks {_listed(same)} hold the same part of the data, other ranks another one"
    )
    raise DataError(
        f"the data set of datasets differs between ranks, and {what}",
        where=f"rank {rank}, prepare_data_loader",
        fix="shuffle with the same seed on every rank; shard(num_shards, index) with one index for each rank",
    )


def check_alike(facts: list[Facts], rank: int, *, kept: bool, indexed: bool) -> None:
    """Refuse a loader whose ranks cannot belong together.

    Raises:
        DataError: data sets of different length, samplers with different settings, shuffles that differ.
    """
    if indexed and (not kept or facts[rank].sampler is not None):
        _refuse_difference(
            "the dataset has",
            [item.length for item in facts],
            "samples",
            rank,
            fix=f"{_FIX_WORDS}; {_SLICED}",
        )
    if facts[rank].sampler is not None:
        settings = [f"(seed, shuffle, drop_last) = {item.sampler}" for item in facts]
        _refuse_difference("its DistributedSampler has", settings, "", rank, fix="use the same on every rank")
    if len({item.shuffle for item in facts}) > 1 and (not kept or facts[rank].split):
        raise DataError(
            "the stream is shuffled by generators that differ between ranks, so some samples would be read "
            "twice and others never",
            where=f"rank {rank}, prepare_data_loader",
            fix="give shuffle the same seed= on every rank",
        )


_SLICED = "do not prepare a loader whose dataset is one rank's part already without saying so"


def _refuse_difference(what: str, values: list[Any], unit: str, rank: int, *, fix: str) -> None:
    if len({repr(value) for value in values}) > 1:
        listed = ", ".join(map(str, values))
        raise DataError(
            f"{what} {listed} {unit}".rstrip() + f" on ranks 0 to {len(values) - 1}",
            where=f"rank {rank}, prepare_data_loader",
            fix=fix,
        )


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))


def gather_facts(group: Collectives, facts: Facts) -> list[Facts]:
    """Return the facts of all ranks."""
    return [facts] if group.world_size == 1 else group.all_gather_object(facts)


__all__ = [
    "SHARDING",
    "Declared",
    "Facts",
    "check_alike",
    "check_word",
    "declared",
    "facts_of",
    "gather_facts",
    "is_sharded",
    "own_parts",
]
