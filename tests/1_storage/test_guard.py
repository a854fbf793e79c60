"""The guard: what is tried again, for how long, and what is told afterwards. On a clock of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from vfs.errors import (
    BadBody,
    DeadlineExceeded,
    Denied,
    NotFound,
    ReelfsError,
    Stale,
    StoreError,
    Unavailable,
)
from vfs.storage.guard import ATTEMPT_SHARE, SILENCE, SLOWEST, GuardedStore
from vfs.storage.memory import MemoryStore

BODY = bytes(range(256)) * 8
DEADLINE = 30.0


def run(scenario: Callable[[MemoryStore, GuardedStore], Awaitable[None]]) -> None:
    """With a clock that jumps to the next event: hours take no time, and times are exact."""

    async def body() -> None:
        inner = MemoryStore({"a": BODY})
        await scenario(inner, GuardedStore(inner, deadline=DEADLINE))

    trio.run(body, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("error", [Unavailable("503"), BadBody("short")])
def test_what_may_pass_is_tried_again(error: ReelfsError) -> None:
    async def scenario(inner: MemoryStore, store: GuardedStore) -> None:
        stored = (await store.head("a")).object
        for operation in ("read", "head", "list"):
            inner.fault(operation, times=3, error=error)
        assert bytes(await store.read(stored, 10, 20)) == BODY[10:30]
        assert (await store.head("a")).object == stored
        assert (await store.list()).objects == (stored,)
        assert store.counters.requests == {"head": 5, "get": 4, "list": 4}
        assert store.counters.retries == 9
        assert store.counters.errors == {type(error).__name__: 9}
        assert store.counters.bytes_read == 20
        assert not store.offline

    run(scenario)


@pytest.mark.parametrize("error", [NotFound("a"), Stale("a"), Denied("a"), StoreError("HTTP 400")])
def test_what_is_an_answer_is_not_asked_again(error: ReelfsError) -> None:
    async def scenario(inner: MemoryStore, store: GuardedStore) -> None:
        inner.fault("head", error=error)
        began = trio.current_time()
        with pytest.raises(type(error)):
            await store.head("a")
        assert trio.current_time() == began
        assert store.counters.requests == {"head": 1}
        assert store.counters.retries == 0

    run(scenario)


def test_the_deadline_holds() -> None:
    """Nothing is tried after it, the last cause is told, and the store says it is offline."""

    async def scenario(inner: MemoryStore, store: GuardedStore) -> None:
        inner.fault("head", times=10**6, error=Unavailable("HTTP 503"))
        began = trio.current_time()
        with pytest.raises(DeadlineExceeded, match="HTTP 503"):
            await store.head("a")
        assert 0.8 * DEADLINE - 5 <= trio.current_time() - began <= DEADLINE
        assert store.offline
        # Waits that double from 50 ms to 5 s: some 20 attempts in half a minute, not thousands.
        assert 8 <= store.counters.requests["head"] <= 60
        inner.heal()
        await store.head("a")
        assert not store.offline

    run(scenario)


def test_a_body_that_stays_wrong_is_an_error_and_not_offline() -> None:
    async def scenario(inner: MemoryStore, store: GuardedStore) -> None:
        stored = (await store.head("a")).object
        inner.fault("read", times=10**6, spoil=lambda body: body[:-1])
        with pytest.raises(BadBody, match="19 bytes at 10 where 20"):
            await store.read(stored, 10, 20)
        assert not store.offline

    run(scenario)


@pytest.mark.parametrize("spoil", [lambda body: body[:-1], lambda body: body + b"x", lambda body: b""])
def test_every_body_is_measured(spoil: Callable[[bytes], bytes]) -> None:
    """A store of anyone's that gives another number of bytes is asked again."""

    async def scenario(inner: MemoryStore, store: GuardedStore) -> None:
        stored = (await store.head("a")).object
        inner.fault("read", spoil=spoil)
        assert bytes(await store.read(stored, 10, 20)) == BODY[10:30]
        assert store.counters.errors == {"BadBody": 1}

    run(scenario)


def test_an_attempt_that_begins_at_the_deadline_is_none() -> None:
    """The deadline may pass between the look at the clock and the attempt."""
    clock = MockClock(autojump_threshold=0)

    async def body() -> None:
        inner = MemoryStore({"a": BODY})
        inner.fault("head", times=2, error=Unavailable("HTTP 503"))
        store = GuardedStore(inner, deadline=DEADLINE)
        asked = store.usage.request

        def slowly(operation: str) -> None:
            asked(operation)
            if store.counters.retries:
                clock.jump(DEADLINE)

        store.usage.request = slowly  # type: ignore[method-assign]
        with pytest.raises(DeadlineExceeded, match="HTTP 503"):
            await store.head("a")

    trio.run(body, clock=clock)


def test_waking_up_too_late_is_the_deadline() -> None:
    """A busy machine, or one that was asleep: the cause is told, and nothing is asked any more."""
    clock = MockClock()

    async def body() -> None:
        inner = MemoryStore({"a": BODY})
        inner.fault("head", error=Unavailable("HTTP 503"))
        store = GuardedStore(inner, deadline=DEADLINE)

        async def late() -> None:
            await wait_all_tasks_blocked()
            clock.jump(2 * DEADLINE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(late)
            with pytest.raises(DeadlineExceeded, match="HTTP 503"):
                await store.head("a")
        assert store.counters.requests == {"head": 1}
        assert store.counters.retries == 0

    trio.run(body, clock=clock)


def test_a_hung_attempt_leaves_time_for_another() -> None:
    async def scenario(inner: MemoryStore, store: GuardedStore) -> None:
        inner.fault("head", hang=True)
        began = trio.current_time()
        await store.head("a")
        assert DEADLINE * ATTEMPT_SHARE <= trio.current_time() - began < DEADLINE * ATTEMPT_SHARE + 0.1

    run(scenario)


def test_all_attempts_hung_end_at_the_deadline() -> None:
    async def scenario(inner: MemoryStore, store: GuardedStore) -> None:
        stored = (await store.head("a")).object
        inner.fault("read", times=10**6, hang=True)
        began = trio.current_time()
        with pytest.raises(DeadlineExceeded, match="no answer within"):
            await store.read(stored, 0, 10)
        assert trio.current_time() - began <= DEADLINE

    run(scenario)


def test_a_large_read_may_be_slow() -> None:
    """An attempt is not cut while a slow line could still be bringing its bytes."""

    class Slow(MemoryStore):
        async def read(self, stored: object, offset: int, length: int, arriving: object = None) -> bytes:
            await trio.sleep(length / SLOWEST)
            return bytes(length)

    async def body() -> None:
        size = int((1 - ATTEMPT_SHARE) * DEADLINE * SLOWEST)
        inner = Slow({"a": bytes(size)})
        store = GuardedStore(inner, deadline=DEADLINE)
        stored = (await store.head("a")).object
        assert len(await store.read(stored, 0, size)) == size
        assert store.counters.retries == 0

    trio.run(body, clock=MockClock(autojump_threshold=0))


def test_the_store_says_how_long_to_wait() -> None:
    """Retry-After is kept to; when it leads beyond the deadline, that is known at once."""

    async def scenario(inner: MemoryStore, store: GuardedStore) -> None:
        inner.fault("head", error=Unavailable("429", retry_after=7.0))
        began = trio.current_time()
        await store.head("a")
        assert trio.current_time() - began == pytest.approx(7.0)
        inner.fault("head", error=Unavailable("429", retry_after=3600.0))
        began = trio.current_time()
        with pytest.raises(DeadlineExceeded):
            await store.head("a")
        assert trio.current_time() == began

    run(scenario)


def test_a_refusal_after_successes_is_asked_about_once_more() -> None:
    """Some services answer 403 where they mean "slow down"; a real refusal costs one more request."""

    async def scenario(inner: MemoryStore, store: GuardedStore) -> None:
        await store.head("a")
        inner.fault("head", error=Denied("403"))
        await store.head("a")
        assert store.counters.requests["head"] == 3
        inner.fault("head", times=10**6, error=Denied("403"))
        for requests in (5, 6):  # the second time nothing had succeeded before
            with pytest.raises(Denied):
                await store.head("a")
            assert store.counters.requests["head"] == requests

    run(scenario)


def test_waits_differ() -> None:
    """Full jitter: readers that failed together do not come back together."""
    times: list[float] = []

    async def scenario(inner: MemoryStore, store: GuardedStore) -> None:
        inner.fault("head", times=20, error=Unavailable("503"))

        async def one() -> None:
            await store.head("a")
            times.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)

    run(scenario)
    assert len(set(times)) == 20


def test_cancelling_is_not_an_error_to_retry() -> None:
    async def scenario(inner: MemoryStore, store: GuardedStore) -> None:
        inner.fault("head", hang=True)
        with trio.move_on_after(1) as scope:
            await store.head("a")
        assert scope.cancelled_caught
        assert store.counters.requests == {"head": 1}
        assert store.counters.errors == {}

    run(scenario)


def test_it_is_the_store_otherwise() -> None:
    store = GuardedStore(MemoryStore({"a": BODY}, remote=False))
    assert (store.url, store.remote, store.presign("a")) == ("memory://", False, None)
    trio.run(store.aclose)


def test_a_silent_store_is_offline_long_before_an_operation_is_given_up() -> None:
    async def scenario(inner: MemoryStore, store: GuardedStore) -> None:
        inner.fault("head", times=10**6, error=Unavailable("503"))
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(DeadlineExceeded):
                    await store.head("a")

            nursery.start_soon(ask)
            while not store.offline:
                await trio.sleep(0.1)
            assert SILENCE < trio.current_time() - began < DEADLINE / 2
        inner.heal()
        await store.head("a")
        assert not store.offline

    run(scenario)
