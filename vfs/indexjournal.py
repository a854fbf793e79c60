"""What `reelfs index` knows of a library: which files there are, and what became of each version.

A database of its own for every source and way of keeping indexes, in the user's state folder. So a run goes
on where one was interrupted, and what cannot be played is not tried again until it changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import apsw
import xxhash

from vfs.errors import ConfigError
from vfs.spans import StoredObject

#: Rows taken at a time: memory does not grow with the library.
BATCH = 256
_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS files(
    key BLOB PRIMARY KEY, version TEXT NOT NULL, size INTEGER NOT NULL, run INTEGER NOT NULL,
    state TEXT, reason TEXT) WITHOUT ROWID;
"""


class Journal:
    """One source, one way of keeping. Raises ConfigError where it cannot be written."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._database = apsw.Connection(str(path))
            self._database.set_busy_timeout(5000)
            list(self._database.execute(_SCHEMA))
            last = self._database.execute("SELECT coalesce(max(run), 0) FROM files").fetchone()
        except (OSError, apsw.Error) as error:
            raise ConfigError(
                f"the journal {path} cannot be used: {error}; remove it, or set XDG_STATE_HOME"
            ) from None
        os.chmod(path, 0o600)
        self._run = int(last[0]) + 1 if last else 1

    def close(self) -> None:
        """All is written already."""
        self._database.close()

    def seen(self, page: Iterable[StoredObject], *, again: bool = False) -> None:
        """Files of this run; those that changed (`again`: all) have everything before them once more."""
        rows = [(_bytes(o.key), o.version, o.size, self._run) for o in page]
        same = "0" if again else "version = excluded.version AND size = excluded.size"
        with self._database:
            self._database.executemany(
                "INSERT INTO files VALUES (?, ?, ?, ?, NULL, NULL) ON CONFLICT(key) DO UPDATE SET"
                f" state = CASE WHEN {same} THEN state END,"
                " version = excluded.version, size = excluded.size, run = excluded.run",
                rows,
            )

    def forget(self) -> None:
        """What this run did not see is not there any more."""
        self._database.execute("DELETE FROM files WHERE run < ?", (self._run,))

    def knows(self, key: str) -> bool:
        """Whether this run saw a file."""
        query = "SELECT 1 FROM files WHERE key = ? AND run = ?"
        return self._database.execute(query, (_bytes(key), self._run)).fetchone() is not None

    def count(self) -> int:
        """How many files this run saw."""
        found = self._database.execute("SELECT count(*) FROM files WHERE run = ?", (self._run,)).fetchone()
        return int(found[0]) if found else 0

    def waiting(self) -> int:
        """How many files of this run have no outcome yet."""
        query = "SELECT count(*) FROM files WHERE run = ? AND state IS NULL"
        found = self._database.execute(query, (self._run,)).fetchone()
        return int(found[0]) if found else 0

    def outcomes(self) -> Mapping[str, int]:
        """How many files of this run by outcome, also those that had it from an earlier one."""
        query = "SELECT state, count(*) FROM files WHERE run = ? AND state IS NOT NULL GROUP BY state"
        return {str(state): int(count) for state, count in self._database.execute(query, (self._run,))}

    def unfinished(self) -> Iterator[str]:
        """Keys of this run without an outcome, in order; outcomes may be written meanwhile."""
        query = "SELECT key FROM files WHERE run = ? AND state IS NULL AND key > ? ORDER BY key LIMIT ?"
        last = b""
        while rows := list(self._database.execute(query, (self._run, last, BATCH))):
            for (key,) in rows:
                yield bytes(key).decode("utf-8", "surrogateescape")
            last = bytes(rows[-1][0])

    def done(self, key: str, state: str, reason: str) -> None:
        """What became of a file."""
        self._database.execute(
            "UPDATE files SET state = ?, reason = ? WHERE key = ?", (state, reason, _bytes(key))
        )


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def path_of(url: str, where: str, environ: Mapping[str, str]) -> Path:
    """The journal of a source whose indexes are kept in one place."""
    base = environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    digest = xxhash.xxh3_64_hexdigest(f"{url}\0{where}".encode("utf-8", "surrogateescape"))
    return Path(base) / "reelfs" / "index" / f"{digest}.sqlite"
