"""The folder of staged files: what was written on a mount, on the local disk until the store has it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vfs import durable
from vfs.errors import NoRoom, ReelfsError
from vfs.spans import StoredObject
from vfs.write.draft import Draft

_NAME = re.compile(r"[0-9]+")
#: Seconds for which what the drafts take is counted on from what was written, not asked for.
COUNT_SECONDS = 0.5
#: A draft of so many bytes at most is kept in memory and in the journal, all of these together to so many.
SMALL, ALL_SMALL = 64 << 10, 32 << 20
#: See `journal_room`.
JOURNAL_ROOM = 16 << 20


class Staging:
    """A folder of drafts, owner-only, used by one process at a time.

    limit: bytes all drafts may take (0 = what the disk has). floor: bytes that stay free on the disk.
    small: bytes a draft in memory may have. reclaim: makes room by dropping what is kept for reading only.
    named: whether the journal names a draft: its file then stays until `released` is told of it. Raises
    ReelfsError where another process has it.
    """

    reclaim: Callable[[], object] = staticmethod(lambda: None)
    named: Callable[[int], bool] = staticmethod(lambda number: False)

    def __init__(
        self,
        folder: Path,
        *,
        limit: int = 0,
        floor: int = 0,
        small: int = SMALL,
        point: Callable[[str], object] = lambda name: None,
    ) -> None:
        self.folder = folder
        self.point = point
        #: Bytes of all drafts in memory.
        self.in_memory = 0
        self._small = small
        self._bodies: dict[int, bytes] = {}
        self._doomed: set[int] = set()
        self._limit = limit
        self._floor = floor
        self._used, self._counted = 0, -math.inf
        durable.make_folder(folder)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ReelfsError(
                f"{folder} is in use by another mount of this source that writes: "
                "unmount that one, or give this one a cache_dir of its own"
            ) from None
        for stray in folder.glob("[0-9]*-*"):  # of a snapshot of a database that was cut off
            stray.unlink()
        self._last = max(self.numbers(), default=0)
        disk = os.statvfs(folder)
        self._all_small = min(ALL_SMALL, disk.f_blocks * disk.f_frsize // 64)

    def numbers(self) -> Iterator[int]:
        """The drafts there are as files."""
        return (int(entry.name) for entry in os.scandir(self.folder) if _NAME.fullmatch(entry.name))

    def create(self, base: StoredObject | None = None, *, small: bool = True) -> Draft:
        """A new draft: empty, or with the content of a stored object. small: it may be in memory."""
        self._last += 1
        size = base.size if base else 0
        draft = Draft(self, self._last, size, base, size)
        if small and base is None and self._small:
            draft.keep(b"")
            return draft
        try:
            descriptor = self.make(draft.number)
            try:
                os.ftruncate(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _translated(error) from error
        return draft

    def make(self, number: int) -> int:
        """A descriptor of the new file of a draft. (One that a crash left there is none of this draft.)"""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        return os.open(self.folder / str(number), flags, 0o600)

    def sync_folder(self) -> None:
        """The names of drafts that were made are on the disk, whatever happens to the machine."""
        durable.sync_folder(self.folder)

    def remember(self, bodies: dict[int, bytes]) -> None:
        """What the journal has of drafts of an earlier mount."""
        self._bodies = bodies
        self._last = max(self._last, *bodies, 0)

    def restore(self, draft: Draft, *, written: bool) -> None:
        """A draft of an earlier mount gets what the journal has of it. written: it was changed after that:
        where it is a file, that has more.
        """
        body = self._bodies.get(draft.number)
        if body is None or (written and self._is_file(draft.number)):
            return
        del self._bodies[draft.number]
        (self.folder / str(draft.number)).unlink(missing_ok=True)  # it was only there to be read
        draft.keep(body)

    def forget_bodies(self) -> set[int]:
        """Drafts that the journal has something of which is not the whole of them any more."""
        left, self._bodies = set(self._bodies), {}
        return left

    def takes_small(self, size: int, more: int) -> bool:
        """Whether a draft in memory may have so many bytes, `more` than before."""
        return size <= self._small and self.in_memory + more <= self._all_small

    def open(self, number: int) -> int:
        """A descriptor of a draft."""
        try:
            return os.open(self.folder / str(number), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ReelfsError(f"staged file {number}: {error.strerror}") from error

    def path(self, draft: Draft) -> str:
        """Where a draft is, for a process that reads it."""
        draft.spill()
        return str(self.folder / str(draft.number))

    def remove(self, number: int) -> None:
        """A draft is not needed any more; after a crash it would be as long as the journal names it."""
        if self.named(number):
            self._doomed.add(number)
            return
        self._doomed.discard(number)
        (self.folder / str(number)).unlink(missing_ok=True)

    def released(self, numbers: Iterable[int]) -> None:
        """The journal names these no more."""
        for number in self._doomed.intersection(numbers):
            self.remove(number)

    def has(self, draft: Draft) -> bool:
        """Whether a draft is there."""
        return draft.is_small or self._is_file(draft.number)

    def _is_file(self, number: int) -> bool:
        return (self.folder / str(number)).exists()

    @contextlib.contextmanager
    def room(self, written: int) -> Iterator[None]:
        """Around something that writes so many bytes. Raises NoRoom, before or instead."""
        try:
            self._check(written)
        except NoRoom:
            self.reclaim()
            self._check(written)
        try:
            yield
        except OSError as error:
            raise _translated(error) from error

    def _check(self, written: int) -> None:
        if not written:
            return
        status = os.statvfs(self.folder)
        # On a disk that is full to the last byte nothing could be removed: that is a row of the journal.
        floor = max(self._floor, journal_room(status.f_blocks * status.f_frsize))
        if status.f_bavail * status.f_frsize - written - self.in_memory < floor:
            raise NoRoom(f"the disk of {self.folder} is full: free some, or set cache_dir to a larger one")
        if not self._limit:
            return
        if time.monotonic() - self._counted > COUNT_SECONDS:
            self._used, self._counted = self.used(), time.monotonic()
        self._used += written
        if self._used > self._limit:
            self._counted = -math.inf
            raise NoRoom(
                f"{self.folder} holds as much as write.staging allows: wait for uploads, or raise it"
            )

    def used(self) -> int:
        """Bytes all drafts take on the disk, in the journal or out of it."""
        total = self.in_memory
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
        return total

    def free(self) -> tuple[int, int]:
        """Bytes that can still be staged, and that could be in all."""
        status = os.statvfs(self.folder)
        total = status.f_blocks * status.f_frsize
        floor = max(self._floor, journal_room(total))
        free = max(0, status.f_bavail * status.f_frsize - floor)
        if self._limit:
            return max(0, min(free, self._limit - self.used())), min(total, self._limit)
        return free, total

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock)


def journal_room(disk: int) -> int:
    """Bytes of a disk of so many that are left to the journal: 16 MiB, of a small one a quarter."""
    return min(JOURNAL_ROOM, disk // 4)


def _translated(error: OSError) -> ReelfsError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoRoom(f"no room to stage what is written: {error.strerror}")
    return ReelfsError(f"what is written cannot be staged: {error.strerror}")
