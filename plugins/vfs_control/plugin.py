"""`.reelfs/` and `.raw/` at the root of a mount, and how to write a plugin.

A plugin is a module with functions marked `@hookimpl`, named in an entry point of the group `vfs`::

    [project.entry-points.vfs]
    control = "vfs_control.plugin"

This one has one hook, `vfs_views`, which gives the core a list of views. A view is asked two things about a
stored file or folder (a `Place`): which names to list (`entries`) and what a name is (`resolve`). It answers
with nodes, which are descriptions: `Directory`, `Spliced` (bytes of stored objects, never copied) or `Bytes`
(made when somebody opens the file). Reading, caching, deadlines and errors are the core's: there is no I/O
here but through the place, and no exception is caught.

Both folders resolve but are not listed, so `cp -r` and `find` of a mount see the library alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, cast

from vfs import Bytes, Directory, Layout, Node, Place, Spliced, View, hookimpl

STATUS_FOLDER = ".reelfs"
RAW_FOLDER = ".raw"
KEYS_FOLDER = "keys"
#: What was deleted on a mount that can be written to, and where in the bucket it waits.
TRASH_NAME, TRASH_FOLDER = "trash", ".reelfs-trash"

Make = Callable[[], bytes]


@hookimpl
def vfs_views(settings: Any, status: Any) -> list[View]:
    """The one view of this plugin. A hook may take any of the arguments it is offered, by name."""
    files: dict[str, Make] = {
        "status.json": status.snapshot_json,
        "metrics": lambda: _text(status.metrics_text()),
        "config.toml": lambda: _text((status.settings or settings).to_toml()),
        "plugins": lambda: _text(plugin_lines(status.plugins)),
        "collisions": lambda: _text(collision_lines(status.collisions)),
    }
    return [Control(lambda: files | status.files)]


class Control:
    """The view: two names at the root of the mount, neither of them listed."""

    name = "control"
    #: Whatever is stored: a mount that has a key `.reelfs` can still be asked what it is doing.
    reserved = frozenset({STATUS_FOLDER, RAW_FOLDER})

    def __init__(self, files: Callable[[], Mapping[str, Make]]) -> None:
        self._files = files

    def applies(self, place: Place) -> bool:
        """The root of the mount, and nothing else."""
        return place.is_folder and place.path == ""

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """Nothing: what is derived from a bucket's root is found by name only."""
        return {}

    async def resolve(self, place: Place, name: str) -> Node | None:
        """`.reelfs` and `.raw`; None for every other name lets other views answer."""
        if name == STATUS_FOLDER:
            return self._status_folder(place)
        if name == RAW_FOLDER:
            return raw_node(place)
        return None

    def _status_folder(self, root: Place) -> Directory:
        """Files that say what is true now (version None: made anew at each open), and the rescue folder."""
        nodes: dict[str, Node] = {name: _volatile(make) for name, make in self._files().items()}
        nodes[KEYS_FOLDER] = _keys_folder(root)
        nodes[TRASH_NAME] = _trash_folder(root)
        return _fixed(nodes)


class _Rescue(Protocol):
    """What the root of a mount offers beside a `Place`."""

    def unpathable(self) -> Awaitable[Mapping[str, Place]]:
        """Stored files whose keys cannot be paths, by percent-encoded key."""


def _keys_folder(root: Place) -> Directory:
    """The stored files no path leads to (`a//b`, `..`, a file that is also a folder), percent-encoded."""

    async def entries() -> Mapping[str, Node | None]:
        return {name: raw_node(place) for name, place in (await cast(_Rescue, root).unpathable()).items()}

    return Directory(entries=entries)


def _trash_folder(root: Place) -> Directory:
    """What can be had back by `reelfs undelete`, by the time it was deleted; empty where nothing was."""

    async def entries() -> Mapping[str, Node | None]:
        trash = await root.child(TRASH_FOLDER)
        return {} if trash is None else {name: raw_node(p) for name, p in (await trash.children()).items()}

    return Directory(entries=entries)


def raw_node(place: Place) -> Node:
    """A stored file or folder as it is: nothing derived, nothing expanded, one level at a time."""
    if not place.is_folder:
        return Spliced(
            layout=Layout.whole(place.object),
            mtime_ns=place.mtime_ns,
            attributes={"key": place.object.key, "etag": place.version},
        )

    async def entries() -> Mapping[str, Node | None]:
        return {name: raw_node(child) for name, child in (await place.children()).items()}

    async def lookup(name: str) -> Node | None:
        child = await place.child(name)
        return raw_node(child) if child is not None else None

    return Directory(entries=entries, lookup=lookup, mtime_ns=place.mtime_ns)


def _fixed(nodes: Mapping[str, Node]) -> Directory:
    """A directory whose names never change."""

    async def entries() -> Mapping[str, Node | None]:
        return nodes

    async def lookup(name: str) -> Node | None:
        return nodes.get(name)

    return Directory(entries=entries, lookup=lookup)


def _volatile(make: Make) -> Bytes:
    async def produce() -> bytes:
        return make()

    return Bytes(produce=produce, version=None)


def plugin_lines(plugins: Any) -> str:
    """One line a plugin: name, version, distribution, state, separated by tabs."""
    rows = [(p.name, p.version, p.distribution, p.state) for p in plugins]
    return "".join("\t".join(map(visible, row)) + "\n" for row in rows)


def collision_lines(collisions: Mapping[str, str]) -> str:
    """One line a collision: the path and what happened, separated by a tab."""
    return "".join(f"{visible(path)}\t{visible(kind)}\n" for path, kind in sorted(collisions.items()))


def visible(text: str) -> str:
    r"""Control characters and bytes that are no UTF-8 escaped (`\n`, `\udcff`): one line stays one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _text(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
