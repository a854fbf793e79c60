"""What is here of the bytes of one object version, and what is on its way.

Per version there is a sorted list of *segments* (bytes that are here) and one of *flights* (bytes on their
way). Two invariants make the bookkeeping simple. Flights are disjoint. A flight covers, beside missing bytes,
only whole segments (those in a hole that was not worth a second request), which its body replaces.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from vfs.cache.intervals import Intervals, Range
from vfs.cache.shared import Shared
from vfs.spans import StoredObject
from vfs.storage.arriving import Arriving

#: Which version of which object: key, version, size.
Key = tuple[str, str, int]
_OVERHEAD = 512  # bytes of bookkeeping per segment, measured with tracemalloc


class Segment:
    """Bytes [start, end) that are here. `data` is read-only and never changes. file: None = not kept."""

    __slots__ = ("data", "end", "file", "start")

    def __init__(self, file: File | None, start: int, data: memoryview) -> None:
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
    """Bytes [start, end) that are on their way, from the disk cache or the store; the first may be here.

    fetch: brings them. ended: told when it has, or has failed.
    """

    __slots__ = ("arriving", "end", "start")

    def __init__(
        self,
        span: Range,
        fetch: Callable[[Arriving], Awaitable[memoryview]],
        ended: Callable[[Flight], None],
    ) -> None:
        self.start, self.end = span
        self.arriving = arriving = Arriving(self.end - self.start)
        super().__init__(lambda: fetch(arriving), lambda: ended(self))
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


class File:
    """What is here and on its way of one version of one object. identity: its name on disk."""

    __slots__ = ("flights", "identity", "key", "ready", "stored")

    def __init__(self, key: Key, stored: StoredObject, identity: str) -> None:
        self.key = key
        self.stored = stored
        self.identity = identity
        self.ready: Intervals[Segment] = Intervals()
        self.flights: Intervals[Flight] = Intervals()


def key_of(stored: StoredObject) -> Key:
    """Which version that is."""
    return stored.key, stored.version, stored.size
