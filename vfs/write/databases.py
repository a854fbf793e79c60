"""SQLite files: what is stored of a database is one file, whole and checked. For worker processes.

While programs have a database open its content is spread over several files: the database, and beside it a
write-ahead log (`-wal`) or a rollback journal (`-journal`). All of them as they are at one instant, read by
SQLite as after a crash, are the database as it was after the last finished transaction. That is what
`snapshot` makes, of copies: it never changes what it is given.

The files are untrusted: a database may be built to keep SQLite busy, so this runs in a process with a
deadline and a bound on memory (`dbprocess`), and nothing of a schema that computes is run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import apsw

from vfs.errors import Damaged, ReelfsError

#: The first bytes of a database, of its rollback journal while that is in force, and of its log (sqlite.org/
#: fileformat.html 1.3.1, 3, 4.1). Of a log the last bit says in which order its checksums are computed.
MAGIC = b"SQLite format 3\0"
_JOURNAL = bytes.fromhex("d9d505f920a163d7")
_LOG = (bytes.fromhex("377f0682"), bytes.fromhex("377f0683"))
_LOG_HEADER = 32
_INDEX = 3007000
#: Up to this size every entry of every index is looked up in its table, too.
FULL_CHECK = 64 << 20
#: Seconds a snapshot may take, and bytes for each second more: slow disks read 20 MB/s.
LEAST_SECONDS, BYTES_A_SECOND = 30.0, 20 << 20
#: What a check says of rows that SQLite itself let in: rules that were added later, values of another type.
_LAWFUL = re.compile(r"(NULL value in|CHECK constraint failed in|(TEXT|NUMERIC|non-\w+) value in) ")
#: FICLONE of linux/fs.h: the copy shares blocks with the original.
_FICLONE = 0x40049409

#: Names in the user metadata of a stored database: the application compares `db-version` before it writes.
VERSION, WRITER, WRITTEN_AT = "db-version", "db-writer", "db-written-at"


class Unfinished(ReelfsError):
    """A transaction over several databases was cut off: only SQLite, with all of them at hand, can end it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was made. size: bytes. merged: something beside the database went into it."""

    size: int
    merged: bool


def is_database(head: bytes) -> bool:
    """Whether a file that begins so is an SQLite database."""
    return head.startswith(MAGIC)


def is_companion(kind: str, head: bytes) -> bool:
    """Whether a file named as a companion (`names.companion`) has the content of one, or none yet.

    head: its first bytes. A journal that is not in force (yet, or any more) begins with zeros. An index of a
    log begins with the version of its format (walformat.html 2.1), in the order of bytes of this machine.
    """
    if kind == "journal":
        return head.startswith(_JOURNAL) or not head[:12].strip(b"\0")
    if kind == "wal":
        return head[:4] in (b"", *_LOG)
    return head[:4] in (_INDEX.to_bytes(4, "little"), _INDEX.to_bytes(4, "big")) or not head[:4].strip(b"\0")


def holds_changes(kind: str, size: int, head: bytes) -> bool:
    """Whether a companion may have something that the database has not: frames, or pages to put back."""
    if kind == "journal":
        return size > 0 and head.startswith(_JOURNAL)
    return kind == "wal" and size > _LOG_HEADER and head[:4] in _LOG


def seconds(size: int) -> float:
    """The deadline of a snapshot of so many bytes."""
    return LEAST_SECONDS + size / BYTES_A_SECOND


def snapshot(database: str, wal: str | None, journal: str | None, out: str) -> Snapshot:
    """Make `out` of a database and what lies beside it: one file, complete, checked, on the disk.

    The three are looked at as they are at one instant: nobody may be writing to them. out: a path in a folder
    that is the caller's own, of no file or an empty one; nothing but the file is left there. The journal mode
    in the header stays as it was. Raises Damaged when SQLite finds it malformed, Unfinished, ReelfsError (no
    room, no access).
    """
    merged = False
    with _cleared(out):
        try:
            _copy(database, out)
            for kind, path in (("wal", wal), ("journal", journal)):
                if path is not None and holds_changes(kind, *_size_and_head(path)):
                    _refuse_parts_of_larger(kind, path)
                    _copy(path, f"{out}-{kind}")
                    merged = True
            _settle(out)
            descriptor = os.open(out, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                size = os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ReelfsError(f"{error.filename or out}: {error.strerror}") from error
    return Snapshot(size, merged)


def check(database: str) -> None:
    """Look whether a database without anything beside it is whole, without writing. Raises Damaged."""
    with _opened(f"{Path(database).resolve().as_uri()}?immutable=1", apsw.SQLITE_OPEN_READONLY) as connection:
        _check(connection, os.path.getsize(database))


def _settle(path: str) -> None:
    """Have SQLite take in what lies beside its copy, and check what comes out."""
    with _opened(Path(path).resolve().as_uri(), apsw.SQLITE_OPEN_READWRITE) as connection:
        # No other process: without shared memory, and the log goes when this one closes.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        connection.execute("PRAGMA schema_version").fetchall()  # rolls back, or reads the log
        busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy is not None and busy[0]:
            raise ReelfsError(f"{path}: the log could not be taken in")
        _check(connection, os.path.getsize(path))
    for ending in ("-wal", "-journal"):
        if os.path.exists(path + ending) and os.path.getsize(path + ending):
            raise ReelfsError(f"{path}: {ending} was not taken in")


@contextlib.contextmanager
def _opened(uri: str, flags: int) -> Iterator[apsw.Connection]:
    """A connection that runs nothing of the schema's own. Errors of SQLite as ours."""
    try:
        connection = apsw.Connection(uri, flags=flags | apsw.SQLITE_OPEN_URI)
        try:
            connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
            connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
            connection.config(apsw.SQLITE_DBCONFIG_ENABLE_VIEW, 0)
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
            connection.execute("PRAGMA cell_size_check = ON").fetchall()
            connection.execute("PRAGMA mmap_size = 0").fetchall()
            connection.execute("PRAGMA temp_store = MEMORY").fetchall()
            yield connection
        finally:
            connection.close()
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise Damaged(f"the database is damaged: {error}") from None
    except apsw.Error as error:
        raise ReelfsError(f"SQLite: {error}") from error


def _check(connection: apsw.Connection, size: int) -> None:
    """Raises Damaged with the first finding."""
    unknown: list[str] = []

    def collation(asker: apsw.Connection, name: str) -> None:
        # An application's own order of texts: only it can say whether an index is in it.
        unknown.append(name)
        asker.create_collation(name, lambda one, other: (one > other) - (one < other))

    connection.collation_needed(collation)
    kind = "integrity_check" if size <= FULL_CHECK else "quick_check"
    try:
        found = [str(row[0]) for row in connection.execute(f"PRAGMA {kind}(1000)")]
        if unknown and kind == "integrity_check":
            found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(1000)")]
    except apsw.SQLError:
        # Something in the schema is of an application's own making (a function, a kind of table). What can be
        # looked at without it are the pages.
        found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(sqlite_schema)")]
    wrong = [text for text in found if text != "ok" and not _LAWFUL.match(text)]
    if wrong:
        raise Damaged(f"the database is damaged: {wrong[0].splitlines()[-1]}")


def _refuse_parts_of_larger(kind: str, path: str) -> None:
    """A journal that ends in the name of a super-journal is of a transaction over several databases.

    (fileformat.html 3: after the name its length, a checksum, and the magic number once more.)
    """
    if kind != "journal":
        return
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < 16:
            return
        file.seek(-16, os.SEEK_END)
        length, _, magic = struct.unpack(">II8s", file.read())
    if magic == _JOURNAL and length:
        raise Unfinished("a transaction over several databases was cut off: open this one with SQLite once")


def _size_and_head(path: str) -> tuple[int, bytes]:
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_size, file.read(_LOG_HEADER)


@contextlib.contextmanager
def _cleared(out: str) -> Iterator[None]:
    """Nothing is left of a failed attempt, and nothing besides the file of a good one."""
    try:
        yield
    except BaseException:
        Path(out).unlink(missing_ok=True)
        raise
    finally:
        for ending in ("-wal", "-shm", "-journal"):
            Path(out + ending).unlink(missing_ok=True)


def _copy(source: str, target: str) -> None:
    """Sharing blocks where the file system can."""
    with open(source, "rb") as old, open(target, "wb", opener=_private) as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS):
                raise
            shutil.copyfileobj(old, new, 1 << 20)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


# -- metadata -----------------------------------------------------------------------------------------------


def next_metadata(metadata: Mapping[str, str], *, writer: str, now: datetime) -> dict[str, str]:
    """The metadata of a database that replaces one with `metadata` (none: a new one).

    The version goes up by one: a database without it reads as 0 to the application, whose guard against lost
    updates is then off. writer: who writes, `MACHINE/WHAT`; now: in UTC. Whatever else there is stays.
    """
    before = metadata.get(VERSION, "")
    number = int(before) if re.fullmatch(r"[0-9]{1,18}", before) else 0
    stamps = {VERSION: str(number + 1), WRITER: writer, WRITTEN_AT: now.isoformat(timespec="seconds")}
    return {**metadata, **stamps}
