"""The disk that forgets is one: SQLite and the patterns that POSIX asks for survive it, others do not."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tests.power.disk import PAGE, Left
from tests.power.lossy import LossyDisk, LossyDisks, lossy_disks

pytestmark = pytest.mark.fuse


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LossyDisks]:
    with lossy_disks(tmp_path_factory.mktemp("lossy") / "disks") as disks:
        yield disks


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def names(disk: LossyDisk) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(disk.path)): path.read_bytes() if path.is_file() else None
        for path in disk.path.rglob("*")
    }


def test_what_was_not_synced_is_gone(disks: LossyDisks) -> None:
    disk = disks.make()
    for name in ("none", "bytes", "name", "both"):
        (disk.path / name).write_bytes(b"0123456789")
        if name in ("bytes", "both"):
            sync(disk.path / name)
        if name == "name":
            sync(disk.path)
    assert names(disk.cut(Left.NOTHING)) == {"none": b"", "bytes": b"0123456789", "name": b""}
    assert names(disk.cut(Left.NAMES))["both"] == b"0123456789"
    assert names(disk.cut(Left.NAMES))["name"] == bytes(10)
    assert names(disk.cut(Left.ALL))["name"] == b"0123456789"
    disk.off()
    with pytest.raises(OSError, match="Input/output"):
        (disk.path / "more").write_bytes(b"there is no power")


def test_a_folder_that_nothing_durable_names_is_gone_with_all_that_is_in_it(disks: LossyDisks) -> None:
    for ordered in (False, True):
        disk = disks.make(ordered=ordered)
        (disk.path / "a" / "b").mkdir(parents=True)
        (disk.path / "a" / "b" / "c").write_bytes(b"c")
        sync(disk.path / "a" / "b" / "c")
        sync(disk.path / "a" / "b")
        assert names(disk.cut(Left.NOTHING)) == ({"a": None, "a/b": None, "a/b/c": b"c"} if ordered else {})


def test_a_rename_is_whole_whatever_is_lost(disks: LossyDisks) -> None:
    disk = disks.make()
    (disk.path / "a").write_bytes(b"old")
    sync(disk.path / "a")
    sync(disk.path)
    (disk.path / "new").write_bytes(b"new")
    sync(disk.path / "new")
    os.rename(disk.path / "new", disk.path / "a")
    seen = {names(disk.cut(Left.SOME, seed))["a"] for seed in range(20)}
    assert seen == {b"old", b"new"}
    sync(disk.path)
    assert names(disk.cut(Left.NOTHING)) == {"a": b"new"}


def test_pages_are_torn(disks: LossyDisks) -> None:
    disk = disks.make()
    path = disk.path / "a"
    path.write_bytes(b"1" * PAGE * 4)
    sync(path)
    sync(disk.path)
    with path.open("r+b") as file:
        file.write(b"2" * PAGE * 4)
    found = [names(disk.cut(Left.SOME, seed))["a"] for seed in range(20)]
    assert len({*found}) > 5
    for body in found:
        assert body is not None
        assert all(body[at : at + PAGE] in (b"1" * PAGE, b"2" * PAGE) for at in range(0, 4 * PAGE, PAGE))


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_sqlite_keeps_what_it_committed(mode: str, disks: LossyDisks) -> None:
    """It asks for all it needs: where it did not, the disk would be too strict, or too kind."""
    disk = disks.make()
    connection = apsw.Connection(str(disk.path / "db"))
    connection.pragma("journal_mode", mode)
    connection.pragma("synchronous", "full")
    connection.execute("CREATE TABLE t (n INTEGER, body BLOB)")
    for number in range(8):
        connection.execute("INSERT INTO t VALUES (?, zeroblob(5000))", (number,))
    connection.execute("BEGIN")
    connection.execute("UPDATE t SET n = -1")
    connection.cache_flush()
    kinds = [(Left.NOTHING, 0), (Left.NAMES, 0), *((Left.SOME, seed) for seed in range(6))]
    found = [disk.cut(left, seed) for left, seed in kinds]
    for one in found:
        after = sqlite3.connect(one.path / "db")
        assert after.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert [n for (n,) in after.execute("SELECT n FROM t")] == list(range(8))
        after.close()
    connection.execute("ROLLBACK")
    connection.close()


def test_the_power_goes_at_a_given_operation(disks: LossyDisks) -> None:
    disk = disks.make()
    disk.arm(2)
    with pytest.raises(OSError, match="Input/output"):
        (disk.path / "a").write_bytes(b"a")
    assert disk.operations() == ["create", "write"]
