"""Clips out of databases: the contract's schema and later ones, names for people, hostile files."""

from __future__ import annotations

import importlib
import json
import random
import sqlite3
import sys
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from vfs_mp4 import database
from vfs_mp4.database import Clips, file_name

from vfs import Damaged, TooBig, rows

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

SCHEMA: str = importlib.import_module("sample_library").SCHEMA

#: As the application stores them later: other columns, msgpack, games by content, games of several files.
LATER = """
CREATE TABLE games (id INTEGER PRIMARY KEY, name TEXT, blake3_hash TEXT, video_duration REAL);
CREATE TABLE game_videos (id INTEGER PRIMARY KEY, game_id INTEGER, sequence INTEGER, hash TEXT, fps REAL);
CREATE TABLE raw_clips (id INTEGER PRIMARY KEY, filename TEXT, start_time REAL, end_time REAL,
    game_id INTEGER, video_sequence INTEGER, rating INTEGER, tags BLOB, name TEXT, notes TEXT,
    my_athlete INTEGER);
"""


def made(schema: str, *statements: tuple[str, Iterable[Any]]) -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.executescript(schema)
    for statement, values in statements:
        connection.execute(statement, tuple(values))
    connection.commit()
    data = connection.serialize()
    connection.close()
    return data


def clip(**columns: Any) -> tuple[str, Iterable[Any]]:
    given = {"game_id": 1, "video_path": "", "start_time": 1.0, "end_time": 2.0, **columns}
    return (
        f"INSERT INTO raw_clips ({', '.join(given)}) VALUES ({', '.join('?' * len(given))})",
        given.values(),
    )


GAME = ("INSERT INTO games (id, name, video_path) VALUES (1, 'vs Harbor', 'games/abc.mp4')", ())


def contract(*clips: dict[str, Any]) -> Clips:
    return database.read(made(SCHEMA, GAME, *(clip(**columns) for columns in clips)))


def test_a_row_of_the_contract() -> None:
    found = contract(
        {
            "start_time": 3.1,
            "end_time": 7.25,
            "rating": 5,
            "tags": json.dumps(["Goals", "1v1"]),
            "notes": "Far post",
        }
    )
    ((name, row),) = found.rows.items()
    assert name == "5 Far post.mp4"
    assert (row.start, row.end) == (Fraction(31, 10), Fraction(29, 4))
    assert (row.number, row.rating, row.tags, row.notes) == (1, 5, ("Goals", "1v1"), "Far post")
    assert row.game.name == "vs Harbor"
    assert row.game.of(None) == ("games/abc.mp4", "abc.mp4")
    assert found.wrong == ()


def test_names_are_of_notes_else_tags_else_the_id() -> None:
    found = contract(
        {"notes": "\n  two\nlines "}, {"tags": '["a","b"]', "notes": ""}, {"tags": "[]"}, {"tags": "no json"}
    )
    assert list(found.rows) == ["3 two.mp4", "3 a, b.mp4", "3 clip 3.mp4", "3 clip 4.mp4"]


def test_names_that_clash_get_the_id_of_their_row() -> None:
    found = contract(
        *({"notes": note} for note in ("Same", "same", "SAME", "Same (2)", "Ärger", "A\u0308RGER"))
    )
    assert list(found.rows) == [
        "3 Same.mp4", "3 same (2).mp4", "3 SAME (3).mp4", "3 Same (2) (4).mp4", "3 Ärger.mp4",
        "3 A\u0308RGER (6).mp4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b", "a b"),
        ("..", ""),
        (".hidden", "hidden"),
        (" \t spaced \x00 out\u2028", "spaced out"),
        ("\u202eevil\u200b", "evil"),
        ("trailing. .", "trailing"),
        ("x" * 5000, "x" * 200),
        ("ö" * 300, "ö" * 100),
        ("/", ""),
        ("🎬 goal", "🎬 goal"),
    ],
)
def test_text_as_a_name(text: str, name: str) -> None:
    assert file_name(text) == name


def test_a_name_is_never_longer_than_a_name_may_be() -> None:
    found = contract(*({"notes": "ü" * 400} for _ in range(3)))
    assert all(len(name.encode()) <= 255 for name in found.rows)
    assert len(found.rows) == 3


@pytest.mark.parametrize(
    ("stored", "files"),
    [
        ("games/abc.mp4", ("games/abc.mp4", "abc.mp4")),
        ("abc.mp4", ("abc.mp4",)),
        ("/home/x/user_data/a/games/abc.mp4", ("abc.mp4",)),
        ("C:\\data\\a\\games\\abc.mp4", ("C:/data/a/games/abc.mp4", "abc.mp4")),
        ("../../b/games/abc.mp4", ("abc.mp4",)),
        ("..", ()),
        ("", ()),
        ("games/", ()),
    ],
)
def test_where_the_video_of_a_game_may_be(stored: str, files: tuple[str, ...]) -> None:
    data = made(SCHEMA, ("INSERT INTO games (id, name, video_path) VALUES (1, 'g', ?)", (stored,)), clip())
    (row,) = database.read(data).rows.values()
    assert row.game.of(None) == files
    assert row.game.of(7) == files


def test_games_of_later_schemas_are_by_content_and_of_several_files() -> None:
    one, two, three = ("0" * 63 + str(n) for n in (1, 2, 3))
    data = made(
        LATER,
        ("INSERT INTO games VALUES (1, 'single', ?, 5400)", (one,)),
        ("INSERT INTO games VALUES (2, 'two halves', NULL, 5400)", ()),
        ("INSERT INTO game_videos VALUES (1, 2, 1, ?, 30)", (two,)),
        ("INSERT INTO game_videos VALUES (2, 2, 2, ?, 30)", (three,)),
        (
            "INSERT INTO raw_clips VALUES (5, '', 1, 2, 1, NULL, 4, ?, 'Named', 'notes', 1)",
            (b"\x92\xa4Goal\xd9\x01x",),
        ),
        ("INSERT INTO raw_clips VALUES (6, '', 1, 2, 2, 2, NULL, ?, NULL, NULL, 0)", (b"\x91\xa4Pass",)),
    )
    first, second = database.read(data).rows.values()
    assert (first.name, first.tags, first.game.of(first.sequence)) == (
        "4 Named",
        ("Goal", "x"),
        (f"{one}.mp4",),
    )
    assert (second.name, second.game.of(second.sequence)) == ("Pass", (f"{three}.mp4",))


@pytest.mark.parametrize(
    "tags",
    [
        b"\xc1",
        b"\x81\xa1a\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\x91\x91\xa1a",
        b"\xdb\xff\xff\xff\xff",
        b"[[[",
        b"",
        7,
    ],
)
def test_tags_that_cannot_be_read_are_none(tags: object) -> None:
    (row,) = contract({"tags": tags}).rows.values()
    assert row.tags == ()


@pytest.mark.parametrize(
    "columns",
    [
        {"start_time": 5.0, "end_time": 5.0},
        {"start_time": 7.0, "end_time": 5.0},
        {"start_time": -1.0},
        {"end_time": 9e999},
        {"start_time": "soon"},
        {"start_time": 1e300, "end_time": 2e300},
        {"game_id": 9},
        {"game_id": "x"},
    ],
)
def test_a_row_that_is_no_clip_is_told_and_left_out(columns: dict[str, Any]) -> None:
    found = contract(columns, {})
    assert list(found.rows) == ["3 clip 2.mp4"]
    assert len(found.wrong) == 1
    assert found.wrong[0].startswith("clip 1:")


def test_no_tables_are_no_clips() -> None:
    assert database.read(made("CREATE TABLE other (x)")).rows == {}


def test_columns_that_compute_are_not_read() -> None:
    data = made(
        "CREATE TABLE raw_clips (id, game_id AS (1), start_time AS (1), end_time AS (hex(zeroblob(1e8))))"
    )
    assert database.read(data).rows == {}


def test_a_write_ahead_log_that_is_not_there_is_not_missed(tmp_path: Path) -> None:
    path = tmp_path / "database.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(SCHEMA)
    connection.execute(*GAME)
    statement, values = clip()
    connection.execute(statement, tuple(values))
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = path.read_bytes()
    connection.close()
    assert data[18:20] == b"\2\2"
    assert list(database.read(data).rows) == ["3 clip 1.mp4"]


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE VIEW raw_clips AS WITH RECURSIVE c(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM c) "
        "SELECT id, 1 AS game_id, 1 AS start_time, 2 AS end_time FROM c",
        "CREATE TABLE secret (id); CREATE VIEW raw_clips AS SELECT id FROM secret",
    ],
)
def test_a_schema_that_computes_is_refused(schema: str) -> None:
    with pytest.raises(Damaged, match="unreadable"):
        database.read(made(schema))


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TooBig, match="67108864"):
        database.read(bytes(rows.MAX_DATABASE + 1))
    monkeypatch.setattr(rows, "MAX_ROWS", 3)
    assert len(contract(*({} for _ in range(3))).rows) == 3
    with pytest.raises(TooBig, match="raw_clips"):
        contract(*({} for _ in range(4)))


def test_damaged_databases_are_read_or_refused() -> None:
    """Flipped bytes and cuts: clips or Damaged, nothing else and quickly."""
    good = made(SCHEMA, GAME, *(clip(notes=f"note {n}", rating=n % 5) for n in range(40)))
    rng = random.Random(4)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randint(1, 30)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        cut = rng.randrange(len(data)) if rng.random() < 0.3 else len(data)
        try:
            rows = database.read(bytes(data[:cut])).rows
        except Damaged:
            refused += 1
        else:
            assert all(0 <= row.start < row.end for row in rows.values())
    assert 0 < refused < 300


def test_ten_thousand_rows_are_read_fast() -> None:
    found = contract(*({"notes": f"Note {n % 500}"} for n in range(10_000)))
    assert len(found.rows) == 10_000
