"""SQLite on a mount that is written to: as on a disk, and the bucket has one whole file at all times."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.servers import R2, r2_server
from tests.writes import WrittenMount, written

pytestmark = pytest.mark.fuse

KEY = "a/database.sqlite"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[R2]:
    with r2_server(tmp_path_factory.mktemp("r2")) as made:
        yield made


class Bucket:
    """A bucket of the server, as another client sees it."""

    def __init__(self, server: R2, name: str, scratch: Path) -> None:
        self.server = server
        self.name = name
        self._scratch = scratch
        self.client = server.client()

    def put(self, body: bytes, metadata: dict[str, str] | None = None, key: str = KEY) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=body, Metadata=metadata or {})

    def body(self, key: str = KEY) -> bytes:
        return bytes(self.client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def metadata(self, key: str = KEY) -> dict[str, str]:
        return dict(self.client.head_object(Bucket=self.name, Key=key)["Metadata"])

    def stored(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return sorted(one["Key"] for one in found if not one["Key"].startswith(".reelfs-trash/"))

    def rows(self, query: str = "SELECT count(*) FROM t", key: str = KEY) -> list[Any]:
        """Of the stored object, after a whole check of it."""
        path = self._scratch / f"{threading.get_ident()}.sqlite"
        path.write_bytes(self.body(key))
        return rows(path, query)


def rows(path: Path, query: str) -> list[Any]:
    """Of a file nobody else has: SQLite looks at nothing beside it."""
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [row[0] for row in connection.execute(query)]


@pytest.fixture
def bucket(server: R2, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bucket]:
    name = "db-" + "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:50].strip("-")
    server.fill(name, {})
    made = Bucket(server, name, tmp_path)
    yield made
    made.client.close()


@pytest.fixture
def drive(bucket: Bucket, tmp_path: Path) -> Iterator[WrittenMount]:
    made_database(bucket, tmp_path)
    with mounted(bucket, tmp_path) as mount:
        yield mount


def mounted(bucket: Bucket, tmp_path: Path, *options: str) -> Any:
    return written(tmp_path / "drive", f"r2://{bucket.name}", bucket.server.environ, *options)


def made_database(bucket: Bucket, tmp_path: Path, mode: str = "delete", key: str = KEY) -> None:
    path = tmp_path / "made.sqlite"
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, writer INTEGER, body TEXT)")
    bucket.put(path.read_bytes(), {"db-version": "41", "theirs": "kept"}, key)


def arrives(check: Any, seconds: float = 30.0) -> None:
    """Wait for the background to have done its work."""
    until = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < until
        time.sleep(0.05)


def opened(path: Path, mode: str | None = None) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=60)
    if mode is not None:
        assert connection.execute(f"PRAGMA journal_mode = {mode}").fetchone()[0] == mode
    return connection


# -- as on a disk -------------------------------------------------------------------------------------------


def test_what_is_committed_arrives_as_one_file(bucket: Bucket, tmp_path: Path) -> None:
    keys = {mode: f"{mode}.sqlite" for mode in ("delete", "truncate", "persist", "wal")}
    for key in keys.values():
        made_database(bucket, tmp_path, key=key)
    with mounted(bucket, tmp_path) as mount:
        for mode, key in keys.items():
            with closing(opened(mount / key, mode)) as connection:
                connection.execute("INSERT INTO t (writer, body) VALUES (1, 'x')")
                with closing(opened(mount / key)) as other:
                    assert other.execute("SELECT body FROM t").fetchall() == [("x",)]
            assert rows(mount / key, "SELECT body FROM t") == ["x"]
        for mode, key in keys.items():
            arrives(lambda key=key: bucket.metadata(key)["db-version"] == "42")
            assert bucket.rows("SELECT body FROM t", key) == ["x"]
            assert bucket.body(key)[18:20] == (b"\2\2" if mode == "wal" else b"\1\1")
            about = bucket.metadata(key)
            assert about["theirs"] == "kept"
            assert about["db-writer"].endswith("/reelfs")
            # Reading it changes nothing.
            with closing(opened(mount / key)) as connection:
                assert connection.execute("SELECT count(*) FROM t").fetchone() == (1,)
    assert {bucket.metadata(key)["db-version"] for key in keys.values()} == {"42"}
    assert bucket.stored() == sorted(keys.values())


def write_rows(path: str, writer: int, count: int) -> None:
    connection = sqlite3.connect(path, isolation_level=None, timeout=60)
    done = 0
    while done < count:
        connection.execute("BEGIN IMMEDIATE")
        for _ in range(min(50, count - done)):
            connection.execute("INSERT INTO t (writer, body) VALUES (?, ?)", (writer, "x" * 100))
            done += 1
        connection.execute("COMMIT")
    connection.close()


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_three_writers_and_what_is_stored_is_whole_at_all_times(
    bucket: Bucket, tmp_path: Path, mode: str
) -> None:
    made_database(bucket, tmp_path)
    spawn = multiprocessing.get_context("spawn")
    with mounted(bucket, tmp_path, "write.delay=0") as mount:
        with closing(opened(mount / KEY, mode)):
            pass
        writers = [
            spawn.Process(target=write_rows, args=(str(mount / KEY), writer, count))
            for writer, count in enumerate((3400, 3300, 3300))
        ]
        for writer in writers:
            writer.start()
        seen = []
        while any(writer.is_alive() for writer in writers):
            seen += bucket.rows()
            time.sleep(0.1)
        for writer in writers:
            writer.join()
        assert [writer.exitcode for writer in writers] == [0, 0, 0]
        assert seen == sorted(seen)
        assert rows(mount / KEY, "SELECT count(*) FROM t") == [10_000]
        arrives(lambda: bucket.rows() == [10_000])
    assert bucket.rows("SELECT count(*) FROM t GROUP BY writer") == [3400, 3300, 3300]
    assert bucket.stored() == [KEY]


@pytest.mark.parametrize("mode", [pytest.param("delete", marks=pytest.mark.slow), "wal"])
def test_a_database_that_is_never_closed_is_sent(bucket: Bucket, tmp_path: Path, mode: str) -> None:
    """As the last finished transaction, again and again, whatever is under way at that moment."""
    made_database(bucket, tmp_path)
    insert = "INSERT INTO t (writer, body) VALUES (?, ?)"
    with mounted(bucket, tmp_path, "write.databases=0.5s", "write.delay=0", "write.fsync=local") as mount:
        with closing(opened(mount / KEY, mode)) as connection:
            connection.execute("PRAGMA cache_size = 2")
            for done in range(1, 4):
                connection.execute(insert, (done, "whole"))
                connection.execute("BEGIN")
                connection.executemany(insert, [(done, "half" * 200)] * 100)
                arrives(lambda done=done: bucket.rows() == [done])
                assert bucket.rows("SELECT DISTINCT body FROM t") == ["whole"]
                connection.execute("ROLLBACK")
            numbers = int(bucket.metadata(KEY)["db-version"])
            assert numbers >= 44
            with closing(opened(mount / KEY)) as other:
                assert other.execute("SELECT count(*) FROM t").fetchone() == (3,)
            connection.execute(insert, (4, "whole"))
        arrives(lambda: bucket.rows() == [4])
    assert bucket.rows("SELECT writer FROM t") == [1, 2, 3, 4]
    assert int(bucket.metadata(KEY)["db-version"]) > numbers
    assert bucket.stored() == [KEY]


# -- crashes ------------------------------------------------------------------------------------------------

CRASHING = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = " + sys.argv[2])
connection.execute("PRAGMA cache_size = 2")
connection.execute("INSERT INTO t (writer, body) VALUES (1, 'done')")
connection.execute("BEGIN")
connection.executemany("INSERT INTO t (writer, body) VALUES (2, ?)", [("y" * 900,)] * 200)
print("ready", flush=True)
sys.stdin.read()
"""


def crashing(path: Path, mode: str) -> subprocess.Popen[str]:
    """A program in the middle of a transaction, part of which it wrote already."""
    command = [sys.executable, "-c", CRASHING, str(path), mode]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


MODES = {"delete": "delete.sqlite", "wal": "wal.sqlite"}


def test_a_program_that_was_killed_leaves_the_last_transaction(bucket: Bucket, tmp_path: Path) -> None:
    for key in MODES.values():
        made_database(bucket, tmp_path, key=key)
    with mounted(bucket, tmp_path) as mount:
        for mode, key in MODES.items():
            with crashing(mount / key, mode) as program:
                program.kill()
        left = {Path(name).name.partition("sqlite")[2] for name in os.listdir(mount.path)}
        assert {"-wal", "-journal"} <= left
        for key in MODES.values():
            arrives(
                lambda key=key: bucket.metadata(key)["db-version"] != "41" and bucket.rows(key=key) == [1]
            )
        # SQLite itself comes to the same, from what it left; and nothing of that is in the bucket.
        for key in MODES.values():
            with closing(opened(mount / key)) as connection:
                assert connection.execute("SELECT body FROM t").fetchall() == [("done",)]
                connection.execute("INSERT INTO t (writer, body) VALUES (3, 'after')")
        for key in MODES.values():
            arrives(lambda key=key: bucket.rows("SELECT body FROM t", key) == ["done", "after"])
        assert sorted(os.listdir(mount.path)) == sorted((*MODES.values(), "search"))
    assert bucket.stored() == sorted(MODES.values())


@pytest.mark.parametrize("opens", [pytest.param(True, marks=pytest.mark.slow), False])
def test_after_a_crash_of_the_mount_sqlite_recovers(bucket: Bucket, tmp_path: Path, opens: bool) -> None:
    """And where nobody opens the database, what is sent is the last transaction, too."""
    for key in MODES.values():
        made_database(bucket, tmp_path, key=key)
    with mounted(bucket, tmp_path, "write.delay=60s" if opens else "write.delay=1s") as mount:
        programs = [crashing(mount / key, mode) for mode, key in MODES.items()]
        mount.kill()
        for program in programs:
            with program:
                program.kill()
        assert {bucket.metadata(key)["db-version"] for key in MODES.values()} == {"41"}
        mount.start()
        for key in MODES.values() if opens else ():
            with closing(opened(mount / key)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                assert connection.execute("SELECT body FROM t").fetchall() == [("done",)]
        for key in () if opens else MODES.values():
            arrives(lambda key=key: bucket.rows("SELECT body FROM t", key) == ["done"])
    for key in MODES.values():
        assert bucket.rows("SELECT body FROM t", key) == ["done"]
    assert bucket.stored() == sorted(MODES.values())


COMMITTING = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("PRAGMA journal_mode = " + sys.argv[2])
(last,) = connection.execute("SELECT coalesce(max(id), 0) FROM t").fetchone()
while True:
    last += 1
    connection.execute("INSERT INTO t (id, body) VALUES (?, ?)", (last, "z" * (last % 3000)))
    print(last, flush=True)
"""


@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("mode", [pytest.param("delete", marks=pytest.mark.slow), "wal"])
def test_no_transaction_that_was_finished_is_lost_by_a_crash_of_the_mount(
    bucket: Bucket, tmp_path: Path, mode: str, kills: int
) -> None:
    made_database(bucket, tmp_path)
    chance = random.Random(kills)
    with mounted(bucket, tmp_path, "write.delay=200ms") as mount:
        for _ in range(kills):
            command = [sys.executable, "-c", COMMITTING, str(mount / KEY), mode]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as program:
                assert program.stdout is not None
                finished = program.stdout.readline()
                threading.Event().wait(chance.uniform(0, 1))
                mount.kill()
                finished = (program.stdout.read().splitlines() or [finished])[-1]
            mount.start()
            with closing(opened(mount / KEY)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                last, count = connection.execute("SELECT max(id), count(*) FROM t").fetchone()
            assert last == count
            assert last >= int(finished)
    assert bucket.rows() == [last]
    assert bucket.stored() == [KEY]


# -- other clients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [pytest.param("delete", marks=pytest.mark.slow), "wal"])
def test_a_lost_race_keeps_both(drive: WrittenMount, bucket: Bucket, tmp_path: Path, mode: str) -> None:
    drive.expect_log("another version was stored meanwhile")
    connection = opened(drive / KEY, mode)
    connection.execute("INSERT INTO t (writer, body) VALUES (1, 'ours')")
    with closing(sqlite3.connect(tmp_path / "made.sqlite", isolation_level=None)) as theirs:
        theirs.execute("INSERT INTO t (writer, body) VALUES (1, 'theirs')")
    bucket.put((tmp_path / "made.sqlite").read_bytes(), {"db-version": "50"})
    connection.close()
    arrives(lambda: len(bucket.stored()) == 2)
    (kept,) = [key for key in bucket.stored() if key != KEY]
    assert kept.startswith("a/database (conflict ")
    assert kept.endswith(").sqlite")
    assert bucket.rows("SELECT body FROM t") == ["theirs"]
    assert bucket.rows("SELECT body FROM t", kept) == ["ours"]
    assert bucket.metadata()["db-version"] == "50"


def test_what_a_crash_left_is_not_taken_for_a_part_of_another_version(
    drive: WrittenMount, bucket: Bucket, tmp_path: Path
) -> None:
    with crashing(drive / KEY, "wal") as program:
        program.kill()
    arrives(lambda: bucket.rows() == [1])
    with closing(sqlite3.connect(tmp_path / "made.sqlite", isolation_level=None)) as theirs:
        theirs.execute("INSERT INTO t (writer, body) VALUES (1, 'theirs')")
    bucket.put((tmp_path / "made.sqlite").read_bytes(), {"db-version": "50"})
    time.sleep(1.1)  # attr_ttl
    with closing(opened(drive / KEY)) as connection:
        assert connection.execute("SELECT body FROM t").fetchall() == [("theirs",)]
        connection.execute("INSERT INTO t (writer, body) VALUES (1, 'ours')")
    arrives(lambda: bucket.rows("SELECT body FROM t") == ["theirs", "ours"])
    assert bucket.metadata()["db-version"] == "51"


# -- what is no database, or no good one --------------------------------------------------------------------


def test_a_damaged_database_replaces_nothing(drive: WrittenMount, bucket: Bucket) -> None:
    drive.expect_log("the database is damaged")
    good = bucket.body()
    bad = good[:4096] + os.urandom(4096)
    (drive / KEY).write_bytes(bad)
    arrives(lambda: len(bucket.stored()) == 2)
    (kept,) = [key for key in bucket.stored() if key != KEY]
    assert kept.startswith("a/database (damaged ")
    assert (bucket.body(), bucket.body(kept)) == (good, bad)
    # A new file replaces nothing: it is stored as it is.
    (drive / "copy.sqlite").write_bytes(bad)
    arrives(lambda: "copy.sqlite" in bucket.stored())
    assert bucket.body("copy.sqlite") == bad


def test_files_that_are_only_called_so_are_files(drive: WrittenMount, bucket: Bucket) -> None:
    (drive / "notes").write_bytes(b"text")
    (drive / "notes-journal").write_bytes(b"Dear diary,")
    (drive / "empty").write_bytes(b"")
    (drive / "empty-wal").write_bytes(b"no log at all")
    (drive / f"{KEY}-journal").write_bytes(b"no journal")
    drive.unmount()
    expected = sorted([KEY, f"{KEY}-journal", "empty", "empty-wal", "notes", "notes-journal"])
    assert bucket.stored() == expected
    assert bucket.body("notes-journal") == b"Dear diary,"


def test_a_copy_of_an_open_database_becomes_one_file(
    drive: WrittenMount, bucket: Bucket, tmp_path: Path
) -> None:
    with closing(opened(tmp_path / "live.db", "wal")) as connection:
        connection.execute("CREATE TABLE t (body)")
        connection.execute("INSERT INTO t VALUES ('in the log')")
        for ending in ("", "-wal", "-shm"):
            (drive / f"live.db{ending}").write_bytes((tmp_path / f"live.db{ending}").read_bytes())
    arrives(lambda: "live.db" in bucket.stored() and len(bucket.body("live.db")) > 4096)
    assert bucket.rows("SELECT body FROM t", "live.db") == ["in the log"]
    drive.unmount()
    assert bucket.stored() == [KEY, "live.db"]


def test_a_database_made_on_the_mount(drive: WrittenMount, bucket: Bucket) -> None:
    for mode in ("delete", "wal"):
        with closing(opened(drive / f"{mode}.any", mode)) as connection:
            connection.execute("CREATE TABLE t (n)")
            connection.execute("INSERT INTO t VALUES (5)")
    drive.unmount()
    for mode in ("delete", "wal"):
        assert bucket.rows("SELECT n FROM t", f"{mode}.any") == [5]
        assert bucket.metadata(f"{mode}.any")["db-version"] == "1"
    assert bucket.stored() == [KEY, "delete.any", "wal.any"]


# -- reading ------------------------------------------------------------------------------------------------


def test_a_database_that_is_read_is_one_version(drive: WrittenMount, bucket: Bucket, tmp_path: Path) -> None:
    """Whatever is stored in the bucket meanwhile, beside it, too."""
    old = bucket.body()
    bucket.put(b"of another moment", key=f"{KEY}-wal")
    reading = os.open(drive / KEY, os.O_RDONLY)
    try:
        first = os.pread(reading, 4096, 0)
        with closing(sqlite3.connect(tmp_path / "made.sqlite", isolation_level=None)) as theirs:
            theirs.execute("INSERT INTO t (writer, body) VALUES (1, 'theirs')")
        bucket.put((tmp_path / "made.sqlite").read_bytes())
        try:
            rest = os.pread(reading, 1 << 20, 4096)
        except OSError as error:
            assert error.errno == errno.ESTALE
        else:
            assert first + rest == old
    finally:
        os.close(reading)
    arrives(lambda: (drive / KEY).read_bytes() != old)
    assert rows(drive / KEY, "SELECT body FROM t") == ["theirs"]
    assert os.listdir(drive / "a") == ["database.sqlite"]
    with closing(opened(drive / KEY, "wal")) as connection:  # makes a log of its own of that name
        connection.execute("INSERT INTO t (writer, body) VALUES (1, 'ours')")
    drive.unmount()
    assert bucket.rows("SELECT body FROM t") == ["theirs", "ours"]
    assert bucket.body(f"{KEY}-wal") == b"of another moment"


# -- fsync --------------------------------------------------------------------------------------------------


def test_fsync_of_a_quiet_database_sends_it_and_of_a_busy_one_does_not(
    drive: WrittenMount, bucket: Bucket
) -> None:
    descriptor = os.open(drive / KEY, os.O_RDWR)
    try:
        with closing(opened(drive / KEY, "delete")) as connection:
            connection.execute("INSERT INTO t (writer, body) VALUES (1, 'done')")
            os.fsync(descriptor)
            assert bucket.rows("SELECT body FROM t") == ["done"]
            connection.execute("PRAGMA cache_size = 2")
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO t (writer, body) VALUES (2, ?)", [("y" * 900,)] * 200)
            before = bucket.metadata()
            os.fsync(descriptor)
            assert bucket.metadata() == before
            connection.execute("ROLLBACK")
        with closing(opened(drive / KEY, "wal")) as connection:
            connection.execute("INSERT INTO t (writer, body) VALUES (3, 'in the log')")
            os.fsync(descriptor)
            assert bucket.rows("SELECT body FROM t") == ["done"]
    finally:
        os.close(descriptor)
    arrives(lambda: bucket.rows("SELECT body FROM t") == ["done", "in the log"])
