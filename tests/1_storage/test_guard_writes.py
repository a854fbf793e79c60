"""Writes through the guard: refused unless asked for; repeated without doing anything twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest
import trio
from trio.testing import MockClock

from vfs.errors import DeadlineExceeded, NotFound, ReadOnly, Stale, Unavailable
from vfs.spans import StoredObject
from vfs.storage import guard as guard_module
from vfs.storage.base import Body
from vfs.storage.guard import GuardedStore
from vfs.storage.memory import MemoryStore


class Lossy(MemoryStore):
    """Stores what it is given and loses the answer, `lost` times. Its versions are MD5s, as S3's are."""

    lost = 0

    async def put(
        self,
        key: str,
        body: Body,
        *,
        replaces: StoredObject | None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        await super().put(key, body, replaces=replaces, metadata=metadata)
        _, kept = self._objects[key]
        stored = StoredObject(key, len(body), f'"{hashlib.md5(body).hexdigest()}"', 10**9)
        self._objects[key] = stored, kept
        if self.lost:
            self.lost -= 1
            raise Unavailable("reset by peer")
        return stored

    async def copy(
        self,
        stored: StoredObject,
        key: str,
        *,
        replaces: StoredObject | None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        copied = await super().copy(stored, key, replaces=replaces, metadata=metadata)
        if self.lost:
            self.lost -= 1
            raise Unavailable("reset by peer")
        return copied

    async def delete(self, stored: StoredObject) -> None:
        await super().delete(stored)
        if self.lost:
            self.lost -= 1
            raise Unavailable("reset by peer")


def test_writes_are_refused_unless_asked_for() -> None:
    async def main() -> None:
        store = MemoryStore({"a": b"x"})
        guard = GuardedStore(store)
        stored = (await guard.head("a")).object
        store.log.clear()
        with pytest.raises(ReadOnly, match="open for reading alone"):
            await guard.put("new", b"x", replaces=None)
        with pytest.raises(ReadOnly):
            await guard.delete(stored)
        with pytest.raises(ReadOnly):
            await guard.copy(stored, "new", replaces=None)
        with pytest.raises(ReadOnly):
            await guard.start_upload("new")
        with pytest.raises(ReadOnly):
            guard.presign("new", put=True)
        assert store.log == []

    trio.run(main)


def test_a_write_whose_answer_was_lost_is_known_again() -> None:
    """The second attempt meets the first one's object: that is success, and the object was stored once."""

    async def main() -> None:
        store = Lossy()
        guard = GuardedStore(store, writable=True)
        store.lost = 1
        stored = await guard.put("a", b"body", replaces=None)
        assert stored == (await guard.head("a")).object
        store.lost = 1
        newer = await guard.put("a", b"newer", replaces=stored)
        assert newer.version != stored.version
        store.lost = 1
        await guard.delete(newer)
        with pytest.raises(NotFound):
            await guard.head("a")
        with pytest.raises(NotFound):
            await guard.delete(newer)

    trio.run(main)


def test_a_copy_whose_answer_was_lost_is_known_again() -> None:
    """By its metadata, where the etag is another one: with its time, that is nobody else's."""

    async def main() -> None:
        store = Lossy()
        guard = GuardedStore(store, writable=True)
        told = {"mtime": "1700000000.123456789", "mode": "644"}
        first = await guard.put("a", b"body", replaces=None, metadata=told)
        store.lost = 1
        copied = await guard.copy(first, "b", replaces=None)
        assert copied == (await guard.head("b")).object
        store.lost = 1
        described = await guard.copy(first, "a", replaces=first, metadata=told | {"mode": "600"})
        assert (await guard.head("a")).metadata["mode"] == "600"
        assert described == (await guard.head("a")).object
        await guard.put("c", b"body", replaces=None)
        store.fault("copy", error=Unavailable("reset by peer"))
        with pytest.raises(Stale):  # somebody else's: no time to know it by
            await guard.copy(described, "c", replaces=None)

    trio.run(main)


def test_a_large_body_on_a_slow_line_is_waited_for() -> None:
    """The deadline is for answers: beside it each write has the time that its bytes take."""

    class Slow(MemoryStore):
        async def put(
            self,
            key: str,
            body: Body,
            *,
            replaces: StoredObject | None,
            metadata: Mapping[str, str] | None = None,
        ) -> StoredObject:
            await trio.sleep(len(body) / guard_module.SLOWEST * 0.9)
            return await super().put(key, body, replaces=replaces, metadata=metadata)

    async def main() -> None:
        guard = GuardedStore(Slow(), deadline=30.0, writable=True)
        stored = await guard.put("a", bytes(64 << 20), replaces=None)
        assert stored.size == 64 << 20
        assert trio.current_time() > 200

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_somebody_elses_object_is_not_taken_for_ours() -> None:
    async def main() -> None:
        store = MemoryStore({"a": b"theirs"})
        guard = GuardedStore(store, writable=True)
        store.fault("put", error=Unavailable("reset by peer"))
        with pytest.raises(Stale):
            await guard.put("a", b"ours", replaces=None)
        assert store._objects["a"][1] == b"theirs"

    trio.run(main)


def test_a_store_that_does_not_answer_is_given_up_at_the_deadline() -> None:
    async def main() -> None:
        store = MemoryStore()
        guard = GuardedStore(store, deadline=0.3, writable=True)
        store.fault("put", times=100, error=Unavailable("busy"))
        with pytest.raises(DeadlineExceeded):
            await guard.put("a", b"ours", replaces=None)

    trio.run(main)


def test_a_delete_of_what_is_gone_says_so_whatever_others_had_to_try_again() -> None:
    class Slow(MemoryStore):
        async def delete(self, stored: StoredObject) -> None:
            await trio.sleep(10)
            await super().delete(stored)

    async def main() -> None:
        store = Slow({"a": b"x", "b": b"y"})
        guard = GuardedStore(store, writable=True)
        stored = (await guard.head("a")).object
        store.remove("a")
        store.fault("head", key="b", error=Unavailable("reset by peer"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guard.head, "b")
            with pytest.raises(NotFound):
                await guard.delete(stored)
        assert guard.counters.retries == 1

    trio.run(main, clock=MockClock(autojump_threshold=0))
