"""Listing ahead of walkers: what is asked for, when, and that nothing is asked for twice or lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from vfs.cache.metadata import Metadata
from vfs.cache.walkahead import AHEAD
from vfs.errors import Unavailable
from vfs.storage.base import Page
from vfs.storage.memory import MemoryStore

COUNT = 40
OBJECTS = {f"lib/{number:02d}/x.mp4": b"x" for number in range(COUNT)}


class Listed(MemoryStore):
    """Writes down which prefixes are listed, and can be made to wait or fail there."""

    def __init__(self) -> None:
        super().__init__(OBJECTS)
        self.prefixes: list[str] = []
        self.gate: trio.Event | None = None
        self.failing: set[str] = set()

    async def list(
        self, prefix: str = "", *, delimiter: str = "/", token: str | None = None, limit: int = 1000
    ) -> Page:
        self.prefixes.append(prefix)
        if prefix in self.failing:
            raise Unavailable("not now")
        if self.gate is not None and prefix != "lib/":
            await self.gate.wait()
        return await super().list(prefix, delimiter=delimiter, token=token, limit=limit)


def run(body: Callable[[Metadata, Listed], Awaitable[None]]) -> None:
    async def main() -> None:
        store = Listed()
        metadata = Metadata(store)
        await metadata.folder("lib/")
        store.prefixes.clear()
        await body(metadata, store)
        metadata.close()

    trio.run(main)


def name(number: int) -> str:
    return f"lib/{number:02d}/"


def test_a_walk_lists_every_folder_once_and_mostly_ahead() -> None:
    async def body(metadata: Metadata, store: Listed) -> None:
        waited = 0
        for number in range(COUNT):
            await trio.testing.wait_all_tasks_blocked()
            waited += name(number) not in store.prefixes
            assert list((await metadata.folder(name(number))).files) == ["x.mp4"]
        assert sorted(store.prefixes) == [name(number) for number in range(COUNT)]
        assert waited == 2

    run(body)


def test_single_folders_and_jumps_list_nothing_else() -> None:
    async def body(metadata: Metadata, store: Listed) -> None:
        for number in (7, 30, 2, 20):
            await metadata.folder(name(number))
            await trio.testing.wait_all_tasks_blocked()
        assert store.prefixes == [name(7), name(30), name(2), name(20)]

    run(body)


def test_at_most_so_many_are_under_way_and_a_reader_joins_them() -> None:
    async def body(metadata: Metadata, store: Listed) -> None:
        for number in range(4):
            await metadata.folder(name(number))
            await trio.testing.wait_all_tasks_blocked()
        store.gate = trio.Event()
        before = len(store.prefixes)
        async with trio.open_nursery() as nursery:
            for number in range(4, 9):
                nursery.start_soon(metadata.folder, name(number))
                await trio.testing.wait_all_tasks_blocked()
            assert 0 < len(store.prefixes) - before <= AHEAD
            store.gate.set()
        assert len(store.prefixes) == len(set(store.prefixes))

    run(body)


def test_what_fails_ahead_is_asked_again_by_who_needs_it() -> None:
    async def body(metadata: Metadata, store: Listed) -> None:
        store.failing = {name(2)}
        await metadata.folder(name(0))
        await metadata.folder(name(1))
        await trio.testing.wait_all_tasks_blocked()
        assert name(2) in store.prefixes
        with pytest.raises(Unavailable):
            await metadata.folder(name(2))
        store.failing = set()
        assert list((await metadata.folder(name(2))).files) == ["x.mp4"]

    run(body)


def test_closing_ends_what_is_under_way() -> None:
    async def body(metadata: Metadata, store: Listed) -> None:
        await metadata.folder(name(0))
        store.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(metadata.folder, name(1))
            await trio.testing.wait_all_tasks_blocked()
            assert {name(2), name(3)} <= set(store.prefixes)
            metadata.close()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        store.gate.set()
        assert list((await metadata.folder(name(2))).files) == ["x.mp4"]

    run(body)
