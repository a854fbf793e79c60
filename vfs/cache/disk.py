"""The disk cache: verified bytes of object versions below memory, kept over restarts.

An index of what is there lives in memory; it is filled by a scan in the background, and until that has
ended the folder of each object is listed when it is first asked for, so that start-up does not wait. All
calls on the disk run in threads. Reads that fail are misses. Writes wait in a bounded queue for one
writer; what does not fit is not written, and after an error nothing is for a while: a cache that cannot
be written is a cache that is not there, never an error to a reader.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from vfs.cache import diskfile
from vfs.cache.budget import Budget
from vfs.cache.diskfile import Found
from vfs.cache.intervals import Intervals, Range
from vfs.spans import StoredObject

log = logging.getLogger("vfs.cache.disk")

T = TypeVar("T")

MIB = 1024 * 1024
#: Bodies that wait for the writer, at most: about as much as a disk writes while the network brings a window.
QUEUE_BYTES = 32 * MIB
#: The index takes some 400 bytes of memory per file.
MAX_FILES = 50_000
KEEP_FREE = 256 * MIB  # of the file system: other programs must not fail because of a cache
_BASE = 16 * 1024  # the lock file and the folder itself
_PAUSE = 60.0  # seconds without writes after an error
_TOUCH_AFTER = 600.0  # seconds before the time of use of a file is recorded again
_READERS = 4  # threads; a disk answers more of them no faster
_BAD_FILE = (errno.EIO, errno.ELOOP)  # unreadable sectors; a link that somebody put there
_BATCH = 500  # scanned files taken into the index per step of the event loop, about 1 ms


class _Entry:
    """A file in the index."""

    __slots__ = ("cost", "end", "found", "start", "used")

    def __init__(self, found: Found) -> None:
        self.found = found
        self.start, self.end = found.start, found.end
        self.cost = diskfile.footprint(found.end - found.start)
        self.used = found.used


@dataclass(slots=True)
class DiskCounters:
    """Events since the start. dropped: bodies not written for want of room in the queue or after an error;
    bad: files removed because their content was not what was written."""

    reads: int = 0
    written: int = 0
    dropped: int = 0
    evicted: int = 0
    bad: int = 0
    errors: int = 0


class DiskCache:
    """At most `limit` bytes below `directory`, least recently used goes first.

    The directory is locked until `close`. Raises ConfigError where it cannot be made ours alone, or is
    another daemon's. budget: queued bodies are pinned in it (a block cache that is given this cache without
    one lends its own). Nothing is written unless `run` runs; a reader's background work does that.
    """

    def __init__(
        self,
        directory: str | Path,
        limit: int,
        *,
        budget: Budget | None = None,
        keep_free: int = KEEP_FREE,
        max_files: int = MAX_FILES,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self.directory = Path(directory)
        self.limit = limit
        self.used = 0
        self.counters = DiskCounters()
        self._room = limit - _BASE
        self._root, self._lock = diskfile.lock(self.directory)
        self.budget = budget
        self._keep_free = keep_free
        self._max_files = max_files
        self._queue_bytes = queue_bytes
        self._index: dict[str, Intervals[_Entry]] = {}
        self._lru: OrderedDict[_Entry, None] = OrderedDict()
        self._settled: set[str] = set()
        self._scanned = False
        self._queued = 0
        self._pending = 0
        self._running = False
        self._paused_until = -math.inf
        self._discarded: set[Found] = set()
        self._failing = False
        self._idle = trio.Event()
        self._idle.set()
        self._send, self._receive = trio.open_memory_channel[tuple[str, int, memoryview]](math.inf)
        self._readers = trio.CapacityLimiter(_READERS)
        self._writer = trio.CapacityLimiter(1)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, directory: str | Path, limit: int, *, keep_free: int = KEEP_FREE
    ) -> AsyncIterator[DiskCache]:
        """The cache, closed when the context ends. Raises ConfigError as the class does."""
        cache = cls(directory, limit, keep_free=keep_free)
        try:
            yield cache
        finally:
            cache.close()

    @staticmethod
    def identity(url: str, stored: StoredObject) -> str:
        """The name of an object version of a store. Cryptographic: names come from whoever may upload."""
        text = f"{url}\0{stored.key}\0{stored.version}\0{stored.size}"
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    @property
    def scanned(self) -> bool:
        """The index is complete."""
        return self._scanned

    def __len__(self) -> int:
        """Files in the index."""
        return len(self._lru)

    def close(self) -> None:
        """Give the directory up. The cache is not used afterwards."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Scan, then write what is offered, until cancelled."""
        self._running = True
        task_status.started()
        try:
            await self._scan()
            async for identity, start, body in self._receive:
                try:
                    await self._write(identity, start, body)
                finally:
                    self._leave_queue(len(body))
        finally:
            self._running = False
            while self._pending:
                self._leave_queue(len(self._receive.receive_nowait()[2]))

    async def drain(self) -> None:
        """Wait until everything offered so far is written or dropped."""
        await self._idle.wait()

    async def settle(self, identity: str) -> None:
        """Learn which bytes of this object are here; a step without waiting once the scan is over."""
        if self._scanned or identity in self._settled:
            return
        found = await self._call(lambda: diskfile.scan_object(self._root, identity), self._readers)
        self._settled.add(identity)
        for one in found or ():
            self._learn(one)

    def settle_now(self, identity: str) -> None:
        """`settle`, at the cost of listing one folder on the spot."""
        if self._scanned or identity in self._settled:
            return
        self._settled.add(identity)
        with suppress(OSError):
            for one in diskfile.scan_object(self._root, identity):
                self._learn(one)

    def cover(self, identity: str, start: int, end: int) -> list[Range]:
        """The parts of [start, end) that are here, as far as is known, one per file, in order."""
        entries = self._index.get(identity)
        if entries is None:
            return []
        return [(max(start, e.start), min(end, e.end)) for e in entries.overlapping(start, end)]

    async def read(self, identity: str, start: int, end: int) -> memoryview | None:
        """Bytes of one part that `cover` gave, checked; None when they cannot be had (any more)."""
        entries = self._index.get(identity)
        entry = entries.at(start) if entries is not None else None
        if entry is None or end > entry.end:
            return None
        now = time.time()
        touch = now - entry.used > _TOUCH_AFTER
        try:
            data = await trio.to_thread.run_sync(
                lambda: diskfile.read(self._root, entry.found, start, end, touch=touch),
                limiter=self._readers,
                abandon_on_cancel=True,
            )
        except FileNotFoundError:
            self._forget(entry)
            return None
        except OSError as error:
            self._failed("read", error)
            if error.errno in _BAD_FILE:
                await self._discard(entry)
            return None
        if data is None:
            log.warning("disk cache %s: a damaged file was removed", self.directory)
            await self._discard(entry)
            return None
        self.counters.reads += 1
        entry.used = now if touch else entry.used
        if entry in self._lru:
            self._lru.move_to_end(entry)
        return data

    def offer(self, identity: str, start: int, body: memoryview) -> bool:
        """Have these bytes written soon; False when they will not be. Never waits."""
        if (
            not self._running
            or self._queued + len(body) > self._queue_bytes
            or trio.current_time() < self._paused_until
        ):
            self.counters.dropped += 1
            return False
        self._queued += len(body)
        self._pending += 1
        if self.budget is not None:
            self.budget.pin(len(body))
        if self._idle.is_set():
            self._idle = trio.Event()
        self._send.send_nowait((identity, start, body))
        return True

    def _leave_queue(self, length: int) -> None:
        self._queued -= length
        self._pending -= 1
        if self.budget is not None:
            self.budget.unpin(length)
        if not self._pending:
            self._idle.set()

    async def forget(self, identities: Iterable[str]) -> int:
        """Remove all bytes of these objects; how many bytes of disk that frees."""
        before = self.used
        for identity in identities:
            await self.settle(identity)
            await self._remove(self._index.get(identity, ()))
        return before - self.used

    async def clear(self) -> int:
        """Remove everything; how many bytes of disk that frees."""
        if not self._scanned:
            for found in await self._call(lambda: diskfile.scan(self._root), self._readers) or ():
                self._learn(found)
        before = self.used
        await self._remove(self._lru)
        return before - self.used

    async def _remove(self, entries: Iterable[_Entry]) -> None:
        gone = list(entries)
        for entry in gone:
            if not self._scanned:
                self._discarded.add(entry.found)
            self._forget(entry)
        await self._call(lambda: self._unlink([entry.found for entry in gone]), self._readers)

    async def _scan(self) -> None:
        found = await self._call(lambda: diskfile.scan(self._root), self._writer) or []
        losers: list[Found] = []
        for at in range(0, len(found), _BATCH):
            # What was removed while the folder was being read must not come back as a file that is there.
            batch = [one for one in found[at : at + _BATCH] if one not in self._discarded]
            losers += [one for one in batch if not self._learn(one)]
            await trio.lowlevel.checkpoint()
        evicted = self._evict(0)
        await self._call(lambda: self._unlink([*losers, *evicted]), self._writer)
        self._scanned = True
        self._discarded.clear()
        self._settled.clear()

    def _learn(self, found: Found) -> bool:
        """Take a file into the index; False when another has (some of) the same bytes."""
        entries = self._index.setdefault(found.identity, Intervals())
        there = entries.overlapping(found.start, found.end)
        if there:
            return len(there) == 1 and (there[0].start, there[0].end) == (found.start, found.end)
        entry = _Entry(found)
        entries.add(entry)
        self._lru[entry] = None
        self.used += entry.cost
        return True

    def _forget(self, entry: _Entry) -> None:
        entries = self._index.get(entry.found.identity)
        if entries is not None and entries.discard(entry):
            self.used -= entry.cost
            del self._lru[entry]
            if not entries:
                del self._index[entry.found.identity]

    async def _discard(self, entry: _Entry) -> None:
        """Remove a file that is not what was written."""
        self.counters.bad += 1
        if not self._scanned:
            self._discarded.add(entry.found)
        self._forget(entry)
        await self._call(lambda: self._unlink([entry.found]), self._readers)

    async def _write(self, identity: str, start: int, body: memoryview) -> None:
        if trio.current_time() < self._paused_until:
            self.counters.dropped += 1
            return
        entries = self._index.get(identity) or Intervals()
        start, body, inside = _trim(entries, start, body)
        cost = diskfile.footprint(len(body))
        if not body or cost > self._room:
            return
        for entry in inside:
            self._forget(entry)
        gone = [entry.found for entry in inside] + self._evict(cost)
        self.used += cost  # reserved before a byte is written
        written = await self._call(lambda: self._store(gone, identity, start, body, cost), self._writer)
        self.used -= cost
        if not written:
            self._paused_until = trio.current_time() + _PAUSE
            return
        if self._learn(Found(identity, start, start + len(body), time.time())):
            self.counters.written += 1
        if self._failing:
            self._failing = False
            log.info("disk cache %s: works again", self.directory)

    def _evict(self, cost: int) -> list[Found]:
        """Forget the least recently used until `cost` more bytes and one more file fit."""
        gone: list[Found] = []
        while self._lru and (self.used + cost > self._room or len(self._lru) >= self._max_files):
            entry = next(iter(self._lru))
            self._forget(entry)
            self.counters.evicted += 1
            gone.append(entry.found)
        return gone

    def _store(self, gone: list[Found], identity: str, start: int, body: memoryview, cost: int) -> bool:
        self._unlink(gone)
        disk = os.statvfs(self._root)
        if disk.f_bavail * disk.f_frsize < self._keep_free + cost:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        diskfile.write(self._root, identity, start, body)
        return True

    def _unlink(self, gone: list[Found]) -> None:
        for found in gone:
            with suppress(OSError):
                diskfile.remove(self._root, found)

    async def _call(self, work: Callable[[], T], limiter: trio.CapacityLimiter) -> T | None:
        """`work()` in a thread; None (and a log line for the first of a row) when the disk refuses."""
        try:
            return await trio.to_thread.run_sync(work, limiter=limiter)
        except OSError as error:
            self._failed("used", error)
            return None

    def _failed(self, what: str, error: OSError) -> None:
        self.counters.errors += 1
        if not self._failing:
            self._failing = True
            log.warning(
                "disk cache %s cannot be %s (%s): reading through", self.directory, what, error.strerror
            )


def _trim(entries: Intervals[_Entry], start: int, body: memoryview) -> tuple[int, memoryview, list[_Entry]]:
    """What of a new body is worth writing, and the files it replaces (those it contains).

    Files never overlap: where an older one reaches over an edge of the body, the body is cut there. A body
    that brings nothing new is empty.
    """
    end = start + len(body)
    if not entries.gaps(start, end):
        return start, body[:0], []
    there = entries.overlapping(start, end)
    inside = [e for e in there if start <= e.start and e.end <= end]
    first = max([start, *(e.end for e in there if e.start < start)])
    last = min([end, *(e.start for e in there if e.end > end)])
    return first, body[first - start : last - start], inside
