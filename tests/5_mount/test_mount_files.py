"""Files on the mount, as the kernel and ordinary programs see them."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MountIt = Callable[..., Any]
MTIME = 1_700_000_000_123_456_789
BIG = 24 << 20


def raised(call: Callable[..., object], *args: object) -> int:
    """The errno of a call that must fail."""
    with pytest.raises(OSError) as failure:
        call(*args)
    assert failure.value.errno is not None
    return failure.value.errno


def test_a_file_reads_as_it_was_described(common: Any) -> None:
    assert (common / "hello.txt").read_bytes() == b"hello\n"
    status = (common / "hello.txt").stat()
    assert (status.st_size, status.st_mtime_ns, status.st_nlink) == (6, MTIME, 1)
    assert stat.S_IMODE(status.st_mode) == 0o444
    assert status.st_blocks == 1
    assert (common / "empty").read_bytes() == b""


def test_parts_equal_the_slice_of_the_whole(common: Any) -> None:
    whole = (common / "spliced.bin").read_bytes()
    assert len(whole) == os.stat(common / "spliced.bin").st_size == 50008
    assert whole[:4] == b"head"
    assert whole[-4:] == b"tail"
    big = (common / "big.bin").read_bytes()
    assert len(big) == BIG
    picker = random.Random(5)
    with open(common / "big.bin", "rb", buffering=0) as file:
        for _ in range(200):
            offset, length = picker.randrange(BIG + 1000), picker.randrange(1, 300_000)
            assert os.pread(file.fileno(), length, offset) == big[offset : offset + length]
        assert file.seek(0, os.SEEK_END) == BIG


def test_every_handle_is_closed_again(mounted: MountIt) -> None:
    mount = mounted()
    for _ in range(3):
        (mount / "spliced.bin").read_bytes()
    known = mount.known()
    assert known["closed"] == 3
    assert known["status"]["gauges"]["open_files"] == 0


def test_a_hot_file_is_read_from_the_kernel_alone(mounted: MountIt) -> None:
    """keep_cache: another version is another inode, so the pages of this one stay good across opens."""
    mount = mounted()

    def fetched_by_reading() -> int:
        before: int = mount.known()["status"]["counters"]["fuse_bytes_read"]
        (mount / "big.bin").read_bytes()
        after: int = mount.known()["status"]["counters"]["fuse_bytes_read"]
        return after - before

    assert fetched_by_reading() >= BIG
    # The machine may need its memory for something else now and then.
    assert min(fetched_by_reading() for _ in range(4)) == 0


def test_programs_copy_and_map(common: Any, tmp_path: Any) -> None:
    subprocess.run(["cp", "-p", common / "big.bin", tmp_path / "copy"], check=True)
    assert (tmp_path / "copy").stat().st_mtime_ns == MTIME
    assert (tmp_path / "copy").read_bytes() == (common / "big.bin").read_bytes()
    mapped = (
        "import mmap,sys; f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=1); print(len(m), m[-4:])"
    )
    done = subprocess.run(
        ["python3", "-c", mapped, common / "spliced.bin"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "50008 b'tail'\n"


def test_a_size_is_settled_when_it_is_asked_for_by_name_never_in_a_listing(mounted: MountIt) -> None:
    mount = mounted()
    assert "lazy.txt" in os.listdir(mount.path)
    assert "lazy.txt" not in mount.known()["made"]
    assert (mount / "lazy.txt").stat().st_size == 12345
    with open(mount / "lazy.txt", "rb") as file:
        assert os.fstat(file.fileno()).st_size == 12345
        assert file.seek(0, os.SEEK_END) == 12345
    assert (mount / "lazy.txt").read_bytes() == b"x" * 12345
    assert mount.known()["made"]["lazy.txt"] == 1


def test_opening_without_a_stat_reads_all_too(mounted: MountIt) -> None:
    """The kernel has size 0 from the lookup; the open settles it."""
    mount = mounted()
    fd = os.open(mount / "lazy.txt", os.O_RDONLY)
    try:
        assert os.read(fd, 100_000) == b"x" * 12345
    finally:
        os.close(fd)


def test_what_is_made_anew_with_another_size_is_an_error_not_a_short_file(mounted: MountIt) -> None:
    mount = mounted()
    mount.expect_log("liar.txt: made anew with")
    assert (mount / "liar.txt").stat().st_size == 100
    assert raised((mount / "liar.txt").read_bytes) == errno.EIO


def test_a_volatile_file_is_made_anew_and_never_kept(mounted: MountIt) -> None:
    """A second apart it is another content; within it `stat` and `open` agree."""
    mount = mounted()
    subprocess.run(["cp", mount / "volatile.json", os.devnull], check=True)
    assert mount.known()["made"]["volatile.json"] == 1
    until = time.monotonic() + 5
    while (content := json.loads((mount / "volatile.json").read_bytes()))["made"] == 1:
        assert time.monotonic() < until
    assert content == {"made": 2}


def test_an_open_volatile_file_is_one_version_or_stale(mounted: MountIt) -> None:
    """C1: once it was made anew for somebody else, an older handle gets ESTALE, never mixed bytes."""
    mount = mounted()
    with open(mount / "volatile.json", "rb", buffering=0) as old:
        until = time.monotonic() + 5
        while json.loads((mount / "volatile.json").read_bytes())["made"] == 1:
            assert time.monotonic() < until
        os.posix_fadvise(old.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert raised(os.pread, old.fileno(), 100, 0) == errno.ESTALE


def test_symbolic_links(common: Any) -> None:
    assert os.readlink(common / "link") == "hello.txt"
    assert os.lstat(common / "link").st_size == len("hello.txt")
    assert (common / "link").read_bytes() == b"hello\n"


def test_extended_attributes(common: Any) -> None:
    assert sorted(os.listxattr(common / "hello.txt")) == ["user.reelfs.explain", "user.reelfs.key"]
    assert os.getxattr(common / "hello.txt", "user.reelfs.key") == b"hello"
    assert len(os.getxattr(common / "hello.txt", "user.reelfs.explain")) == 5000
    for name in ("user.reelfs.nothing", "user.other", "security.selinux", "system.posix_acl_access"):
        assert raised(os.getxattr, common / "hello.txt", name) in (errno.ENODATA, errno.EOPNOTSUPP)


WRITES: dict[str, Callable[[Any], object]] = {
    "open to write": lambda m: os.open(m / "hello.txt", os.O_WRONLY),
    "open to append": lambda m: os.open(m / "hello.txt", os.O_RDWR | os.O_APPEND),
    "truncating open": lambda m: os.open(m / "hello.txt", os.O_RDONLY | os.O_TRUNC),
    "create": lambda m: os.open(m / "new", os.O_CREAT | os.O_WRONLY),
    "truncate": lambda m: os.truncate(m / "hello.txt", 1),
    "chmod": lambda m: os.chmod(m / "hello.txt", 0o600),
    "utime": lambda m: os.utime(m / "hello.txt"),
    "unlink": lambda m: os.unlink(m / "hello.txt"),
    "mkdir": lambda m: os.mkdir(m / "new"),
    "rmdir": lambda m: os.rmdir(m / "folder"),
    "rename": lambda m: os.rename(m / "hello.txt", m / "new"),
    "link": lambda m: os.link(m / "hello.txt", m / "new"),
    "symlink": lambda m: os.symlink("hello.txt", m / "new"),
    "mknod": lambda m: os.mknod(m / "new"),
    "setxattr": lambda m: os.setxattr(m / "hello.txt", "user.x", b"1"),
    "removexattr": lambda m: os.removexattr(m / "hello.txt", "user.reelfs.key"),
    "access": lambda m: _access_or_raise(m / "hello.txt"),
}


def _access_or_raise(path: Any) -> None:
    if not os.access(path, os.W_OK):
        raise OSError(errno.EROFS, "not writable")


def test_every_way_of_writing_is_refused(common: Any) -> None:
    """A3: read-only unless asked."""
    assert {name: raised(call, common) for name, call in WRITES.items()} == dict.fromkeys(WRITES, errno.EROFS)


def test_owner_and_permissions_are_those_of_the_settings(mounted: MountIt) -> None:
    mount = mounted(uid=1234, gid=2345, umask="027")
    status = (mount / "hello.txt").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 2345, 0o440)
    assert stat.S_IMODE((mount / "folder").stat().st_mode) == 0o550


def test_statfs_asks_nobody(common: Any) -> None:
    status = os.statvfs(common.path)
    assert (status.f_namemax, status.f_bavail) == (255, 0)


def test_the_kernel_knows_what_is_mounted(common: Any) -> None:
    escaped = str(common.path).replace(" ", "\\040")
    line = next(line for line in Path("/proc/mounts").read_text().splitlines() if f" {escaped} " in line)
    device, _, kind, options = line.split()[:4]
    assert device == common.settings["source"]
    assert kind == "fuse.reelfs"
    assert {"ro", "nosuid", "nodev", "default_permissions"} <= set(options.split(","))


def test_the_kernel_reads_ahead_a_mebibyte(common: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may set it")
    device = (common / "hello.txt").stat().st_dev
    bdi = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    with open(bdi) as file:
        assert file.read() == "1024\n"
