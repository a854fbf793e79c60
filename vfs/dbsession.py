"""`reelfs db`: a safe session with a stored SQLite database, with no mount.

The database is fetched into a folder of the user's own, opened there, and put back when the session ends: as
one checked file, over the version that was fetched and no other. If another client was faster, both are
kept. Whatever cuts the session off, its folder stays, and the next session says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import trio
import xxhash

from vfs import names, transfer
from vfs.dbfolder import Folder, Note, digest_of
from vfs.errors import ConfigError, Damaged, NotFound, ReelfsError, Stale
from vfs.spans import StoredObject
from vfs.storage import upload
from vfs.storage.base import Store
from vfs.terminal import in_trio, progress_bar
from vfs.transfer import Progress, Remote
from vfs.userdata import DATABASE, SCHEMA
from vfs.write import databases, dbprocess
from vfs.write.steps import host, stamp

#: How often a change of nothing but metadata is followed before it counts as another version.
_MOST_MOVES = 3


@dataclass(frozen=True, slots=True)
class Ended:
    """How a session ended. kept: the key of the file with what was done, where another client was faster."""

    key: str
    changed: bool
    version: str = ""
    kept: str = ""


def remote_of(source: str, user: str | None, name: str = DATABASE) -> Remote:
    """The database of a user, or of the source itself. Raises ConfigError."""
    key = "/".join(filter(None, ((user or "").strip("/"), name)))
    if not names.is_path(key):
        raise ConfigError(f"{key!r} cannot be the key of a database")
    return Remote(source, key)


# -- a session ----------------------------------------------------------------------------------------------


class Session:
    """One session: `begin`, then `shell` or `run`, then `end`. Use `opened`."""

    def __init__(self, remote: Remote, folder: Folder, note: Note) -> None:
        self.remote = remote
        self.note = note
        self._folder = folder

    @property
    def path(self) -> Path:
        """The file to work on."""
        return self._folder.file

    def create_tables(self) -> None:
        """The schema of the application, where it is not there."""
        with _connected(self.path) as connection:
            connection.execute(SCHEMA)

    def run(self, commands: Sequence[str]) -> None:
        """Statements (or dot commands of the shell), one after the other. Raises ReelfsError at the first
        that fails.
        """
        import apsw
        import apsw.shell

        with _connected(self.path) as connection, open(os.devnull, "w") as nothing:
            shell: Any = apsw.shell.Shell(stdout=sys.stdout, stderr=nothing, args=["-batch"], db=connection)
            for command in commands:
                try:
                    shell.process_complete_line(command)
                except (apsw.Error, apsw.shell.Shell.Error) as error:
                    raise ReelfsError(f"{command!r}: {error}") from error
                finally:
                    sys.stdout.flush()

    def shell(self) -> None:
        """The `sqlite3` program on this terminal, or apsw's shell. Raises ReelfsError where it fails."""
        with _interrupts_left_to_the_shell():
            done = subprocess.run(self._program(), pass_fds=[self._folder.lock], check=False)
        # 1 of a person is a statement that failed on the way; a script ends with it.
        if done.returncode and not (done.returncode == 1 and sys.stdin.isatty()):
            raise ReelfsError(f"the SQLite shell ended with {done.returncode}")

    def _program(self) -> list[str]:
        bail = [] if sys.stdin.isatty() else ["-bail"]
        if (program := shutil.which("sqlite3")) is not None:
            return [program, *bail, "-cmd", "PRAGMA foreign_keys = ON", str(self.path)]
        first = self._folder.path / "first.sql"
        first.write_text("PRAGMA foreign_keys = ON;\n")
        return [sys.executable, "-m", "apsw", *bail, "-init", str(first), str(self.path)]

    async def end(self, progress: Progress) -> Ended:
        """Put it back, if it was changed, and forget it. Raises Damaged, StoreError: then it is kept."""
        self.note.done = True
        self._folder.write(self.note)
        changed = await self._changed()
        ended = await self._put_back(progress) if changed else Ended(self.remote.key, changed=False)
        self._folder.clear()
        return ended

    async def _changed(self) -> bool:
        """Make the snapshot; whether it is another database than the one fetched."""
        folder = self._folder
        if not folder.file.exists() or not folder.file.stat().st_size:
            if self.note.replaces is not None and self.note.replaces.size:
                raise Damaged(f"{folder.file} is empty: what was fetched is gone from it")
            return False
        if not (folder.beside("wal") or folder.beside("journal")) and self._is_as_fetched(folder.file):
            return False
        folder.out.unlink(missing_ok=True)
        await dbprocess.snapshot(
            str(folder.file), folder.beside("wal"), folder.beside("journal"), str(folder.out)
        )
        return not self._is_as_fetched(folder.out)

    def _is_as_fetched(self, file: Path) -> bool:
        return self.note.digest == digest_of(file)

    async def _put_back(self, progress: Progress) -> Ended:
        key, note, out = self.remote.key, self.note, self._folder.out
        async with transfer.opened(self.remote, writable=True) as store:
            for _ in range(_MOST_MOVES):
                stamped = _stamped(note.metadata)
                try:
                    await _send(store, key, out, note.replaces, stamped, progress)
                except NotFound:
                    note.base = None  # gone: nothing is lost by creating it
                except Stale:
                    details = await store.head(key)
                    theirs = await self._digest_of(store, details.object)
                    if theirs == digest_of(out):
                        return Ended(key, changed=True, version=details.metadata.get(databases.VERSION, ""))
                    if theirs != note.digest:
                        return await self._keep(store, stamped, progress)
                    note.stands_on(details.object, details.metadata)  # the same bytes, other metadata
                else:
                    return Ended(key, changed=True, version=stamped[databases.VERSION])
                self._folder.write(note)
            return await self._keep(store, stamped, progress)

    async def _keep(self, store: Store, metadata: Mapping[str, str], progress: Progress) -> Ended:
        """Another client was faster: what was done becomes a file of its own, beside theirs."""
        folder, slash, name = self.remote.key.rpartition("/")
        mark = f"conflict {stamp()} {host()}"
        count = 1
        while True:
            kept = f"{folder}{slash}{names.marked(name, mark if count == 1 else f'{mark} {count}')}"
            try:
                await _send(store, kept, self._folder.out, None, metadata, progress)
            except Stale:
                count += 1
            else:
                return Ended(self.remote.key, changed=True, kept=kept)

    async def _digest_of(self, store: Store, stored: StoredObject) -> str:
        """Of the bytes of a version."""
        theirs = self._folder.path / "theirs"
        theirs.unlink(missing_ok=True)
        try:
            with theirs.open("a+b", buffering=0) as file:
                await transfer.download(store, stored, file, lambda count: None)
            return digest_of(theirs)
        finally:
            theirs.unlink(missing_ok=True)


async def begin(
    remote: Remote, *, create: bool, resume: bool, discard: bool, progress: Progress, state: Path
) -> tuple[Session, Folder]:
    """Fetch the database, or take up a session that was cut off. create: begin with none where none is.

    The folder is the caller's to close. Raises NotFound, Damaged for what is no database, ReelfsError for a
    session that was cut off when neither to resume nor to discard it was asked for.
    """
    async with transfer.opened(remote) as store:
        told = f"{store.url}\0{remote.key}".encode("utf-8", "surrogateescape")
        folder = Folder(state / xxhash.xxh3_128_hexdigest(told))
        try:
            note = folder.read()
            if note is not None and discard:
                folder.clear()
                note = None
            if note is not None and not resume:
                await _drop_unchanged(Session(remote, folder, note), folder)
                note = None
            if note is None:
                if resume:
                    raise ReelfsError(f"there is no session with {remote.key} to resume")
                folder.clear()
                note = await _fetch(store, remote.key, folder, create=create, progress=progress)
        except BaseException:
            folder.close()
            raise
    return Session(remote, folder, note), folder


async def _drop_unchanged(session: Session, folder: Folder) -> None:
    """A session that was cut off before anything was done is nothing; any other is not to be lost."""
    try:
        changed = await session._changed()
    except ReelfsError:
        changed = True
    if changed:
        raise ReelfsError(
            f"a session with {session.note.key} of {session.note.began} was not put back: "
            f"--resume goes on with it, --discard drops it (it is in {folder.path})"
        )
    folder.clear()


async def _fetch(store: Store, key: str, folder: Folder, *, create: bool, progress: Progress) -> Note:
    note = Note(store.url, key, began=f"{datetime.now(UTC):%Y-%m-%d %H:%M UTC}")
    try:
        details = await store.head(key)
    except NotFound:
        if not create:
            raise NotFound(f"there is no {key} in {store.url}: --init creates one") from None
    else:
        note.stands_on(details.object, details.metadata)
        with folder.file.open("a+b", buffering=0) as file:
            await transfer.download(store, details.object, file, progress)
        with folder.file.open("rb") as file:
            if details.object.size and not databases.is_database(file.read(16)):
                folder.clear()
                raise Damaged(f"{key} is not an SQLite database")
        note.digest = digest_of(folder.file)
    folder.write(note)
    return note


async def _send(
    store: Store,
    key: str,
    file: Path,
    replaces: StoredObject | None,
    metadata: Mapping[str, str],
    progress: Progress,
) -> StoredObject:
    with file.open("rb", buffering=0) as body:

        async def read(offset: int, length: int) -> bytes:
            return await trio.to_thread.run_sync(os.pread, body.fileno(), length, offset)

        async def sent(part: object, length: int) -> None:
            progress(length)

        size = os.fstat(body.fileno()).st_size
        return await upload.send(store, key, size, read, replaces=replaces, metadata=metadata, sent=sent)


def _stamped(metadata: Mapping[str, str]) -> dict[str, str]:
    # Without the time that a program gave to the version before: it is that of this upload.
    metadata = {name: text for name, text in metadata.items() if name != "mtime"}
    return databases.next_metadata(metadata, writer=f"{host()}/reelfs", now=datetime.now(UTC))


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[Any]:
    """A connection with foreign keys on. Errors of SQLite as ours."""
    import apsw

    try:
        connection = apsw.Connection(str(path))
        try:
            connection.execute("PRAGMA foreign_keys = ON").fetchall()
            yield connection
        finally:
            connection.close()
    except apsw.Error as error:
        raise ReelfsError(f"SQLite: {error}") from error


@contextlib.contextmanager
def _interrupts_left_to_the_shell() -> Iterator[None]:
    """Ctrl-C is for the statement that runs. (Ignored here, not in the shell: a handler is not inherited.)"""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# -- the command --------------------------------------------------------------------------------------------


def run(
    remote: Remote,
    *,
    commands: Sequence[str] | None,
    init: bool,
    resume: bool,
    discard: bool,
    state: Path,
) -> Ended:
    """A whole session. commands: instead of a shell; when one fails nothing of them is kept.

    Raises ReelfsError where nothing was put back; the text says where the work is, if there is any.
    """
    with progress_bar(remote.key, None) as progress:
        session, folder = in_trio(
            partial(
                begin, remote, create=init, resume=resume, discard=discard, progress=progress, state=state
            )
        )
    try:
        try:
            _work(session, commands, init=init)
        except ReelfsError:
            if commands and not resume:
                folder.clear()
            raise
        with progress_bar(remote.key, None) as progress:
            return in_trio(partial(session.end, progress))
    except ReelfsError as error:
        left = folder.read()
        kept = (
            f"; what was done is kept: --resume goes on, --discard drops it ({folder.path})" if left else ""
        )
        raise type(error)(f"{error}; nothing was put back{kept}") from error
    finally:
        folder.close()


def _work(session: Session, commands: Sequence[str] | None, *, init: bool) -> None:
    """What is done between fetching and putting back; a session that had come so far only is put back."""
    if init:
        session.create_tables()
    if commands:
        session.run(commands)
    elif not session.note.done:
        session.shell()
