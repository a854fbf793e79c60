"""Writing into a folder: metadata as a file system keeps it, links, folders, copies; nothing left."""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from vfs.errors import Denied, NotFound, Stale, StoreError
from vfs.storage.base import decoded, encoded
from vfs.storage.local import LocalStore
from vfs.storage.localwrite import UPLOADS

BODY = bytes(range(256)) * 300


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "library").mkdir()
    return tmp_path / "library"


@trio_test
async def test_metadata_is_the_files_own(root: Path) -> None:
    """Times to the nanosecond, permissions without those that lend rights, attributes; then the version."""
    store = LocalStore(root)
    told = {"mtime": "1700000000.123456789", "mode": "106640", "uid": "0", "db-version": "7", "ü": "ö"}
    stored = await store.put("a", BODY, replaces=None, metadata=told)
    found = await store.head("a")
    assert found.object == stored
    assert found.object in (await store.list()).objects
    assert stored.mtime_ns == 1700000000123456789
    status = (root / "a").stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert os.getxattr(root / "a", "user.reelfs.meta.db-version") == b"7"
    own = {"uid": str(status.st_uid), "gid": str(status.st_gid), "mode": "100640"}
    assert found.metadata == told | own
    assert bytes(await store.read(stored, 0, len(BODY))) == BODY


@pytest.mark.parametrize(
    "told",
    [{"mtime": text} for text in ("", "x", "nan", "inf", "-inf", "1e300", "1" * 5000)]
    + [{"mode": text} for text in ("", "9", "-1", "7" * 99)]
    + [{"uid": text} for text in ("", "-2", "root", "9" * 99, "4294967296")]
    + [{"n" * 300: "x"}, {"name": "x" * 100_000}, {"nul\0": "x"}],
)
@trio_test
async def test_metadata_that_no_file_can_have_is_left_out(root: Path, told: dict[str, str]) -> None:
    store = LocalStore(root)
    stored = await store.put("a", b"x", replaces=None, metadata=told)
    assert bytes(await store.read(stored, 0, 1)) == b"x"
    assert not os.listdir(root / UPLOADS) if (root / UPLOADS).exists() else True


@trio_test
async def test_a_change_of_metadata_writes_no_bytes(root: Path) -> None:
    """The file stays the file it is; what is not told goes, where it is an attribute."""
    store = LocalStore(root)
    first = await store.put("a", BODY, replaces=None, metadata={"one": "1", "two": "2"})
    inode = (root / "a").stat().st_ino
    second = await store.copy(first, "a", replaces=first, metadata={"two": "3", "mtime": "5", "mode": "600"})
    found = await store.head("a")
    assert found.object == second
    assert (root / "a").stat().st_ino == inode
    assert {"two": "3", "mtime": "5.000000000", "mode": "100600"}.items() <= found.metadata.items()
    assert "one" not in found.metadata
    with pytest.raises(Stale):
        await store.copy(first, "a", replaces=first, metadata={})
    # Of a folder as well.
    folder = await store.put("f/", b"", replaces=None)
    await store.copy(folder, "f/", replaces=folder, metadata={"mode": "700", "x": "y"})
    assert stat.S_IMODE((root / "f").stat().st_mode) == 0o700
    assert (await store.head("f/")).metadata["x"] == "y"


@trio_test
async def test_a_copy_keeps_what_the_source_has(root: Path) -> None:
    store = LocalStore(root)
    first = await store.put("a", BODY, replaces=None, metadata={"who": "me", "mtime": "9.5", "mode": "755"})
    second = await store.copy(first, "deep/b", replaces=None)
    told = (await store.head("deep/b")).metadata
    assert told == (await store.head("a")).metadata
    assert second.mtime_ns == first.mtime_ns
    assert (root / "deep" / "b").read_bytes() == BODY
    assert second.version != first.version


@trio_test
async def test_parts_have_the_metadata_of_their_upload(root: Path) -> None:
    store = LocalStore(root)
    name = await store.start_upload("a", metadata={"who": "me", "mtime": "9.5"})
    part = await LocalStore(root).put_part("a", name, 1, b"x")
    stored = await LocalStore(root).complete_upload("a", name, [part], replaces=None)
    found = await store.head("a")
    assert found.object == stored
    assert {"who": "me", "mtime": "9.500000000"}.items() <= found.metadata.items()
    assert os.listdir(root) == ["a"]


@pytest.mark.parametrize("text", ["a", "none", "/etc/passwd", "../outside", "f", "l", ".", "ü\n \udcff"])
@trio_test
async def test_a_symbolic_link_is_its_text(root: Path, text: str) -> None:
    """Wherever it leads it is made, listed, told, copied, replaced and removed; nothing outside is read."""
    (root.parent / "outside").write_bytes(b"secret")
    store = LocalStore(root)
    target = await store.put("a", BODY, replaces=None)
    await store.put("f/", b"", replaces=None)
    link = await store.put("l", b"", replaces=None, metadata={"symlink-target": encoded(text)})
    assert os.readlink(root / "l") == text
    found = await store.head("l")
    assert found.object == link
    assert decoded(found.metadata["symlink-target"]) == text
    page = await store.list()
    assert {"l", "l/"} & ({o.key for o in page.objects} | set(page.prefixes))
    if text == "a":
        assert bytes(await store.read(link, 0, link.size)) == BODY
    else:
        assert link.size == 0
    copied = await store.copy(link, "m", replaces=None)
    assert os.readlink(root / "m") == text
    with pytest.raises(Stale):
        await store.put("l", b"", replaces=None, metadata={"symlink-target": "b"})
    changed = await store.put("l", b"", replaces=link, metadata={"symlink-target": "another", "mtime": "7"})
    assert os.readlink(root / "l") == "another"
    assert changed.mtime_ns == 7 * 10**9
    file = await store.put("l", b"a file now", replaces=changed)
    assert (root / "l").read_bytes() == b"a file now"
    await store.delete(file)
    await store.delete(copied)
    assert sorted(os.listdir(root)) == ["a", "f"]
    assert await store.head("a") == await store.head("a")
    assert bytes(await store.read(target, 0, len(BODY))) == BODY


@trio_test
async def test_folders_are_made_and_removed_by_their_markers(root: Path) -> None:
    """One that is not empty stays; one that loses its last file stays too."""
    store = LocalStore(root)
    folder = await store.put("f/", b"", replaces=None)
    file = await store.put("f/a", b"x", replaces=None)
    assert (await store.head("f/")).object.version == folder.version
    with pytest.raises(Stale, match="not empty"):
        await store.delete(folder)
    await store.delete(file)
    assert (await store.list()).prefixes == ("f/",)
    assert [o.key for o in (await store.list(delimiter="")).objects] == ["f/"]
    await store.delete(folder)
    with pytest.raises(NotFound):
        await store.delete(folder)
    with pytest.raises(StoreError, match="no bytes"):
        await store.put("g/", b"x", replaces=None)
    await store.put("g", b"x", replaces=None)
    with pytest.raises(Stale):
        await store.put("g/", b"", replaces=None)
    with pytest.raises((NotFound, StoreError)):
        await store.put("g/below", b"", replaces=None)


@trio_test
async def test_no_write_follows_a_link_out(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"theirs")
    (root / "out").symlink_to(outside)
    store = LocalStore(root)
    for key in ("out/new", "out/new/", "out/file"):
        with pytest.raises((Denied, Stale)):
            await store.put(key, b"", replaces=None)
    stored = await store.put("a", b"x", replaces=None)
    with pytest.raises(Denied):
        await store.copy(stored, "out/copy", replaces=None)
    assert os.listdir(outside) == ["file"]
    # In the place of a link there is a new file: what it led to is not written to.
    (root / "l").symlink_to(outside / "file")
    link = (await store.head("l")).object
    await store.put("l", b"ours", replaces=link)
    assert (outside / "file").read_bytes() == b"theirs"


@trio_test
async def test_no_body_waits_behind_a_link_that_another_put_there(root: Path) -> None:
    """Who may write to the folder cannot have us write elsewhere."""
    outside = root.parent / "outside"
    (outside / "theirs.parts").mkdir(parents=True)
    (outside / "theirs.parts" / "key").write_bytes(b"a")
    (root / ".reelfs-uploads").symlink_to(outside)
    store = LocalStore(root)
    with pytest.raises(Denied, match="remove it"):
        await store.put("a", b"ours", replaces=None)
    with pytest.raises(Denied):
        await store.start_upload("a")
    with pytest.raises(Denied):
        await store.put_part("a", "theirs.parts", 1, b"ours")
    with pytest.raises(Denied):
        await store.abort_upload("a", "theirs.parts")
    with pytest.raises(Denied):
        await store.uploads()
    assert [str(path.relative_to(outside)) for path in outside.rglob("*")] == [
        "theirs.parts",
        "theirs.parts/key",
    ]


@trio_test
async def test_many_writers_leave_nothing_behind(root: Path) -> None:
    """The folder of uploads comes and goes under all of them."""
    store = LocalStore(root)

    async def one(number: int) -> None:
        for turn in range(10):
            stored = await store.put(f"{number}-{turn}", b"x" * number, replaces=None)
            await store.copy(stored, f"copy {number}-{turn}", replaces=None)
            name = await store.start_upload(f"parts {number}-{turn}")
            part = await store.put_part(f"parts {number}-{turn}", name, 1, b"y")
            await store.complete_upload(f"parts {number}-{turn}", name, [part], replaces=None)

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(partial(one, number))
    assert len(os.listdir(root)) == 12 * 10 * 3


@trio_test
async def test_folders_that_a_file_makes_are_on_the_disk_as_the_file_is(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losing power after the answer loses no name on the way to a file: each that was made is synced."""
    synced: list[str] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), root))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    store = LocalStore(root)
    await store.put("one/two/a", b"x", replaces=None)
    assert [name for name in synced if not name.startswith(UPLOADS)] == [".", "one", "one/two"]
    synced.clear()
    await store.put("one/two/b", b"x", replaces=None)
    assert [name for name in synced if not name.startswith(UPLOADS)] == ["one/two"]
    synced.clear()
    await store.put("one/three/", b"", replaces=None)
    assert synced == ["one"]
