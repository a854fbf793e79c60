"""A folder as a library that is far away, opened without a kernel: paths to bytes, every read counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import trio

from vfs import Bytes, Runtime, Settings, Spliced, open_runtime
from vfs.found import Found
from vfs.storage.local import LocalStore

T = TypeVar("T")


class Remote(LocalStore):
    """A folder as if it were far away, with a log of its reads: (key, offset, length)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.reads: list[tuple[str, int, int]] = []

    @property
    def remote(self) -> bool:
        return True

    async def read(self, stored: Any, offset: int, length: int, arriving: Any = None) -> Any:
        self.reads.append((stored.key, offset, length))
        return await super().read(stored, offset, length)


class Library:
    """An open library."""

    def __init__(self, runtime: Runtime, store: Remote) -> None:
        self.runtime, self.store = runtime, store

    @property
    def tree(self) -> Any:
        return self.runtime.tree

    async def found(self, path: str) -> Found:
        return await self.runtime.tree.resolve(path)

    async def content(self, path: str) -> bytes:
        """The bytes at a path; its size must have been right."""
        found = await self.found(path)
        if isinstance(found.node, Bytes):
            return await self.runtime.tree.settle(found)
        assert isinstance(found.node, Spliced)
        data = await self.runtime.reader.fetch(found.node.layout)
        assert len(data) == found.size
        return data

    async def names(self, path: str) -> list[str]:
        """What a directory lists, sorted."""
        return sorted(await self.runtime.tree.entries(await self.found(path)))


def in_library(folder: Path, body: Callable[[Library], Awaitable[T]]) -> T:
    """`await body(library)` over a folder."""

    async def main() -> T:
        store = Remote(folder)
        settings = Settings.load({"source": str(folder), "cache_dir": "none"}, environ={})
        async with open_runtime(settings, store=store) as runtime:
            return await body(Library(runtime, store))

    return trio.run(main)
