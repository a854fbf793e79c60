"""Segments of object versions: right bytes, each fetched once, whoever else is cancelled or fails."""

from __future__ import annotations

import functools
import gc
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from vfs.cache.blocks import BlockCache
from vfs.cache.budget import Budget
from vfs.cache.segments import Segment
from vfs.errors import BadBody, ReelfsError, Stale, Unavailable
from vfs.spans import StoredObject
from vfs.storage.base import Store

KIB = 1024


@functools.cache
def content(stored: StoredObject) -> bytes:
    return random.Random(f"{stored.key} {stored.version}").randbytes(stored.size)


class Bucket:
    """A store of made-up objects. before: awaited in each read, may raise. log: (offset, length) of reads."""

    url = "memory://bucket"

    def __init__(self, before: Callable[[], Awaitable[None]] | None = None, remote: bool = True) -> None:
        self.remote = remote
        self.log: list[tuple[int, int]] = []
        self.cancelled = 0
        self.before = before
        self.answer: Callable[[bytes], bytes | memoryview] = lambda body: body

    async def read(
        self, stored: StoredObject, offset: int, length: int, arriving: object = None
    ) -> bytes | memoryview:
        self.log.append((offset, length))
        try:
            await (self.before or trio.lowlevel.checkpoint)()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        return self.answer(content(stored)[offset : offset + length])


def cache(bucket: Bucket, limit: int = 10_000_000) -> BlockCache:
    return BlockCache(cast(Store, bucket), Budget(limit))


async def get(
    blocks: BlockCache, stored: StoredObject, offset: int, length: int, gap: int = 64 * KIB
) -> bytes:
    return b"".join(await blocks.read(stored, offset, length, gap=gap))


def stored(size: int = 100_000, version: str = "v1") -> StoredObject:
    return StoredObject("games/a.mp4", size, version)


def test_a_read_fetches_exactly_what_it_asks_for_and_only_once() -> None:
    async def main() -> None:
        bucket = Bucket()
        blocks, a = cache(bucket), stored()
        for _ in range(2):
            assert await get(blocks, a, 1000, 10) == content(a)[1000:1010]
        assert await get(blocks, a, 1003, 4) == content(a)[1003:1007]
        assert bucket.log == [(1000, 10)]
        assert await get(blocks, a, 0, 0) == b""

    trio.run(main)


def test_a_hit_is_a_read_only_view_without_a_copy() -> None:
    async def main() -> None:
        body = bytearray(content(stored()))
        bucket = Bucket()
        bucket.answer = lambda part: memoryview(body)[: len(part)]
        blocks = cache(bucket)
        await get(blocks, stored(), 0, 50_000)
        view = blocks.peek(stored(), 100, 200)
        assert view is not None
        assert view.obj is body
        assert view.readonly
        assert blocks.peek(stored(), 49_999, 2) is None
        assert blocks.peek(stored(version="v2"), 0, 1) is None

    trio.run(main)


def test_only_what_is_missing_is_fetched_in_parts_that_need_it() -> None:
    async def main() -> None:
        bucket = Bucket()
        blocks, a = cache(bucket), stored()
        await get(blocks, a, 20_000, 10_000)
        await get(blocks, a, 60_000, 10_000)
        bucket.log.clear()
        assert await get(blocks, a, 10_000, 80_000, gap=0) == content(a)[10_000:90_000]
        assert sorted(bucket.log) == [(10_000, 10_000), (30_000, 30_000), (70_000, 20_000)]

    trio.run(main)


def test_a_small_hole_is_fetched_again_rather_than_paid_for_with_a_request() -> None:
    async def main() -> None:
        bucket = Bucket()
        blocks, a = cache(bucket), stored()
        await get(blocks, a, 20_000, 5_000)
        await get(blocks, a, 25_000, 100)
        bucket.log.clear()
        assert await get(blocks, a, 10_000, 30_000, gap=5_100) == content(a)[10_000:40_000]
        assert bucket.log == [(10_000, 30_000)]
        assert await get(blocks, a, 10_000, 30_000) == content(a)[10_000:40_000]
        assert blocks.budget.used < 31_000

    trio.run(main)


def test_ranges_of_one_hold_are_joined_over_gaps_up_to_the_limit() -> None:
    async def main() -> None:
        bucket = Bucket()
        blocks, a = cache(bucket), stored()
        with blocks.hold() as hold:
            hold.add(a, [(0, 100), (150, 200), (5000, 5001)], gap=50)
            await hold.wait()
            assert b"".join(hold.views(a, 150, 50)) == content(a)[150:200]
            assert b"".join(hold.views(a, 90, 70)) == content(a)[90:160]
            with pytest.raises(ValueError, match="not asked"):
                hold.views(a, 4000, 1)
            with pytest.raises(ValueError, match="before"):
                hold.add(a, [(0, 1)])
        assert sorted(bucket.log) == [(0, 200), (5000, 1)]

    trio.run(main)


def test_a_hole_that_is_on_its_way_is_not_fetched_again() -> None:
    async def main() -> None:
        gate = trio.Event()
        bucket = Bucket(gate.wait)
        blocks, a = cache(bucket), stored()

        async def reader(offset: int, length: int) -> None:
            assert await get(blocks, a, offset, length) == content(a)[offset : offset + length]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader, 1000, 10)
            await wait_all_tasks_blocked()
            nursery.start_soon(reader, 0, 3000)
            await wait_all_tasks_blocked()
            gate.set()
        assert sorted(bucket.log) == [(0, 1000), (1000, 10), (1010, 1990)]

    trio.run(main)


def test_a_large_read_is_split_into_parallel_requests() -> None:
    async def main() -> None:
        waiting = trio.Event()
        bucket = Bucket(waiting.wait)
        blocks, a = cache(bucket), stored()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                views = await blocks.read(a, 0, 100_000, max_request=40_000)
                assert b"".join(views) == content(a)

            await wait_all_tasks_blocked()
            assert len(bucket.log) == 3
            assert max(length for _, length in bucket.log) <= 40_000
            assert blocks.budget.pinned == 100_000
            waiting.set()
        assert blocks.budget.pinned == 0

    trio.run(main)


def test_readers_of_the_same_bytes_share_one_request() -> None:
    async def main() -> None:
        gate = trio.Event()
        bucket = Bucket(gate.wait)
        blocks, a = cache(bucket), stored()

        async def reader(offset: int, length: int) -> None:
            assert await get(blocks, a, offset, length) == content(a)[offset : offset + length]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader, 0, 1000)
            await wait_all_tasks_blocked()
            nursery.start_soon(reader, 0, 1000)
            nursery.start_soon(reader, 500, 1000)
            await wait_all_tasks_blocked()
            gate.set()
        assert sorted(bucket.log) == [(0, 1000), (1000, 500)]
        assert blocks.counters.joins == 2

    trio.run(main)


def test_a_cancelled_reader_leaves_the_others_theirs_and_the_last_ends_the_request() -> None:
    async def main() -> None:
        gate = trio.Event()
        bucket = Bucket(gate.wait)
        blocks, a = cache(bucket), stored()
        scopes = [trio.CancelScope() for _ in range(3)]
        got: list[bytes] = []

        async def reader(scope: trio.CancelScope) -> None:
            with scope:
                got.append(await get(blocks, a, 0, 1000))

        async with trio.open_nursery() as nursery:
            for scope in scopes:
                nursery.start_soon(reader, scope)
            await wait_all_tasks_blocked()
            scopes[0].cancel()
            scopes[1].cancel()
            await wait_all_tasks_blocked()
            assert bucket.cancelled == 0
            gate.set()
        assert got == [content(a)[:1000]]
        bucket.before = trio.sleep_forever
        with trio.move_on_after(0):
            await get(blocks, a, 50_000, 10)
        await wait_all_tasks_blocked()
        assert bucket.cancelled == 1
        assert blocks.budget.pinned == 0
        bucket.before = None
        assert await get(blocks, a, 50_000, 10) == content(a)[50_000:50_010]

    trio.run(main)


@pytest.mark.parametrize("error", [Stale("gone"), Unavailable("503", 1.0), RuntimeError("bug")])
def test_an_error_reaches_all_who_wait_and_is_not_kept(error: Exception) -> None:
    async def main() -> None:
        gate = trio.Event()

        async def fail() -> None:
            await gate.wait()
            raise error

        bucket = Bucket(fail)
        blocks, a = cache(bucket), stored()

        async def reader() -> None:
            with pytest.raises(type(error), match=str(error)):
                await get(blocks, a, 0, 10)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            nursery.start_soon(reader)
            await wait_all_tasks_blocked()
            gate.set()
        assert len(bucket.log) == 1
        assert blocks.budget.used == 0
        bucket.before = None
        assert await get(blocks, a, 0, 10) == content(a)[:10]

    trio.run(main)


def test_one_failed_part_fails_the_read_and_ends_the_other_parts() -> None:
    async def main() -> None:
        async def first_fails() -> None:
            if len(bucket.log) == 1:
                raise Unavailable("reset")
            await trio.sleep_forever()

        bucket = Bucket(first_fails)
        blocks = cache(bucket)
        with pytest.raises(Unavailable):
            await blocks.read(stored(), 0, 90_000, max_request=30_000)
        await wait_all_tasks_blocked()
        assert blocks.budget.used == 0
        assert bucket.cancelled == len(bucket.log) - 1

    trio.run(main)


@pytest.mark.parametrize("wrong", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b""])
def test_a_body_of_another_length_is_an_error_and_not_kept(wrong: Callable[[bytes], bytes]) -> None:
    async def main() -> None:
        bucket = Bucket()
        bucket.answer = wrong
        blocks = cache(bucket)
        with pytest.raises(BadBody, match=r"games/a.mp4: asked for 10 bytes at 5"):
            await get(blocks, stored(), 5, 10)
        assert blocks.budget.used == 0

    trio.run(main)


def test_versions_never_mix() -> None:
    async def main() -> None:
        bucket = Bucket()
        blocks, old, new = cache(bucket), stored(version="v1"), stored(version="v2")
        assert await get(blocks, old, 0, 100) == content(old)[:100]
        assert await get(blocks, new, 50, 100) == content(new)[50:150]
        assert await get(blocks, old, 0, 100) == content(old)[:100]
        assert bucket.log == [(0, 100), (50, 100)]

    trio.run(main)


def test_what_was_evicted_is_fetched_again_and_nothing_of_it_stays() -> None:
    async def main() -> None:
        bucket = Bucket()
        blocks = cache(bucket, limit=30_000)
        objects = [StoredObject(f"o{n}", 10_000, "v") for n in range(10)]
        for _ in range(2):
            for one in objects:
                assert await get(blocks, one, 0, 10_000) == content(one)
                assert blocks.budget.used <= 30_000
        assert len(bucket.log) == 20
        assert len(blocks._files) <= 3

    trio.run(main)


def test_a_read_larger_than_the_budget_is_served_and_not_kept() -> None:
    async def main() -> None:
        blocks = cache(Bucket(), limit=1000)
        assert await get(blocks, stored(), 0, 100_000) == content(stored())
        assert blocks.budget.used == 0
        assert not blocks._files

    trio.run(main)


def test_many_small_reads_do_not_make_long_lists() -> None:
    async def main() -> None:
        blocks, a = cache(Bucket()), stored(size=4096 * 500)
        for order in (range(500), range(499, -1, -1)):
            for number in order:
                await get(blocks, a, number * 4096, 4096)
            (file,) = blocks._files.values()
            assert len(file.ready) < 25
            assert blocks.budget.kept == sum(segment.cost for segment in file.ready)
        assert await get(blocks, a, 0, a.size) == content(a)
        assert blocks.counters.fetched == a.size

    trio.run(main)


def test_bodies_are_freed_at_once_without_the_garbage_collector() -> None:
    async def main() -> None:
        blocks = cache(Bucket(), limit=100_000)
        for number in range(20):
            await get(blocks, stored(version=str(number)), 0, 90_000)
        alive = [o for o in gc.get_objects() if isinstance(o, memoryview) and len(o) == 90_000]
        assert len(alive) <= 2

    gc.collect()
    gc.disable()
    try:
        trio.run(main)
    finally:
        gc.enable()


def test_a_local_store_is_read_straight_and_nothing_is_kept() -> None:
    async def main() -> None:
        bucket = Bucket(remote=False)
        blocks, a = cache(bucket), stored()
        for _ in range(2):
            assert await get(blocks, a, 10, 1000) == content(a)[10:1010]
        with blocks.hold() as hold:
            hold.add(a, [(0, 10), (20, 30), (5000, 5010)], gap=10)
            await hold.wait()
            assert b"".join(hold.views(a, 20, 10)) == content(a)[20:30]
        assert bucket.log[:2] == [(10, 1000), (10, 1000)]
        assert sorted(bucket.log[2:]) == [(0, 30), (5000, 10)]
        assert blocks.budget.used == 0

    trio.run(main)


def test_a_plan_is_what_the_read_then_does() -> None:
    async def main() -> None:
        bucket = Bucket()
        blocks, a = cache(bucket), stored()
        await get(blocks, a, 20_000, 10_000)
        bucket.log.clear()
        plan = blocks.plan(a, [(0, 25_000), (30_010, 30_020)], gap=20)
        assert plan.requests == ((0, 20_000), (30_010, 30_020))
        assert plan.missing == 20_010
        with blocks.hold() as hold:
            hold.add(a, [(0, 25_000), (30_010, 30_020)], gap=20)
            await hold.wait()
        assert sorted(bucket.log) == [(start, end - start) for start, end in plan.requests]
        assert blocks.plan(a, [(0, 25_000)]).requests == ()

    trio.run(main)


SIZE = 4000
Step = tuple[tuple[str, int, int, int], float, float | None]  # read, seconds until the next, patience
reads = st.tuples(
    st.sampled_from(["v1", "v2"]),
    st.integers(0, SIZE - 1),
    st.integers(1, 700),
    st.sampled_from([0, 40, 400]),
)
scripts = st.lists(
    st.tuples(
        reads,
        st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0]),  # seconds until the next step
        st.sampled_from([None, None, None, 0.0, 0.6, 1.4]),  # cancelled after
    ),
    min_size=1,
    max_size=25,
)


class Unruly(Bucket):
    """Answers after up to 2 s, or fails. Says what is wrong with the books of the cache in `complaints`."""

    def __init__(self, seed: int, failures: float) -> None:
        super().__init__(self._trouble)
        self._random = random.Random(seed)
        self._failures = failures
        self.blocks: BlockCache | None = None
        self.fetched: Counter[tuple[str, int]] = Counter()
        self.complaints: list[str] = []

    async def _trouble(self) -> None:
        await trio.sleep(self._random.choice([0.0, 0.3, 1.0, 2.0]))
        if self._random.random() < self._failures:
            raise Unavailable("reset")

    async def read(
        self, stored: StoredObject, offset: int, length: int, arriving: object = None
    ) -> bytes | memoryview:
        self.fetched.update((stored.version, n) for n in range(offset, offset + length))
        self.check()
        return await super().read(stored, offset, length)

    def check(self) -> None:
        assert self.blocks is not None
        budget = self.blocks.budget
        if budget.used > max(budget.limit, budget.pinned):
            self.complaints.append("over the budget")
        ready = [s for f in self.blocks._files.values() for s in f.ready]
        if budget.kept != sum(s.cost for s in ready):
            self.complaints.append("entries and segments differ")
        flying = sum(f.end - f.start for file in self.blocks._files.values() for f in file.flights)
        if flying != budget.pinned:
            self.complaints.append("flights and pins differ")


async def play(script: list[Step], bucket: Unruly) -> None:
    async def reader(version: str, offset: int, length: int, gap: int, patience: float | None) -> None:
        one = StoredObject("k", SIZE, version)
        length = min(length, SIZE - offset)
        assert bucket.blocks is not None
        with trio.move_on_after(float("inf") if patience is None else patience):
            try:
                assert await get(bucket.blocks, one, offset, length, gap) == content(one)[offset:][:length]
            except ReelfsError:
                assert bucket._failures, "an error out of nothing"
        bucket.check()

    async with trio.open_nursery() as nursery:
        for (version, offset, length, gap), pause, patience in script:
            nursery.start_soon(reader, version, offset, length, gap, patience)
            await trio.sleep(pause)
    await wait_all_tasks_blocked()
    bucket.check()
    assert bucket.blocks is not None
    assert bucket.blocks.budget.pinned == 0
    assert not bucket.complaints


@settings(max_examples=120, deadline=None)
@given(scripts, st.integers(0, 99), st.sampled_from([0.0, 0.2]), st.sampled_from([0, 1500, 3000, 100_000]))
def test_bytes_are_right_whatever_is_cancelled_evicted_or_fails(
    script: list[Step],
    seed: int,
    failures: float,
    limit: int,
) -> None:
    bucket = Unruly(seed, failures)
    bucket.blocks = cache(bucket, limit)
    trio.run(play, script, bucket, clock=MockClock(autojump_threshold=0))


@settings(max_examples=60, deadline=None)
@given(scripts, st.integers(0, 99))
def test_no_byte_is_fetched_twice_while_it_is_kept(script: list[Step], seed: int) -> None:
    bucket = Unruly(seed, 0.0)
    bucket.blocks = cache(bucket)
    patient: list[Step] = [
        ((version, offset, length, 0), pause, None) for (version, offset, length, _), pause, _ in script
    ]
    trio.run(play, patient, bucket, clock=MockClock(autojump_threshold=0))
    assert not bucket.fetched or max(bucket.fetched.values()) == 1


def test_a_segment_costs_more_than_its_bytes() -> None:
    assert Segment(None, 0, memoryview(b"x")).cost > 100
