"""What is written into the journal: rows of pending names, and the work that puts them there.

A piece of work is called with the database, in the transaction of the commit that it is part of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apsw

from vfs.errors import ReelfsError
from vfs.spans import StoredObject
from vfs.write.draft import Draft


@dataclass(frozen=True, slots=True)
class Row:
    """One pending name. state: see `pending.Entry`. told: everything else, as JSON can hold it. held: the
    staged files it names; what of them is in memory is written with it. synced: one that is put on the disk
    before.
    """

    ident: int
    key: str
    state: str
    told: Mapping[str, Any] = field(default_factory=dict)
    held: Sequence[Draft] = ()
    synced: Draft | None = None

    @property
    def drafts(self) -> list[int]:
        """Numbers of the staged files it names."""
        found = (self.told.get(name) for name in ("draft", "live", "trying"))
        return [told[0] for told in found if isinstance(told, list) and told and isinstance(told[0], int)]


def object_to(stored: StoredObject | None) -> list[Any] | None:
    """A stored object as JSON can hold it."""
    return None if stored is None else [stored.key, stored.size, stored.version, stored.mtime_ns]


def object_from(told: Any) -> StoredObject | None:
    """What `object_to` gave."""
    return None if told is None else StoredObject(*told)


#: What is to be done in the transaction of a commit.
Work = Callable[[apsw.Connection], None]


class Put:
    """Rows to be written and rows to go."""

    def __init__(self, rows: list[Row], gone: list[int], keep: bool, notes: list[tuple[str, str]]) -> None:
        self.rows, self.gone, self.keep, self._notes = rows, gone, keep, notes
        self.first: Callable[[], object] | None = None
        self.failed: ReelfsError | None = None
        self._changed = [(row.ident, blob(row.key), row.state, json.dumps(row.told)) for row in rows]
        self.bodies: list[tuple[int, bytes, int]] = []
        self.outdated: list[int] = []

    def take(self, known: Mapping[int, int]) -> None:
        """The bytes of what the rows name and is in memory, as they are now; known: what the journal has.

        What it has of one that is a file by now is outdated, but the truth until that file is on the disk.
        """
        for row in self.rows:
            for draft in row.held:
                at = known.get(draft.number)
                if at == draft.changes:
                    continue
                if (body := draft.body) is not None:
                    self.bodies.append((draft.number, body, draft.changes))
                elif at is not None and row.state == "closed" and (draft is row.synced or draft.was_synced):
                    self.outdated.append(draft.number)

    def __call__(self, db: apsw.Connection) -> None:
        """Do it."""
        if self.outdated:
            db.executemany("DELETE FROM contents WHERE number=?", [(one,) for one in self.outdated])
        if self.bodies:
            db.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?)", [one[:2] for one in self.bodies])
        if self.gone:
            db.executemany("DELETE FROM pending WHERE ident=?", [(ident,) for ident in self.gone])
        db.executemany("INSERT OR REPLACE INTO pending VALUES (?, ?, ?, ?)", self._changed)
        if self._notes:
            db.executemany("INSERT INTO notes (kind, told) VALUES (?, ?)", self._notes)


class Done:
    """Marks, in the queue, that everything before it is one caller's."""

    def __init__(self, of: Work, lax: bool) -> None:
        self.of, self.lax = of, lax
        self.did = False
        self.error: ReelfsError | None = None

    def __call__(self, db: apsw.Connection) -> None:
        """Nothing to do."""


def nothing(db: apsw.Connection) -> None:
    """All that is asked for is that it is durable."""


def told_of(text: str) -> Any:
    """What a row tells beside its name; of a damaged one: nothing."""
    try:
        told = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def blob(key: str) -> bytes:
    """Keys are bytes: not all of them are UTF-8."""
    return key.encode("utf-8", "surrogateescape")


def text_of(key: bytes | str) -> str:
    """The key that `blob` was given."""
    return key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else key
