"""What SQLite left beside a stored database is of another moment than the database: it is not shown."""

from __future__ import annotations

import pytest
import trio

from vfs.config import Settings
from vfs.errors import NotFound
from vfs.found import Found
from vfs.nodes import Spliced
from vfs.runtime import Runtime, open_runtime
from vfs.storage.memory import MemoryStore

LEFT = ("a/database.sqlite-wal", "a/database.sqlite-shm", "a/x.db-journal")
SHOWN = ("a/database.sqlite", "a/x.db", "a/notes", "a/notes-journal", "a/alone.sqlite-wal", "a/x.db-mj0123")


def session(store: MemoryStore) -> list[str]:
    """The names that `a` lists, after every one was looked up."""

    async def main() -> list[str]:
        settings = Settings.load({"source": "memory://", "cache_dir": "none"}, environ={})
        async with open_runtime(settings, store=store) as runtime:
            await check(runtime)
            listed = await runtime.tree.entries(await runtime.tree.resolve("a"))
            await check(runtime)  # now from the listing
            raw = await runtime.tree.entries(await runtime.tree.resolve(".raw/a"))
            assert sorted(f"a/{name}" for name in raw) == sorted([*LEFT, *SHOWN])
            return sorted(listed)

    return trio.run(main)


async def check(runtime: Runtime) -> None:
    for path in LEFT:
        with pytest.raises(NotFound):
            await runtime.tree.resolve(path)
        assert await content(runtime, await runtime.tree.resolve(f".raw/{path}")) == b"left"
    for path in SHOWN:
        assert await content(runtime, await runtime.tree.resolve(path)) == b"shown"


async def content(runtime: Runtime, found: Found) -> bytes:
    assert isinstance(found.node, Spliced)
    return await runtime.reader.fetch(found.node.layout)


@pytest.mark.parametrize("remote", [True, False])
def test_it_is_there_below_raw_alone(remote: bool) -> None:
    store = MemoryStore(dict.fromkeys(LEFT, b"left") | dict.fromkeys(SHOWN, b"shown"), remote=remote)
    assert session(store) == sorted(key.removeprefix("a/") for key in SHOWN)
