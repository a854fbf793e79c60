"""Real keys under the names that a mount has for itself: neither is lost."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping

import pytest
import trio

from vfs.config import Settings
from vfs.errors import StoreError
from vfs.nodes import Bytes, Directory, Spliced
from vfs.runtime import Runtime, open_runtime
from vfs.storage.memory import MemoryStore

FOLDERS = {
    "a.txt": b"a",
    ".reelfs/status.json": b"stored, not ours",
    ".reelfs/notes.txt": b"notes",
    ".raw/a.txt": b"another a",
    ".raw/only/here.txt": b"only here",
    "search/frame/x.txt": b"a frame",
    "search/mine.txt": b"mine",
}
FILES = {"a.txt": b"a", ".reelfs": b"a file", ".raw": b"another", "search": b"a third"}
STATUS = {"status.json", "metrics", "config.toml", "plugins", "collisions", "keys", "trash"}


def run(objects: Mapping[str, bytes], body: Callable[[Runtime, MemoryStore], Awaitable[None]]) -> None:
    async def main() -> None:
        store = MemoryStore(dict(objects))
        settings = Settings.load({"source": "memory://", "cache_dir": "none"}, environ={})
        async with open_runtime(settings, store=store) as runtime:
            await body(runtime, store)

    trio.run(main)


async def content(runtime: Runtime, path: str) -> bytes:
    found = await runtime.tree.resolve(path)
    if isinstance(found.node, Bytes):
        return await runtime.tree.settle(found)
    assert isinstance(found.node, Spliced)
    return bytes(await runtime.reader.fetch(found.node.layout))


async def names(runtime: Runtime, path: str) -> set[str]:
    return set(await runtime.tree.entries(await runtime.tree.resolve(path)))


async def copied(runtime: Runtime, path: str) -> dict[str, bytes]:
    """Every file below a path, by the rest of its path."""
    found: dict[str, bytes] = {}
    for name, child in (await runtime.tree.entries(await runtime.tree.resolve(path))).items():
        below = f"{path}/{name}"
        if isinstance(child.node, Directory):
            found |= {f"{name}/{rest}": body for rest, body in (await copied(runtime, below)).items()}
        else:
            found[name] = await content(runtime, below)
    return found


@pytest.mark.parametrize("objects", [FOLDERS, FILES])
def test_the_control_folder_is_there_whatever_is_stored(objects: Mapping[str, bytes]) -> None:
    async def body(runtime: Runtime, store: MemoryStore) -> None:
        assert await names(runtime, ".reelfs") == STATUS
        assert json.loads(await content(runtime, ".reelfs/status.json"))["source"] == "memory://"
        # Both ways of asking, before and after the root was listed.
        assert {".reelfs", ".raw"} < await names(runtime, "")
        assert await names(runtime, ".reelfs") == STATUS
        lines = (await content(runtime, ".reelfs/collisions")).decode().splitlines()
        told = dict(line.split("\t") for line in lines)
        assert told[".reelfs"] == "the mount's own name hides a real key: see .raw/.reelfs"
        assert ".raw" in told

    run(objects, body)


@pytest.mark.parametrize("objects", [FOLDERS, FILES])
def test_a_copy_of_raw_is_a_copy_of_the_bucket(objects: Mapping[str, bytes]) -> None:
    async def body(runtime: Runtime, store: MemoryStore) -> None:
        assert await copied(runtime, ".raw") == objects

    run(objects, body)


def test_what_is_made_stands_beside_what_is_stored() -> None:
    """Of other names: the stored child wins, and `search/` still answers for those that nobody stored."""

    async def body(runtime: Runtime, store: MemoryStore) -> None:
        assert await names(runtime, "search") == {"frame", "mine.txt"}
        assert await content(runtime, "search/mine.txt") == b"mine"
        assert await names(runtime, "search/frame") == {"x.txt"}
        assert "search" not in runtime.status.collisions
        found = await runtime.tree.resolve("search/text")
        assert (found.path, isinstance(found.node, Directory)) == ("search/text", True)
        assert isinstance((await runtime.tree.resolve("search/text/ginger cat")).node, Directory)
        assert runtime.status.collisions["search"].startswith("a real folder")

    run(FOLDERS, body)


def test_a_stored_file_hides_a_name_that_is_not_reserved() -> None:
    async def body(runtime: Runtime, store: MemoryStore) -> None:
        assert await content(runtime, "search") == b"a third"

    run(FILES, body)


def test_the_control_folder_answers_while_the_store_is_away() -> None:
    async def body(runtime: Runtime, store: MemoryStore) -> None:
        runtime.metadata.forget_at("")

        async def broken(*args: object, **kwargs: object) -> None:
            raise StoreError("no answer")

        store.list = store.head = broken  # type: ignore[method-assign,assignment]
        assert await names(runtime, ".reelfs") == STATUS
        assert await content(runtime, ".reelfs/status.json")

    run(FOLDERS, body)
