"""Bytes of object versions in memory: exact segments, each byte fetched once while it is kept.

Segments are not blocks of a fixed alignment: a small read fetches what it asks for and no more, a
sequential one fetches megabytes. What is here and on its way is in `segments`, what one read owns in `hold`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vfs.cache.budget import Budget
from vfs.cache.disk import DiskCache
from vfs.cache.hold import GAP, MAX_REQUEST, Hold
from vfs.cache.intervals import Range, coalesce, merged, subtract
from vfs.cache.segments import File, Flight, Key, Segment, key_of
from vfs.errors import BadBody
from vfs.spans import DerivedObject, StoredObject
from vfs.storage.arriving import Arriving
from vfs.storage.base import Store

KIB = 1024
# Neighbouring small segments are copied together, so that a file read in 4 KiB steps does not become a
# list of thousands. Copies of up to this size take some 20 us: no need for a thread.
_COMPACT = 256 * KIB


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
    """Events since the start. requests, fetched: to the store, and their bytes; disk_reads: from disk.

    hits: reads served by one segment without waiting; joins: flights shared with another reader.
    """

    requests: int = 0
    fetched: int = 0
    disk_reads: int = 0
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
        self._files: dict[Key, File] = {}

    def peek(self, stored: StoredObject, offset: int, length: int) -> memoryview | None:
        """The bytes, if one segment has them all: no waiting, no copy, no checkpoint."""
        file = self._files.get(key_of(stored))
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
        file = self._files.get(key_of(stored))
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
        wanted = None if objects is None else {key_of(stored): stored for stored in objects}
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

    def leave(self, stored: StoredObject, start: int, end: int) -> None:
        """Drop from memory what ends within [start, end): it was read, and will not be soon again."""
        file = self._files.get(key_of(stored))
        if file is not None:
            for segment in file.ready.overlapping(start, end):
                if segment.end <= end:
                    self._remove(segment)
            self._tidy(file)

    def plan(
        self,
        stored: StoredObject,
        ranges: Iterable[Range],
        *,
        gap: int = GAP,
        max_request: int = MAX_REQUEST,
    ) -> Fetches:
        """What a read of these ranges would fetch now."""
        file = self._files.get(key_of(stored)) or self._new(stored)
        if self.disk is not None:
            self.disk.settle_now(file.identity)
        return self.planned(file, ranges, gap, max_request)

    def _new(self, stored: StoredObject) -> File:
        identity = self.disk.identity(self.store.url, stored) if self.disk is not None else ""
        return File(key_of(stored), stored, identity)

    def file(self, stored: StoredObject) -> File:
        """What is here and on its way of a version."""
        file = self._files.get(key_of(stored))
        if file is None:
            file = self._files[key_of(stored)] = self._new(stored)
        return file

    def planned(self, file: File, ranges: Iterable[Range], gap: int, max_request: int) -> Fetches:
        """The same, of what the disk is known to have."""
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

    def start(self, file: File, span: Range, *, from_disk: bool) -> None:
        """Begin to fetch a range of which nothing is on its way."""
        flight = Flight(
            span,
            lambda arriving: self._fetch(file, span, arriving, from_disk=from_disk),
            lambda flight: self._ended(file, flight),
        )
        file.flights.add(flight)
        self.budget.pin(flight.end - flight.start)
        flight.begin()

    async def _fetch(self, file: File, span: Range, arriving: Arriving, *, from_disk: bool) -> memoryview:
        start, end = span
        if self.disk is None:
            return await self.request(file.stored, start, end, arriving)
        if from_disk and (found := await self.disk.read(file.identity, start, end)) is not None:
            self.counters.disk_reads += 1
            return found
        body = await self.request(file.stored, start, end, arriving)
        if not (isinstance(file.stored, DerivedObject) and file.stored.bulky):
            self.disk.offer(file.identity, start, body)
        return body

    def keeps(self, stored: StoredObject) -> bool:
        """Whether bytes are kept: not those of local files, which are read again as fast. What is made is,
        wherever its sources lie.
        """
        return self.store.remote or isinstance(stored, DerivedObject)

    async def _made(self, derived: DerivedObject, start: int, end: int) -> memoryview:
        body = memoryview(await derived.make(start, end - start)).toreadonly()
        if len(body) != end - start:
            raise BadBody(f"{derived.key}: {len(body)} bytes were made at {start} where {end - start} belong")
        return body

    async def request(
        self, stored: StoredObject, start: int, end: int, arriving: Arriving | None = None
    ) -> memoryview:
        """Bytes from the store, or made. Raises Stale, StoreError."""
        if isinstance(stored, DerivedObject):
            return await self._made(stored, start, end)
        self.counters.requests += 1
        body = memoryview(await self.store.read(stored, start, end - start, arriving)).toreadonly()
        if len(body) != end - start:
            raise BadBody(f"{stored.key}: asked for {end - start} bytes at {start}, got {len(body)}")
        self.counters.fetched += end - start
        return body

    def _ended(self, file: File, flight: Flight) -> None:
        file.flights.discard(flight)
        self.budget.unpin(flight.end - flight.start)
        if flight.succeeded:
            self._keep(file, Segment(file, flight.start, flight.value))
        self._tidy(file)

    def _keep(self, file: File, segment: Segment) -> None:
        for old in file.ready.overlapping(segment.start, segment.end):
            self._remove(old)
        segment = self._compacted(file, segment)
        file.ready.add(segment)
        if not self.budget.put(segment, segment, segment.cost, evicted=self._evicted):
            file.ready.discard(segment)

    def _compacted(self, file: File, segment: Segment) -> Segment:
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

    def _tidy(self, file: File) -> None:
        if not file.ready and not file.flights and self._files.get(file.key) is file:
            del self._files[file.key]
