"""What every store promises (`vfs.storage.base.Store`), as tests to inherit."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import trio_test

from vfs.errors import NameTooLong, NotFound, Stale, Unavailable
from vfs.spans import StoredObject
from vfs.storage import upload
from vfs.storage.base import Page, Part, Store

#: Keys that have broken programs: what URLs, shells, XML and path joins treat specially.
ODD_KEYS = (
    "with space/and more.mp4",
    "plus+and%20percent%/50%.mp4",
    "question?and=ampersand&x.mp4",
    "hash#mark.mp4",
    "quotes'\"and`ticks.mp4",
    "brackets[1](2){3}<4>.mp4",
    "ünïcödé/日本語/🎬.mp4",
    "semi;colon,comma:at@tilde~star*.mp4",
    "back\\slash|pipe^caret.mp4",
    "dots..inside/...mp4",
    "-dash first/--x.mp4",
    "long/" + "n" * 240 + ".mp4",
)
_RANDOM = random.Random(20)
#: Sizes around the block sizes that stores and caches like.
BODIES = {
    "one": b"x",
    "small": _RANDOM.randbytes(1000),
    "games/a.mp4": _RANDOM.randbytes(65_536),
    "games/b.mp4": _RANDOM.randbytes(65_537),
    "games/deep/er/c.mp4": _RANDOM.randbytes(300_001),
}
#: Seconds that no request to a healthy store takes.
PATIENCE = 30.0


class StoreContract:
    """Inherit, implement `store` and `replace`. A known deviation is a class attribute set to False:

    pages: a listing gives at most `limit` objects and prefixes at a time.
    odd_keys: keys to try; leave out what the store cannot hold.
    conditional: writes are refused where their condition does not hold.
    metadata: what is told with an object is kept.
    markers: empty folders can be made.
    part: bytes of a part, of those that are not the last.
    multipart: an object made of parts has the etag that completing it told.
    gone_upload: what a part of an upload that is gone raises.
    """

    pages = True
    conditional = True
    metadata = True
    markers = True
    part = 5 << 20
    multipart = True
    gone_upload: tuple[type[Exception], ...] = (NotFound,)
    odd_keys: tuple[str, ...] = ODD_KEYS

    def store(self, objects: Mapping[str, bytes]) -> AbstractAsyncContextManager[Store]:
        """A store that holds exactly these objects, closed afterwards."""
        raise NotImplementedError

    async def replace(self, store: Store, key: str, body: bytes) -> None:
        """Put other bytes at a key, as another program would."""
        raise NotImplementedError

    # -- reading ----------------------------------------------------------------------------------------

    @trio_test
    async def test_any_range_is_exact(self) -> None:
        """Every range inside an object gives exactly its bytes."""
        async with self.store(BODIES) as store:
            heads = {key: (await store.head(key)).object for key in BODIES}

            @given(st.data())
            @settings(max_examples=60, deadline=None, database=None)
            def check(data: st.DataObject) -> None:
                key = data.draw(st.sampled_from(sorted(BODIES)))
                offset = data.draw(st.integers(0, len(BODIES[key]) - 1))
                length = data.draw(st.integers(1, len(BODIES[key]) - offset))
                body = trio.from_thread.run(store.read, heads[key], offset, length)
                assert bytes(body) == BODIES[key][offset : offset + length]

            with trio.fail_after(4 * PATIENCE):
                await trio.to_thread.run_sync(check)

    @trio_test
    async def test_many_reads_at_once(self) -> None:
        """Forty readers get forty right answers."""
        key = "games/deep/er/c.mp4"
        async with self.store(BODIES) as store:
            stored = (await store.head(key)).object
            right: list[bool] = []

            async def one(offset: int) -> None:
                body = await store.read(stored, offset, 5000)
                right.append(bytes(body) == BODIES[key][offset : offset + 5000])

            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    for number in range(40):
                        nursery.start_soon(one, number * 7001)
            assert right == [True] * 40

    @trio_test
    async def test_a_cancelled_read_leaves_the_store_usable(self) -> None:
        """Cancelling returns at once and spoils no other read."""
        key = "games/deep/er/c.mp4"
        async with self.store(BODIES) as store:
            stored = (await store.head(key)).object
            for _ in range(5):
                with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(store.read, stored, 0, stored.size)
                        await trio.lowlevel.checkpoint()
                        scope.cancel()
                assert bytes(await store.read(stored, 10, 2000)) == BODIES[key][10:2010]

    @trio_test
    async def test_a_missing_object_is_not_found(self) -> None:
        """Not there is NotFound, whatever is asked."""
        async with self.store(BODIES) as store:
            for key in ("none", "games/none", "games", "one/below", "gam"):
                with pytest.raises(NotFound):
                    await store.head(key)
            with pytest.raises(NotFound):
                await store.read(StoredObject("none", 10, '"0123"'), 0, 1)
            with pytest.raises((NotFound, NameTooLong)):
                await store.head("n" * 1020)

    # -- versions ---------------------------------------------------------------------------------------

    @trio_test
    async def test_a_replaced_object_is_stale(self) -> None:
        """A version that was replaced is never read from another's bytes, of whatever size."""
        for other in (BODIES["small"][::-1], b"shorter", BODIES["games/a.mp4"]):
            async with self.store(BODIES) as store:
                before = (await store.head("small")).object
                await store.read(before, 0, 10)
                await self.replace(store, "small", other)
                for offset, length in ((0, 5), (990, 10), (0, before.size)):
                    with pytest.raises(Stale):
                        await store.read(before, offset, length)
                after = (await store.head("small")).object
                assert (after.version != before.version, after.size) == (True, len(other))
                assert bytes(await store.read(after, 0, after.size)) == other

    @trio_test
    async def test_head_and_listing_agree(self) -> None:
        """Both describe an object alike: size, version, time."""
        async with self.store(BODIES) as store:
            listed = {o.key: o for o in (await whole(store, delimiter="")).objects}
            for key, body in BODIES.items():
                stored = (await store.head(key)).object
                assert stored == listed[key]
                assert (stored.key, stored.size) == (key, len(body))
                assert stored.version
                assert stored.mtime_ns > 0

    @trio_test
    async def test_an_empty_object_is_an_object(self) -> None:
        """Size 0, listed, found."""
        async with self.store({"empty": b"", "folder/empty": b""}) as store:
            assert (await store.head("empty")).object.size == 0
            assert (await store.head("folder/empty")).object.size == 0
            assert names(await whole(store, "folder/")) == {"folder/empty"}

    # -- listing ----------------------------------------------------------------------------------------

    @trio_test
    async def test_a_folder_lists_objects_and_prefixes(self) -> None:
        """With a delimiter: what is directly below the prefix."""
        async with self.store(BODIES) as store:
            assert names(await whole(store)) == {"one", "small", "games/"}
            assert names(await whole(store, "games/")) == {"games/a.mp4", "games/b.mp4", "games/deep/"}
            assert names(await whole(store, "games/deep/")) == {"games/deep/er/"}
            assert names(await whole(store, delimiter="")) == set(BODIES)
            assert names(await whole(store, "games/d", delimiter="")) == {"games/deep/er/c.mp4"}

    @trio_test
    async def test_a_prefix_need_not_end_at_a_slash(self) -> None:
        """A prefix is the beginning of keys, not a folder."""
        async with self.store(BODIES) as store:
            assert names(await whole(store, "s")) == {"small"}
            assert names(await whole(store, "games/a")) == {"games/a.mp4"}
            assert names(await whole(store, "games/de")) == {"games/deep/"}
            assert names(await whole(store, "games")) == {"games/"}

    @trio_test
    async def test_nothing_below_a_prefix_is_an_empty_page(self) -> None:
        """Listing what is not there is no error."""
        async with self.store(BODIES) as store:
            for prefix in ("none", "none/", "one/", "games/none/", "games/a.mp4/"):
                page = await store.list(prefix)
                assert (page.objects, page.prefixes, page.token) == ((), (), None)

    @trio_test
    async def test_small_pages_add_up(self) -> None:
        """Pages of any limit hold together what one page holds: each name once, none left out."""
        objects = {f"f/{n:02}": b"x" for n in range(9)} | {f"f/d{n}/x": b"x" for n in range(4)}
        async with self.store(objects) as store:
            for delimiter, wanted in (("/", 13), ("", 13)):
                for limit in (1, 2, 5, 13, 1000):
                    pages = await collected(store, "f/", delimiter=delimiter, limit=limit)
                    found = Counter(name for page in pages for name in listed(page))
                    assert len(found) == wanted
                    assert set(found.values()) == {1}
                    if self.pages:
                        assert max(len(listed(page)) for page in pages) <= limit

    @trio_test
    async def test_odd_keys(self) -> None:
        """A key is text: listed, found and read whatever is in it."""
        objects = {key: key.encode() for key in self.odd_keys}
        async with self.store(objects) as store:
            assert names(await whole(store, delimiter="")) == set(objects)
            for key, body in objects.items():
                stored = (await store.head(key)).object
                assert stored.key == key
                assert bytes(await store.read(stored, 0, stored.size)) == body
                assert bytes(await store.read(stored, 1, 3)) == body[1:4]
                folder = key[: key.rfind("/") + 1]
                assert key in names(await whole(store, folder))

    # -- writing ----------------------------------------------------------------------------------------

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

    @trio_test
    async def test_it_says_what_it_is(self) -> None:
        """The protocol is whole, the URL has a scheme, a presigned URL is one or is None."""
        async with self.store({"a": b"x"}) as store:
            assert isinstance(store, Store)
            assert "://" in store.url
            assert store.remote in (True, False)
            presigned = store.presign("a", expires=60)
            assert presigned is None or presigned.startswith(("http://", "https://"))


def same(one: StoredObject, other: StoredObject) -> bool:
    """One version of one object: its time may be that of the answer."""
    is_same = (one.key, one.size, one.version) == (other.key, other.size, other.version)
    return is_same and abs(one.mtime_ns - other.mtime_ns) <= 2 * 10**9


async def collected(store: Store, prefix: str = "", *, delimiter: str = "/", limit: int = 1000) -> list[Page]:
    """All pages of a listing."""
    pages: list[Page] = []
    token: str | None = None
    while True:
        pages.append(await store.list(prefix, delimiter=delimiter, token=token, limit=limit))
        if (token := pages[-1].token) is None:
            return pages
        assert len(pages) < 1000, "a listing without end"


async def whole(store: Store, prefix: str = "", *, delimiter: str = "/") -> Page:
    """All pages of a listing as one."""
    pages = await collected(store, prefix, delimiter=delimiter)
    return Page(
        tuple(stored for page in pages for stored in page.objects),
        tuple(name for page in pages for name in page.prefixes),
    )


def listed(page: Page) -> list[str]:
    """Keys of objects, and prefixes, of one page."""
    return [*(stored.key for stored in page.objects), *page.prefixes]


def names(page: Page) -> set[str]:
    """Keys of objects, and prefixes, once each."""
    assert len(set(listed(page))) == len(listed(page)), "a name is listed twice"
    return set(listed(page))
