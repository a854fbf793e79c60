"""The FUSE requests that write. Translation only, as `vfs.fuse`: what they mean is `vfs.write.drive`'s.

An inode keeps its number while its file is written to and moved: the kernel's pages of it are then the truth,
since every change went through them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

from vfs.errors import (
    AlreadyThere,
    BadName,
    IsADirectory,
    NameTooLong,
    NotFound,
    ReadOnly,
    Stale,
    Unsupported,
)
from vfs.found import Found
from vfs.fuse import NAME_MAX, XATTR_PREFIX, Adapter, Look, OpenFile, OpensLayouts
from vfs.fuse_guard import answered, asker, inner, killable, opener
from vfs.fuse_loop import Callers
from vfs.inodes import Inode, written_identity
from vfs.nodes import Directory, Symlink
from vfs.spans import StoredObject
from vfs.telemetry import Status
from vfs.tree import Tree
from vfs.write.attributes import Attributes
from vfs.write.pending import Entry, Kind, StagedObject
from vfs.write.session import WriteSession

if TYPE_CHECKING:
    from pyfuse3 import EntryAttributes, FileInfo, RequestContext, SetattrFields, StatvfsData

_USER = "user."
#: Attributes of a file that is pending change through the kernel alone, or with a conflict.
PENDING_SECONDS = 10.0
#: Attributes of a stored file that nobody asked the store for may be learnt at any time.
UNKNOWN_SECONDS = 1.0
#: What programs are told to read and write at a time (`st_blksize`). With the 4 KiB that FUSE says by itself
#: cp writes 128 KiB at a time, each in two requests. Larger ones than this fall out of the CPU's cache.
BLOCK = 256 << 10
#: A close or fsync of a large file takes the disk, or the store, its time.
FSYNC_PATIENCE = 2.0


@dataclass(slots=True, eq=False)
class WrittenFile(OpenFile):
    """One open(2) of a file that is pending or may become so. told: of how many lost races."""

    entry: Entry | None = None
    writing: bool = False
    told: int = 0

    def __post_init__(self) -> None:
        if self.entry is not None:
            self.told = len(self.entry.races)


class WritableAdapter(Adapter):
    """The handlers of a mount that can be written to."""

    def __init__(
        self,
        tree: Tree,
        reader: OpensLayouts,
        root: Found,
        look: Look,
        status: Status,
        callers: Callers,
        session: WriteSession,
    ) -> None:
        super().__init__(tree, reader, root, look, status, callers)
        self._session = session
        self._drive = session.drive
        self._entries: dict[int, Entry] = {}
        self._numbers: dict[int, int] = {}
        session.settled = self._settled
        session.drive.changed_behind = self.invalidate
        session.drive.taken = self._taken

    # -- inodes and entries ------------------------------------------------------------------------------

    def _entry(self, inode: Inode) -> Entry | None:
        """What is pending, or open for writing, of a file."""
        entry = self._entries.get(inode.number)
        if entry is not None:
            return entry
        stored = _stored(inode.found)
        return stored.entry if isinstance(stored, StagedObject) else None

    def _bind(self, inode: Inode, entry: Entry) -> None:
        """This inode is this file, whatever becomes of its name."""
        self._entries[inode.number] = entry
        self._numbers[entry.ident] = inode.number
        self.inodes.alias(inode.number, written_identity(entry.ident))

    def _renew(self, entry: Entry) -> None:
        """The inode of an entry, known by what the entry is now."""
        number = self._numbers.get(entry.ident)
        if number is not None and entry.key and not self._is_container(entry):
            self.inodes.adopt(number, self._tree.at(entry.key, entry.object()))

    def _is_container(self, entry: Entry) -> bool:
        """A file that is shown as a folder, now that it is whole and in the store."""
        if entry.kind is not Kind.FILE or entry.settled is None or entry.stored is None:
            return False
        return isinstance(self._tree.at(entry.key, entry.stored).node, Directory)

    def _ask_again(self, key: str) -> None:
        """Have the kernel forget a name: what is there is of another kind than what it knows."""
        folder, _, name = key.rpartition("/")
        parent = self.inodes.number(self._tree.folder_at(folder))
        pyfuse3.invalidate_entry_async(parent, os.fsencode(name), ignore_enoent=True)

    def _settled(self, entry: Entry) -> None:
        """The store has it: its inode is from now on known by the store's version."""
        self._renew(entry)
        if self._is_container(entry):
            self._ask_again(entry.key)
        number = self._numbers.get(entry.ident)
        if number is not None and not entry.opened:
            self._unbind(entry)

    def _taken(self, entry: Entry, stored: StoredObject) -> None:
        """A stored file is pending, though no request came for it: its inode stays what it was."""
        inode = self.inodes.get(self.inodes.number(self._tree.at(entry.key, stored)))
        if inode is not None:
            self._bind(inode, entry)
            self._renew(entry)

    def _unbind(self, entry: Entry) -> None:
        number = self._numbers.pop(entry.ident, None)
        if number is not None and self._entries.get(number) is entry:
            del self._entries[number]

    async def forget(self, references: Sequence[tuple[int, int]]) -> None:
        """The kernel drops references. Must not raise."""
        await super().forget(references)
        for number, _ in references:
            if self.inodes.get(number) is None and (entry := self._entries.pop(number, None)) is not None:
                self._numbers.pop(entry.ident, None)

    def _folder(self, number: int) -> str:
        """The prefix of a stored folder. Raises ReadOnly for a folder that is made."""
        found = self.inodes[number].found
        if found.place is None or not found.place.is_folder:
            raise ReadOnly(f"{found.path or '/'} is made by reelfs, nothing can be stored in it")
        return found.place.prefix

    def _file(self, inode: Inode) -> StoredObject:
        """The object of a stored file. Raises IsADirectory, ReadOnly for a file that is made."""
        if isinstance(inode.found.node, Directory):
            raise IsADirectory(f"{inode.found.path} is a directory")
        stored = _stored(inode.found)
        if stored is None:
            raise ReadOnly(f"{inode.found.path} is made by reelfs: it cannot be written to")
        return stored

    # -- attributes -------------------------------------------------------------------------------------

    def _attributes(self, inode: Inode) -> EntryAttributes:
        shown = super()._attributes(inode)
        entry, found = self._entry(inode), inode.found
        stored = _stored(found)
        if isinstance(found.node, Directory):
            if found.place is not None and found.place.is_folder:
                self._show_folder(shown, found.place.prefix)
            return shown
        if stored is None:
            return shown
        known = entry.attributes if entry is not None else self._drive.known_attributes(stored)
        if entry is None and self._drive.book.get(stored) is None:
            shown.attr_timeout = min(shown.attr_timeout, UNKNOWN_SECONDS)
        if entry is not None:
            shown.attr_timeout = PENDING_SECONDS
            if entry.kind is Kind.FILE:
                shown.st_size = entry.size
                shown.st_blocks = (entry.size + 511) // 512
            shown.st_nlink = 1 if entry.key else 0
        self._show(shown, known)
        if not isinstance(found.node, Symlink):
            mode = known.mode if known.mode is not None else 0o644 & ~self._look.umask
            if not self._drive.rules.allows(stored.key):
                mode &= ~0o222
            shown.st_mode = stat.S_IFREG | mode
            shown.st_blksize = BLOCK
        return shown

    def _show(self, shown: EntryAttributes, known: Attributes) -> None:
        if known.uid is not None:
            shown.st_uid = known.uid
        if known.gid is not None:
            shown.st_gid = known.gid
        if known.mtime_ns is not None:
            shown.st_mtime_ns = shown.st_ctime_ns = shown.st_atime_ns = known.mtime_ns
        if known.atime_ns is not None:
            shown.st_atime_ns = known.atime_ns

    def _show_folder(self, shown: EntryAttributes, prefix: str) -> None:
        known = self._drive.folder_attributes(prefix)
        self._show(shown, known)
        mode = known.mode if known.mode is not None else 0o755 & ~self._look.umask
        if not self._drive.rules.reaches(prefix):
            mode &= ~0o222
        shown.st_mode = stat.S_IFDIR | mode
        shown.st_nlink = 2
        if (touched := self._drive.touched(prefix)) > shown.st_mtime_ns:
            shown.st_mtime_ns = shown.st_ctime_ns = touched
        shown.attr_timeout = min(shown.attr_timeout, 1.0)

    @answered
    @killable(asker)
    async def setattr(
        self, number: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """truncate, chmod, chown, utimens."""
        inode = self.inodes[number]
        if isinstance(inode.found.node, Directory):
            prefix = self._folder(number)
            self._drive.rules.check(prefix, existing=False)
            known = _changed(self._drive.folder_attributes(prefix), attr, fields)
            await self._drive.change_folder(prefix, known)
            return self._attributes(inode)
        stored = self._file(inode)
        if fields.update_size:
            await self._truncate(inode, stored, fh, attr.st_size)
        if (
            fields.update_mode
            or fields.update_uid
            or fields.update_gid
            or fields.update_mtime
            or fields.update_atime
        ):
            entry = self._entry(inode)
            before = entry.attributes if entry is not None else await self._drive.attributes(stored)
            if entry is None or entry.key:
                entry = await self._drive.change(entry, stored, _changed(before, attr, fields))
                self._bind(inode, entry)
                self._renew(entry)
            else:
                entry.attributes = _changed(before, attr, fields)
        return self._attributes(inode)

    async def _truncate(self, inode: Inode, stored: StoredObject, fh: int | None, size: int) -> None:
        opened = self.files.get(fh) if fh is not None else None
        if isinstance(opened, WrittenFile) and opened.entry is not None and opened.writing:
            await self._drive.files.truncate(opened.entry, size)
            self._renew(opened.entry)
            return
        entry = self._entry(inode) or await self._opened_entry(inode, stored)
        entry.writers += 1
        try:
            await self._drive.files.truncate(entry, size)
            self._renew(entry)
            await self._drive.files.flush(entry)
        finally:
            await self._drive.close(entry)

    async def _opened_entry(self, inode: Inode, stored: StoredObject) -> Entry:
        entry = await self._drive.open(stored)
        entry.writers -= 1
        self._bind(inode, entry)
        return entry

    @answered
    async def access(self, number: int, mode: int, ctx: RequestContext) -> bool:
        """Permission bits are checked by the kernel; what can never be written says so."""
        if mode & os.W_OK:
            inode = self.inodes[number]
            if isinstance(inode.found.node, Directory):
                self._drive.rules.check(self._folder(number), existing=False)
            else:
                self._drive.rules.check(self._file(inode).key, existing=False)
        return True

    @answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """The room there is for what is written: that of the disk it is staged on."""
        data = await inner(super().statfs)(ctx)
        free, total = self._drive.files.staging.free()
        data.f_bavail = data.f_bfree = free // data.f_frsize
        data.f_blocks = total // data.f_frsize
        data.f_files = data.f_ffree = data.f_favail = 1 << 30
        return data

    # -- extended attributes ----------------------------------------------------------------------------

    async def _user_attributes(self, inode: Inode) -> Attributes | None:
        """Of a stored file; None for anything else."""
        entry, stored = self._entry(inode), _stored(inode.found)
        if entry is not None:
            return entry.attributes
        if stored is None or isinstance(inode.found.node, Directory):
            return None
        return await self._drive.attributes(stored)

    @answered
    @killable(asker)
    async def listxattr(self, number: int, ctx: RequestContext) -> list[bytes]:
        """Ours, and those that were set."""
        inode = self.inodes[number]
        names = [os.fsencode(XATTR_PREFIX + name) for name in await self._tree.xattr_names(inode.found)]
        known = await self._user_attributes(inode)
        return names + [os.fsencode(_USER + name) for name in (known.names() if known else ())]

    @answered
    @killable(asker)
    async def getxattr(self, number: int, name: bytes, ctx: RequestContext) -> bytes:
        """One attribute; ENODATA for any that is not there."""
        text = os.fsdecode(name)
        inode = self.inodes[number]
        if text.startswith(_USER) and not text.startswith(XATTR_PREFIX):
            known = await self._user_attributes(inode)
            try:
                return known.get(text.removeprefix(_USER)) if known else _no_data()
            except KeyError:
                _no_data()
        if not text.startswith(XATTR_PREFIX):
            _no_data()
        try:
            return os.fsencode(await self._tree.xattr(inode.found, text.removeprefix(XATTR_PREFIX)))
        except KeyError:
            return _no_data()

    @answered
    @killable(asker)
    async def setxattr(self, number: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """Set an attribute `user.*` of a file."""
        stored, known = await self._settable(number, name)
        changed = known.with_user(os.fsdecode(name).removeprefix(_USER), bytes(value))
        await self._set(number, stored, changed)

    @answered
    @killable(asker)
    async def removexattr(self, number: int, name: bytes, ctx: RequestContext) -> None:
        """Remove one."""
        stored, known = await self._settable(number, name)
        try:
            changed = known.without_user(os.fsdecode(name).removeprefix(_USER))
        except KeyError:
            _no_data()
        await self._set(number, stored, changed)

    async def _settable(self, number: int, name: bytes) -> tuple[StoredObject, Attributes]:
        text, inode = os.fsdecode(name), self.inodes[number]
        if text.startswith(XATTR_PREFIX):
            raise Unsupported(f"{text} is told by reelfs, it cannot be set")
        if not text.startswith(_USER) or isinstance(inode.found.node, Directory):
            raise Unsupported(f"{text}: attributes user.* of files alone can be kept")
        stored = self._file(inode)
        return stored, await self._user_attributes(inode) or Attributes()

    async def _set(self, number: int, stored: StoredObject, changed: Attributes) -> None:
        inode = self.inodes[number]
        entry = await self._drive.change(self._entry(inode), stored, changed)
        self._bind(inode, entry)
        self._renew(entry)

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
            return await self._open(inode, flags, ctx), self._attributes(inode)
        entry.opened += 1
        inode.opened += 1
        handle = self._handle(self.files, WrittenFile(inode, ctx.pid, entry=entry, writing=True))
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
            if (read := _stored(inode.found)) is not None:
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
        opened = WrittenFile(inode, ctx.pid, entry=entry, writing=writing)
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
        stored = _stored(inode.found)
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
        """Names are in the journal already."""

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


def _stored(found: Found) -> StoredObject | None:
    return found.place.stored if found.place is not None else None


def _name(name: bytes) -> str:
    if len(name) > NAME_MAX:
        raise NameTooLong(f"a name of {len(name)} bytes")
    if b"/" in name or b"\0" in name:
        raise BadName("a name with a slash")
    return os.fsdecode(name)


def _no_data() -> bytes:
    raise pyfuse3.FUSEError(errno.ENODATA)


def _changed(before: Attributes, attr: EntryAttributes, fields: SetattrFields) -> Attributes:
    """Attributes with what a setattr names."""
    after = before
    if fields.update_mode:
        after = replace(after, mode=stat.S_IMODE(attr.st_mode))
    if fields.update_uid:
        after = replace(after, uid=attr.st_uid)
    if fields.update_gid:
        after = replace(after, gid=attr.st_gid)
    if fields.update_mtime:
        after = replace(after, mtime_ns=attr.st_mtime_ns)
    if fields.update_atime and (fields.update_mtime or after.mtime_ns is not None):
        after = replace(after, atime_ns=attr.st_atime_ns if attr.st_atime_ns != after.mtime_ns else None)
    return after
