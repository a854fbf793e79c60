"""`.reelfs/` and `.raw/`: what they hold, that they are lazy, and that they are found but not listed."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import trio
from vfs_control import plugin as control

from vfs import (
    Bytes,
    Directory,
    Extent,
    IsADirectory,
    Layout,
    Node,
    NotFound,
    Place,
    Spliced,
    StoredObject,
    Unavailable,
)
from vfs.config import Settings
from vfs.plugins import PluginInfo
from vfs.telemetry import Status

T = TypeVar("T")


@dataclass
class FakePlace:
    """A stored tree in a dictionary: bytes are files, dictionaries folders. Counts what is asked of it."""

    path: str
    content: Any
    asked: list[str] = field(default_factory=list)
    odd: dict[str, bytes] = field(default_factory=dict)
    down: bool = False

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def is_folder(self) -> bool:
        return isinstance(self.content, dict)

    @property
    def size(self) -> int:
        return 0 if self.is_folder else len(self.content)

    @property
    def version(self) -> str:
        return "" if self.is_folder else f"v-{self.path}"

    @property
    def mtime_ns(self) -> int:
        return 0 if self.is_folder else 7

    @property
    def object(self) -> StoredObject:
        if self.is_folder:
            raise IsADirectory(self.path)
        return StoredObject(self.path, self.size, self.version, self.mtime_ns)

    async def read(self, offset: int, length: int) -> bytes:
        raise AssertionError("control reads no media")

    async def fetch(self, layout: Layout) -> bytes:
        raise AssertionError("control reads no media")

    async def expect(self, offset: int, length: int) -> None:
        raise AssertionError

    async def sidecar(self, suffix: str) -> Place | None:
        raise AssertionError("control has no sidecars")

    async def child(self, name: str) -> FakePlace | None:
        self._ask(f"child {self.path}/{name}")
        return self._at(name) if name in self.content else None

    async def children(self) -> Mapping[str, FakePlace]:
        self._ask(f"children {self.path}")
        return {name: self._at(name) for name in self.content}

    async def find(self, path: str) -> FakePlace | None:
        raise AssertionError("control asks for children")

    async def node(self, path: str) -> Node:
        raise NotFound(path)

    async def unpathable(self) -> Mapping[str, FakePlace]:
        self._ask("unpathable")
        return {name: FakePlace(name, content) for name, content in self.odd.items()}

    async def derive(
        self, key: str, make: Callable[[], Awaitable[T]], *, cost: Callable[[T], int] | None = None
    ) -> T:
        return await make()

    def extent(self, offset: int, length: int) -> Extent:
        return Extent(self.object, offset, length)

    def report(self, message: str) -> None:
        raise AssertionError(message)

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.down:
            raise Unavailable("down")

    def _at(self, name: str) -> FakePlace:
        path = f"{self.path}/{name}" if self.path else name
        return FakePlace(path, self.content[name], self.asked, down=self.down)


LIBRARY: Mapping[str, Any] = {"games": {"a.mp4": b"0123", "b.h4mk": b"x"}, "top.txt": b"hello"}


@pytest.fixture
def root() -> FakePlace:
    return FakePlace("", dict(LIBRARY))


def make_view(settings: Settings | None = None, status: Status | None = None) -> Any:
    (view,) = control.vfs_views(settings or Settings(source="s3://b"), status or Status(source="s3://b"))
    return view


def walk(view: Any, root: FakePlace, path: str) -> Node | None:
    """The node at a path below the root, by lookups alone."""

    async def find() -> Node | None:
        first, *rest = path.split("/")
        node: Node | None = await view.resolve(root, first)
        for name in rest:
            assert isinstance(node, Directory)
            node = await node.lookup(name) or (await node.entries()).get(name)
        return node

    return trio.run(find)


def content(node: Node | None) -> bytes:
    assert isinstance(node, Bytes)
    return trio.run(node.produce)


def names(node: Node | None) -> set[str]:
    assert isinstance(node, Directory)
    return set(trio.run(node.entries))


def test_it_stands_at_the_root_alone_and_lists_nothing(root: FakePlace) -> None:
    view = make_view()
    assert view.applies(root)
    assert not view.applies(FakePlace("games", {}))
    assert not view.applies(FakePlace("a.mp4", b"1"))
    assert trio.run(view.entries, root) == {}
    assert walk(view, root, ".reelfsx") is None
    assert walk(view, root, "top.txt") is None
    assert root.asked == []


def test_the_status_folder_is_whole_and_asks_the_store_nothing(root: FakePlace) -> None:
    view = make_view()
    root.down = True
    folder = walk(view, root, ".reelfs")
    assert names(folder) == {
        *("status.json", "metrics", "config.toml", "plugins", "collisions", "keys", "trash"),
    }
    for name in ("status.json", "metrics", "config.toml", "plugins", "collisions"):
        assert isinstance(walk(view, root, f".reelfs/{name}"), Bytes)
    assert walk(view, root, ".reelfs/nothing") is None
    assert root.asked == []


def test_status_files_are_made_anew_each_time(root: FakePlace) -> None:
    status = Status(source="s3://b")
    node = walk(make_view(status=status), root, ".reelfs/status.json")
    assert isinstance(node, Bytes)
    assert node.version is None
    assert json.loads(content(node))["counters"]["view_failures"] == {}
    status.view_failed("clips")
    assert json.loads(content(node))["counters"]["view_failures"] == {"clips": 1}


def test_metrics_and_configuration(root: FakePlace) -> None:
    settings = Settings.load({"source": "s3://b", "memory": "64MiB"}, environ={})
    view = make_view(settings=settings)
    assert b"reelfs_uptime_seconds" in content(walk(view, root, ".reelfs/metrics"))
    effective = tomllib.loads(content(walk(view, root, ".reelfs/config.toml")).decode())
    assert (effective["source"], effective["memory"]) == ("s3://b", "64MiB")


def test_plugins_and_collisions_are_a_line_each(root: FakePlace) -> None:
    info = PluginInfo("mp4", "reelfs", "1.0", "vfs_mp4.plugin", "could not\nbe loaded")
    status = Status(source="s3://b", plugins=SimpleNamespace(infos=(info,)))
    status.collision("a\nb@5s.jpg", "hides")
    status.collision("\udcff@1.jpg", "hides")
    view = make_view(status=status)
    assert content(walk(view, root, ".reelfs/plugins")) == b"mp4\t1.0\treelfs\tcould not\\nbe loaded\n"
    lines = content(walk(view, root, ".reelfs/collisions")).splitlines()
    assert lines == [b"a\\nb@5s.jpg\thides", b"\\udcff@1.jpg\thides"]


def test_raw_is_the_bucket_one_level_at_a_time(root: FakePlace) -> None:
    view = make_view()
    raw = walk(view, root, ".raw")
    assert root.asked == []
    assert names(raw) == set(LIBRARY)
    assert root.asked == ["children "]
    assert names(walk(view, root, ".raw/games")) == {"a.mp4", "b.h4mk"}


def test_a_raw_file_is_the_stored_object_itself(root: FakePlace) -> None:
    node = walk(make_view(), root, ".raw/games/a.mp4")
    assert isinstance(node, Spliced)
    assert node.layout == Layout.whole(StoredObject("games/a.mp4", 4, "v-games/a.mp4", 7))
    assert node.attributes == {"key": "games/a.mp4", "etag": "v-games/a.mp4"}
    assert node.mtime_ns == 7
    assert root.asked == ["child /games", "child games/a.mp4"]


def test_nothing_is_derived_or_expanded_below_raw(root: FakePlace) -> None:
    view = make_view()
    assert walk(view, root, ".raw/games/a.mp4@") is None
    assert isinstance(walk(view, root, ".raw/games/b.h4mk"), Spliced)


def test_keys_that_no_path_leads_to(root: FakePlace) -> None:
    root.odd = {"a%2F%2Fb": b"odd", "%2E%2E%2Fpasswd": b"x"}
    view = make_view()
    assert names(walk(view, root, ".reelfs/keys")) == {"a%2F%2Fb", "%2E%2E%2Fpasswd"}
    node = walk(view, root, ".reelfs/keys/a%2F%2Fb")
    assert isinstance(node, Spliced)
    assert node.layout.size == 3
    assert walk(view, root, ".reelfs/keys/none") is None


def test_a_store_that_cannot_be_asked_is_an_error_not_an_empty_folder(root: FakePlace) -> None:
    view = make_view()
    root.down = True
    for path in (".raw", ".reelfs/keys"):
        with pytest.raises(Unavailable):
            names(walk(view, root, path))


def test_the_plugin_is_found_by_its_entry_point() -> None:
    from vfs.plugins import load_plugins

    plugins = load_plugins(blocked=("mp4",))
    views = plugins.views(Settings(source="/v"), Status(source="/v"))
    assert "control" in [view.name for view in views]
    assert {info.name: info.state for info in plugins.infos}["control"] == "loaded"
