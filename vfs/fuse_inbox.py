"""Requests that write into folders views make: what is dropped there goes to the view, never to the store.

Translation only: a file is held on this machine while it is written, and handed over when it is closed. Only
mounts that can be written to have it; on others the kernel refuses before anybody is asked.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyfuse3
import trio

from vfs.errors import NoRoom, ReadOnly, TooBig
from vfs.found import Found
from vfs.fuse import OpenFile
from vfs.fuse_guard import answered, asker, inner, killable
from vfs.fuse_write import WritableAdapter
from vfs.inodes import Inode
from vfs.nodes import Bytes, Directory, Inbox

if TYPE_CHECKING:
    from pyfuse3 import EntryAttributes, FileInfo, RequestContext, SetattrFields


@dataclass(slots=True, eq=False)
class Dropped(OpenFile):
    """A file that is being written into a made folder. fresh: there is something nobody was given yet.

    broken: a write failed. What there is of it is given to nobody.
    """

    inbox: Inbox = field(kw_only=True)
    name: str = field(kw_only=True)
    file: IO[bytes] = field(kw_only=True)
    size: int = 0
    fresh: bool = True
    broken: bool = False
    lock: trio.Lock = field(default_factory=trio.Lock)


@contextmanager
def _room(path: Path) -> Iterator[None]:
    """Around what takes room on the disk of `path`. Raises NoRoom."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoom(f"no room where files are dropped, {path}: {error.strerror}") from None
        raise


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    """A disk that is nearly full takes a part. Raises OSError for the rest."""
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


async def _empty() -> bytes:
    return b""


class InboxAdapter(WritableAdapter):
    """A mount that can be written to, made folders that take files among it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._dropping: dict[int, Dropped] = {}

    def _inbox(self, found: Found) -> Inbox | None:
        return found.node.inbox if isinstance(found.node, Directory) else None

    async def _inbox_of(self, inode: Inode) -> Inbox | None:
        """Of the folder that a made file lies in."""
        if not isinstance(inode.found.node, Bytes):
            return None
        folder = await self._tree.resolve(inode.found.path.rpartition("/")[0])
        return self._inbox(folder)

    def _attributes(self, inode: Inode) -> EntryAttributes:
        shown = super()._attributes(inode)
        if (dropped := self._dropping.get(inode.number)) is not None:
            shown.st_size = dropped.size
            shown.st_mode = stat.S_IFREG | (0o644 & ~self._look.umask)
            shown.attr_timeout = shown.entry_timeout = 0.0
        elif self._inbox(inode.found) is not None:
            shown.st_mode = stat.S_IFDIR | (0o755 & ~self._look.umask)
        return shown

    @answered
    @killable(asker)
    async def getattr(self, number: int, ctx: RequestContext) -> EntryAttributes:
        """Attributes; of a file that is being dropped, what it is by now."""
        if number in self._dropping:
            return self._attributes(self.inodes[number])
        return await inner(super().getattr)(number, ctx)

    @answered
    async def access(self, number: int, mode: int, ctx: RequestContext) -> bool:
        """A folder that takes files may be written to."""
        if number in self._dropping or self._inbox(self.inodes[number].found) is not None:
            return True
        return await inner(super().access)(number, mode, ctx)

    @answered
    @killable(asker)
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """A new file, open."""
        found = self.inodes[parent].found
        inbox = self._inbox(found)
        if inbox is None:
            return await inner(super().create)(parent, name, mode, flags, ctx)
        text = os.fsdecode(name)
        inode = self.inodes.remember(Found(f"{found.path}/{text}", Bytes(produce=_empty, version=None)))
        async with self.answering(inode):
            return self._begin(inode, inbox, text, ctx.pid), self._attributes(inode)

    def _begin(self, inode: Inode, inbox: Inbox, name: str, pid: int) -> FileInfo:
        if inbox.receive is None:
            raise ReadOnly(f"{inode.found.path}: no files are taken here")
        with _room(inbox.staging):
            inbox.staging.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = tempfile.NamedTemporaryFile(dir=inbox.staging, prefix=".part-")  # noqa: SIM115
        dropped = Dropped(inode, pid, inbox=inbox, name=name, file=file)
        inode.opened += 1
        self._dropping[inode.number] = dropped
        return pyfuse3.FileInfo(fh=self._handle(self.files, dropped), direct_io=True)

    @answered
    @killable(asker)
    async def open(self, number: int, flags: int, ctx: RequestContext) -> FileInfo:
        """For writing: a file that was dropped is replaced as a whole."""
        inode = self.inodes[number]
        if flags & os.O_ACCMODE != os.O_RDONLY and (inbox := await self._inbox_of(inode)) is not None:
            return self._begin(inode, inbox, inode.found.name, ctx.pid)
        return await inner(super().open)(number, flags, ctx)

    @answered
    async def write(self, handle: int, offset: int, data: bytes) -> int:
        """All of it, or an error. Raises TooBig."""
        dropped = self.files.get(handle)
        if not isinstance(dropped, Dropped):
            return await inner(super().write)(handle, offset, data)
        try:
            if offset + len(data) > dropped.inbox.limit:
                raise TooBig(f"{dropped.name}: at most {dropped.inbox.limit} bytes are taken here")
            async with dropped.lock:
                with _room(dropped.inbox.staging):
                    await trio.to_thread.run_sync(_write_all, dropped.file.fileno(), data, offset)
                dropped.size, dropped.fresh = max(dropped.size, offset + len(data)), True
        except BaseException:
            dropped.broken = True
            raise
        return len(data)

    @answered
    @killable(asker)
    async def setattr(
        self, number: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """The length of a file that is being dropped; times and permissions of one are not kept."""
        dropped = self._dropping.get(number)
        if dropped is None:
            if not fields.update_size and await self._inbox_of(self.inodes[number]) is not None:
                return self._attributes(self.inodes[number])
            return await inner(super().setattr)(number, attr, fields, fh, ctx)
        if fields.update_size:
            if attr.st_size > dropped.inbox.limit:
                raise TooBig(f"{dropped.name}: at most {dropped.inbox.limit} bytes are taken here")
            os.ftruncate(dropped.file.fileno(), attr.st_size)
            dropped.size, dropped.fresh = attr.st_size, True
        return self._attributes(self.inodes[number])

    @answered
    async def flush(self, handle: int) -> None:
        """close(2): what there is is handed over, and what is wrong with it said."""
        dropped = self.files.get(handle)
        if not isinstance(dropped, Dropped):
            await inner(super().flush)(handle)
        elif dropped.size:  # a shell closes a copy of the handle before anything was written
            await self._hand_over(dropped)

    async def _hand_over(self, dropped: Dropped) -> None:
        receive = dropped.inbox.receive
        async with dropped.lock:
            if dropped.fresh and not dropped.broken and receive is not None:
                dropped.fresh = False
                with _room(dropped.inbox.staging):
                    await receive(dropped.name, Path(dropped.file.name))

    @answered
    async def release(self, handle: int) -> None:
        """The last use of an open file has ended."""
        dropped = self.files.get(handle)
        if not isinstance(dropped, Dropped):
            await inner(super().release)(handle)
            return
        del self.files[handle]
        dropped.inode.opened -= 1
        dropped.inode.snapshot = None
        if self._dropping.get(dropped.inode.number) is dropped:
            del self._dropping[dropped.inode.number]
        try:
            await self._hand_over(dropped)
        finally:
            dropped.file.close()

    @answered
    @killable(asker)
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """A new folder."""
        found = self.inodes[parent].found
        inbox = self._inbox(found)
        if inbox is None:
            return await inner(super().mkdir)(parent, name, mode, ctx)
        if inbox.make is None:
            raise ReadOnly(f"{found.path}: no folders are made here")
        await inbox.make(os.fsdecode(name))
        return self._attributes(self.inodes.remember(await self._tree.lookup(found, os.fsdecode(name))))

    @answered
    @killable(asker)
    async def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        """Remove a file."""
        if not await self._removed(parent, name):
            await inner(super().unlink)(parent, name, ctx)

    @answered
    @killable(asker)
    async def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        """Remove a folder."""
        if not await self._removed(parent, name):
            await inner(super().rmdir)(parent, name, ctx)

    async def _removed(self, parent: int, name: bytes) -> bool:
        """Whether the folder is a made one that took the request. Raises ReadOnly, NotFound."""
        found = self.inodes[parent].found
        inbox = self._inbox(found)
        if inbox is None:
            return False
        if inbox.remove is None:
            raise ReadOnly(f"{found.path}: nothing is removed here")
        await inbox.remove(os.fsdecode(name))
        return True
