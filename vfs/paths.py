"""`ls`, `stat`, `cat` and `explain` of a path: on a mount through the kernel, else with no mount at all.

Both ways answer the same questions (`Files`), so a command is written once.
"""

from __future__ import annotations

import errno
import json
import os
import stat as modes
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from vfs.errors import ConfigError, NotFound, ReelfsError

if TYPE_CHECKING:
    from vfs.config import Settings
    from vfs.found import Found
    from vfs.runtime import Runtime

#: Bytes written to the terminal or pipe at a time.
CHUNK = 1 << 20
#: A daemon is asked this long (seconds) why a path failed, before the error is told without.
REASON_SECONDS = 2.0
XATTR_PREFIX = "user.reelfs."


@dataclass(frozen=True, slots=True)
class Entry:
    """One path; size is None while it is not settled, mtime in seconds."""

    name: str
    kind: str
    size: int | None
    mtime: float
    attributes: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class Files(Protocol):
    """The answers the commands need. Raises ReelfsError and OSError."""

    async def list(self, path: str) -> list[Entry]:
        """The entries of a directory, or the file itself, by name."""

    async def stat(self, path: str) -> Entry:
        """One path with its attributes."""

    async def explain(self, path: str) -> str:
        """What reading the path means, before anything is read."""

    def chunks(self, path: str) -> AsyncIterator[bytes | memoryview]:
        """The content of a file."""


def kind_of_mode(mode: int) -> str:
    """`folder`, `link` or `file`."""
    return "folder" if modes.S_ISDIR(mode) else "link" if modes.S_ISLNK(mode) else "file"


class MountedFiles:
    """Paths on a mount, through the kernel."""

    async def list(self, path: str) -> list[Entry]:
        """The entries of a directory, or the file itself, by name."""
        if not os.path.isdir(path):
            return [self._entry(os.fsencode(os.path.basename(path)).decode("utf-8", "surrogateescape"), path)]
        return [self._entry(name, os.path.join(path, name)) for name in sorted(os.listdir(path))]

    async def stat(self, path: str) -> Entry:
        """One path with its attributes."""
        entry = self._entry(os.path.basename(path), path)
        names = (n.removeprefix(XATTR_PREFIX) for n in os.listxattr(path) if n.startswith(XATTR_PREFIX))
        attributes = {name: self._attribute(path, name) for name in names}
        return Entry(entry.name, entry.kind, entry.size, entry.mtime, attributes)

    async def explain(self, path: str) -> str:
        """The attribute `user.reelfs.explain`."""
        return self._attribute(path, "explain")

    async def chunks(self, path: str) -> AsyncIterator[bytes | memoryview]:
        """The content of a file."""
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def _entry(self, name: str, path: str) -> Entry:
        status = os.lstat(path)
        return Entry(name, kind_of_mode(status.st_mode), status.st_size, status.st_mtime)

    def _attribute(self, path: str, name: str) -> str:
        return os.getxattr(path, XATTR_PREFIX + name).decode("utf-8", "surrogateescape")


class TreeFiles:
    """Paths of a source that is not mounted, straight through the tree."""

    def __init__(self, runtime: Runtime) -> None:
        self._tree = runtime.tree
        self._reader = runtime.reader

    async def list(self, path: str) -> list[Entry]:
        """The entries of a directory, or the file itself, by name."""
        from vfs.nodes import Directory

        found = await self._tree.resolve(path)
        if not isinstance(found.node, Directory):
            return [self._entry(found.name, found)]
        entries = await self._tree.entries(found)
        return [self._entry(name, entries[name]) for name in sorted(entries)]

    async def stat(self, path: str) -> Entry:
        """One path with its attributes; a size that is not settled is settled, as the kernel's stat does."""
        found = await self._tree.resolve(path)
        entry = self._entry(found.name or "/", found)
        size = len(await self._tree.settle(found)) if entry.size is None else entry.size
        names = await self._tree.xattr_names(found)
        attributes = {name: await self._tree.xattr(found, name) for name in names}
        return Entry(entry.name, entry.kind, size, entry.mtime, attributes)

    async def explain(self, path: str) -> str:
        """The same text the attribute has."""
        return await self._tree.xattr(await self._tree.resolve(path), "explain")

    async def chunks(self, path: str) -> AsyncIterator[bytes | memoryview]:
        """The content of a file."""
        from vfs.errors import IsADirectory
        from vfs.nodes import Bytes, Spliced

        found = await self._tree.resolve(path)
        if isinstance(found.node, Bytes):
            yield await self._tree.settle(found)
            return
        if not isinstance(found.node, Spliced):
            raise IsADirectory(f"{path or '/'} is not a file")
        handle = self._reader.open(found.node.layout)
        try:
            for offset in range(0, found.node.layout.size, CHUNK):
                yield await handle.read(offset, CHUNK)
        finally:
            handle.close()

    def _entry(self, name: str, found: Found) -> Entry:
        from vfs.nodes import Directory, Symlink

        kind = (
            "folder"
            if isinstance(found.node, Directory)
            else "link"
            if isinstance(found.node, Symlink)
            else "file"
        )
        return Entry(name, kind, found.size, found.mtime_ns / 1e9)


@asynccontextmanager
async def open_files(settings: Settings | None) -> AsyncIterator[Files]:
    """The files of a source, or (None) of mounted paths."""
    if settings is None:
        yield MountedFiles()
        return
    from vfs.runtime import open_runtime

    async with open_runtime(settings) as runtime:
        yield TreeFiles(runtime)


def target(first: str, second: str | None) -> tuple[str | None, str]:
    """What `PATH` or `SOURCE PATH` means: (source, path), the source None for a path on a mount.

    Raises ConfigError for a single path that is on no mount of ours.
    """
    from vfs.mounts import mount_of

    if second is not None:
        return first, second.strip("/")
    if "://" in first:
        return first, ""
    if mount_of(first) is None:
        raise ConfigError(
            f"{first} is not on a reelfs mount; to read a folder or bucket that is not mounted, "
            f"name both: `SOURCE PATH` (`/` is the root)"
        )
    return None, first


def failure_notes(path: str) -> Iterator[str]:
    """Why a path of a mount failed, as far as the daemon knows: the kernel hands on an errno only."""
    from vfs.explain import related_notes
    from vfs.mounts import absolute, mount_of

    mounted = mount_of(path)
    if mounted is None:
        return
    yield from _reason(path)
    try:
        with open(os.path.join(mounted.path, ".reelfs", "status.json"), "rb") as file:
            notes = json.load(file)["notes"]
    except (OSError, ValueError, KeyError):
        return
    yield from related_notes(notes, os.path.relpath(absolute(path), mounted.path))


def _reason(path: str) -> Iterator[str]:
    """What the daemon says when it is asked for the path once more; nothing where it cannot be asked."""
    from vfs.controlclient import Client, the_mount

    try:
        mounted, below = the_mount(path)
        with Client(mounted) as client:
            client.ask("why", {"path": below}, seconds=REASON_SECONDS)
    except NotFound as error:
        if not str(error).startswith("no such file"):
            yield str(error)
    except (ReelfsError, OSError):
        return  # told by the notes, or by the error itself


def os_error_text(error: OSError, path: str) -> str:
    """One line for an error of the kernel, with the mend where there is one."""
    from vfs.mounts import mount_of

    if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        mounted = mount_of(path)
        where = mounted.path if mounted else path
        return f"{where} is a dead mount, its daemon is gone: run `reelfs umount {where}` and mount again"
    if error.errno == errno.ESTALE:
        return f"{path} was replaced in the store while it was read: open it again"
    return f"{path}: {error.strerror or error}"
