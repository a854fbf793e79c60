"""One staged content: what was written on a mount, in a file of its own or, where it is small, in memory.

A draft may stand on a stored object: then only what was written or read is here, the rest is fetched when it
is needed, and before the draft is sent. A *sealed* draft never changes: it is what `close` or `fsync`
promised. Who writes on writes into a copy of it (blocks are shared where the file system can), so an upload
never sees half of a later write.

What is small, and stands on nothing, is no file: it is in memory, and in the journal as soon as that names
it. So one write to the disk makes a small file safe, instead of one for its bytes and one for its name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vfs.cache.intervals import Range, merged, subtract
from vfs.spans import StoredObject

if TYPE_CHECKING:
    from vfs.write.staging import Staging

#: FICLONE of linux/fs.h: the copy shares blocks with the original until one of them is written.
_FICLONE = 0x40049409
_COPY = 64 << 20
#: What is written to a file goes to the disk by itself in steps of so many bytes: who closes waits for less.
STEP = 16 << 20


class Draft:
    """One staged content. number: its file's name. base: the stored object its other bytes are of.

    limit: bytes of the base below this offset count, beyond it the file's own (zeros where nothing was
    written). own: sorted, disjoint ranges below `limit` that are here. Calls are synchronous and may wait for
    the disk. Raises NoRoom.
    """

    def __init__(
        self,
        staging: Staging,
        number: int,
        size: int = 0,
        base: StoredObject | None = None,
        limit: int = 0,
        own: Iterable[Range] = (),
    ) -> None:
        self.number = number
        self.size = size
        self.base = base
        self.limit = limit
        self.sealed = False
        self.changes = 0
        self._staging = staging
        self._own = list(own)
        self._safe = list(own)
        self._was_synced = False
        self._body: bytearray | None = None
        self._counted = 0
        self._is_listed = False
        self._descriptor: int | None = None
        self._guard = threading.Lock()
        self._uses = self._users = 0

    # -- bytes ------------------------------------------------------------------------------------------

    def missing(self, start: int, end: int) -> list[Range]:
        """The parts of [start, end) that only the base has."""
        end = min(end, self.limit, self.size)
        return subtract((start, end), self._inside(start, end)) if start < end else []

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of a range that misses nothing, short only at the end of the file."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        if (body := self._body) is not None:
            return bytes(memoryview(body)[offset : offset + length])
        with self._file() as descriptor:
            data = os.pread(descriptor, length, offset)
        return data if len(data) == length else data + bytes(length - len(data))  # the file may be sparse

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Change bytes; the file grows where they lie beyond its end."""
        assert not self.sealed
        self.changes += 1
        end = offset + len(data)
        with self._staging.room(len(data)):
            if self._is_small(max(end, self.size)):
                assert self._body is not None
                self._body.extend(bytes(max(0, offset - self.size)))
                self._body[offset:end] = data
            else:
                self._write(offset, data)
        self._mark(offset, end)
        self.size = max(self.size, end)

    def _write(self, offset: int, data: bytes | memoryview) -> None:
        end = offset + len(data)
        with self._file() as descriptor:
            try:
                _write_all(descriptor, data, offset)
            except OSError:
                if end > self.size:  # nothing may lie beyond the end: a file that grows has zeros there
                    os.ftruncate(descriptor, self.size)
                raise
            if offset // STEP != end // STEP:
                # Has the kernel begin to write what is in its cache, and wait for nothing.
                os.posix_fadvise(descriptor, (offset // STEP) * STEP, STEP, os.POSIX_FADV_DONTNEED)

    def truncate(self, size: int) -> None:
        """Cut off, or grow by zeros."""
        assert not self.sealed
        self.changes += 1
        self.limit = min(self.limit, size)
        self._own = [(start, min(end, size)) for start, end in self._own if start < size]
        with self._staging.room(0):
            if self._is_small(size):
                assert self._body is not None
                del self._body[size:]
                self._body.extend(bytes(size - len(self._body)))
            else:
                with self._file() as descriptor:
                    os.ftruncate(descriptor, size)
        self.size = size

    def fill(self, offset: int, data: bytes | memoryview) -> None:
        """Bytes of the base that were missing; what was written meanwhile stays as it is."""
        view = memoryview(data)
        for start, end in self.missing(offset, offset + len(view)):
            with self._staging.room(end - start), self._file() as descriptor:
                _write_all(descriptor, view[start - offset : end - offset], start)
            self._mark(start, end)

    def sync(self) -> None:
        """On the disk, whatever happens to the machine. (What is in memory is the journal's to keep.) Raises
        NoRoom, ReelfsError.
        """
        if self._body is not None:
            return
        self._staging.point("before-sync")
        own = list(self._own)
        with self._staging.room(0), self._file() as descriptor:
            os.fdatasync(descriptor)
            if not self._is_listed:
                self._staging.sync_folder()  # a file that no folder names is lost with all its bytes
                self._is_listed = True
        self._safe, self._was_synced = own, True
        self._staging.point("after-sync")

    def forsake(self) -> int:
        """There is no base any more: what is missing of it is zeros from now on. So many bytes."""
        missing = self.missing(0, self.size)
        self._own, self.limit, self.base = [], 0, None
        return sum(end - start for start, end in missing)

    def salvage(self) -> None:
        """What a crash left of a draft that was being written, as far as its file tells: its size, and which
        blocks were written to (of a block that was written to in part, the rest counts as written, too).
        """
        if self._body is not None:
            return
        with self._file() as descriptor:
            self.size = os.fstat(descriptor).st_size
            self.limit = min(self.limit, self.size)
            for start, end in _data(descriptor, self.limit):
                self._mark(start, end)

    @property
    def own(self) -> tuple[Range, ...]:
        """The ranges below `limit` that are here."""
        return tuple(self._own)

    @property
    def safe(self) -> tuple[Range, ...]:
        """Those of `own` that were on the disk when it was last synced."""
        return tuple((start, min(end, self.limit)) for start, end in self._safe if start < self.limit)

    @property
    def was_synced(self) -> bool:
        """Whether a power cut leaves anything of it."""
        return self._was_synced or self._body is not None

    def trim(self) -> None:
        """What a crash left beyond its end, of writes that the journal does not know, goes."""
        if self._body is None:
            with self._staging.room(0), self._file() as descriptor:
                if os.fstat(descriptor).st_size > self.size:
                    os.ftruncate(descriptor, self.size)

    def _inside(self, start: int, end: int) -> list[Range]:
        return [(max(a, start), min(b, end)) for a, b in self._own if a < end and b > start]

    def _mark(self, start: int, end: int) -> None:
        end = min(end, self.limit)
        if start < end:
            self._own = merged([*self._own, (start, end)])

    # -- in memory --------------------------------------------------------------------------------------

    @property
    def body(self) -> bytes | None:
        """All of it, if it is in memory."""
        return bytes(self._body) if self._body is not None else None

    @property
    def is_small(self) -> bool:
        """Whether it is in memory, and no file."""
        return self._body is not None

    def keep(self, body: bytes) -> None:
        """It is in memory, with this content, which the journal has."""
        self._body, self.size, self.base, self.limit, self._own = bytearray(body), len(body), None, 0, []
        self._count(len(body))

    def _is_small(self, size: int) -> bool:
        """Whether it is in memory and can be with so many bytes. If not, it is a file from here on."""
        if self._body is None:
            return False
        if self._staging.takes_small(size, size - self._counted):
            self._count(size)
            return True
        self.spill()
        return False

    def spill(self) -> None:
        """Into a file, where it is none. (Its bytes are counted already.)"""
        body = self._body
        if body is None:
            return
        with self._staging.room(0):
            descriptor = self._staging.make(self.number)
            try:
                _write_all(descriptor, memoryview(body), 0)
            finally:
                os.close(descriptor)
        self._body = None
        self._count(0)

    def _count(self, size: int) -> None:
        """So many bytes of memory are this draft's."""
        self._staging.in_memory += size - self._counted
        self._counted = size

    # -- the file ---------------------------------------------------------------------------------------

    def copy(self) -> Draft:
        """Another draft with the same content."""
        body = self._body
        twin = self._staging.create(self.base, small=body is not None)
        try:
            if body is not None:
                twin.write(0, memoryview(body))
                twin.changes = 0
                return twin
            twin.size, twin.limit, twin._own = self.size, self.limit, list(self._own)
            with self._staging.room(0), self._file() as source, twin._file() as target:
                _copied(source, target, self.size)
        except BaseException:
            twin.discard()
            raise
        return twin

    def hold(self) -> Draft:
        """One more user; its file stays until all have let go."""
        self._users += 1
        return self

    def release(self) -> None:
        """One user less."""
        self._users -= 1
        if self._users <= 0:
            self.discard()

    def seal(self) -> None:
        """It does not change from here on."""
        self.sealed = True
        with self._guard:
            self._close_idle()

    def discard(self) -> None:
        """Remove the file; what reads it reads on."""
        self.seal()
        self._count(0)
        self._staging.remove(self.number)

    @contextlib.contextmanager
    def _file(self) -> Iterator[int]:
        """Its descriptor. Of a file that is written to it stays open, thousands of others wait for theirs."""
        with self._guard:
            if self._descriptor is None:
                self._descriptor = self._staging.open(self.number)
            self._uses += 1
            descriptor = self._descriptor
        try:
            yield descriptor
        finally:
            with self._guard:
                self._uses -= 1
                self._close_idle()

    def _close_idle(self) -> None:
        if self.sealed and self._uses == 0 and self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _copied(source: int, target: int, size: int) -> None:
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS):
            raise
    os.ftruncate(target, size)
    for start, end in _data(source, size):  # holes stay holes
        while start < end:
            count = os.copy_file_range(source, target, min(_COPY, end - start), start, start)
            if count == 0:
                break
            start += count


def _data(descriptor: int, size: int) -> Iterator[Range]:
    """The ranges of a file below an offset that are no holes."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
            at = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if start < size:
            yield start, min(at, size)
