"""Objects that are made range by range: cached like stored ones, and more can be derived from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

import vfs
from vfs import DerivedObject, Directory, Extent, Inline, Layout, Node, Place, Spliced
from vfs.config import Settings
from vfs.runtime import Runtime, open_runtime
from vfs.storage.memory import MemoryStore

GRAIN, TIMES = 100, 7


@dataclass
class Repeated:
    """Of a `.txt` file: `long/body.dat`, its bytes seven times, made; `long/mixed.dat` with a head before."""

    name: str = "repeated"
    made: list[tuple[int, int]] = field(default_factory=list)

    def applies(self, place: Place) -> bool:
        return place.name.endswith(".txt")

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        return {"long": None}

    async def resolve(self, place: Place, name: str) -> Node | None:
        if name != "long":
            return None

        async def make(offset: int, length: int) -> bytes:
            self.made.append((offset, length))
            whole = await place.read(0, place.size)
            return (whole * TIMES)[offset : offset + length]

        body = DerivedObject(
            f"{place.path}@/long/body.dat",
            place.size * TIMES,
            f"repeated.1:{place.version}",
            make=make,
            grain=GRAIN,
            sources=(place.object,),
        )
        files: dict[str, Node | None] = {
            "body.dat": Spliced(layout=Layout.whole(body)),
            "mixed.dat": Spliced(layout=Layout((Inline(b"head"), Extent(body, 0, body.size)))),
        }

        async def entries() -> Mapping[str, Node | None]:
            return files

        return Directory(entries=entries)


class Cut:
    """Of any `.dat`: `N.part`, its first N bytes; `length` in the companion directory."""

    name = "cut"

    def applies(self, place: Place) -> bool:
        return place.name.endswith(".dat")

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        return {"length": Spliced(layout=Layout((Inline(str(place.size).encode()),)))}

    async def resolve(self, place: Place, name: str) -> Node | None:
        stem, _, kind = name.rpartition(".")
        if kind != "part":
            return (await self.entries(place)).get(name)
        assert await place.sidecar(".index.json") is None
        return Spliced(layout=Layout((Inline(b">"), place.extent(0, int(stem)))))


class Plugin:
    def __init__(self, *views: vfs.View) -> None:
        self._views = views

    @vfs.hookimpl
    def vfs_views(self) -> list[vfs.View]:
        return list(self._views)


TEXT = bytes(range(65, 91)) * 3


async def read(runtime: Runtime, path: str, offset: int, length: int) -> bytes:
    found = await runtime.tree.resolve(path)
    assert isinstance(found.node, Spliced)
    return bytes(await runtime.reader.read(found.node.layout, offset, length))


@pytest.mark.parametrize("remote", [False, True])
def test_derived_objects(remote: bool) -> None:
    async def main() -> None:
        view, store = Repeated(), MemoryStore({"a.txt": TEXT}, remote=remote)
        async with open_runtime(
            Settings.load({"source": "memory://test", "attr_ttl": "0s"}, environ={}),
            store=store,
            extra_plugins=[("test", Plugin(view, Cut()))],
        ) as runtime:
            whole = TEXT * TIMES
            assert await read(runtime, "a.txt@/long/body.dat", 130, 20) == whole[130:150]
            # Widened to the grain, and kept whether the store is a remote one or not.
            assert view.made == [(100, 100)]
            assert await read(runtime, "a.txt@/long/body.dat", 100, 100) == whole[100:200]
            assert view.made == [(100, 100)]
            assert await read(runtime, "a.txt@/long/mixed.dat", 0, 10_000) == b"head" + whole
            assert sorted(view.made[1:]) == [(0, 100), (200, len(whole) - 200)]
            # Its version depends on the stored object's.
            found = await runtime.tree.resolve("a.txt@/long/mixed.dat")
            assert [source.key for source in found.sources] == ["a.txt"]
            assert await runtime.tree.refresh(found) is found
            # What is derived of it, beside it and in its own companion directory.
            assert await read(runtime, "a.txt@/long/body@7.part", 0, 100) == b">" + whole[:7]
            assert await read(runtime, "a.txt@/long/mixed.dat@6.part", 0, 100) == b">head" + whole[:2]
            assert await read(runtime, "a.txt@/long/mixed.dat@/length", 0, 100) == b"%d" % (len(whole) + 4)
            assert (await runtime.tree.resolve("a.txt@/long/body@7.part")).sources == found.sources
            with pytest.raises(vfs.NotFound):
                await runtime.tree.resolve("a.txt@/long/other@7.part")
            assert isinstance(found.node, Spliced)
            assert runtime.reader.plan(found.node.layout).requests == ()

            store.replace("a.txt", TEXT.lower())
            with pytest.raises(vfs.Stale):
                await runtime.tree.refresh(found)

    trio.run(main)


@pytest.mark.parametrize("bulky", [False, True])
def test_what_is_bulky_is_not_written_to_disk(tmp_path: Path, bulky: bool) -> None:
    async def make(offset: int, length: int) -> bytes:
        return bytes(length)

    async def main() -> None:
        settings = Settings.load({"source": "memory://test", "cache_dir": str(tmp_path)}, environ={})
        async with open_runtime(settings, store=MemoryStore({}, remote=True)) as runtime:
            derived = DerivedObject("x", 50_000, "1", make=make, bulky=bulky)
            assert await runtime.reader.fetch(Layout.whole(derived)) == bytes(50_000)
            assert runtime.reader.peek(Layout.whole(derived), 0, 10) == bytes(10)
            disk = runtime.reader.blocks.disk
            assert disk is not None
            await disk.drain()
            assert bool(disk.counters.written) != bulky

    trio.run(main)


def test_what_makes_too_few_bytes_is_an_error() -> None:
    async def make(offset: int, length: int) -> bytes:
        return b"short"

    async def main() -> None:
        async with open_runtime(
            Settings.load({"source": "memory://test"}, environ={}), store=MemoryStore({})
        ) as runtime:
            derived = DerivedObject("x", 10, "1", make=make)
            with pytest.raises(vfs.BadBody, match="5 bytes were made at 0 where 10 belong"):
                await runtime.reader.fetch(Layout.whole(derived))

    trio.run(main)
