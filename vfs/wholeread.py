"""Files of a bucket that are read from start to end are compared with the checksum the store keeps of them.

Parts of an object cannot be checked (docs/semantics.md), but all of them together can: `cp` of a video costs
one HEAD more, asked for while the second half is read, and a tenth of a millisecond for each MiB. Where they
differ, the last read fails, and nothing of that version stays in the caches.
"""

from __future__ import annotations

import logging

import trio

from vfs.cache.blocks import BlockCache
from vfs.errors import ReelfsError
from vfs.spans import DerivedObject, Extent, Layout, StoredObject
from vfs.storage.base import Corrupt, KeepsSums
from vfs.storage.sums import Running

log = logging.getLogger("vfs.wholeread")

#: Smaller objects take a request or two, of which another would be too many.
LEAST = 8 << 20
#: Seconds the last read waits for the checksum.
PATIENCE = 3.0


def compared(layout: Layout) -> StoredObject | None:
    """The stored object that a layout is, where that is worth a request more."""
    span = layout.spans[0] if len(layout.spans) == 1 else None
    if not isinstance(span, Extent) or isinstance(span.object, DerivedObject):
        return None
    return span.object if LEAST < span.object.size == span.length else None


def whole_read(layout: Layout, blocks: BlockCache) -> WholeRead | None:
    """What watches the reading of a layout, where it can be compared."""
    stored = compared(layout) if blocks.store.remote else None
    return None if stored is None else WholeRead(stored, blocks)


class WholeRead:
    """What was read of an open file so far."""

    def __init__(self, stored: StoredObject, blocks: BlockCache) -> None:
        self._stored = stored
        self._blocks = blocks
        self._running = Running()
        self._told: trio.Event | None = None
        self._sum: int | None = None
        self._failed = False

    async def note(self, offset: int, data: bytes | memoryview) -> None:
        """These bytes were read. Raises Corrupt with the last of them when all are not what the store has,
        and ever after: who was given a part of the last read asks for the rest, and must hear of it.
        """
        running, size = self._running, self._stored.size
        if self._failed:
            raise Corrupt(self._failure())
        if running.lost or running.at == size:
            return
        running.add(offset, data)
        if running.at == size:
            await self._compare(running.value)
        elif self._told is None and running.at > size // 2:
            self._told = trio.Event()
            trio.lowlevel.spawn_system_task(self._ask, self._told)

    async def _ask(self, told: trio.Event) -> None:
        """What the store has; a store that cannot say leaves things as they were."""
        store = self._blocks.store
        try:
            if isinstance(store, KeepsSums):
                self._sum = await store.checksum(self._stored)
        except ReelfsError as error:
            log.info("%s: its checksum is not known: %s", self._stored.key, error)
        except Exception:
            log.exception("%s: its checksum was not asked for", self._stored.key)
        finally:
            told.set()

    async def _compare(self, value: int) -> None:
        with trio.move_on_after(PATIENCE):
            if self._told is None:
                await self._ask(trio.Event())
            else:
                await self._told.wait()
        if self._sum is None or self._sum == value:
            return
        self._failed = True
        await self._blocks.forget([self._stored])
        raise Corrupt(self._failure())

    def _failure(self) -> str:
        return (
            f"{self._stored.key}: what was read of it, from start to end, does not have the checksum "
            "CRC-64/NVME that the store keeps: open it again"
        )
