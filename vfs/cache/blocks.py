"""Bytes of object versions in memory: exact segments, each byte fetched once while it is kept.

Segments are not blocks of a fixed alignment: a small read fetches what it asks for and no more, a
sequential one fetches megabytes. Per version of an object there is a sorted list of *segments* (bytes
that are here) and one of *flights* (bytes on their way). A read takes a `Hold`: in one step, without
waiting, it collects the segments and flights that cover it and starts flights for the rest. From then on
it owns references to all its bytes, so neither eviction nor another reader's failure can take them away.

Two invariants make the bookkeeping simple. Flights are disjoint. A flight covers, beside missing bytes,
only whole segments (those in a hole that was not worth a second request), which its body replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import trio

from vfs.cache.budget import Budget
from vfs.cache.disk import DiskCache
from vfs.cache.intervals import Intervals, Range, coalesce, merged, subtract
from vfs.cache.shared import Shared
from vfs.errors import BadBody
from vfs.spans import DerivedObject, StoredObject
from vfs.storage.arriving import Arriving
from vfs.storage.base import Store

KIB, MIB = 1024, 1024 * 1024
GAP = 64 * KIB  # a second request costs more than this many bytes (40 ms at 12 Mbit/s)
MAX_REQUEST = 8 * MIB  # above it a request gains nothing; see docs/architecture.md
# Neighbouring small segments are copied together, so that a file read in 4 KiB steps does not become a
# list of thousands. Copies of up to this size take some 20 us: no need for a thread.
_COMPACT = 256 * KIB
# A stream is given no less at a time: 3 ms of a line of 200 Mbit/s. Each piece costs a turn of the loop.
_STREAMED = 64 * KIB
_OVERHEAD = 512  # bytes of bookkeeping per segment, measured with tracemalloc


class Segment:
    """Bytes [start, end) that are here. `data` is read-only and never changes. file: None = not kept."""

    __slots__ = ("data", "end", "file", "start")

    def __init__(self, file: _File | None, start: int, data: memoryview) -> None:
        self.file = file
        self.start = start
        self.end = start + len(data)
        self.data = data

    @property
    def cost(self) -> int:
        """Bytes of memory."""
        return len(self.data) + _OVERHEAD

    def piece(self, start: int, stop: int) -> memoryview:
        """Some of the bytes."""
        return self.data[start - self.start : stop - self.start]


class Flight(Shared[memoryview]):
    """Bytes [start, end) that are on their way, from the disk cache or the store; the first may be here."""

    __slots__ = ("arriving", "end", "start")

    def __init__(self, cache: BlockCache, file: _File, span: Range, *, from_disk: bool) -> None:
        self.start, self.end = span
        self.arriving = arriving = Arriving(self.end - self.start)
        super().__init__(
            lambda: cache._fetch(file, *span, arriving, from_disk=from_disk),
            lambda: cache._ended(file, self),
        )
        self.watch(lambda _: arriving.close())

    @property
    def here(self) -> int:
        """The end of what is here: that may be looked at.

        The last byte is not before the request has ended well: who needs all of it must not leave, and with
        that end it, before it is kept.
        """
        return self.end if self.succeeded else min(self.start + self.arriving.have, self.end - 1)

    def watch_for(self, stop: int, watcher: Callable[[], object]) -> None:
        """Have `watcher()` called when the bytes before `stop` are here, or when it has ended."""
        self.arriving.watch(stop - self.start + (stop == self.end), watcher)

    def piece(self, start: int, stop: int) -> memoryview:
        """Bytes that are here."""
        if self.succeeded:
            return self.value[start - self.start : stop - self.start]
        return self.arriving.view(start - self.start, stop - self.start)

    async def reach(self, stop: int) -> None:
        """Until the bytes before `stop` are here. Raises what kept them away."""
        await arrived([(self, stop)])


async def arrived(wanted: Sequence[tuple[Flight, int]]) -> None:
    """Until of each flight, which is held, the bytes before a position are here. Raises the first failure."""
    enough = trio.Event()

    def look() -> None:
        failed = any(flight.done and flight.here < stop for flight, stop in wanted)
        if failed or all(flight.here >= stop for flight, stop in wanted):
            enough.set()

    look()
    if not enough.is_set():
        waiting = [(flight, stop) for flight, stop in wanted if flight.here < stop]
        try:
            for flight, stop in waiting:
                flight.watch_for(stop, look)
            await enough.wait()
        finally:
            for flight, _ in waiting:
                flight.arriving.forget(look)
    for flight, stop in wanted:
        if flight.done and flight.here < stop:
            await flight.wait()


class _File:
    """What is here and on its way of one version of one object. identity: its name on disk."""

    __slots__ = ("flights", "identity", "key", "ready", "stored")

    def __init__(self, key: tuple[str, str, int], stored: StoredObject, identity: str) -> None:
        self.key = key
        self.stored = stored
        self.identity = identity
        self.ready: Intervals[Segment] = Intervals()
        self.flights: Intervals[Flight] = Intervals()


@dataclass(frozen=True, slots=True)
class Fetches:
    """What a read has to fetch: requests to the store and reads from the disk cache.

    missing: bytes that were asked for and only the store has (`requests` cover gaps beside them).
    """

    requests: tuple[Range, ...] = ()
    disk: tuple[Range, ...] = ()
    missing: int = 0


@dataclass(slots=True)
class Counters:
    """Events since the start. requests, fetched: to the store, and their bytes; disk: likewise from disk.

    hits: reads served by one segment without waiting; joins: flights shared with another reader.
    """

    requests: int = 0
    fetched: int = 0
    disk_reads: int = 0
    disk_bytes: int = 0
    hits: int = 0
    joins: int = 0


class BlockCache:
    """Reads of stored objects through memory, then disk, then the store. A local store is read straight,
    one call after the other, and nothing of it is kept: the kernel does that.

    Every fetch names its version; what fails is not kept; a body of another length is BadBody. A body
    is kept as it came, so no segment is larger than one request.
    """

    def __init__(self, store: Store, budget: Budget, disk: DiskCache | None = None) -> None:
        self.store = store
        self.budget = budget
        self.disk = disk if store.remote else None
        if self.disk is not None and self.disk.budget is None:
            self.disk.budget = budget
        self.counters = Counters()
        self._files: dict[tuple[str, str, int], _File] = {}

    def peek(self, stored: StoredObject, offset: int, length: int) -> memoryview | None:
        """The bytes, if one segment has them all: no waiting, no copy, no checkpoint."""
        file = self._files.get((stored.key, stored.version, stored.size))
        if file is None:
            return None
        segment = file.ready.at(offset)
        if segment is None or offset + length > segment.end:
            return None
        self.counters.hits += 1
        self.budget.touch(segment)
        offset -= segment.start
        return segment.data[offset : offset + length]

    def has(self, stored: StoredObject, start: int, end: int) -> bool:
        """The bytes [start, end) are all in memory."""
        file = self._files.get((stored.key, stored.version, stored.size))
        return file is not None and not file.ready.gaps(start, end)

    async def read(
        self,
        stored: StoredObject,
        offset: int,
        length: int,
        *,
        gap: int = GAP,
        max_request: int = MAX_REQUEST,
    ) -> list[memoryview]:
        """The bytes [offset, offset + length) in one or more pieces. Raises Stale, StoreError."""
        view = self.peek(stored, offset, length)
        if view is not None:
            return [view]
        with self.hold() as hold:
            await self.settle((stored,))
            hold.add(stored, [(offset, offset + length)], gap=gap, max_request=max_request)
            await hold.wait()
            return hold.views(stored, offset, length)

    def hold(self) -> Hold:
        """A context in which sets of ranges are fetched together."""
        return Hold(self)

    async def settle(self, objects: Iterable[StoredObject]) -> None:
        """Learn what the disk has of these versions; after it `plan` and `Hold.add` know."""
        if self.disk is not None:
            for stored in objects:
                await self.disk.settle(self.disk.identity(self.store.url, stored))

    async def forget(self, objects: Iterable[StoredObject] | None = None) -> int:
        """Drop what is kept of these versions (None: of all), in memory and on disk; the bytes freed.

        What readers hold now stays theirs.
        """
        wanted = None if objects is None else {_key(stored): stored for stored in objects}
        freed = 0
        for key in list(self._files) if wanted is None else [k for k in wanted if k in self._files]:
            file = self._files[key]
            for segment in list(file.ready):
                freed += len(segment.data)
                self._remove(segment)
            self._tidy(file)
        if self.disk is not None:
            disk, url = self.disk, self.store.url
            freed += (
                await disk.clear()
                if wanted is None
                else await disk.forget(disk.identity(url, stored) for stored in wanted.values())
            )
        return freed

    def plan(
        self,
        stored: StoredObject,
        ranges: Iterable[Range],
        *,
        gap: int = GAP,
        max_request: int = MAX_REQUEST,
    ) -> Fetches:
        """What a read of these ranges would fetch now."""
        file = self._files.get(_key(stored)) or self._new(stored)
        if self.disk is not None:
            self.disk.settle_now(file.identity)
        return self._plan(file, ranges, gap, max_request)

    def _new(self, stored: StoredObject) -> _File:
        identity = self.disk.identity(self.store.url, stored) if self.disk is not None else ""
        return _File(_key(stored), stored, identity)

    def _file(self, stored: StoredObject) -> _File:
        file = self._files.get(_key(stored))
        if file is None:
            file = self._files[_key(stored)] = self._new(stored)
        return file

    def _plan(self, file: _File, ranges: Iterable[Range], gap: int, max_request: int) -> Fetches:
        missing = [
            hole
            for start, end in merged(ranges)
            for gone in file.ready.gaps(start, end)
            for hole in file.flights.gaps(*gone)
        ]
        disk: list[Range] = []
        if self.disk is not None and missing:
            found = [(hole, self.disk.cover(file.identity, *hole)) for hole in missing]
            disk = [piece for _, pieces in found for piece in pieces]
            missing = [rest for hole, pieces in found for rest in subtract(hole, pieces)]
        busy = merged([*disk, *((f.start, f.end) for f in file.flights)]) if missing else []
        requests = coalesce(missing, busy, gap, max_request)
        return Fetches(tuple(requests), tuple(disk), sum(end - start for start, end in missing))

    def _start(self, file: _File, span: Range, *, from_disk: bool) -> None:
        flight = Flight(self, file, span, from_disk=from_disk)
        file.flights.add(flight)
        self.budget.pin(flight.end - flight.start)
        flight.begin()

    async def _fetch(
        self, file: _File, start: int, end: int, arriving: Arriving, *, from_disk: bool
    ) -> memoryview:
        if self.disk is None:
            return await self._request(file.stored, start, end, arriving)
        if from_disk and (found := await self.disk.read(file.identity, start, end)) is not None:
            self.counters.disk_reads += 1
            self.counters.disk_bytes += end - start
            return found
        body = await self._request(file.stored, start, end, arriving)
        if not (isinstance(file.stored, DerivedObject) and file.stored.bulky):
            self.disk.offer(file.identity, start, body)
        return body

    def _keeps(self, stored: StoredObject) -> bool:
        """Local files are not: they are read again as fast. What is made is, wherever its sources lie."""
        return self.store.remote or isinstance(stored, DerivedObject)

    async def _made(self, derived: DerivedObject, start: int, end: int) -> memoryview:
        body = memoryview(await derived.make(start, end - start)).toreadonly()
        if len(body) != end - start:
            raise BadBody(f"{derived.key}: {len(body)} bytes were made at {start} where {end - start} belong")
        return body

    async def _request(
        self, stored: StoredObject, start: int, end: int, arriving: Arriving | None = None
    ) -> memoryview:
        if isinstance(stored, DerivedObject):
            return await self._made(stored, start, end)
        self.counters.requests += 1
        body = memoryview(await self.store.read(stored, start, end - start, arriving)).toreadonly()
        if len(body) != end - start:
            raise BadBody(f"{stored.key}: asked for {end - start} bytes at {start}, got {len(body)}")
        self.counters.fetched += end - start
        return body

    def _ended(self, file: _File, flight: Flight) -> None:
        file.flights.discard(flight)
        self.budget.unpin(flight.end - flight.start)
        if flight.succeeded:
            self._keep(file, Segment(file, flight.start, flight.value))
        self._tidy(file)

    def _keep(self, file: _File, segment: Segment) -> None:
        for old in file.ready.overlapping(segment.start, segment.end):
            self._remove(old)
        segment = self._compacted(file, segment)
        file.ready.add(segment)
        if not self.budget.put(segment, segment, segment.cost, evicted=self._evicted):
            file.ready.discard(segment)

    def _compacted(self, file: _File, segment: Segment) -> Segment:
        """The segment joined with small neighbours. A neighbour at most twice as large: each byte is
        copied a logarithmic number of times, however small the steps of a sequential reader are."""
        while True:
            size = len(segment.data)
            room = min(2 * size, _COMPACT - size)
            pair = (file.ready.before(segment), file.ready.at(segment.end))
            near = next((s for s in pair if s is not None and len(s.data) <= room), None)
            if near is None:
                return segment
            self._remove(near)
            first, second = sorted((near, segment), key=lambda s: s.start)
            segment = Segment(file, first.start, memoryview(b"".join((first.data, second.data))))

    def _remove(self, segment: Segment) -> None:
        if segment.file is not None:
            segment.file.ready.discard(segment)
        self.budget.drop(segment)

    def _evicted(self, segment: Segment) -> None:
        if segment.file is not None:
            segment.file.ready.discard(segment)
            self._tidy(segment.file)

    def _tidy(self, file: _File) -> None:
        if not file.ready and not file.flights and self._files.get(file.key) is file:
            del self._files[file.key]


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
        self._parts: dict[tuple[str, str, int], _Part] = {}
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
        if _key(stored) in self._parts:
            raise ValueError(f"{stored.key} was added before")
        ranges = merged(ranges)
        if not ranges:
            return
        cache = self._cache
        if isinstance(stored, DerivedObject):
            gap, grain = 0, max(stored.grain, 1)
            ranges = merged(_grown(span, grain, stored.size) for span in ranges)
            max_request = max(max_request // grain, 1) * grain
        if not cache._keeps(stored):
            self._add_local(stored, ranges, gap, max_request)
            return
        file = cache._file(stored)
        part = self._parts[file.key] = _Part(ranges)
        for span in ranges:
            self._collect(file, part, span)
        fetches = cache._plan(file, ranges, gap, max_request)
        for span in fetches.disk:
            cache._start(file, span, from_disk=True)
        for span in fetches.requests:
            cache._start(file, span, from_disk=False)
        fresh = len(fetches.disk) + len(fetches.requests)
        for span in ranges:
            for flight in file.flights.overlapping(*span):
                if part.flights.at(flight.start) is not flight:
                    part.flights.add(flight)
                    flight.hold()
        cache.counters.joins += len(part.flights) - fresh

    def _collect(self, file: _File, part: _Part, span: Range) -> None:
        for segment in file.ready.overlapping(*span):
            if part.ready.at(segment.start) is not segment:
                part.ready.add(segment)
                self._cache.budget.touch(segment)

    def _add_local(self, stored: StoredObject, ranges: list[Range], gap: int, max_request: int) -> None:
        part = self._parts[_key(stored)] = _Part(ranges)
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
            body = await self._cache._request(stored, start, end)
            part.ready.add(Segment(None, start, body))

    async def piece(self, stored: StoredObject, start: int, end: int) -> memoryview:
        """The first bytes of a range that was added, once there are some. Raises what the store raised."""
        await self._read_local()
        found = self._parts[_key(stored)].at(start)
        end = min(end, found.end)
        if isinstance(found, Flight):
            await found.reach(min(start + _STREAMED, end))
            end = min(end, found.here)
        return found.piece(start, end)

    def views(self, stored: StoredObject, offset: int, length: int) -> list[memoryview]:
        """The bytes of a range that was added, after `wait`."""
        return list(self._parts[_key(stored)].views(offset, offset + length)) if length else []


def _grown(span: Range, grain: int, size: int) -> Range:
    """The range to the multiples of `grain` around it."""
    return span[0] // grain * grain, min(-(-span[1] // grain) * grain, size)


def _key(stored: StoredObject) -> tuple[str, str, int]:
    return stored.key, stored.version, stored.size
