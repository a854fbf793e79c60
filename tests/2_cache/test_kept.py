"""Indexes kept on disk: by version, checksummed, bounded, never an error."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import trio

from vfs.cache.kept import Kept
from vfs.spans import StoredObject

OBJECT = StoredObject("games/x.h4mk", 1000, '"v1"')


def get(kept: Kept, stored: StoredObject, name: str) -> bytes | None:
    return trio.run(kept.get, stored, name)


def put(kept: Kept, stored: StoredObject, name: str, data: bytes) -> bool:
    return trio.run(kept.put, stored, name, data)


def test_what_was_kept_is_there_for_its_version_and_name_alone(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    kept = Kept(folder, "s3://b")
    assert get(kept, OBJECT, "index") is None
    assert put(kept, OBJECT, "index", b"rows")
    assert get(Kept(folder, "s3://b"), OBJECT, "index") == b"rows"
    assert get(kept, OBJECT, "other") is None
    assert get(kept, StoredObject("games/x.h4mk", 1000, '"v2"'), "index") is None
    assert get(Kept(folder, "s3://c"), OBJECT, "index") is None
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", [b"", b"x", None])
def test_damage_is_absence(tmp_path: Path, damage: bytes | None) -> None:
    kept = Kept(tmp_path, "s3://b")
    put(kept, OBJECT, "index", b"rows of an index")
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\xff" if damage is None else damage)
    assert get(kept, OBJECT, "index") is None
    assert not path.exists()


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "s3://b", limit=3000)
    for number in range(4):
        assert put(kept, OBJECT, f"{number}", bytes(900))
        for path in tmp_path.rglob("*"):
            if path.is_file():
                os.utime(path, (path.stat().st_mtime - 10,) * 2)
    assert [get(kept, OBJECT, f"{number}") is not None for number in range(4)] == [False, True, True, True]
    assert not put(kept, OBJECT, "large", bytes(4000))


def test_nothing_is_kept_without_a_folder_or_room(tmp_path: Path) -> None:
    assert not put(Kept(None, "s3://b"), OBJECT, "index", b"rows")
    assert get(Kept(None, "s3://b"), OBJECT, "index") is None
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    assert not put(Kept(blocked / "folder", "s3://b"), OBJECT, "index", b"rows")


def test_thousands_of_small_things_are_not_looked_through_for_each_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is read once, and again when it has grown to its limit."""
    looks = 0
    glob = Path.glob

    def counted(self: Path, pattern: str) -> object:
        nonlocal looks
        looks += 1
        return glob(self, pattern)

    monkeypatch.setattr(Path, "glob", counted)
    kept = Kept(tmp_path, "s3://b", limit=100_000)
    for number in range(150):
        assert put(kept, OBJECT, f"{number}", bytes(1000))
    monkeypatch.undo()
    assert 2 <= looks <= 12
    sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(sizes) <= 100_000
    assert get(kept, OBJECT, "149") == bytes(1000)
    assert get(kept, OBJECT, "0") is None
