"""A folder as a store: nothing outside it, nothing but files, one version at a time."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from vfs.errors import BadBody, ConfigError, Denied, NotFound, Stale, StoreError, Unavailable
from vfs.spans import StoredObject
from vfs.storage import local
from vfs.storage.local import IN_PLACE, LocalStore

BODY = bytes(range(256)) * 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    (folder / "games").mkdir(parents=True)
    (folder / "games" / "a.mp4").write_bytes(BODY)
    return folder


async def names(store: LocalStore, prefix: str = "", delimiter: str = "/") -> set[str]:
    page = await store.list(prefix, delimiter=delimiter)
    assert page.token is None
    return {o.key for o in page.objects} | set(page.prefixes)


async def stored(store: LocalStore, key: str) -> StoredObject:
    return (await store.head(key)).object


# -- what is there ------------------------------------------------------------------------------------------


def test_a_missing_folder_is_a_setting_that_is_wrong(tmp_path: Path, root: Path) -> None:
    for path in (tmp_path / "none", root / "games" / "a.mp4", "a\0b", "x" * 5000):
        with pytest.raises(ConfigError, match="is not a folder: give an existing one"):
            LocalStore(path)


@trio_test
async def test_the_version_changes_with_time_size_and_inode(root: Path) -> None:
    store, path = LocalStore(root), root / "games" / "a.mp4"
    versions = {(await stored(store, "games/a.mp4")).version}
    os.utime(path, ns=(1, 1))
    first = await stored(store, "games/a.mp4")
    assert first.mtime_ns == 1
    versions.add(first.version)
    path.write_bytes(BODY + b"x")
    os.utime(path, ns=(1, 1))
    versions.add((await stored(store, "games/a.mp4")).version)
    path.with_name("other").write_bytes(BODY)
    path.with_name("other").replace(path)
    os.utime(path, ns=(1, 1))
    versions.add((await stored(store, "games/a.mp4")).version)
    assert len(versions) == 4


@trio_test
async def test_names_that_are_not_utf8_are_kept(root: Path) -> None:
    (Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe.mp4"))).write_bytes(b"odd")
    store = LocalStore(root)
    assert await names(store) == {"games/", "\udcff\udcfe.mp4"}
    assert bytes(await store.read(await stored(store, "\udcff\udcfe.mp4"), 0, 3)) == b"odd"


@trio_test
async def test_only_files_and_folders_are_there(root: Path) -> None:
    """Pipes, sockets and devices are neither listed nor opened: opening them could wait, or act."""
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
        (root / "null").symlink_to("/dev/null")
        (root / "to the pipe").symlink_to("pipe")
        store = LocalStore(root)
        assert await names(store) == {"games/", "null", "to the pipe"}
        for key, text in (("null", "/dev/null"), ("to the pipe", "pipe")):
            found = await store.head(key)
            assert found.metadata["symlink-target"] == text
            assert found.object.size == 0
        for key in ("pipe", "socket", "games"):
            with pytest.raises(NotFound):
                await store.head(key)
            with pytest.raises(NotFound):
                await store.read(StoredObject(key, 10, "0-0-0"), 0, 1)


# -- links --------------------------------------------------------------------------------------------------


@trio_test
async def test_links_that_leave_the_folder_are_links_alone(root: Path, tmp_path: Path) -> None:
    """Where they lead is shown, and nothing of what is there."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(b"secret")
    (tmp_path / "library beside").mkdir()  # a path that only begins like the root's
    (tmp_path / "library beside" / "x").write_bytes(b"secret")
    links = {
        "absolute": str(secret / "key"),
        "relative": "../secret/key",
        "folder": str(secret),
        "up": "..",
        "beside": "../library beside",
        "dangling": "none",
        "itself": "itself",
        "procfs": "/proc/self/environ",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    store = LocalStore(root)
    assert await names(store) == {"games/", *links}
    assert await names(store, "", "") == {"games/a.mp4", *links}
    for key, text in links.items():
        found = await store.head(key)
        assert found.metadata["symlink-target"] == text
        assert found.object.size == 0
        with pytest.raises(BadBody):
            await store.read(found.object, 0, 1)
        listed = (await store.list()).objects
        assert found.object in listed
    for key in ("folder/key", "up/secret/key", "beside/x", "folder/", "up/"):
        with pytest.raises(NotFound):
            await store.head(key)
    for prefix in ("folder/", "up/", "beside/", "up/secret/"):
        assert await names(store, prefix) == set()


@trio_test
async def test_links_that_stay_inside_are_followed(root: Path) -> None:
    (root / "same.mp4").symlink_to("games/a.mp4")
    (root / "also").symlink_to(root / "games")
    store = LocalStore(root)
    assert await names(store) == {"games/", "same.mp4", "also/"}
    assert await names(store, "also/") == {"also/a.mp4"}
    assert await names(store, "", "") == {"games/a.mp4", "same.mp4", "also/a.mp4"}
    for key in ("same.mp4", "also/a.mp4"):
        assert bytes(await store.read(await stored(store, key), 5, 10)) == BODY[5:15]
    assert (await store.head("same.mp4")).metadata["symlink-target"] == "games/a.mp4"
    assert "symlink-target" not in (await store.head("also/a.mp4")).metadata
    # The link to a folder, as an object: what a link's own name is.
    found = await store.head("also")
    assert found.metadata["symlink-target"] == str(root / "games")
    await store.delete(found.object)
    assert await names(store) == {"games/", "same.mp4"}
    await store.delete(await stored(store, "same.mp4"))
    assert await names(store, "", "") == {"games/a.mp4"}


@trio_test
async def test_links_in_a_circle_end(root: Path) -> None:
    (root / "games" / "top").symlink_to(root)
    (root / "games" / "here").symlink_to(".")
    (root / "one").mkdir()
    (root / "two").mkdir()
    (root / "one" / "to two").symlink_to("../two")
    (root / "two" / "to one").symlink_to("../one")
    store = LocalStore(root)
    games = {"games/a.mp4", "games/top", "games/here"}
    assert await names(store, "games/") == games
    assert await names(store, "one/") == {"one/to two/"}
    assert await names(store, "one/to two/") == {"one/to two/to one"}
    assert await names(store, "", "") == games | {"one/to two/to one", "two/to one/to two"}


@trio_test
async def test_a_link_swapped_while_it_is_looked_at_leads_nowhere(root: Path, tmp_path: Path) -> None:
    """Whoever may write in the folder changes files to links and back, all the time: never a byte outside."""
    (tmp_path / "outside").write_bytes(b"S" * len(BODY))
    path, done = root / "games" / "a.mp4", threading.Event()

    def swap() -> None:
        link, file = path.with_name("link"), path.with_name("file")
        while not done.is_set():
            file.write_bytes(BODY)
            file.replace(path)
            link.symlink_to(tmp_path / "outside")
            link.replace(path)

    swapping = threading.Thread(target=swap)
    swapping.start()
    seen = 0
    try:
        store = LocalStore(root)
        for _ in range(600):
            try:
                found = await stored(store, "games/a.mp4")
                if not found.size:
                    continue  # the link
                body = bytes(await store.read(found, 0, found.size))
            except (NotFound, Stale):
                continue
            assert body == BODY
            seen += 1
    finally:
        done.set()
        swapping.join()
    assert seen


# -- reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4096, IN_PLACE, IN_PLACE + 1])
@trio_test
async def test_large_and_small_reads_are_alike(tmp_path: Path, length: int) -> None:
    """Small ones are made in place when the page cache has them, others in a thread."""
    body = os.urandom(2 * IN_PLACE)
    (tmp_path / "big").write_bytes(body)
    store = LocalStore(tmp_path)
    found = await stored(store, "big")
    for offset in (0, 7, IN_PLACE - 1):
        assert bytes(await store.read(found, offset, length)) == body[offset : offset + length]


@trio_test
async def test_what_the_page_cache_does_not_have_is_read_in_a_thread(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    real = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        threads.append(threading.current_thread().name)
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError(11, "would wait")
        return real(descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    store = LocalStore(root)
    assert bytes(await store.read(await stored(store, "games/a.mp4"), 3, 50)) == BODY[3:53]
    assert threads[0] == threading.current_thread().name
    assert threads[1] != threads[0]


@trio_test
async def test_a_file_that_changes_under_a_read_is_stale(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at again after reading: bytes of two versions never come together."""
    store, path = LocalStore(root), root / "games" / "a.mp4"
    found = await stored(store, "games/a.mp4")
    real = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        count = real(descriptor, [buffers[0][:100]], offset, flags)
        with path.open("r+b") as file:
            file.write(b"changed")
        os.utime(path, ns=(5, 5))
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(Stale):
        await store.read(found, 0, 500)


@trio_test
async def test_a_file_that_shrinks_keeping_its_version_is_a_bad_body(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(root)
    found = await stored(store, "games/a.mp4")
    monkeypatch.setattr(local, "_fill", lambda *_: 3)
    with pytest.raises(BadBody, match="3 bytes at 0 where 500"):
        await store.read(found, 0, 500)


@trio_test
async def test_errors_of_the_disk_are_errors(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not "no such file": whoever asks later may be luckier."""
    store = LocalStore(root)
    found = await stored(store, "games/a.mp4")

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(StoreError, match="Input/output error"):
        await store.read(found, 0, 500)


@trio_test
async def test_a_folder_that_may_not_be_read_is_denied(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an empty one. (Refused by hand: tests may run as root, to whom nothing is refused.)"""
    real = os.open

    def refusing(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECTORY:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *rest)

    store = LocalStore(root)
    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(Denied):
        await store.list("games/")


@trio_test
async def test_a_source_that_is_gone_is_not_an_empty_folder(root: Path) -> None:
    """As when the disk it is on was unmounted."""
    store = LocalStore(root)
    found = await stored(store, "games/a.mp4")
    root.rename(root.with_name("elsewhere"))
    for ask in (
        lambda: store.list(),
        lambda: store.list("games/"),
        lambda: store.head("games/a.mp4"),
        lambda: store.read(found, 0, 1),
    ):
        with pytest.raises(Unavailable, match="is not there any more"):
            await ask()
    root.with_name("elsewhere").rename(root)
    assert await names(store) == {"games/"}


@trio_test
async def test_no_descriptor_is_left_open(root: Path) -> None:
    store = LocalStore(root)
    (root / "link").symlink_to("games/a.mp4")
    found = await stored(store, "games/a.mp4")
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(20):
        await names(store)
        await store.read(found, 0, 10)
        for key in ("games/none", "games", "../x"):
            with pytest.raises(NotFound):
                await store.head(key)
        with pytest.raises(Stale):
            await store.read(StoredObject("link", 1, "other"), 0, 1)
    with trio.move_on_after(5):
        while set(os.listdir("/proc/self/fd")) - before:
            await trio.lowlevel.checkpoint()
    assert len(os.listdir("/proc/self/fd")) <= len(before)
