"""Full text and fields over the documents of one database: SQLite FTS5 in memory.

What is looked for is only ever a bound parameter; inside FTS5's own language it is a quoted string.

Rows are numbered from the newest document on, and all that can be asked for but a date is a word: a query is
one expression, answered in the order of rows, and dates are a range of rows. Nothing is sorted, and FTS5
stops where enough was found: ranking all that have a common word takes ten times as long as finding them.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import apsw

from vfs import Malformed
from vfs_search.documents import Document, Library
from vfs_search.grammar import WORDS, Term, Text

#: Of more documents than these, the newest are looked at (and ranked, which takes 0.6 us each).
MOST = 5000
_COLUMNS = tuple(WORDS.values())
_SCHEMA = f"""
PRAGMA journal_mode = OFF;
CREATE VIRTUAL TABLE words USING fts5({", ".join(_COLUMNS)}, marks, content='',
    tokenize="unicode61 remove_diacritics 2");
"""
#: Tokens of our own, of private use, which no term may have. Between tags, so that a phrase does not reach
#: from one into the next; of every document; of one with a rating, with its number behind it.
_BETWEEN, _ALL, _RATED = "\ue000", "\ue001", "\ue002"
_PRIVATE = str.maketrans(dict.fromkeys((_BETWEEN, _ALL, _RATED), " "))
#: Ratings that can be asked for; the application gives 1 to 5.
_RATINGS = range(101)
#: Steps of SQLite's machine for one query: hundreds of times what 100,000 documents take.
_STEPS_A_CALL, _CALLS = 100_000, 2_000


@dataclass(frozen=True, slots=True)
class Match:
    """A document and how well it fits, 0 to 1."""

    document: Document
    score: float


@dataclass(frozen=True, slots=True)
class _Compiled:
    """An FTS5 expression, further conditions on the number of a row, and their parameters."""

    expression: str
    conditions: tuple[str, ...]
    values: tuple[int, ...]
    ranked: bool


class TextIndex:
    """The documents of one database, searchable."""

    def __init__(self, library: Library) -> None:
        self._documents = sorted(library.documents, key=_age, reverse=True)
        self._dates = [document.date for document in reversed(self._documents)]
        given = {document.rating for document in self._documents}
        self._ratings = [rating for rating in _RATINGS if rating in given]
        self._lock = threading.Lock()
        self._database = apsw.Connection(":memory:")
        self._calls = 0
        self._database.set_progress_handler(self._over, _STEPS_A_CALL)
        list(self._database.execute(_SCHEMA))
        marks = ", ".join("?" * (len(_COLUMNS) + 2))
        with self._database:
            self._database.executemany(
                f"INSERT INTO words(rowid, {', '.join(_COLUMNS)}, marks) VALUES ({marks})",
                map(_row, range(len(self._documents)), self._documents),
            )
        sizes = [self._database.pragma(name) for name in ("page_count", "page_size")]
        self.nbytes = int(sizes[0]) * int(sizes[1]) + library.nbytes

    def find(self, query: Text, most: int = MOST) -> Iterator[Match]:
        """The documents for which all terms hold, best first, then the newest. Raises Malformed.

        Words without a field make the order, by how rare they are; without such, all scores are 1. Of more
        than `most` documents these are the newest.
        """
        asked = self._compiled(query.terms)
        where = " AND ".join(("words MATCH ?", *asked.conditions))
        rank = "rank" if asked.ranked else "0.0"
        # In the order of rows, which is that of age: a LIMIT ends the work.
        statement = f"SELECT rowid, {rank} FROM words WHERE {where} LIMIT ?"
        rows = self._rows(statement, (asked.expression, *asked.values, most))
        rows.sort(key=lambda row: row[1])
        best = rows[0][1] if rows else 0.0
        return (
            Match(self._documents[number], round(rank / best, 4) if best < 0 else 1.0)
            for number, rank in rows
        )

    def _rows(self, statement: str, values: tuple[object, ...]) -> list[tuple[int, float]]:
        with self._lock:
            self._calls = 0
            try:
                return cast("list[tuple[int, float]]", self._database.execute(statement, values).fetchall())
            except apsw.InterruptError:
                raise Malformed("the query takes too long") from None
            except apsw.SQLError as error:
                raise Malformed(f"the query cannot be answered: {error}") from None

    def _over(self) -> bool:
        self._calls += 1
        return self._calls > _CALLS

    # -- terms --------------------------------------------------------------------------------------------

    def _compiled(self, terms: Iterable[Term]) -> _Compiled:
        wanted: list[str] = []
        unwanted: list[str] = []
        conditions: list[str] = []
        values: list[int] = []
        ranked = False
        for term in dict.fromkeys(terms):
            if term.field == "date":
                conditions.append(f"rowid {'NOT ' if term.negative else ''}BETWEEN ? AND ?")
                values += self._dated(term.low, term.high)
                continue
            phrase = self._rated(term) if term.field == "rating" else _phrase(term)
            (unwanted if term.negative else wanted).append(phrase)
            ranked |= not term.field and not term.negative
        expression = " AND ".join(wanted or [_mark(_ALL)])
        without = "".join(f" NOT {phrase}" for phrase in unwanted)
        return _Compiled(f"({expression}){without}", tuple(conditions), tuple(values), ranked)

    def _dated(self, low: str, high: str) -> tuple[int, int]:
        """First and last row of the dates within bounds, all that begin like `high` included."""
        count = len(self._dates)
        end = bisect_right(self._dates, f"{high}~") if high else count
        return count - end, count - bisect_left(self._dates, low or "0") - 1

    def _rated(self, term: Term) -> str:
        """One of the ratings there are that lie within the bounds."""
        low, high = float(term.low or _RATINGS[0]), float(term.high or _RATINGS[-1])
        within = [_mark(f"{_RATED}{rating}") for rating in self._ratings if low <= rating <= high]
        return f"({' OR '.join(within or [_mark(_RATED)])})"


def _age(document: Document) -> tuple[str, int]:
    """Later ones are more; so are better ones of one date."""
    return document.date, -1 if document.rating is None else document.rating


def _row(number: int, document: Document) -> tuple[object, ...]:
    texts = [getattr(document, column) for column in _COLUMNS]
    rated = f" {_RATED}{document.rating}" if document.rating in _RATINGS else ""
    words = (f" {_BETWEEN} ".join(text) if isinstance(text, tuple) else text for text in texts)
    return number, *words, _ALL + rated


def _phrase(term: Term) -> str:
    quoted = '"' + term.words.translate(_PRIVATE).replace('"', '""') + '"'
    return f"({{{term.field}}} : {quoted})" if term.field else f"({quoted})"


def _mark(token: str) -> str:
    return f'({{marks}} : "{token}")'
