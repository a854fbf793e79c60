"""The contract with plugins: a `Place` is a stored file or folder as a plugin sees it, a `View` derives.

A view says what bytes a name stands for; storage, caching, single flight, deadlines and errors are the
core's. A view that raises spoils its own names alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from vfs.nodes import Node, Pool
from vfs.spans import Extent, Layout, StoredObject

T = TypeVar("T")
Data = bytes | memoryview


@runtime_checkable
class Place(Protocol):
    """A stored file or folder. Every method that waits has a deadline."""

    @property
    def path(self) -> str:
        """Path below the root of the mount, no leading or trailing slash; "" is the root."""

    @property
    def name(self) -> str:
        """Last component of the path."""

    @property
    def is_folder(self) -> bool:
        """True for a folder: size 0, no bytes, but children."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def version(self) -> str:
        """The pinned version of the file; "" for a folder."""

    @property
    def mtime_ns(self) -> int:
        """Nanoseconds since the epoch."""

    @property
    def object(self) -> StoredObject:
        """The pinned object; raises IsADirectory for a folder."""

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length) of the pinned version, short only at the end of the file.

        Kept in the block cache; fetches exactly what is missing. Raises Stale, StoreError.
        """

    async def fetch(self, layout: Layout) -> bytes:
        """All bytes of a layout, few ranged reads, neighbours joined. Raises Stale, StoreError."""

    def stream(self, layout: Layout, offset: int = 0, length: int | None = None) -> AsyncIterator[Data]:
        """Bytes [offset, offset + length) of a layout (None = to its end), in order, in pieces as they come.

        A piece may be given out before the body it belongs to was checked: what is made of the pieces
        counts only when the iteration has ended by itself. Raises Stale, StoreError.
        """

    async def expect(self, offset: int, length: int) -> None:
        """Begin to fetch these bytes of the file, and return: who reads some of them waits for these alone.

        For who must see the first of them to know which of the others are needed, and where.
        """

    async def sidecar(self, suffix: str) -> Place | None:
        """The stored file whose name is this one's plus `suffix`, or None."""

    async def child(self, name: str) -> Place | None:
        """A stored child of a folder, or None."""

    async def children(self) -> Mapping[str, Place]:
        """The stored children of a folder, by name: whole and at most `dir_ttl` old."""

    async def find(self, path: str) -> Place | None:
        """The stored file or folder at any path below the root of the mount, or None."""

    async def node(self, path: str) -> Node:
        """What any path below the root of the mount is, derived ones too (`games/x.mp4@5s-9s.mp4`).

        So one plugin shows what another makes, without knowing it. Raises NotFound, MediaError, StoreError.
        """

    async def unpathable(self) -> Mapping[str, Place]:
        """Below a folder: objects whose keys cannot be paths or are hidden by a folder of the same name.

        By percent-encoded key. Walks all keys twice, one LIST for a thousand each time.
        """

    async def derive(
        self,
        key: str,
        make: Callable[[], Awaitable[T]],
        *,
        cost: Callable[[T], int] | None = None,
        pool: Pool | None = None,
    ) -> T:
        """`await make()`, remembered for this version of the file and `key`; concurrent callers share one.

        key: a name and the version of the code, e.g. "mp4.index.1". cost: bytes the value holds in
        memory (default: its `nbytes`, else its `len`). pool: a share of the budget that limits values like
        this one. Failures are not remembered.
        """

    async def kept(self, name: str) -> bytes | None:
        """What `keep` put on disk for this version under a name (with the version of the code), or None."""

    async def keep(self, name: str, data: bytes) -> bool:
        """Keep something small that took long to make beyond this mount; False where nothing is kept."""

    def extent(self, offset: int, length: int) -> Extent:
        """A span of the pinned version. Raises ValueError outside the file."""

    def report(self, message: str) -> None:
        """Tell the operator about this file (an ignored sidecar, a damaged table): log and `explain`."""


@runtime_checkable
class SmallFiles(Protocol):
    """Small files that a plugin keeps in the source, for all who mount it: a saved question, a setting.

    Offered to hooks on a mount that may be written to. They are ordinary stored files, read as any `Place`; a
    folder `.reelfs-NAME` at the root is a good place, as it is not listed there. What is written is stored
    when the call returns, whole or not at all.
    """

    def allows(self, path: str) -> bool:
        """False outside of `write.allow`."""

    async def put(self, path: str, data: bytes) -> None:
        """Store a file, in place of what is there now. Raises ReadOnly and the like for a path that may not
        be written, Stale where another writer was faster, StoreError.
        """

    async def remove(self, path: str) -> None:
        """Remove a file. Raises NotFound, and as `put` does."""


class Sidecars(Protocol):
    """Where an indexer stores what it makes beside the files of a source, folder or bucket alike."""

    def allows(self, path: str, *, replaces: Place | None = None) -> bool:
        """False outside of `write.allow`, and for what is there already and kept by `write.protect`."""

    async def put(self, path: str, body: bytes | Path, *, replaces: Place | None = None) -> None:
        """Store a file, whole or not at all: a new one, or over that version of what is there.

        body: bytes, or the file that has them. Raises Stale where something else is there by now, ReadOnly,
        Refused, BadName and NameTooLong where it may not be, StoreError.
        """


@runtime_checkable
class Opens(Protocol):
    """A view that looks into a file before it is shown as a directory."""

    async def is_directory(self, place: Place) -> bool:
        """False for a file that only has the name of a container (`expand`): it stays an ordinary file.

        Asked when the name is looked up, not when it is listed. Raises StoreError.
        """


@runtime_checkable
class Reserves(Protocol):
    """A view with names at the root of a mount that are its own, also where a key has one of them.

    For what has to be reachable whatever is stored. A collision is reported, and what is stored stands below
    `.raw/`. (Any other name of a view yields to a stored file; of a folder that is stored under the name of a
    directory of a view, the names that are not stored are the view's.)
    """

    reserved: frozenset[str]


class View(Protocol):
    """One way of deriving names from stored files or folders."""

    name: str

    def applies(self, place: Place) -> bool:
        """By name and type only; must not block."""

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """The names to list for `place`; None = made by `resolve` when looked at.

        For a file these are listed in its companion directory `FILE@/` (and in the file itself when
        it is shown as a directory); for a folder beside its stored children.
        """

    async def resolve(self, place: Place, name: str) -> Node | None:
        """The node of any name, listed or not; None = not mine. For a file, `name` is what follows
        `NAME@` or `FILE@/` (`5s-9s.mp4`, `info.json`). Raises ReelfsError.
        """
