"""`.search.sqlite`: what is kept of one version of one video, as blob pages in a database of its own.

`meta` names the object (key, etag, size), the code and the plan; `frame_info` has a row a described picture;
`pages` have the vectors of a descriptor, 4,096 rows each; `coded` and `sound` have hashes. A file that was
made by other code, or of another version of the object, is made anew. Parts are added as they are finished:
a long video goes on where it was interrupted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import apsw
import numpy as np
from numpy.typing import NDArray

from vfs import Damaged, harden
from vfs_search.sampling import Part, Plan

SUFFIX = ".search.sqlite"
#: Part of every identity: changed when the same video would be described otherwise.
CODE = "search.index.2"
GRAD = "grad512.1"
PAGE = 4096
#: Bytes of a file of somebody else's: a match of 90 minutes with all windows has 60 MB.
MAX_BYTES = 1 << 30
#: Bytes at the beginning that tell what a file is.
HEAD = 64 << 10
#: Windows that a picture is described in, the whole one among them; what a descriptor may be called.
WINDOWS, _NAME = 12, re.compile(r"\w{1,40}", re.ASCII)
_TABLES = frozenset(("meta", "frame_info", "pages", "coded", "sound"))
_SCHEMA = """
PRAGMA journal_mode = DELETE;
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS frame_info(
    id INTEGER PRIMARY KEY, frame_number INTEGER NOT NULL, timestamp REAL NOT NULL,
    is_keyframe INTEGER NOT NULL DEFAULT 0, created_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE INDEX IF NOT EXISTS frame_info_number ON frame_info(frame_number);
CREATE INDEX IF NOT EXISTS frame_info_timestamp ON frame_info(timestamp);
CREATE TABLE IF NOT EXISTS pages(
    descriptor TEXT NOT NULL, page INTEGER NOT NULL, frames BLOB NOT NULL, windows BLOB NOT NULL,
    vectors BLOB NOT NULL, PRIMARY KEY(descriptor, page));
CREATE TABLE IF NOT EXISTS coded(part INTEGER PRIMARY KEY, hashes BLOB NOT NULL, times BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS sound(part INTEGER PRIMARY KEY, landmarks BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which version of which object, and how it was looked at."""

    key: str
    etag: str
    size: int
    plan: Plan

    @property
    def text(self) -> str:
        """Equal for files that can stand for one another, whatever folder of a bucket is mounted."""
        name, plan = self.key.rpartition("/")[2], asdict(self.plan)
        del plan["batch"]  # as many at a time as one likes: the same vectors
        return json.dumps([CODE, GRAD, name, self.etag, self.size, plan])


@dataclass(frozen=True, eq=False)
class Contents:
    """All of a finished file. extra: by descriptor, (frames, vectors)."""

    duration: float
    numbers: NDArray[np.int64]
    times: NDArray[np.float64]
    keys: NDArray[np.bool_]
    frames: NDArray[np.int32]
    windows: NDArray[np.uint8]
    vectors: NDArray[np.uint8]
    coded: NDArray[np.uint64]
    coded_times: NDArray[np.float64]
    sound: NDArray[np.uint32]
    extra: dict[str, tuple[NDArray[np.int32], NDArray[np.float32]]]


class Writer:
    """A file that is being made, part by part."""

    def __init__(self, path: Path, identity: Identity) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._database = self._open(path, identity)

    def _open(self, path: Path, identity: Identity) -> apsw.Connection:
        for again in (False, True):
            database = apsw.Connection(str(path))
            try:
                list(database.execute(_SCHEMA))
                told = list(database.execute("SELECT value FROM meta WHERE name = 'identity'"))
                if not told:
                    _put(database, "identity", identity.text)
                    _put(database, "until", "0")
                    return database
                if told == [(identity.text,)]:
                    return database
            except apsw.Error:
                if again:
                    database.close()
                    raise
            database.close()
            path.unlink(missing_ok=True)
        raise AssertionError("a new file has no identity but ours")

    @property
    def until(self) -> float:
        """Seconds up to which it is done."""
        return float(self._meta("until") or 0)

    @property
    def pictures(self) -> int:
        """How many are described by now."""
        return int(self._one("SELECT count(*) FROM frame_info") or 0)

    def add(self, part: Part, until: float) -> None:
        """One more stretch, which ends at `until` seconds."""
        database = self._database
        with database:
            first = self.pictures
            before = int(self._meta("frames") or 0)
            database.executemany(
                "INSERT INTO frame_info(id, frame_number, timestamp, is_keyframe) VALUES (?, ?, ?, ?)",
                (
                    (first + n, before + int(number), float(time), int(key))
                    for n, (number, time, key) in enumerate(
                        zip(part.numbers, part.times, part.keys, strict=True)
                    )
                ),
            )
            self._pages("grad512", part.rows + first, part.windows, part.vectors)
            for name, vectors in part.extra.items():
                frames = np.arange(len(vectors), dtype=np.int32) + first
                self._pages(name, frames, np.zeros(len(vectors), np.uint8), vectors)
            database.execute(
                "INSERT INTO coded(hashes, times) VALUES (?, ?)",
                (part.coded.tobytes(), part.coded_times.tobytes()),
            )
            database.execute("INSERT INTO sound(landmarks) VALUES (?)", (part.sound.tobytes(),))
            _put(database, "until", repr(until))
            _put(database, "frames", str(before + part.frames))
            _put(database, "duration", repr(max(part.duration, float(self._meta("duration") or 0))))

    def finish(self) -> None:
        """It is whole."""
        _put(self._database, "whole", "1")

    def close(self) -> None:
        """All is written already."""
        self._database.close()

    def _pages(self, descriptor: str, frames: Any, windows: Any, vectors: Any) -> None:
        page = int(
            self._one("SELECT coalesce(max(page), -1) + 1 FROM pages WHERE descriptor = ?", descriptor) or 0
        )
        for number, at in enumerate(range(0, len(vectors), PAGE), page):
            rows = slice(at, at + PAGE)
            blobs = (frames[rows].astype(np.int32), windows[rows], vectors[rows])
            self._database.execute(
                "INSERT INTO pages VALUES (?, ?, ?, ?, ?)",
                (descriptor, number, *(b.tobytes() for b in blobs)),
            )

    def _meta(self, name: str) -> str | None:
        found: str | None = self._one("SELECT value FROM meta WHERE name = ?", name)
        return found

    def _one(self, statement: str, *values: Any) -> Any:
        row = self._database.execute(statement, values).fetchone()
        return row[0] if row else None


def _put(database: apsw.Connection, name: str, value: str) -> None:
    database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def stands_in(head: bytes, identity: Identity | None = None) -> bool:
    """Whether the first bytes of a file (HEAD of them) are of one like these; identity: of this one.

    Its first table has the identity, and comes right behind the schema. One that cannot be told is not.
    """
    wanted = json.dumps([CODE]).rpartition(".")[0] if identity is None else identity.text
    return head.startswith(b"SQLite format 3\0") and wanted.encode() in head


def is_whole(path: Path, identity: Identity) -> bool:
    """Whether a file is there, finished and of this identity."""
    try:
        with _reading(path) as database:
            told = dict(database.execute("SELECT name, value FROM meta WHERE name IN ('identity', 'whole')"))
    except (Damaged, apsw.Error):
        return False
    return told == {"identity": identity.text, "whole": "1"}


def read(path: Path) -> Contents:
    """All of a file. Raises Damaged."""
    try:
        with _reading(path) as database:
            return _contents(database)
    except (apsw.Error, ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise Damaged(f"{path.name}: {error}") from None


def _contents(database: apsw.Connection) -> Contents:
    meta = dict(database.execute("SELECT name, value FROM meta"))
    rows = list(database.execute("SELECT frame_number, timestamp, is_keyframe FROM frame_info ORDER BY id"))
    pages: dict[str, list[tuple[bytes, bytes, bytes]]] = {}
    for descriptor, *blobs in database.execute(
        "SELECT descriptor, frames, windows, vectors FROM pages ORDER BY descriptor, page"
    ):
        pages.setdefault(descriptor, []).append((blobs[0], blobs[1], blobs[2]))
    frames, windows, vectors = _joined(pages.pop("grad512", []))
    extra = {}
    for name, found in pages.items():
        if not _NAME.fullmatch(name):  # it is to be the name of a file
            raise Damaged(f"{name!a} is no name of a descriptor")
        owned, _, raw = _joined(found)
        of = _within(np.frombuffer(owned, np.int32), len(rows))
        extra[name] = (of, np.frombuffer(raw, np.float32).reshape(len(of), -1))
    coded = list(database.execute("SELECT hashes, times FROM coded ORDER BY part"))
    sound = list(database.execute("SELECT landmarks FROM sound ORDER BY part"))
    owners = _within(np.frombuffer(frames, np.int32), len(rows))
    shown = _within(np.frombuffer(windows, np.uint8), WINDOWS)
    hashed = [
        np.frombuffer(b"".join(row[n] for row in coded), kind) for n, kind in ((0, np.uint64), (1, float))
    ]
    times, duration = np.array([row[1] for row in rows], np.float64), float(meta.get("duration", 0))
    if len(shown) != len(owners) or len(hashed[0]) != len(hashed[1]):
        raise Damaged("columns of different lengths")
    if not all(np.isfinite(values).all() for values in (times, hashed[1], np.array(duration))):
        raise Damaged("times that are none")
    return Contents(
        duration=duration,
        numbers=np.array([row[0] for row in rows], np.int64),
        times=times,
        keys=np.array([row[2] for row in rows], np.bool_),
        frames=owners,
        windows=shown,
        vectors=np.frombuffer(vectors, np.uint8).reshape(len(owners), 512),
        coded=hashed[0],
        coded_times=hashed[1],
        sound=np.frombuffer(b"".join(row[0] for row in sound), np.uint32).reshape(-1, 2),
        extra=extra,
    )


def _within(numbers: NDArray[Any], count: int) -> NDArray[Any]:
    """Numbers of what there are so many of. Raises Damaged."""
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < count:
        raise Damaged("numbers of what there is none of")
    return numbers


def _joined(found: list[tuple[bytes, bytes, bytes]]) -> tuple[bytes, bytes, bytes]:
    first, second, third = (b"".join(row[n] for row in found) for n in range(3))
    return first, second, third


@contextmanager
def _reading(path: Path) -> Iterator[apsw.Connection]:
    """A file of somebody else's perhaps: only read, only these tables. Raises Damaged where there is none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Damaged(f"{path.name} has more than {MAX_BYTES} bytes")
        database = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    except (OSError, apsw.Error) as error:
        raise Damaged(f"{path.name}: {error}") from None
    try:
        harden(database, _TABLES)
        database.limit(apsw.SQLITE_LIMIT_LENGTH, 64 << 20)
        yield database
    finally:
        database.close()
