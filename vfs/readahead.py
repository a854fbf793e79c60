"""Reading ahead of sequential readers: per handle a few cursors, for all together one share of the memory.

A cursor is a place where a handle is being read in order. It grows a window once its reader has shown that
it goes on: as much ahead as was read in order, four times that from a megabyte on. A read that continues no
cursor is a jump: it starts a cursor of its own and ends what was on its way for the one it left. The
kernel sends the pieces of its own read-ahead in any order, so "in order" has a tolerance.

Nothing here is waited for: fetches run in background tasks under a limit below what the store takes, and
their errors are dropped, since the read that needs the bytes will meet the error itself.
"""

from __future__ import annotations

import logging
from collections import OrderedDict

import trio

from vfs.cache.blocks import BlockCache
from vfs.cache.hold import KIB, MAX_REQUEST, MIB, Hold
from vfs.cache.intervals import Range, merged
from vfs.errors import ReelfsError
from vfs.spans import Extent, Layout, StoredObject

log = logging.getLogger("vfs.readahead")

#: Head, tail and body of a player, and one more for a second program on the same handle.
CURSORS = 4
# How far a read may lie from where its cursor stands: the kernel splits its read-ahead into pieces of
# 128 KiB (1 MiB where its read-ahead was raised) and sends a few of them at once.
_TOLERANCE = 256 * KIB
_LATE = 2 * MIB
# Read in order, after which the window is several times what was read instead of as much: every doubling
# costs a round trip in which a line of 300 MB/s would have moved 12 MB.
_SURE = 1 * MIB
_GROWTH = 4
_SMALLEST = 256 * KIB  # a smaller request ahead costs more than it brings
_PIECE = MAX_REQUEST  # of one request ahead
_PARTS = 4  # a window is fetched in at least so many requests, so that the first comes soon
# Large pieces end at multiples of this: READs are that large and begin there, and one that needs two pieces
# costs a copy.
_GRAIN = 1 * MIB
# Of the budget. While a window is read, as many bytes land behind it and as many are touched again before
# it: with the half that precious entries may hold, all fit, and nothing is evicted before it was read.
_SHARE = 4
_FRESH = 10.0  # seconds after its last read in which a cursor counts as reading
# What is read in order for longer than this is a stream: nobody comes back for what it has gone past, or
# finds it in the pages of the kernel or on the disk. Kept here, it would push out everything else.
_STREAM = 16 * MIB
_BEHIND = 4 * MIB  # dropped at a time


class Cursor:
    """A place of sequential reading, in bytes of the layout.

    position: the end of what was read. run: bytes read in order. ahead: the end of what is being fetched.
    behind: before it nothing of this run is kept. enough: while so much is ahead there is nothing to do.
    scopes: of the fetches under way.
    """

    __slots__ = ("ahead", "behind", "enough", "position", "run", "scopes")

    def __init__(self, position: int, run: int) -> None:
        self.position = position
        self.run = run
        self.behind = position - run
        self.ahead = position
        self.enough = 0
        self.scopes: set[trio.CancelScope] = set()

    def continued_by(self, offset: int, length: int) -> bool:
        """The read at `offset` belongs here."""
        late = min(_LATE, max(_TOLERANCE, self.run))
        early = max(_TOLERANCE, length)
        return self.position - late <= offset <= max(self.position + early, self.ahead)


class Prefetcher:
    """Fetches ahead for all handles of a reader, in the background while `run` runs.

    window_max: bytes ahead of one cursor at most. slots: requests ahead at once, of all cursors. A quarter of
    the memory budget at most is used for what is fetched and not yet read, shared by the cursors in motion.
    pending: bytes being fetched or waiting for a slot. pieces, dropped: how many were begun, and failed.
    """

    def __init__(self, blocks: BlockCache, *, gap: int, window_max: int, slots: int) -> None:
        self._blocks = blocks
        self._gap = gap
        self._window_max = window_max
        self._slots = trio.Semaphore(slots)
        self._share = blocks.budget.limit // _SHARE
        self._moving: OrderedDict[Cursor, float] = OrderedDict()
        self._nursery: trio.Nursery | None = None
        self.pending = 0
        self.pieces = 0
        self.dropped = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def open(self, layout: Layout) -> ReadAhead | None:
        """Read-ahead for one handle; None where it cannot pay (local stores, no bytes of media)."""
        pays = self._blocks.store.remote and self._window_max > 0 and bool(layout.objects)
        return ReadAhead(self, layout) if pays else None

    def see_through(self, hold: Hold) -> None:
        """Own a hold, which is closed when all it has is here, or has failed, or the reader ends."""
        if self._nursery is None:
            hold.close()
        else:
            self._nursery.start_soon(self._see_through, hold)

    async def _see_through(self, hold: Hold) -> None:
        try:
            with hold:
                await hold.wait()
        except ReelfsError as error:
            self.dropped += 1
            log.debug("what was expected did not come: %s", error)

    def window(self, cursor: Cursor) -> int:
        """Bytes that may be fetched ahead of this cursor, which is in motion from now on."""
        now = trio.current_time()
        self._moving[cursor] = now
        self._moving.move_to_end(cursor)
        while now - self._moving[oldest := next(iter(self._moving))] > _FRESH:
            self.stop(oldest)
        wish = cursor.run if cursor.run < _SURE else _GROWTH * cursor.run
        return min(wish, self._window_max, self._share // len(self._moving))

    def stop(self, cursor: Cursor) -> None:
        """End what is being fetched for this cursor; it starts again when it is read on."""
        self._moving.pop(cursor, None)
        for scope in cursor.scopes:
            scope.cancel()
        cursor.scopes.clear()
        cursor.ahead = cursor.position

    def leave(self, layout: Layout, start: int, end: int) -> None:
        """Drop from memory what a stream has gone past, unless others read: they may come behind it."""
        if len(self._moving) == 1:
            for stored, ranges in wanted_ranges(layout.window(start, end - start)).items():
                for span in ranges:
                    self._blocks.leave(stored, *span)

    def fetch(self, cursor: Cursor, layout: Layout, start: int, end: int) -> bool:
        """Begin to fetch [start, end) of the layout unless it is here; False when there is no room for it."""
        size = end - start
        if self._nursery is None or self.pending + size > self._share:
            return False
        if self._is_here(layout, start, end):
            return True
        self.pending += size
        self.pieces += 1
        scope = trio.CancelScope()
        cursor.scopes.add(scope)
        self._nursery.start_soon(self._fetch, scope, cursor, layout, start, size)
        return True

    def _is_here(self, layout: Layout, start: int, end: int) -> bool:
        """A quick look for the common case, one extent: a file read again starts no tasks."""
        span, begin = layout.locate(start)
        if not isinstance(span, Extent) or end - begin > span.length:
            return False
        offset = span.offset - begin
        return self._blocks.has(span.object, start + offset, end + offset)

    async def _fetch(
        self, scope: trio.CancelScope, cursor: Cursor, layout: Layout, start: int, size: int
    ) -> None:
        try:
            with scope:
                await self._pull(layout.window(start, size))
        except Exception as error:
            self.dropped += 1
            cursor.run = 0
            level = logging.DEBUG if isinstance(error, ReelfsError) else logging.ERROR
            log.log(level, "read-ahead failed: %s", type(error).__name__, exc_info=level == logging.ERROR)
        finally:
            self.pending -= size
            cursor.scopes.discard(scope)

    async def _pull(self, window: Layout) -> None:
        wanted = wanted_ranges(window)
        await self._blocks.settle(wanted)
        for stored, ranges in wanted.items():
            fetches = self._blocks.plan(stored, ranges, gap=self._gap, max_request=_PIECE)
            for span in (*fetches.disk, *fetches.requests):
                await self._take_slot()
                try:
                    with self._blocks.hold() as hold:
                        hold.add(stored, [span], gap=self._gap, max_request=_PIECE)
                        await hold.wait()
                finally:
                    self._slots.release()

    async def _take_slot(self) -> None:
        """At once where one is free: a read that comes next shall find the request under way."""
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            await self._slots.acquire()


class ReadAhead:
    """The cursors of one handle, the one read last at the end."""

    def __init__(self, prefetcher: Prefetcher, layout: Layout) -> None:
        self._prefetcher = prefetcher
        self._layout = layout
        self._size = layout.size
        self._cursors: list[Cursor] = []

    def note(self, offset: int, length: int) -> bool:
        """A read of [offset, offset + length) begins. Does not wait; true when more is being fetched now."""
        end = min(offset + length, self._size)
        cursor = self._continued(offset, length)
        if cursor is None:
            cursor = self._jump(end, end - offset)
            if offset == 0 and cursor.run >= _SURE:  # who begins with a large piece goes on
                return self._extend(cursor)
        elif end > cursor.position:
            cursor.run += end - max(offset, cursor.position)
            cursor.position = end
            cursor.ahead = max(end, cursor.ahead)
            if cursor.run > _STREAM and end - _LATE - cursor.behind >= _BEHIND:
                self._prefetcher.leave(self._layout, cursor.behind, end - _LATE)
                cursor.behind = end - _LATE
            if cursor.ahead - end <= cursor.enough:
                return self._extend(cursor)
        return False

    def close(self) -> None:
        """End everything that is being fetched ahead."""
        for cursor in self._cursors:
            self._prefetcher.stop(cursor)
        self._cursors.clear()

    def _continued(self, offset: int, length: int) -> Cursor | None:
        for index in range(len(self._cursors) - 1, -1, -1):
            cursor = self._cursors[index]
            if cursor.continued_by(offset, length):
                if cursor is not self._cursors[-1]:
                    self._cursors.append(self._cursors.pop(index))
                return cursor
        return None

    def _jump(self, position: int, run: int) -> Cursor:
        if self._cursors:
            self._prefetcher.stop(self._cursors[-1])
        if len(self._cursors) >= CURSORS:
            self._prefetcher.stop(self._cursors.pop(0))
        self._cursors.append(cursor := Cursor(position, run))
        return cursor

    def _extend(self, cursor: Cursor) -> bool:
        before = self._prefetcher.pieces
        window = self._prefetcher.window(cursor)
        piece = min(_PIECE, max(_SMALLEST, window // _PARTS // _SMALLEST * _SMALLEST))
        target = min(self._size, cursor.position + window)
        while cursor.ahead < target:
            stop = min(cursor.ahead + piece, target)
            if stop - cursor.ahead < piece and stop < self._size:
                break
            if piece > _GRAIN and stop < self._size:
                stop -= stop % _GRAIN
            if not self._prefetcher.fetch(cursor, self._layout, cursor.ahead, stop):
                break
            cursor.ahead = stop
        cursor.enough = max(0, window - piece)
        return self._prefetcher.pieces > before


def wanted_ranges(window: Layout) -> dict[StoredObject, list[Range]]:
    """What a layout needs of each object version, sorted and disjoint."""
    found: dict[tuple[str, str, int], tuple[StoredObject, list[Range]]] = {}
    for extent in window.extents:
        stored = extent.object
        _, ranges = found.setdefault((stored.key, stored.version, stored.size), (stored, []))
        ranges.append((extent.offset, extent.end))
    return {stored: merged(ranges) for stored, ranges in found.values()}
