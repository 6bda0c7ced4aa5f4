"""An estimate as a table for people, and as data for programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .memory import MemoryEstimate
from .options import EstimateOptions

_MOST_NAMES = 3
_TITLES = {
    "adafactor": "Adafactor",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "adam8bit": "8-bit Adam",
    "adamw": "AdamW",
    "adamw8bit": "8-bit AdamW",
    "lion": "Lion",
    "lion8bit": "8-bit Lion",
    "rmsprop": "RMSprop",
    "sgd": "SGD",
    "sgd_momentum": "SGD with momentum",
}
_SHARDED = {1: "optimizer states", 2: "optimizer states and gradients", 3: "weights, gradients and states"}


def size(count: int) -> str:
    """Return a number of bytes in powers of 1024, with two digits, as the documents show them."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if round(value, 2) < 1024:
            return f"{count} B" if unit == "B" else f"{round(value, 2)} {unit}"
        value /= 1024
    return f"{round(value, 2)} PB"


def lines(name: str, estimate: MemoryEstimate, room: int) -> list[str]:
    """Return the report on the model ``name``, for a terminal of ``room`` columns."""
    options = estimate.options
    optimizer = _TITLES[options.optimizer or "adam"]
    found = [f"Memory Usage for loading `{plain(name)}`:", ""]
    # Where training is shown in its parts, one figure for it would be another one.
    most = 3 if estimate.training else 4
    found += table(
        ("dtype", "Largest Layer", "Total Size", f"Training using {optimizer}")[:most],
        [
            (
                each.dtype,
                size(each.largest_layer),
                size(each.total),
                "N/A" if each.training is None else size(each.training),
            )[:most]
            for each in estimate.loading
        ],
        room,
    )
    if estimate.inference:
        found += ["", f"Inference{_batch(options)}{_devices(options, 3)}:", ""]
        found += table(
            ("dtype", "Weights", "KV Cache", "Activations", "Peak"),
            [
                (
                    each.dtype,
                    *map(size, (each.weights + each.gathered, each.cache, each.activations, each.peak)),
                )
                for each in estimate.inference
            ],
            room,
        )
    if estimate.training:
        found += ["", f"Training using {optimizer}{_batch(options)}{_devices(options, options.stage)}:", ""]
        found += table(
            ("dtype", "Weights", "Gradients", "Optimizer", "Activations", "Peak"),
            [
                (
                    each.dtype,
                    size(each.weights + each.gathered),
                    size(each.gradients),
                    size(each.master + each.optimizer),
                    size(each.activations) if options.run is not None else "not asked",
                    size(each.peak),
                )
                for each in estimate.training
            ],
            room,
        )
    return [*found, "", *(line for note in _notes(estimate) for line in wrapped(plain(note), room))]


def _batch(options: EstimateOptions) -> str:
    run = options.run
    if run is None:
        return ""
    return f", {run.batch:,} x {run.length:,} tokens"


def _devices(options: EstimateOptions, stage: int) -> str:
    if options.shards == 1 or stage == 0 or options.stage < stage:
        return ""
    return f", on each of {options.shards:,} devices"


def _notes(estimate: MemoryEstimate) -> list[str]:
    options = estimate.options
    stored = " + ".join(f"{size(count)} {code}" for code, count in estimate.stored.items())
    names = list(estimate.largest_layers)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    first = ", ".join(each or "(tensors of the model itself)" for each in names[:_MOST_NAMES])
    found = [
        f"Parameters: {estimate.parameters:,}, stored as {stored or 'nothing'}.",
        f"Largest layer: {first}{more}.",
        f"Source: {estimate.source}.",
    ]
    if options.stage and options.shards > 1:
        text = f"Sharded over {options.shards:,}: {_SHARDED[options.stage]}"
        found.append(f"{text}; whole layers while they compute." if options.stage == 3 else f"{text}.")
    if estimate.training and options.master_weights:
        found.append("Optimizer: master weights and states in float32, for narrower weights.")
    if estimate.training and options.gradient_checkpointing:
        found.append("Activations of training: with gradient checkpointing.")
    if not estimate.training and any(each.training is None for each in estimate.loading):
        found.append("N/A: weights of these types have no gradients.")
    return [*found, *estimate.notes]


def facts(name: str, estimate: MemoryEstimate) -> dict[str, Any]:
    """Return everything in the estimate, in bytes."""
    options = estimate.options
    return {
        "model": name,
        "source": estimate.source,
        "parameters": estimate.parameters,
        "stored": dict(estimate.stored),
        "largest_layers": list(estimate.largest_layers),
        "loading": [asdict(each) for each in estimate.loading],
        "inference": [asdict(each) | {"peak": each.peak} for each in estimate.inference],
        "training": [asdict(each) | {"peak": each.peak} for each in estimate.training],
        "options": asdict(options) | {"zero_stage": options.stage, "optimizer": options.optimizer or "adam"},
        "notes": list(estimate.notes),
    }


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[str]:
    """Return the lines of a table that can be pasted into Markdown; a list where ``room`` is too small."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    if sum(widths) + 3 * len(widths) + 1 > room:
        found = []
        for first, *rest in rows:
            found.append(first)
            found += [f"  {title}: {cell}" for title, cell in zip(titles[1:], rest, strict=True)]
        return found
    rule = "|" + "|".join("-" * (wide + 2) for wide in widths) + "|"
    first, *others = (_row(cells, widths) for cells in (titles, *rows))
    return [first, rule, *others]


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(wide) for cell, wide in zip(cells, widths, strict=True)) + " |"


def wrapped(text: str, room: int) -> list[str]:
    """Return ``text`` in lines of at most ``room`` columns where its words allow it."""
    import textwrap

    if room >= len(text):
        return [text]
    return textwrap.wrap(text, max(room, 20), subsequent_indent="  ", break_on_hyphens=False)


def plain(text: str) -> str:
    """Return ``text`` without what would steer a terminal: files and repositories may hold anything."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def columns() -> int:
    """Return the columns of the terminal; when the output goes elsewhere, as many as it likes."""
    given = os.environ.get("COLUMNS", "")
    if given.isdigit():
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return sys.maxsize


__all__ = ["columns", "facts", "lines", "plain", "size", "table", "wrapped"]
