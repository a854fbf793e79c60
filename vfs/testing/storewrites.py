"""What every store promises of writing (`vfs.storage.base.Store`), as tests to inherit."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace

import pytest
import trio
from trio.testing import trio_test

from vfs.errors import NotFound, Stale, Unavailable
from vfs.spans import StoredObject
from vfs.storage import upload
from vfs.storage.base import Part
from vfs.testing.storecase import StoreCase, names, same, whole


class WritingContract(StoreCase):
    """The part of `StoreContract` that writes."""

    @trio_test
    async def test_what_is_put_is_there(self) -> None:
        """As it was put, described as a listing describes it, with its metadata where there is a place."""
        async with self.store({"a": b"x"}) as store:
            for key, body in (("new", b"new bytes"), ("deep/er/new.mp4", b"y" * 70_000), ("empty", b"")):
                told = {"db-version": "7", "who": "test"}
                stored = await store.put(key, body, replaces=None, metadata=told)
                found = await store.head(key)
                assert same(found.object, stored)
                assert found.object in (await whole(store, delimiter="")).objects
                if self.metadata:
                    assert told.items() <= found.metadata.items()
                if body:
                    assert bytes(await store.read(stored, 0, stored.size)) == body
            assert names(await whole(store)) == {"a", "new", "deep/", "empty"}

    @trio_test
    async def test_a_put_is_conditional(self) -> None:
        """Onto nothing, or onto the very version that was seen; else nothing changes."""
        if not self.conditional:
            pytest.skip("this server does not know conditions")
        async with self.store({"a": b"first"}) as store:
            first = (await store.head("a")).object
            with pytest.raises(Stale):
                await store.put("a", b"blind", replaces=None)
            second = await store.put("a", b"second", replaces=first)
            with pytest.raises(Stale):
                await store.put("a", b"late", replaces=first)
            assert bytes(await store.read(second, 0, 6)) == b"second"
            with pytest.raises(Stale):
                await store.read(first, 0, 5)
            with pytest.raises(NotFound):
                await store.put("gone", b"x", replaces=StoredObject("gone", 1, second.version))
            assert names(await whole(store)) == {"a"}

    @trio_test
    async def test_of_many_who_create_one_wins(self) -> None:
        """And its bytes are there, whole."""
        if not self.conditional:
            pytest.skip("this server does not know conditions")
        async with self.store({}) as store:
            won: list[int] = []

            async def create(number: int) -> None:
                with contextlib.suppress(Stale):
                    await store.put("a", b"%d" % number * 50_000, replaces=None)
                    won.append(number)

            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(create, number)
            assert len(won) == 1
            stored = (await store.head("a")).object
            assert bytes(await store.read(stored, 0, stored.size)) == b"%d" % won[0] * 50_000

    @trio_test
    async def test_a_delete_is_of_one_version(self) -> None:
        """Another version stays; what is gone is NotFound."""
        async with self.store({"a": b"first", "f/b": b"y"}) as store:
            first = (await store.head("a")).object
            await self.replace(store, "a", b"other bytes")
            with pytest.raises(Stale):
                await store.delete(first)
            second = (await store.head("a")).object
            await store.delete(second)
            assert [o.key for o in (await whole(store, delimiter="")).objects] == ["f/b"]
            with pytest.raises(NotFound):
                await store.delete(second)

    @trio_test
    async def test_a_copy_is_of_one_version_onto_one(self) -> None:
        """The bytes and the metadata of the source, or other metadata; nothing is overwritten unseen."""
        body = random.Random(7).randbytes(70_000)
        async with self.store({"other": b"x"}) as store:
            first = await store.put("a", body, replaces=None, metadata={"who": "test"})
            copied = await store.copy(first, "f/b", replaces=None)
            described = await store.copy(first, "c", replaces=None, metadata={"who": "else"})
            for stored, key, who in ((copied, "f/b", "test"), (described, "c", "else"), (first, "a", "test")):
                found = await store.head(key)
                assert same(found.object, stored)
                assert bytes(await store.read(stored, 0, stored.size)) == body
                assert not self.metadata or found.metadata["who"] == who
            with pytest.raises(Stale):
                await store.copy(first, "other", replaces=None)
            other = (await store.head("other")).object
            with pytest.raises(Stale):
                await store.copy(first, "other", replaces=replace(other, version='"another"'))
            assert bytes(await store.read(other, 0, 1)) == b"x"
            with pytest.raises(NotFound):
                await store.copy(first, "gone", replaces=replace(other, key="gone"))
            over = await store.copy(first, "other", replaces=other)
            assert bytes(await store.read(over, 0, over.size)) == body
            await self.replace(store, "a", b"another version")
            with pytest.raises(Stale):
                await store.copy(first, "d", replaces=None)
            with pytest.raises(NotFound):
                await store.copy(replace(first, key="none"), "d", replaces=None)
            assert names(await whole(store)) == {"a", "c", "f/", "other"}

    @trio_test
    async def test_a_copy_onto_itself_changes_metadata(self) -> None:
        """The bytes stay; the version told is the one that is there."""
        async with self.store({}) as store:
            first = await store.put(
                "a", b"some bytes", replaces=None, metadata={"who": "test", "mtime": "5.5"}
            )
            told = {"mtime": "1700000000.123456789", "db-version": "8"}
            second = await store.copy(first, "a", replaces=first, metadata=told)
            found = await store.head("a")
            assert (found.object.version, found.object.size) == (second.version, 10)
            assert bytes(await store.read(second, 0, 10)) == b"some bytes"
            if self.metadata:
                assert told.items() <= found.metadata.items()
                assert "who" not in found.metadata
            with pytest.raises(Stale):
                await store.copy(second, "a", replaces=None, metadata=told)

    @trio_test
    async def test_an_empty_folder_is_a_marker(self) -> None:
        """Its parent lists it, it is empty, and it goes as it came."""
        if not self.markers:
            pytest.skip("this server has no empty folders")
        async with self.store({"a": b"x"}) as store:
            made = await store.put("deep/er/", b"", replaces=None)
            assert names(await whole(store)) == {"a", "deep/"}
            assert names(await whole(store, "deep/")) == {"deep/er/"}
            assert names(await whole(store, "deep/er/")) == set()
            assert "deep/er/" in names(await whole(store, delimiter=""))
            assert "deep/er/" in names(await whole(store, "deep/er/", delimiter=""))
            found = (await store.head("deep/er/")).object
            assert same(found, made)
            assert (found.key, found.size) == ("deep/er/", 0)
            with pytest.raises(NotFound):
                await store.head("deep/er")
            if self.conditional:
                with pytest.raises(Stale):
                    await store.put("deep/er/", b"", replaces=None)
            await store.delete(found)
            with pytest.raises(NotFound):
                await store.head("deep/er/")
            assert "deep/er/" not in names(await whole(store, "deep/"))

    @trio_test
    async def test_an_upload_in_parts_appears_whole(self) -> None:
        """In whatever order the parts came, one of them twice; nothing is seen before; metadata is kept."""
        if not self.multipart:
            pytest.skip("this server gives objects made of parts another etag afterwards")
        tail = b"the end"
        body = random.Random(3).randbytes(self.part) + tail
        async with self.store({"a": b"x"}) as store:
            name = await store.start_upload("big", metadata={"who": "test"})
            assert await store.uploads() == {name: "big"}
            await store.put_part("big", name, 1, body[: self.part])
            last = await store.put_part("big", name, 2, tail)
            first = await store.put_part("big", name, 1, body[: self.part])
            assert names(await whole(store)) == {"a"}
            stored = await store.complete_upload("big", name, [first, last], replaces=None)
            assert stored.size == len(body)
            assert same((await store.head("big")).object, stored)
            assert bytes(await store.read(stored, 0, stored.size)) == body
            if self.metadata:
                assert {"who": "test"}.items() <= (await store.head("big")).metadata.items()
            assert await store.uploads() == {}

    @trio_test
    async def test_an_upload_in_parts_is_conditional_and_can_be_dropped(self) -> None:
        """A completion whose condition fails changes nothing; an upload that is gone is NotFound."""
        async with self.store({"a": b"first"}) as store:
            name = await store.start_upload("b")
            await store.put_part("b", name, 1, b"x")
            await store.abort_upload("b", name)
            await store.abort_upload("b", name)
            assert await store.uploads() == {}
            with pytest.raises(self.gone_upload):
                await store.put_part("b", name, 1, b"x")
            if not self.conditional:
                return
            name = await store.start_upload("a")
            part = await store.put_part("a", name, 1, b"blind")
            with pytest.raises(Stale):
                await store.complete_upload("a", name, [part], replaces=None)
            stored = (await store.head("a")).object
            assert bytes(await store.read(stored, 0, 5)) == b"first"

    @trio_test
    async def test_a_body_of_any_size_is_sent(self) -> None:
        """By one request or in parts; an upload that broke off goes on with the parts that are missing."""
        if not self.multipart:
            pytest.skip("this server gives objects made of parts another etag afterwards")
        size = 2 * upload.LEAST_PART + 1234
        body = random.Random(5).randbytes(size)

        async def read(offset: int, length: int) -> bytes:
            return body[offset : offset + length]

        async with self.store({}) as store:
            arrived: dict[int, Part] = {}
            name = ""

            async def began(told: str) -> None:
                nonlocal name
                name = told

            async def sent(part: Part, length: int) -> None:
                arrived[part.number] = part
                if len(arrived) == 2:
                    raise Unavailable("the line is cut")

            with pytest.raises(Unavailable):
                await upload.send(store, "big", size, read, replaces=None, began=began, sent=sent, single=0)
            assert names(await whole(store)) == set()
            before = dict(arrived)
            stored = await upload.send(
                store, "big", size, read, replaces=None, upload=name, done=before, single=0
            )
            assert bytes(await store.read(stored, 0, size)) == body
            stored = await upload.send(store, "small", 1234, read, replaces=None)
            assert bytes(await store.read(stored, 0, 1234)) == body[:1234]

    # -- the rest ---------------------------------------------------------------------------------------
