"""What is pending, on the disk: one row for each name that differs from the store's. Survives any crash.

A SQLite database in WAL mode. A commit that must outlive the machine is made with `synchronous=FULL`; one
that must outlive the process alone without waiting for the disk: a power cut takes the last of these, and
`keep_safe` bounds how many. Until a commit is on the disk nothing may be done that counts on it: no staged
file is removed (`released`), and the store is changed after `safe` only. Work is done in a thread, one call
at a time, in order; commits that wait for each other are made as one.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import apsw
import trio

from vfs.errors import NoRoom, ReelfsError
from vfs.write.rows import Done, Put, Row, Work, blob, nothing, text_of, told_of
from vfs.write.staging import journal_room

log = logging.getLogger("vfs.write")

#: Of the tables below; another number is another program's. 1 had no contents.
VERSION, READABLE = 2, (0, 1, 2)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS pending (
    ident INTEGER PRIMARY KEY, key TEXT NOT NULL, state TEXT NOT NULL, told TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS known (key TEXT PRIMARY KEY, version TEXT NOT NULL, told TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, told TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS contents (number INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
#: Attributes of objects that are remembered at most, and notes of one kind.
MAX_KNOWN, MAX_NOTES = 500_000, 10_000
#: What need not outlive the machine at once does after so many seconds.
SAFE_SECONDS = 1.0


class Journal:
    """The journal in one folder. source: the URL it is for. Raises ReelfsError for one of another source.

    released: told the numbers of staged files that no row names any more, whatever happens to the machine.
    """

    released: Callable[[Iterable[int]], object] = staticmethod(lambda numbers: None)

    def __init__(self, folder: Path, source: str, point: Callable[[str], object] = lambda name: None) -> None:
        self.path = folder / "journal.sqlite"
        self._point = point
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = apsw.Connection(str(self.path))
            self._db.set_busy_timeout(5000)
            self._db.pragma("journal_mode", "wal")
            # What stands in the log is put into the database before the log takes the room it has. SQLite
            # would do so in any commit, and wait for the disk: see `_commit_durably`.
            disk = os.statvfs(folder)
            pages = journal_room(disk.f_blocks * disk.f_frsize) // 4 // 4096
            self._most_pages, self._pages, self._wrote = max(16, min(1000, pages)), 0, False
            self._db.set_wal_hook(self._note_pages)
            self._open(source)
        except apsw.Error as error:
            raise _translated(error, self.path) from error
        self._queue: list[Work] = []
        self._durable = False
        self._named: dict[int, list[int]] = {}  # by file, as the disk has it
        self._uses: Counter[int] = Counter()  # on the disk, or on its way there
        self._contents: dict[int, int] = {}  # staged files whose bytes are here, as of which change
        self._stale: list[int] = []  # of those, what goes with the next commit
        self._freed: set[int] = set()  # that no row names, if the last commits reach the disk
        self._unsafe, self._stirred = False, trio.Event()
        self._synchronous = ""
        self._turn = trio.Lock()
        self._threads = trio.CapacityLimiter(1)

    def _note_pages(self, db: apsw.Connection, name: str, pages: int) -> int:
        self._pages, self._wrote = pages, True
        return apsw.SQLITE_OK

    def _open(self, source: str) -> None:
        version = self._db.pragma("user_version")
        if version not in READABLE:
            raise ReelfsError(
                f"{self.path} is of another version of reelfs (format {version}, this one writes {VERSION}): "
                "mount with that one until its queue is empty, or move the folder away"
            )
        with self._db:
            self._db.execute(_SCHEMA)
            self._db.pragma("user_version", VERSION)
            self._db.execute("INSERT OR IGNORE INTO about VALUES ('source', ?)", (source,))
        known = self._db.execute("SELECT value FROM about WHERE name='source'").get
        if known != source:
            raise ReelfsError(f"{self.path} is of {known}, not of {source}: nothing of it was touched")

    # -- reading, at the start --------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """All that is pending. What a row cannot tell is empty. Raises ReelfsError."""
        rows = [
            Row(ident, text_of(key), state, told_of(told))
            for ident, key, state, told in self._asked(
                "SELECT ident, key, state, told FROM pending ORDER BY ident"
            )
        ]
        for row in rows:
            self._named[row.ident] = row.drafts
            self._uses.update(row.drafts)
        return rows

    def known(self) -> list[tuple[str, str, str]]:
        """Attributes of stored objects that were learnt: key, version, JSON."""
        found = self._asked("SELECT key, version, told FROM known ORDER BY rowid DESC LIMIT ?", MAX_KNOWN)
        return [(text_of(key), version, told) for key, version, told in found]

    def notes(self, kind: str) -> list[dict[str, Any]]:
        """What was noted, oldest first."""
        found = self._asked(
            "SELECT told FROM (SELECT id, told FROM notes WHERE kind=? ORDER BY id DESC LIMIT ?) ORDER BY id",
            kind,
            MAX_NOTES,
        )
        return [json.loads(told) for (told,) in found]

    def bodies(self) -> dict[int, bytes]:
        """The bytes of staged files that are here, by their number."""
        found: dict[int, bytes] = dict(self._asked("SELECT number, body FROM contents"))
        self._contents = dict.fromkeys(found, 0)
        return found

    def forget_bodies(self, numbers: Iterable[int]) -> None:
        """These are of no use: they go with what is written next."""
        self._stale += [number for number in numbers if self._contents.pop(number, None) is not None]

    def last_ident(self) -> int:
        """The highest number given to a file so far."""
        told = self._asked("SELECT max(value + 0) FROM about WHERE name='ident'")[0][0]
        highest = self._asked("SELECT max(ident) FROM pending")[0][0]
        return max(int(told or 0), int(highest or 0))

    def names(self, number: int) -> bool:
        """Whether a row names a staged file: as long as it does, a crash brings that file back. (One that did
        until lately counts: a power cut brings the row back.)
        """
        return self._uses[number] > 0 or number in self._freed

    def _asked(self, statement: str, *bindings: Any) -> list[Any]:
        try:
            return list(self._db.execute(statement, bindings))
        except apsw.Error as error:
            raise _translated(error, self.path) from error

    # -- writing ----------------------------------------------------------------------------------------

    async def put(
        self,
        rows: Iterable[Row],
        *,
        drop: Iterable[int] = (),
        notes: Iterable[tuple[str, Mapping[str, Any]]] = (),
        durable: bool = False,
        keep: bool = True,
        lax: bool = False,
        first: Callable[[], object] | None = None,
    ) -> None:
        """Rows that are new or changed, numbers of files that are pending no more, notes: all or nothing.

        keep: when there is no room for it, it is written with the next that finds some. lax: `safe` does not
        wait for it: were it lost, asking the store would tell the same. first: what must be done before, in
        the same thread (a staged file's sync); where it fails nothing of this is written.
        """
        put = Put(list(rows), list(drop), keep, [(kind, json.dumps(told)) for kind, told in notes])
        put.first = first
        put.take(self._contents)
        for row in put.rows:
            self._uses.update(row.drafts)
        await self._do(put, durable, lax=lax)

    async def learn(self, key: str, version: str, told: str | None) -> None:
        """Attributes of a version of an object; None: there is none of that name."""

        def work(db: apsw.Connection) -> None:
            if told is None:
                db.execute("DELETE FROM known WHERE key=?", (blob(key),))
            else:
                db.execute("INSERT OR REPLACE INTO known VALUES (?, ?, ?)", (blob(key), version, told))

        await self._do(work, False, lax=True)

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

    async def safe(self) -> None:
        """What was put until now outlives the machine. Raises NoRoom, ReelfsError."""
        if self._unsafe:
            await self._do(nothing, True)

    async def keep_safe(self) -> None:
        """Until cancelled: what was put outlives the machine after `SAFE_SECONDS`."""
        failure = ""
        while True:
            await self._stirred.wait()
            await trio.sleep(SAFE_SECONDS)
            self._stirred = trio.Event()
            try:
                await self._do(nothing, True)
                failure = ""
            except ReelfsError as error:
                if str(error) != failure:
                    log.info("the journal is not on the disk yet: %s", error)
                failure = str(error)

    def release_now(self) -> None:
        """Have staged files that no row names any more removed, to make room. Waits for the disk."""
        freed = set(self._freed)
        try:
            self._sync_log()
        except OSError as error:
            log.info("the journal is not on the disk yet: %s", error.strerror)
        else:
            self._let_go(freed)

    def _sync_log(self) -> None:
        """All commits so far are on the disk: they are in the log, or were put into the database, durably."""
        try:
            descriptor = os.open(f"{self.path}-wal", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    async def _do(self, work: Work, durable: bool, *, lax: bool = False) -> None:
        """In order, and on the disk (durable) or in the system's hands when this returns. Raises NoRoom.

        Not interrupted: a caller that is cancelled learns of it afterwards, so memory and disk agree. What
        need not be on the disk takes some 50 us, a hop to a thread and back more: it is done in place.
        """
        done = Done(work, lax)
        self._queue += [work, done]
        self._durable = self._durable or durable
        if not self._durable and self._pages < self._most_pages and not self._turn.locked():
            batch, self._queue = self._queue, []
            self._after(batch, False, self._commit(batch, False))
            if done.error is not None:
                raise done.error
            return
        with trio.CancelScope(shield=True):
            async with self._turn:
                if not done.did:
                    batch, self._queue = self._queue, []
                    durable, self._durable = self._durable, False
                    failure = await trio.to_thread.run_sync(
                        self._commit_durably, batch, durable, limiter=self._threads
                    )
                    self._after(batch, durable, failure)
        if done.error is not None:
            raise done.error

    def _commit_durably(self, batch: list[Work], durable: bool) -> ReelfsError | None:
        """With what is to be done before; in a thread, for all of this waits for the disk."""
        for work in batch:
            if isinstance(work, Put) and work.first is not None:
                try:
                    work.first()
                except ReelfsError as error:
                    work.failed = error
                except Exception as error:  # the others of this batch must not be lost with it
                    work.failed = ReelfsError(f"before the journal {self.path}: {error!r}")
        self._wrote = False
        failure = self._commit(batch, durable)
        if durable and failure is None and not self._wrote:
            try:
                self._sync_log()  # there was nothing to commit: SQLite waited for nothing
            except OSError as error:
                failure = NoRoom(f"the journal {self.path} cannot be written: {error.strerror}")
        if self._pages >= self._most_pages // 2:
            try:
                self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                self._pages = 0
            except apsw.Error as error:
                log.info("the journal's log is not taken in yet: %s", error)
        return failure

    def _commit(self, batch: list[Work], durable: bool) -> ReelfsError | None:
        self._point("before-commit")
        try:
            self._synchronize("full" if durable else "normal")
            stale = self._stale[:]
            with self._db:
                if stale:
                    self._db.executemany("DELETE FROM contents WHERE number=?", [(one,) for one in stale])
                for work in batch:
                    if not (isinstance(work, Put) and work.failed):
                        work(self._db)
                self._point("in-commit")
            del self._stale[: len(stale)]
        except apsw.Error as error:
            return _translated(error, self.path)
        except Exception as error:
            return ReelfsError(f"the journal {self.path}: {error!r}")
        self._point("after-commit")
        return None

    def _synchronize(self, how: str) -> None:
        if how != self._synchronous:
            self._db.pragma("synchronous", how)
            self._synchronous = how

    def _after(self, batch: list[Work], durable: bool, failure: ReelfsError | None) -> None:
        """What a commit means for those who wait for it, and for staged files."""
        again = []
        for work in batch:
            if isinstance(work, Done):
                work.did, work.error = True, getattr(work.of, "failed", None) or failure
            elif isinstance(work, Put) and work.failed:
                self._release(number for row in work.rows for number in row.drafts)
            elif failure is None:
                self._written(work)
            elif isinstance(failure, NoRoom) and getattr(work, "keep", True):
                again.append(work)
            elif isinstance(work, Put):
                self._release(number for row in work.rows for number in row.drafts)
        if durable and failure is None:
            self._unsafe = False
            self._let_go(set(self._freed))
        else:
            self._unsafe = self._unsafe or any(isinstance(work, Done) and not work.lax for work in batch)
            self._stirred.set()
        if again:
            self._queue[:0] = again
            self._durable = self._durable or durable

    def _written(self, work: Work) -> None:
        if not isinstance(work, Put):
            return
        for number, _, change in work.bodies:
            self._contents[number] = change
        for number in work.outdated:
            self._contents.pop(number, None)
        before = [number for ident in work.gone for number in self._named.pop(ident, ())]
        for row in work.rows:
            before += self._named.pop(row.ident, ())
            self._named[row.ident] = row.drafts
        self._release(before)

    def _release(self, numbers: Iterable[int]) -> None:
        free = []
        for number in numbers:
            self._uses[number] -= 1
            if not self._uses[number]:
                del self._uses[number]
                free.append(number)
        self.forget_bodies(free)
        self._freed.update(free)

    def _let_go(self, numbers: set[int]) -> None:
        """The disk has it that no row names these."""
        self._freed -= numbers
        self.released(number for number in numbers if not self._uses[number])

    def close(self, last_ident: int) -> None:
        """Write down what need not be before. Raises ReelfsError; it is closed all the same."""
        try:
            with self._db:
                self._db.executemany("DELETE FROM contents WHERE number=?", [(one,) for one in self._stale])
                for work in self._queue:
                    work(self._db)
                _run(self._db, "INSERT OR REPLACE INTO about VALUES ('ident', ?)", (str(last_ident),))
            self.release_now()
        except apsw.Error as error:
            raise _translated(error, self.path) from error
        finally:
            self._db.close()


def _run(db: apsw.Connection, statement: str, bindings: tuple[Any, ...]) -> None:
    db.execute(statement, bindings)


def _translated(error: apsw.Error, path: Path) -> ReelfsError:
    if isinstance(error, apsw.FullError | apsw.IOError):
        return NoRoom(f"the journal {path} cannot be written: {error}")
    return ReelfsError(f"the journal {path}: {error}")
