"""A file that was written is sometimes the copy of one that is stored: then the store copies it.

`cp` within a mount reads one file and writes another; the kernel does not tell a file system in user space
that these are one thing. So what was opened for reading a while ago and has just as many bytes is compared,
from the caches it was read through, before a large file is sent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import trio

from vfs.errors import ReelfsError
from vfs.spans import Extent, Layout, StoredObject
from vfs.write.draft import Draft

#: Smaller ones are sent sooner than they are compared.
LEAST = 4 << 20
#: Files that are remembered, and how long after they were opened (seconds).
MOST, MEMORY = 256, 600.0
#: Bytes compared at one time.
STEP = 4 << 20


class Fetches(Protocol):
    """The part of the reader that is used here."""

    async def fetch(self, layout: Layout, /) -> bytes:
        """All bytes of a layout."""


class Twins:
    """Stored files that were read lately."""

    def __init__(self, reader: Fetches, clock: Callable[[], float] = trio.current_time) -> None:
        self._reader = reader
        self._clock = clock
        self._read: OrderedDict[StoredObject, float] = OrderedDict()

    def note(self, stored: StoredObject) -> None:
        """A stored file is opened for reading."""
        if stored.size < LEAST:
            return
        self._read.pop(stored, None)
        self._read[stored] = self._clock()
        if len(self._read) > MOST:
            self._read.popitem(last=False)

    async def find(self, draft: Draft) -> StoredObject | None:
        """A stored object with the very bytes of a draft that has all of them, or None."""
        if draft.size < LEAST:
            return None
        since = self._clock() - MEMORY
        for stored in [s for s, read in self._read.items() if s.size == draft.size and read > since]:
            try:
                if await self._is_same(stored, draft):
                    return stored
            except ReelfsError:
                self._read.pop(stored, None)  # replaced, or not to be had: then it is sent
        return None

    async def _is_same(self, stored: StoredObject, draft: Draft) -> bool:
        for offset in range(0, draft.size, STEP):
            length = min(STEP, draft.size - offset)
            ours = await trio.to_thread.run_sync(draft.read, offset, length)
            theirs = await self._reader.fetch(Layout((Extent(stored, offset, length),)))
            if ours != theirs:
                return False
        return True
