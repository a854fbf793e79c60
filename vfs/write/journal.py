"""What is pending, on the disk: one row for each name that differs from the store's. Survives any crash.

A SQLite database in WAL mode. A commit that must outlive the machine is made with `synchronous=FULL`; one
that must outlive the process alone without waiting for the disk. Work is done in a thread, one call at a
time, in order; commits that wait for each other are made as one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import trio

from vfs.errors import NoRoom, ReelfsError
from vfs.spans import StoredObject

#: Of the tables below; another number is another program's.
VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS pending (
    ident INTEGER PRIMARY KEY, key TEXT NOT NULL, state TEXT NOT NULL, told TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS known (key TEXT PRIMARY KEY, version TEXT NOT NULL, told TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, told TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
#: Attributes of objects that are remembered at most, and notes of one kind.
MAX_KNOWN, MAX_NOTES = 500_000, 10_000


@dataclass(frozen=True, slots=True)
class Row:
    """One pending name. state: see `pending.Entry`. told: everything else, as JSON can hold it."""

    ident: int
    key: str
    state: str
    told: Mapping[str, Any] = field(default_factory=dict)


def object_to(stored: StoredObject | None) -> list[Any] | None:
    """A stored object as JSON can hold it."""
    return None if stored is None else [stored.key, stored.size, stored.version, stored.mtime_ns]


def object_from(told: Any) -> StoredObject | None:
    """What `object_to` gave."""
    return None if told is None else StoredObject(*told)


Work = Callable[[apsw.Connection], None]


class Journal:
    """The journal in one folder. source: the URL it is for. Raises ReelfsError for one of another source."""

    def __init__(self, folder: Path, source: str) -> None:
        self.path = folder / "journal.sqlite"
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = apsw.Connection(str(self.path))
            self._db.set_busy_timeout(5000)
            self._db.pragma("journal_mode", "wal")
            self._open(source)
        except apsw.Error as error:
            raise _translated(error, self.path) from error
        self._queue: list[Work] = []
        self._durable = False
        self._turn = trio.Lock()
        self._threads = trio.CapacityLimiter(1)

    def _open(self, source: str) -> None:
        version = self._db.pragma("user_version")
        if version not in (0, VERSION):
            raise ReelfsError(f"{self.path} is of another version of reelfs ({version})")
        with self._db:
            self._db.execute(_SCHEMA)
            self._db.pragma("user_version", VERSION)
            self._db.execute("INSERT OR IGNORE INTO about VALUES ('source', ?)", (source,))
        known = self._db.execute("SELECT value FROM about WHERE name='source'").get
        if known != source:
            raise ReelfsError(f"{self.path} is of {known}, not of {source}")

    # -- reading, at the start --------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """All that is pending."""
        found = self._db.execute("SELECT ident, key, state, told FROM pending ORDER BY ident")
        return [Row(ident, _text(key), state, json.loads(told)) for ident, key, state, told in found]

    def known(self) -> list[tuple[str, str, str]]:
        """Attributes of stored objects that were learnt: key, version, JSON."""
        found = self._db.execute(
            "SELECT key, version, told FROM known ORDER BY rowid DESC LIMIT ?", (MAX_KNOWN,)
        )
        return [(_text(key), version, told) for key, version, told in found]

    def notes(self, kind: str) -> list[dict[str, Any]]:
        """What was noted, oldest first."""
        found = self._db.execute(
            "SELECT told FROM (SELECT id, told FROM notes WHERE kind=? ORDER BY id DESC LIMIT ?) ORDER BY id",
            (kind, MAX_NOTES),
        )
        return [json.loads(told) for (told,) in found]

    def last_ident(self) -> int:
        """The highest number given to a file so far."""
        told = self._db.execute("SELECT value FROM about WHERE name='ident'").get
        highest = self._db.execute("SELECT max(ident) FROM pending").get
        return max(int(told or 0), int(highest or 0))

    # -- writing ----------------------------------------------------------------------------------------

    async def put(self, rows: Iterable[Row], *, drop: Iterable[int] = (), durable: bool = False) -> None:
        """Rows that are new or changed, numbers of files that are pending no more: all or nothing."""
        changed = [(row.ident, _blob(row.key), row.state, json.dumps(row.told)) for row in rows]
        gone = [(ident,) for ident in drop]

        def work(db: apsw.Connection) -> None:
            if gone:
                db.executemany("DELETE FROM pending WHERE ident=?", gone)
            if changed:
                db.executemany("INSERT OR REPLACE INTO pending VALUES (?, ?, ?, ?)", changed)

        await self._do(work, durable)

    async def learn(self, key: str, version: str, told: str | None) -> None:
        """Attributes of a version of an object; None: there is none of that name."""

        def work(db: apsw.Connection) -> None:
            if told is None:
                db.execute("DELETE FROM known WHERE key=?", (_blob(key),))
            else:
                db.execute("INSERT OR REPLACE INTO known VALUES (?, ?, ?)", (_blob(key), version, told))

        await self._do(work, False)

    async def note(self, kind: str, told: Mapping[str, Any]) -> None:
        """Something to be told to the operator, after a restart, too."""
        text = json.dumps(told)
        await self._do(
            lambda db: _run(db, "INSERT INTO notes (kind, told) VALUES (?, ?)", (kind, text)), False
        )

    async def forget_notes(self, kind: str, match: Callable[[dict[str, Any]], bool]) -> None:
        """Notes that are of no use any more."""

        def work(db: apsw.Connection) -> None:
            found = list(db.execute("SELECT id, told FROM notes WHERE kind=?", (kind,)))
            db.executemany(
                "DELETE FROM notes WHERE id=?", [(id,) for id, told in found if match(json.loads(told))]
            )

        await self._do(work, False)

    async def _do(self, work: Work, durable: bool) -> None:
        """In order, and on the disk (durable) or in the system's hands when this returns. Raises NoRoom.

        Not interrupted: a caller that is cancelled learns of it afterwards, so memory and disk agree.
        """
        self._queue.append(work)
        self._durable = self._durable or durable
        done = _Done()
        self._queue.append(done)
        with trio.CancelScope(shield=True):
            async with self._turn:
                if not done.did:
                    batch, self._queue = self._queue, []
                    durable, self._durable = self._durable, False
                    await trio.to_thread.run_sync(self._commit, batch, durable, limiter=self._threads)
        if done.error is not None:
            raise done.error

    def _commit(self, batch: list[Work], durable: bool) -> None:
        failure: ReelfsError | None = None
        try:
            self._db.pragma("synchronous", "full" if durable else "normal")
            with self._db:
                for work in batch:
                    if not isinstance(work, _Done):
                        work(self._db)
        except apsw.Error as error:
            failure = _translated(error, self.path)
        for work in batch:
            if isinstance(work, _Done):
                work.did, work.error = True, failure

    def close(self, last_ident: int) -> None:
        """Write down what need not be before."""
        with self._db:
            _run(self._db, "INSERT OR REPLACE INTO about VALUES ('ident', ?)", (str(last_ident),))
        self._db.close()


class _Done:
    """Marks, in the queue, that everything before it is one caller's."""

    def __init__(self) -> None:
        self.did = False
        self.error: ReelfsError | None = None

    def __call__(self, db: apsw.Connection) -> None:
        """Nothing to do."""


def _run(db: apsw.Connection, statement: str, bindings: tuple[Any, ...]) -> None:
    db.execute(statement, bindings)


def _blob(key: str) -> bytes:
    """Keys are bytes: not all of them are UTF-8."""
    return key.encode("utf-8", "surrogateescape")


def _text(key: bytes | str) -> str:
    return key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else key


def _translated(error: apsw.Error, path: Path) -> ReelfsError:
    if isinstance(error, apsw.FullError | apsw.IOError):
        return NoRoom(f"the journal {path} cannot be written: {error}")
    return ReelfsError(f"the journal {path}: {error}")
