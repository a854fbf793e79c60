"""The tree as a file system of the kernel: protocol adapter only, no meaning of its own.

Every handler answers with attributes, bytes or an errno; whatever else goes wrong is logged and answered
EIO (`vfs.fuse_guard`), since an exception that reaches pyfuse3 ends the whole mount.

What the kernel may keep: names for `Found.ttl`; attributes and pages of a file with a version for as long as
it likes (another version is another inode); of a volatile file nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pyfuse3
import trio

from vfs.errors import BadBody, IsADirectory, NameTooLong, NotADirectory, NotFound, ReelfsError, Stale
from vfs.found import Found
from vfs.fuse_guard import Refusals, answered, asker, killable, opener
from vfs.fuse_loop import Callers
from vfs.inodes import Inode, Inodes, Snapshot
from vfs.names import NAME_MAX  # FUSE itself would let 1,024 bytes through
from vfs.nodes import Bytes, Directory, Spliced, Symlink
from vfs.readers import ProbeHandle, Readers
from vfs.spans import Layout
from vfs.storage.base import Corrupt
from vfs.telemetry import Status
from vfs.tree import Tree

if TYPE_CHECKING:
    from pyfuse3 import EntryAttributes, FileInfo, ReaddirToken, RequestContext, StatvfsData

T = TypeVar("T")

XATTR_PREFIX = "user.reelfs."
#: Attributes of one version never change. Not for ever, so that a mistake would not be either.
ATTRIBUTES_SECONDS = 3600.0
#: Openers of a volatile file within this time share one content, as do `stat` and the `open` after it.
VOLATILE_SECONDS = 1.0
#: A listing of a million keys is a thousand requests, one after the other.
LISTING_PATIENCE = 20.0
WRITING_FLAGS = os.O_TRUNC | os.O_CREAT | os.O_APPEND


class Handle(Protocol):
    """What the reader gives for an open layout."""

    async def read(self, offset: int, length: int, /) -> bytes | memoryview:
        """Bytes, short only at the end."""

    def close(self) -> None:
        """No more reads come."""


class OpensLayouts(Protocol):
    """The part of the reader that is used here."""

    def open(self, layout: Layout, /) -> Handle:
        """A handle with its own read-ahead."""

    async def read(self, layout: Layout, offset: int, length: int, /) -> Any:
        """Bytes of a layout, nothing read ahead."""

    def plan(self, layout: Layout, offset: int, length: int, /) -> Any:
        """What that would fetch."""


@dataclass(frozen=True, slots=True)
class Look:
    """How files look: owner, permission bits taken away, and the time shown where there is none (ns)."""

    uid: int
    gid: int
    umask: int = 0
    mtime_ns: int = 0


@dataclass(slots=True, eq=False)
class OpenFile:
    """One open(2). opener: the thread that did it. reading: of a layout; snapshot: of a volatile file."""

    inode: Inode
    opener: int
    reading: Handle | None = None
    snapshot: Snapshot | None = None


@dataclass(slots=True, eq=False)
class OpenDirectory:
    """One opendir(3): the listing as it was then, so that positions stay what they were."""

    inode: Inode
    names: Sequence[tuple[bytes, Found]]


class Adapter(Refusals):
    """The handlers of one mount. Inode and handle numbers are the kernel's; see `pyfuse3.Operations`."""

    supports_dot_lookup = False

    def __init__(
        self, tree: Tree, reader: OpensLayouts, root: Found, look: Look, status: Status, callers: Callers
    ) -> None:
        super().__init__()
        self.inodes = Inodes(root)
        self.files: dict[int, OpenFile] = {}
        self.directories: dict[int, OpenDirectory] = {}
        self.callers = callers
        self.status = status
        self._tree = tree
        self._reader = reader
        self._look = look
        self._next_handle = 1
        status.watch("open_files", lambda: len(self.files))
        self._programs, self._probe_budget = Readers(), 0

    def count_readers(self, readers: Readers, budget: int) -> None:
        """Count who reads there; crawlers get so many bytes of a file."""
        self._programs, self._probe_budget = readers, budget

    def path(self, operation: str, args: Sequence[Any]) -> str:
        """What the arguments of a handler are about, for a log line."""
        try:
            if operation == "read":
                inode = self.files[args[0]].inode
            elif operation == "readdir":
                inode = self.directories[args[0]].inode
            else:
                inode = self.inodes[args[0]]
        except (LookupError, Stale):
            return f"(number {args[0]})" if args else "/"
        name = f"/{os.fsdecode(args[1])}" if operation == "lookup" else ""
        return f"{inode.found.path}{name}" or "/"

    def opened_by(self, handle: int) -> int:
        """The thread that opened a file, 0 for a handle that is unknown."""
        opened = self.files.get(handle)
        return opened.opener if opened else 0

    def invalidate(self, path: str) -> None:
        """Have the kernel forget the names at or below a path, "" = all: it asks again for them."""
        for folder, name in self.inodes.below(path):
            pyfuse3.invalidate_entry_async(folder, os.fsencode(name), ignore_enoent=True)

    # -- names and attributes ---------------------------------------------------------------------------

    @answered
    @killable(asker)
    async def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """The inode of a name; one more reference to it."""
        if len(name) > NAME_MAX:
            raise NameTooLong(f"a name of {len(name)} bytes")
        try:
            found = await self._tree.lookup(self.inodes[parent].found, os.fsdecode(name))
        except NotFound as error:
            ttl = getattr(error, "ttl", 0.0)
            if ttl <= 0:
                raise
            return _nothing(ttl)
        return self._attributes(self.inodes.remember(found))

    @asynccontextmanager
    async def answering(self, inode: Inode) -> AsyncIterator[None]:
        """Within it a request is answered that tells the kernel of an inode, which `remember` has counted.
        After an error the kernel was not told.
        """
        try:
            yield
        except BaseException:
            await self.forget([(inode.number, 1)])
            raise

    async def forget(self, references: Sequence[tuple[int, int]]) -> None:
        """The kernel drops references to inodes. Must not raise."""
        for number, count in references:
            self.inodes.forget(number, count)

    @answered
    @killable(asker)
    async def getattr(self, number: int, ctx: RequestContext) -> EntryAttributes:
        """Attributes; a size that is not known is settled here, for it is this path that is asked about."""
        inode = self.inodes[number]
        if inode.volatile:
            if not inode.opened or inode.snapshot is None:
                await self._snapshot(inode)
        elif inode.size is None and isinstance(inode.found.node, Bytes):
            await self._content(inode)
        return self._attributes(inode)

    def _attributes(self, inode: Inode) -> EntryAttributes:
        """The kernel's record of an inode as it is known now; a size not settled is 0 and not to be kept."""
        found, node = inode.found, inode.found.node
        size = len(inode.snapshot.content) if inode.snapshot else inode.size
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = inode.number
        attributes.st_mode = self._mode(found)
        attributes.st_uid, attributes.st_gid = self._look.uid, self._look.gid
        attributes.st_size = size or 0
        attributes.st_blocks = ((size or 0) + 511) // 512
        time_ns = found.mtime_ns or self._look.mtime_ns
        attributes.st_mtime_ns = attributes.st_ctime_ns = attributes.st_atime_ns = time_ns
        attributes.entry_timeout = found.ttl
        if isinstance(node, Directory):
            attributes.attr_timeout = found.ttl
        else:
            attributes.attr_timeout = 0.0 if inode.volatile or size is None else ATTRIBUTES_SECONDS
        return attributes

    def _mode(self, found: Found) -> int:
        if isinstance(found.node, Directory):
            return stat.S_IFDIR | (0o555 & ~self._look.umask)
        if isinstance(found.node, Symlink):
            return stat.S_IFLNK | 0o777
        return stat.S_IFREG | (0o444 & ~self._look.umask)

    @answered
    async def readlink(self, number: int, ctx: RequestContext) -> bytes:
        """The text of a symbolic link."""
        node = self.inodes[number].found.node
        if not isinstance(node, Symlink):
            raise pyfuse3.FUSEError(errno.EINVAL)
        return os.fsencode(node.target)

    @answered
    async def access(self, number: int, mode: int, ctx: RequestContext) -> bool:
        """Permission bits are checked by the kernel (`default_permissions`); only writing is refused here."""
        if mode & os.W_OK:
            raise pyfuse3.FUSEError(errno.EROFS)
        return True

    @answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """No size, no free space: a bucket has neither, and nobody is asked over the network."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_namemax = NAME_MAX
        return data

    # -- extended attributes ----------------------------------------------------------------------------

    @answered
    async def listxattr(self, number: int, ctx: RequestContext) -> list[bytes]:
        """Names of the attributes of a file."""
        names = await self._tree.xattr_names(self.inodes[number].found)
        return [os.fsencode(XATTR_PREFIX + name) for name in names]

    @answered
    @killable(asker)
    async def getxattr(self, number: int, name: bytes, ctx: RequestContext) -> bytes:
        """One attribute; ENODATA for any that is not ours (`security.*`, ACLs)."""
        prefix, text = XATTR_PREFIX, os.fsdecode(name)
        if not text.startswith(prefix):
            raise pyfuse3.FUSEError(errno.ENODATA)
        try:
            value = await self._tree.xattr(self.inodes[number].found, text.removeprefix(prefix))
        except KeyError:
            raise pyfuse3.FUSEError(errno.ENODATA) from None
        return os.fsencode(value)

    # -- files ------------------------------------------------------------------------------------------

    @answered
    @killable(asker)
    async def open(self, number: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Pin this version. Stale when the store has another one: the kernel then looks the path up again."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & WRITING_FLAGS:
            raise pyfuse3.FUSEError(errno.EROFS)
        inode = self.inodes[number]
        node = inode.found.node
        opened = OpenFile(inode, ctx.pid)
        if isinstance(node, Directory):
            raise IsADirectory(f"{inode.found.path} is a directory")
        await self._tree.refresh(inode.found)
        if isinstance(node, Spliced):
            opened.reading = self._reading(inode.found.path, node.layout, ctx.pid)
        elif inode.volatile:
            opened.snapshot = await self._snapshot(inode)
        else:
            await self._content(inode)
        inode.opened += 1
        return pyfuse3.FileInfo(fh=self._handle(self.files, opened), keep_cache=not inode.volatile)

    def _reading(self, path: str, layout: Layout, pid: int) -> Handle:
        """A handle for who opens a file: crawlers get one without read-ahead and with a budget."""
        process = self._programs.opened(pid, path)
        if not process.crawler:
            return self._reader.open(layout)

        def refused() -> None:
            self._programs.over(process)
            self.status.report(path, f"{process.program}: beyond the budget of a crawler (crawlers.budget)")

        return ProbeHandle(self._reader, layout, self._probe_budget, refused)

    @answered
    @killable(opener)
    async def read(self, handle: int, offset: int, length: int) -> Any:
        """Exactly the bytes asked for, fewer only at the end: to the kernel a short answer is the end."""
        opened = self._opened(self.files, handle)
        inode = opened.inode
        if opened.reading is not None:
            expected = max(0, min(length, (inode.size or 0) - offset))
            try:
                data = await opened.reading.read(offset, length)
            except Corrupt:
                # Not from here: the kernel waits for the pages of this very read to be answered.
                trio.lowlevel.spawn_system_task(self._drop_pages, inode.number)
                raise
            if len(data) != expected:
                raise BadBody(f"{len(data)} bytes at {offset} where {expected} were due")
        else:
            content = await self._content(inode) if opened.snapshot is None else self._still(opened)
            data = memoryview(content)[offset : offset + length]
        self.status.count("fuse_bytes_read", by=len(data))
        self._programs.read(opened.opener, len(data))
        return data

    async def _drop_pages(self, number: int) -> None:
        """Have the kernel forget what it keeps of a file, which is not what is stored."""
        with contextlib.suppress(Exception):  # the inode may be forgotten, the mount ending
            await trio.to_thread.run_sync(pyfuse3.invalidate_inode, number, abandon_on_cancel=True)

    @answered
    async def release(self, handle: int) -> None:
        """The last use of an open file has ended."""
        opened = self.files.pop(handle, None)
        if opened is None:
            return
        opened.inode.opened -= 1
        if opened.reading is not None:
            opened.reading.close()

    async def _content(self, inode: Inode) -> bytes:
        """The bytes of a made file with a version; the tree keeps them. From here its size is settled."""
        content = await self._tree.settle(inode.found)
        if inode.size is not None and len(content) != inode.size:
            raise ReelfsError(f"made anew with {len(content)} bytes, {inode.size} before")
        inode.size = len(content)
        return content

    async def _snapshot(self, inode: Inode) -> Snapshot:
        """The content of a volatile file: that of a moment ago, else a new one."""
        if not self._is_young(inode.snapshot):
            made = await self._tree.settle(inode.found)
            if not self._is_young(inode.snapshot):  # else somebody was faster, and may be reading it
                inode.snapshot = Snapshot(made, trio.current_time())
        assert inode.snapshot is not None
        return inode.snapshot

    def _is_young(self, snapshot: Snapshot | None) -> bool:
        return snapshot is not None and trio.current_time() - snapshot.made < VOLATILE_SECONDS

    def _still(self, opened: OpenFile) -> bytes:
        """The content a handle pins. The page cache has room for one: a handle on an older one is stale."""
        if opened.snapshot is None or opened.snapshot is not opened.inode.snapshot:
            raise Stale(f"{opened.inode.found.path} was made anew")
        return opened.snapshot.content

    # -- directories ------------------------------------------------------------------------------------

    @answered
    @killable(asker, LISTING_PATIENCE)
    async def opendir(self, number: int, ctx: RequestContext) -> int:
        """The whole listing or an error; reading it afterwards waits for nothing."""
        inode = self.inodes[number]
        return self._handle(self.directories, OpenDirectory(inode, await self._names(inode)))

    async def _names(self, inode: Inode) -> list[tuple[bytes, Found]]:
        if not isinstance(inode.found.node, Directory):
            raise NotADirectory(f"{inode.found.path} is a file")
        entries = await self._tree.entries(inode.found)
        names = [(os.fsencode(name), found) for name, found in entries.items()]
        names.sort(key=lambda entry: entry[0])
        return [(b".", inode.found), (b"..", inode.found), *names]

    @answered
    async def readdir(self, handle: int, start: int, token: ReaddirToken) -> None:
        """Entries from a position, with their attributes; each but `.` and `..` is one more reference."""
        names = self._opened(self.directories, handle).names
        for position in range(start, len(names)):
            name, found = names[position]
            attributes = self._attributes(self.inodes.peek(found))
            if not pyfuse3.readdir_reply(token, name, attributes, position + 1):
                return
            if position >= 2:
                self.inodes.remember(found)

    @answered
    async def releasedir(self, handle: int) -> None:
        """The directory was closed."""
        self.directories.pop(handle, None)

    # -- handles ----------------------------------------------------------------------------------------

    def _handle(self, table: dict[int, T], opened: T) -> int:
        handle = self._next_handle
        self._next_handle += 1
        table[handle] = opened
        return handle

    def _opened(self, table: dict[int, T], handle: int) -> T:
        try:
            return table[handle]
        except KeyError:
            raise pyfuse3.FUSEError(errno.EBADF) from None


def _nothing(ttl: float) -> EntryAttributes:
    """The answer "there is no such name", which the kernel may keep for `ttl` seconds."""
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = 0
    attributes.entry_timeout = ttl
    return attributes
