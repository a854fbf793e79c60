"""What a bucket refuses and why: another region, credentials that expired; and calls that are given up."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from tests.faults.proxy import Proxy, Rule
from tests.servers import ACCESS_KEY, R2, SECRET_KEY, environ_for, r2_server
from vfs.errors import BadBody, Denied, StoreError, Unavailable
from vfs.pytest_plugin import ExpectedLogs
from vfs.storage import calls
from vfs.storage.guard import MANY_SUMLESS, GuardedStore
from vfs.storage.open import open_store
from vfs.storage.r2 import S3Store
from vfs.storage.sums import crc64nvme
from vfs.storage.upload import part_size

BODY = bytes(range(256)) * 40
Ask = Callable[[GuardedStore], Awaitable[object]]


async def _read(store: GuardedStore) -> object:
    return await store.read((await store.head("a")).object, 10, 100)


async def _read_whole(store: GuardedStore) -> object:
    return await store.read((await store.head("a")).object, 0, len(BODY))


async def _replace(store: GuardedStore) -> object:
    return await store.put("b", BODY, replaces=(await store.head("b")).object)


async def _upload(store: GuardedStore) -> object:
    upload = await store.start_upload("b")
    part = await store.put_part("b", upload, 1, BODY)
    return await store.complete_upload("b", upload, [part], replaces=(await store.head("b")).object)


ASKS: dict[str, Ask] = {
    "head": lambda store: store.head("a"),
    "list": lambda store: store.list(),
    "read": _read,
    "read whole": _read_whole,
    "put": lambda store: store.put("new", b"new", replaces=None),
    "replace": _replace,
    "upload": _upload,
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[R2]:
    with r2_server(tmp_path_factory.mktemp("r2")) as server:
        server.fill("bucket", {"a": BODY, "b": b"old"})
        yield server


@pytest.fixture
def server(running: R2) -> Iterator[R2]:
    running.forget()
    yield running
    running.heal()
    running.option(region="", refuse="redirect", token="", sums=True)


@pytest.fixture(autouse=True)
def _no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(calls, "RENEWAL_SECONDS", 0.0)


@asynccontextmanager
async def opened(environ: dict[str, str], *, deadline: float = 10.0) -> AsyncIterator[GuardedStore]:
    made = open_store("s3://bucket", environ=environ)
    assert made is not None
    store = GuardedStore(made, deadline=deadline, writable=True)
    try:
        yield store
    finally:
        await store.aclose()


def inner(store: GuardedStore) -> S3Store:
    assert isinstance(store._store, S3Store)
    return store._store


# -- regions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("list", "redirect"),
        ("list", "malformed"),
        ("list", "malformed, in the body"),
        ("head", "malformed"),
        ("read", "redirect"),
        ("replace", "redirect"),
        ("upload", "malformed"),
    ],
)
@trio_test
async def test_the_region_of_a_bucket_is_learnt(server: R2, name: str, how: str) -> None:
    """Whatever is asked first; and once, not with each request."""
    async with opened(environ_for(server.url)) as store:
        stored = (await store.head("a")).object
        server.option(region="eu-west-1", refuse=how)
        server.forget()
        await ASKS[name](store)
        await store.read(stored, 0, 5)
        statuses = [entry.status for entry in server.log()]
        assert statuses[0] in (301, 400)
        assert max(statuses[1:]) < 300
        assert inner(store)._calls.access.region == "eu-west-1"


@pytest.mark.parametrize("how", ["redirect", "malformed", "malformed, in the body"])
@trio_test
async def test_a_read_learns_the_region_too(server: R2, how: str) -> None:
    async with opened(environ_for(server.url)) as store:
        stored = (await store.head("a")).object
        server.option(region="eu-west-1", refuse=how)
        for length in (100, len(BODY)):
            assert bytes(await store.read(stored, 0, length)) == BODY[:length]
        assert store.counters.requests == {"head": 1, "get": 3}


@trio_test
async def test_the_first_request_of_a_region_is_repeated_once(server: R2) -> None:
    server.option(region="eu-west-1")
    async with opened(environ_for(server.url)) as store:
        await store.head("a")
        assert [(entry.operation, entry.status) for entry in server.log()] == [
            ("HeadObject", 301),
            ("HeadObject", 200),
        ]
        assert store.counters.requests == {"head": 2}


@trio_test
async def test_a_bucket_that_is_sent_from_one_region_to_the_other_is_an_error(
    server: R2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "RENEWAL_SECONDS", 10.0)
    with Proxy(server.url) as proxy:
        proxy.fault(Rule("status", status=301, headers={"x-amz-bucket-region": "eu-west-1"}))
        async with opened(environ_for(proxy.url)) as store:
            with pytest.raises(StoreError, match="another region: set AWS_REGION=eu-west-1") as caught:
                await store.list()
            assert not isinstance(caught.value, Unavailable)
            assert proxy.counts().requests == {"list": 2}


@trio_test
async def test_a_region_that_cannot_be_one_is_not_believed(server: R2) -> None:
    """It becomes part of the name of the host that is asked next."""
    with Proxy(server.url) as proxy:
        proxy.fault(Rule("status", status=301, headers={"x-amz-bucket-region": "x.evil.example/"}))
        async with opened(environ_for(proxy.url)) as store:
            with pytest.raises(StoreError, match="HTTP 301"):
                await store.list()
            assert inner(store)._calls.access.region == "us-east-1"


# -- credentials --------------------------------------------------------------------------------------------


def write_token(path: Path, token: str) -> None:
    keys = f"aws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n"
    path.write_text(f"[default]\n{keys}aws_session_token={token}\n")


@pytest.mark.parametrize("name", ["head", "list", "read", "read whole", "replace", "upload"])
@trio_test
async def test_an_expired_token_is_renewed_and_the_request_repeated(
    server: R2, tmp_path: Path, name: str
) -> None:
    """AWS says 400 of it; of a HEAD without a word."""
    write_token(tmp_path / "credentials", "one")
    server.option(token="one")
    async with opened({"AWS_ENDPOINT_URL": server.url, "AWS_REGION": "us-east-1"}) as store:
        await store.list()
        server.option(token="two")
        write_token(tmp_path / "credentials", "two")
        server.forget()
        await ASKS[name](store)
        refused = [entry.operation for entry in server.log() if entry.status == 400]
        # Of a HEAD that says nothing a GET tells why.
        silent = refused[0] == "HeadObject"
        assert len(refused) == (2 if silent else 1)
        assert max(entry.status for entry in server.log()[len(refused) :]) < 300
        if silent:
            assert refused[1] == "GetObject"


@trio_test
async def test_readers_whose_token_expires_together_are_all_served(
    server: R2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The credentials are looked for once, and who is refused meanwhile waits for them."""
    monkeypatch.setattr(calls, "RENEWAL_SECONDS", 10.0)
    write_token(tmp_path / "credentials", "one")
    server.option(token="one")
    async with opened({"AWS_ENDPOINT_URL": server.url, "AWS_REGION": "us-east-1"}) as store:
        stored = (await store.head("a")).object
        server.option(token="two")
        write_token(tmp_path / "credentials", "two")
        async with trio.open_nursery() as nursery:
            for offset in range(40):
                nursery.start_soon(store.read, stored, offset, 100)


@trio_test
async def test_credentials_that_went_away_leave_the_refusal(
    server: R2, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    """Half a file while it is written, say: what is told is that the store refused."""
    write_token(tmp_path / "credentials", "one")
    server.option(token="one")
    async with opened({"AWS_ENDPOINT_URL": server.url, "AWS_REGION": "us-east-1"}) as store:
        await store.list()
        server.option(token="two")
        (tmp_path / "credentials").write_text("[default]\naws_access_key_id=x\n")
        with pytest.raises(Denied, match="the store refused the credentials"):
            await store.list()
        write_token(tmp_path / "credentials", "two")
        await store.list()
    expected_logs("other credentials could not be had")


@pytest.mark.parametrize("name", ["head", "put"])
@trio_test
async def test_a_token_that_stays_expired_is_denied(server: R2, name: str) -> None:
    server.option(token="another")
    async with opened(environ_for(server.url)) as store:
        with pytest.raises(Denied, match="the store refused the credentials"):
            await ASKS[name](store)


@trio_test
async def test_a_clock_that_is_wrong_is_said(server: R2) -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3600))
    with Proxy(server.url) as proxy:
        proxy.fault(Rule("status", status=403, code="RequestTimeTooSkewed", headers={"Date": date}))
        async with opened(environ_for(proxy.url)) as store:
            for name in ("list", "head"):
                with pytest.raises(Denied, match="the clock of this machine is 60 minutes slow"):
                    await ASKS[name](store)


# -- calls that are given up --------------------------------------------------------------------------------


@trio_test
async def test_a_call_that_is_cancelled_frees_its_thread(server: R2) -> None:
    """At once: 50 interrupted `ls` and `stat` of a store that hangs do not hold up the next one."""
    with Proxy(server.url) as proxy:
        async with opened(environ_for(proxy.url)) as store:
            await store.list()
            stored = (await store.head("b")).object
            hanging: list[Ask] = [
                lambda store: store.head("a"),
                lambda store: store.list(),
                lambda store: store.put("b", bytes(100_000), replaces=stored),
            ]
            for ask in hanging:
                proxy.fault(Rule("hang"))
                began = trio.current_time()
                for _ in range(50 // len(hanging)):
                    with trio.move_on_after(0.02) as scope:
                        await ask(store)
                    assert scope.cancelled_caught
                async with trio.open_nursery() as nursery:
                    for _ in range(50):
                        nursery.start_soon(ask, store)
                    await trio.sleep(0.1)
                    nursery.cancel_scope.cancel()
                assert trio.current_time() - began < 5.0
                threads = inner(store)._calls.threads
                with trio.fail_after(3.0):  # the timeout of a read is ten seconds
                    while threads.borrowed_tokens:
                        await trio.sleep(0.01)
                proxy.clear()
                with trio.fail_after(2.0):
                    await store.head("a")


@trio_test
async def test_what_is_given_up_is_not_begun(server: R2) -> None:
    """A copy looks at its source first; cancelled then, it does not go on to copy."""
    with Proxy(server.url) as proxy:
        async with opened(environ_for(proxy.url)) as store:
            source, target = (await store.head("a")).object, (await store.head("b")).object
            proxy.fault(Rule("hang", kind="head"))
            with trio.move_on_after(0.2):
                await store.copy(source, "b", replaces=target)
            proxy.clear()
            assert (await store.head("b")).object == target
            assert "put" not in proxy.counts().requests


@trio_test
async def test_closing_closes_connections(server: R2) -> None:
    with Proxy(server.url) as proxy:
        async with opened(environ_for(proxy.url)) as store:
            stored = (await store.head("a")).object
            async with trio.open_nursery() as nursery:
                for offset in range(8):
                    nursery.start_soon(store.read, stored, offset, 100)
            pool = inner(store)._calls.access.connections._pool
            idle = [connection for connection in list(pool.pool.queue) if connection is not None]
            assert idle
            assert all(connection.is_connected for connection in idle)
        assert not any(connection.is_connected for connection in idle)


# -- checksums ----------------------------------------------------------------------------------------------


@trio_test
async def test_an_object_of_parts_that_is_read_whole_is_compared(server: R2) -> None:
    """Its etag is no MD5; the checksum of the whole that the store keeps is asked for."""
    small = b"small"
    assert part_size(len(BODY)) > len(BODY)
    with Proxy(server.url) as proxy:
        async with opened(environ_for(proxy.url), deadline=1.5) as store:
            upload = await store.start_upload("b")
            parts = [await store.put_part("b", upload, 1, small)]
            before = (await store.head("b")).object
            stored = await store.complete_upload("b", upload, parts, replaces=before)
            assert stored.version.endswith('-1"')
            proxy.fault(Rule("flip", kind="get", times=1))
            assert bytes(await store.read(stored, 0, len(small))) == small  # the second time
            assert store.counters.errors == {"Corrupt": 1}
            proxy.fault(Rule("flip", kind="get"))
            with pytest.raises(BadBody, match="the checksum x-amz-checksum-crc64nvme"):
                await store.read(stored, 0, len(small))
            server.option(sums=False)  # then nothing can be known
            assert bytes(await store.read(stored, 0, len(small))) != small


@trio_test
async def test_a_service_that_does_not_know_the_question_is_asked_without(server: R2) -> None:
    """Of services that are older than it: one request is lost, for a mount."""
    server.option(sums="unknown")
    async with opened(environ_for(server.url)) as store:
        stored = (await store.head("a")).object
        with pytest.raises(StoreError, match="HTTP 501"):
            await store.checksum(stored)  # nobody needs it: who asks goes on without
        for _ in range(3):
            assert bytes(await store.read(stored, 0, len(BODY))) == BODY
        statuses = [entry.status for entry in server.log() if entry.operation == "GetObject"]
        assert statuses == [501, 206, 206, 206]
        assert await store.checksum(stored) is None
        assert sum(entry.operation == "HeadObject" for entry in server.log()) == 2


@trio_test
async def test_a_checksum_is_asked_for_once(server: R2) -> None:
    """For a version; and a bucket that keeps none is not asked for ever."""
    async with opened(environ_for(server.url)) as store:
        stored = (await store.head("a")).object
        server.forget()
        assert {await store.checksum(stored) for _ in range(3)} == {crc64nvme(BODY)}
        assert len(server.log()) == 1
        server.option(sums=False)
        for number in range(MANY_SUMLESS + 5):
            replaced = await store.put(f"n{number}", b"n", replaces=None)
            assert await store.checksum(replaced) is None
        assert server.count("HeadObject") == 1 + MANY_SUMLESS
        assert await store.checksum(stored) == crc64nvme(BODY)
