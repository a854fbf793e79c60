"""What every view promises (`vfs.View`), as tests to inherit: run in the real tree over a store in memory."""

from __future__ import annotations

import importlib.metadata
import random
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from trio.testing import trio_test

from vfs.config import Settings
from vfs.errors import NotFound, ReelfsError
from vfs.found import Found
from vfs.hookspecs import GROUP, hookimpl
from vfs.nodes import Bytes, Directory, Spliced, Symlink
from vfs.places import StoredPlace
from vfs.runtime import Runtime, open_runtime
from vfs.storage.memory import MemoryStore
from vfs.views import View

#: Names no view knows, and none may stumble over.
ODD_NAMES = ("no-such-name", "x" * 255, ".", "..", "-", "%", "%2F", "\udcff", "日本語", "@", "5s-", "nan.jpg")
#: Directories of views are walked this deep.
DEPTH = 5
#: Random reads of each file, compared with the slice of the whole.
SLICES = 20
#: What waits: none of it belongs in `applies`.
_WAITS = ("open", "os.listdir", "os.scandir", "socket.connect", "subprocess.Popen", "time.sleep")


class ViewsPlugin:
    """A plugin that offers the given views, for `open_runtime(..., extra_plugins=[(name, this)])`."""

    def __init__(self, views: Iterable[View]) -> None:
        self._views = list(views)

    @hookimpl
    def vfs_views(self) -> list[View]:
        """The views."""
        return self._views


class ViewContract:
    """Inherit, give `objects` and `views`.

    objects: stored objects by key, some of which the views are for. names: by key of an object (or "" for
    the root), names that the views resolve there, listed or not. volatile: names (without a path) whose
    bytes may change without the source changing, such as a status file.
    """

    objects: Mapping[str, bytes] = {}
    names: Mapping[str, Sequence[str]] = {}
    volatile: Sequence[str] = ()

    def views(self) -> Iterable[View]:
        """New instances of the views under test."""
        raise NotImplementedError

    @trio_test
    async def test_applies_by_name_and_type_only(self) -> None:
        """`applies` says yes or no at once: no request, no file, no socket, no sleep."""
        async with self._opened() as (runtime, store):
            views, places = list(self.views()), await _places(runtime)
            # Once before it is watched: a first call may have something to import.
            fitting = [place for view in views for place in places if view.applies(place)]
            assert fitting, "the objects fit no view"
            store.log.clear()
            with _Watch() as waits:
                answers = [view.applies(place) for view in views for place in places]
            assert all(isinstance(answer, bool) for answer in answers)
            assert (store.log, waits.seen) == ([], [])

    @trio_test
    async def test_every_listed_name_resolves_to_what_is_listed(self) -> None:
        """A listing is no promise of more than a lookup gives, nor of another kind, size or version."""
        async with self._opened() as (runtime, _):
            for folder in await _directories(runtime):
                for name, listed in (await runtime.tree.entries(folder)).items():
                    found = await runtime.tree.lookup(folder, name)
                    assert type(found.node) is type(listed.node), found.path
                    if not self._is_volatile(found):
                        assert (found.version, found.size) == (listed.version, listed.size), found.path

    @trio_test
    async def test_listing_reads_no_media_twice(self) -> None:
        """Entries are the same when asked again, and then cost no request for bytes."""
        async with self._opened() as (runtime, store):
            first = [set(await runtime.tree.entries(f)) for f in await _directories(runtime)]
            store.log.clear()
            second = [set(await runtime.tree.entries(f)) for f in await _directories(runtime)]
            assert first == second
            assert store.reads() == []

    @trio_test
    async def test_sizes_are_exact(self) -> None:
        """Every file has as many bytes as it says, and any part of it is that part of the whole."""
        chance = random.Random(1)
        async with self._opened() as (runtime, _):
            for found in await self._files(runtime):
                body = await _content(runtime, found)
                assert found.size in (None, len(body)), found.path
                if isinstance(found.node, Spliced) and body:
                    for _number in range(SLICES):
                        start = chance.randrange(len(body))
                        length = chance.randrange(1, len(body) - start + 1)
                        part = await runtime.reader.fetch(found.node.layout.window(start, length))
                        assert part == body[start : start + length], found.path

    @trio_test
    async def test_the_same_versions_are_the_same_bytes(self) -> None:
        """Asked twice, and by another process: a version names its bytes."""
        taken: list[dict[str, tuple[str, bytes]]] = []
        for _ in range(2):
            async with self._opened() as (runtime, _store):
                taken.append(
                    {
                        found.path: (found.version, await _content(runtime, found))
                        for found in await self._files(runtime)
                        if not self._is_volatile(found)
                    }
                )
        assert taken[0] == taken[1]
        assert taken[0], "the views made no file"

    @trio_test
    async def test_another_source_is_another_version(self) -> None:
        """When a stored file is replaced, whatever is derived from it has another version."""
        async with self._opened(attr_ttl=0.0, dir_ttl=0.0) as (runtime, store):
            before = {f.path: f for f in await self._files(runtime) if f.sources}
            assert before or not any(key for key in self.names), "nothing is derived from a stored file"
            for key, body in self.objects.items():
                store.replace(key, body)
            for path, old in before.items():
                new = await runtime.tree.resolve(path)
                if not self._is_volatile(new):
                    assert new.version != old.version, path

    @trio_test
    async def test_unknown_names_are_not_found(self) -> None:
        """Whatever name is looked up: a node, "not there", or an error of reelfs; nothing else."""
        async with self._opened() as (runtime, _):
            for view in self.views():
                for place in await _places(runtime):
                    if not view.applies(place):
                        continue
                    for name in ODD_NAMES:
                        try:
                            node = await view.resolve(place, name)
                        except ReelfsError:
                            continue
                        assert node is None or isinstance(node, Spliced | Bytes | Directory | Symlink)
            with pytest.raises(NotFound):
                await runtime.tree.resolve("no such folder/no such name")

    # -- how it is run ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _opened(self, **values: Any) -> AsyncIterator[tuple[Runtime, MemoryStore]]:
        """The real runtime with these views and nothing else; companions are listed."""
        installed = [point.name for point in importlib.metadata.entry_points(group=GROUP)]
        given = {"source": "memory://contract", "show_derived": True, "plugins.block": installed}
        settings = Settings.load(given | values, environ={"HOME": "/nonexistent"})
        store = MemoryStore(self.objects)
        plugins = [("contract", ViewsPlugin(self.views()))]
        async with open_runtime(settings, store=store, extra_plugins=plugins) as runtime:
            yield runtime, store

    async def _files(self, runtime: Runtime) -> list[Found]:
        """The files the views make: those listed in companions and folders, and those of `names`."""
        paths = {p: None for d in await _directories(runtime) for p in await _derived_files(runtime, d)}
        for key, names in self.names.items():
            paths |= {f"{key}@/{name}" if key else name: None for name in names}
        return [found for path in paths if _is_file(found := await runtime.tree.resolve(path))]

    def _is_volatile(self, found: Found) -> bool:
        return found.name in self.volatile or (isinstance(found.node, Bytes) and found.node.version is None)


async def _places(runtime: Runtime) -> list[StoredPlace]:
    """Every stored file and folder."""
    root = (await runtime.tree.root()).place
    assert root is not None
    places, waiting = [root], [root]
    while waiting:
        for child in (await waiting.pop().children()).values():
            places.append(child)
            if child.is_folder:
                waiting.append(child)
    return places


async def _directories(runtime: Runtime) -> list[Found]:
    """Every directory of the tree, those the views make among them."""
    found, waiting = [], [(await runtime.tree.root(), 0)]
    while waiting:
        folder, depth = waiting.pop()
        found.append(folder)
        if depth < DEPTH + folder.path.count("/"):
            for name, listed in (await runtime.tree.entries(folder)).items():
                if isinstance(listed.node, Directory):
                    waiting.append((await runtime.tree.lookup(folder, name), depth + 1))
    return found


async def _derived_files(runtime: Runtime, folder: Found) -> list[str]:
    """Paths of the files in a directory that no stored object stands at."""
    entries = await runtime.tree.entries(folder)
    return [e.path for e in entries.values() if e.place is None and not isinstance(e.node, Directory)]


def _is_file(found: Found) -> bool:
    return isinstance(found.node, Spliced | Bytes)


async def _content(runtime: Runtime, found: Found) -> bytes:
    if isinstance(found.node, Bytes):
        return await runtime.tree.settle(found)
    assert isinstance(found.node, Spliced)
    return await runtime.reader.fetch(found.node.layout)


class _Watch:
    """Notes system calls that wait, by the interpreter's audit events."""

    _active: ClassVar[list[_Watch]] = []
    _installed: ClassVar[bool] = False

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __enter__(self) -> _Watch:
        if not _Watch._installed:  # a hook cannot be taken out again
            sys.addaudithook(_Watch._note)
            _Watch._installed = True
        _Watch._active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _Watch._active.remove(self)

    @classmethod
    def _note(cls, event: str, _arguments: tuple[Any, ...]) -> None:
        if event in _WAITS:
            for watch in cls._active:
                watch.seen.append(event)
