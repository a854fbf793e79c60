"""A file or folder as plugins see it: the one implementation of `views.Place`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from vfs import names
from vfs.cache.kept import Kept
from vfs.cache.listing import FolderMark
from vfs.cache.metadata import Metadata
from vfs.errors import IsADirectory
from vfs.nodes import Node, Pool, Spliced
from vfs.panel import Reports
from vfs.spans import DerivedObject, Extent, Layout, StoredObject
from vfs.views import Data

if TYPE_CHECKING:
    from vfs.cache.derived import Derived
    from vfs.reader import Reader

T = TypeVar("T")


class Paths:
    """What a path of the whole tree is; the tree says so when it has been put together."""

    node: Callable[[str], Awaitable[Node]]


@dataclass(frozen=True, slots=True)
class Services:
    """What places are served from: the caches and the reader over one store."""

    metadata: Metadata
    reader: Reader
    derived: Derived
    reports: Reports
    kept: Kept = field(default_factory=lambda: Kept(None, ""))
    paths: Paths = field(default_factory=lambda: Paths())


@dataclass(frozen=True, slots=True)
class StoredPlace:
    """See `views.Place`. prefix: the key prefix of a folder ("" or ending in "/")."""

    services: Services
    path: str
    prefix: str
    stored: StoredObject | None

    @classmethod
    def root(cls, services: Services) -> StoredPlace:
        """The mounted prefix."""
        return cls(services, "", "", None)

    def folder(self, name: str) -> StoredPlace:
        """The folder of that name below this folder."""
        path = f"{self.path}/{name}" if self.path else name
        return StoredPlace(self.services, path, f"{self.prefix}{name}/", None)

    def file(self, stored: StoredObject) -> StoredPlace:
        """A file in this folder."""
        return StoredPlace(self.services, stored.key, self.prefix, stored)

    @classmethod
    def made(cls, services: Services, path: str, node: Spliced) -> StoredPlace:
        """A file that a view made, as a place from which more can be derived."""
        layout = node.layout
        only = layout.spans[0].object if layout.spans and isinstance(layout.spans[0], Extent) else None
        if only is None or layout != Layout.whole(only):

            async def make(offset: int, length: int) -> bytes:
                return await services.reader.fetch(layout.window(offset, length))

            only = DerivedObject(
                path, layout.size, node.version, node.mtime_ns, make=make, sources=layout.objects
            )
        return cls(services, path, "", only)

    @property
    def name(self) -> str:
        """Last component of the path."""
        return self.path.rpartition("/")[2]

    @property
    def is_folder(self) -> bool:
        """True for a folder."""
        return self.stored is None

    @property
    def size(self) -> int:
        """Bytes; 0 for a folder."""
        return self.stored.size if self.stored else 0

    @property
    def version(self) -> str:
        """The pinned version; "" for a folder."""
        return self.stored.version if self.stored else ""

    @property
    def mtime_ns(self) -> int:
        """Nanoseconds since the epoch; 0 for a folder."""
        return self.stored.mtime_ns if self.stored else 0

    @property
    def object(self) -> StoredObject:
        """The pinned object. Raises IsADirectory for a folder."""
        if self.stored is None:
            raise IsADirectory(f"{self.path or '/'} is a folder")
        return self.stored

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length), short only at the end of the file."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        return await self.fetch(Layout((self.extent(offset, length),)))

    async def fetch(self, layout: Layout) -> bytes:
        """All bytes of a layout."""
        return await self.services.reader.fetch(layout)

    def stream(self, layout: Layout, offset: int = 0, length: int | None = None) -> AsyncIterator[Data]:
        """Bytes [offset, offset + length) of a layout, in order, in pieces as they come."""
        return self.services.reader.stream(layout, offset, length)

    async def expect(self, offset: int, length: int) -> None:
        """Begin to fetch these bytes, and see it through; does not wait for them."""
        length = min(length, self.size - offset)
        if length > 0:
            await self.services.reader.expect(Layout((self.extent(offset, length),)))

    async def sidecar(self, suffix: str) -> StoredPlace | None:
        """The stored file whose name is this one's plus `suffix`."""
        if isinstance(self.stored, DerivedObject):
            return None
        metadata, name = self.services.metadata, self.name
        nearby = await metadata.starting(self.prefix, name)
        found = nearby.files.get(name + suffix)
        return StoredPlace(self.services, found.key, self.prefix, found) if found else None

    async def child(self, name: str) -> StoredPlace | None:
        """A stored child of a folder; a key that is file and folder is the folder."""
        found = await self.services.metadata.find(self.prefix, name)
        if found is None:
            return None
        return self.folder(name) if isinstance(found, FolderMark) else self.file(found)

    async def children(self) -> Mapping[str, StoredPlace]:
        """All stored children of a folder."""
        listing = await self.services.metadata.folder(self.prefix)
        files = {name: self.file(stored) for name, stored in listing.files.items()}
        return files | {name: self.folder(name) for name in listing.folders}

    async def find(self, path: str) -> StoredPlace | None:
        """The stored file or folder at any path below the root of the mount, or None."""
        if not path:
            return StoredPlace.root(self.services)
        parent, _, name = path.rpartition("/")
        prefix = f"{parent}/" if parent else ""
        return await StoredPlace(self.services, parent, prefix, None).child(name)

    async def node(self, path: str) -> Node:
        """What any path below the root of the mount is, derived ones too. Raises NotFound and the like."""
        return await self.services.paths.node(path)

    async def unpathable(self) -> Mapping[str, StoredPlace]:
        """Below this folder: objects whose keys cannot be paths or are hidden by a folder of the same name.

        By percent-encoded key. Walks all keys below the folder twice (one LIST for a thousand keys; the
        names of folders are kept, those of files are not), so only an explicit question asks for it.
        """
        found: list[StoredObject] = []
        folders: set[str] = set()
        async for stored in self._walk():
            if not names.is_path(stored.key):
                found.append(stored)
            folders.update(stored.key[: match.start()] for match in re.finditer("/", stored.key))
        if folders:
            found += [stored async for stored in self._walk() if stored.key in folders]
        return {names.key_name(o.key): StoredPlace(self.services, o.key, "", o) for o in found}

    async def _walk(self) -> AsyncIterator[StoredObject]:
        """All objects below this folder."""
        token = None
        while True:
            page = await self.services.metadata.store.list(self.prefix, delimiter="", token=token)
            for stored in page.objects:
                yield stored
            if (token := page.token) is None:
                return

    async def derive(
        self,
        key: str,
        make: Callable[[], Awaitable[T]],
        *,
        cost: Callable[[T], int] | None = None,
        pool: Pool | None = None,
    ) -> T:
        """`await make()`, remembered for this version of the file and `key`."""
        identity: tuple[Any, ...] = (key, self.path, self.version, self.size)
        return await self.services.derived.get(identity, make, cost=cost, pool=pool)

    async def kept(self, name: str) -> bytes | None:
        """What `keep` put on disk for this version and `name`, or None."""
        return await self.services.kept.get(self.object, name)

    async def keep(self, name: str, data: bytes) -> bool:
        """Keep `data` on disk for this version and `name`; False where nothing is kept."""
        return await self.services.kept.put(self.object, name, data)

    def extent(self, offset: int, length: int) -> Extent:
        """A span of the pinned version. Raises ValueError outside the file."""
        if not 0 <= offset <= offset + length <= self.size:
            raise ValueError(f"{offset}+{length} is outside {self.path} of {self.size} bytes")
        return Extent(self.object, offset, length)

    def report(self, message: str) -> None:
        """Tell the operator about this file."""
        self.services.reports.report(self.path, message)
