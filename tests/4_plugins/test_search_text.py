"""`search/text/` over databases of the application: what is found, and what words cannot do."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from vfs_search.documents import Document, Library, read
from vfs_search.grammar import parse_text
from vfs_search.options import Options
from vfs_search.plugin import Search
from vfs_search.textindex import TextIndex

from vfs import Bytes, Malformed, NameTooLong, ReelfsError, Runtime, Settings, Spliced, Symlink, open_runtime
from vfs.testing import ViewContract

SCHEMA = """
CREATE TABLE games (id INTEGER PRIMARY KEY, name TEXT, video_path TEXT, opponent_name TEXT, game_date TEXT,
    game_type TEXT, tournament_name TEXT);
CREATE TABLE raw_clips (id INTEGER PRIMARY KEY, game_id INTEGER, video_path TEXT, start_time REAL,
    end_time REAL, rating INTEGER, tags TEXT, notes TEXT);
"""
ROWS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("games", (1, "vs Lions", "games/a.bin", "Lions", "2025-09-14 10:00:00", "home", "Cup")),
    ("games", (2, "at Östra", "games/b.bin", "Östra IF", "2025-10-02", "away", None)),
    ("games", (3, "gone", "games/gone.bin", "Lions", "2025-11-01", "away", None)),
    ("raw_clips", (1, 9, "raw_clips/1.bin", 1, 5, 5, '["Goals", "Left foot"]', 'Far post; "top" corner')),
    ("raw_clips", (2, 9, "/home/me/user_data/a/raw_clips/2.bin", 1, 5, 2, '["miss"]', "wide")),
    ("raw_clips", (3, 9, "3.bin", 2, 6, 4, "not json", "foot race, left side")),
    ("raw_clips", (4, 9, "nowhere.bin", 2, 6, 4, "[]", "its video is not there")),
)
FILES = ("games/a.bin", "games/b.bin", "raw_clips/1.bin", "raw_clips/2.bin", "raw_clips/3.bin")


def database(*rows: tuple[str, tuple[Any, ...]]) -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    for table, values in rows:
        connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)
    connection.commit()
    data: bytes = connection.serialize()
    connection.close()
    return data


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One user, whose videos are named only."""
    top = tmp_path_factory.mktemp("bucket")
    for path in FILES:
        (top / "a" / path).parent.mkdir(parents=True, exist_ok=True)
        (top / "a" / path).write_bytes(path.encode())
    (top / "a/database.sqlite").write_bytes(database(*ROWS))
    return top


def on(source: Path, ask: Callable[[Runtime], Awaitable[None]]) -> None:
    async def session() -> None:
        async with open_runtime(
            Settings.load({"source": str(source)}, environ={"HOME": "/nonexistent"})
        ) as runtime:
            await ask(runtime)

    trio.run(session)


async def results(runtime: Runtime, path: str) -> list[dict[str, Any]]:
    found = await runtime.tree.settle(await runtime.tree.resolve(f"search/text/{path}/@/results.json"))
    rows: list[dict[str, Any]] = json.loads(found)["results"]
    return rows


@pytest.mark.parametrize(
    ("query", "sources"),
    [
        ("foot", ["raw_clips/1.bin", "raw_clips/3.bin"]),
        ("left_foot", ["raw_clips/1.bin"]),
        ("foot+left", ["raw_clips/1.bin", "raw_clips/3.bin"]),
        ("tag:goals", ["raw_clips/1.bin"]),
        ("tag:goals_left", []),  # two tags are no phrase
        ("rating:4..", ["raw_clips/1.bin", "raw_clips/3.bin"]),
        ("rating:..3", ["raw_clips/2.bin"]),
        ("rating:1..+-tag:miss", ["raw_clips/1.bin", "raw_clips/3.bin"]),
        ("-kind:clip", ["games/a.bin", "games/b.bin"]),
        ("opponent:ostra", ["games/b.bin"]),  # no matter the accents
        ("opponent:lions", ["games/a.bin"]),  # the other game's video is gone
        ("date:2025-09", ["games/a.bin"]),
        ("date:2025-09..2025-10", ["games/a.bin", "games/b.bin"]),
        ("type:away", ["games/b.bin"]),
        ("tournament:cup", ["games/a.bin"]),
        ("kind:game/in:a%2Fgames", ["games/a.bin", "games/b.bin"]),
        ("kind:game/in:b", []),
        ("kind:game/limit:1", ["games/b.bin"]),  # the newest
        ('"top"', ["raw_clips/1.bin"]),
    ],
)
def test_what_is_found(user: Path, query: str, sources: list[str]) -> None:
    async def ask(runtime: Runtime) -> None:
        found = await results(runtime, query)
        assert sorted(row["source"] for row in found) == [f"a/{source}" for source in sources]
        assert [row["rank"] for row in found] == list(range(1, len(found) + 1))
        assert all(0 <= row["score"] <= 1 for row in found)

    on(user, ask)


def test_a_result_is_the_stored_file_itself_with_reasons(user: Path) -> None:
    """Zero copy: the same extent of the same object; attributes, links and lists beside it."""

    async def ask(runtime: Runtime) -> None:
        folder = await runtime.tree.resolve("search/text/opponent:lions/limit:3/@")
        entries = await runtime.tree.entries(folder)
        name = "001_s1.00_2025-09-14_Lions_g1.bin"
        assert sorted(entries) == [".status", name, "contact.jpg", "links", "results.json", "results.m3u8"]
        node = entries[name].node
        assert isinstance(node, Spliced)
        assert [extent.object.key for extent in node.layout.extents] == ["a/games/a.bin"]
        assert node.layout.size == len(b"games/a.bin")
        told = {key: node.attributes[f"search.{key}"] for key in ("rank", "score", "tier", "kind", "source")}
        assert told == {
            "rank": "1",
            "score": "1.0000",
            "tier": "text",
            "kind": "game",
            "source": "a/games/a.bin",
        }
        link = (await runtime.tree.resolve(f"search/text/opponent:lions/limit:3/@/links/{name}")).node
        assert isinstance(link, Symlink)
        assert link.target == "../" * 6 + "a/games/a.bin"
        playlist = (await runtime.tree.settle(entries["results.m3u8"])).decode()
        assert playlist.splitlines() == ["#EXTM3U", "#EXTINF:-1,Lions 2025-09-14 vs Lions", name]
        status = json.loads(await runtime.tree.settle(entries[".status"]))
        assert status == {"searched": ["a/database.sqlite"], "without_video": 1, "results": 1}

    on(user, ask)


def test_the_answer_follows_the_database(user: Path, tmp_path: Path) -> None:
    """What the next version of it says is found at the next look."""
    (tmp_path / "games").mkdir()
    (tmp_path / "games/a.bin").write_bytes(b"a")
    (tmp_path / "database.sqlite").write_bytes(database())

    async def session() -> None:
        given = {"source": str(tmp_path), "dir_ttl": 0, "attr_ttl": 0, "negative_ttl": 0}
        async with open_runtime(Settings.load(given, environ={"HOME": "/nonexistent"})) as runtime:
            assert await results(runtime, "lions") == []
            (tmp_path / "database.sqlite").write_bytes(database(ROWS[0]))
            assert [row["source"] for row in await results(runtime, "lions")] == ["games/a.bin"]

    trio.run(session)


def test_no_database_and_a_broken_one_say_so(tmp_path: Path) -> None:
    for user in ("a", "b"):
        (tmp_path / user).mkdir()
    (tmp_path / "a/database.sqlite").write_bytes(b"SQLite format 3\0" + bytes(600))

    async def ask(runtime: Runtime) -> None:
        status = json.loads(
            await runtime.tree.settle(await runtime.tree.resolve("search/text/goal/@/.status"))
        )
        assert "a/database.sqlite" in status["unreadable"][0]

    on(tmp_path, ask)
    (tmp_path / "a/database.sqlite").unlink()

    async def none(runtime: Runtime) -> None:
        status = json.loads(
            await runtime.tree.settle(await runtime.tree.resolve("search/text/goal/@/.status"))
        )
        assert "there is no database.sqlite" in status["note"]

    on(tmp_path, none)


HOSTILE = (
    "'; DROP TABLE documents; --", "goal OR 1=1", "a' UNION SELECT * FROM sqlite_master --", "NEAR(a b, 3)",
    "goal*", "^goal", "{tags} : goal", "tags : goal", "(((", "a AND", "NOT", '""', '"a""b"', "\\", "%", "_%_",
    "../../etc/passwd", "..%2F..%2Fetc%2Fpasswd", "{{7*7}}", "$(id)",
    "\udced\udca0\udc80",
    "tag:'; DELETE FROM words", "date:2025-09' OR '1'='1", "rating:4 OR 1=1", "a" * 255,
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_is_anything_but_text(user: Path, text: str) -> None:
    """SQL, FTS and path syntax: an answer or an error for this query, and the next one works."""

    async def ask(runtime: Runtime) -> None:
        name = text.replace("/", "%2F")
        try:
            found = await results(runtime, name)
        except ReelfsError as error:
            assert str(error)
        else:
            # A word of the injected syntax finds nothing that a plain word would not.
            assert len(found) <= 1
        assert len(await results(runtime, "foot")) == 2

    on(user, ask)


@pytest.mark.parametrize("kind", ["text", "frame", "clip", "saved", "drop"])
def test_ten_megabytes_are_a_name_too_long(user: Path, kind: str) -> None:
    async def ask(runtime: Runtime) -> None:
        with pytest.raises(NameTooLong):
            await runtime.tree.resolve(f"search/{kind}/{'a' * 10_000_000}")
        assert len(await results(runtime, "foot")) == 2

    on(user, ask)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40))
@example("0%80")
@example("title:a\udcff")
def test_any_text_is_answered_or_refused(text: str) -> None:
    try:
        query, _ = parse_text(text)
        list(INDEX.find(query))
    except Malformed:
        pass
    assert len(list(INDEX.find(parse_text("foot")[0]))) == 2


INDEX = TextIndex(read(database(*ROWS)))


NAMES = ("goal", "miss", "far", "post")
DOCUMENTS = st.lists(
    st.builds(
        Document,
        kind=st.sampled_from(("clip", "game")),
        number=st.integers(1, 9),
        files=st.just(()),
        date=st.sampled_from(("", "2024-12-31", "2025-01-01", "2025-01-15", "2025-02-01")),
        rating=st.sampled_from((None, -1, 0, 1, 2, 5, 1 << 40)),
        tags=st.lists(st.sampled_from(NAMES), max_size=2).map(tuple),
        notes=st.lists(st.sampled_from(NAMES), max_size=4).map(" ".join),
    ),
    max_size=12,
)
TERMS = st.lists(
    st.sampled_from(
        ("goal", "far_post", "tag:miss", "kind:clip", "rating:1", "rating:..2", "rating:0.5..4.5",
         "rating:9..", "date:2025", "date:2025-01..2025-01-15", "date:..2025-01", "date:2026..")
    ).flatmap(lambda term: st.sampled_from((term, f"-{term}"))),
    min_size=1, max_size=4,
)  # fmt: skip


def holds(document: Document, term: str) -> bool:
    """What a term means, said plainly."""
    field, _, value = term.removeprefix("-").rpartition(":")
    low, dots, high = value.partition("..")
    high = high if dots else low
    if field == "rating":
        rated = document.rating is not None and 0 <= document.rating <= 100
        found = rated and float(low or 0) <= (document.rating or 0) <= float(high or 100)
    elif field == "date":
        found = (
            document.date != "" and low <= document.date and (not high or document.date[: len(high)] <= high)
        )
    elif field == "tag":
        found = value in document.tags
    elif field == "kind":
        found = document.kind == value
    else:
        texts = (document.notes, *document.tags)
        found = any(f" {value.replace('_', ' ')} " in f" {text} " for text in texts)
    return found != term.startswith("-")


@settings(max_examples=100, deadline=None)
@given(DOCUMENTS, TERMS)
def test_terms_find_what_they_say(documents: list[Document], terms: list[str]) -> None:
    """Against a plain reading of each document; the newest come first where nothing is ranked."""
    index = TextIndex(Library(tuple(documents), {}, {}))
    found = [match.document for match in index.find(parse_text("+".join(terms))[0])]
    expected = [document for document in documents if all(holds(document, term) for term in terms)]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    if all(":" in term or term.startswith("-") for term in terms):
        assert [one.date for one in found] == sorted((one.date for one in found), reverse=True)


def test_of_very_many_the_newest_are_looked_at() -> None:
    """Of those the ones that fit best come first; a rare word finds the oldest just as well."""
    many = [Document("clip", n, (), notes=f"goal n{n}" + " goal" * (n % 3), date=f"2025-01-{n % 28 + 1:02}")
            for n in range(280)]  # fmt: skip
    index = TextIndex(Library(tuple(many), {}, {}))
    found = list(index.find(parse_text("goal")[0], most=20))
    assert {match.document.date for match in found} == {"2025-01-28", "2025-01-27"}
    assert found[0].score == 1
    assert [match.score for match in found] == sorted((match.score for match in found), reverse=True)
    assert [match.document.number for match in index.find(parse_text("goal+n0")[0], most=20)] == [0]


@pytest.mark.parametrize(
    ("sort", "sources"),
    [
        ("rating", ["1", "3", "2"]),
        ("path", ["1", "2", "3"]),
        ("score", ["3", "2", "1"]),
        ("date", ["3", "2", "1"]),
    ],
)
def test_results_are_sorted_before_they_are_limited(tmp_path: Path, sort: str, sources: list[str]) -> None:
    """`limit:1` of an order is the first of that order, not the best of another."""
    rows = [("games", (n, f"g{n}", f"games/{n}.bin", "x", f"2025-0{n}-01", "home", None)) for n in (1, 2, 3)]
    clips = [("raw_clips", (n, n, f"raw_clips/{n}.bin", 5, 1, rating, '["a"]', "word " * n))
             for n, rating in ((1, 5), (2, None), (3, 4))]  # fmt: skip
    (tmp_path / "raw_clips").mkdir()
    for n in (1, 2, 3):
        (tmp_path / f"raw_clips/{n}.bin").write_bytes(b"x")
    (tmp_path / "database.sqlite").write_bytes(database(*rows, *clips))

    async def ask(runtime: Runtime) -> None:
        for limit in (1, 3):
            found = await results(runtime, f"word/sort:{sort}/limit:{limit}")
            assert [row["source"] for row in found] == [f"raw_clips/{n}.bin" for n in sources[:limit]]

    on(tmp_path, ask)


class TestSearchContract(ViewContract):
    """The view in the tree, as every view has to be."""

    objects = {"a/games/a.bin": bytes(100), "a/database.sqlite": database(ROWS[0])}  # noqa: RUF012
    names = {  # noqa: RUF012
        "": ["search/text/lions/@/001_s1.00_2025-09-14_Lions_g1.bin", "search/text/lions/@/results.json"]
    }

    def views(self) -> list[Search]:
        return [Search(Options(listed=True), Path("/nonexistent"))]


def test_bytes_of_lists_are_known_before_they_are_read(user: Path) -> None:
    async def ask(runtime: Runtime) -> None:
        found = await runtime.tree.resolve("search/text/lions/@/results.json")
        assert isinstance(found.node, Bytes)
        assert found.size == len(await runtime.tree.settle(found))

    on(user, ask)
