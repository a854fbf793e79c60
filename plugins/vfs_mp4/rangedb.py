"""A stored `.index.sqlite` that is opened where it lies: SQLite asks for pages, these are read by range.

The database is read-only and immutable. Queries run in a thread; a page that is not here yet is read by the
loop that serves the mount, with its deadlines and through its cache. What a damaged or hostile database may
cost is bounded: steps, pages, and every row is checked before it is used.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import apsw
import numpy as np
import trio

from vfs import Damaged, NotFound, Place, Stale, harden
from vfs_mp4 import sidecar
from vfs_mp4.anchors import Anchors
from vfs_mp4.probe import Reader

T = TypeVar("T")
Row = tuple[Any, ...]

# A sidecar up to this size is read whole, in one request: 90 minutes of 0.8 s fragments without the durations
# of samples are 330 KB, and take less time than two requests.
WHOLE = 512 << 10
# Read at once: the schema and mostly the roots of all trees; then two pages of the usual size.
_HEAD, _CLUSTER = 16 << 10, 8 << 10
# Clusters of one database that are kept here, and that one query may read.
_KEPT, _MOST_READS = 32, 64
# Rows that come along with the one that was asked for, before and behind: they lie in the same page mostly.
_BEFORE, _BEHIND = 2, 8
# Halvings of 2^60 rows.
_MOST_HALVINGS = 64
_NAME = "reelfs-range"
_threads = trio.CapacityLimiter(8)
_open: dict[str, _File] = {}
_names = itertools.count()


class _File:
    """A place as a file that a thread reads. failure: what a read raised."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._clusters: OrderedDict[int, bytes] = OrderedDict()
        self.failure: BaseException | None = None
        self.reads = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return self._place.size

    def read(self, amount: int, offset: int) -> bytes:
        """A piece, short at the end of the file; in a thread of trio."""
        parts, at, stop = [], offset, min(offset + amount, self.size)
        while at < stop:
            begin, data = self._cluster(at)
            part = data[at - begin : stop - begin]
            parts.append(part)
            at += len(part)
        data = b"".join(parts)
        if offset < 20 and offset + len(data) >= 20:
            # A database left in WAL mode (18, 19 = 2): its main file is complete.
            data = data[: 18 - offset] + b"\1\1" + data[20 - offset :]
        return data

    def _cluster(self, offset: int) -> tuple[int, bytes]:
        """(where it begins, bytes) of the cluster that holds an offset."""
        begin = offset // _CLUSTER * _CLUSTER if offset >= _HEAD else 0
        found = self._clusters.get(begin)
        if found is None:
            self.reads += 1
            if self.reads > _MOST_READS:
                raise Damaged(f"more than {_MOST_READS} pages for one row")
            length = _CLUSTER if begin else _HEAD
            found = trio.from_thread.run(self._place.read, begin, length)
            self._clusters[begin] = found
            if len(self._clusters) > _KEPT:
                self._clusters.popitem(last=False)
        self._clusters.move_to_end(begin)
        return begin, found


class _Handle:
    """What SQLite holds of an open file; writes are refused, locks are not needed."""

    def __init__(self, file: _File) -> None:
        self._file = file

    def xRead(self, amount: int, offset: int) -> bytes:
        """See SQLite's `sqlite3_io_methods`."""
        try:
            return self._file.read(amount, offset)
        except BaseException as error:
            self._file.failure = error
            raise apsw.IOError("not read") from None

    def xFileSize(self) -> int:
        """Bytes."""
        return self._file.size

    def xClose(self) -> None:
        """Nothing to close."""

    def xLock(self, level: int) -> None:
        """Immutable: nobody to lock out."""

    def xUnlock(self, level: int) -> None:
        """See `xLock`."""

    def xCheckReservedLock(self) -> bool:
        """See `xLock`."""
        return False

    def xSectorSize(self) -> int:
        """Of no meaning here."""
        return 4096

    def xDeviceCharacteristics(self) -> int:
        """Nobody changes it."""
        return int(apsw.SQLITE_IOCAP_IMMUTABLE)

    def xFileControl(self, operation: int, pointer: int) -> bool:
        """None is known."""
        return False


class _Ranges(apsw.VFS):
    """The way from SQLite to `_open`."""

    def __init__(self) -> None:
        super().__init__(_NAME, base="")

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        """The file of that name; there are no journals."""
        found = _open.get(name.filename() if isinstance(name, apsw.URIFilename) else str(name))
        if found is None:
            raise apsw.CantOpenError("not one of ours")
        flags[1] = flags[0]
        return _Handle(found)

    def xAccess(self, pathname: str, flags: int) -> bool:
        """There is no journal beside it."""
        return pathname in _open

    def xFullPathname(self, name: str) -> str:
        """As it is."""
        return name


_vfs: list[_Ranges] = []


def _connect(name: str) -> apsw.Connection:
    if not _vfs:
        _vfs.append(_Ranges())
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    return apsw.Connection(f"file:{name}?immutable=1", flags=flags, vfs=_NAME)


class RangedIndex:
    """A `table.Finder` by a stored `.index.sqlite`. Made by `opened`."""

    def __init__(self, place: Place, size: int) -> None:
        self._place, self._size = place, size
        self._file = _File(place)
        self._lock = trio.Lock()
        self._rows: dict[int, Row] = {}
        self._last = 0
        self._meta: sidecar.Meta = sidecar.Meta(0, None, None)
        self._anchors: Anchors | None = None

    @classmethod
    async def opened(cls, place: Place, size: int) -> RangedIndex:
        """What a sidecar says of its first and last fragments. size: bytes of the video. Raises Damaged."""
        made = cls(place, size)
        await made._ask(made._ends)
        made.anchors()
        return made

    @property
    def meta(self) -> sidecar.Meta:
        """What it says of all fragments."""
        return self._meta

    def anchors(self) -> Anchors:
        """The rows that were read; those with a neighbour are fine. Raises Damaged."""
        if self._anchors is None:
            numbers = sorted(self._rows)
            rows = [self._rows[number] for number in numbers]
            checked = sidecar.checked(sidecar.SQLITE, self._meta, rows, None, self._size)
            if not np.array_equal(checked.time, [row[0] for row in rows]):
                raise Damaged("fragments that are not in order")
            fine = [number + 1 in self._rows or number == self._last for number in numbers]
            self._anchors = replace(checked, fine=np.array(fine))
        return self._anchors

    async def narrow(self, reader: Reader, at: int, stop: int, want: int) -> None:
        """See `table.Finder`."""
        numbers = sorted(self._rows)
        place = int(np.searchsorted(self.anchors().offset, at, "right")) - 1
        low, high = numbers[place], numbers[min(place + 1, len(numbers) - 1)]
        await self._ask(lambda connection: self._around(connection, want, low, high))

    async def whole(self, reader: Reader) -> Anchors | None:
        """All of it, read at once."""
        if self._place.size > sidecar.MAX_BYTES:
            return None
        try:
            data = await self._place.read(0, self._place.size)
        except (NotFound, Stale) as error:
            raise Damaged(str(error)) from error
        return await trio.to_thread.run_sync(sidecar.parse, sidecar.SQLITE, data, self._size)

    # -- queries, in a thread ---------------------------------------------------------------------------

    async def _ask(self, query: Callable[[apsw.Connection], dict[int, Row]]) -> None:
        """Learn the rows that a query gives. Raises Damaged, StoreError."""
        try:
            async with self._lock:
                found = await trio.to_thread.run_sync(self._run, query, limiter=_threads)
        except (NotFound, Stale) as error:
            raise Damaged(str(error)) from error
        if not found.keys() <= self._rows.keys():
            self._rows |= found
            self._anchors = None

    def _run(self, query: Callable[[apsw.Connection], T]) -> T:
        name = f"{_NAME}-{next(_names)}"
        file = _open[name] = self._file
        file.failure, file.reads = None, 0
        try:
            connection = _connect(name)
            try:
                harden(connection, sidecar.TABLES)
                return query(connection)
            finally:
                connection.close()
        except (apsw.Error, UnicodeDecodeError, MemoryError) as error:
            if file.failure is not None:
                raise file.failure from None
            raise Damaged(f"unreadable: {error}") from None
        finally:
            del _open[name]

    def _ends(self, connection: apsw.Connection) -> dict[int, Row]:
        """The first two rows and the last two."""
        self._meta = sidecar.meta_of(connection)
        found = _rows(connection, "ORDER BY rowid LIMIT 2")
        found |= _rows(connection, "ORDER BY rowid DESC LIMIT 2")
        self._last = max(found, default=0)
        return found

    def _around(self, connection: apsw.Connection, want: int, low: int, high: int) -> dict[int, Row]:
        """The last row of [low, high) that is not after `want`, and some around it."""
        number = _by_index(connection, want) if _has_index(connection) else None
        if number is None:
            number = self._by_halving(connection, want, low, high)
        number = min(max(number, low), high - 1)
        return _rows(connection, "WHERE rowid BETWEEN ? AND ?", (number - _BEFORE, number + _BEHIND))

    def _by_halving(self, connection: apsw.Connection, want: int, low: int, high: int) -> int:
        """The same without an index: by row numbers, which are in the order of time."""
        low_time, high_time = self._rows[low][0], self._rows[high][0]
        for step in range(_MOST_HALVINGS):
            if high - low <= 1:
                break
            part = (want - low_time) / max(high_time - low_time, 1) if step % 4 < 3 else 0.5
            middle = min(max(low + int((high - low) * part), low + 1), high - 1)
            found = _rows(connection, "WHERE rowid = ?", (middle,))
            if not found:
                raise Damaged(f"no fragment {middle}")
            time = found[middle][0]
            if not isinstance(time, int):
                raise Damaged("a time that is no number")
            if time <= want:
                low, low_time = middle, time
            else:
                high, high_time = middle, time
        return low


def _rows(connection: apsw.Connection, which: str, values: tuple[int, ...] = ()) -> dict[int, Row]:
    """Fragments by number; at most as many as are ever asked for at once."""
    statement = f"SELECT rowid, {sidecar.COLUMNS} FROM fragments {which}"
    found = itertools.islice(connection.execute(statement, values), _BEFORE + _BEHIND + 1)
    return {row[0]: row[1:] for row in found if isinstance(row[0], int)}


_LATEST = "SELECT rowid FROM fragments WHERE t <= ? ORDER BY t DESC LIMIT 1"


def _has_index(connection: apsw.Connection) -> bool:
    """Whether times are found by an index; a scan would read the whole table."""
    steps = list(connection.execute(f"EXPLAIN QUERY PLAN {_LATEST}", (0,)))
    return len(steps) == 1 and "USING COVERING INDEX" in str(steps[0][-1])


def _by_index(connection: apsw.Connection, want: int) -> int | None:
    found = next(iter(connection.execute(_LATEST, (want,))), None)
    return found[0] if found and isinstance(found[0], int) else None
