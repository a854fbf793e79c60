"""Writes through the guard while the store fails: each happens once and is told truly, or said not to have.

The way is the real one: guard, S3 client, sockets, and a server that does as R2 (`tests/r2`).
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import trio_test

from tests.faulty_mounts import SLACK
from tests.r2.faults import Fault
from tests.servers import R2, environ_for, r2_server
from vfs.errors import DeadlineExceeded, NotFound, Stale, StoreError
from vfs.spans import StoredObject
from vfs.storage import r2copy, upload
from vfs.storage.access import Access, Target, connect
from vfs.storage.base import Part, Store
from vfs.storage.guard import GuardedStore
from vfs.storage.r2 import S3Store

#: Seconds an operation may take; with what a busy machine adds.
DEADLINE = 6.0
LATE = DEADLINE + 3.0
PART = upload.LEAST_PART
BODY = random.Random(1).randbytes(3 * PART + 4321)
SMALL = BODY[:300_000]
TOLD = {"mtime": "1700000000.123456789", "who": "test"}
_names = itertools.count()

#: By name: the fault, and how many requests of the kind it spoils.
FAULTS = {
    "storm": Fault(status=503, code="SlowDown", times=3),
    "throttled": Fault(status=429, code="TooManyRequests", times=3),
    "internal": Fault(status=500, code="InternalError", times=2),
    "reset": Fault("reset", times=2),
    "reset midway": Fault("reset", times=2, after=100_000),
    "answer lost": Fault("reset", times=2, done=True),
    "answer lost to a 500": Fault(status=500, code="InternalError", done=True),
}

#: Those that differ most; the others are for `--slow`.
SOONER = ("storm", "reset midway", "answer lost")
FEW = [
    pytest.param(fault, id=name, marks=() if name in SOONER else pytest.mark.slow)
    for name, fault in FAULTS.items()
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[R2]:
    with r2_server(tmp_path_factory.mktemp("r2")) as server:
        server.fill("bucket", {})
        yield server


@pytest.fixture(autouse=True)
def _healthy(running: R2) -> Iterator[None]:
    running.option(rate=False, etags="md5")
    running.forget()
    yield
    running.heal()


@contextlib.asynccontextmanager
async def guarded(server: R2, deadline: float = DEADLINE) -> AsyncIterator[GuardedStore]:
    store = S3Store(access(server.url, deadline))
    yield GuardedStore(store, deadline=deadline, writable=True)


@cache
def access(url: str, deadline: float) -> Access:
    """Clients take a while to make; they are for all tests."""
    environ = environ_for(url) | {"R2_ENDPOINT": url}
    return connect(Target("r2", "bucket", "", deadline, 8, environ))


async def check(store: Store, stored: StoredObject, body: bytes) -> None:
    """It is there, whole, as it was told."""
    found = await store.head(stored.key)
    assert (found.object.version, found.object.size) == (stored.version, stored.size)
    assert found.metadata == TOLD
    assert bytes(await store.read(stored, 0, stored.size)) == body


def struck(fault: Fault, operation: str) -> Fault:
    return replace(fault, operation=operation)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@trio_test
async def test_a_put_happens_once(running: R2, fault: Fault) -> None:
    """Known again by its time where the etag is no MD5."""
    running.option(etags="random")
    key = f"put {next(_names)}"
    async with guarded(running) as store:
        running.fault(struck(fault, "PutObject"))
        first = await store.put(key, SMALL, replaces=None, metadata=TOLD)
        await check(store, first, SMALL)
        running.fault(struck(fault, "PutObject"))
        second = await store.put(key, SMALL[1:], replaces=first, metadata=TOLD)
        await check(store, second, SMALL[1:])
        with pytest.raises(Stale):
            await store.put(key, b"late", replaces=first)


@pytest.mark.parametrize("fault", FEW)
@trio_test
async def test_a_copy_happens_once(running: R2, fault: Fault) -> None:
    running.option(etags="random")
    key = f"copy {next(_names)}"
    async with guarded(running) as store:
        first = await store.put(key, SMALL, replaces=None, metadata=TOLD)
        running.fault(struck(fault, "CopyObject"))
        copied = await store.copy(first, key + " to", replaces=None)
        await check(store, copied, SMALL)
        running.fault(struck(fault, "CopyObject"))
        described = await store.copy(first, key, replaces=first, metadata=TOLD | {"who": "else"})
        found = await store.head(key)
        assert (found.object.version, found.metadata["who"]) == (described.version, "else")
        assert bytes(await store.read(described, 0, len(SMALL))) == SMALL


@pytest.mark.parametrize("fault", FEW)
@trio_test
async def test_a_delete_happens_once(running: R2, fault: Fault) -> None:
    key = f"delete {next(_names)}"
    async with guarded(running) as store:
        stored = await store.put(key, SMALL, replaces=None)
        running.fault(struck(fault, "DeleteObject"))
        await store.delete(stored)
        with pytest.raises(NotFound):
            await store.head(key)
        with pytest.raises(NotFound):
            await store.delete(stored)


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        *itertools.product(
            ["CreateMultipartUpload", "UploadPart"], ["throttled", "reset midway", "answer lost"]
        ),
        *itertools.product(["CompleteMultipartUpload"], ["storm", "answer lost", "answer lost to a 500"]),
    ],
)
@trio_test
async def test_an_upload_in_parts_happens_once(running: R2, name: str, operation: str) -> None:
    """Completed though the answer was lost: the etag tells that the object is this upload's."""
    key = f"parts {next(_names)}"
    async with guarded(running) as store:
        running.fault(struck(FAULTS[name], operation))
        stored = await sent(store, key)
        await check(store, stored, BODY)
        assert stored.version.endswith('-4"')
    running.heal()


async def sent(store: Store, key: str, **more: object) -> StoredObject:
    async def read(offset: int, length: int) -> memoryview:
        return memoryview(BODY)[offset : offset + length]

    return await upload.send(
        store,
        key,
        len(BODY),
        read,
        replaces=None,
        metadata=TOLD,
        single=0,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("operation", "done"),
    [
        *[("PutObject", False), ("PutObject", True), ("UploadPart", False), ("CopyObject", True)],
        *[("CompleteMultipartUpload", False), ("CompleteMultipartUpload", True)],
    ],
)
@trio_test
async def test_a_request_that_hangs_is_tried_again(running: R2, operation: str, *, done: bool) -> None:
    """Within its deadline, whether it had arrived or not."""
    key = f"hang {next(_names)}"
    async with guarded(running, 3.0) as store:
        first = await store.put(key, SMALL, replaces=None, metadata=TOLD)
        running.fault(Fault("hang", operation, done=done, seconds=30))
        with trio.fail_after(LATE):
            if operation == "PutObject":
                await check(store, await store.put(key + " b", SMALL, replaces=None, metadata=TOLD), SMALL)
            elif operation == "CopyObject":
                await check(store, await store.copy(first, key + " c", replaces=None), SMALL)
            else:
                await check(store, await sent(store, key + " d"), BODY)


@pytest.mark.parametrize("kind", [pytest.param("status", marks=pytest.mark.slow), "hang"])
@trio_test
async def test_a_store_that_stays_away_is_given_up_at_the_deadline(running: R2, kind: str) -> None:
    """Nothing is stored, and that is what is told."""
    key = f"away {next(_names)}"
    async with guarded(running, 2.0) as store:
        running.fault(Fault(kind, "PutObject", times=-1))
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await store.put(key, SMALL, replaces=None)
        # Beside the deadline there is the time its bytes take on the slowest line.
        assert time.monotonic() - began < 2.0 + len(SMALL) / (256 * 1024) + SLACK
        assert store.offline
        running.heal()
        stored = await store.put(key, SMALL, replaces=None, metadata=TOLD)
        assert not store.offline
        await check(store, stored, SMALL)


@trio_test
async def test_quick_writes_to_one_key_wait_for_their_second(running: R2) -> None:
    """429, code 10058: each write arrives, none is lost, none is told as failed."""
    key = f"rate {next(_names)}"
    running.option(rate=True)
    async with guarded(running) as store:
        stored: StoredObject | None = None
        for number in range(2):
            stored = await store.put(key, b"%d" % number, replaces=stored, metadata=TOLD)
        assert stored is not None
        await check(store, stored, b"1")
        assert store.counters.errors["Unavailable"] >= 1
    running.option(rate=False)


@trio_test
async def test_a_lost_race_is_told_and_changes_nothing(running: R2) -> None:
    """412, also where it comes after attempts without an answer, and for an upload, whose parts are gone."""
    key = f"race {next(_names)}"
    async with guarded(running) as store:
        first = await store.put(key, b"first", replaces=None)
        theirs = await store.put(key, b"theirs", replaces=first, metadata=TOLD)
        running.fault(Fault("reset", "PutObject", times=2))
        with pytest.raises(Stale):
            await store.put(key, b"ours!!", replaces=first, metadata=TOLD | {"who": "us"})
        name = await store.start_upload(key)
        part = await store.put_part(key, name, 1, b"ours")
        running.fault(Fault("reset", "CompleteMultipartUpload", times=2, done=True))
        with pytest.raises((Stale, NotFound)):
            await store.complete_upload(key, name, [part], replaces=first)
        with pytest.raises(Stale):
            await store.copy(theirs, key, replaces=None, metadata=TOLD)
        with pytest.raises(Stale):
            await store.delete(first)
        with pytest.raises(NotFound):
            await store.put(key + " gone", b"x", replaces=first)
        assert name not in await store.uploads(key)
        await check(store, theirs, b"theirs")


@trio_test
async def test_parts_that_do_not_fit_are_an_error_not_a_loop(running: R2) -> None:
    """10048 at the end: refused at once, and the upload is still there to be mended."""
    key = f"unequal {next(_names)}"
    async with guarded(running) as store:
        name = await store.start_upload(key)
        parts = [
            await store.put_part(key, name, number, bytes(size)) for number, size in ((1, 9), (2, 10), (3, 1))
        ]
        running.forget()
        with pytest.raises(StoreError) as raised:
            await store.complete_upload(key, name, parts, replaces=None)
        assert not isinstance(raised.value, DeadlineExceeded)
        assert running.count("CompleteMultipartUpload") == 1
        with pytest.raises(StoreError):
            await store.complete_upload(key, name, [parts[0], Part(2, '"another"')], replaces=None)
        assert name in await store.uploads(key)
        await store.abort_upload(key, name)
        with pytest.raises(NotFound):
            await store.put_part(key, name, 1, b"x")


@trio_test
async def test_a_part_that_is_refused_ends_the_upload_which_can_go_on(running: R2) -> None:
    """Only what is missing is sent by the next try."""
    key = f"refused {next(_names)}"
    arrived: dict[int, Part] = {}
    begun: list[str] = []

    async def began(name: str) -> None:
        begun.append(name)

    async def note(part: Part, length: int) -> None:
        arrived[part.number] = part

    async with guarded(running) as store:
        running.fault(Fault(status=400, code="BadDigest", operation="UploadPart", skip=2))
        with pytest.raises(StoreError):
            await sent(store, key, began=began, sent=note)
        before = dict(arrived)
        running.forget()
        stored = await sent(store, key, upload=begun[0], done=before, sent=note)
        assert before
        assert len(arrived) == 4
        assert all(arrived[number] == part for number, part in before.items())
        assert running.count("CreateMultipartUpload") == 0
        await check(store, stored, BODY)


@trio_test
async def test_a_server_that_restarts_is_waited_for(tmp_path: Path) -> None:
    """In the middle of an upload in parts: it goes on when the server is back."""
    with r2_server(tmp_path) as server:
        server.fill("bucket", {})
        back = threading.Event()

        def restart() -> None:
            server.kill()
            time.sleep(0.5)  # away for a moment: connections are refused
            server.start()
            back.set()

        async def restarting(part: Part, length: int) -> None:
            if part.number == 2 and not back.is_set():
                await trio.to_thread.run_sync(restart)

        async with guarded(server, 15.0) as store:
            stored = await sent(store, "a", sent=restarting)
            await check(store, stored, BODY)
            assert (await store.list()).objects == ((await store.head("a")).object,)
            assert await store.uploads() == {}


@trio_test
async def test_a_copy_in_parts_is_of_one_version(running: R2, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those over 5 GiB are made: metadata and type kept, the source looked at before and after."""
    monkeypatch.setattr(r2copy, "MOST_COPIED", PART)
    monkeypatch.setattr(r2copy, "LEAST_COPIED_PART", PART)
    key = f"large {next(_names)}.mp4"
    async with guarded(running) as store:
        first = await store.put(key, BODY, replaces=None, metadata=TOLD)
        running.forget()
        copied = await store.copy(first, key + " to", replaces=None)
        await check(store, copied, BODY)
        assert running.count("UploadPartCopy") == 4
        assert (
            sum(entry.received for entry in running.log() if entry.operation != "CompleteMultipartUpload")
            == 0
        )
        assert (await store.head(copied.key)).headers["content-type"] == "video/mp4"
        described = await store.copy(first, key, replaces=first, metadata=TOLD | {"who": "else"})
        assert (await store.head(key)).metadata["who"] == "else"
        assert bytes(await store.read(described, PART - 5, 10)) == BODY[PART - 5 : PART + 5]
        with pytest.raises(Stale):
            await store.copy(first, key + " none", replaces=None)
        with pytest.raises(Stale):
            await store.copy(copied, key, replaces=None)

        # The source changes while its parts are copied: R2 would mix two versions.
        def change() -> None:
            running.fill("bucket", {copied.key: b"another version" * PART})

        running.fault(Fault("status", "UploadPartCopy", skip=2, times=1))
        real = r2copy.part

        def part(*arguments: object) -> str:
            if arguments[6] == 4:
                change()
            return real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(r2copy, "part", part)
        with pytest.raises(Stale):
            await store.copy(copied, key + " mixed", replaces=None)
        with pytest.raises(NotFound):
            await store.head(key + " mixed")
        assert await store.uploads(key + " mixed") == {}


@trio_test
async def test_a_target_that_appears_after_the_look_is_not_overwritten(
    running: R2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R2's own headers on CopyObject say so once more, in the request itself."""
    key = f"target {next(_names)}"
    real = r2copy.look

    def look(client: Any, bucket: str, stored: StoredObject, source: str, target: str, *rest: Any) -> Any:
        seen = real(client, bucket, stored, source, target, *rest)
        running.fill("bucket", {target: b"theirs"})
        return seen

    async with guarded(running) as store:
        first = await store.put(key, SMALL, replaces=None, metadata=TOLD)
        monkeypatch.setattr(r2copy, "look", look)
        with pytest.raises(Stale):
            await store.copy(first, key + " new", replaces=None)
        theirs = (await store.head(key + " new")).object
        assert bytes(await store.read(theirs, 0, theirs.size)) == b"theirs"
        running.fill("bucket", {key + " old": b"old"})
        with pytest.raises(Stale):
            await store.copy(first, key + " old", replaces=(await store.head(key + " old")).object)


@trio_test
async def test_writes_of_small_files_are_one_request_each(running: R2) -> None:
    """No HEAD, no LIST: the answer of the PUT is enough."""
    async with guarded(running) as store:
        running.forget()
        for number in range(3):
            await store.put(f"one {number}", SMALL, replaces=None, metadata=TOLD)
        assert [entry.operation for entry in running.log()] == ["PutObject"] * 3
