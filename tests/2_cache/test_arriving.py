"""Bytes used while the rest of their request is on its way: the right ones, and only what was checked."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from vfs.cache.blocks import BlockCache
from vfs.cache.budget import Budget
from vfs.errors import BadBody, ReelfsError, Stale, Unavailable
from vfs.reader import Reader, open_reader
from vfs.spans import Extent, Inline, Layout, StoredObject
from vfs.storage.arriving import LEAST, MOST, Arriving, Intake
from vfs.storage.base import Body, Store
from vfs.storage.guard import ATTEMPT_SHARE, GuardedStore

SIZE = 100_000
BODY = random.Random(5).randbytes(SIZE)
GAME = StoredObject("game.mp4", SIZE, '"v1"')


class Request:
    """A request whose bytes come when the test says so."""

    def __init__(self, offset: int, length: int, intake: Intake) -> None:
        self.offset, self.length, self.intake = offset, length, intake
        self.came = 0
        self._over = trio.Event()
        self._failure: ReelfsError | None = None

    def give(self, count: int) -> None:
        """So many more bytes are here."""
        at = self.offset + self.came
        count = min(count, self.length - self.came)
        self.intake.room[self.came : self.came + count] = BODY[at : at + count]
        self.came += count
        self.intake.reached(self.came)

    def end(self, failure: ReelfsError | None = None) -> None:
        """Give the rest, or fail."""
        if failure is None:
            self.give(self.length)
        self._failure = failure
        self._over.set()

    async def result(self) -> Body:
        await self._over.wait()
        if self._failure is not None:
            raise self._failure
        return self.intake.room


class Tap:
    """A store whose requests are served by hand. requests: all so far."""

    url, remote = "memory://tap", True

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.arriving: list[weakref.ref[Arriving]] = []
        self.cancelled = 0

    async def read(
        self, stored: StoredObject, offset: int, length: int, arriving: Arriving | None = None
    ) -> Body:
        arriving = arriving or Arriving(length)
        self.arriving.append(weakref.ref(arriving))
        request = Request(offset, length, arriving.begin())
        self.requests.append(request)
        try:
            return await request.result()
        except trio.Cancelled:
            self.cancelled += 1
            raise


def run(scenario: Callable[[Tap, BlockCache], Awaitable[None]]) -> None:
    async def main() -> None:
        tap = Tap()
        await scenario(tap, BlockCache(cast(Store, tap), Budget(10_000_000)))

    trio.run(main, clock=MockClock(autojump_threshold=0))


@asynccontextmanager
async def under_way(blocks: BlockCache, start: int, end: int) -> AsyncIterator[None]:
    """A request for these bytes that somebody waits for."""
    with blocks.hold() as hold:
        hold.add(GAME, [(start, end)])
        await wait_all_tasks_blocked()
        yield


def test_who_needs_the_first_bytes_does_not_wait_for_the_last() -> None:
    async def scenario(tap: Tap, blocks: BlockCache) -> None:
        got: list[bytes] = []

        async def read(offset: int, length: int) -> None:
            got.append(b"".join(await blocks.read(GAME, offset, length)))

        async with under_way(blocks, 0, SIZE), trio.open_nursery() as nursery:
            nursery.start_soon(read, 10, 990)
            nursery.start_soon(read, 5_000, 5_000)
            await wait_all_tasks_blocked()
            tap.requests[0].give(999)
            await wait_all_tasks_blocked()
            assert got == []
            tap.requests[0].give(1)
            await wait_all_tasks_blocked()
            assert got == [BODY[10:1000]]
            tap.requests[0].give(9_000)
            await wait_all_tasks_blocked()
            assert got == [BODY[10:1000], BODY[5_000:10_000]]
            await read(7_000, 100)  # here already: at once
            tap.requests[0].end()
        assert len(tap.requests) == 1

    run(scenario)


def test_a_stream_gives_pieces_as_they_come_and_asks_for_more_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vfs.cache.hold._STREAMED", 16_384)

    async def scenario(tap: Tap, blocks: BlockCache) -> None:
        layout = Layout((Inline(b"head"), Extent(GAME, 1_000, 60_000), Extent(GAME, 0, 100)))
        expected = b"head" + BODY[1_000:61_000] + BODY[:100]
        got = bytearray()

        async def read() -> None:
            async for piece in Reader(blocks, max_request=40_000).stream(layout):
                got.extend(piece)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            assert [(r.offset, r.length) for r in tap.requests] == [(1_000, 39_996)]
            tap.requests[0].give(16_383)
            await wait_all_tasks_blocked()
            assert bytes(got) == b"head"
            for came in (16_384, 19_000):
                tap.requests[0].give(came - tap.requests[0].came)
                await wait_all_tasks_blocked()
                assert bytes(got) == expected[: 4 + 16_384]
            assert len(tap.requests) == 1
            tap.requests[0].give(16_384)  # half of it is through
            await wait_all_tasks_blocked()
            assert len(tap.requests) == 3
            for request in tap.requests:
                request.end()
        assert bytes(got) == expected

    run(scenario)


def test_a_request_that_fails_late_has_given_what_was_right_and_nothing_is_kept() -> None:
    async def scenario(tap: Tap, blocks: BlockCache) -> None:
        failed: list[ReelfsError] = []

        async def read(offset: int, length: int) -> None:
            try:
                await blocks.read(GAME, offset, length)
            except ReelfsError as error:
                failed.append(error)

        async with under_way(blocks, 0, 50_000), trio.open_nursery() as nursery:
            nursery.start_soon(read, 0, 100)
            nursery.start_soon(read, 0, 200)
            await wait_all_tasks_blocked()
            tap.requests[0].give(100)
            await wait_all_tasks_blocked()
            tap.requests[0].end(Stale("replaced"))
        assert [type(error) for error in failed] == [Stale]
        assert blocks.peek(GAME, 0, 100) is None

    run(scenario)


def test_what_has_come_whole_is_kept_though_its_last_reader_leaves_at_once() -> None:
    async def scenario(tap: Tap, blocks: BlockCache) -> None:
        got: list[bytes] = []

        async def read() -> None:
            got.append(b"".join(await blocks.read(GAME, 0, 100_000)))

        async def stream() -> None:
            got.append(b"".join([bytes(p) async for p in Reader(blocks).stream(Layout.whole(GAME))]))

        for reading in (read, stream):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reading)
                await wait_all_tasks_blocked()
                tap.requests[-1].give(SIZE)
                await wait_all_tasks_blocked()
                tap.requests[-1].end()
            assert bytes(blocks.peek(GAME, 0, SIZE) or b"") == BODY
            assert len(tap.requests) == 1
        assert got == [BODY, BODY]

    run(scenario)


def test_the_first_failure_of_several_requests_is_told_at_once() -> None:
    async def scenario(tap: Tap, blocks: BlockCache) -> None:
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(Unavailable):
                    await blocks.read(GAME, 0, 90_000, max_request=30_000)
                nursery.cancel_scope.cancel()

            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            tap.requests[1].end(Unavailable("503"))
            await wait_all_tasks_blocked()
            raise AssertionError("it waits for the others")

    run(scenario)


def test_a_reader_who_leaves_stops_what_nobody_else_wants() -> None:
    async def scenario(tap: Tap, blocks: BlockCache) -> None:
        with trio.move_on_after(1):
            await blocks.read(GAME, 0, 50_000)
        await wait_all_tasks_blocked()
        assert tap.cancelled == 1
        stream = Reader(blocks).stream(Layout.whole(GAME))
        async with trio.open_nursery() as nursery:

            async def first() -> None:
                assert bytes(await anext(stream)) == BODY[:70_000]

            nursery.start_soon(first)
            await wait_all_tasks_blocked()
            tap.requests[1].give(70_000)
        await stream.aclose()  # type: ignore[attr-defined]
        await wait_all_tasks_blocked()
        assert tap.cancelled == 2

    run(scenario)


def test_what_is_expected_is_fetched_once_and_seen_through() -> None:
    """The table is read from the first bytes of the request that brings the pictures, too."""

    async def main() -> None:
        tap = Tap()
        async with open_reader(BlockCache(cast(Store, tap), Budget(10_000_000))) as reader:
            await reader.expect(Layout((Extent(GAME, 500, 50_000),)))
            await wait_all_tasks_blocked()
            tap.requests[0].give(100)
            assert await reader.fetch(Layout((Extent(GAME, 500, 100),))) == BODY[500:600]
            await wait_all_tasks_blocked()
            tap.requests[0].end()
            await wait_all_tasks_blocked()
            assert reader.peek(Layout.whole(GAME), 30_000, 20_000) == BODY[30_000:50_000]
            await reader.expect(Layout((Extent(GAME, 600, 1_000),)))  # it is here
            assert len(tap.requests) == 1

    trio.run(main)


def test_an_attempt_goes_on_where_the_one_before_was_cut_off() -> None:
    async def main() -> None:
        tap = Tap()
        store = GuardedStore(cast(Store, tap), deadline=30)
        arriving = Arriving(10_000)
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                body = await store.read(GAME, 2_000, 10_000, arriving)
                assert bytes(body) == BODY[2_000:12_000]

            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            tap.requests[0].give(4_000)
            early = arriving.view(0, 4_000)
            tap.requests[0].end(BadBody("cut off"))
            await trio.sleep(1)
            assert [(r.offset, r.length) for r in tap.requests] == [(2_000, 10_000), (6_000, 6_000)]
            # It hangs, is given up, and its thread goes on writing: nobody reads that.
            await trio.sleep(30 * ATTEMPT_SHARE + 1)
            late, last = tap.requests[1], tap.requests[2]
            assert (last.offset, last.length) == (6_000, 6_000)
            late.intake.room[:] = bytes(6_000)
            late.intake.reached(6_000)
            assert arriving.have == 4_000
            last.end()
        assert early == BODY[2_000:6_000]
        assert store.counters.bytes_read == 10_000

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_what_nobody_needs_any_more_is_gone_at_once() -> None:
    """Without the garbage collector: it comes by late, and bodies are megabytes."""

    async def scenario(tap: Tap, blocks: BlockCache) -> None:
        async with under_way(blocks, 0, SIZE):
            tap.requests[0].give(50_000)
            await blocks.read(GAME, 0, 1_000)
            with trio.move_on_after(1):
                await blocks.read(GAME, 0, 90_000)
            tap.requests[0].end()
            await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await blocks.read(StoredObject("other", SIZE, '"v1"'), 0, SIZE)
        await wait_all_tasks_blocked()
        assert len(tap.arriving) == 2
        assert [one() for one in tap.arriving] == [None, None]

    gc.disable()
    try:
        run(scenario)
    finally:
        gc.enable()


def test_a_version_that_was_read_counts_as_looked_at_from_its_first_byte() -> None:
    async def main() -> None:
        tap = Tap()
        store = GuardedStore(cast(Store, tap))
        seen: list[tuple[StoredObject, float]] = []
        store.confirmed = lambda stored, when: seen.append((stored, when))
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.read, GAME, 0, 1_000, Arriving(1_000))
            await wait_all_tasks_blocked()
            assert seen == []
            tap.requests[0].give(1)
            await wait_all_tasks_blocked()
            assert seen == [(GAME, began)]
            tap.requests[0].end()

    trio.run(main, clock=MockClock(autojump_threshold=0))


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_many_readers_of_requests_that_trickle_get_the_right_bytes(seed: int) -> None:
    """Whatever the order in which bytes come, attempts fail and readers leave."""
    dice = random.Random(seed)

    async def main() -> None:
        tap = Tap()
        blocks = BlockCache(cast(Store, GuardedStore(cast(Store, tap), deadline=1e9)), Budget(150_000))
        reader = Reader(blocks, max_request=dice.choice((7_000, 40_000)), gap=dice.choice((0, 3_000)))

        async def read() -> None:
            start = dice.randrange(SIZE - 1)
            length = dice.randint(1, SIZE - start)
            layout = Layout((Extent(GAME, start, length),))
            with trio.move_on_after(dice.choice((0.5, 1e6, 1e6))):
                if dice.random() < 0.5:
                    got = b"".join([bytes(piece) async for piece in reader.stream(layout)])
                else:
                    got = bytes(await reader.read(layout, 0, length))
                assert got == BODY[start : start + length]

        async def serve() -> None:
            at = 0
            while True:
                await trio.sleep(0.1)
                for request in tap.requests[at:]:
                    request.give(dice.randint(0, 20_000))
                    if request.came == request.length:
                        request.end()
                    elif dice.random() < 0.1:
                        request.end(dice.choice((Unavailable("reset"), BadBody("short"))))
                while at < len(tap.requests) and tap.requests[at]._over.is_set():
                    at += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            async with trio.open_nursery() as readers:
                for _ in range(12):
                    readers.start_soon(read)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_the_faster_bytes_come_the_more_are_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        now = [0.0]
        monkeypatch.setattr("vfs.storage.arriving.time", SimpleNamespace(monotonic=lambda: now[0]))
        arriving = Arriving(100 << 20)
        intake = arriving.begin()

        def steps(seconds: float, count: int) -> list[int]:
            found = []
            for _ in range(count):
                now[0] += seconds
                found.append(intake.due())
            return found

        assert steps(0.001, 8)[-1] == MOST, "a fast line: few calls"
        assert steps(0.2, 8)[-1] == LEAST, "a slow one: who comes to wait does not wait long"
        steps(0.001, 8)
        arriving.watch(intake.have + 20_000, lambda: None)
        assert intake.due() == 20_000, "nobody is told late of what he waits for"

    trio.run(main)
