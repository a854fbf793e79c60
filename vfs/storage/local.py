"""`file://` or a plain path: a folder of this machine as a store, exact and pinned.

The version of a file is its modification time, size and inode number, so a replaced or rewritten file is
another version. (A writer that changes bytes in place, keeps the size and sets the old time back is not
seen; nothing short of reading the file would.)

Nothing outside the folder is reachable: a path is opened without reading it (O_PATH), the kernel is asked
where that led, and only a regular file or folder inside the root is read, through that very descriptor: a
link swapped meanwhile changes nothing. Symbolic links that lead to a file or folder inside are followed. Any
other (and one to a folder, asked for as an object) is an empty object, as links are in a bucket; `head` tells
of every link where it leads, as `symlink-target`. Devices, pipes and sockets are not there.

Where work is done: the system calls of a `head` take microseconds and a hop to a thread two hundred, so it is
made in place. So is a read of up to `IN_PLACE` bytes that the page cache has (the kernel says so without
waiting, RWF_NOWAIT). Whatever may wait for a disk, listings too, is done in threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, TypeVarTuple
from urllib.parse import quote

import trio

from vfs.errors import BadBody, ConfigError, Denied, NotFound, Stale, StoreError, Unavailable
from vfs.spans import StoredObject
from vfs.storage import localmeta
from vfs.storage.arriving import Arriving
from vfs.storage.base import Body, ObjectDetails, Page, Part
from vfs.storage.localwrite import UPLOADS, Writer

T = TypeVar("T")
Args = TypeVarTuple("Args")

#: Bytes that are copied from the page cache in the loop: some 0.1 ms, about half of what a hop costs.
IN_PLACE = 1 << 20
#: Threads that may wait for the disk at once; beyond that a disk only gets slower.
THREADS = 16
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


@dataclass(frozen=True, slots=True)
class Found:
    """An object that is open (O_PATH). text: of the link that has its name, if it is one."""

    descriptor: int
    status: os.stat_result
    text: str | None = None

    @property
    def is_link(self) -> bool:
        """The link itself is the object: what it leads to is no file inside."""
        return stat.S_ISLNK(self.status.st_mode)


class LocalStore:
    """A store over one folder. Raises ConfigError when the folder is not there."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        try:
            self._root = Path(root).resolve()
            is_folder = self._root.is_dir()
        except (OSError, ValueError):
            is_folder = False
        if not is_folder:
            raise ConfigError(
                f"source {os.fspath(root)!r} is not a folder: give an existing one, or s3://BUCKET"
            )
        self._threads = trio.CapacityLimiter(THREADS)
        self._writer = Writer(str(self._root), self._is_inside, _version)

    @property
    def url(self) -> str:
        """`file:///absolute/path`."""
        return "file://" + quote(os.fsencode(self._root))

    @property
    def remote(self) -> bool:
        """False: the kernel's page cache is the cache."""
        return False

    async def head(self, key: str) -> ObjectDetails:
        """The current version of a file, of a link's text, or of a folder (a key that ends in "/")."""
        await trio.lowlevel.checkpoint()
        with self._object(key) as found:
            told = localmeta.told_of(f"/proc/self/fd/{found.descriptor}", found.status)
            if found.text is not None:
                told[localmeta.TARGET] = localmeta.link_told(found.text)
            return ObjectDetails(_described(key, found.status), metadata=told)

    async def list(
        self, prefix: str = "", *, delimiter: str = "/", token: str | None = None, limit: int = 1000
    ) -> Page:
        """The whole listing in one page: a folder is read whole anyway, and half of one would not be true.

        delimiter: "/" for one folder, "" for everything below. Raises Unavailable when the source itself
        is gone: that is not an empty folder.
        """
        del token, limit
        return await trio.to_thread.run_sync(
            self._list, prefix, delimiter, limiter=self._threads, abandon_on_cancel=True
        )

    async def read(
        self, stored: StoredObject, offset: int, length: int, arriving: Arriving | None = None
    ) -> Body:
        """A range of exactly this version: looked at before and after, so nothing is given out early."""
        if length <= IN_PLACE:
            await trio.lowlevel.checkpoint()
            body = self._read(stored, offset, length, os.RWF_NOWAIT)
            if body is not None:
                return body
        body = await trio.to_thread.run_sync(
            self._read, stored, offset, length, 0, limiter=self._threads, abandon_on_cancel=True
        )
        assert body is not None
        return body

    async def put(
        self,
        key: str,
        body: Body,
        *,
        replaces: StoredObject | None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Store a file; it appears whole. Metadata as `localmeta` has it; of a link the body is its text."""
        status = await self._written(self._writer.put, key, body, replaces, metadata)
        return _described(key, status) if status is not None else (await self.head(key)).object

    async def copy(
        self,
        stored: StoredObject,
        key: str,
        *,
        replaces: StoredObject | None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Store this version under another key too, or change its metadata where it is."""
        known = await self.head(stored.key)
        if known.object.version != stored.version:
            raise Stale(f"{stored.key} was replaced")
        told = known.metadata if metadata is None else metadata
        if localmeta.TARGET in told or (stored.key.endswith("/") and key != stored.key):
            return await self.put(key, b"", replaces=replaces, metadata=told)
        if key == stored.key and localmeta.TARGET not in known.metadata:
            if replaces is None or replaces.version != stored.version:
                raise Stale(f"{key} is there already, or was replaced")
            return _described(key, await self._written(self._writer.describe, stored, told))
        return _described(key, await self._written(self._copy, stored, key, replaces, told))

    def _copy(
        self, stored: StoredObject, key: str, replaces: StoredObject | None, told: Mapping[str, str]
    ) -> os.stat_result:
        with self._object(stored.key) as found, _readable(found.descriptor) as source:
            check = partial(_check_open, stored, source)
            check()
            return self._writer.copy(source, key, replaces, told, check)

    async def delete(self, stored: StoredObject) -> None:
        """Remove this version."""
        await self._written(self._writer.delete, stored)

    async def start_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        """Begin an upload in parts."""
        return await self._written(self._writer.start, key, metadata)

    async def put_part(self, key: str, upload: str, number: int, body: Body) -> Part:
        """Keep a part."""
        return await self._written(self._writer.part, key, upload, number, body)

    async def complete_upload(
        self, key: str, upload: str, parts: Sequence[Part], *, replaces: StoredObject | None
    ) -> StoredObject:
        """Join the parts."""
        return _described(key, await self._written(self._writer.complete, key, upload, parts, replaces))

    async def abort_upload(self, key: str, upload: str) -> None:
        """Drop an upload."""
        await self._written(self._writer.abort, key, upload)

    async def uploads(self, prefix: str = "") -> Mapping[str, str]:
        """Uploads under way."""
        return await self._written(self._writer.uploads, prefix)

    async def _written(self, work: Callable[[*Args], T], *args: *Args) -> T:
        """In a thread, to its end: half of a write is not given up."""
        return await trio.to_thread.run_sync(work, *args, limiter=self._threads)

    def presign(self, key: str, *, expires: int = 3600, put: bool = False) -> str | None:
        """A folder has no URLs."""
        return None

    async def aclose(self) -> None:
        """Nothing to close."""

    # -- opening ----------------------------------------------------------------------------------------

    def _open(self, key: str, flags: int = 0) -> int:
        """An O_PATH descriptor of what a key leads to, inside the root. Errors of the system as ours."""
        try:
            descriptor = os.open(self._path(key), os.O_PATH | os.O_CLOEXEC | flags)
        except OSError as error:
            raise self._translated(error, key) from error
        if not self._is_inside(descriptor):
            os.close(descriptor)
            raise NotFound(f"no such object: {key!r}")
        return descriptor

    def _open_object(self, key: str) -> Found:
        """What stands at a key: a file, the text of a link, or (of a key that ends in "/") a folder."""
        link = self._open(key, os.O_NOFOLLOW)
        status = os.fstat(link)
        if not stat.S_ISLNK(status.st_mode):
            if (stat.S_ISDIR if key.endswith("/") else stat.S_ISREG)(status.st_mode):
                return Found(link, status)
            os.close(link)
            raise NotFound(f"no such object: {key!r}")
        text = os.readlink("", dir_fd=link)
        try:
            target = self._open(key)
        except (NotFound, Denied):
            return Found(link, status, text)
        followed = os.fstat(target)
        if not stat.S_ISREG(followed.st_mode):
            os.close(target)
            return Found(link, status, text)
        os.close(link)
        return Found(target, followed, text)

    @contextlib.contextmanager
    def _object(self, key: str) -> Iterator[Found]:
        found = self._open_object(key)
        with self._closing(found.descriptor, key):
            yield found

    @contextlib.contextmanager
    def _found(self, key: str) -> Iterator[int]:
        """An O_PATH descriptor of the file or folder that a key leads to."""
        descriptor = self._open(key)
        with self._closing(descriptor, key):
            yield descriptor

    @contextlib.contextmanager
    def _closing(self, descriptor: int, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._translated(error, key) from error
        finally:
            os.close(descriptor)

    def _path(self, key: str) -> str:
        """Where a key is. Raises NotFound for one that no path below the root can be."""
        parts = key.split("/")
        if parts[-1] == "":
            parts.pop()  # a folder
        if "\0" in key or any(part in ("", ".", "..") for part in parts):
            raise NotFound(f"no such object: {key!r}")
        return f"{self._root}/{key}"

    def _is_inside(self, descriptor: int) -> bool:
        place = os.readlink(f"/proc/self/fd/{descriptor}")
        root = str(self._root)
        return place == root or place.startswith(root.rstrip("/") + "/")

    def _translated(self, error: OSError, key: str) -> StoreError | NotFound | Denied:
        if error.errno in _ABSENT:
            if not self._root.is_dir():
                return Unavailable(f"the folder {self._root} is not there any more")
            return NotFound(f"no such object: {key!r}")
        if isinstance(error, PermissionError):
            return Denied(f"{key}: permission denied")
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR, errno.ESTALE):
            return Unavailable(f"{key}: {error.strerror}")
        return StoreError(f"{key}: {error.strerror}")

    # -- reading ----------------------------------------------------------------------------------------

    def _read(self, stored: StoredObject, offset: int, length: int, flags: int) -> bytearray | None:
        """A range; with RWF_NOWAIT None when that would wait for the disk."""
        with self._object(stored.key) as found:
            _check(stored, found.status)
            if found.is_link:
                raise BadBody(f"{stored.key} is a link, which has no bytes")
            with _readable(found.descriptor) as descriptor:
                body = bytearray(length)
                done = _fill(descriptor, body, offset, flags)
                _check(stored, os.fstat(descriptor))
        if done == length:
            return body
        if flags:
            return None
        raise BadBody(f"{stored.key}: {done} bytes at {offset} where {length} were asked for")

    # -- listing ----------------------------------------------------------------------------------------

    def _list(self, prefix: str, delimiter: str) -> Page:
        folder, start = prefix[: prefix.rfind("/") + 1], prefix[prefix.rfind("/") + 1 :]
        objects: list[StoredObject] = []
        prefixes: list[str] = []
        waiting = [(folder, start)]
        while waiting:
            folder, start = waiting.pop()
            children = self._children(folder, start)
            for key, status in children:
                if not stat.S_ISDIR(status.st_mode):
                    objects.append(_described(key, status))
                elif delimiter:
                    prefixes.append(key + "/")
                else:
                    waiting.append((key + "/", ""))
            if not children and not delimiter and folder and not start:
                with contextlib.suppress(NotFound):  # the marker of an empty folder
                    objects.append(self._marker(folder))
        return Page(tuple(objects), tuple(prefixes))

    def _marker(self, folder: str) -> StoredObject:
        with self._object(folder) as found:
            return _described(folder, found.status)

    def _children(self, folder: str, start: str) -> Sequence[tuple[str, os.stat_result]]:
        """Files and folders directly in a folder, what links that stay inside lead to, and other links."""
        try:
            with self._found(folder) as found:
                if not stat.S_ISDIR(os.fstat(found).st_mode):
                    return []
                descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
                try:
                    with os.scandir(descriptor) as entries:
                        seen = [e for e in entries if e.name.startswith(start)]
                        children = [(e.name, self._status(e, folder)) for e in seen]
                finally:
                    os.close(descriptor)
        except NotFound:
            return []
        hidden = UPLOADS if not folder else None
        return [(folder + name, status) for name, status in children if status is not None and name != hidden]

    def _status(self, entry: os.DirEntry[str], folder: str) -> os.stat_result | None:
        """Of a regular file, a folder or a link; None for anything else, and for what went away meanwhile."""
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        if stat.S_ISLNK(status.st_mode):
            with contextlib.suppress(NotFound, Denied), self._found(folder + entry.name) as found:
                target = os.fstat(found)
                is_folder = stat.S_ISDIR(target.st_mode) and not self._is_loop(folder, target)
                return target if is_folder or stat.S_ISREG(target.st_mode) else status
            return status
        return status if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) else None

    def _is_loop(self, folder: str, status: os.stat_result) -> bool:
        """A linked folder that is also above the link, by the names that lead there: it has no end."""
        above = folder.split("/")[:-1]
        paths = ["/".join([str(self._root), *above[:count]]) for count in range(len(above) + 1)]
        return any(os.path.samestat(status, os.stat(path)) for path in paths)


def _fill(descriptor: int, body: bytearray, offset: int, flags: int) -> int:
    """Read into the whole buffer; how many bytes came. With RWF_NOWAIT: without waiting."""
    done = 0
    with memoryview(body) as view:
        while done < len(body):
            try:
                count = os.preadv(descriptor, [view[done:]], offset + done, flags)
            except OSError as error:
                # EAGAIN: not in the page cache. EOPNOTSUPP: a file system that cannot tell.
                if flags and error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                    break
                raise
            if count == 0:
                break
            done += count
    return done


@contextlib.contextmanager
def _readable(found: int) -> Iterator[int]:
    """What an O_PATH descriptor is of, open for reading."""
    # O_NONBLOCK: should it have become something else, opening it must not wait either.
    descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_open(stored: StoredObject, descriptor: int) -> None:
    _check(stored, os.fstat(descriptor))


def _check(stored: StoredObject, status: os.stat_result) -> None:
    if _version(status) != stored.version:
        raise Stale(f"{stored.key} was replaced")


def _version(status: os.stat_result) -> str:
    """Of a folder the inode number alone: what it holds has versions of its own."""
    if stat.S_ISDIR(status.st_mode):
        return f"folder-{status.st_ino:x}"
    return f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"


def _described(key: str, status: os.stat_result) -> StoredObject:
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    return StoredObject(key, size, _version(status), status.st_mtime_ns)
