"""`raw_clips@/`: what a database says, as clips of the stored games."""

from __future__ import annotations

import sqlite3
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import mp4_exact
from mp4_library import Library, in_library
from mp4_places import MemoryPlace

from vfs import Bytes, Damaged, Directory, NotFound, OutOfRange, Spliced, TooBig

HASH = "ab" * 32
LATER = """
CREATE TABLE games (id INTEGER PRIMARY KEY, name TEXT, blake3_hash TEXT);
CREATE TABLE game_videos (game_id INTEGER, sequence INTEGER, hash TEXT);
CREATE TABLE raw_clips (id INTEGER PRIMARY KEY, start_time REAL, end_time REAL, game_id INTEGER,
    video_sequence INTEGER, rating INTEGER, name TEXT);
"""
CONTRACT = """
CREATE TABLE games (id INTEGER PRIMARY KEY, name TEXT, video_path TEXT);
CREATE TABLE raw_clips (id INTEGER PRIMARY KEY, game_id INTEGER, start_time REAL, end_time REAL,
    rating INTEGER, tags TEXT, notes TEXT);
"""


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = mp4_exact.encode(tmp_path_factory.mktemp("game") / "x.mp4", frames=150, size=(160, 90))
    return path.read_bytes()


@pytest.fixture
def user(tmp_path: Path, game: bytes) -> Path:
    """A user's folder as the contract has it; no clip was ever cut."""
    (tmp_path / "a" / "games").mkdir(parents=True)
    (tmp_path / "a" / "games" / "abc.mp4").write_bytes(game)
    make(
        tmp_path / "a" / "database.sqlite",
        CONTRACT,
        ("games", (1, "vs Harbor", "games/abc.mp4")),
        ("games", (2, "gone", "games/gone.mp4")),
        ("raw_clips", (1, 1, 1.25, 2.5, 5, '["Goals"]', "Far post")),
        ("raw_clips", (2, 2, 1.0, 2.0, 3, "[]", "Of a game that is gone")),
        ("raw_clips", (3, 1, 100.0, 200.0, 3, "[]", "After the end")),
    )
    return tmp_path


def make(path: Path, schema: str, *rows: tuple[str, tuple[Any, ...]]) -> None:
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript(schema)
    for table, values in rows:
        connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)
    connection.commit()
    connection.close()


def test_rows_are_clips_exact_to_the_frame(user: Path, game: bytes) -> None:
    async def body(library: Library) -> None:
        assert await library.names("a/raw_clips@") == ["3 After the end.mp4", "5 Far post.mp4"]
        found = await library.found("a/raw_clips@/5 Far post.mp4")
        assert isinstance(found.node, Spliced)
        told = {name: found.attributes[name] for name in ("rating", "tags", "notes", "game", "start", "end")}
        assert told == {
            "rating": "5", "tags": "Goals", "notes": "Far post", "game": "vs Harbor", "start": "1.25",
            "end": "2.5",
        }  # fmt: skip
        assert found.attributes["source"] == "a/games/abc.mp4"
        data = await library.content("a/raw_clips@/5 Far post.mp4")
        truth = mp4_exact.truth_of(MemoryPlace(game))
        first, after = truth.between(Fraction(5, 4), Fraction(5, 2))
        assert [f.hash for f in mp4_exact.decode(data)] == truth.hashes(first, after)

    in_library(user, body)


def test_listing_reads_the_database_and_nothing_else_and_once(user: Path) -> None:
    async def body(library: Library) -> None:
        await library.names("a/raw_clips@")
        size = (user / "a" / "database.sqlite").stat().st_size
        assert library.store.reads == [("a/database.sqlite", 0, size)]
        await library.names("a/raw_clips@")
        assert len(library.store.reads) == 1

    in_library(user, body)


def test_what_cannot_be_read_is_not_there_and_says_why(user: Path) -> None:
    async def body(library: Library) -> None:
        with pytest.raises(NotFound, match="the video of gone is not there"):
            await library.found("a/raw_clips@/3 Of a game that is gone.mp4")
        with pytest.raises(OutOfRange):
            await library.found("a/raw_clips@/3 After the end.mp4")
        with pytest.raises(NotFound):
            await library.found("a/raw_clips@/nothing.mp4")
        notes = library.runtime.status.snapshot()
        assert "the video of gone is not there" in str(notes)

    in_library(user, body)


def test_folders_without_a_database_have_none(user: Path) -> None:
    async def body(library: Library) -> None:
        for path in ("raw_clips@", "a/games/raw_clips@"):
            with pytest.raises(NotFound):
                await library.found(path)
        assert await library.names("a") == ["database.sqlite", "games"]

    in_library(user, body)


def test_stored_clips_do_not_hide_the_rows_and_a_real_key_does(user: Path) -> None:
    (user / "a" / "raw_clips").mkdir()
    (user / "a" / "raw_clips" / "cut.mp4").write_bytes(b"x")

    async def body(library: Library) -> None:
        assert "5 Far post.mp4" in await library.names("a/raw_clips@")
        assert await library.names("a/raw_clips") == ["cut.mp4"]

    in_library(user, body)
    (user / "a" / "raw_clips@").write_bytes(b"stored")

    async def again(library: Library) -> None:
        assert await library.content("a/raw_clips@") == b"stored"

    in_library(user, again)


def test_clips_can_be_derived_from_again(user: Path) -> None:
    async def body(library: Library) -> None:
        picture = await library.content("a/raw_clips@/5 Far post@0.5s.png")
        assert picture == await library.content("a/games/abc@1.74s.png")

    in_library(user, body)


@pytest.mark.parametrize(
    "stored", ["abc.mp4", "/home/old/user_data/a/games/abc.mp4", "C:\\x\\games\\abc.mp4"]
)
def test_paths_of_the_tables_are_tried_by_their_last_part(user: Path, stored: str) -> None:
    make(
        user / "a" / "database.sqlite", CONTRACT,
        ("games", (1, "g", stored)), ("raw_clips", (1, 1, 1.0, 2.0, 5, None, "Goal")),
    )  # fmt: skip

    async def body(library: Library) -> None:
        assert (await library.found("a/raw_clips@/5 Goal.mp4")).attributes["source"] == "a/games/abc.mp4"

    in_library(user, body)


def test_games_of_all_users_and_of_several_files(tmp_path: Path, game: bytes) -> None:
    profile = tmp_path / "production" / "users" / "u" / "profiles" / "12345678"
    profile.mkdir(parents=True)
    (tmp_path / "games").mkdir()
    other = "cd" * 32
    for name in (HASH, other):
        (tmp_path / "games" / f"{name}.mp4").write_bytes(game)
    make(
        profile / "profile.sqlite", LATER,
        ("games", (1, "one file", HASH)), ("games", (2, "halves", None)),
        ("game_videos", (2, 1, HASH)), ("game_videos", (2, 2, other)), ("game_videos", (2, 3, "../../x")),
        ("raw_clips", (1, 1.0, 2.0, 1, None, 4, "First")),
        ("raw_clips", (2, 1.0, 2.0, 2, 2, 4, "Second half")),
        ("raw_clips", (3, 1.0, 2.0, 2, 3, 4, "Bad hash")),
    )  # fmt: skip

    async def body(library: Library) -> None:
        folder = "production/users/u/profiles/12345678/raw_clips@"
        assert await library.names(folder) == ["4 First.mp4", "4 Second half.mp4"]
        assert (await library.found(f"{folder}/4 First.mp4")).attributes["source"] == f"games/{HASH}.mp4"
        assert (await library.found(f"{folder}/4 Second half.mp4")).attributes[
            "source"
        ] == f"games/{other}.mp4"

    in_library(tmp_path, body)


def test_a_damaged_or_huge_database_is_an_error_of_that_path_alone(user: Path) -> None:
    (user / "a" / "database.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    (user / "b").mkdir()
    with (user / "b" / "database.sqlite").open("wb") as file:
        file.truncate((64 << 20) + 1)

    async def body(library: Library) -> None:
        with pytest.raises(Damaged, match=r"a/database.sqlite: unreadable"):
            await library.names("a/raw_clips@")
        with pytest.raises(TooBig, match="67108864"):
            await library.names("b/raw_clips@")
        assert await library.names("a") == ["database.sqlite", "games"]
        assert await library.content("a/games/abc@1s.mp4")

    in_library(user, body)


def test_another_database_is_another_list(user: Path) -> None:
    async def body(library: Library) -> None:
        assert len(await library.names("a/raw_clips@")) == 2
        make(
            user / "a" / "database.sqlite", CONTRACT,
            ("games", (1, "g", "abc.mp4")), ("raw_clips", (9, 1, 1.0, 2.0, 1, None, "New")),
        )  # fmt: skip
        library.tree._metadata.forget("a/database.sqlite")
        assert await library.names("a/raw_clips@") == ["1 New.mp4"]

    in_library(user, body)


def test_ten_thousand_rows_list_fast_and_no_game_is_opened_for_it(user: Path) -> None:
    rows = [("raw_clips", (n, 1, n / 5000, n / 5000 + 1, n % 6, None, f"Clip {n}")) for n in range(1, 10_001)]
    make(user / "a" / "database.sqlite", CONTRACT, ("games", (1, "g", "abc.mp4")), *rows)

    async def body(library: Library) -> None:
        began = time.process_time()
        folder = await library.found("a/raw_clips@")
        listed = await library.tree.entries(folder)
        assert time.process_time() - began < 5
        assert len(listed) == 10_000
        assert {key for key, _, _ in library.store.reads} == {"a/database.sqlite"}
        assert isinstance(folder.node, Directory)
        one = listed["2 Clip 8.mp4"]
        # Its size is for whoever looks at the name; read as it stands it has the same bytes.
        assert isinstance(one.node, Bytes)
        assert one.ttl == 0
        assert await library.tree.settle(one) == await library.content("a/raw_clips@/2 Clip 8.mp4")

    in_library(user, body)
