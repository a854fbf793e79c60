"""Files read from start to end have the checksum the store keeps of them, or the last read fails."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from vfs import wholeread
from vfs.cache.blocks import BlockCache
from vfs.cache.budget import Budget
from vfs.errors import Unavailable
from vfs.reader import Handle, Reader
from vfs.spans import Extent, Layout, StoredObject
from vfs.storage.arriving import Arriving
from vfs.storage.base import Body, Corrupt, Store
from vfs.storage.sums import MOST_AHEAD, Running, crc64nvme

SIZE = 60_000
BODY = random.Random(3).randbytes(SIZE)
GAME = StoredObject("game.mp4", SIZE, '"v1"')


class Sums:
    """A store that knows a checksum. flips: this byte comes wrong."""

    url, remote = "memory://sums", True

    def __init__(self) -> None:
        self.sum: int | None = crc64nvme(BODY)
        self.flips: int | None = None
        self.fails = False
        self.asked = 0

    async def read(
        self, stored: StoredObject, offset: int, length: int, arriving: Arriving | None = None
    ) -> Body:
        await trio.lowlevel.checkpoint()
        part = bytearray(BODY[offset : offset + length])
        if self.flips is not None and offset <= self.flips < offset + length:
            part[self.flips - offset] ^= 1
        return part

    async def checksum(self, stored: StoredObject) -> int | None:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.fails:
            raise Unavailable("503")
        return self.sum


@pytest.fixture(autouse=True)
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wholeread, "LEAST", 1000)


def run(scenario: Callable[[Sums, BlockCache], Awaitable[None]]) -> None:
    async def main() -> None:
        store = Sums()
        await scenario(store, BlockCache(cast(Store, store), Budget(10_000_000)))

    trio.run(main)


async def read_through(handle: Handle, step: int = 7_000) -> bytes:
    return b"".join([bytes(await handle.read(at, step)) for at in range(0, SIZE, step)])


def test_right_bytes_pass_and_cost_one_question() -> None:
    async def scenario(store: Sums, blocks: BlockCache) -> None:
        handle = Reader(blocks).open(Layout.whole(GAME))
        assert await read_through(handle) == BODY
        assert await read_through(handle) == BODY
        assert store.asked == 1

    run(scenario)


def test_wrong_bytes_fail_the_last_read_and_are_not_kept() -> None:
    async def scenario(store: Sums, blocks: BlockCache) -> None:
        store.flips = 12_345
        handle = Reader(blocks).open(Layout.whole(GAME))
        for at in range(0, SIZE - 10_000, 10_000):
            await handle.read(at, 10_000)
        with pytest.raises(Corrupt, match=r"game\.mp4: what was read of it, from start to end"):
            await handle.read(SIZE - 10_000, 10_000)
        with pytest.raises(Corrupt):  # read(2) gives a part, and asks for the rest
            await handle.read(SIZE - 100, 100)
        await blocks.forget([GAME])
        assert blocks.peek(GAME, 0, 100) is None
        store.flips = None
        assert await read_through(Reader(blocks).open(Layout.whole(GAME))) == BODY

    run(scenario)


def test_in_one_read_too() -> None:
    async def scenario(store: Sums, blocks: BlockCache) -> None:
        handle = Reader(blocks).open(Layout.whole(GAME))
        assert await handle.read(0, SIZE) == BODY
        store.flips = 5
        await blocks.forget()
        with pytest.raises(Corrupt):
            await Reader(blocks).open(Layout.whole(GAME)).read(0, SIZE)

    run(scenario)


def test_what_cannot_be_known_changes_nothing() -> None:
    async def scenario(store: Sums, blocks: BlockCache) -> None:
        store.flips, store.sum = 5, None
        assert len(await read_through(Reader(blocks).open(Layout.whole(GAME)))) == SIZE
        store.fails = True
        assert len(await read_through(Reader(blocks).open(Layout.whole(GAME)))) == SIZE
        # Parts, and whatever is no stored object as it is, are not asked about.
        asked = store.asked
        handle = Reader(blocks).open(Layout.whole(GAME))
        for at in (30_000, 0, 50_000, 20_000):
            await handle.read(at, 5_000)
        await read_through(Reader(blocks).open(Layout((Extent(GAME, 1, SIZE - 1),))))
        assert store.asked == asked

    run(scenario)


def test_a_checksum_that_does_not_come_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wholeread, "PATIENCE", 0.05)

    async def scenario(store: Sums, blocks: BlockCache) -> None:
        async def never(stored: StoredObject) -> int | None:
            await trio.sleep_forever()
            return None

        monkeypatch.setattr(store, "checksum", never)
        with trio.fail_after(5):
            assert await read_through(Reader(blocks).open(Layout.whole(GAME))) == BODY

    run(scenario)


@settings(deadline=None)
@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=30), st.randoms())
def test_pieces_in_any_order_make_the_whole(body: bytes, cuts: list[int], dice: random.Random) -> None:
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    pieces = [(start, body[start:stop]) for start, stop in pairwise(edges)]
    pieces += dice.sample(pieces, len(pieces) // 2)  # some come twice
    dice.shuffle(pieces)
    running = Running()
    for offset, piece in pieces:
        running.add(offset, memoryview(piece))
    assert (running.at, running.lost) == (len(body), False)
    assert not body or running.value == crc64nvme(body)


def test_too_much_that_is_missing_is_no_reading_in_order() -> None:
    running = Running()
    for number in range(MOST_AHEAD + 1):
        running.add(10 + 2 * number, b"x")
    assert running.lost
    running.add(0, b"0123456789")
    assert running.at == 0
