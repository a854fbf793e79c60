"""What every store promises (`vfs.storage.base.Store`), as tests to inherit."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import trio_test

from vfs.errors import NameTooLong, NotFound, Stale
from vfs.spans import StoredObject
from vfs.storage.base import Store
from vfs.testing.storecase import collected, listed, names, whole
from vfs.testing.storewrites import WritingContract

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


class StoreContract(WritingContract):
    """Inherit, implement `store` and `replace`; see `StoreCase` for what may be said of known deviations."""

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

    @trio_test
    async def test_it_says_what_it_is(self) -> None:
        """The protocol is whole, the URL has a scheme, a presigned URL is one or is None."""
        async with self.store({"a": b"x"}) as store:
            assert isinstance(store, Store)
            assert "://" in store.url
            assert store.remote in (True, False)
            presigned = store.presign("a", expires=60)
            assert presigned is None or presigned.startswith(("http://", "https://"))
