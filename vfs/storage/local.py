"""`file://` or a plain path: a folder of this machine as a store, exact and pinned.

The version of a file is its modification time, size and inode number, so a replaced or rewritten file is
another version. Nothing outside the folder is reachable: every component is opened without following
symbolic links, and a link is served only when it leads to a regular file or folder inside.

System calls on a local folder take microseconds, a hop to a thread two hundred: `head` of one file is made
in place; listings and reads, which may wait for a disk, are made in threads.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import trio

from vfs.errors import BadBody, ConfigError, Denied, NotFound, ReadOnly, Stale, StoreError
from vfs.spans import StoredObject
from vfs.storage.base import Body, ObjectDetails, Page


class LocalStore:
    """A store over one folder. Raises ConfigError when the folder is not there."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root).resolve()
        if not self._root.is_dir():
            raise ConfigError(
                f"source {os.fspath(root)!r} is not a folder: give an existing one, or s3://BUCKET"
            )

    @property
    def url(self) -> str:
        """`file:///absolute/path`."""
        return "file://" + quote(os.fsencode(self._root))

    @property
    def remote(self) -> bool:
        """False: the kernel's page cache is the cache."""
        return False

    async def head(self, key: str) -> ObjectDetails:
        """The current version of a file."""
        path = self._path(key)
        try:
            status = os.stat(path)
        except OSError as error:
            raise _translated(error, key) from error
        if not stat.S_ISREG(status.st_mode) or not self._inside(path):
            raise NotFound(f"no such object: {key}")
        return ObjectDetails(_described(key, status))

    async def list(
        self, prefix: str = "", *, delimiter: str = "/", token: str | None = None, limit: int = 1000
    ) -> Page:
        """The whole listing in one page: a folder is read whole anyway, and half of one would not be true."""
        del token, limit
        return await trio.to_thread.run_sync(self._list, prefix, delimiter)

    async def read(self, stored: StoredObject, offset: int, length: int) -> Body:
        """A range of exactly this version: looked at before and after reading."""
        return await trio.to_thread.run_sync(self._read, stored, offset, length)

    async def put(
        self,
        key: str,
        body: Body,
        *,
        replaces: StoredObject | None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Not yet."""
        raise ReadOnly(f"{key}: writing is not available")

    async def delete(self, stored: StoredObject) -> None:
        """Not yet."""
        raise ReadOnly(f"{stored.key}: writing is not available")

    def presign(self, key: str, *, expires: int = 3600) -> str | None:
        """A folder has no URLs."""
        return None

    async def aclose(self) -> None:
        """Nothing to close."""

    # -- in threads -------------------------------------------------------------------------------------

    def _list(self, prefix: str, delimiter: str) -> Page:
        cut = prefix.rfind("/") + 1
        folder, start = prefix[:cut], prefix[cut:]
        objects: list[StoredObject] = []
        prefixes: list[str] = []
        for key, status in self._children(folder, start):
            if not stat.S_ISDIR(status.st_mode):
                objects.append(_described(key, status))
            elif delimiter:
                prefixes.append(key + "/")
            else:
                objects += self._list(key + "/", "").objects
        return Page(tuple(objects), tuple(prefixes))

    def _children(self, folder: str, start: str) -> Iterator[tuple[str, os.stat_result]]:
        """Regular files and folders directly in a folder, with what a link inside leads to."""
        path = self._path(folder)
        if not self._inside(path):
            return
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if not entry.name.startswith(start):
                        continue
                    try:
                        status = entry.stat()
                    except OSError:
                        continue  # a dangling link, or removed a moment ago
                    if entry.is_symlink() and not self._leads_inside(entry.path, path, status):
                        continue
                    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                        yield folder + entry.name, status
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _translated(error, folder) from error

    def _leads_inside(self, link: str, folder: Path, status: os.stat_result) -> bool:
        """A link to a file inside is fine; one to a folder only when it is not above itself (a loop)."""
        if not self._inside(Path(link)):
            return False
        return not (stat.S_ISDIR(status.st_mode) and folder.resolve().is_relative_to(Path(link).resolve()))

    def _read(self, stored: StoredObject, offset: int, length: int) -> Body:
        path = self._path(stored.key)
        if not self._inside(path):
            raise NotFound(f"no such object: {stored.key}")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _translated(error, stored.key) from error
        try:
            self._check(stored, descriptor)
            body = bytearray(length)
            view, done = memoryview(body), 0
            while done < length:
                count = os.preadv(descriptor, [view[done:]], offset + done)
                if count == 0:
                    break
                done += count
            self._check(stored, descriptor)
        except OSError as error:
            raise _translated(error, stored.key) from error
        finally:
            os.close(descriptor)
        if done != length:
            raise BadBody(f"{stored.key}: {done} bytes at {offset} where {length} were asked for")
        return body

    @staticmethod
    def _check(stored: StoredObject, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or _version(status) != stored.version:
            raise Stale(f"{stored.key} was replaced")

    def _path(self, key: str) -> Path:
        """Where a key is. Raises NotFound for one that would lead elsewhere."""
        if "\0" in key or key.startswith("/") or any(p in ("..", ".") for p in key.split("/")) or "//" in key:
            raise NotFound(f"no such object: {key!r}")
        return self._root / key

    def _inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._root)


def _version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"


def _described(key: str, status: os.stat_result) -> StoredObject:
    return StoredObject(key, status.st_size, _version(status), status.st_mtime_ns)


def _translated(error: OSError, key: str) -> StoreError | NotFound | Denied:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFound(f"no such object: {key}")
    if isinstance(error, PermissionError):
        return Denied(f"{key}: permission denied")
    return StoreError(f"{key}: {error.strerror}")
