"""S3 through the guard while the network or the server misbehaves: retried, refused or late, never wrong.

A real server process behind the fault proxy; every fault class of `tests.faults`.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from tests.faults.proxy import Proxy, Rule
from tests.faulty_mounts import SLACK
from tests.servers import Server, environ_for, rclone_server
from vfs.errors import BadBody, DeadlineExceeded, Denied, NotFound, ReelfsError, Stale, StoreError
from vfs.spans import StoredObject
from vfs.storage.access import Access, Target, connect
from vfs.storage.arriving import Arriving
from vfs.storage.guard import GuardedStore
from vfs.storage.r2 import S3Store

BODY = random.Random(3).randbytes(300_000)
SMALL = random.Random(4).randbytes(5_000)
KEY = "games/a.mp4"
#: A range that 64 KiB earlier and later have other bytes.
PART = (100_000, 50_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as running:
        running.fill("bucket", {KEY: BODY, "small": SMALL})
        yield running


class Behind(Proxy):
    """The proxy, and the clients that go through it: making them takes longer than most of these tests."""

    access: Access


@pytest.fixture(scope="module")
def one_proxy(server: Server) -> Iterator[Behind]:
    with Behind(server.url) as running:
        running.access = connect(Target("s3", "bucket", "", 10.0, 8, environ_for(running.url)))
        yield running
        running.access.close()


@pytest.fixture
def proxy(one_proxy: Behind) -> Iterator[Behind]:
    yield one_proxy
    one_proxy.clear()
    one_proxy.shape()
    one_proxy.up()


class Case:
    """An open store behind the proxy, and what it knows of its objects."""

    def __init__(self, proxy: Behind, store: S3Store, guard: GuardedStore) -> None:
        self.proxy, self.store, self.guard = proxy, store, guard
        self.stored: StoredObject
        self.small: StoredObject

    async def read(self, offset: int = PART[0], length: int = PART[1]) -> bytes:
        return bytes(await self.guard.read(self.stored, offset, length))


async def known(store: GuardedStore, key: str) -> StoredObject:
    """What a busy machine answers too late for a short deadline is asked for again."""
    while True:
        with suppress(DeadlineExceeded):
            return (await store.head(key)).object


@asynccontextmanager
async def opened(proxy: Behind, *, deadline: float = 10.0) -> AsyncIterator[Case]:
    inner = S3Store(proxy.access)
    case = Case(proxy, inner, GuardedStore(inner, deadline=deadline))
    case.stored, case.small = await known(case.guard, KEY), await known(case.guard, "small")
    case.guard.counters.requests.clear()  # count from here
    proxy.reset()
    yield case


def run(proxy: Behind, scenario: Callable[[Case], Awaitable[None]], deadline: float = 10.0) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with opened(proxy, deadline=deadline) as case:
                await scenario(case)

    trio.run(main)


#: Faults that a retry mends, and the error each counts as.
MENDED = {
    "503": (Rule("status", kind="get", times=2), "Unavailable"),
    "500": (Rule("status", kind="get", times=2, status=500), "Unavailable"),
    "429": (Rule("status", kind="get", times=2, status=429), "Unavailable"),
    "408": (Rule("status", kind="get", times=2, status=408), "Unavailable"),
    "reset before": (Rule("reset", kind="get", times=2), "Unavailable"),
    "reset within": (Rule("reset", kind="get", times=2, at=1000), "Unavailable"),
    "truncated": (Rule("truncate", kind="get", times=2, at=1000), "BadBody"),
    "truncated at 0": (Rule("truncate", kind="get", times=2, at=0), "BadBody"),
    "other range, said so": (Rule("shift", kind="get", times=2), "BadBody"),
    "wrong Content-Range": (Rule("range", kind="get", times=2), "BadBody"),
    "no Content-Range": (
        Rule("header", kind="get", times=2, headers={"Content-Range": None}),
        "BadBody",
    ),
    "nonsense for Content-Range": (
        Rule("header", kind="get", times=2, headers={"Content-Range": "bytes -/x"}),
        "BadBody",
    ),
    "other total": (
        Rule("header", kind="get", times=2, headers={"Content-Range": "bytes 100000-149999/300001"}),
        "BadBody",
    ),
    "other etag": (Rule("etag", kind="get", times=2), "BadBody"),
    "whole object": (Rule("whole", kind="get", times=2), "BadBody"),
    "416": (Rule("status", kind="get", times=2, status=416), "BadBody"),
}


@pytest.mark.parametrize("name", MENDED)
def test_a_passing_fault_is_mended_by_a_retry(proxy: Behind, name: str) -> None:
    """The right bytes come; the requests, retries and bytes are counted exactly."""
    rule, counted = MENDED[name]

    async def scenario(case: Case) -> None:
        proxy.fault(rule)
        assert await case.read() == BODY[PART[0] : sum(PART)]
        counters = case.guard.counters
        assert counters.requests["get"] == proxy.counts().requests["get"] == 3
        assert counters.requests["head"] == proxy.counts().requests.get("head", 0)
        assert (counters.retries, counters.errors) == (2, {counted: 2})
        assert counters.bytes_read == PART[1]

    run(proxy, scenario)


@pytest.mark.parametrize("name", MENDED)
def test_a_lasting_fault_is_an_error_at_the_deadline(proxy: Behind, name: str) -> None:
    """Neither wrong bytes nor a hang: the error that fits, in time."""
    rule, counted = MENDED[name]
    values = rule.to_dict() | {"times": None}

    async def scenario(case: Case) -> None:
        proxy.fault(Rule.from_dict(values))
        began = time.monotonic()
        with pytest.raises(BadBody if counted == "BadBody" else DeadlineExceeded):
            await case.read()
        assert time.monotonic() - began < 0.5 + SLACK
        assert case.guard.counters.bytes_read == 0
        assert case.guard.offline is (counted != "BadBody")
        assert case.guard.counters.requests["get"] >= 2
        proxy.clear()
        assert await case.read() == BODY[PART[0] : sum(PART)]
        assert not case.guard.offline

    run(proxy, scenario, deadline=0.5)


def test_a_flipped_bit_of_an_object_read_whole_is_seen(proxy: Behind) -> None:
    """The etag is the MD5 of an object uploaded in one part."""

    async def scenario(case: Case) -> None:
        proxy.fault(Rule("flip", key="small", times=1, at=1234))
        assert bytes(await case.guard.read(case.small, 0, 5000)) == SMALL
        assert sum(case.guard.counters.errors.values()) == 1

    run(proxy, scenario)


def test_what_plain_http_cannot_show(proxy: Behind) -> None:
    """The limit, said in docs/semantics.md: a lie about a part of an object that is consistent in itself."""

    async def scenario(case: Case) -> None:
        proxy.fault(Rule("shift-silently", nth=(1,)))
        proxy.fault(Rule("flip", nth=(2,), at=7))
        start = PART[0] - 65536
        assert await case.read() == BODY[start : start + PART[1]]
        assert (await case.read())[7] != BODY[PART[0] + 7]

    run(proxy, scenario)


# -- while the bytes come -----------------------------------------------------------------------------------


def test_an_attempt_asks_only_for_what_the_one_before_did_not_bring(proxy: Behind) -> None:
    async def scenario(case: Case) -> None:
        proxy.fault(Rule("truncate", kind="get", nth=(1,), at=3000))
        proxy.fault(Rule("reset", kind="get", nth=(2,), at=20_000))
        arriving = Arriving(PART[1])
        body = await case.guard.read(case.stored, *PART, arriving)
        assert bytes(body) == BODY[PART[0] : sum(PART)]
        starts = [int(entry.range.removeprefix("bytes=").split("-")[0]) for entry in proxy.log()]
        assert starts[:2] == [PART[0], PART[0] + 3000]
        assert PART[0] + 3000 <= starts[2] <= PART[0] + 23_000

    run(proxy, scenario)


def test_what_came_is_given_out_while_the_rest_hangs(proxy: Behind) -> None:
    async def scenario(case: Case) -> None:
        proxy.fault(Rule("hang", kind="get", at=20_000))
        arriving, here = Arriving(PART[1]), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(case.guard.read, case.stored, *PART, arriving)
            arriving.watch(20_000, here.set)
            await here.wait()
            assert arriving.view(0, 20_000) == BODY[PART[0] : PART[0] + 20_000]
            proxy.clear()

    run(proxy, scenario, deadline=60.0)


@pytest.mark.parametrize("fault", ["etag", "range", "shift", "whole"])
def test_nothing_of_an_answer_with_a_wrong_head_is_given_out(proxy: Behind, fault: str) -> None:
    async def scenario(case: Case) -> None:
        proxy.fault(Rule(fault, kind="get"))
        arriving = Arriving(PART[1])
        with pytest.raises(BadBody):
            await case.guard.read(case.stored, *PART, arriving)
        assert arriving.have == 0

    run(proxy, scenario, deadline=0.5)


def test_nothing_that_a_checksum_covers_is_given_out_before_it_was_compared(proxy: Behind) -> None:
    async def scenario(case: Case) -> None:
        proxy.fault(Rule("flip", key="small", times=2, at=4999))
        arriving, told = Arriving(5000), list[int]()
        arriving.watch(1, lambda: told.append(arriving.have))
        assert bytes(await case.guard.read(case.small, 0, 5000, arriving)) == SMALL
        assert case.guard.counters.errors == {"Corrupt": 2}
        assert told == []

    run(proxy, scenario)


def test_who_lists_has_connections_for_what_is_read_next(proxy: Behind) -> None:
    async def scenario(case: Case) -> None:
        access = connect(proxy.access.target)
        store = S3Store(access)
        await store.list()
        while (opened := proxy.counts().connections) < 2:  # that of the listing is the first
            await trio.sleep(0.01)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(store.read, case.stored, *PART)
        assert proxy.counts().connections == opened
        await store.aclose()

    run(proxy, scenario)


# -- hanging ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [None, pytest.param(0, marks=pytest.mark.slow), 1000])
def test_a_hanging_server_leaves_time_for_another_attempt(proxy: Behind, at: int | None) -> None:
    """One attempt does not use up the deadline."""

    async def scenario(case: Case) -> None:
        proxy.fault(Rule("hang", kind="get", times=1, at=at))
        assert await case.read() == BODY[PART[0] : sum(PART)]
        assert case.guard.counters.requests["get"] == 2

    run(proxy, scenario, deadline=3.0)


@pytest.mark.parametrize("kind", ["get", "head", "list"])
def test_a_server_that_hangs_for_good_is_an_error_at_the_deadline(proxy: Behind, kind: str) -> None:
    async def scenario(case: Case) -> None:
        proxy.fault(Rule("hang", kind=kind))
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await asks(case)[kind]()
        assert 0.9 < time.monotonic() - began < 1.0 + SLACK
        assert case.guard.offline
        assert case.guard.counters.requests[kind] >= 2

    run(proxy, scenario, deadline=1.0)


def asks(case: Case) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        "get": case.read,
        "head": lambda: case.guard.head(KEY),
        "list": lambda: case.guard.list("games/"),
    }


@pytest.mark.parametrize("kind", ["get", "head", "list"])
def test_cancelling_returns_at_once_while_the_server_hangs(proxy: Behind, kind: str) -> None:
    """So Ctrl-C works: nobody waits for the thread."""

    async def scenario(case: Case) -> None:
        proxy.fault(Rule("hang", kind=kind))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asks(case)[kind])
            await until(lambda: proxy.counts().faults.get("hang", 0) == 1)
            began = time.monotonic()
            nursery.cancel_scope.cancel()
        assert time.monotonic() - began < SLACK

    run(proxy, scenario, deadline=20.0)


@pytest.mark.parametrize("kind", ["get", "head", "list"])
def test_abandoned_requests_do_not_block_the_next(proxy: Behind, kind: str) -> None:
    """More requests hang and are cancelled than may run at once; the next is answered right away."""

    async def scenario(case: Case) -> None:
        for _ in range(3):
            proxy.fault(Rule("hang", kind=kind))
            proxy.reset()
            async with trio.open_nursery() as nursery:
                for _number in range(20):
                    nursery.start_soon(asks(case)[kind])
                await until(lambda: proxy.counts().faults.get("hang", 0) >= 8)
                nursery.cancel_scope.cancel()
            proxy.rules.clear()
            began = time.monotonic()
            await asks(case)[kind]()
            assert time.monotonic() - began < SLACK

    run(proxy, scenario, deadline=30.0)


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not true():
            await trio.sleep(0.005)


# -- refusals and waiting -----------------------------------------------------------------------------------


def test_retry_after_is_respected(proxy: Behind) -> None:
    # As seconds, and as a date on a clock that is not ours, of whole seconds.
    soon = {"get": "1", "head": "1", "list": "Sat, 28 Nov 2020 12:00:01 GMT"}
    dated = {"Date": "Sat, 28 Nov 2020 12:00:00 GMT"}

    async def scenario(case: Case) -> None:
        async def asked(kind: str) -> None:
            proxy.fault(Rule("status", kind=kind, status=429, retry_after=soon[kind], headers=dated, times=1))
            began = time.monotonic()
            await asks(case)[kind]()
            assert 1.0 <= time.monotonic() - began < 1.0 + SLACK
            assert proxy.counts().requests[kind] == 2

        async with trio.open_nursery() as nursery:
            for kind in soon:
                nursery.start_soon(asked, kind)

    run(proxy, scenario)


def test_a_longer_wait_than_the_deadline_is_told_at_once(proxy: Behind) -> None:
    async def scenario(case: Case) -> None:
        for later in ("100", "Fri, 28 Nov 2200 12:00:00 GMT"):
            proxy.clear()
            proxy.reset()
            proxy.fault(Rule("status", status=503, retry_after=later))
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await case.read()
            assert time.monotonic() - began < SLACK
            assert proxy.counts().requests == {"get": 1}

    run(proxy, scenario)


def test_a_single_403_after_successes_is_forgiven(proxy: Behind) -> None:
    """Some services answer 403 where they mean "slow down"; also to several readers at once."""

    async def scenario(case: Case) -> None:
        proxy.fault(Rule("status", status=403, times=6))
        proxy.shape(delay=1.0)  # all have asked before the first is answered
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(case.read)
        assert case.guard.counters.errors == {"Denied": 6}
        assert case.guard.counters.requests["get"] == 12

    run(proxy, scenario)


@pytest.mark.parametrize("kind", ["get", "head", "list"])
def test_a_lasting_403_is_denied_after_one_more_try(proxy: Behind, kind: str) -> None:
    async def scenario(case: Case) -> None:
        proxy.fault(Rule("status", status=403))
        with pytest.raises(Denied):
            await asks(case)[kind]()
        assert proxy.counts().requests == {kind: 2}

    run(proxy, scenario)


def test_answers_are_not_retried(proxy: Behind) -> None:
    """Not there, replaced, another status: asked once, and the store is not called offline."""

    async def scenario(case: Case) -> None:
        for status, error in ((404, NotFound), (412, Stale), (400, StoreError), (301, StoreError)):
            proxy.clear()
            proxy.reset()
            proxy.fault(Rule("status", kind="get", status=status))
            with pytest.raises(error):
                await case.read()
            assert proxy.counts().requests == {"get": 1}
            assert not case.guard.offline
        proxy.clear()
        with pytest.raises(NotFound):
            await case.guard.head("none")

    run(proxy, scenario)


def test_a_redirect_is_not_followed(proxy: Behind, server: Server) -> None:
    """Credentials would go elsewhere, and so would the promise of what is read."""

    async def scenario(case: Case) -> None:
        proxy.fault(Rule("status", status=307, headers={"Location": f"{server.url}/bucket/{KEY}"}))
        with pytest.raises(StoreError):
            await case.read()
        assert proxy.counts().requests == {"get": 1}

    run(proxy, scenario)


def test_compressed_objects_are_refused_at_once(proxy: Behind) -> None:
    """What comes is not what is listed, and trying again will not help."""

    async def scenario(case: Case) -> None:
        proxy.fault(Rule("header", headers={"Content-Encoding": "gzip", "Content-Range": None}))
        with pytest.raises(StoreError, match="Content-Encoding gzip"):
            await case.read()
        assert proxy.counts().requests == {"get": 1}

    run(proxy, scenario)


# -- away and back ------------------------------------------------------------------------------------------


def test_down_and_up_again(proxy: Behind) -> None:
    async def scenario(case: Case) -> None:
        await case.read()
        proxy.down()
        for ask in asks(case).values():
            with pytest.raises(DeadlineExceeded):
                await ask()
        assert case.guard.offline
        proxy.up()
        assert await case.read() == BODY[PART[0] : sum(PART)]
        assert not case.guard.offline

    run(proxy, scenario, deadline=0.5)


def test_an_outage_shorter_than_the_deadline_is_not_noticed(proxy: Behind) -> None:
    async def scenario(case: Case) -> None:
        proxy.down()

        async def back() -> None:
            await until(lambda: case.guard.counters.errors["Unavailable"] >= 2)
            proxy.up()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(back)
            assert await case.read() == BODY[PART[0] : sum(PART)]

    run(proxy, scenario)


def test_many_readers_in_bad_weather_get_the_right_bytes(proxy: Behind) -> None:
    """Two of five answers are spoiled, one way or another; connections are shared and reused all the same."""

    async def scenario(case: Case) -> None:
        for fault in ("reset", "truncate", "shift", "range", "etag", "whole"):
            proxy.fault(Rule(fault, kind="get", probability=0.06))
        proxy.fault(Rule("reset", kind="get", probability=0.06, at=100))
        proxy.fault(Rule("status", kind="get", probability=0.06))
        right: list[bool] = []

        async def reader(number: int) -> None:
            chance = random.Random(number)
            for _ in range(8):
                offset = chance.randrange(len(BODY) - 70_000)
                length = chance.randrange(1, 70_000)
                with trio.move_on_after(chance.choice((0.002, 30, 30))):
                    right.append(await case.read(offset, length) == BODY[offset : offset + length])

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(reader, number)
        assert len(right) > 50
        assert all(right)
        assert case.guard.counters.retries > 10

    run(proxy, scenario, deadline=30.0)


def test_every_error_is_one_of_ours(proxy: Behind) -> None:
    """Answers that are no HTTP, no XML or no S3 at all."""

    async def scenario(case: Case) -> None:
        odd: list[dict[str, str | None]] = [
            {"Content-Length": "abc"},
            {"ETag": None},
            {"Last-Modified": "never"},
            {"Content-Length": None},
        ]

        async def asked(ask: Callable[[], Awaitable[object]]) -> None:
            with suppress(ReelfsError):
                await ask()

        for headers in odd:
            proxy.clear()
            proxy.fault(Rule("header", headers=headers))
            async with trio.open_nursery() as nursery:
                for ask in asks(case).values():
                    nursery.start_soon(asked, ask)
        proxy.clear()
        proxy.fault(Rule("status", status=200))
        for kind in ("head", "list"):
            with pytest.raises(StoreError):
                await asks(case)[kind]()

    run(proxy, scenario, deadline=0.4)
