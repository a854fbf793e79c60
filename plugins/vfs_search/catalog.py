"""The index of a library on this machine: a catalogue of videos, and their vectors and hashes as columns.

A folder of one source. `objects/` has a `.search.sqlite` of each video, which is what counts; the columns are
made of them, so that a question reads few files, mapped into memory, and none of them whole. Rows of videos
that are gone stay until they are many; then the columns are written anew, in a folder of the next number.
One process writes at a time (a lock of the catalogue); readers see what was committed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import xxhash
from numpy.typing import NDArray

from vfs import ConfigError, StoredObject, VectorIndex
from vfs_search import bits, fast
from vfs_search.columns import Column
from vfs_search.fast import Lists
from vfs_search.sidecar import SUFFIX, Contents

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS objects(
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, etag TEXT NOT NULL, size INTEGER NOT NULL,
    identity TEXT NOT NULL, duration REAL NOT NULL, frames INTEGER NOT NULL, ranges TEXT NOT NULL,
    used REAL NOT NULL);
"""
#: Columns are written anew when so many of the rows are of videos that are gone.
_DEAD = 0.5
#: What the columns are called, their kinds and widths. Of further descriptors: see `_extra`.
COLUMNS: dict[str, tuple[Any, int]] = {
    "grad512": (np.uint8, 512),
    "norms": (np.float32, 0),
    "bits": (np.uint64, bits.WORDS),
    "times": (np.float32, 0),
    "windows": (np.uint8, 0),
    "coded": (np.uint64, 0),
    "coded_times": (np.float64, 0),
    "sound": (np.uint32, 2),
}
#: Columns that have the same rows.
_LIKE = {
    "norms": "grad512",
    "bits": "grad512",
    "times": "grad512",
    "windows": "grad512",
    "coded_times": "coded",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A video that is indexed. ranges: by column, first row and number of rows."""

    id: int
    key: str
    etag: str
    size: int
    duration: float
    ranges: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Snapshot:
    """What was committed at one moment. columns: mapped files by name.

    engine, lists: asked in place of a scan.
    """

    generation: str
    entries: tuple[Entry, ...]
    columns: dict[str, NDArray[Any]]
    listed: int | None
    engine: VectorIndex | None = None
    lists: Lists | None = None

    @cached_property
    def owners(self) -> NDArray[np.int32]:
        """The entry (index into `entries`) of each row of grad512; -1 where the video is gone."""
        return self.owners_of("grad512")

    def owners_of(self, column: str) -> NDArray[np.int32]:
        """The entry of each row of a column, -1 where there is none."""
        rows = len(self.columns.get(column, ()))
        found = np.full(rows, -1, np.int32)
        for number, entry in enumerate(self.entries):
            first, count = entry.ranges.get(column, (0, 0))
            found[first : first + count] = number
        return found

    def of(self, entry: Entry, column: str) -> NDArray[Any]:
        """The rows of one video."""
        first, count = entry.ranges.get(_LIKE.get(column, column), (0, 0))
        rows: NDArray[Any] = self.columns[column][first : first + count]
        return rows

    @property
    def nbytes(self) -> int:
        """Memory that is not mapped, roughly."""
        return 4 * len(self.columns.get("grad512", ())) + 1000 * len(self.entries)


class Catalog:
    """The folder of one source. Raises ConfigError where it cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._database = apsw.Connection(str(folder / "catalog.sqlite"))
            self._database.set_busy_timeout(30_000)
            list(self._database.execute(_SCHEMA))
        except (OSError, apsw.Error) as error:
            raise ConfigError(
                f"the search index {folder} cannot be used: {error}; remove it, or set another"
            ) from None

    def close(self) -> None:
        """All is written already."""
        self._database.close()

    # -- reading ------------------------------------------------------------------------------------------

    @property
    def generation(self) -> str:
        """Changes with every commit."""
        return str(self._meta("generation") or "0")

    def snapshot(self) -> Snapshot:
        """What is there now."""
        with self._database:  # one state of the catalogue
            entries = tuple(self._entries())
            generation, listed = self.generation, self._meta("listed")
            rows: dict[str, int] = json.loads(self._meta("rows") or "{}")
            folder = self._columns_folder()
        columns = {}
        for name in {**COLUMNS, **dict.fromkeys(rows)}:
            kind, width = COLUMNS.get(name) or _extra(name)
            columns[name] = Column(folder / name, kind, width).mapped(rows.get(_LIKE.get(name, name), 0))
        count = int(listed) if listed is not None else None
        lists = fast.opened(folder)
        if lists is not None and lists.rows > len(columns["grad512"]):
            lists = None
        return Snapshot(generation, entries, columns, count, lists=lists)

    def make_lists(self) -> bool:
        """Have the rows that are there looked through by faiss, where it is installed and they are many."""
        return fast.make(self.snapshot().columns["grad512"], self._columns_folder())

    def _entries(self) -> Iterator[Entry]:
        query = "SELECT id, key, etag, size, duration, ranges FROM objects ORDER BY id"
        for number, key, etag, size, duration, ranges in self._database.execute(query):
            where = {name: (first, count) for name, (first, count) in json.loads(ranges).items()}
            yield Entry(number, _text(key), etag, size, duration, where)

    def has(self, stored: StoredObject, identity: str) -> bool:
        """Whether this version is indexed so."""
        query = "SELECT identity FROM objects WHERE key = ?"
        return self._database.execute(query, (_bytes(stored.key),)).fetchone() == (identity,)

    def path_of(self, stored: StoredObject) -> Path:
        """Where the file of a video is, or will be."""
        digest = xxhash.xxh3_128_hexdigest(_bytes(f"{stored.key}\0{stored.version}\0{stored.size}"))
        return self.folder / "objects" / digest[:2] / f"{digest}{SUFFIX}"

    # -- writing ------------------------------------------------------------------------------------------

    def add(self, stored: StoredObject, identity: str, contents: Contents) -> None:
        """Take a finished video in, in place of an earlier version of it. Raises OSError."""
        rows, data = _rows_of(contents)
        with self._writing():
            total: dict[str, int] = json.loads(self._meta("rows") or "{}")
            folder = self._columns_folder()
            folder.mkdir(mode=0o700, exist_ok=True)
            ranges = {}
            for name, values in data.items():
                owner = _LIKE.get(name, name)
                kind, width = COLUMNS.get(name) or _extra(name)
                Column(folder / name, kind, width).append(values, total.get(owner, 0))
                ranges[owner] = (total.get(owner, 0), rows[owner])
            for owner, (first, count) in ranges.items():
                total[owner] = first + count
            self._put("rows", json.dumps(total))
            self._database.execute("DELETE FROM objects WHERE key = ?", (_bytes(stored.key),))
            row = (
                *(_bytes(stored.key), stored.version, stored.size, identity, contents.duration),
                *(len(contents.times), json.dumps(ranges), time.time()),
            )
            self._database.execute(
                "INSERT INTO objects(key, etag, size, identity, duration, frames, ranges, used)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            self._changed()

    def forget(self, keys: Iterable[str]) -> int:
        """Videos that are gone: their rows and files go. How many there were."""
        gone = 0
        with self._writing():
            for key in keys:
                row = self._database.execute(
                    "SELECT etag, size FROM objects WHERE key = ?", (_bytes(key),)
                ).fetchone()
                if row:
                    self.path_of(StoredObject(key, row[1], row[0])).unlink(missing_ok=True)
                    self._database.execute("DELETE FROM objects WHERE key = ?", (_bytes(key),))
                    gone += 1
            if gone:
                self._changed()
        return gone

    def known(self) -> list[str]:
        """The videos that are indexed."""
        return [_text(key) for (key,) in self._database.execute("SELECT key FROM objects ORDER BY key")]

    def clean(self, listed: int, budget: int) -> tuple[int, int]:
        """After all was listed: drop files of versions that are gone, what is over `budget` bytes, dead rows.

        listed: how many videos there are. (files dropped, videos dropped for the budget).
        """
        if self._meta("listed") != str(listed):
            with self._writing():
                self._put("listed", str(listed))
                self._changed()
        known = {
            self.path_of(StoredObject(entry.key, entry.size, entry.etag)): entry for entry in self._entries()
        }
        orphans = [path for path in (self.folder / "objects").glob(f"??/*{SUFFIX}") if path not in known]
        for path in orphans:
            path.unlink(missing_ok=True)
        over = self.nbytes - budget
        oldest = "SELECT key, etag, size FROM objects ORDER BY used"
        dropped = []
        for key, etag, size in list(self._database.execute(oldest)) if over > 0 else ():
            if over <= 0:
                break
            path = self.path_of(StoredObject(_text(key), size, etag))
            over -= 2 * path.stat().st_size if path.exists() else 0
            dropped.append(_text(key))
        self.forget(dropped)
        self._compact()
        return len(orphans), len(dropped)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        total = 0
        for path in self.folder.rglob("*"):
            try:
                total += path.stat().st_size if path.is_file() else 0
            except OSError:
                continue
        return total

    def _compact(self) -> None:
        """Write the columns anew where most rows are of videos that are gone."""
        snapshot = self.snapshot()
        rows = len(snapshot.columns["grad512"])
        alive = sum(entry.ranges.get("grad512", (0, 0))[1] for entry in snapshot.entries)
        if rows == 0 or alive > rows * (1 - _DEAD):
            return
        with self._writing():
            old = self._columns_folder()
            number = int(self._meta("columns") or 0) + 1
            new = self.folder / f"columns{number}"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(mode=0o700)
            total: dict[str, int] = {}
            for entry in snapshot.entries:
                ranges = {owner: (total.get(owner, 0), count) for owner, (_, count) in entry.ranges.items()}
                for name in snapshot.columns:
                    owner = _LIKE.get(name, name)
                    if owner in ranges:
                        kind, width = COLUMNS.get(name) or _extra(name)
                        Column(new / name, kind, width).append(snapshot.of(entry, name), ranges[owner][0])
                for owner, (first, count) in ranges.items():
                    total[owner] = first + count
                self._database.execute(
                    "UPDATE objects SET ranges = ? WHERE id = ?", (json.dumps(ranges), entry.id)
                )
            self._put("columns", str(number))
            self._put("rows", json.dumps(total))
            self._changed()
        # A reader may have them mapped: what is mapped stays until it lets go.
        shutil.rmtree(old, ignore_errors=True)

    def _columns_folder(self) -> Path:
        return self.folder / f"columns{self._meta('columns') or 0}"

    def _writing(self) -> Any:
        """A transaction that nobody else can write beside."""
        return _Writing(self._database)

    def _changed(self) -> None:
        self._put("generation", f"{time.time_ns():x}.{os.getpid():x}")

    def _meta(self, name: str) -> str | None:
        row = self._database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else None

    def _put(self, name: str, value: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


class _Writing:
    def __init__(self, database: apsw.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self._database.execute("COMMIT" if kind is None else "ROLLBACK")


def _extra(name: str) -> tuple[Any, int]:
    """Kind and width of the column of a further descriptor, which its name says: `rep0st108.float32.108`."""
    return np.float32, int(name.rpartition(".")[2])


def _rows_of(contents: Contents) -> tuple[dict[str, int], dict[str, NDArray[Any]]]:
    """How many rows there are of each, and the columns."""
    by_hash = np.argsort(contents.coded, kind="stable")
    by_code = np.argsort(contents.sound[:, 0], kind="stable")
    data: dict[str, NDArray[Any]] = {
        "grad512": contents.vectors,
        "norms": norms(contents.vectors),
        "bits": bits.of(contents.vectors),
        "times": contents.times[contents.frames].astype(np.float32),
        "windows": contents.windows,
        "coded": contents.coded[by_hash],
        "coded_times": contents.coded_times[by_hash],
        "sound": contents.sound[by_code],
    }
    for name, (frames, vectors) in contents.extra.items():
        data[f"{name}.float32.{vectors.shape[1]}"] = vectors
        data[f"{name}.times.float32.1"] = contents.times[frames].astype(np.float32)[:, None]
    rows = {_LIKE.get(name, name): len(values) for name, values in data.items()}
    return rows, data


def norms(vectors: NDArray[np.uint8]) -> NDArray[np.float32]:
    """One over the length of each stored vector; 0 for one that is nothing."""
    found = np.empty(len(vectors), np.float32)
    for at in range(0, len(vectors), 8192):
        part = vectors[at : at + 8192].astype(np.float32)
        found[at : at + len(part)] = np.sqrt(np.einsum("ij,ij->i", part, part))
    return np.divide(1, found, out=np.zeros_like(found), where=found > 0)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(key: bytes) -> str:
    return bytes(key).decode("utf-8", "surrogateescape")
