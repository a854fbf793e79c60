"""Sending a body of any size: one PUT, or equal parts in parallel that are joined at the end.

R2 wants all parts but the last of one size, and shows nothing of an upload until it is completed.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import trio

from vfs.errors import ReelfsError
from vfs.spans import StoredObject
from vfs.storage.base import Body, Part, Store
from vfs.tasks import gather

MIB = 1 << 20
#: Up to this a body is sent by one request.
SINGLE = 64 * MIB
#: Parts are at least this, and at most so many (R2, S3).
LEAST_PART, MOST_PARTS = 8 * MIB, 10_000
#: Parts on their way at one time.
AT_ONCE = 4

Read = Callable[[int, int], Awaitable[Body]]


def part_size(size: int) -> int:
    """Bytes of each part but the last: the least that keeps to the most parts, in whole MiB."""
    needed = -(-size // MOST_PARTS)
    return max(LEAST_PART, -(-needed // MIB) * MIB)


def part_count(size: int) -> int:
    """Parts of a body."""
    return max(1, -(-size // part_size(size)))


def multipart_etag(digests: list[bytes]) -> str:
    """The etag of an object made of parts with these MD5s, as S3 and R2 compute it, quoted."""
    return f'"{hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"'


class Room:
    """Bytes of bodies that are in memory at one time, of several uploads; first come, first served."""

    def __init__(self, most: int) -> None:
        self._most = self._free = most
        self._turn = trio.Lock()
        self._news = trio.Event()

    @asynccontextmanager
    async def take(self, size: int) -> AsyncIterator[None]:
        """Within it there is room for so many bytes; more than there is at all counts as all."""
        size = min(size, self._most)
        async with self._turn:
            while self._free < size:
                self._news = trio.Event()
                await self._news.wait()
            self._free -= size
        try:
            yield
        finally:
            self._free += size
            self._news.set()


async def send(
    store: Store,
    key: str,
    size: int,
    read: Read,
    *,
    replaces: StoredObject | None,
    metadata: Mapping[str, str] | None = None,
    done: Mapping[int, Part] | None = None,
    upload: str | None = None,
    began: Callable[[str], Awaitable[object]] | None = None,
    sent: Callable[[Part, int], Awaitable[object]] | None = None,
    single: int = SINGLE,
    room: Room | None = None,
) -> StoredObject:
    """Store `size` bytes that `read(offset, length)` gives, under the conditions of `Store.put`.

    Resuming: upload, done: an upload under way and its parts that are there. began: told the name of a new
    one. sent: told each part that has arrived, and its bytes. An upload that fails is left for the next try;
    one whose condition does not hold is gone. room: for the bodies, shared with other uploads.
    """
    room = room or Room(AT_ONCE * max(single, part_size(size)))
    if size <= single and upload is None:
        async with room.take(size):
            body = await read(0, size) if size else b""
            stored = await store.put(key, body, replaces=replaces, metadata=metadata)
            del body
        if sent is not None:
            await sent(Part(1, stored.version), size)
        return stored
    if upload is None:
        upload = await store.start_upload(key, metadata=metadata)
        if began is not None:
            await began(upload)
    step, parts = part_size(size), dict(done or {})
    failures: list[ReelfsError] = []

    async def one(number: int) -> None:
        if failures:
            return  # the others that are under way are finished: they need not be sent again
        offset = (number - 1) * step
        length = min(step, size - offset)
        try:
            async with room.take(length):
                parts[number] = await store.put_part(key, upload, number, await read(offset, length))
        except ReelfsError as error:
            failures.append(error)
            return
        if sent is not None:
            await sent(parts[number], length)

    missing = [number for number in range(1, part_count(size) + 1) if number not in parts]
    await gather((partial(one, number) for number in missing), AT_ONCE)
    if failures:
        raise failures[0]
    ordered = [parts[number] for number in sorted(parts)]
    return await store.complete_upload(key, upload, ordered, replaces=replaces)
