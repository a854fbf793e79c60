"""What was deleted can be had back: each version, whoever empties the trash beside."""

from __future__ import annotations

import pytest
from trio.testing import trio_test

from vfs.errors import Unavailable
from vfs.spans import StoredObject
from vfs.storage.memory import MemoryStore
from vfs.write import trash


@trio_test
async def test_two_files_of_one_name_deleted_within_a_second_are_both_kept() -> None:
    store = MemoryStore()
    keys = []
    for body in (b"first", b"second", b"third"):
        stored = await store.put("a", body, replaces=None)
        key = await trash.put(store, stored)
        assert key is not None
        keys.append(key)
        await store.delete(stored)
    kept = {stored.key: stored for stored in await trash.everything(store)}
    assert list(kept) == keys
    assert [bytes(await store.read(kept[key], 0, kept[key].size)) for key in keys] == [
        b"first",
        b"second",
        b"third",
    ]
    assert await trash.undelete(store, "a") == ["a"]
    (back,) = (await store.list("a")).objects
    assert bytes(await store.read(back, 0, back.size)) == b"third"


@trio_test
async def test_what_another_mount_emptied_first_does_not_stop_the_emptying() -> None:
    class Shared(MemoryStore):
        """Somebody else deletes each second object a moment before."""

        async def delete(self, stored: StoredObject) -> None:
            if stored.key.endswith(("1", "3")):
                self.remove(stored.key)
            await super().delete(stored)

    store = Shared({f".reelfs-trash/20200101T000000/{number}": b"x" for number in range(5)})
    await trash.empty(store, 60.0)
    assert not await trash.everything(store)


@trio_test
async def test_an_emptying_that_the_store_does_not_answer_is_left_for_later() -> None:
    store = MemoryStore({".reelfs-trash/20200101T000000/a": b"x"})
    store.fault("delete", error=Unavailable("away"))
    with pytest.raises(Unavailable):
        await trash.empty(store, 60.0)
