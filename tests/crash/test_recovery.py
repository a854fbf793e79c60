"""What the next mount makes of a journal and of staged files: half-written ones, strange ones, of others."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.model.engine import Engine, HeldStore, quick
from vfs.errors import NoRoom, ReelfsError
from vfs.pytest_plugin import ExpectedLogs
from vfs.write.files import NOTED_FROM
from vfs.write.pending import Entry
from vfs.write.staging import SMALL, Staging


@pytest.fixture(autouse=True)
def _quickly() -> Iterator[None]:
    with quick():
        yield


WAITS = "files wait in the journal for the next mount"


def kill(engine: Engine, into: Path, store: HeldStore) -> Engine:
    engine.killed(into)
    return Engine(into, store)


def test_half_written_is_kept_as_recovered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All that was written of it, though the journal was last told of it when it was smaller."""
    store = HeldStore()
    store.replace("film.mp4", b"the old one")
    engine = Engine(tmp_path / "1", store)
    entry = engine.open("", "film.mp4", truncate=True)
    body = os.urandom(NOTED_FROM)
    for at in range(4):
        engine.write(entry, at * NOTED_FROM, body)
    with caplog.at_level("CRITICAL", logger="vfs.write"):
        engine = kill(engine, tmp_path / "2", store)
    try:
        tree = engine.tree()
        (kept,) = [key for key in tree if key.startswith("film (recovered 20")]
        assert kept.endswith(").mp4")
        assert (tree[kept], tree["film.mp4"]) == (body * 4, b"the old one")
        assert [one["kept"] for one in engine.drive.conflicts] == [kept]
        assert engine.settle() == []
        assert store.bodies() == {"film.mp4": b"the old one", kept: body * 4}
    finally:
        engine.close()


def test_half_written_over_an_old_version_keeps_what_was_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = HeldStore()
    old = bytes(range(256)) * 8192 * 2
    store.replace("a", old)
    engine = Engine(tmp_path / "1", store)
    entry = engine.open("", "a")
    engine.write(entry, 1 << 20, b"x" * 4096)
    engine.write(entry, 3 << 20, b"y" * 4096)
    with caplog.at_level("CRITICAL", logger="vfs.write"):
        engine = kill(engine, tmp_path / "2", store)
    try:
        assert engine.settle() == []
        (kept,) = (body for key, body in store.bodies().items() if key != "a")
        wanted = bytearray(old)
        wanted[1 << 20 : (1 << 20) + 4096] = b"x" * 4096
        wanted[3 << 20 : (3 << 20) + 4096] = b"y" * 4096
        assert kept == wanted
        assert store.bodies()["a"] == old
    finally:
        engine.close()


def test_written_on_a_version_that_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was written is kept; what was never fetched of the old version is zeros, and that is said."""
    store = HeldStore()
    store.replace("a", b"0123456789")
    engine = Engine(tmp_path / "1", store)
    try:
        entry = engine.open("", "a")
        engine.write(entry, 3, b"xyz")
        store.replace("a", b"theirs")
        engine.close_file(entry)
        with caplog.at_level("CRITICAL", logger="vfs.write"):
            assert engine.settle() == []
        found = store.bodies()
        assert found.pop("a") == b"theirs"
        ((kept, body),) = found.items()
        assert kept.startswith("a (conflict 20")
        assert body == bytes(3) + b"xyz" + bytes(4)
        assert "7 bytes that were not written are zeros" in engine.drive.conflicts[-1]["why"]
    finally:
        engine.close()


def test_written_to_after_it_was_sent(tmp_path: Path) -> None:
    """A reader keeps the entry; who writes then writes to what the store is to have next."""
    store = HeldStore()
    engine = Engine(tmp_path / "1", store)
    try:
        entry = engine.create("", "a")
        engine.write(entry, 0, b"first")
        entry.opened += 1  # a reader
        engine.close_file(entry)
        assert engine.settle() == []
        assert entry.settled is not None
        entry.writers += 1
        entry.opened += 1
        engine.write(entry, 5, b" second")
        engine.close_file(entry)
        assert engine.settle() == []
        assert store.bodies() == {"a": b"first second"}
    finally:
        engine.close()


def staged(folder: Path) -> dict[int, bytes]:
    """What is staged, in files and in the journal, by number."""
    with sqlite3.connect(folder / "journal.sqlite") as journal:
        found = dict(journal.execute("SELECT number, body FROM contents").fetchall())
    journal.close()
    return found | {int(path.name): path.read_bytes() for path in folder.iterdir() if path.name.isdigit()}


@pytest.mark.parametrize("small", [0, SMALL])
def test_a_strange_row_keeps_its_staged_file(
    small: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, expected_logs: ExpectedLogs
) -> None:
    expected_logs(WAITS)
    expected_logs("row of a cannot be read")
    store = HeldStore()
    engine = Engine(tmp_path / "1", store, small=small)
    for name in ("a", "b"):
        entry = engine.create("", name)
        engine.write(entry, 0, name.encode() * 5)
        engine.close_file(entry)
    engine.close()
    before = staged(tmp_path / "1")
    assert len(list((tmp_path / "1").glob("[0-9]*"))) == (0 if small else 2)
    with sqlite3.connect(tmp_path / "1" / "journal.sqlite") as journal:
        journal.execute("UPDATE pending SET told='not json' WHERE key=?", (b"a",))
    journal.close()
    with caplog.at_level("ERROR", logger="vfs.write"):
        engine = Engine(tmp_path / "1", store)
    assert "row of a cannot be read and stays there" in caplog.text
    assert engine.settle() == []
    engine.close()
    caplog.clear()
    assert store.bodies() == {"b": b"bbbbb"}
    ((number, body),) = staged(tmp_path / "1").items()
    assert before[number] == body == b"aaaaa"
    with sqlite3.connect(tmp_path / "1" / "journal.sqlite") as journal:
        assert journal.execute("SELECT key FROM pending").fetchall() == [(b"a",)]
    journal.close()


@pytest.mark.parametrize("how", ["version", "source", "damaged"])
def test_a_journal_that_cannot_be_used_is_refused_and_stays(
    how: str, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs(WAITS)
    store = HeldStore()
    engine = Engine(tmp_path / "1", store)
    entry = engine.create("", "a")
    engine.write(entry, 0, b"aaaaa")
    engine.close_file(entry)
    engine.close()
    path = tmp_path / "1" / "journal.sqlite"
    kept = path.read_bytes()
    with sqlite3.connect(path) as journal:
        if how == "version":
            journal.execute("PRAGMA user_version=99")
        elif how == "source":
            journal.execute("UPDATE about SET value='s3://elsewhere' WHERE name='source'")
    journal.close()
    if how == "damaged":
        path.write_bytes(b"\xff" * 4096 + kept[4096:])
    wanted = {"version": "another version", "source": "is of s3://elsewhere", "damaged": "the journal"}
    with pytest.raises(ReelfsError, match=wanted[how]):
        Engine(tmp_path / "1", store)
    if how == "damaged":
        path.write_bytes(kept)
    assert list(staged(tmp_path / "1").values()) == [b"aaaaa"]
    with sqlite3.connect(path) as journal:
        assert journal.execute("SELECT key FROM pending").fetchall() == [(b"a",)]
        journal.execute("PRAGMA user_version=1")
        journal.execute("UPDATE about SET value='memory://' WHERE name='source'")
    journal.close()
    engine = Engine(tmp_path / "1", store)
    assert engine.settle() == []
    engine.close()
    assert store.bodies() == {"a": b"aaaaa"}


def test_a_draft_in_memory_that_finds_no_room_for_its_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = Staging(tmp_path / "staged")
    draft = staging.create()
    draft.write(0, b"what was written")

    def full(number: int) -> int:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patched:
        patched.setattr(staging, "make", full)
        with pytest.raises(NoRoom):
            draft.spill()
        assert draft.body == b"what was written"
    draft.spill()
    assert not draft.is_small
    assert draft.read(0, 100) == b"what was written"
    staging.close()


def test_a_disk_that_cannot_keep_it_is_said_by_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who closes that file is told; who closes another at the same moment has it in the journal."""
    store = HeldStore()
    engine = Engine(tmp_path / "1", store, small=4)
    sync = os.fdatasync

    def fails(descriptor: int) -> None:
        if os.fstat(descriptor).st_size == 10:
            raise OSError(errno.ENOSPC, "no room")
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", fails)
    try:
        entries = {name: engine.create("", name) for name in ("refused", "kept", "small")}
        for name, body in (("refused", b"x" * 10), ("kept", b"y" * 20), ("small", b"z")):
            engine.write(entries[name], 0, body)
        errors: dict[str, BaseException] = {}

        async def close(name: str) -> None:
            try:
                await engine.drive.files.flush(entries[name])
            except ReelfsError as error:
                errors[name] = error

        async def close_all() -> None:
            async with trio.open_nursery() as nursery:
                for name in entries:
                    nursery.start_soon(close, name)

        engine.call(close_all)
        assert errors.keys() == {"refused"}
        assert isinstance(errors["refused"], NoRoom)
        kept = sqlite3.connect(tmp_path / "1" / "journal.sqlite")
        assert {key for (key,) in kept.execute("SELECT key FROM pending")} == {b"kept", b"small"}
        kept.close()
        monkeypatch.undo()
        for entry in entries.values():
            engine.close_file(entry)
        assert engine.settle() == []
        assert store.bodies() == {"refused": b"x" * 10, "kept": b"y" * 20, "small": b"z"}
    finally:
        engine.close()


def test_one_mount_at_a_time(tmp_path: Path) -> None:
    store = HeldStore()
    engine = Engine(tmp_path / "1", store)
    try:
        with pytest.raises(ReelfsError, match="in use by another mount"):
            Engine(tmp_path / "1", store)
    finally:
        engine.close()


def test_a_full_disk_is_said_to_the_writer(tmp_path: Path, expected_logs: ExpectedLogs) -> None:
    """ENOSPC to who writes or closes; what was closed before is there, and arrives."""
    expected_logs(WAITS)
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if done.returncode:
        expected_logs.patterns.clear()
        pytest.skip("no file system can be mounted here")
    store = HeldStore()
    engine = Engine(disk / "1", store)
    try:
        first = engine.create("", "first")
        engine.write(first, 0, b"1" * 1_000_000)
        engine.close_file(first)
        second = engine.create("", "second")

        async def too_much(entry: Entry) -> None:
            for at in range(6):
                await engine.drive.files.write(entry, at << 20, b"2" * (1 << 20))

        with pytest.raises(NoRoom):
            engine.call(too_much, second)
        for number in range(2000):  # the journal's own room is used up, too
            try:
                small = engine.create("", f"{number}")
                engine.close_file(small)
            except NoRoom:
                break
        shutil.copytree(disk / "1", tmp_path / "copy")
        assert engine.tree()["first"] == b"1" * 1_000_000
        assert engine.settle() == []
        assert store.bodies()["first"] == b"1" * 1_000_000
        with contextlib.suppress(NoRoom):
            engine.close_file(second)
    finally:
        engine.close()
        subprocess.run(["umount", str(disk)], check=True)
    with sqlite3.connect(tmp_path / "copy" / "journal.sqlite") as journal:
        told = dict(journal.execute("SELECT key, told FROM pending").fetchall())
    journal.close()
    number = json.loads(told[b"first"])["live"] or json.loads(told[b"first"])["draft"]
    assert (tmp_path / "copy" / str(number[0])).read_bytes() == b"1" * 1_000_000
