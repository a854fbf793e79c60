"""Full text and fields over the documents of one database: SQLite FTS5 in memory.

What is looked for is only ever a bound parameter; inside FTS5's own language it is a quoted string.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import apsw

from vfs import Malformed
from vfs_search.documents import Document, Library
from vfs_search.grammar import WORDS, Term, Text

_COLUMNS = tuple(WORDS.values())
_SCHEMA = f"""
PRAGMA journal_mode = OFF;
CREATE TABLE documents(id INTEGER PRIMARY KEY, rating INTEGER, date TEXT);
CREATE VIRTUAL TABLE words USING fts5({", ".join(_COLUMNS)}, content='',
    tokenize="unicode61 remove_diacritics 2");
"""
#: A token of its own between tags, so that a phrase does not reach from one into the next.
_BETWEEN = " \ue000 "
#: Steps of SQLite's machine for one query: hundreds of times what 100,000 documents take.
_STEPS_A_CALL, _CALLS = 100_000, 2_000


@dataclass(frozen=True, slots=True)
class Match:
    """A document and how well it fits, 0 to 1."""

    document: Document
    score: float


class TextIndex:
    """The documents of one database, searchable."""

    def __init__(self, library: Library) -> None:
        self._documents = library.documents
        self._lock = threading.Lock()
        self._database = apsw.Connection(":memory:")
        self._calls = 0
        self._database.set_progress_handler(self._over, _STEPS_A_CALL)
        list(self._database.execute(_SCHEMA))
        with self._database:
            self._database.executemany(
                "INSERT INTO documents VALUES (?, ?, ?)", map(_values, *_each(library))
            )
            marks = ", ".join("?" * (len(_COLUMNS) + 1))
            self._database.executemany(
                f"INSERT INTO words(rowid, {', '.join(_COLUMNS)}) VALUES ({marks})",
                map(_words, *_each(library)),
            )
        self._calls = 0
        sizes = [self._database.pragma(name) for name in ("page_count", "page_size")]
        self.nbytes = int(sizes[0]) * int(sizes[1]) + library.nbytes

    def find(self, query: Text, limit: int, offset: int = 0) -> list[Match]:
        """The documents for which all terms hold, best first, then the newest. Raises Malformed."""
        words, conditions, values = _compiled(query.terms)
        ranked = any(term.words and not term.field and not term.negative for term in query.terms)
        if ranked and not conditions:
            # FTS5 sorts by rank by itself, and only what is wanted is looked up.
            statement = "SELECT rowid, rank FROM words WHERE words MATCH ? ORDER BY rank LIMIT ? OFFSET ?"
            values = [words]
        else:
            statement = f"SELECT documents.id, {'words.rank' if ranked else '0.0'} FROM documents"
            if words:
                statement += " JOIN words ON words.rowid = documents.id"
                conditions, values = ["words MATCH ?", *conditions], [words, *values]
            order = "words.rank, " if ranked else ""
            statement += f" WHERE {' AND '.join(conditions) or '1'}"
            statement += f" ORDER BY {order}documents.date DESC, documents.rating DESC, documents.id"
            statement += " LIMIT ? OFFSET ?"
        rows = self._rows(statement, (*values, limit, offset))
        best = min((rank for _, rank in rows), default=0.0)
        return [
            Match(self._documents[number], round(rank / best, 4) if best < 0 else 1.0)
            for number, rank in rows
        ]

    def _rows(self, statement: str, values: tuple[object, ...]) -> list[tuple[int, float]]:
        with self._lock:
            self._calls = 0
            try:
                return [(int(n), float(rank)) for n, rank in self._database.execute(statement, values)]
            except apsw.InterruptError:
                raise Malformed("the query takes too long") from None
            except apsw.SQLError as error:
                raise Malformed(f"the query cannot be answered: {error}") from None

    def _over(self) -> bool:
        self._calls += 1
        return self._calls > _CALLS


def _each(library: Library) -> tuple[range, Sequence[Document]]:
    return range(len(library.documents)), library.documents


def _values(number: int, document: Document) -> tuple[int, int | None, str]:
    return number, document.rating, document.date


def _words(number: int, document: Document) -> tuple[object, ...]:
    texts = [getattr(document, column) for column in _COLUMNS]
    return number, *(_BETWEEN.join(text) if isinstance(text, tuple) else text for text in texts)


def _compiled(terms: Sequence[Term]) -> tuple[str, list[str], list[object]]:
    """The FTS5 expression, further SQL conditions, and their parameters."""
    wanted: list[str] = []
    unwanted: list[str] = []
    conditions: list[str] = []
    values: list[object] = []
    for term in terms:
        if term.words:
            phrase = '"' + term.words.replace('"', '""') + '"'
            phrase = f"{{{term.field}}} : {phrase}" if term.field else phrase
            (unwanted if term.negative else wanted).append(phrase)
            continue
        condition, bounds = _between(term)
        conditions.append(f"NOT coalesce({condition}, 0)" if term.negative else condition)
        values += bounds
    if wanted:
        expression = " AND ".join(f"({phrase})" for phrase in wanted)
        return "".join([f"({expression})", *(f" NOT ({phrase})" for phrase in unwanted)]), conditions, values
    for phrase in unwanted:
        conditions.append("documents.id NOT IN (SELECT rowid FROM words WHERE words MATCH ?)")
        values.append(phrase)
    return "", conditions, values


def _between(term: Term) -> tuple[str, list[object]]:
    """A value within bounds, both inclusive; a date to all that begins like its upper bound."""
    column = f"documents.{term.field}"
    tests, values = [f"{column} <> ''"], list[object]()
    if term.low:
        tests.append(f"{column} >= ?")
        values.append(term.low if term.field == "date" else float(term.low))
    if term.high:
        tests.append(f"{column} <= ?")
        values.append(f"{term.high}~" if term.field == "date" else float(term.high))
    return f"({' AND '.join(tests)})", values
