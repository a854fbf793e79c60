"""Layouts to bytes: few ranged reads, neighbours joined, each byte copied at most once.

`read` answers exactly what is asked; read-ahead (`vfs.readahead`) follows in the background and never
holds a read up. A read that memory has whole in one segment costs no copy, no task switch, no thread.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from vfs.cache.blocks import BlockCache
from vfs.cache.hold import GAP, MAX_REQUEST, MIB, Hold
from vfs.readahead import Prefetcher, ReadAhead, wanted_ranges
from vfs.spans import DerivedObject, Inline, Layout, StoredObject
from vfs.tasks import background
from vfs.wholeread import whole_read

Data = bytes | memoryview

READ_AHEAD_MAX = 64 * MIB
#: Requests at once that a store serves well; a quarter of them is kept free for foreground reads.
CONNECTIONS = 32
# Copying 1 MiB takes about 0.2 ms, a hop to a thread and back about as much.
_JOIN_IN_THREAD = 1 * MIB
# `bytes.join` of views holds the interpreter lock throughout, in any thread: 16 MiB are some 10 ms. Larger
# joins go view by view, and the event loop gets its turn between two of them.
_JOIN_AT_ONCE = 16 * MIB


@dataclass(frozen=True, slots=True)
class Plan:
    """What a read would do: requests to the store as (object, offset, length).

    cached_bytes: wanted bytes that are in memory, on disk or on their way. inline_bytes: synthesised ones.
    """

    requests: tuple[tuple[StoredObject, int, int], ...]
    cached_bytes: int
    inline_bytes: int

    @property
    def fetched_bytes(self) -> int:
        """Bytes of all requests, those of the gaps between neighbours included."""
        return sum(length for _, _, length in self.requests)


class Reader:
    """Reads layouts through a block cache.

    gap: holes of up to so many bytes are fetched rather than paid for with another request. max_request:
    bytes. read_ahead_max: bytes a handle reads ahead at most. connections: requests the store takes at once.
    Read-ahead and the disk cache's writer work while `run` runs.
    """

    def __init__(
        self,
        blocks: BlockCache,
        *,
        gap: int = GAP,
        max_request: int = MAX_REQUEST,
        read_ahead_max: int = READ_AHEAD_MAX,
        connections: int = CONNECTIONS,
    ) -> None:
        self.blocks = blocks
        self.prefetcher = Prefetcher(
            blocks, gap=gap, window_max=read_ahead_max, slots=max(1, connections * 3 // 4)
        )
        self._gap = gap
        self._max_request = max_request
        self._joiners = trio.CapacityLimiter(2)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work in the background until cancelled."""
        async with trio.open_nursery() as nursery:
            if self.blocks.disk is not None:
                await nursery.start(self.blocks.disk.run)
            await nursery.start(self.prefetcher.run)
            task_status.started()

    def peek(self, layout: Layout, offset: int, length: int) -> Data | None:
        """The bytes, when one span and one segment in memory have them all. No waiting, no copy."""
        length = min(length, layout.size - offset)
        if length <= 0 or offset < 0:
            return b"" if offset >= 0 and length <= 0 else None
        span, start = layout.locate(offset)
        offset -= start
        if offset + length > span.length:
            return None
        if isinstance(span, Inline):
            return memoryview(span.data)[offset : offset + length]
        return self.blocks.peek(span.object, span.offset + offset, length)

    async def read(self, layout: Layout, offset: int, length: int) -> Data:
        """The bytes [offset, offset + length), short only at the end of the file.

        Fetches what is missing and nothing beyond (but small gaps). Raises Stale, StoreError.
        """
        found = self.peek(layout, offset, length)
        if found is not None:
            return found
        return await self._assemble(layout.window(offset, length))

    async def fetch(self, layout: Layout) -> bytes:
        """All bytes of a layout. Raises Stale, StoreError."""
        data = await self.read(layout, 0, layout.size)
        if isinstance(data, bytes):
            return data
        whole = data.obj
        if isinstance(whole, bytes) and len(whole) == len(data):
            return whole
        return await self._join([data])

    async def stream(self, layout: Layout, offset: int = 0, length: int | None = None) -> AsyncIterator[Data]:
        """The bytes [offset, offset + length) in order, in pieces, as they come. Raises Stale, StoreError.

        The next request is begun when half of one is through: its round trip passes meanwhile, and it takes
        nothing of the line from bytes that are needed before its own.
        """
        end = layout.size if length is None else min(offset + length, layout.size)
        begun = deque[tuple[Layout, Hold]]()
        try:
            while offset < end or begun:
                if not begun:
                    begun.append(await self._begun(layout, offset, end))
                    offset += begun[0][0].size
                window, hold = begun[0]
                at = 0
                while at < window.size:
                    piece = await _piece(window, hold, at)
                    yield piece
                    at += len(piece)
                    if at >= window.size // 2 and len(begun) == 1 and offset < end:
                        begun.append(await self._begun(layout, offset, end))
                        offset += begun[1][0].size
                begun.popleft()
                hold.close()
        finally:
            for _, hold in begun:
                hold.close()

    async def _begun(self, layout: Layout, offset: int, end: int) -> tuple[Layout, Hold]:
        """The next window of a stream, and what it needs on its way."""
        window = layout.window(offset, min(end - offset, self._max_request))
        return window, await self._held(window)

    async def expect(self, layout: Layout) -> None:
        """Begin to fetch what of a layout is not here, and see it through whoever waits for it or not.

        For a reader who looks at the first bytes to know how much of the rest is needed: what it then asks
        for is on its way. Waits for nothing; what fails is asked for again by whoever needs it.
        """
        if (hold := await self._held(layout)).pending:
            self.prefetcher.see_through(hold)
        else:
            hold.close()

    async def _held(self, window: Layout) -> Hold:
        """What a window needs, on its way; to be closed."""
        wanted = wanted_ranges(window)
        await self.blocks.settle(wanted)
        hold = self.blocks.hold()
        try:
            for stored, ranges in wanted.items():
                hold.add(stored, ranges, gap=self._gap, max_request=self._max_request)
        except BaseException:
            hold.close()
            raise
        return hold

    def plan(self, layout: Layout, offset: int = 0, length: int | None = None) -> Plan:
        """What `read` would do now; nothing is fetched."""
        window = layout.window(offset, layout.size if length is None else length)
        wanted = wanted_ranges(window)
        requests: list[tuple[StoredObject, int, int]] = []
        cached = 0
        for stored, ranges in wanted.items():
            if isinstance(stored, DerivedObject):
                continue  # what it will read of its sources is known when it is made
            fetches = self.blocks.plan(stored, ranges, gap=self._gap, max_request=self._max_request)
            requests += [(stored, start, end - start) for start, end in fetches.requests]
            cached += sum(end - start for start, end in ranges) - fetches.missing
        inline = window.size - sum(extent.length for extent in window.extents)
        return Plan(tuple(requests), cached, inline)

    def open(self, layout: Layout) -> Handle:
        """A handle that reads ahead while it is read in sequence, and is checked when it was read whole."""
        return Handle(self, layout)

    async def _assemble(self, window: Layout) -> Data:
        with await self._held(window) as hold:
            await hold.wait()
            views: list[memoryview] = []
            for span in window.spans:
                if isinstance(span, Inline):
                    views.append(memoryview(span.data))
                else:
                    views += hold.views(span.object, span.offset, span.length)
        return views[0] if len(views) == 1 else await self._join(views)

    async def _join(self, views: Sequence[memoryview]) -> bytes:
        if sum(map(len, views)) <= _JOIN_IN_THREAD:
            return b"".join(views)
        return await trio.to_thread.run_sync(_joined, views, limiter=self._joiners)


class Handle:
    """One open file: `read` as the reader's, with read-ahead for each of a few cursors. Close it."""

    def __init__(self, reader: Reader, layout: Layout) -> None:
        self.layout = layout
        self._reader = reader
        self._ahead: ReadAhead | None = reader.prefetcher.open(layout)
        self._whole = whole_read(layout, reader.blocks)

    async def read(self, offset: int, length: int) -> Data:
        """The bytes [offset, offset + length), short only at the end. Raises Stale, StoreError; Corrupt with
        the last bytes of a file that was read whole and is not what the store has.
        """
        data = await self._read(offset, length)
        if self._whole is not None:
            await self._whole.note(offset, data)
        return data

    async def _read(self, offset: int, length: int) -> Data:
        more = self._ahead is not None and length > 0 and self._ahead.note(offset, length)
        found = self._reader.peek(self.layout, offset, length)
        if found is not None:
            if more:  # one turn for the requests that just began: a caller who only hits would give none
                await trio.lowlevel.checkpoint()
            return found
        return await self._reader.read(self.layout, offset, length)

    def close(self) -> None:
        """Stop reading ahead. Does not wait."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.close()


async def _piece(window: Layout, hold: Hold, at: int) -> Data:
    """The next bytes of a window, as soon as there are some."""
    span, start = window.locate(at)
    if isinstance(span, Inline):
        return memoryview(span.data)[at - start :]
    return await hold.piece(span.object, span.offset + at - start, span.offset + span.length)


def _joined(views: Sequence[memoryview]) -> bytes:
    if sum(map(len, views)) <= _JOIN_AT_ONCE:
        return b"".join(views)
    buffer = io.BytesIO()
    for view in views:
        buffer.write(view)
    return buffer.getvalue()  # no further copy: the buffer's own bytes


@asynccontextmanager
async def open_reader(
    blocks: BlockCache,
    *,
    gap: int = GAP,
    max_request: int = MAX_REQUEST,
    read_ahead_max: int = READ_AHEAD_MAX,
    connections: int = CONNECTIONS,
) -> AsyncIterator[Reader]:
    """A reader whose background work (read-ahead, the disk cache's writer) runs until the context ends."""
    reader = Reader(
        blocks,
        gap=gap,
        max_request=max_request,
        read_ahead_max=read_ahead_max,
        connections=connections,
    )
    async with background() as nursery:
        await nursery.start(reader.run)
        yield reader
