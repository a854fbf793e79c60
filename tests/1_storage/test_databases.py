"""Snapshots of SQLite databases: what SQLite would see, as one checked file, the originals untouched."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import apsw
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfs.confine import landlock_abi
from vfs.errors import Damaged, ReelfsError, WorkerFailed
from vfs.write import databases, dbprocess
from vfs.write.databases import Snapshot, Unfinished

ENDINGS = ("", "-wal", "-journal")


@dataclass
class Cut:
    """The files of a database as they were when its program was cut off. Nobody has them open."""

    path: Path

    @classmethod
    def of(cls, source: Path, folder: Path) -> Cut:
        folder.mkdir()
        for ending in ENDINGS:
            if (file := Path(f"{source}{ending}")).exists():
                shutil.copyfile(file, folder / f"x.sqlite{ending}")
        return cls(folder / "x.sqlite")

    def beside(self, ending: str) -> str | None:
        path = f"{self.path}{ending}"
        return path if os.path.exists(path) else None

    def snapshot(self, out: Path) -> Snapshot:
        return databases.snapshot(str(self.path), self.beside("-wal"), self.beside("-journal"), str(out))

    def content(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in self.path.parent.iterdir()}


def opened(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    assert connection.execute(f"PRAGMA journal_mode = {mode}").fetchone()[0] == mode
    connection.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, body BLOB)")
    connection.execute("CREATE INDEX IF NOT EXISTS i ON t (body)")
    return connection


def rows(path: Path) -> list[tuple[int, bytes]]:
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return connection.execute("SELECT id, body FROM t ORDER BY id").fetchall()


def seen_by_sqlite(cut: Cut, folder: Path) -> list[tuple[int, bytes]]:
    """What SQLite makes of copies of the files."""
    twin = Cut.of(cut.path, folder)
    with closing(sqlite3.connect(twin.path)) as connection:
        return connection.execute("SELECT id, body FROM t ORDER BY id").fetchall()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source.sqlite"


def test_a_log_is_taken_in(source: Path, tmp_path: Path) -> None:
    with closing(opened(source, "wal")) as writer:
        writer.execute("INSERT INTO t VALUES (1, x'01'), (2, x'02')")
        cut = Cut.of(source, tmp_path / "cut")
    before = cut.content()
    assert len(before["x.sqlite-wal"]) > 32
    made = cut.snapshot(tmp_path / "out.sqlite")
    assert made == Snapshot((tmp_path / "out.sqlite").stat().st_size, merged=True)
    assert rows(tmp_path / "out.sqlite") == [(1, b"\1"), (2, b"\2")]
    # Nothing is left beside it, the header says WAL as before, and what was given is as it was.
    assert sorted(p.name for p in tmp_path.glob("out*")) == ["out.sqlite"]
    assert (tmp_path / "out.sqlite").read_bytes()[18:20] == b"\2\2"
    assert cut.content() == before


def test_an_unfinished_transaction_in_a_log_is_left_out(source: Path, tmp_path: Path) -> None:
    with closing(opened(source, "wal")) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("INSERT INTO t VALUES (1, x'01')")
        writer.execute("BEGIN")
        writer.executemany("INSERT INTO t VALUES (?, ?)", [(n, bytes([n]) * 3000) for n in range(2, 100)])
        cut = Cut.of(source, tmp_path / "cut")  # frames were spilled already, without their end
    assert cut.path.with_name("x.sqlite-wal").stat().st_size > 100_000
    cut.snapshot(tmp_path / "out.sqlite")
    assert rows(tmp_path / "out.sqlite") == [(1, b"\1")]


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist"])
def test_a_hot_journal_is_rolled_back(source: Path, tmp_path: Path, mode: str) -> None:
    with closing(opened(source, mode)) as writer:
        writer.executemany("INSERT INTO t VALUES (?, ?)", [(n, bytes([n]) * 3000) for n in range(1, 50)])
        before = [(n, bytes([n]) * 3000) for n in range(1, 50)]
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN")
        writer.execute("UPDATE t SET body = x'ff'")
        writer.execute("DELETE FROM t WHERE id > 20")
        cut = Cut.of(source, tmp_path / "cut")
        # The database is half of the new and half of the old by now.
        assert cut.path.with_name("x.sqlite-journal").read_bytes()[:8] == databases._JOURNAL
    with pytest.raises(Damaged):
        databases.check(str(cut.path))
    kept = cut.content()
    assert cut.snapshot(tmp_path / "out.sqlite").merged
    assert rows(tmp_path / "out.sqlite") == before
    assert cut.content() == kept
    assert (tmp_path / "out.sqlite").read_bytes()[18:20] == b"\1\1"


@pytest.mark.parametrize("mode", ["truncate", "persist"])
def test_a_journal_that_is_over_is_nothing(source: Path, tmp_path: Path, mode: str) -> None:
    with closing(opened(source, mode)) as writer:
        writer.execute("INSERT INTO t VALUES (1, x'01')")
        cut = Cut.of(source, tmp_path / "cut")
    assert cut.beside("-journal")
    assert not cut.snapshot(tmp_path / "out.sqlite").merged
    assert (tmp_path / "out.sqlite").read_bytes() == cut.path.read_bytes()


def test_a_quiet_database_comes_out_as_it_is(source: Path, tmp_path: Path) -> None:
    for mode in ("delete", "wal"):
        with closing(opened(source, mode)) as writer:
            writer.execute("INSERT INTO t (body) VALUES (x'01')")
        cut = Cut.of(source, tmp_path / mode)
        databases.check(str(cut.path))
        assert not cut.snapshot(tmp_path / f"{mode}.sqlite").merged
        assert (tmp_path / f"{mode}.sqlite").read_bytes() == cut.path.read_bytes()
        assert [p.name for p in (tmp_path / mode).iterdir()] == ["x.sqlite"]


@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
def test_a_truncated_database_is_damaged_and_nothing_is_left(
    source: Path, tmp_path: Path, part: float
) -> None:
    with closing(opened(source, "delete")) as writer:
        writer.executemany("INSERT INTO t VALUES (?, ?)", [(n, os.urandom(900)) for n in range(100)])
    os.truncate(source, int(source.stat().st_size * part) // 4096 * 4096)
    with pytest.raises(Damaged, match="damaged"):
        databases.check(str(source))
    cut = Cut.of(source, tmp_path / "cut")
    with pytest.raises(Damaged, match="damaged"):
        cut.snapshot(tmp_path / "out.sqlite")
    assert list(tmp_path.glob("out*")) == []


def test_an_index_that_lacks_an_entry_is_found(source: Path, tmp_path: Path) -> None:
    with closing(opened(source, "delete")) as writer:
        writer.execute("INSERT INTO t VALUES (1, x'01')")
        writer.execute("PRAGMA writable_schema = ON")
        writer.execute("CREATE TABLE other (body)")
        writer.execute(
            "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'i')"
            " WHERE name = 'other'"
        )
    with pytest.raises(Damaged):
        databases.check(str(source))


def test_rows_that_sqlite_let_in_are_no_damage(source: Path) -> None:
    with closing(sqlite3.connect(source, isolation_level=None)) as writer:
        writer.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER CHECK (n > 0))")
        writer.execute("PRAGMA ignore_check_constraints = ON")
        writer.execute("INSERT INTO t VALUES (1, -1)")
    databases.check(str(source))


def test_what_an_application_brings_itself_is_not_missed(source: Path) -> None:
    connection = apsw.Connection(str(source))
    connection.create_collation("theirs", lambda a, b: (a < b) - (a > b))
    connection.create_scalar_function("own", _own, 1, deterministic=True)
    connection.execute("CREATE TABLE t (a TEXT COLLATE theirs, b)")
    connection.execute("CREATE INDEX one ON t (a)")
    connection.execute("INSERT INTO t VALUES ('a', 1), ('b', 2), ('c', 3)")
    connection.close()
    databases.check(str(source))  # its order is not ours to judge
    connection = apsw.Connection(str(source))
    connection.create_collation("theirs", lambda a, b: (a < b) - (a > b))
    connection.create_scalar_function("own", _own, 1, deterministic=True)
    connection.execute("CREATE INDEX two ON t (own(b))")
    connection.close()
    databases.check(str(source))
    os.truncate(source, 8192)
    with pytest.raises(Damaged):
        databases.check(str(source))


def _own(*values: apsw.SQLiteValue) -> apsw.SQLiteValue:
    return values[0]


def test_a_schema_that_is_no_schema_is_damaged(source: Path) -> None:
    with closing(opened(source, "delete")) as writer:
        writer.execute("PRAGMA writable_schema = ON")
        writer.execute("UPDATE sqlite_schema SET sql = 'CREATE TABLE t (' WHERE name = 't'")
    with pytest.raises(Damaged):
        databases.check(str(source))


def test_part_of_a_transaction_over_several_databases_is_not_guessed_at(source: Path, tmp_path: Path) -> None:
    with closing(opened(source, "delete")) as writer:
        writer.execute("INSERT INTO t VALUES (1, x'01')")
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN")
        writer.executemany("INSERT INTO t VALUES (?, ?)", [(n, bytes(3000)) for n in range(2, 50)])
        cut = Cut.of(source, tmp_path / "cut")
    name = b"/mnt/x.sqlite-mj01234567"
    with open(f"{cut.path}-journal", "ab") as file:
        file.write(name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big") + databases._JOURNAL)
    with pytest.raises(Unfinished, match="several databases"):
        cut.snapshot(tmp_path / "out.sqlite")
    assert list(tmp_path.glob("out*")) == []


def test_what_cannot_be_read_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ReelfsError, match="No such file"):
        databases.snapshot(str(tmp_path / "none"), None, None, str(tmp_path / "out"))
    (tmp_path / "text").write_bytes(b"no database at all" * 100)
    with pytest.raises(Damaged):
        databases.check(str(tmp_path / "text"))


# -- cut off anywhere ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Cut, int]]:
    """A program that writes transactions, seen between any two steps; and how many were finished by then."""
    folder, found = tmp_path_factory.mktemp("moments"), []
    for mode in ("delete", "wal"):
        chance = random.Random(mode)
        with closing(opened(folder / f"{mode}.sqlite", mode)) as writer:
            writer.execute("PRAGMA cache_size = 2")
            writer.execute("PRAGMA wal_autocheckpoint = 20")
            for number in range(1, 13):
                writer.execute("BEGIN")
                for step in range(6):
                    body = bytes([number]) * chance.randrange(1, 6000)
                    writer.execute("INSERT INTO t VALUES (?, ?)", (number * 100 + step, body))
                    if step == 3:
                        writer.execute("DELETE FROM t WHERE id < ?", ((number - 3) * 100,))
                found.append((Cut.of(writer_path(writer), folder / f"{mode}-{number}-open"), number - 1))
                writer.execute("COMMIT")
                found.append((Cut.of(writer_path(writer), folder / f"{mode}-{number}-done"), number))
    return found


def writer_path(connection: sqlite3.Connection) -> Path:
    return Path(connection.execute("PRAGMA database_list").fetchone()[2])


def test_a_snapshot_is_the_last_finished_transaction(moments: list[tuple[Cut, int]], tmp_path: Path) -> None:
    for number, (cut, done) in enumerate(moments):
        out = tmp_path / f"{number}.sqlite"
        cut.snapshot(out)
        found = rows(out)
        assert {key // 100 for key, _ in found} == set(range(max(1, done - 3), done + 1)), cut
        assert found == seen_by_sqlite(cut, tmp_path / str(number))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_spoiled_files_are_what_sqlite_sees_or_an_error(
    moments: list[tuple[Cut, int]], tmp_path: Path, data: st.DataObject
) -> None:
    """Any byte changed or any end cut off, of any of the files: never another error, never a guess."""
    cut, _ = data.draw(st.sampled_from(moments))
    folder = Path(os.path.realpath(tmp_path)) / f"try{len(list(tmp_path.iterdir()))}"
    spoiled = Cut.of(cut.path, folder)
    ending = data.draw(st.sampled_from([e for e in ENDINGS if os.path.exists(f"{spoiled.path}{e}")]))
    file = Path(f"{spoiled.path}{ending}")
    body = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        for _ in range(data.draw(st.integers(1, 8))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    else:
        del body[data.draw(st.integers(0, len(body))) :]
    file.write_bytes(body)
    before = spoiled.content()
    out = tmp_path / f"{folder.name}.sqlite"
    try:
        spoiled.snapshot(out)
    except ReelfsError:
        assert not out.exists()
    else:
        with closing(sqlite3.connect(f"file:{out}?immutable=1", uri=True)) as connection:
            assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
    assert spoiled.content() == before


# -- what it is, and its metadata ---------------------------------------------------------------------------


def test_what_is_a_database_and_what_lies_beside_it(source: Path, tmp_path: Path) -> None:
    with closing(opened(source, "wal")) as writer:
        writer.execute("INSERT INTO t VALUES (1, x'01')")
        log = Path(f"{source}-wal").read_bytes()
        assert databases.is_database(source.read_bytes()[:16])
        assert databases.is_companion("wal", log[:32])
        assert databases.holds_changes("wal", len(log), log[:32])
        assert not databases.holds_changes("wal", 32, log[:32])
        assert not databases.holds_changes("shm", 32768, b"\x18\xe2")
    assert not databases.is_database(b"SQLite")
    for kind in ("wal", "journal", "shm"):
        assert databases.is_companion(kind, b"")
        assert not databases.holds_changes(kind, 0, b"")
    for kind in ("wal", "journal"):
        assert not databases.is_companion(kind, b"Dear diary,")
    # Over (journal_mode = PERSIST), and begun, but not on the disk yet.
    for head in (bytes(28) + b"persisted", bytes(12) + b"nonce and pages"):
        assert databases.is_companion("journal", head)
        assert not databases.holds_changes("journal", 8720, head)
    assert not databases.holds_changes("journal", 512, bytes(28))


NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("before", "version"),
    [({}, "1"), ({"db-version": "41"}, "42"), ({"db-version": "nonsense"}, "1"), ({"db-version": "-3"}, "1")],
)
def test_the_version_goes_up_by_one_and_says_who_wrote(before: dict[str, str], version: str) -> None:
    given_before = {**before, "other": "kept", "db-writer": "machine/request"}
    after = databases.next_metadata(given_before, writer="host/reelfs", now=NOW)
    assert after == {
        "db-version": version,
        "db-writer": "host/reelfs",
        "db-written-at": "2026-11-20T12:00:00+00:00",
        "other": "kept",
    }


@given(st.dictionaries(st.from_regex(r"[a-z-]{1,12}", fullmatch=True), st.text(max_size=8)))
def test_versions_only_go_up_and_nothing_is_lost(before: dict[str, str]) -> None:
    once = databases.next_metadata(before, writer="a/b", now=NOW)
    again = databases.next_metadata(once, writer="a/b", now=NOW)
    assert int(again["db-version"]) == int(once["db-version"]) + 1
    stamps = {"db-version", "db-writer", "db-written-at"}
    assert {k: v for k, v in again.items() if k not in stamps} == {
        k: v for k, v in before.items() if k not in stamps
    }


# -- in a process of its own --------------------------------------------------------------------------------


def test_the_process_has_one_folder_and_says_what_is_wrong(source: Path, tmp_path: Path) -> None:
    with closing(opened(source, "wal")) as writer:
        writer.execute("INSERT INTO t VALUES (1, x'01')")
        cut = Cut.of(source, tmp_path / "cut")
    out = cut.path.with_name("out")
    out.touch()

    async def main() -> None:
        made = await dbprocess.snapshot(str(cut.path), cut.beside("-wal"), None, str(out))
        assert made == Snapshot(out.stat().st_size, merged=True)
        await dbprocess.check(str(out))
        os.truncate(out, 4096)
        with pytest.raises(Damaged, match="damaged"):
            await dbprocess.check(str(out))
        with pytest.raises(ReelfsError, match="No such file"):
            await dbprocess.snapshot(str(cut.path), None, None, str(tmp_path / "none" / "out"))
        if landlock_abi():
            with pytest.raises(ReelfsError, match="Permission denied"):
                await dbprocess.snapshot(str(cut.path), None, None, str(tmp_path / "elsewhere"))

    trio.run(main)


def test_a_database_that_keeps_sqlite_busy_is_given_up(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(opened(source, "delete")) as writer:
        writer.executemany("INSERT INTO t VALUES (?, ?)", [(n, os.urandom(500)) for n in range(200)])
    monkeypatch.setattr(databases, "LEAST_SECONDS", 0.01)
    with pytest.raises(WorkerFailed, match="within"):
        trio.run(dbprocess.check, str(source))
