"""The reader: right bytes in few requests, read-ahead that helps and never hinders, bounded memory."""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from vfs.cache.blocks import BlockCache
from vfs.cache.budget import Budget
from vfs.cache.disk import DiskCache
from vfs.cache.hold import KIB, MIB
from vfs.errors import Stale, Unavailable
from vfs.pytest_plugin import ExpectedLogs
from vfs.reader import Handle, Reader, open_reader
from vfs.spans import Extent, Inline, Layout, StoredObject
from vfs.storage.base import Store

PERIOD = 100_003  # prime, so that no two aligned parts of an object are equal


@functools.cache
def pattern(version: str) -> bytes:
    return random.Random(version).randbytes(PERIOD)


def content(stored: StoredObject, start: int = 0, end: int | None = None) -> bytes:
    """Made-up bytes [start, end) of an object: those of large ones repeat."""
    end = min(stored.size, stored.size if end is None else end)
    first = start % PERIOD
    times = (first + end - start) // PERIOD + 1
    return (pattern(stored.version) * times)[first : first + end - start]


class Bucket:
    """A store whose requests take `latency` seconds, at most `connections` at once. log: (offset, length)."""

    url = "memory://bucket"

    def __init__(self, latency: float = 0.0, remote: bool = True, connections: int = 32) -> None:
        self.remote = remote
        self.latency = latency
        self.log: list[tuple[int, int]] = []
        self.busy = 0
        self.busiest = 0
        self.cancelled = 0
        self.trouble: Callable[[int], Awaitable[None]] | None = None
        self._connections = trio.CapacityLimiter(connections)

    async def read(self, stored: StoredObject, offset: int, length: int, arriving: object = None) -> bytes:
        self.log.append((offset, length))
        async with self._connections:
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
            try:
                await trio.sleep(self.latency)
                if self.trouble is not None:
                    await self.trouble(offset)
            except trio.Cancelled:
                self.cancelled += 1
                raise
            finally:
                self.busy -= 1
        return content(stored, offset, offset + length)

    @property
    def fetched(self) -> int:
        return sum(length for _, length in self.log)


@asynccontextmanager
async def reading(
    bucket: Bucket, *, memory: int = 256 * MIB, disk: DiskCache | None = None, gap: int = 64 * KIB
) -> AsyncIterator[Reader]:
    async with open_reader(BlockCache(cast(Store, bucket), Budget(memory), disk), gap=gap) as reader:
        yield reader


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


def movie(size: int = 500 * MIB, version: str = "v1") -> StoredObject:
    return StoredObject("games/a.mp4", size, version)


def bytes_of(layout: Layout) -> bytes:
    return b"".join(
        span.data if isinstance(span, Inline) else content(span.object, span.offset, span.end)
        for span in layout.spans
    )


# Reads


def test_a_read_inside_one_segment_is_a_view_and_fetch_of_a_whole_body_copies_nothing() -> None:
    async def main() -> None:
        bucket = Bucket()
        async with reading(bucket) as reader:
            layout = Layout.whole(movie(1000))
            first = await reader.fetch(layout)
            assert first == content(movie(1000))
            assert await reader.fetch(layout) is first
            view = await reader.read(layout, 10, 20)
            assert isinstance(view, memoryview)
            assert view.obj is first
            assert view == first[10:30]
            assert reader.peek(layout, 10, 20) == view
            assert bucket.log == [(0, 1000)]

    run(main)


def test_reads_end_where_the_file_ends() -> None:
    async def main() -> None:
        async with reading(Bucket()) as reader:
            layout = Layout.whole(movie(1000))
            assert await reader.read(layout, 990, 50) == content(movie(1000))[990:]
            assert await reader.read(layout, 1000, 50) == b""
            assert await reader.read(layout, 5000, 50) == b""
            assert await reader.read(layout, 10, 0) == b""
            assert await reader.fetch(Layout(())) == b""
            with pytest.raises(ValueError, match="negative"):
                await reader.read(layout, -1, 5)

    run(main)


pieces = st.one_of(
    st.binary(min_size=1, max_size=40).map(Inline),
    st.tuples(st.sampled_from(["v1", "v2"]), st.integers(0, 4000), st.integers(1, 900)).map(
        lambda t: Extent(movie(5000, t[0]), t[1], t[2])
    ),
)
windows = st.tuples(st.integers(0, 4000), st.integers(0, 3000))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(pieces, max_size=12).map(Layout),
    st.lists(windows, min_size=1, max_size=6),
    st.sampled_from([0, 100, 10_000]),
    st.booleans(),
)
def test_every_window_is_its_slice_and_its_plan_is_what_happens(
    layout: Layout, asked: list[tuple[int, int]], gap: int, remote: bool
) -> None:
    whole = bytes_of(layout)

    async def main() -> None:
        bucket = Bucket(remote=remote)
        async with reading(bucket, gap=gap) as reader:
            for offset, length in asked:
                plan = reader.plan(layout, offset, length)
                bucket.log.clear()
                assert (
                    await reader.read(layout, offset, length) == memoryview(whole)[offset : offset + length]
                )
                assert sorted(bucket.log) == sorted((start, size) for _, start, size in plan.requests)
                again = reader.plan(layout, offset, length)
                assert not (remote and again.requests)
                wanted = {
                    (e.object, n)
                    for e in layout.window(offset, length).extents
                    for n in range(e.offset, e.end)
                }
                if remote:
                    assert again.cached_bytes == len(wanted)
                spans = layout.window(offset, length).spans
                assert again.inline_bytes == sum(s.length for s in spans if isinstance(s, Inline))
            assert await reader.fetch(layout) == whole

    run(main)


def test_neighbours_are_fetched_in_one_request_and_the_gap_limit_holds() -> None:
    async def main() -> None:
        bucket = Bucket()
        async with reading(bucket) as reader:
            spans = [Extent(movie(), 1000 + n * 70_000, 10_000) for n in range(10)]
            far = Extent(movie(), 300 * MIB, 10_000)
            layout = Layout([Inline(b"head"), *reversed(spans), far])
            assert reader.plan(layout).fetched_bytes == 9 * 70_000 + 10_000 + 10_000
            assert await reader.fetch(layout) == bytes_of(layout)
            assert sorted(bucket.log) == [(1000, 9 * 70_000 + 10_000), (300 * MIB, 10_000)]

    run(main)


def test_the_same_version_with_another_mtime_is_the_same_bytes() -> None:
    async def main() -> None:
        bucket = Bucket()
        async with reading(bucket) as reader:
            touched = StoredObject("games/a.mp4", 5000, "v1", mtime_ns=7)
            layout = Layout([Extent(movie(5000), 0, 10), Inline(b"x"), Extent(touched, 20, 10)])
            data = content(movie(5000))
            assert await reader.fetch(layout) == data[:10] + b"x" + data[20:30]
            assert bucket.log == [(0, 30)]

    run(main)


@pytest.mark.parametrize("error", [Stale("412"), Unavailable("503")])
def test_errors_of_the_store_reach_the_reader(error: Exception) -> None:
    async def fail(offset: int) -> None:
        raise error

    async def main() -> None:
        bucket = Bucket()
        bucket.trouble = fail
        with pytest.raises(type(error)):
            async with reading(bucket) as reader:
                await reader.fetch(Layout.whole(movie(100)))

    run(main)


def test_a_local_store_is_read_straight_without_read_ahead_or_cache() -> None:
    async def main() -> None:
        bucket = Bucket(remote=False)
        async with reading(bucket) as reader:
            handle = reader.open(Layout.whole(movie()))
            for number in range(20):
                assert await handle.read(number * MIB, MIB) == content(
                    movie(), number * MIB, number * MIB + MIB
                )
            await wait_all_tasks_blocked()
            assert bucket.log == [(number * MIB, MIB) for number in range(20)]
            assert reader.blocks.budget.used == 0
            handle.close()

    run(main)


# Read-ahead


async def read_through(handle: Handle, start: int, end: int, step: int) -> None:
    for offset in range(start, end, step):
        assert await handle.read(offset, step) == content(movie(), offset, min(end, offset + step))


@pytest.mark.parametrize("step", [128 * KIB, MIB, 1_000_003])
def test_a_sequential_reader_has_every_byte_once_and_waits_for_few_round_trips(step: int) -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.04)
        size = 200 * MIB
        async with reading(bucket) as reader:
            handle = reader.open(Layout.whole(movie(size)))
            begun = trio.current_time()
            await read_through(handle, 0, size, step)
            waited = (trio.current_time() - begun) / 0.04
            handle.close()
            assert bucket.fetched == size
            assert len(bucket.log) < 90
            assert waited < 25, "round trips; without read-ahead one for each read"
            assert reader.blocks.budget.used <= reader.blocks.budget.limit

    run(main)


def test_the_first_byte_waits_for_what_was_asked_and_no_more() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.04)
        async with reading(bucket) as reader:
            handle = reader.open(Layout.whole(movie()))
            begun = trio.current_time()
            await handle.read(0, 4096)
            assert trio.current_time() - begun == pytest.approx(0.04)
            assert bucket.log == [(0, 4096)]
            await handle.read(4096, 4096)
            assert bucket.log[1] == (4096, 4096), "foreground is exact also when read-ahead begins"
            handle.close()

    run(main)


def test_random_reads_fetch_nothing_ahead() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.01)
        dice = random.Random(5)
        async with reading(bucket) as reader:
            handle = reader.open(Layout.whole(movie()))
            offsets = [dice.randrange(0, 500) * MIB for _ in range(100)]
            for offset in offsets:
                await handle.read(offset, 16 * KIB)
            await wait_all_tasks_blocked()
            assert reader.prefetcher.pieces == 0
            assert bucket.fetched == 16 * KIB * len(set(offsets))
            handle.close()

    run(main)


def test_reading_backwards_fetches_nothing_ahead() -> None:
    async def main() -> None:
        bucket = Bucket()
        async with reading(bucket) as reader:
            handle = reader.open(Layout.whole(movie()))
            for number in range(200, 0, -1):
                await handle.read(number * 64 * KIB, 64 * KIB)
            assert reader.prefetcher.pieces == 0
            handle.close()

    run(main)


def test_what_is_fetched_ahead_is_in_proportion_to_what_was_read() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.04)
        async with reading(bucket) as reader:
            handle = reader.open(Layout.whole(movie()))
            await read_through(handle, 0, 512 * KIB, 64 * KIB)
            await trio.sleep(1)
            assert 512 * KIB < bucket.fetched <= 1024 * KIB
            handle.close()

    run(main)


def test_who_begins_with_a_large_piece_is_read_ahead_of_at_once() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.04)
        async with reading(bucket) as reader:
            large, small, late = (reader.open(Layout.whole(movie(version=v))) for v in ("v1", "v2", "v3"))
            await large.read(0, MIB)
            await trio.sleep(1)
            assert bucket.fetched == 5 * MIB
            await small.read(0, 512 * KIB)
            await late.read(100 * MIB, MIB)
            await trio.sleep(1)
            assert bucket.fetched == 5 * MIB + 512 * KIB + MIB, "nothing ahead of what may be a look"
            for handle in (large, small, late):
                handle.close()

    run(main)


def test_large_reads_at_their_multiples_are_views_of_one_piece() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.04)
        async with reading(bucket) as reader:
            handle = reader.open(Layout.whole(movie()))
            await handle.read(0, 384 * KIB)
            await handle.read(384 * KIB, 640 * KIB)
            joined = [
                at for at in range(1, 100) if not isinstance(await handle.read(at * MIB, MIB), memoryview)
            ]
            assert not [at for at in joined if at > 8], "begun out of step, then in step"
            handle.close()

    run(main)


def test_a_stream_leaves_what_it_read_and_what_others_keep_stays() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.01)
        async with reading(bucket, memory=96 * MIB) as reader:
            kept = Layout.whole(movie(64 * KIB, version="v2"))
            await reader.fetch(kept)
            handle = reader.open(Layout.whole(movie(300 * MIB)))
            for at in range(300):
                await handle.read(at * MIB, MIB)
                behind = sum(reader.blocks.has(movie(300 * MIB), n * MIB, (n + 1) * MIB) for n in range(at))
                assert behind <= 32, "a stream's own beginning, a piece and its tolerance"
            assert reader.peek(kept, 0, 64 * KIB) is not None
            assert reader.blocks.budget.evictions == 0
            assert bucket.fetched == 300 * MIB + 64 * KIB
            handle.close()

    run(main)


def test_streams_side_by_side_share_what_one_of_them_has_read() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.01)
        async with reading(bucket) as reader:
            first, second = (reader.open(Layout.whole(movie())) for _ in range(2))
            await second.read(0, MIB)
            await second.read(MIB, MIB)
            for at in range(80):
                await first.read(at * MIB, MIB)
                if at >= 30:
                    await second.read((at - 28) * MIB, MIB)
            asked = [offset for offset, _ in bucket.log]
            assert len(asked) == len(set(asked)), "fetched twice"
            first.close()
            second.close()

    run(main)


def test_the_kernels_pieces_may_come_in_any_order() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.04)
        size = 60 * MIB
        step = 128 * KIB
        async with reading(bucket) as reader:
            handle = reader.open(Layout.whole(movie(size)))
            begun = trio.current_time()
            for pair in range(0, size, 2 * step):
                async with trio.open_nursery() as nursery:
                    for offset in (pair + step, pair):
                        nursery.start_soon(handle.read, offset, step)
            assert bucket.fetched == size
            assert (trio.current_time() - begun) / 0.04 < 25
            handle.close()

    run(main)


def test_head_tail_and_body_are_cursors_of_their_own() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.04)
        async with reading(bucket) as reader:
            handle = reader.open(Layout.whole(movie()))
            places = [0, 200 * MIB, 450 * MIB]
            for place in places:
                await handle.read(place, 256 * KIB)
            begun = trio.current_time()
            for number in range(1, 80):
                for place in places:
                    await handle.read(place + number * 256 * KIB, 256 * KIB)
            assert (trio.current_time() - begun) / 0.04 < 50, "237 reads"
            handle.close()

    run(main)


def test_a_skip_forward_lands_in_what_is_on_its_way() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.04)
        async with reading(bucket) as reader:
            handle = reader.open(Layout.whole(movie()))
            await read_through(handle, 0, 20 * MIB, MIB)
            before = len(bucket.log)
            await handle.read(30 * MIB, MIB)
            assert (30 * MIB, MIB) not in bucket.log[before:]
            assert bucket.cancelled == 0
            handle.close()

    run(main)


@pytest.mark.parametrize("leave", ["close", "jump"])
def test_what_is_on_its_way_ends_when_the_reader_goes_elsewhere(leave: str) -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.04)
        async with reading(bucket) as reader:
            handle = reader.open(Layout.whole(movie()))
            await read_through(handle, 0, 20 * MIB, MIB)
            bucket.latency = 1000.0
            await handle.read(20 * MIB, MIB)
            await wait_all_tasks_blocked()
            assert bucket.busy > 0
            bucket.latency = 0.04
            if leave == "jump":
                await handle.read(400 * MIB, KIB)
            else:
                handle.close()
            await wait_all_tasks_blocked()
            assert bucket.busy == 0
            assert bucket.cancelled > 0
            assert reader.prefetcher.pending == reader.blocks.budget.pinned == 0
            await handle.read(21 * MIB, MIB)
            handle.close()
            handle.close()

    run(main)


def test_a_foreground_read_keeps_what_it_needs_of_a_window_that_ends() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.04)
        async with reading(bucket) as reader:
            layout = Layout.whole(movie())
            handle, other = reader.open(layout), reader.open(layout)
            await read_through(handle, 0, 20 * MIB, MIB)
            bucket.latency = 5.0
            await handle.read(20 * MIB, MIB)
            (start, length) = bucket.log[-1]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other.read, start, length)
                await wait_all_tasks_blocked()
                handle.close()
            assert bucket.log.count((start, length)) == 1
            other.close()

    run(main)


def test_errors_ahead_are_dropped_and_those_of_a_read_are_not() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.01)

        async def fail_far(offset: int) -> None:
            if offset >= 3 * MIB:
                raise Unavailable("503")

        bucket.trouble = fail_far
        async with reading(bucket) as reader:
            handle = reader.open(Layout.whole(movie()))
            await read_through(handle, 0, 3 * MIB, 128 * KIB)
            await trio.sleep(1)
            assert reader.prefetcher.dropped > 0
            with pytest.raises(Unavailable):
                await read_through(handle, 3 * MIB, 12 * MIB, 128 * KIB)
            bucket.trouble = None
            await read_through(handle, 3 * MIB, 12 * MIB, 128 * KIB)
            handle.close()

    run(main)


def test_a_bug_of_a_store_does_not_end_read_ahead_for_others(
    caplog: pytest.LogCaptureFixture, expected_logs: ExpectedLogs
) -> None:
    expected_logs("ZeroDivisionError")

    async def main() -> None:
        bucket = Bucket()

        async def bug(offset: int) -> None:
            if offset >= 3 * MIB:
                raise ZeroDivisionError("bug")

        bucket.trouble = bug
        async with reading(bucket) as reader:
            handle = reader.open(Layout.whole(movie()))
            await read_through(handle, 0, 2 * MIB, 128 * KIB)
            await wait_all_tasks_blocked()
            bucket.trouble = None
            await read_through(handle, 2 * MIB, 10 * MIB, 128 * KIB)
            handle.close()

    run(main)
    assert {r.getMessage() for r in caplog.records} == {"read-ahead failed: ZeroDivisionError"}


def test_read_ahead_leaves_connections_to_foreground_reads() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.04, connections=32)
        async with reading(bucket) as reader:
            handles = [reader.open(Layout.whole(movie(version=str(n)))) for n in range(8)]
            for number in range(20):
                for handle in handles:
                    await handle.read(number * MIB, MIB)
            bucket.latency = 10.0
            bucket.busiest = 0
            async with trio.open_nursery() as nursery:
                for handle in handles:
                    nursery.start_soon(handle.read, 20 * MIB, MIB)
                await wait_all_tasks_blocked()
                assert 8 <= bucket.busy <= 24
                begun = trio.current_time()
                bucket.latency = 0.04
                await reader.read(Layout.whole(movie(version="other")), 0, 1000)
                assert trio.current_time() - begun == pytest.approx(0.04)
            for handle in handles:
                handle.close()

    run(main)


def test_read_ahead_follows_a_layout_across_its_spans() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.04)
        async with reading(bucket) as reader:
            parts: list[Extent | Inline] = [Inline(b"moov" * 100)]
            for number in range(40):
                parts.append(Extent(movie(), number * 3 * MIB, MIB))
                parts.append(Extent(movie(version="sound"), number * MIB, 100_000))
            layout = Layout(parts)
            whole = memoryview(bytes_of(layout))
            handle = reader.open(layout)
            begun = trio.current_time()
            for offset in range(0, layout.size, 128 * KIB):
                assert await handle.read(offset, 128 * KIB) == whole[offset : offset + 128 * KIB]
            assert (trio.current_time() - begun) / 0.04 < 40
            assert bucket.fetched <= layout.size
            handle.close()

    run(main)


def test_memory_stays_within_the_budget_with_many_readers_and_open_handles() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.04)
        memory = 64 * MIB
        most = 0
        async with reading(bucket, memory=memory) as reader:
            budget = reader.blocks.budget

            async def reader_of(name: str) -> None:
                nonlocal most
                handle = reader.open(Layout.whole(movie(40 * MIB, name)))
                for offset in range(0, 40 * MIB, 256 * KIB):
                    await handle.read(offset, 256 * KIB)
                    most = max(most, budget.used)
                handle.close()

            idle = [reader.open(Layout.whole(movie(40 * MIB, f"idle {n}"))) for n in range(500)]
            for handle in idle:
                await handle.read(0, 128 * KIB)
                await handle.read(128 * KIB, 128 * KIB)
                await handle.read(256 * KIB, 128 * KIB)
                most = max(most, budget.used)
            await trio.sleep(20)
            begun = trio.current_time()
            await reader_of("alone")
            assert (trio.current_time() - begun) / 0.04 < 15, "handles at rest take no share"
            bucket.log.clear()
            async with trio.open_nursery() as nursery:
                for number in range(16):
                    nursery.start_soon(reader_of, f"v{number % 4}-{number}")
            for handle in idle:
                handle.close()
            assert most <= memory
            assert bucket.fetched <= 16 * 40 * MIB * 1.02, "nothing ahead was evicted before it was read"
            assert budget.pinned == 0

    run(main)


def test_nothing_ahead_is_evicted_before_it_is_read_also_beside_precious_entries() -> None:
    async def main() -> None:
        bucket = Bucket(latency=0.04)
        async with reading(bucket, memory=32 * MIB) as reader:
            reader.blocks.budget.put("tables", None, 16 * MIB, precious=True)
            handle = reader.open(Layout.whole(movie(100 * MIB)))
            for offset in range(0, 100 * MIB, 128 * KIB):
                await handle.read(offset, 128 * KIB)
                if not offset % MIB:
                    await trio.sleep(0.1)
            assert bucket.fetched == 100 * MIB
            assert "tables" in reader.blocks.budget
            handle.close()

    run(main)


def test_without_its_background_work_a_reader_still_reads() -> None:
    async def main() -> None:
        bucket = Bucket()
        reader = Reader(BlockCache(cast(Store, bucket), Budget(10 * MIB)))
        handle = reader.open(Layout.whole(movie()))
        await read_through(handle, 0, 2 * MIB, 128 * KIB)
        assert len(bucket.log) == 16
        handle.close()

    run(main)


# With the disk


def test_a_second_run_reads_from_disk_and_asks_the_store_for_nothing(tmp_path: Path) -> None:
    layout = Layout([Inline(b"head"), Extent(movie(), 5 * MIB, 3 * MIB)])

    async def once(expected_requests: int) -> None:
        bucket = Bucket()
        async with (
            DiskCache.open(tmp_path, 100 * MIB, keep_free=0) as disk,
            reading(bucket, disk=disk) as reader,
        ):
            assert len(reader.plan(layout).requests) == expected_requests
            assert await reader.fetch(layout) == bytes_of(layout)
            assert await reader.read(layout, 1 * MIB, 10) == bytes_of(layout)[MIB : MIB + 10]
            assert len(bucket.log) == expected_requests
            await disk.drain()
            assert reader.blocks.budget.pinned == 0

    trio.run(once, 1)
    trio.run(once, 0)


def test_a_damaged_file_of_the_disk_cache_is_fetched_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, expected_logs: ExpectedLogs
) -> None:
    expected_logs("damaged file was removed")
    layout = Layout([Extent(movie(), 5 * MIB, 3 * MIB)])

    async def once(expected_requests: int) -> None:
        bucket = Bucket()
        async with (
            DiskCache.open(tmp_path, 100 * MIB, keep_free=0) as disk,
            reading(bucket, disk=disk) as reader,
        ):
            assert await reader.fetch(layout) == bytes_of(layout)
            assert len(bucket.log) == expected_requests
            await disk.drain()

    trio.run(once, 1)
    (path,) = (p for p in tmp_path.rglob("*-*") if p.is_file())
    damaged = bytearray(path.read_bytes())
    damaged[2 * MIB] ^= 1
    path.write_bytes(damaged)
    trio.run(once, 1)
    trio.run(once, 0)
    assert "damaged" in caplog.text


def test_read_ahead_works_from_disk_too(tmp_path: Path) -> None:
    size = 30 * MIB

    async def once() -> tuple[int, int]:
        bucket = Bucket()
        async with (
            DiskCache.open(tmp_path, 100 * MIB, keep_free=0) as disk,
            reading(bucket, disk=disk) as reader,
        ):
            handle = reader.open(Layout.whole(movie(size)))
            for offset in range(0, size, 128 * KIB):
                await handle.read(offset, 128 * KIB)
                if not offset % (4 * MIB):
                    await disk.drain()
            await disk.drain()
            handle.close()
            return bucket.fetched, reader.blocks.counters.disk_reads

    assert trio.run(once) == (size, 0)
    fetched, from_disk = trio.run(once)
    assert fetched == 0
    assert 0 < from_disk < 60


# The loop


class Steps(trio.abc.Instrument):
    """The longest step of any task in CPU seconds of its thread: the rest of the machine is not in it."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._begun = math.inf  # the step that installs this is not measured

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._begun = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, time.thread_time() - self._begun)


class Ready(Bucket):
    """Answers with slices made beforehand: what is measured is the reader."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._zeros = bytes(size)

    async def read(self, stored: StoredObject, offset: int, length: int, arriving: object = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._zeros if length == len(self._zeros) else bytes(length)


def test_the_loop_is_never_held_up_by_checksums_and_joins(tmp_path: Path) -> None:
    async def main() -> float:
        steps = Steps()
        async with (
            DiskCache.open(tmp_path, 300 * MIB, keep_free=0) as disk,
            reading(Ready(8 * MIB), disk=disk) as reader,
        ):
            trio.lowlevel.add_instrument(steps)
            layout = Layout([Inline(b"head"), Extent(movie(), 0, 192 * MIB)])
            assert len(await reader.fetch(layout)) == 4 + 192 * MIB
            handle = reader.open(Layout.whole(movie(version="v2")))
            for offset in range(0, 60 * MIB, MIB):
                await handle.read(offset, MIB)
            await disk.drain()
            handle.close()
            trio.lowlevel.remove_instrument(steps)
        return steps.longest

    # Joining or summing 8 MiB takes 3 ms and more, 192 MiB over 60: neither may be a step of the loop.
    assert trio.run(main) <= 0.03


def test_a_hit_never_gives_up_its_turn() -> None:
    async def main() -> None:
        async with reading(Bucket()) as reader:
            handle = reader.open(Layout.whole(movie(4 * MIB)))
            await reader.read(handle.layout, 0, 4 * MIB)

            turns = 0

            async def other() -> None:
                nonlocal turns
                turns += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                for offset in range(0, 4 * MIB, 128 * KIB):
                    await handle.read(offset, 128 * KIB)
                assert turns == 0
            assert turns == 1
            handle.close()

    run(main)
