"""Find accesses to the stand-in's memory that nothing puts in an order, in what it logged.

Streams run on their own; only events, and a host that waits, order them. Two accesses on different streams,
of which one writes, must be ordered so, or a faster device mixes them up some day. Taking and giving back
memory count as writes on the stream where it was taken: allocators that cache hand it out again there.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

Entry = tuple[str, int, int, int, int]
_Stream = tuple[int, int]
_Clock = dict[_Stream, int]


@dataclass(slots=True)
class _Memory:
    """One allocation: who wrote it last, who read it since, and who keeps it."""

    size: int
    writes: dict[_Stream, int] = field(default_factory=dict)
    reads: dict[_Stream, int] = field(default_factory=dict)
    kept: set[_Stream] = field(default_factory=set)


class _Watch:
    def __init__(self) -> None:
        self.clocks: dict[_Stream, _Clock] = {}
        self.host: _Clock = {}
        self.events: dict[tuple[int, int], _Clock] = {}
        self.memory: dict[int, _Memory] = {}
        self.addresses: list[int] = []
        self.found: list[str] = []

    def step(self, stream: _Stream) -> _Clock:
        """Queue something: it comes after what its stream did, and after what the host has waited for."""
        clock = self.clocks.setdefault(stream, {})
        _merge(clock, self.host)
        clock[stream] = clock.get(stream, 0) + 1
        return clock

    def access(self, what: str, stream: _Stream, address: int) -> None:
        clock = self.step(stream)
        place = bisect_right(self.addresses, address) - 1
        if place < 0:
            return
        memory = self.memory[self.addresses[place]]
        if address >= self.addresses[place] + memory.size:
            return
        self.check(what, stream, clock, memory)
        table = memory.reads if what == "read" else memory.writes
        table[stream] = clock[stream]

    def check(self, what: str, stream: _Stream, clock: _Clock, memory: _Memory) -> None:
        earlier = [("write", memory.writes)] + ([("read", memory.reads)] if what != "read" else [])
        for kind, table in earlier:
            for other, tick in table.items():
                if other != stream and clock.get(other, 0) < tick:
                    self.found.append(f"{what} on stream {stream} does not wait for {kind} on stream {other}")

    def alloc(self, stream: _Stream, address: int, size: int) -> None:
        if address not in self.memory:
            insort(self.addresses, address)
        self.memory[address] = _Memory(size, writes={stream: self.step(stream)[stream]})

    def free(self, stream: _Stream, address: int) -> None:
        memory = self.memory.pop(address, None)
        if memory is not None:
            self.addresses.remove(address)
            # It is not handed out again before what was queued on the streams that keep it.
            clock = dict(self.step(stream))
            for each in memory.kept:
                _merge(clock, self.clocks.get(each, {}))
            self.check("free", stream, clock, memory)


def _merge(clock: _Clock, other: _Clock) -> None:
    for stream, tick in other.items():
        clock[stream] = max(clock.get(stream, 0), tick)


def races(entries: Iterable[Entry]) -> list[str]:
    """Return a sentence for each pair of accesses in ``torch.standin.traced()`` that nothing orders.

    Of threads of the host it is assumed that they order themselves as logged: what they forget of locks is
    not found.
    """
    watch = _Watch()
    for what, device, number, first, second in entries:
        stream = (device, number)
        if what in {"read", "write"}:
            watch.access(what, stream, first)
        elif what == "alloc":
            watch.alloc(stream, first, second)
        elif what == "free":
            watch.free(stream, first)
        elif what == "keep":
            if first in watch.memory:
                watch.memory[first].kept.add(stream)
        elif what == "record":
            watch.events[first, second] = dict(watch.step(stream))
        elif what == "wait":
            _merge(watch.step(stream), watch.events.get((first, second), {}))
        elif what == "host":
            _merge(watch.host, watch.events.get((first, second), {}))
        else:
            assert what == "sync"
            _merge(watch.host, watch.clocks.get(stream, {}))
    return watch.found


__all__ = ["races"]
