"""What the kernel knows of a mount that is written to: inodes of what is pending, and all attributes.

An inode keeps its number while its file is written to and moved: the kernel's pages of it are then the truth,
since every change went through them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyfuse3

from vfs.errors import (
    IsADirectory,
    ReadOnly,
    Unsupported,
)
from vfs.found import Found
from vfs.fuse import XATTR_PREFIX, Adapter, Look, OpenFile, OpensLayouts
from vfs.fuse_guard import answered, asker, inner, killable
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
    from pyfuse3 import EntryAttributes, RequestContext, SetattrFields, StatvfsData

_USER = "user."
_PRIVILEGES = stat.S_ISUID | stat.S_ISGID
#: Attributes of a file that is pending change through the kernel alone, or with a conflict.
PENDING_SECONDS = 10.0
#: Attributes of a stored file that nobody asked the store for may be learnt at any time.
UNKNOWN_SECONDS = 1.0
#: What programs are told to read and write at a time (`st_blksize`). With the 4 KiB that FUSE says by itself
#: cp writes 128 KiB at a time, each in two requests. Larger ones than this fall out of the CPU's cache.
BLOCK = 256 << 10


@dataclass(slots=True, eq=False)
class WrittenFile(OpenFile):
    """One open(2) of a file that is pending or may become so. told: of how many lost races.

    by_root: what it writes leaves set-user-ID bits where they are, as on other file systems.
    """

    entry: Entry | None = None
    writing: bool = False
    by_root: bool = False
    told: int = 0

    def __post_init__(self) -> None:
        if self.entry is not None:
            self.told = len(self.entry.races)


class Entries(Adapter):
    """Inodes and attributes of a mount that can be written to."""

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
        stored = stored_in(inode.found)
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
        stored = stored_in(inode.found)
        if stored is None:
            raise ReadOnly(f"{inode.found.path} is made by reelfs: it cannot be written to")
        return stored

    # -- attributes -------------------------------------------------------------------------------------

    def _attributes(self, inode: Inode) -> EntryAttributes:
        shown = super()._attributes(inode)
        entry, found = self._entry(inode), inode.found
        stored = stored_in(found)
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
        if (known.mode or 0) & _PRIVILEGES:
            shown.attr_timeout = 0.0  # a write may take them away
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
            if ctx.uid != 0 and (truncated := self._entry(inode)) is not None:
                disarm(truncated)
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
        entry = self._entry(inode)
        if entry is not None:
            self._drive.check_writable(entry)
        else:
            entry = await self._opened_entry(inode, stored)
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
        entry, stored = self._entry(inode), stored_in(inode.found)
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


def stored_in(found: Found) -> StoredObject | None:
    """The object of a stored file; None for what is made."""
    return found.place.stored if found.place is not None else None


def _no_data() -> bytes:
    raise pyfuse3.FUSEError(errno.ENODATA)


def disarm(entry: Entry) -> None:
    """It was written to: no program is run for its owner any more."""
    mode = entry.attributes.mode
    if mode is not None and mode & _PRIVILEGES:
        entry.attributes = replace(entry.attributes, mode=_disarmed(mode))


def _disarmed(mode: int) -> int:
    return mode & ~(_PRIVILEGES if mode & stat.S_IXGRP else stat.S_ISUID)


def _changed(before: Attributes, attr: EntryAttributes, fields: SetattrFields) -> Attributes:
    """Attributes with what a setattr names."""
    after = before
    if fields.update_mode:
        after = replace(after, mode=stat.S_IMODE(attr.st_mode))
    if fields.update_uid:
        after = replace(after, uid=attr.st_uid)
    if fields.update_gid:
        after = replace(after, gid=attr.st_gid)
    if (fields.update_uid or fields.update_gid) and after.mode is not None:
        after = replace(after, mode=_disarmed(after.mode))
    if fields.update_mtime:
        after = replace(after, mtime_ns=attr.st_mtime_ns)
    if fields.update_atime and (fields.update_mtime or after.mtime_ns is not None):
        after = replace(after, atime_ns=attr.st_atime_ns if attr.st_atime_ns != after.mtime_ns else None)
    return after
