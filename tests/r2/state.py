"""Objects and uploads on a disk: there again after a restart, also after SIGKILL.

Bodies are files that are written once; an object is a list of such pieces (a completed upload joins nothing).
What is where stands in a database whose transactions are atomic but not durable: a process may be killed, a
power cut is not simulated.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_TABLES = """
create table if not exists buckets (name text primary key);
create table if not exists objects (bucket text, identity text, told text, primary key (bucket, identity));
create table if not exists uploads (name text primary key, told text);
create table if not exists parts (upload text, number integer, told text, primary key (upload, number));
"""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file below `blobs`."""

    blob: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of an object. key: as it was spelt last. headers: Content-Type and the like."""

    key: str
    size: int
    etag: str
    modified: float
    headers: dict[str, str]
    metadata: dict[str, str]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an upload."""

    number: int
    etag: str
    size: int
    modified: float
    pieces: tuple[Piece, ...]


@dataclass(slots=True)
class Upload:
    """An upload under way."""

    name: str
    bucket: str
    key: str
    began: float
    headers: dict[str, str]
    metadata: dict[str, str]
    parts: dict[int, Part] = field(default_factory=dict)


Check = Callable[[Stored | None], None]


def identity(key: str) -> str:
    """What makes two keys one: R2 compares their NFC forms."""
    return unicodedata.normalize("NFC", key)


class State:
    """All that is stored. Every method is one transaction."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._base = sqlite3.connect(folder / "state.sqlite", check_same_thread=False, isolation_level=None)
        self._base.executescript("pragma journal_mode=wal; pragma synchronous=off;" + _TABLES)
        self._objects: dict[str, dict[str, Stored]] = {}
        self._uploads: dict[str, Upload] = {}
        self._used: Counter[str] = Counter()
        self._load()

    def _load(self) -> None:
        for (name,) in self._base.execute("select name from buckets"):
            self._objects[name] = {}
        for bucket, key, told in self._base.execute("select * from objects"):
            stored = _stored(json.loads(told))
            self._objects[bucket][key] = stored
            self._use(stored.pieces)
        for name, told in self._base.execute("select * from uploads"):
            self._uploads[name] = Upload(**json.loads(told))
        for name, number, told in self._base.execute("select * from parts"):
            part = _part(json.loads(told))
            self._uploads[name].parts[number] = part
            self._use(part.pieces)
        for path in self._blobs.iterdir():  # of requests that broke off
            if path.name not in self._used:
                path.unlink()

    # -- bodies -----------------------------------------------------------------------------------------

    def path(self, blob: str) -> Path:
        """Where a blob is."""
        return self._blobs / blob

    def new_blob(self) -> tuple[str, int]:
        """A new one, and a descriptor to write it by."""
        name = secrets.token_hex(12)
        return name, os.open(self._blobs / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)

    def drop_blob(self, blob: str) -> None:
        """Remove one that came to nothing."""
        with self._lock:
            if not self._used[blob]:
                self.path(blob).unlink(missing_ok=True)

    def _use(self, pieces: Iterable[Piece]) -> None:
        self._used.update(piece.blob for piece in pieces)

    def _disuse(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            self._used[piece.blob] -= 1
            if self._used[piece.blob] <= 0:
                del self._used[piece.blob]
                self.path(piece.blob).unlink(missing_ok=True)

    # -- buckets and objects ----------------------------------------------------------------------------

    def make_bucket(self, name: str) -> bool:
        """False where it is there already."""
        with self._lock:
            if name in self._objects:
                return False
            self._base.execute("insert into buckets values (?)", (name,))
            self._objects[name] = {}
            return True

    def buckets(self) -> list[str]:
        """Their names."""
        with self._lock:
            return sorted(self._objects)

    def get(self, bucket: str, key: str) -> Stored | None:
        """An object. Raises KeyError without the bucket."""
        with self._lock:
            return self._objects[bucket].get(identity(key))

    def put(self, bucket: str, stored: Stored, check: Check) -> None:
        """Store an object if `check`, which is told what is there, raises nothing."""
        with self._lock:
            key = identity(stored.key)
            now = self._objects[bucket].get(key)
            check(now)
            self._base.execute(
                "insert or replace into objects values (?, ?, ?)", (bucket, key, json.dumps(asdict(stored)))
            )
            self._objects[bucket][key] = stored
            self._use(stored.pieces)
            self._disuse(now.pieces if now else ())

    def remove(self, bucket: str, key: str) -> None:
        """Remove an object, if it is there."""
        with self._lock:
            found = self._objects[bucket].pop(identity(key), None)
            if found is not None:
                self._base.execute(
                    "delete from objects where bucket=? and identity=?", (bucket, identity(key))
                )
                self._disuse(found.pieces)

    def all(self, bucket: str) -> list[Stored]:
        """Every object of a bucket."""
        with self._lock:
            return list(self._objects[bucket].values())

    # -- uploads ----------------------------------------------------------------------------------------

    def start(self, bucket: str, key: str, headers: dict[str, str], metadata: dict[str, str]) -> str:
        """Begin an upload."""
        upload = Upload(secrets.token_hex(32), bucket, key, time.time(), headers, metadata)
        told = {name: getattr(upload, name) for name in Upload.__slots__ if name != "parts"}
        with self._lock:
            self._objects[bucket]
            self._base.execute("insert into uploads values (?, ?)", (upload.name, json.dumps(told)))
            self._uploads[upload.name] = upload
        return upload.name

    def upload(self, name: str) -> Upload:
        """An upload under way. Raises KeyError."""
        with self._lock:
            return self._uploads[name]

    def uploads(self, bucket: str) -> Iterator[Upload]:
        """Those of a bucket."""
        with self._lock:
            return iter([upload for upload in self._uploads.values() if upload.bucket == bucket])

    def put_part(self, name: str, part: Part) -> None:
        """Keep a part, instead of an earlier one of its number. Raises KeyError."""
        with self._lock:
            upload = self._uploads[name]
            before = upload.parts.get(part.number)
            self._base.execute(
                "insert or replace into parts values (?, ?, ?)", (name, part.number, json.dumps(asdict(part)))
            )
            upload.parts[part.number] = part
            self._use(part.pieces)
            self._disuse(before.pieces if before else ())

    def complete(self, name: str, stored: Stored, check: Check) -> None:
        """The upload becomes an object, if `check` raises nothing; it is gone in either case."""
        with self._lock:
            bucket = self._uploads[name].bucket
            try:
                self._base.execute("begin")
                self.put(bucket, stored, check)
            finally:
                self.drop(name)
                self._base.execute("commit")

    def drop(self, name: str) -> bool:
        """Forget an upload and its parts; False where there is none."""
        with self._lock:
            upload = self._uploads.pop(name, None)
            if upload is None:
                return False
            self._base.execute("delete from uploads where name=?", (name,))
            self._base.execute("delete from parts where upload=?", (name,))
            for part in upload.parts.values():
                self._disuse(part.pieces)
            return True


def _stored(told: dict[str, Any]) -> Stored:
    return Stored(**{**told, "pieces": _pieces(told)})


def _part(told: dict[str, Any]) -> Part:
    return Part(**{**told, "pieces": _pieces(told)})


def _pieces(told: dict[str, Any]) -> tuple[Piece, ...]:
    return tuple(Piece(**piece) for piece in told["pieces"])
