"""Small things that took long to make and outlive the mount: indexes. One file each, checksummed.

What cannot be read, is damaged or was never there is simply not there; what cannot be written (no room) is
made again next time. Bounded: the longest unused go first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path

import trio
import xxhash

from vfs.spans import StoredObject

log = logging.getLogger("vfs.cache.kept")

#: Bytes kept in all, and of one thing: the index of a container of 4 million chunks has 120 MB.
MAX_KEPT = 1 << 30
MAX_ONE = 256 << 20
_MAGIC = b"reelfs kept 1\n"
_SUM = 16
#: When the limit is reached, this part of it is made free at once.
_ROOM = 16
#: Puts after which the folder is read again.
_PUTS = 256


class Kept:
    """Files below one folder (None = nothing is kept), named by source, version and name."""

    def __init__(self, folder: Path | None, source: str, *, limit: int = MAX_KEPT) -> None:
        self._folder = folder
        self._source = source
        self._limit = limit
        self._used = self._left = 0  # bytes, as far as is known here; puts before the folder is read again

    async def get(self, stored: StoredObject, name: str) -> bytes | None:
        """What was put under a version and a name, or None."""
        path = self._path(stored, name)
        return None if path is None else await trio.to_thread.run_sync(_read, path)

    async def put(self, stored: StoredObject, name: str, data: bytes) -> bool:
        """Keep it; False where it could not be kept."""
        path = self._path(stored, name)
        if path is None or len(data) > min(MAX_ONE, self._limit):
            return False
        return await trio.to_thread.run_sync(self._write, path, data)

    def _path(self, stored: StoredObject, name: str) -> Path | None:
        if self._folder is None:
            return None
        identity = "\0".join((self._source, stored.key, stored.version, str(stored.size), name))
        digest = xxhash.xxh3_128_hexdigest(identity.encode("utf-8", "surrogateescape"))
        return self._folder / digest[:2] / digest

    def _write(self, path: Path, data: bytes) -> bool:
        assert self._folder is not None
        content = _MAGIC + xxhash.xxh3_128_digest(data) + data
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
                try:
                    file.write(content)
                    file.flush()
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
            self._count(len(content))
        except OSError as error:
            log.info("an index is not kept: %s", error.strerror)
            return False
        return True

    def _count(self, more: int) -> None:
        """So many bytes more: the folder is read when it may be full, not each time. (Now and then, too:
        other processes write into it.)
        """
        self._used, self._left = self._used + more, self._left - 1
        if self._left < 0 or self._used > self._limit:
            self._used, self._left = self._pruned(), _PUTS

    def _pruned(self) -> int:
        """Remove what was unused longest until the rest is well within the limit; its bytes."""
        assert self._folder is not None
        found = []
        for path in self._folder.glob("??/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        used = sum(size for _, size, _ in found)
        most = self._limit if used <= self._limit else self._limit - self._limit // _ROOM
        for _, size, path in sorted(found):
            if used <= most:
                break
            path.unlink(missing_ok=True)
            used -= size
        return used


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    head, told, data = content[: len(_MAGIC)], content[len(_MAGIC) :][:_SUM], content[len(_MAGIC) + _SUM :]
    if head != _MAGIC or xxhash.xxh3_128_digest(data) != told:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    return data
