"""``accel device-map``, from its arguments to what is printed."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from accel_core.errors import ConfigError, Fault, UnknownNameError
from accel_core.trouble import explaining

from ..estimate.bits import BITS, FLOATS, WANTED
from ..estimate.headers import read_headers
from ..estimate.shapes import ModelHeaders
from ..planning.explaining import explained
from ..planning.header_outline import outline_of_headers
from ..planning.needs import Needs, needs_of_config
from ..planning.outline import Outline
from ..planning.plan import DevicePlan
from ..planning.reasons import plan_of
from ..planning.solving import KEEPERS, solve
from ..planning.strategies import spread
from ..planning.units import memory_size, shown
from .picture import Picture, picture_of
from .terminal import columns, plain, show

_MOST_DEVICES = 4096
_ORDER = "The order of the parts is guessed from their names: the files do not tell it."


def run(arguments: Namespace) -> int:
    """Plan, then print and write what is asked for."""
    headers = read_headers(arguments.model_name, revision=arguments.revision, offline=arguments.offline)
    plan = plan_headers(headers, arguments)
    picture = picture_of(plan, _title(headers, arguments, plan))
    # A drawing that cannot be made is an error before anything is printed.
    for file, draw in ((arguments.png, _png), (arguments.html, _html)):
        if file:
            with explaining("write the drawing", Path(file)):
                draw(picture, Path(file))
    if arguments.json:
        print(json.dumps({"source": headers.source, **plan.as_dict()}, indent=2))
        return 0
    show(picture)
    if arguments.explain:
        print()
        # The notes are below the picture already.
        print(plain(explained(replace(plan, notes=()), columns())))
    return 0


def plan_headers(headers: ModelHeaders, arguments: Namespace) -> DevicePlan:
    """Return the plan for a model of which only the headers are known."""
    bits = None if arguments.dtype is None else WANTED[arguments.dtype]
    outline = outline_of_headers(headers, bits, arguments.no_split)
    needs = _needs(headers, outline, arguments, bits)
    outline.caches = dict(needs.caches)
    notes = list(needs.notes)
    if arguments.max_memory is None:
        from ..planning.memory import get_max_memory

        limits: Mapping[int | str, int] = get_max_memory()
        notes.append("The limits are what is free on this machine now.")
    else:
        limits = limits_of(arguments.max_memory)
    solution = solve(
        outline,
        limits,
        shares=spread(outline, limits, arguments.strategy, workspace=needs.workspace),
        offload_buffers=arguments.offload_buffers,
        workspace=needs.workspace,
        look_ahead=arguments.fallback_allocation,
    )
    return plan_of(solution, arguments.strategy, (*headers.notes, *notes, _ORDER))


def limits_of(texts: Sequence[str]) -> dict[int | str, int]:
    """Return limits from texts such as ``0=24GiB``, ``0-3=80GiB``, ``cpu=64GiB``, in the order of filling.

    Raises UnknownNameError and ConfigError.
    """
    found: dict[int | str, int] = {}
    for text in texts:
        names, equals, size = text.partition("=")
        if not equals:
            raise ConfigError(
                "device-map", [Fault("--max_memory", text, "is no DEVICE=SIZE", "for example 0=24GiB")]
            )
        for device in _devices(names):
            if device in found:
                raise ConfigError(
                    "device-map", [Fault("--max_memory", text, f"device {device} is there twice")]
                )
            found[device] = memory_size(int(size) if size.isdigit() else size, f"--max_memory {names}")
    numbers = sorted(device for device in found if isinstance(device, int))
    order: list[int | str] = [*numbers, *(keeper for keeper in KEEPERS if keeper in found)]
    return {key: found[key] for key in order}


def _devices(text: str) -> Sequence[int | str]:
    if text in KEEPERS:
        return [text]
    first, dash, last = text.partition("-")
    last = last if dash else first
    if all(each.isascii() and each.isdigit() and int(each) < _MOST_DEVICES for each in (first, last)):
        return range(int(first), int(last) + 1)
    raise UnknownNameError(
        "device", text, KEEPERS, fix="accelerators are numbers from 0 on, or a range of them: 0-3=80GiB"
    )


def _needs(headers: ModelHeaders, outline: Outline, arguments: Namespace, bits: int | None) -> Needs:
    reserve = memory_size(_number(arguments.reserve), "--reserve")
    if arguments.batch_size is None and arguments.sequence_length is None:
        return Needs().more(reserve)
    floats = [BITS[each.code] for each in headers.tensors.values() if each.code in FLOATS]
    width = max(16, bits or max(floats, default=16))
    names = [*headers.tensors, *headers.aliases]
    batch, length = arguments.batch_size or 1, arguments.sequence_length or 1
    return needs_of_config(headers.config, names, outline, batch, length, width).more(reserve)


def _number(value: int | str) -> int | str:
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _title(headers: ModelHeaders, arguments: Namespace, plan: DevicePlan) -> str:
    size = sum(row.bytes for row in plan.rows)
    kind = f" in {arguments.dtype}" if arguments.dtype else ""
    return f"{headers.source}: {shown(size)}{kind}, {plan.strategy}"


def _png(picture: Picture, file: Path) -> None:
    from .png import write_png

    write_png(picture, file)


def _html(picture: Picture, file: Path) -> None:
    from .html import page

    file.write_text(page(picture), encoding="utf-8")


__all__ = ["limits_of", "plan_headers", "run"]
