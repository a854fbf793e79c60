"""The index on disk: what is added, replaced, forgotten, written anew, interrupted."""

from __future__ import annotations

from pathlib import Path

import apsw
import numpy as np
import pytest
from vfs_search import sidecar
from vfs_search.catalog import Catalog, Snapshot
from vfs_search.sampling import Part, Plan
from vfs_search.sidecar import Identity, Writer

from vfs import ConfigError, Damaged, StoredObject


def part(seed: int, pictures: int = 5, start: float = 0.0) -> Part:
    chance = np.random.default_rng(seed)
    times = start + np.arange(pictures) / 2
    return Part(
        duration=float(times[-1]),
        frames=pictures * 12,
        numbers=np.arange(pictures) * 12,
        times=times,
        keys=np.arange(pictures) % 2 == 0,
        vectors=chance.integers(0, 256, (pictures * 2, 512)).astype(np.uint8),
        windows=np.tile(np.array([0, 3], np.uint8), pictures),
        rows=np.repeat(np.arange(pictures), 2).astype(np.int32),
        coded=chance.integers(0, 2**63, 30).astype(np.uint64),
        coded_times=np.arange(30) / 25,
        sound=chance.integers(0, 2**31, (9, 2)).astype(np.uint32),
        extra={"rep0st108": chance.random((pictures, 108)).astype(np.float32)},
    )


def stored(key: str, version: str = "1") -> StoredObject:
    return StoredObject(key, 100, version)


def add(catalog: Catalog, key: str, seed: int, version: str = "1") -> None:
    one = stored(key, version)
    path = catalog.path_of(one)
    writer = Writer(path, Identity(key, version, 100, Plan()))
    writer.add(part(seed), 60.0)
    writer.finish()
    writer.close()
    catalog.add(one, f"{key!a} {version}", sidecar.read(path))


def check(snapshot: Snapshot, key: str, seed: int) -> None:
    """All of a video's columns are its own."""
    (entry,) = [entry for entry in snapshot.entries if entry.key == key]
    expected = part(seed)
    assert np.array_equal(snapshot.of(entry, "grad512"), expected.vectors)
    assert np.array_equal(snapshot.of(entry, "windows"), expected.windows)
    assert np.allclose(snapshot.of(entry, "times"), expected.times[expected.rows])
    assert np.array_equal(snapshot.of(entry, "coded"), np.sort(expected.coded))
    assert set(map(tuple, snapshot.of(entry, "sound"))) == set(map(tuple, expected.sound))
    assert np.array_equal(snapshot.of(entry, "rep0st108.float32.108"), expected.extra["rep0st108"])
    assert (snapshot.owners == snapshot.entries.index(entry)).sum() == len(expected.vectors)


def test_a_snapshot_is_what_was_committed(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "index")
    assert catalog.snapshot().entries == ()
    add(catalog, "a.mp4", 1)
    before = catalog.snapshot()
    add(catalog, "b\udcff.mp4", 2)
    assert catalog.generation != before.generation
    check(before, "a.mp4", 1)
    assert len(before.entries) == 1
    other = Catalog(tmp_path / "index")  # another process
    now = other.snapshot()
    check(now, "a.mp4", 1)
    check(now, "b\udcff.mp4", 2)
    assert other.has(stored("a.mp4"), "'a.mp4' 1")
    assert not other.has(stored("a.mp4"), "'a.mp4' 2")


def test_a_new_version_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "index")
    for key, seed in (("a.mp4", 1), ("b.mp4", 2)):
        add(catalog, key, seed)
    add(catalog, "a.mp4", 3, "2")
    snapshot = catalog.snapshot()
    check(snapshot, "a.mp4", 3)
    check(snapshot, "b.mp4", 2)
    assert (snapshot.owners == -1).sum() == 10
    assert catalog.clean(2, 1 << 40) == (1, 0)  # the file of the old version


def test_columns_are_written_anew_when_most_is_gone(tmp_path: Path) -> None:
    """Who has the old ones mapped goes on reading them."""
    catalog = Catalog(tmp_path / "index")
    for number in range(4):
        add(catalog, f"{number}.mp4", number)
    before = catalog.snapshot()
    assert catalog.forget(["0.mp4", "1.mp4", "2.mp4", "nothing"]) == 3
    catalog.clean(1, 1 << 40)
    after = catalog.snapshot()
    check(after, "3.mp4", 3)
    check(before, "1.mp4", 1)
    assert len(after.columns["grad512"]) == 10
    assert after.listed == 1
    assert [path.name for path in (tmp_path / "index").glob("columns*")] == ["columns1"]
    add(catalog, "5.mp4", 5)
    check(catalog.snapshot(), "5.mp4", 5)


def test_over_the_budget_the_oldest_go(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "index")
    for number in range(4):
        add(catalog, f"{number}.mp4", number)
    one = catalog.path_of(stored("0.mp4")).stat().st_size
    _, dropped = catalog.clean(4, catalog.nbytes - 3 * one)
    assert dropped == 2
    assert catalog.known() == ["2.mp4", "3.mp4"]
    check(catalog.snapshot(), "3.mp4", 3)


def test_an_interrupted_video_goes_on_where_it_was(tmp_path: Path) -> None:
    """Parts that were added stay; another version or plan begins anew."""
    path, identity = tmp_path / "x.search.sqlite", Identity("x", "1", 100, Plan())
    writer = Writer(path, identity)
    writer.add(part(1), 60.0)
    writer.close()
    assert not sidecar.is_whole(path, identity)
    writer = Writer(path, identity)
    assert (writer.until, writer.pictures) == (60.0, 5)
    writer.add(part(2, start=60.0), 120.0)
    writer.finish()
    writer.close()
    assert sidecar.is_whole(path, identity)
    contents = sidecar.read(path)
    assert contents.numbers.tolist() == [n * 12 for n in range(10)]
    assert contents.frames.tolist() == np.repeat(np.arange(10), 2).tolist()
    other = Identity("x", "2", 100, Plan())
    assert not sidecar.is_whole(path, other)
    writer = Writer(path, other)
    assert writer.until == 0
    writer.close()


def test_frame_info_is_as_the_video_plan_has_it(tmp_path: Path) -> None:
    path = tmp_path / "x.search.sqlite"
    writer = Writer(path, Identity("x", "1", 100, Plan()))
    writer.add(part(1), 60.0)
    writer.close()
    database = apsw.Connection(str(path))
    columns = [row[1] for row in database.execute("PRAGMA table_info(frame_info)")]
    assert columns == ["id", "frame_number", "timestamp", "is_keyframe", "created_at"]
    rows = list(database.execute("SELECT frame_number, timestamp, is_keyframe FROM frame_info"))
    assert rows == [(n * 12, n / 2, int(n % 2 == 0)) for n in range(5)]
    database.close()


@pytest.mark.parametrize("damage", [b"", b"noise", b"SQLite format 3\0" + bytes(5000)])
def test_a_damaged_file_is_no_index(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "x.search.sqlite"
    path.write_bytes(damage)
    assert not sidecar.is_whole(path, Identity("x", "1", 100, Plan()))
    with pytest.raises(Damaged):
        sidecar.read(path)


@pytest.mark.parametrize(
    "tampering",
    ["UPDATE pages SET descriptor = '../../../x' WHERE descriptor = 'rep0st108'",
     "UPDATE pages SET windows = zeroblob(3) WHERE descriptor = 'grad512'",
     "UPDATE pages SET windows = CAST('zzzzzzzzzz' AS BLOB) WHERE descriptor = 'grad512'",
     "UPDATE pages SET frames = CAST('zzzz' AS BLOB), vectors = zeroblob(512) WHERE descriptor = 'grad512'",
     "UPDATE pages SET frames = CAST('zzzz' AS BLOB), vectors = zeroblob(432) WHERE descriptor = 'rep0st108'",
     "UPDATE coded SET times = zeroblob(8)", "UPDATE coded SET hashes = 'text'",
     "UPDATE sound SET landmarks = 7", "UPDATE frame_info SET timestamp = 9e999",
     "UPDATE meta SET value = 'nan' WHERE name = 'duration'",
     "UPDATE meta SET value = 'x' WHERE name = 'duration'", "DELETE FROM frame_info",
     "DROP TABLE coded", "DROP TABLE coded; CREATE VIEW coded AS SELECT 1 part, x'00' hashes, x'00' times"],
)  # fmt: skip
def test_a_file_that_says_it_is_ours_and_lies_is_no_index(tmp_path: Path, tampering: str) -> None:
    """Nothing in it is the name of a file, or a number of what is not there."""
    path, identity = tmp_path / "x.search.sqlite", Identity("x", "1", 100, Plan())
    writer = Writer(path, identity)
    writer.add(part(1), 60.0)
    writer.finish()
    writer.close()
    assert len(sidecar.read(path).vectors) == 10
    database = apsw.Connection(str(path))
    list(database.execute(tampering))
    database.close()
    assert sidecar.is_whole(path, identity)
    with pytest.raises(Damaged):
        sidecar.read(path)


def test_a_folder_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        Catalog(tmp_path / "file")
