"""All that one read needs, owned from one moment on.

A read takes a `Hold`: in one step, without waiting, it collects the segments and flights that cover it and
starts flights for the rest. From then on it owns references to all its bytes, so neither eviction nor another
reader's failure can take them away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from vfs.cache.intervals import Intervals, Range, coalesce, merged
from vfs.cache.segments import File, Flight, Key, Segment, arrived, key_of
from vfs.spans import DerivedObject, StoredObject

if TYPE_CHECKING:
    from vfs.cache.blocks import BlockCache

KIB, MIB = 1024, 1024 * 1024
GAP = 64 * KIB  # a second request costs more than this many bytes (40 ms at 12 Mbit/s)
MAX_REQUEST = 8 * MIB  # above it a request gains nothing; see docs/architecture.md
# A stream is given no less at a time: 3 ms of a line of 200 Mbit/s. Each piece costs a turn of the loop.
_STREAMED = 64 * KIB


class _Part:
    """The segments and flights of one file that a hold owns. wanted: ranges, sorted and disjoint."""

    __slots__ = ("flights", "ready", "wanted")

    def __init__(self, wanted: Sequence[Range]) -> None:
        self.wanted = wanted
        self.ready: Intervals[Segment] = Intervals()
        self.flights: Intervals[Flight] = Intervals()

    def views(self, start: int, end: int) -> Iterator[memoryview]:
        while start < end:
            piece = self.at(start)
            stop = min(end, piece.end)
            yield piece.piece(start, stop)
            start = stop

    def at(self, offset: int) -> Segment | Flight:
        """What has this byte, or will have it."""
        found = self.ready.at(offset) or self.flights.at(offset)
        if found is None:
            raise ValueError(f"byte {offset} was not asked for")
        return found


class Hold:
    """All that one read needs, owned until the context ends: `add` ranges, `wait`, take `views`."""

    def __init__(self, cache: BlockCache) -> None:
        self._cache = cache
        self._parts: dict[Key, _Part] = {}
        self._local: list[tuple[StoredObject, _Part, Range]] = []

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the context."""
        for part in self._parts.values():
            for flight in part.flights:
                flight.leave()

    def add(
        self,
        stored: StoredObject,
        ranges: Sequence[Range],
        *,
        gap: int = GAP,
        max_request: int = MAX_REQUEST,
    ) -> None:
        """Collect what is here, join what is on its way and start fetching the rest; does not wait."""
        if key_of(stored) in self._parts:
            raise ValueError(f"{stored.key} was added before")
        ranges = merged(ranges)
        if not ranges:
            return
        cache = self._cache
        if isinstance(stored, DerivedObject):
            gap, grain = 0, max(stored.grain, 1)
            ranges = merged(_grown(span, grain, stored.size) for span in ranges)
            max_request = max(max_request // grain, 1) * grain
        if not cache.keeps(stored):
            self._add_local(stored, ranges, gap, max_request)
            return
        file = cache.file(stored)
        part = self._parts[file.key] = _Part(ranges)
        for span in ranges:
            self._collect(file, part, span)
        fetches = cache.planned(file, ranges, gap, max_request)
        for span in fetches.disk:
            cache.start(file, span, from_disk=True)
        for span in fetches.requests:
            cache.start(file, span, from_disk=False)
        fresh = len(fetches.disk) + len(fetches.requests)
        for span in ranges:
            for flight in file.flights.overlapping(*span):
                if part.flights.at(flight.start) is not flight:
                    part.flights.add(flight)
                    flight.hold()
        cache.counters.joins += len(part.flights) - fresh

    def _collect(self, file: File, part: _Part, span: Range) -> None:
        for segment in file.ready.overlapping(*span):
            if part.ready.at(segment.start) is not segment:
                part.ready.add(segment)
                self._cache.budget.touch(segment)

    def _add_local(self, stored: StoredObject, ranges: list[Range], gap: int, max_request: int) -> None:
        part = self._parts[key_of(stored)] = _Part(ranges)
        self._local += [(stored, part, span) for span in coalesce(ranges, (), gap, max_request)]

    async def wait(self) -> None:
        """Until all that was added is here; what the same requests bring besides may be on its way.

        Raises what the store raised; the rest of the fetching then ends with the context. No checkpoint when
        nothing is on its way.
        """
        await self._read_local()
        wanted = [
            (flight, min(end, flight.end))
            for part in self._parts.values()
            for start, end in part.wanted
            for flight in part.flights.overlapping(start, end)
        ]
        if wanted:
            await arrived(wanted)

    @property
    def pending(self) -> bool:
        """Something is on its way."""
        return any(not flight.done for part in self._parts.values() for flight in part.flights)

    async def _read_local(self) -> None:
        while self._local:
            stored, part, (start, end) = self._local.pop()
            body = await self._cache.request(stored, start, end)
            part.ready.add(Segment(None, start, body))

    async def piece(self, stored: StoredObject, start: int, end: int) -> memoryview:
        """The first bytes of a range that was added, once there are some. Raises what the store raised."""
        await self._read_local()
        found = self._parts[key_of(stored)].at(start)
        end = min(end, found.end)
        if isinstance(found, Flight):
            await found.reach(min(start + _STREAMED, end))
            end = min(end, found.here)
        return found.piece(start, end)

    def views(self, stored: StoredObject, offset: int, length: int) -> list[memoryview]:
        """The bytes of a range that was added, after `wait`."""
        return list(self._parts[key_of(stored)].views(offset, offset + length)) if length else []


def _grown(span: Range, grain: int, size: int) -> Range:
    """The range to the multiples of `grain` around it."""
    return span[0] // grain * grain, min(-(-span[1] // grain) * grain, size)
