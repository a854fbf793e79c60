"""The store of the tests: its log is exact, its faults hit what they are meant for and nothing else."""

from __future__ import annotations

import pytest
import trio
from trio.testing import trio_test

from vfs.errors import Unavailable
from vfs.storage.memory import MemoryStore, Request


@trio_test
async def test_every_request_is_logged() -> None:
    store = MemoryStore({"a": b"0123456789"})
    stored = (await store.head("a")).object
    await store.list("x/")
    await store.read(stored, 2, 5)
    assert store.log == [Request("head", "a"), Request("list", "x/"), Request("read", "a", 2, 5)]
    assert store.reads() == [Request("read", "a", 2, 5)]


@trio_test
async def test_faults_hit_so_many_requests_of_one_kind_and_key() -> None:
    store = MemoryStore({"a": b"0123456789", "b": b"x"})
    stored = (await store.head("a")).object
    store.fault("read", key="a", times=2, spoil=lambda body: body[::-1])
    store.fault("head", key="b", error=Unavailable("made up"))
    await store.head("a")
    with pytest.raises(Unavailable, match="made up"):
        await store.head("b")
    await store.head("b")
    assert [await store.read(stored, 0, 3) for _ in range(3)] == [b"210", b"210", b"012"]


@trio_test
async def test_a_hanging_request_ends_when_cancelled() -> None:
    store = MemoryStore({"a": b"x"})
    store.fault("list", hang=True)
    with trio.move_on_after(0.01) as scope:
        await store.list()
    assert scope.cancelled_caught
    assert len((await store.list()).objects) == 1
    store.fault("list", times=10, error=Unavailable("made up"))
    store.heal()
    assert len((await store.list()).objects) == 1
