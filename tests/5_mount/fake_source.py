"""A daemon over a small tree of known files, some of which misbehave; runs as `python -m vfs.daemon` does.

The folder named by FAKE_CONTROL steers it: `version` (text) is the version of `replaced.bin`, `gate` lets go
what hangs, `crash` ends the daemon. `user.reelfs.known` of the root tells what the daemon counts.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pyfuse3
import trio

from vfs import daemon, fuse_loop
from vfs.changes import Changes
from vfs.config import Settings
from vfs.control import Control
from vfs.errors import Damaged, NotFound, ReelfsError, Stale
from vfs.found import Found
from vfs.fuse import Adapter, OpensLayouts
from vfs.nodes import Bytes, Directory, Node, Spliced, Symlink
from vfs.readers import Readers
from vfs.spans import Extent, Inline, Layout, StoredObject
from vfs.telemetry import Status
from vfs.tree import Tree
from vfs.write.session import WriteSession

MTIME = 1_700_000_000_123_456_789
BIG = 24 << 20
PATTERN = bytes(range(251)) * 4177  # about 1 MiB, of a length that no power of two divides
MANY = 5000
TTL = 60.0


def content_of(name: str, offset: int, length: int) -> bytes:
    """Bytes of a stored fake file: the pattern, turned by its name and version."""
    shift = sum(name.encode()) % 251
    start = (offset + shift) % len(PATTERN)
    repeated = PATTERN[start:] + PATTERN * (length // len(PATTERN) + 1)
    return repeated[:length]


@dataclass
class Opened:
    """What the daemon needs of a source."""

    tree: Tree
    reader: OpensLayouts
    status: Status
    writing: WriteSession | None = None
    readers: Readers = field(default_factory=Readers)
    control: Control = field(default_factory=Control)
    changes: Changes = field(default_factory=lambda: Changes(lambda path: None))

    async def follow(self) -> None:
        """Nothing is."""

    async def reload(self) -> None:
        """Nothing is."""

    async def warm(self) -> None:
        """Nothing is."""


class FakeHandle:
    def __init__(self, reader: FakeReader, layout: Layout) -> None:
        self.reader, self.layout = reader, layout

    async def read(self, offset: int, length: int, /) -> bytes | memoryview:
        parts = []
        for span in self.layout.window(offset, length).spans:
            if isinstance(span, Inline):
                parts.append(span.data)
            else:
                parts.append(await self.reader.fetch(span))
        return memoryview(b"".join(parts))

    def close(self) -> None:
        self.reader.closed += 1


class FakeReader:
    def __init__(self, control: Path) -> None:
        self.control = control
        self.closed = 0

    def open(self, layout: Layout, /) -> FakeHandle:
        return FakeHandle(self, layout)

    async def read(self, layout: Layout, offset: int, length: int, /) -> bytes | memoryview:
        return await self.open(layout).read(offset, length)

    def plan(self, layout: Layout, offset: int, length: int, /) -> Any:
        raise AssertionError("no crawler reads this")

    async def fetch(self, extent: Extent) -> bytes:
        key = extent.object.key
        if key == "hanging.bin":
            await self.until_gate()
        if key == "short.bin":
            return b"short"
        if key == "gone.bin":
            raise Stale("replaced while open")
        if key == "crash.bin":
            raise RuntimeError("a fault of ours")
        await trio.lowlevel.checkpoint()
        return content_of(key + extent.object.version, extent.offset, extent.length)

    async def until_gate(self) -> None:
        while not (self.control / "gate").exists():
            await trio.sleep(0.02)


class FakeTree:
    """The interface of `vfs.tree.Tree` over a dict."""

    def __init__(self, control: Path, reader: FakeReader, status: Status) -> None:
        self.control, self.reader, self.status = control, reader, status
        self.made: dict[str, int] = {}
        self.memo: dict[str, bytes] = {}
        self.quick = replace(self.found("quick", Spliced(layout=Layout([Inline(b"q")]))), ttl=0.0)

    def nodes(self) -> dict[str, Node]:
        return {
            "hello.txt": Spliced(
                layout=Layout([Inline(b"hello\n")]), mtime_ns=MTIME, attributes={"key": "hello"}
            ),
            "empty": Spliced(layout=Layout([]), mtime_ns=MTIME),
            "spliced.bin": Spliced(
                layout=Layout(
                    [Inline(b"head"), Extent(self.stored("big.bin", BIG), 1000, 50000), Inline(b"tail")]
                )
            ),
            "replaced.bin": self.file("replaced.bin", 300_000, self.version()),
            **{name: self.file(name, BIG) for name in ("big.bin", "hanging.bin")},
            **{name: self.file(name, 200_000) for name in ("short.bin", "gone.bin", "crash.bin")},
            "lazy.txt": self.made_file("lazy.txt", b"x" * 12345, "v1"),
            "liar.txt": self.made_file("liar.txt", b"y" * 100, "v1", changing=True),
            "failing.txt": Bytes(produce=self.fail, version="v1"),
            "volatile.json": Bytes(produce=self.volatile, version=None),
            "link": Symlink(target="hello.txt", mtime_ns=MTIME),
            "folder": self.directory("folder"),
            "many": self.directory("many"),
            "hanging": self.directory("hanging"),
            "broken": self.directory("broken"),
            os.fsdecode(b"bad\xff\xfename"): Spliced(layout=Layout([Inline(b"odd\n")])),
            "é ü 漢": Spliced(layout=Layout([Inline(b"letters\n")])),
        }

    def version(self) -> str:
        return (self.control / "version").read_text()

    def stored(self, key: str, size: int, version: str = "1") -> StoredObject:
        return StoredObject(key, size, version, MTIME)

    def file(self, key: str, size: int, version: str = "1") -> Spliced:
        return Spliced(layout=Layout.whole(self.stored(key, size, version)), mtime_ns=MTIME)

    def made_file(self, name: str, data: bytes, version: str, *, changing: bool = False) -> Bytes:
        async def produce() -> bytes:
            self.made[name] = self.made.get(name, 0) + 1
            return data * self.made[name] if changing else data

        return Bytes(produce=produce, version=version, mtime_ns=MTIME)

    async def fail(self) -> bytes:
        raise Damaged("not a video")

    async def volatile(self) -> bytes:
        """Of another content each time."""
        self.made["volatile.json"] = self.made.get("volatile.json", 0) + 1
        return json.dumps({"made": self.made["volatile.json"]}).encode()

    def known(self) -> str:
        wait: Any = pyfuse3
        known = {
            "made": self.made,
            "closed": self.reader.closed,
            "inodes": len(adapters[0].inodes),
            "waiting": len(adapters[0].callers),
            "fast": getattr(wait._wait_fuse_readable, "fast", None),
            "status": self.status.snapshot(),
        }
        return json.dumps(known)

    def directory(self, name: str) -> Directory:
        async def entries() -> Mapping[str, Node | None]:
            return {}

        return Directory(entries=entries)

    def found(self, path: str, node: Node) -> Found:
        version = (
            node.version or "" if isinstance(node, Spliced | Bytes) else "link" * isinstance(node, Symlink)
        )
        ttl = 0.0 if isinstance(node, Bytes) and not version else TTL
        attributes = dict(node.attributes) if isinstance(node, Spliced) else {}
        return Found(path, node, version, getattr(node, "mtime_ns", 0), ttl, (), attributes)

    async def root(self) -> Found:
        return self.found("", self.directory(""))

    async def lookup(self, parent: Found, name: str) -> Found:
        if name == "quick":
            return self.quick
        if name == "raises":
            raise RuntimeError("a fault of ours")
        if name == "exits":
            raise SystemExit(3)
        if name == "grouped":
            raise ExceptionGroup("two", [Damaged("one"), Damaged("other")])
        if name == "never":
            error = NotFound("kept for long")
            error.ttl = TTL
            self.made["never"] = self.made.get("never", 0) + 1
            raise error
        if name == "hanging-name":
            await self.reader.until_gate()
        children = await self.entries(parent) if parent.path != "hanging" else {}
        if name not in children:
            raise NotFound(name)
        return children[name]

    async def entries(self, folder: Found) -> Mapping[str, Found]:
        if folder.path == "":
            return {name: self.found(name, node) for name, node in self.nodes().items()}
        if folder.path == "hanging":
            await self.reader.until_gate()
        if folder.path == "broken":
            raise ReelfsError("one page of the listing failed")
        number = MANY if folder.path == "many" else 3
        inner = {f"file-{n:05d}": self.file(f"file-{n:05d}", n) for n in range(number)}
        return {name: self.found(f"{folder.path}/{name}", node) for name, node in inner.items()}

    async def settle(self, found: Found) -> bytes:
        assert isinstance(found.node, Bytes)
        if found.node.version is None or found.path == "liar.txt":
            return await found.node.produce()
        if found.path not in self.memo:
            self.memo[found.path] = await found.node.produce()
        return self.memo[found.path]

    async def refresh(self, found: Found) -> Found:
        if found.path == "replaced.bin" and found.version != self.nodes()["replaced.bin"].version:  # type: ignore[union-attr]
            raise Stale("replaced.bin was replaced")
        return replace(found)

    async def xattr_names(self, found: Found) -> list[str]:
        return [*found.attributes, "explain"]

    async def xattr(self, found: Found, name: str) -> str:
        if name == "known" and not found.path:
            return self.known()
        if name == "explain":
            return "x" * 5000
        return found.attributes[name]


def source_in(control: Path) -> daemon.OpenSource:
    """Opens the fake tree."""

    @asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[Opened]:
        reader, status = FakeReader(control), Status(settings)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash_when_told, control)
            yield Opened(cast(Tree, FakeTree(control, reader, status)), reader, status)
            nursery.cancel_scope.cancel()

    return opened


async def crash_when_told(control: Path) -> None:
    """A fault in a background task of the source."""
    while not (control / "crash").exists():
        await trio.sleep(0.05)
    raise RuntimeError("a fault in the background")


adapters: list[Adapter] = []


class KnownAdapter(Adapter):
    """The adapter, where the tree can ask it how many inodes it has."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        adapters.append(self)


if __name__ == "__main__":
    replaced: dict[str, Any] = {"Adapter": KnownAdapter}
    vars(daemon).update(replaced)
    if os.environ.get("FAKE_PLAIN_LOOP"):
        vars(fuse_loop).update(KNOWN_VERSIONS=())
    sys.exit(daemon.main(source_in(Path(os.environ["FAKE_CONTROL"]))))
