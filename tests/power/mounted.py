"""The disks of `disk` as one FUSE file system, each a folder of its root; a process of its own.

    python mounted.py MOUNTPOINT

It is told what to do by lines of JSON on standard input, and answers each with one on standard output.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NewType

import pyfuse3
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.power.disk import Disk, File, Folder, Left, Link, Node, Step

Context = pyfuse3.RequestContext
Inode = NewType("Inode", int)
SECONDS = 300.0
_NOREPLACE, _EXCHANGE = 1, 2


class Lossy(pyfuse3.Operations):
    """What the kernel asks for. victims: processes that have no power any more where a disk has none."""

    enable_writeback_cache = False

    def __init__(self) -> None:
        super().__init__()
        self.top = Folder(Disk(), 0o40755, number=pyfuse3.ROOT_INODE)
        self.nodes: dict[int, Node] = {self.top.number: self.top}
        self.disks: dict[str, Disk] = {}
        self.victims: list[int] = []

    # -- control ----------------------------------------------------------------------------------------

    def make(self, name: str, ordered: bool = False) -> None:
        """A new disk, empty."""
        self._add(name, Disk(ordered))

    def _add(self, name: str, disk: Disk) -> None:
        self.disks[name] = disk
        self.top.names[name.encode()] = disk.root
        ahead: list[Node] = [disk.root]
        while ahead:
            node = ahead.pop()
            self.nodes[node.number] = node
            ahead += node.names.values() if isinstance(node, Folder) else ()

    def arm(self, name: str, last: int, victims: Sequence[int] = ()) -> None:
        """The power goes at the operation of this number, counted from now."""
        disk = self.disks[name]
        disk.last, self.victims = len(disk.operations) + last, list(victims)

    def off(self, name: str) -> None:
        """The power goes now."""
        self.disks[name].is_off = True

    def cut(self, name: str, new: str, left: str, seed: int = 0) -> None:
        """What a cut would leave now of a disk is another one."""
        self._add(new, self.disks[name].cut(Left(left), seed))

    def operations(self, name: str) -> list[str]:
        """What was done on a disk."""
        return self.disks[name].operations

    def drop(self, name: str) -> None:
        """A disk is not needed any more."""
        disk = self.disks.pop(name)
        disk.is_off = True
        self.top.names.pop(name.encode(), None)
        self.nodes = {number: node for number, node in self.nodes.items() if node.disk is not disk}

    def _comes(self, node: Node, operation: str) -> None:
        """Before something is done that changes a disk."""
        before = node.disk.is_off
        if node.disk.comes(operation):
            return
        if not before:
            for victim in self.victims:
                os.kill(victim, signal.SIGKILL)
        raise pyfuse3.FUSEError(errno.EIO)

    # -- looking ----------------------------------------------------------------------------------------

    def node(self, number: int) -> Node:
        """By its inode number."""
        if number not in self.nodes:
            raise pyfuse3.FUSEError(errno.ESTALE)
        return self.nodes[number]

    def folder(self, number: int) -> Folder:
        """By its inode number."""
        node = self.node(number)
        if not isinstance(node, Folder):
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return node

    def file(self, number: int) -> File:
        """By its inode number."""
        node = self.node(number)
        assert isinstance(node, File)
        return node

    def child(self, folder: int, name: bytes) -> Node:
        """By its name."""
        node = self.folder(folder).names.get(name)
        if node is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return node

    def told(self, node: Node) -> pyfuse3.EntryAttributes:
        """As the kernel is told of it."""
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino, attributes.st_mode, attributes.st_nlink = node.number, node.mode, 1
        attributes.st_uid, attributes.st_gid = os.getuid(), os.getgid()
        attributes.st_mtime_ns = attributes.st_atime_ns = attributes.st_ctime_ns = node.mtime_ns
        size = len(node.data) if isinstance(node, File) else 0
        attributes.st_size, attributes.st_blksize, attributes.st_blocks = size, 4096, -(-size // 512)
        attributes.entry_timeout = attributes.attr_timeout = SECONDS
        return attributes

    async def lookup(self, parent_inode: int, name: bytes, ctx: Context) -> pyfuse3.EntryAttributes:
        return self.told(self.child(parent_inode, name))

    async def getattr(self, inode: int, ctx: Context) -> pyfuse3.EntryAttributes:
        return self.told(self.node(inode))

    async def readlink(self, inode: int, ctx: Context) -> bytes:
        node = self.node(inode)
        assert isinstance(node, Link)
        return node.text

    async def opendir(self, inode: int, ctx: Context) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        names = sorted(self.folder(fh).names.items())
        for at, (name, node) in enumerate(names[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, name, self.told(node), at):
                break

    async def statfs(self, ctx: Context) -> pyfuse3.StatvfsData:
        told = pyfuse3.StatvfsData()
        told.f_bsize = told.f_frsize = 4096
        told.f_blocks = told.f_bfree = told.f_bavail = 1 << 24
        told.f_files = told.f_ffree = told.f_favail = 1 << 24
        told.f_namemax = 255
        return told

    async def access(self, inode: int, mode: int, ctx: Context) -> bool:
        return True

    # -- changing ---------------------------------------------------------------------------------------

    def _new(self, parent: int, name: bytes, node: Node, operation: str) -> pyfuse3.EntryAttributes:
        folder = self.folder(parent)
        if name in folder.names:
            raise pyfuse3.FUSEError(errno.EEXIST)
        self._take(folder, operation, [(folder, name, node)])
        self.nodes[node.number] = node
        return self.told(node)

    def _take(self, folder: Folder, operation: str, step: Step) -> None:
        self._comes(folder, operation)
        folder.disk.take(step)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Context
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        node = File(self.folder(parent_inode).disk, mode)
        told = self._new(parent_inode, name, node, "create")
        return pyfuse3.FileInfo(fh=node.number, keep_cache=True), told

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Context) -> pyfuse3.EntryAttributes:
        node = Folder(self.folder(parent_inode).disk, stat.S_IFDIR | mode)
        return self._new(parent_inode, name, node, "mkdir")

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: Context
    ) -> pyfuse3.EntryAttributes:
        node = Link(self.folder(parent_inode).disk, stat.S_IFLNK | 0o777, text=target)
        return self._new(parent_inode, name, node, "symlink")

    async def open(self, inode: int, flags: int, ctx: Context) -> pyfuse3.FileInfo:
        file = self.file(inode)
        if flags & os.O_TRUNC and file.data:
            self._comes(file, "truncate")
            file.change(0, None)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        file = self.file(fh)
        if file.disk.is_off:
            raise pyfuse3.FUSEError(errno.EIO)
        return bytes(file.data[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        file = self.file(fh)
        self._comes(file, "write")
        file.change(off, bytes(buf))
        return len(buf)

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: Context,
    ) -> pyfuse3.EntryAttributes:
        node = self.node(inode)
        if fields.update_size and isinstance(node, File):
            self._comes(node, "truncate")
            node.change(attr.st_size, None)
        if fields.update_mode:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(attr.st_mode)
        if fields.update_mtime:
            node.mtime_ns = attr.st_mtime_ns
        return self.told(node)

    async def fsync(self, fh: int, datasync: bool) -> None:
        file = self.file(fh)
        self._comes(file, "sync")
        file.disk.sync_file(file)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        folder = self.folder(fh)
        self._comes(folder, "sync-folder")
        folder.disk.sync_folder(folder)

    async def unlink(self, parent_inode: int, name: bytes, ctx: Context) -> None:
        self.child(parent_inode, name)
        folder = self.folder(parent_inode)
        self._take(folder, f"unlink {os.fsdecode(name)}", [(folder, name, None)])

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Context) -> None:
        gone = self.child(parent_inode, name)
        if isinstance(gone, Folder) and gone.names:
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)
        folder = self.folder(parent_inode)
        self._take(folder, "rmdir", [(folder, name, None)])

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: Context,
    ) -> None:
        moved = self.child(parent_inode_old, name_old)
        old, new = self.folder(parent_inode_old), self.folder(parent_inode_new)
        there = new.names.get(name_new)
        if flags & _NOREPLACE and there is not None:
            raise pyfuse3.FUSEError(errno.EEXIST)
        if isinstance(there, Folder) and there.names and not flags & _EXCHANGE:
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)
        left = there if flags & _EXCHANGE else None
        self._take(old, "rename", [(old, name_old, left), (new, name_new, moved)])

    # -- attributes -------------------------------------------------------------------------------------

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Context) -> None:
        self.node(inode).attributes[name] = value

    async def getxattr(self, inode: int, name: bytes, ctx: Context) -> bytes:
        value = self.node(inode).attributes.get(name)
        if value is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    async def listxattr(self, inode: int, ctx: Context) -> Sequence[bytes]:
        return list(self.node(inode).attributes)

    async def removexattr(self, inode: int, name: bytes, ctx: Context) -> None:
        if self.node(inode).attributes.pop(name, None) is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)


async def _listen(disks: Lossy) -> None:
    """Do what is asked for, until nobody asks any more."""
    rest = b""
    while True:
        await trio.lowlevel.wait_readable(0)
        more = os.read(0, 1 << 16)
        if not more:
            return pyfuse3.terminate()
        *lines, rest = (rest + more).split(b"\n")
        for line in lines:
            name, *told = json.loads(line)
            answer: Any = getattr(disks, name)(*told)
            print(json.dumps(answer), flush=True)


async def _serve(disks: Lossy) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_listen, disks)
        await pyfuse3.main(min_tasks=1, max_tasks=8)
        nursery.cancel_scope.cancel()


def main(mountpoint: str) -> None:
    disks = Lossy()
    pyfuse3.init(disks, mountpoint, {*pyfuse3.default_options, "fsname=lossy", "default_permissions"})
    print(json.dumps("mounted"), flush=True)
    try:
        trio.run(_serve, disks)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main(sys.argv[1])
