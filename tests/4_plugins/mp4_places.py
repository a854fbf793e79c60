"""A stored file in memory, as a plugin sees it, that logs what a store would have been asked for."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from vfs import Extent, Inline, Layout, Node, NotFound, Pool, StoredObject

T = TypeVar("T")
#: Bytes of a request that come at a time.
PIECE = 64 << 10


class Ranges:
    """Byte ranges that were fetched."""

    def __init__(self) -> None:
        self.held: list[tuple[int, int]] = []

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of [start, stop) that are not held."""
        gaps, at = [], start
        for low, high in sorted(self.held):
            if high <= at or low >= stop:
                continue
            if low > at:
                gaps.append((at, low))
            at = max(at, high)
        if at < stop:
            gaps.append((at, stop))
        return gaps

    def add(self, start: int, stop: int) -> None:
        """Hold [start, stop)."""
        self.held.append((start, stop))


@dataclass(eq=False)
class MemoryPlace:
    """`data` under `path`; `beside` are sidecars by suffix. Reads of bytes read before are not logged.

    log: (path, offset, length) of each request, shared with the sidecars. delay: awaited before each.
    """

    data: bytes
    path: str = "games/x.mp4"
    beside: dict[str, bytes] = field(default_factory=dict)
    log: list[tuple[str, int, int]] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    ranges: Ranges = field(default_factory=Ranges)
    memo: dict[str, Any] = field(default_factory=dict)
    locks: dict[str, trio.Lock] = field(default_factory=dict)
    remembered: dict[str, bytes] = field(default_factory=dict)
    is_folder: bool = False
    mtime_ns: int = 0

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def version(self) -> str:
        return hashlib.md5(self.data).hexdigest()

    @property
    def object(self) -> StoredObject:
        return StoredObject(self.path, self.size, self.version, self.mtime_ns)

    @property
    def requested(self) -> int:
        """Bytes asked of the store for this path."""
        return sum(length for path, _, length in self.log if path == self.path)

    async def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length >= 0
        stop = min(offset + length, self.size)
        for low, high in self.ranges.missing(offset, stop):
            self.log.append((self.path, low, high - low))
            self.ranges.add(low, high)
        await trio.lowlevel.checkpoint()
        return self.data[offset:stop]

    async def stream(
        self, layout: Layout, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes | memoryview]:
        """As it comes, in pieces; who leaves early has asked for no more than what came."""
        window = layout.window(offset, layout.size - offset if length is None else length)
        for span in window.spans:
            if isinstance(span, Inline):
                yield span.data
                continue
            at, stop = span.offset, span.offset + span.length
            for low, high in [*self.ranges.missing(at, stop), (stop, stop)]:
                if at < low:
                    yield self.data[at:low]
                at = low
                try:
                    while at < high:
                        await trio.lowlevel.checkpoint()
                        begin, at = at, min(at + PIECE, high)
                        yield self.data[begin:at]
                finally:
                    if at > low:
                        self.log.append((self.path, low, at - low))
                    if at == high > low:
                        self.ranges.add(low, high)

    async def fetch(self, layout: Layout) -> bytes:
        parts = []
        for span in layout.spans:
            if isinstance(span, Inline):
                parts.append(span.data)
            else:
                parts.append(await self.read(span.offset, span.length))
        return b"".join(parts)

    async def expect(self, offset: int, length: int) -> None:
        await self.read(offset, min(length, self.size - offset))

    async def sidecar(self, suffix: str) -> MemoryPlace | None:
        await trio.lowlevel.checkpoint()
        if suffix not in self.beside:
            return None
        return MemoryPlace(self.beside[suffix], self.path + suffix, log=self.log)

    async def child(self, name: str) -> MemoryPlace | None:
        return None

    async def children(self) -> Mapping[str, MemoryPlace]:
        return {}

    async def find(self, path: str) -> MemoryPlace | None:
        return None

    async def node(self, path: str) -> Node:
        raise NotFound(path)

    async def unpathable(self) -> Mapping[str, MemoryPlace]:
        return {}

    async def derive(
        self,
        key: str,
        make: Callable[[], Awaitable[T]],
        *,
        cost: Callable[[T], int] | None = None,
        pool: Pool | None = None,
    ) -> T:
        async with self.locks.setdefault(key, trio.Lock()):
            if key not in self.memo:
                value = await make()
                assert (cost(value) if cost else 0) >= 0
                self.memo[key] = value
            found: T = self.memo[key]
            return found

    async def kept(self, name: str) -> bytes | None:
        return self.remembered.get(name)

    async def keep(self, name: str, data: bytes) -> bool:
        self.remembered[name] = data
        return True

    def extent(self, offset: int, length: int) -> Extent:
        return Extent(self.object, offset, length)

    def report(self, message: str) -> None:
        self.reports.append(message)
