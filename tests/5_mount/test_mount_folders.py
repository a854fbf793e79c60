"""Folders, names and inode numbers on the mount."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MountIt = Callable[..., Any]
MANY = 5000


def raised(call: Callable[..., object], *args: object) -> int:
    """The errno of a call that must fail."""
    with pytest.raises(OSError) as failure:
        call(*args)
    assert failure.value.errno is not None
    return failure.value.errno


def test_a_folder_lists_all_its_names_once(common: Any) -> None:
    names = os.listdir(common / "many")
    assert names == [f"file-{n:05d}" for n in range(MANY)]
    listed = subprocess.run(["ls", "-aU", common / "folder"], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == [".", "..", "file-00000", "file-00001", "file-00002"]


def test_a_listing_brings_the_attributes_with_it(mounted: MountIt) -> None:
    """`ls -l` of a large folder asks the daemon for the folder, not for each file."""
    mount = mounted()
    with os.scandir(mount / "many") as entries:
        sizes = [entry.stat().st_size for entry in entries]
    assert sizes == list(range(MANY))
    latency = mount.known()["status"]["latency"]["fuse_seconds"]
    assert latency.get("getattr", {"count": 0})["count"] <= 2
    assert latency["lookup"]["count"] <= 2


def test_reading_a_folder_goes_on_where_it_stopped(common: Any) -> None:
    """Positions of one opendir are stable: seekdir to any of them gives the same rest."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    folder = ctypes.c_void_p(libc.opendir(os.fsencode(common / "many")))

    def rest() -> list[bytes]:
        names = []
        while entry := libc.readdir(folder):
            names.append(ctypes.string_at(entry + 19))  # struct dirent of 64-bit Linux: d_name
        return names

    for _ in range(1000):
        libc.readdir(folder)
    position = ctypes.c_long(libc.telldir(folder))
    expected = rest()
    assert len(expected) == MANY + 2 - 1000
    libc.seekdir(folder, position)
    assert rest() == expected
    libc.rewinddir(folder)
    assert len(rest()) == MANY + 2
    libc.closedir(folder)


def test_a_listing_that_fails_is_an_error_never_a_shorter_one(common: Any) -> None:
    """C3: listings are all or nothing."""
    common.expect_log("opendir broken: one page of the listing failed")
    assert raised(os.listdir, common / "broken") == errno.EIO


def test_a_file_has_no_children(common: Any) -> None:
    assert raised(os.stat, common / "hello.txt" / "x") == errno.ENOTDIR
    assert raised(os.listdir, common / "hello.txt") == errno.ENOTDIR
    assert raised(os.open, common / "folder", os.O_WRONLY) in (errno.EISDIR, errno.EROFS)


def test_names_that_are_no_text(common: Any) -> None:
    odd = os.fsencode(common.path) + b"/bad\xff\xfename"
    with open(odd, "rb") as file:
        assert file.read() == b"odd\n"
    assert b"bad\xff\xfename" in os.listdir(os.fsencode(common.path))
    assert (common / "é ü 漢").read_bytes() == b"letters\n"
    assert raised(os.stat, os.fsencode(common.path) + b"/\xff") == errno.ENOENT


@pytest.mark.parametrize("length", [256, 1000, 4000])
def test_names_longer_than_linux_allows(common: Any, length: int) -> None:
    assert raised(os.stat, common / ("x" * length)) == errno.ENAMETOOLONG
    assert raised(os.stat, common / ("x" * 255)) == errno.ENOENT


def test_a_path_never_leaves_the_mount(common: Any) -> None:
    assert (common / "folder" / ".." / "hello.txt").read_bytes() == b"hello\n"
    assert os.path.samefile(common / "folder" / "..", common.path)
    for name in ("...", "%2e%2e", "..\\x", "~", "-"):
        assert raised(os.stat, common / name) == errno.ENOENT


def test_what_is_not_there_is_remembered_by_the_kernel(mounted: MountIt) -> None:
    mount = mounted()
    for _ in range(5):
        assert raised(os.stat, mount / "never") == errno.ENOENT
    assert mount.known()["made"]["never"] == 1


def test_inode_numbers_survive_a_remount(mounted: MountIt) -> None:
    """C4: stable inodes."""
    first = mounted()
    names = ["hello.txt", "big.bin", "folder", "link", "lazy.txt", "folder/file-00001"]
    before = [os.lstat(first / name).st_ino for name in names]
    assert len(set(before)) == len(names)
    first.unmount()
    second = mounted()
    assert [os.lstat(second / name).st_ino for name in names] == before
    with os.scandir(second.path) as entries:
        listed = {entry.name: entry.inode() for entry in entries}
    assert [listed[name] for name in names[:5]] == before[:5]


def test_another_version_is_another_inode(mounted: MountIt) -> None:
    """C2: a new open sees the replacement, though the kernel was told to keep the name for a minute."""
    mount = mounted()
    path = mount / "replaced.bin"
    old_content, old_inode = path.read_bytes(), path.stat().st_ino
    (mount.control / "version").write_text("2")
    new_content = path.read_bytes()
    assert new_content != old_content
    assert path.stat().st_ino != old_inode
    (mount.control / "version").write_text("1")
    assert path.read_bytes() == old_content
    assert path.stat().st_ino == old_inode


def test_an_open_file_keeps_its_version(mounted: MountIt) -> None:
    """C1: an open handle sees one version."""
    mount = mounted()
    path = mount / "replaced.bin"
    with open(path, "rb", buffering=0) as old:
        start = old.read(4096)
        (mount.control / "version").write_text("2")
        new = path.read_bytes()
        os.posix_fadvise(old.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        rest = start + b"".join(iter(lambda: old.read(65536), b""))
    (mount.control / "version").write_text("1")
    assert rest == path.read_bytes()
    assert new[:4096] != start


def test_the_kernel_forgets_and_so_does_the_daemon(mounted: MountIt) -> None:
    """Lookups are counted exactly: when the kernel drops all, the root alone is left."""
    if os.geteuid() != 0:
        pytest.skip("only root may make the kernel forget")
    mount = mounted()
    for _ in range(2):
        for entry in os.scandir(mount / "many"):
            entry.stat()
        subprocess.run(["ls", "-laR", mount / "folder"], check=True, capture_output=True)
        (mount / "hello.txt").read_bytes()
    assert mount.known()["inodes"] > MANY
    # The kernel sends what it forgets in batches between other requests, and not all at the first word.
    until = time.monotonic() + 20
    while mount.known()["inodes"] >= 20:
        assert time.monotonic() < until, mount.known()
        Path("/proc/sys/vm/drop_caches").write_text("2\n")
    assert (mount / "many" / "file-00007").stat().st_size == 7
    assert stat.S_ISDIR((mount / "many").stat().st_mode)
