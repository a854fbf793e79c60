"""When something is sent, on a clock of the test: never early; how late depends on threads."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from vfs.cache.blocks import BlockCache
from vfs.cache.budget import Budget
from vfs.reader import open_reader
from vfs.storage.memory import MemoryStore
from vfs.write.attributes import Attributes
from vfs.write.merged import MergedMetadata
from vfs.write.pending import Pending
from vfs.write.rules import Rules
from vfs.write.session import WriteSession, open_writing
from vfs.write.uploader import HELD_BACK, Uploader

STEP, DELAY, SECONDS = 0.1, 1.0, 30.0


@asynccontextmanager
async def writing(folder: Path, store: MemoryStore, delay: float) -> AsyncIterator[WriteSession]:
    """A drive over a store."""
    async with AsyncExitStack() as stack:
        cache = BlockCache(store, Budget(1 << 20), None)
        reader = await stack.enter_async_context(
            open_reader(cache, gap=1 << 16, read_ahead_max=0, connections=4)
        )
        metadata = MergedMetadata(store, pending=Pending(), dir_ttl=0.0, attr_ttl=0.0, negative_ttl=0.0)
        stack.callback(metadata.close)
        rules = Rules(clock=trio.current_time)
        session = open_writing(folder, store, metadata, reader, rules, delay=delay, deadline=60.0)
        yield await stack.enter_async_context(session)


async def sent_after(tmp_path: Path, meanwhile: Callable[[WriteSession], object]) -> float:
    """Seconds of the clock after which a closed file was in the store, something being done at each step."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock)
    store = MemoryStore({})
    async with writing(tmp_path, store, DELAY) as session:
        entry = await session.drive.create("", "a", Attributes())
        await session.drive.files.write(entry, 0, b"closed")
        began = trio.current_time()
        await session.drive.close(entry)
        until = time.monotonic() + SECONDS
        while (await store.list("", delimiter="")).objects == ():
            assert time.monotonic() < until
            meanwhile(session)
            clock.jump(STEP)
            for _ in range(5):
                await trio.to_thread.run_sync(time.sleep, 0.0005)
        return trio.current_time() - began


def test_a_closed_file_is_left_alone_for_a_while(tmp_path: Path) -> None:
    def nothing(session: WriteSession) -> None:
        session.drive.files.written = -1.0

    took = trio.run(sent_after, tmp_path, nothing, clock=trio.testing.MockClock())
    assert took >= DELAY


def test_while_programs_write_nothing_young_is_sent(tmp_path: Path) -> None:
    """And however long they do, it is sent in the end."""

    def busy(session: WriteSession) -> None:
        session.drive.files.written = trio.current_time() + STEP

    took = trio.run(sent_after, tmp_path, busy, clock=trio.testing.MockClock())
    assert took >= HELD_BACK * DELAY - STEP


def test_many_are_not_looked_through_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sending n files takes n looks at one of them, not n looks at all."""
    looks = 0
    consider = Uploader._consider

    def counted(self: Uploader, *args: object) -> None:
        nonlocal looks
        looks += 1
        consider(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Uploader, "_consider", counted)

    async def main() -> int:
        store = MemoryStore({})
        async with writing(tmp_path, store, 1000.0) as session:
            for number in range(300):
                entry = await session.drive.create("", f"{number}", Attributes())
                await session.drive.close(entry)
            assert await session.flush() == []
            return len((await store.list("", delimiter="")).objects)

    assert trio.run(main) == 300
    assert looks < 900
