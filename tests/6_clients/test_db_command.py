"""`reelfs db` as a process: nothing lost, nothing sent for nothing, whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Server, moto_server
from vfs.storage import localmeta
from vfs.terminal import EXIT_CONFLICT

BUCKET = "reel-ballers-users"
KEY = "a/database.sqlite"


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    path = {"PATH": os.environ["PATH"], "REELFS_PLUGINS_BLOCK": "mp4,h4mk,search", "REELFS_DEADLINE": "5"}
    return {"HOME": str(home), **path, **(more or {})}


class Place:
    """A bucket or a folder, as `reelfs db` is told of it, and as another client sees it."""

    def __init__(self, source: str, home: Path, environ: Mapping[str, str]) -> None:
        self.source = source
        self.home = home
        self.environ = environment(home, environ)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vfs.cli", "db", self.source, "a", *arguments]
        pipe = subprocess.PIPE
        options = {"stdin": pipe, "stdout": pipe, "stderr": pipe, "text": True, **options}
        return subprocess.Popen(command, env=self.environ, **options)

    def run(self, *arguments: str, script: str = "", code: int = 0) -> tuple[str, str]:
        with self.start(*arguments) as process:
            out, said = process.communicate(script, timeout=60)
        assert process.returncode == code, said
        assert "Traceback" not in said
        return out, said

    def sql(self, *statements: str) -> str:
        return self.run(*(part for text in statements for part in ("--command", text)))[0]

    def body(self, key: str = KEY) -> bytes:
        raise NotImplementedError

    def metadata(self, key: str = KEY) -> dict[str, str]:
        raise NotImplementedError

    def put(self, body: bytes, metadata: Mapping[str, str]) -> None:
        raise NotImplementedError

    def stored(self) -> list[str]:
        raise NotImplementedError

    def left(self) -> list[Path]:
        """Files of sessions that did not end."""
        return [file for file in self.home.rglob("*") if file.is_file()]


class Folder(Place):
    """A folder stands for the bucket."""

    root: Path

    def body(self, key: str = KEY) -> bytes:
        return (self.root / key).read_bytes()

    def metadata(self, key: str = KEY) -> dict[str, str]:
        path = self.root / key
        return localmeta.told_of(str(path), path.stat())

    def put(self, body: bytes, metadata: Mapping[str, str]) -> None:
        path = self.root / KEY
        path.parent.mkdir(exist_ok=True)
        path.with_name("new").write_bytes(body)
        descriptor = os.open(path.with_name("new"), os.O_RDWR)
        localmeta.apply(descriptor, metadata, replace=True)
        os.close(descriptor)
        path.with_name("new").rename(path)

    def stored(self) -> list[str]:
        return sorted(str(p.relative_to(self.root)) for p in self.root.rglob("*") if p.is_file())


class Bucket(Place):
    """A bucket of a real S3 server."""

    server: Server

    @contextmanager
    def client(self) -> Iterator[Any]:
        client = self.server.client()
        try:
            yield client
        finally:
            client.close()

    def body(self, key: str = KEY) -> bytes:
        with self.client() as client:
            return bytes(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def metadata(self, key: str = KEY) -> dict[str, str]:
        with self.client() as client:
            return dict(client.head_object(Bucket=BUCKET, Key=key)["Metadata"])

    def put(self, body: bytes, metadata: Mapping[str, str]) -> None:
        with self.client() as client:
            client.put_object(Bucket=BUCKET, Key=KEY, Body=body, Metadata=dict(metadata))

    def stored(self) -> list[str]:
        with self.client() as client:
            return sorted(o["Key"] for o in client.list_objects_v2(Bucket=BUCKET).get("Contents", ()))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with moto_server() as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "home").mkdir()
    place = Folder(str(tmp_path / "bucket"), tmp_path / "home", {})
    place.root = tmp_path / "bucket"
    return place


@pytest.fixture
def bucket(tmp_path: Path, server: Server) -> Bucket:
    (tmp_path / "home").mkdir(exist_ok=True)
    place = Bucket(f"s3://{BUCKET}", tmp_path / "home", server.environ)
    place.server = server
    server.fill(BUCKET, {})
    with place.client() as client:
        for key in place.stored():
            client.delete_object(Bucket=BUCKET, Key=key)
    return place


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def database(tmp_path: Path, *statements: str, mode: str = "delete") -> bytes:
    path = tmp_path / "made.sqlite"
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        for statement in ("CREATE TABLE t (n)", *statements):
            connection.execute(statement)
    return path.read_bytes()


def rows(tmp_path: Path, body: bytes, query: str = "SELECT n FROM t ORDER BY n") -> list[Any]:
    path = tmp_path / "read.sqlite"
    path.write_bytes(body)
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [row[0] for row in connection.execute(query)]


class Meeting:
    """A point at which a shell waits: `command` goes into its script, `reached` returns when it is there."""

    def __init__(self, folder: Path) -> None:
        self._fifo = folder / "meeting"
        os.mkfifo(self._fifo)
        self.command = f".system cat {self._fifo}\n"

    @contextmanager
    def reached(self) -> Iterator[None]:
        descriptor = os.open(self._fifo, os.O_WRONLY)  # waits until somebody reads
        try:
            yield
        finally:
            os.close(descriptor)


@pytest.fixture
def meeting(tmp_path: Path) -> Meeting:
    return Meeting(tmp_path)


# -- a session ----------------------------------------------------------------------------------------------


def test_a_new_user_gets_the_tables_of_the_application(place: Place, tmp_path: Path) -> None:
    out, said = place.run("--init", "--command", "SELECT name FROM sqlite_schema ORDER BY name")
    assert "put back, version 1" in said
    tables = {"games", "raw_clips", "projects", "working_clips", "highlight_regions", "final_videos"}
    assert tables <= set(out.split())
    assert place.stored() == [KEY]
    about = place.metadata()
    assert about["db-version"] == "1"
    assert about["db-writer"].endswith("/reelfs")
    # Again, with nothing to be created: nothing is sent.
    before = place.body(), place.metadata()
    assert "not changed" in place.run("--init")[1]
    assert (place.body(), place.metadata()) == before
    assert place.left() == []


def test_what_was_done_is_put_back_and_metadata_of_others_stays(place: Place, tmp_path: Path) -> None:
    place.put(database(tmp_path), {"db-version": "41", "theirs": "kept"})
    assert place.sql("INSERT INTO t VALUES (1), (2)", "SELECT sum(n) FROM t") == "3\n"
    assert rows(tmp_path, place.body()) == [1, 2]
    about = place.metadata()
    assert (about["db-version"], about["theirs"]) == ("42", "kept")
    assert place.left() == []


def test_looking_changes_nothing(bucket: Bucket, tmp_path: Path) -> None:
    for mode in ("delete", "wal"):
        bucket.put(database(tmp_path, "INSERT INTO t VALUES (7)", mode=mode), {"db-version": "5"})
        before = bucket.body()
        assert bucket.sql("SELECT n FROM t") == "7\n"
        assert bucket.run(script="SELECT n FROM t;")[0] == "7\n"
        assert (bucket.body(), bucket.metadata()["db-version"]) == (before, "5")


def test_a_database_in_wal_mode_stays_one_and_comes_back_whole(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(database(tmp_path, mode="wal"), {})
    bucket.run(script="INSERT INTO t VALUES (1);\nINSERT INTO t VALUES (2);\n")
    assert bucket.body()[18:20] == b"\2\2"
    assert rows(tmp_path, bucket.body()) == [1, 2]
    assert bucket.stored() == [KEY]


def test_of_commands_of_which_one_fails_nothing_is_put_back(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put(database(tmp_path), {"db-version": "1"})
    arguments = ("--command", "INSERT INTO t VALUES (1)", "--command", "SELECT * FROM absent")
    said = bucket.run(*arguments, code=1)[1]
    assert "no such table: absent; nothing was put back" in said
    assert rows(tmp_path, bucket.body()) == []
    assert bucket.metadata()["db-version"] == "1"
    assert bucket.left() == []


def test_foreign_keys_are_on(folder: Folder) -> None:
    clip = "INSERT INTO raw_clips (game_id, video_path, start_time, end_time) VALUES (9, 'x', 0, 1);"
    assert "FOREIGN KEY" in folder.run("--init", "--command", clip, code=1)[1]
    assert "FOREIGN KEY" in folder.run("--init", script=clip, code=1)[1]


def test_without_the_sqlite3_program_there_is_a_shell_all_the_same(folder: Folder, tmp_path: Path) -> None:
    folder.environ["PATH"] = str(tmp_path)
    script = "CREATE TABLE t (n);\nINSERT INTO t VALUES (3);\nSELECT n FROM t;\nPRAGMA foreign_keys;\n"
    assert folder.run("--init", script=script)[0] == "3\n1\n"
    assert rows(tmp_path, folder.body()) == [3]


def test_a_shell_on_a_terminal(folder: Folder, tmp_path: Path) -> None:
    folder.put(database(tmp_path), {})
    ours, theirs = os.openpty()
    try:
        with folder.start(stdin=theirs) as process:
            os.write(ours, b"INSERT INTO t VALUES (5);\nnonsense;\nINSERT INTO t VALUES (6);\n.quit\n")
            said = process.communicate(timeout=60)[1]
        assert process.returncode == 0, said
    finally:
        os.close(ours)
        os.close(theirs)
    assert rows(tmp_path, folder.body()) == [5, 6]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 1, "there is no a/database.sqlite in"),
        (("--resume",), 1, "there is no session with a/database.sqlite to resume"),
        (("--name", "../database.sqlite"), 2, "cannot be the key of a database"),
        (("--wrong",), 2, "--wrong"),
    ],
)
def test_errors_are_a_line_and_a_code(
    folder: Folder, arguments: tuple[str, ...], code: int, text: str
) -> None:
    said = folder.run(*arguments, code=code)[1]
    assert text in said
    assert said.count("\n") == 1
    assert folder.left() == []
    assert folder.stored() == []


def test_what_is_no_database_is_not_opened(folder: Folder) -> None:
    folder.put(b"no database" * 100, {})
    assert "a/database.sqlite is not an SQLite database" in folder.run(code=1)[1]
    assert folder.left() == []


# -- somebody else is faster --------------------------------------------------------------------------------


def test_a_lost_race_keeps_both(place: Place, tmp_path: Path, meeting: Meeting) -> None:
    place.put(database(tmp_path), {"db-version": "3"})
    with place.start() as process:
        assert process.stdin is not None
        process.stdin.write("INSERT INTO t VALUES (1);\n" + meeting.command)
        process.stdin.close()
        process.stdin = None
        with meeting.reached():
            place.put(database(tmp_path, "INSERT INTO t VALUES (2)"), {"db-version": "4"})
        said = process.communicate(timeout=60)[1]
    assert process.returncode == EXIT_CONFLICT, said
    (kept,) = [key for key in place.stored() if key != KEY]
    assert kept.startswith("a/database (conflict 20")
    assert kept.endswith(").sqlite")
    assert f"both are kept, yours as {kept}" in said
    assert (rows(tmp_path, place.body()), rows(tmp_path, place.body(kept))) == ([2], [1])
    assert place.metadata()["db-version"] == "4"
    assert place.left() == []


def test_one_that_was_created_meanwhile_is_not_overwritten(
    bucket: Bucket, tmp_path: Path, meeting: Meeting
) -> None:
    with bucket.start("--init") as process:
        assert process.stdin is not None
        process.stdin.write(meeting.command)
        process.stdin.close()
        process.stdin = None
        with meeting.reached():
            bucket.put(database(tmp_path, "INSERT INTO t VALUES (2)"), {})
        process.communicate(timeout=60)
    assert process.returncode == EXIT_CONFLICT
    assert rows(tmp_path, bucket.body()) == [2]
    assert len(bucket.stored()) == 2


def test_the_same_bytes_under_another_version_are_no_conflict(
    folder: Folder, tmp_path: Path, meeting: Meeting
) -> None:
    body = database(tmp_path)
    folder.put(body, {"db-version": "3"})
    with folder.start() as process:
        assert process.stdin is not None
        process.stdin.write("INSERT INTO t VALUES (1);\n" + meeting.command)
        process.stdin.close()
        process.stdin = None
        with meeting.reached():
            folder.put(body, {"db-version": "7", "label": "new"})
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert folder.stored() == [KEY]
    assert rows(tmp_path, folder.body()) == [1]
    assert (folder.metadata()["db-version"], folder.metadata()["label"]) == ("8", "new")


# -- cut off ------------------------------------------------------------------------------------------------


@pytest.fixture
def cut_off(folder: Folder, tmp_path: Path, meeting: Meeting) -> Folder:
    """A session that was killed in the middle of a transaction, after one that was finished."""
    folder.put(database(tmp_path), {"db-version": "3"})
    process = folder.start()
    try:
        assert process.stdin is not None
        process.stdin.write(
            f"INSERT INTO t VALUES (1);\nBEGIN;\nINSERT INTO t VALUES (2);\n{meeting.command}"
        )
        process.stdin.close()
        with meeting.reached():
            process.kill()
            process.wait(60)
            # The shell lives on with the file open: nobody else gets it.
            said = folder.run(code=1)[1]
            assert "another session with this database is open" in said
        process.stdin = None
        process.communicate(timeout=60)  # ends with the shell
    finally:
        process.kill()
        process.wait()
    assert folder.left()
    assert rows(tmp_path, folder.body()) == []
    return folder


def test_a_session_that_was_killed_goes_on(cut_off: Folder, tmp_path: Path) -> None:
    said = cut_off.run(code=1)[1]
    assert "was not put back: --resume goes on with it, --discard drops it" in said
    assert cut_off.run("--resume", script="INSERT INTO t VALUES (3);")[1].endswith("put back, version 4\n")
    assert rows(tmp_path, cut_off.body()) == [1, 3]
    assert cut_off.left() == []


def test_a_session_that_was_killed_can_be_dropped(cut_off: Folder, tmp_path: Path) -> None:
    cut_off.run("--discard", "--command", "INSERT INTO t VALUES (9)")
    assert rows(tmp_path, cut_off.body()) == [9]
    assert cut_off.left() == []


def test_a_session_that_was_killed_before_anything_was_done_is_nothing(
    folder: Folder, tmp_path: Path, meeting: Meeting
) -> None:
    folder.put(database(tmp_path), {})
    with folder.start() as process:
        assert process.stdin is not None
        process.stdin.write(meeting.command)
        process.stdin.flush()
        with meeting.reached():
            process.send_signal(signal.SIGKILL)
            process.wait(60)
    assert process.stdout is not None
    assert folder.left()
    assert folder.sql("SELECT count(*) FROM t") == "0\n"
    assert folder.left() == []


def test_what_cannot_be_put_back_now_is_put_back_later(
    folder: Folder, tmp_path: Path, meeting: Meeting
) -> None:
    folder.put(database(tmp_path), {})
    away = folder.root.with_name("away")
    with folder.start() as process:
        assert process.stdin is not None
        process.stdin.write("INSERT INTO t VALUES (1);\n" + meeting.command)
        process.stdin.close()
        process.stdin = None
        with meeting.reached():
            folder.root.rename(away)
        said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert "--resume goes on" in said
    away.rename(folder.root)
    # It had come to its end: no shell is opened again.
    assert folder.run("--resume", script="nonsense")[1].endswith("put back, version 1\n")
    assert rows(tmp_path, folder.body()) == [1]
    assert folder.left() == []


def test_a_shell_that_is_left_with_an_error_puts_nothing_back(folder: Folder, tmp_path: Path) -> None:
    folder.put(database(tmp_path), {})
    said = folder.run(script="INSERT INTO t VALUES (1);\n.exit 4\n", code=1)[1]
    assert "ended with 4; nothing was put back; what was done is kept" in said
    assert rows(tmp_path, folder.body()) == []
    folder.run("--discard")
    assert folder.left() == []


def test_a_database_damaged_in_the_session_is_not_put_back(folder: Folder, tmp_path: Path) -> None:
    folder.put(database(tmp_path, "CREATE INDEX i ON t (n)", "INSERT INTO t VALUES (1)"), {})
    before = folder.body()
    spoil = (
        "PRAGMA writable_schema = ON;\n"
        "UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'i')"
        " WHERE name = 't';\n"
    )
    said = folder.run(script=spoil, code=1)[1]
    assert "the database is damaged" in said
    assert "nothing was put back; what was done is kept" in said
    assert folder.body() == before
    assert folder.left()
