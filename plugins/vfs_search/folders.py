"""Folders of views, as small functions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from vfs import Bytes, Directory, Node


def fixed(nodes: Mapping[str, Node | None]) -> Directory:
    """A folder whose names do not change."""

    async def entries() -> Mapping[str, Node | None]:
        return nodes

    async def lookup(name: str) -> Node | None:
        return nodes.get(name)

    return Directory(entries=entries, lookup=lookup)


def named(lookup: Callable[[str], Awaitable[Node | None]]) -> Directory:
    """A folder whose names are queries: any can be looked up, none is listed."""

    async def entries() -> Mapping[str, Node | None]:
        return {}

    return Directory(entries=entries, lookup=lookup)


def volatile(make: Callable[[], Awaitable[bytes]]) -> Bytes:
    """A file that is made anew each time."""
    return Bytes(produce=make, version=None)
