"""What a path may turn out to be. Immutable, no I/O, no kernel.

`Spliced` is the common case: a layout, zero copy, size known. `Bytes` is made whole when somebody looks
at it by name. A stored object is a `Spliced` of its one extent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vfs.spans import Layout

Entries = Callable[[], Awaitable["Mapping[str, Node | None]"]]
Lookup = Callable[[str], Awaitable["Node | None"]]
Attributes = Mapping[str, str]


async def _no_lookup(name: str) -> Node | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spliced:
    """A file described by a layout.

    attributes: shown as extended attributes `user.reelfs.NAME`. mtime_ns: that of the newest source.
    """

    layout: Layout
    mtime_ns: int = 0
    attributes: Attributes = field(default_factory=dict)

    @property
    def version(self) -> str:
        """Equal for equal bytes; changes whenever a source or the description does."""
        return self.layout.fingerprint()


@dataclass(frozen=True, slots=True)
class Pool:
    """A share of the memory budget: what is kept under one pool takes at most `limit` bytes of it."""

    name: str
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """A file made whole by `produce`, kept by the core under `version` (and shared by its readers).

    version: a string that names everything the bytes are a function of: the versions of the sources,
    the canonical selection, the version of the code; None = never kept, made anew at each open
    (status files). size: bytes when known without producing, else it is settled when the path is
    looked at by name, never during a listing. reads: what producing will fetch, for `explain`. pool: what
    limits the memory that nodes like it take. keep: it is small, and listed where `ls -l` wants its size: it
    is kept on disk, too, so that it is made once a version and not once a mount.
    """

    produce: Callable[[], Awaitable[bytes]]
    version: str | None
    size: int | None = None
    mtime_ns: int = 0
    reads: Layout | None = None
    pool: Pool | None = None
    keep: bool = False
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Symlink:
    """A symbolic link; target is the text of the link."""

    target: str
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbox:
    """What a directory takes from programs on a mount that can be written to. None of it reaches the store.

    receive: `await receive(name, path)` for each file that is closed; the file at `path` is gone later: what
    is to be kept is copied or linked. limit: bytes of one file. staging: where it is while written. make,
    remove: of folders, and of both. None = refused. They raise a ReelfsError for what is wrong.
    """

    staging: Path
    limit: int
    receive: Callable[[str, Path], Awaitable[None]] | None = None
    make: Callable[[str], Awaitable[None]] | None = None
    remove: Callable[[str], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """A directory: `entries()` gives the names to list (None = made on lookup), `lookup(name)` any name.

    A name in `entries()` with a node needs no `lookup`; one with None is given to `lookup`. inbox: what may
    be dropped into it. ttl: seconds for which names in it may be kept, None = as those beside it.
    """

    entries: Entries
    lookup: Lookup = _no_lookup
    mtime_ns: int = 0
    inbox: Inbox | None = None
    ttl: float | None = None


Node = Directory | Spliced | Bytes | Symlink
