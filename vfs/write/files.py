"""The bytes of files that are written to: which draft they are in, and what `close` and `fsync` promise.

A file is opened with its entry, as it is. The first write makes it `live`: a draft of its own that stands on
what the file was. `flush` puts it on the disk with a row of the journal; the last close seals it, and it
waits to be sent. Whoever writes to a sealed draft gets a copy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar, TypeVarTuple

import trio

from vfs.cache.intervals import Range
from vfs.errors import ReelfsError
from vfs.spans import Extent, Layout, StoredObject
from vfs.write import companions, databases
from vfs.write.draft import Draft
from vfs.write.journal import Journal
from vfs.write.pending import Entry, Pending
from vfs.write.staging import Staging

T = TypeVar("T")
Args = TypeVarTuple("Args")

#: Up to this much is copied to the page cache in the loop, some 0.2 ms: a hop to a thread takes longer.
IN_PLACE = 1 << 20
#: One that took longer than this, seconds, waited for the disk: for a while all are left to threads.
SLOW, SLOW_SECONDS = 0.01, 2.0
#: Bytes of an old version fetched at one time.
FETCH = 8 << 20
#: A file that is being written is in the journal from this size on: what a crash leaves of it is kept.
NOTED_FROM = 1 << 20


class Fetches(Protocol):
    """The part of the reader that is used here."""

    async def fetch(self, layout: Layout, /) -> bytes:
        """All bytes of a layout."""


class Files:
    """Reading and writing entries. changed: told of an entry that waits to be sent. crowded: told of one that
    is written to under a name that another one has by now; it gets another name.
    """

    crowded: Callable[[Entry], None] = staticmethod(lambda entry: None)

    def __init__(
        self,
        staging: Staging,
        journal: Journal,
        pending: Pending,
        reader: Fetches,
        changed: Callable[[Entry], None],
    ) -> None:
        self.staging = staging
        self._journal = journal
        self._pending = pending
        self._reader = reader
        self._changed = changed
        self._threads = trio.CapacityLimiter(8)
        self._slow_until = -math.inf
        #: When a program last changed something (clock seconds).
        self.written = -math.inf
        self._noted: set[int] = set()  # numbers of live drafts that the journal knows

    def adopt(self, entry: Entry) -> Entry:
        """An entry whose bytes are read here."""

        async def read(offset: int, length: int) -> bytes:
            return await self.read(entry, offset, length)

        entry.read = read
        return entry

    # -- reading and writing ---------------------------------------------------------------------------

    async def read(self, entry: Entry, offset: int, length: int) -> bytes:
        """Bytes as they are now, short only at the end."""
        content = entry.content
        if content is None:
            origin = entry.origin
            length = min(length, (origin.size if origin else 0) - offset)
            if origin is None or length <= 0:
                return b""
            return await self._reader.fetch(Layout((Extent(origin, offset, length),)))
        content.hold()
        try:
            if content.missing(offset, offset + length):
                await self._fill(entry, content, offset, offset + length)
            return await self._on_disk(length, content.read, offset, length)
        finally:
            content.release()

    async def head(self, stored: StoredObject, length: int) -> bytes:
        """The first bytes of a file, staged or not."""
        length = min(length, stored.size)
        return await self._reader.fetch(Layout((Extent(stored, 0, length),))) if length else b""

    async def write(self, entry: Entry, offset: int, data: bytes) -> None:
        """Change bytes. Raises NoRoom; then nothing of the file is lost."""
        await self._all_of_database(entry)
        async with entry.lock:
            live = await self._live(entry)
            await self._soil(entry, offset)
            await self._on_disk(len(data), live.write, offset, data)
            self._touch(entry)

    async def truncate(self, entry: Entry, size: int) -> None:
        """Cut off, or grow by zeros."""
        if size:
            await self._all_of_database(entry)
        async with entry.lock:
            if size == 0 and not entry.local:
                live = self._fresh(entry)
            else:
                live = await self._live(entry)
            await self._soil(entry, size)
            await self._on_disk(0, live.truncate, size)
            self._touch(entry)

    async def _all_of_database(self, entry: Entry) -> None:
        """A database is here whole before it is changed, while the store has this version of it."""
        content = entry.content
        is_here = not content.missing(0, content.size) if content is not None else entry.origin is None
        if is_here or not companions.is_part(self._pending, entry):
            return
        if not databases.is_database(await self.read(entry, 0, 16)):
            return  # it only has the name of one
        async with entry.lock:
            live = await self._live(entry)
        await self.fill(entry, live)

    async def _soil(self, entry: Entry, offset: int) -> None:
        """Before bytes change, from an offset on: what the journal says of this file is not the whole truth
        any more.
        """
        live = entry.live
        assert live is not None
        noted = live.number in self._noted
        before = entry.dirty
        entry.dirty = True
        is_part = companions.is_part(self._pending, entry)
        copied = None
        if is_part:
            live.spill()  # SQLite counts on what it wrote, not on what was closed
            if live.size and not live.was_synced:
                copied = live  # and on what it wrote, synced and writes around now
        at_once = live.size >= NOTED_FROM or is_part
        if self._is_named(entry) and (not before if noted else at_once):
            # A power cut must not leave the row of what was closed with bytes that were written over it.
            is_over = noted and offset < live.size and not live.is_small and not is_part
            row = entry.row(synced=copied)
            try:
                await self._journal.put(
                    [row],
                    keep=False,
                    durable=is_over or copied is not None,
                    first=copied.sync if copied is not None else None,
                )
            except ReelfsError:
                entry.dirty = before
                raise
            self._noted.add(live.number)

    def _is_named(self, entry: Entry) -> bool:
        """Whether it has a name still; else it is nobody's business what becomes of it."""
        return bool(entry.key) and self._pending.get(entry.key) is entry

    async def _live(self, entry: Entry) -> Draft:
        """The draft to write to."""
        if entry.live is not None:
            return entry.live
        if entry.draft is not None:
            entry.live = (await self._on_disk(entry.draft.size, entry.draft.copy)).hold()
        else:
            entry.live = self.staging.create(entry.origin).hold()
        self._join(entry)
        return entry.live

    def _fresh(self, entry: Entry) -> Draft:
        """An empty draft to write to, in place of whatever was there."""
        if entry.live is not None:
            self._forget(entry.live)
        entry.live = self.staging.create().hold()
        self._join(entry)
        return entry.live

    def _join(self, entry: Entry) -> None:
        """It differs from the store's by now; an unlinked file is nobody's business."""
        if not entry.key:
            return
        if self._pending.active(entry.key) is entry:
            return
        if self._pending.active(entry.key) is not None:
            self.crowded(entry)
        self._pending.add(entry)

    def _touch(self, entry: Entry) -> None:
        self.written = trio.current_time()
        entry.attributes = replace(entry.attributes, mtime_ns=time.time_ns())

    # -- closing ---------------------------------------------------------------------------------------

    async def flush(self, entry: Entry) -> None:
        """What was written is on the disk and in the journal when this returns."""
        async with entry.lock:
            await self._flush(entry)

    async def _flush(self, entry: Entry) -> None:
        live = entry.live
        if live is None or not entry.dirty or not entry.key:
            return
        entry.dirty = False
        entry.since = entry.since or time.time()
        try:
            row = entry.row(synced=live)
            await self._journal.put([row], durable=True, keep=False, first=live.sync)
        except ReelfsError:
            entry.dirty = True
            raise
        self._noted.add(live.number)

    async def note_unfinished(self) -> None:
        """The mount ends: what programs are still writing is kept for the next one, as after a crash."""
        written = [e for e in self._pending if e.live is not None and e.live.changes and e.dirty]
        await self._journal.put([entry.row() for entry in written if self._is_named(entry)])

    async def close(self, entry: Entry) -> None:
        """One writer less; after the last it waits to be sent."""
        entry.writers -= 1
        if entry.writers > 0 or entry.live is None:
            return
        async with entry.lock:
            if entry.writers <= 0 and entry.live is not None:
                is_noted = entry.live.number in self._noted
                if not (entry.dirty or entry.live.changes or is_noted):
                    self._forget(entry.live)  # it is as the file was
                    entry.live = None
                    return
                try:
                    await self._flush(entry)
                finally:
                    self.seal(entry)  # where the journal has no room, the store may have it in time

    def seal(self, entry: Entry) -> None:
        """What was written is what is to be sent."""
        if entry.live is None:
            return
        if entry.draft is not None:
            self._forget(entry.draft)
        entry.draft, entry.live = entry.live, None
        entry.draft.seal()
        entry.origin = entry.sent = None
        entry.whole, entry.interim = not companions.unfinished(self._pending, entry.key), False
        self.enqueue(entry)

    def enqueue(self, entry: Entry) -> None:
        """It waits to be sent."""
        if entry.local or not entry.key:
            return
        entry.waiting = True
        entry.since = entry.since or time.time()
        self._changed(entry)

    async def sealed(self, entry: Entry) -> Draft | None:
        """On the disk, sealed, and waiting: what `fsync` waits for (None: nothing of it is staged)."""
        async with entry.lock:
            if entry.live is not None and entry.live.changes:
                await self._flush(entry)
                self.seal(entry)
                if self._is_named(entry):
                    await self._journal.put([entry.row()], durable=True)
        return entry.draft if entry.waiting else None

    async def as_it_is(self, entry: Entry) -> Draft:
        """What is staged of a file, as a draft nobody writes to; to be released. The caller has the lock of
        the entry.
        """
        content = entry.content
        assert content is not None
        if content is not entry.live:
            return content.hold()
        return (await trio.to_thread.run_sync(content.copy, limiter=self._threads)).hold()

    def drop(self, entry: Entry) -> None:
        """Nobody can reach it any more, or what the store has is the same: its drafts go."""
        for draft in (entry.live, entry.draft):
            if draft is not None:
                self._forget(draft)
        entry.live = entry.draft = None
        entry.try_(None)
        if entry.stored is not None:
            entry.origin = entry.stored

    def drop_settled(self, entry: Entry) -> None:
        """The store has it, and nobody looks for it here any more."""
        if not entry.opened and not entry.writers:
            self.drop(entry)

    def end(self) -> None:
        """Nobody reads any more, though the kernel may not have told of the last close: only what waits is
        kept.
        """
        for entry in self._pending:
            if entry.settled is not None:
                self.drop(entry)

    def reclaim(self) -> None:
        """Make room: drop what is kept of files the store has. From any thread."""
        if not trio.lowlevel.in_trio_run():
            trio.from_thread.run_sync(self.reclaim)
            return
        for entry in self._pending:
            if entry.settled is not None:
                self.drop_settled(entry)
        self._journal.release_now()

    def _forget(self, draft: Draft) -> None:
        self._noted.discard(draft.number)
        draft.release()

    # -- fetching what is missing ----------------------------------------------------------------------

    async def fill(self, entry: Entry, draft: Draft) -> bool:
        """Everything of it is here when this returns; whether something was not. Raises Stale, NotFound."""
        if not draft.missing(0, draft.size):
            return False
        await self._fill(entry, draft, 0, draft.size)
        return True

    async def _fill(self, entry: Entry, draft: Draft, start: int, end: int) -> None:
        """Piece by piece, so that who writes need not wait for all."""
        for hole in draft.missing(start, end):
            for piece in _pieces(hole):
                base = draft.base
                if base is None:
                    return  # cut off meanwhile
                body = await self._reader.fetch(_layout(base, piece))
                async with entry.lock:
                    await self._on_disk(len(body), draft.fill, piece[0], body)

    async def _on_disk(self, size: int, work: Callable[[*Args], T], *args: *Args) -> T:
        """In place, as long as that is quick; a disk that keeps a write waiting is left to threads."""
        if size <= IN_PLACE and trio.current_time() >= self._slow_until:
            began = time.perf_counter()
            try:
                return work(*args)
            finally:
                if time.perf_counter() - began > SLOW:
                    self._slow_until = trio.current_time() + SLOW_SECONDS
        return await trio.to_thread.run_sync(work, *args, limiter=self._threads)


def _pieces(hole: Range) -> list[Range]:
    start, end = hole
    return [(at, min(at + FETCH, end)) for at in range(start, end, FETCH)]


def _layout(base: StoredObject, piece: Range) -> Layout:
    return Layout((Extent(base, piece[0], piece[1] - piece[0]),))
