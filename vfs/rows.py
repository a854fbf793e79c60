"""Rows of an SQLite database that somebody else wrote: opened in memory, read and nothing else. Pure.

Its schema may be of any time: what a table has is asked of it, and a table or column that is not there is
left out. It is opened as it is; a write-ahead log left behind elsewhere is not missed: the main file is
complete, if older.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import apsw

from vfs.errors import Damaged, TooBig

#: Of a database; real ones have up to 10 MB.
MAX_DATABASE = 64 << 20
#: Rows of a table; more is no library.
MAX_ROWS = 100_000
#: Statements take a few thousand steps a thousand rows; a hostile schema would take for ever.
_STEPS_A_CALL, _CALLS = 10_000, 5_000


def read_rows(data: bytes, wanted: Mapping[str, Sequence[str]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of some tables as dictionaries of the wanted columns, in the order of their ids.

    Text comes as `str`, repaired where it is no UTF-8, without NULs; blobs as bytes. A table that is not
    there has no rows. Raises Damaged, TooBig.
    """
    if len(data) > MAX_DATABASE:
        raise TooBig(f"a database of {len(data)} bytes: the limit is {MAX_DATABASE}")
    if len(data) < 512 or data[:16] != b"SQLite format 3\0":
        raise Damaged("not an SQLite database")
    # Bytes 18 and 19 are 2 in WAL mode, in which a database cannot be opened from memory.
    data = data[:18] + b"\1\1" + data[20:]
    connection = apsw.Connection(":memory:")
    try:
        connection.deserialize("main", data)
        harden(connection, wanted)
        return {table: _rows(connection, table, columns) for table, columns in wanted.items()}
    except (apsw.Error, UnicodeDecodeError, MemoryError) as error:
        raise Damaged(f"unreadable: {error}") from None
    finally:
        connection.close()


def _rows(connection: apsw.Connection, table: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
    known = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    names = [column for column in wanted if column in known]
    if not names:
        return []
    # As a blob, since text may be none; the kind of value says what it was.
    values = ", ".join(f"CASE typeof({c}) WHEN 'text' THEN CAST({c} AS BLOB) ELSE {c} END" for c in names)
    kinds = ", ".join(f"typeof({c})" for c in names)
    order = "ORDER BY id" if "id" in known else ""
    query = f"SELECT {values}, {kinds} FROM {table} {order} LIMIT {MAX_ROWS + 1}"
    found: list[dict[str, Any]] = []
    for row in connection.execute(query):
        if len(found) == MAX_ROWS:
            raise TooBig(f"more than {MAX_ROWS} rows in {table}")
        told = zip(names, row, row[len(names) :], strict=False)
        found.append({name: _text(value) if kind == "text" else value for name, value, kind in told})
    return found


def _text(value: Any) -> str:
    return bytes(value).decode("utf-8", "replace").replace("\0", "")


def harden(connection: apsw.Connection, tables: Collection[str]) -> None:
    """No views that compute, no functions with effects, no endless work; these tables are read, no others."""
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_VIEW, 0)
    connection.limit(apsw.SQLITE_LIMIT_LENGTH, 1 << 20)
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA query_only = ON")
    calls = 0

    def over() -> bool:
        nonlocal calls
        calls += 1
        return calls > _CALLS

    def allowed(action: int, one: str | None, two: str | None, *_: str | None) -> int:
        good = action == apsw.SQLITE_SELECT or (action == apsw.SQLITE_READ and one in tables)
        good = good or (action == apsw.SQLITE_PRAGMA and one == "table_info" and two in tables)
        good = good or (action == apsw.SQLITE_FUNCTION and two == "typeof")
        return apsw.SQLITE_OK if good else apsw.SQLITE_DENY

    connection.set_progress_handler(over, _STEPS_A_CALL)
    connection.authorizer = allowed


# ---------------------------------------------------------------- values


def words_of(value: object) -> tuple[str, ...]:
    """A list of words that a column holds as JSON or as msgpack; none where it is neither."""
    data = value.encode("utf-8", "replace") if isinstance(value, str) else value
    if not isinstance(data, bytes):
        return ()
    try:
        found = json.loads(data) if data[:1] in (b"[", b'"') else _Msgpack(data).value()
    except (ValueError, IndexError, RecursionError):
        return ()
    return tuple(one for one in found if isinstance(one, str)) if isinstance(found, list) else ()


class _Msgpack:
    """Arrays and text of msgpack; any other kind of value ends the reading with ValueError."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def value(self, depth: int = 0) -> Any:
        """The next value."""
        kind = self._data[self._at]
        self._at += 1
        if 0xA0 <= kind <= 0xBF or kind in (0xD9, 0xDA, 0xDB):
            length = kind & 0x1F if kind < 0xC0 else self._number(1 << kind - 0xD9)
            self._at += length
            return self._data[self._at - length : self._at].decode("utf-8", "replace")
        if (0x90 <= kind <= 0x9F or kind in (0xDC, 0xDD)) and not depth:
            count = kind & 0x0F if kind < 0xA0 else self._number(2 << kind - 0xDC)
            return [self.value(1) for _ in range(min(count, len(self._data)))]
        raise ValueError(f"msgpack of kind {kind:#x}")

    def _number(self, width: int) -> int:
        self._at += width
        return int.from_bytes(self._data[self._at - width : self._at], "big")
