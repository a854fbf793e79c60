"""The FUSE requests that write. Translation only, as `vfs.fuse`: what they mean is `vfs.write.drive`'s."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

from vfs.errors import (
    AlreadyThere,
    BadName,
    NameTooLong,
    NotFound,
    Stale,
)
from vfs.fuse_entries import Entries, WrittenFile, disarm, stored_in
from vfs.fuse_guard import answered, asker, inner, killable, opener
from vfs.inodes import Inode
from vfs.names import NAME_MAX
from vfs.nodes import Directory
from vfs.write.attributes import Attributes
from vfs.write.pending import Entry, Kind

if TYPE_CHECKING:
    from pyfuse3 import EntryAttributes, FileInfo, RequestContext


class WritableAdapter(Entries):
    """The handlers of a mount that can be written to."""

    # -- files ------------------------------------------------------------------------------------------

    @answered
    @killable(asker)
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """A new file, open; where somebody else was faster, and may be, that one."""
        try:
            inode, entry = await self._make(parent, name, mode, ctx)
        except AlreadyThere:
            if flags & os.O_EXCL:
                raise
            try:
                found = await self._tree.lookup(self.inodes[parent].found, _name(name))
            except NotFound:
                found = None
            if found is None:  # in another spelling
                raise
            inode = self.inodes.remember(found)
            async with self.answering(inode):
                return await self._open(inode, flags, ctx), self._attributes(inode)
        entry.opened += 1
        inode.opened += 1
        opened = WrittenFile(inode, ctx.pid, entry=entry, writing=True, by_root=ctx.uid == 0)
        handle = self._handle(self.files, opened)
        return pyfuse3.FileInfo(fh=handle, keep_cache=True), self._attributes(inode)

    async def _make(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> tuple[Inode, Entry]:
        folder = self._folder(parent)
        attributes = self._as_created(mode, ctx)
        entry = await self._drive.create(folder, _name(name), attributes)
        inode = self.inodes.remember(self._tree.at(entry.key, entry.object()))
        self._bind(inode, entry)
        return inode, entry

    def _as_created(self, mode: int, ctx: RequestContext) -> Attributes:
        """What a new file has that others have not by themselves."""
        return Attributes(
            mode=stat.S_IMODE(mode) if stat.S_IMODE(mode) != 0o644 & ~self._look.umask else None,
            uid=ctx.uid if ctx.uid != self._look.uid else None,
            gid=ctx.gid if ctx.gid != self._look.gid else None,
        )

    @answered
    @killable(asker)
    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """A regular file; devices, pipes and sockets cannot be kept in a bucket."""
        if not stat.S_ISREG(mode):
            raise pyfuse3.FUSEError(errno.EPERM)
        inode, entry = await self._make(parent, name, mode, ctx)
        async with self.answering(inode):
            async with self._closed_after_errors(entry):
                await self._drive.files.flush(entry)
            await self._drive.close(entry)
        return self._attributes(inode)

    @answered
    @killable(asker)
    async def open(self, number: int, flags: int, ctx: RequestContext) -> FileInfo:
        """For reading as ever, but of a file that is pending what it is now; for writing its entry."""
        return await self._open(self.inodes[number], flags, ctx)

    async def _open(self, inode: Inode, flags: int, ctx: RequestContext) -> FileInfo:
        writing = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        entry = self._entry(inode)
        if entry is not None and entry.settled is not None and not self._is_kept(inode, entry):
            self._unbind(entry)
            entry = None
        if not writing and entry is None:
            if (read := stored_in(inode.found)) is not None:
                self._drive.twins.note(read)
            return await inner(super().open)(inode.number, flags, ctx)
        if writing:
            stored = self._file(inode)
            if await self._drive.metadata.is_outlived(stored):
                raise Stale(f"{stored.key} belongs to another version of its database")
            if entry is not None:
                self._drive.check_writable(entry)
                entry.writers += 1
            else:
                await self._tree.refresh(inode.found)
                entry = await self._drive.open(stored)
            self._bind(inode, entry)
        assert entry is not None
        if flags & os.O_TRUNC:
            async with self._closed_after_errors(entry):
                await self._drive.files.truncate(entry, 0)
            self._renew(entry)
            if ctx.uid != 0:
                disarm(entry)
        opened = WrittenFile(inode, ctx.pid, entry=entry, writing=writing, by_root=ctx.uid == 0)
        entry.opened += 1
        inode.opened += 1
        return pyfuse3.FileInfo(fh=self._handle(self.files, opened), keep_cache=True)

    @asynccontextmanager
    async def _closed_after_errors(self, entry: Entry) -> AsyncIterator[None]:
        """Within it an entry has a writer whom nobody closes if this fails: it would never be sent."""
        try:
            yield
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._drive.close(entry)
            raise

    def _is_kept(self, inode: Inode, entry: Entry) -> bool:
        """Whether what was sent is still what the store has there, and still staged."""
        stored = stored_in(inode.found)
        return entry.content is not None and stored is not None and entry.stored == stored

    @answered
    @killable(opener)
    async def read(self, handle: int, offset: int, length: int) -> Any:
        """Of a file that is pending, its bytes as they are now."""
        opened = self._opened(self.files, handle)
        entry = opened.entry if isinstance(opened, WrittenFile) else self._entries.get(opened.inode.number)
        if entry is None or (opened.reading is not None and entry.content is None):
            return await inner(super().read)(handle, offset, length)
        data = await self._drive.files.read(entry, offset, length)
        self.status.count("fuse_bytes_read", by=len(data))
        return data

    @answered
    async def write(self, handle: int, offset: int, data: bytes) -> int:
        """All of it, or an error."""
        opened = self._opened(self.files, handle)
        if not isinstance(opened, WrittenFile) or opened.entry is None or not opened.writing:
            raise pyfuse3.FUSEError(errno.EBADF)
        was_pending = opened.entry.live is not None
        await self._drive.files.write(opened.entry, offset, data)
        if not was_pending:
            self._renew(opened.entry)
        if not opened.by_root:
            disarm(opened.entry)
        self.status.count("fuse_bytes_written", by=len(data))
        return len(data)

    @answered
    async def flush(self, handle: int) -> None:
        """close(2): what was written is in the journal."""
        opened = self.files.get(handle)
        if isinstance(opened, WrittenFile) and opened.writing and opened.entry is not None:
            await self._drive.files.flush(opened.entry)

    @answered
    async def fsync(self, handle: int, datasync: bool) -> None:
        """What was written is in the store, or in the journal where the settings say so; Stale, once for each
        handle, where it lost a race: it is kept, but not under the name that was opened.
        """
        opened = self.files.get(handle)
        if not isinstance(opened, WrittenFile) or opened.entry is None:
            return
        entry = opened.entry
        await self._session.fsync(entry)
        if opened.told < len(entry.races):
            opened.told = len(entry.races)
            raise entry.races[-1]

    @answered
    async def fsyncdir(self, handle: int, datasync: bool) -> None:
        """Names are in the journal, whatever happens to the machine."""
        await self._session.sync_names()

    @answered
    async def release(self, handle: int) -> None:
        """The last use of an open file has ended."""
        opened = self.files.get(handle)
        entry = opened.entry if isinstance(opened, WrittenFile) else None
        if opened is not None and entry is None:
            entry = self._entries.get(opened.inode.number) if opened.reading is not None else None
            if entry is not None and entry.key:
                entry = None  # counted for a file without a name alone
        await inner(super().release)(handle)
        if entry is None or opened is None:
            return
        entry.opened -= 1
        if isinstance(opened, WrittenFile) and opened.writing:
            await self._drive.close(entry)
        else:
            self._drive.tidy(entry)
        if entry.settled is not None and not entry.opened:
            self._unbind(entry)

    # -- names ------------------------------------------------------------------------------------------

    @answered
    @killable(asker)
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """A new folder."""
        folder, text = self._folder(parent), _name(name)
        attributes = self._as_created(mode, ctx)
        attributes = replace(attributes, mode=stat.S_IMODE(mode) if stat.S_IMODE(mode) != 0o755 else None)
        await self._drive.mkdir(folder, text, attributes)
        found = await self._tree.lookup(self.inodes[parent].found, text)
        return self._attributes(self.inodes.remember(found))

    @answered
    @killable(asker)
    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        """A symbolic link."""
        attributes = replace(self._as_created(0o644, ctx), mode=None)
        entry = await self._drive.symlink(self._folder(parent), _name(name), os.fsdecode(target), attributes)
        inode = self.inodes.remember(self._tree.at(entry.key, entry.object()))
        self._bind(inode, entry)
        return self._attributes(inode)

    @answered
    async def link(self, number: int, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """A key has one name."""
        raise pyfuse3.FUSEError(errno.EPERM)

    @answered
    @killable(asker)
    async def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        """Remove a file or link."""
        folder, text = self._folder(parent), _name(name)
        inode = await self._inode_at(parent, text)
        entry = await self._drive.unlink(folder, text, opened=self._readers(inode))
        if inode is not None and entry is not None and not entry.key and (entry.opened or entry.writers):
            self._bind(inode, entry)

    def _readers(self, inode: Inode | None) -> int:
        """Handles open on an inode that no entry counts."""
        if inode is None or self._entry(inode) is not None:
            return 0
        return inode.opened

    @answered
    @killable(asker)
    async def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an empty folder; or a stored file that is shown as one, which has no other way to go."""
        folder, text = self._folder(parent), _name(name)
        inode = await self._inode_at(parent, text)
        if inode is not None and inode.found.attributes.get("source") == folder + text:
            await self._drive.unlink(folder, text)
        else:
            await self._drive.rmdir(folder, text)

    @answered
    @killable(asker)
    async def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """Move a file, link or folder."""
        old, new = _name(name), _name(new_name)
        folder, new_folder = self._folder(parent), self._folder(new_parent)
        moved, over = await self._inode_at(parent, old), await self._inode_at(new_parent, new)
        replaced = await self._drive.rename(
            folder,
            old,
            new_folder,
            new,
            exclusive=bool(flags & pyfuse3.RENAME_NOREPLACE),
            exchange=bool(flags & pyfuse3.RENAME_EXCHANGE),
            opened=self._readers(over),
        )
        if over is not None and replaced is not None and (replaced.opened or replaced.writers):
            self._bind(over, replaced)
        for inode, key in ((moved, new_folder + new), (over, folder + old)):
            if inode is not None and (inode is moved or flags & pyfuse3.RENAME_EXCHANGE):
                self._moved(inode, key)

    async def _inode_at(self, parent: int, name: str) -> Inode | None:
        """The inode of a name, if the kernel knows it."""
        try:
            found = await self._tree.lookup(self.inodes[parent].found, name)
        except NotFound:
            return None
        return self.inodes.get(self.inodes.number(found))

    def _moved(self, inode: Inode, key: str) -> None:
        """An inode has another name, and so has all that is below it."""
        before = inode.found.path
        if not isinstance(inode.found.node, Directory):
            entry = self._drive.pending.active(key)
            if entry is not None:
                self._bind(inode, entry)
                self._renew(entry)
            return
        if "source" in inode.found.attributes:  # a container: a file again until it is in the store
            self._ask_again(key)
            return
        self.inodes.adopt(inode.number, self._tree.folder_at(key))
        for other in self.inodes.known():
            if not other.found.path.startswith(before + "/"):
                continue
            path = key + other.found.path[len(before) :]
            if isinstance(other.found.node, Directory):
                if other.found.place is not None and other.found.place.is_folder:
                    self.inodes.adopt(other.number, self._tree.folder_at(path))
            elif (entry := self._drive.pending.active(path)) is not None and entry.kind is not Kind.GONE:
                self._bind(other, entry)
                self._renew(entry)


def _name(name: bytes) -> str:
    if len(name) > NAME_MAX:
        raise NameTooLong(f"a name of {len(name)} bytes")
    if b"/" in name or b"\0" in name:
        raise BadName("a name with a slash")
    return os.fsdecode(name)
