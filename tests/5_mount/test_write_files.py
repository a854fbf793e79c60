"""A mount that is written to: calls do what they do on a disk, and the bucket has the result."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import mmap
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from boto3.s3.transfer import TransferConfig

from tests.faulty_mounts import eventually
from tests.servers import R2, r2_server
from tests.writes import WrittenMount, written

pytestmark = pytest.mark.fuse

BUCKET = "drive"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[R2]:
    with r2_server(tmp_path_factory.mktemp("r2")) as made:
        made.fill(BUCKET, {"games/old.mp4": b"the game", "kept.txt": b"kept"})
        yield made


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory, server: R2) -> Iterator[WrittenMount]:
    """One mount for the tests that leave the same mount behind."""
    with written(tmp_path_factory.mktemp("drive"), f"r2://{BUCKET}", server.environ) as made:
        yield made


@pytest.fixture
def here(drive: WrittenMount, request: pytest.FixtureRequest) -> Path:
    """A folder of the test's own on that mount."""
    folder = drive / str(request.node.name)
    folder.mkdir()
    return folder


def stored(server: R2, bucket: str = BUCKET) -> dict[str, bytes]:
    """What the bucket has, the trash left out."""
    client = server.client()
    try:
        found = {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", ()):
                if not item["Key"].startswith(".reelfs-trash/"):
                    found[item["Key"]] = client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
        return found
    finally:
        client.close()


def fails(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.RaisesExc(OSError, check=lambda error: error.errno == number)


# ---------------------------------------------------------------- files


def test_what_is_written_is_read_and_arrives(here: Path, server: R2) -> None:
    data = os.urandom(300_000)
    (here / "a").write_bytes(data)
    assert (here / "a").read_bytes() == data
    assert (here / "a").stat().st_size == len(data)
    with open(here / "a", "rb") as file:
        os.fsync(file.fileno())
    assert stored(server)[f"{here.name}/a"] == data


def test_open_in_every_mode(here: Path) -> None:
    path = here / "a"
    with fails(errno.ENOENT):
        os.open(path, os.O_WRONLY)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    with fails(errno.EEXIST):
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with open(path, "w+b") as file:
        file.write(b"0123456789")
        file.seek(3)
        assert file.read(2) == b"34"
        file.seek(3)
        file.write(b"xx")
        file.flush()
        assert path.read_bytes() == b"012xx56789"
    with open(path, "r+b") as file:
        file.seek(8)
        file.write(b"YYYY")
    assert path.read_bytes() == b"012xx567YYYY"
    with open(path, "ab") as file:
        file.write(b"end")
    assert path.read_bytes() == b"012xx567YYYYend"
    with open(path, "wb"):
        pass
    assert path.read_bytes() == b""
    reading = os.open(path, os.O_RDONLY)
    with fails(errno.EBADF):
        os.write(reading, b"x")
    os.close(reading)


def test_truncate_and_holes(here: Path) -> None:
    path = here / "a"
    path.write_bytes(b"0123456789")
    os.truncate(path, 4)
    assert path.read_bytes() == b"0123"
    os.truncate(path, 8)
    assert path.read_bytes() == b"0123\0\0\0\0"
    with open(path, "r+b") as file:
        os.ftruncate(file.fileno(), 2)
        os.pwrite(file.fileno(), b"end", 100_000)
    data = path.read_bytes()
    assert (len(data), data[:2], data[-3:]) == (100_003, b"01", b"end")
    assert not any(data[2:-3])
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 99_000, 50_000)
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 149_000
    assert path.read_bytes() == data + bytes(149_000 - len(data))


def test_part_of_a_stored_file_is_changed_and_the_rest_fetched_once(server: R2, tmp_path: Path) -> None:
    data = bytearray(os.urandom(24 << 20))
    server.fill("part", {"big.bin": bytes(data)})
    with written(tmp_path, "r2://part", server.environ) as mount:
        with open(mount / "big.bin", "r+b") as file:
            file.seek(5_000_000)
            file.write(b"here")
            file.seek(0)
            assert file.read(10) == data[:10]
        data[5_000_000:5_000_004] = b"here"
        assert (mount / "big.bin").read_bytes() == data
    assert stored(server, "part") == {"big.bin": data}


def test_several_handles_are_one_file(here: Path) -> None:
    path = here / "a"
    with open(path, "wb", buffering=0) as one, open(path, "r+b", buffering=0) as other:
        one.write(b"12345")
        other.seek(2)
        other.write(b"xx")
        with open(path, "rb") as reading:
            assert reading.read() == b"12xx5"
        number = os.fstat(one.fileno()).st_ino
        assert number == os.fstat(other.fileno()).st_ino == path.stat().st_ino


def test_an_unlinked_file_stays_readable(here: Path, server: R2) -> None:
    (here / "new").write_bytes(b"new")
    with open(here / "new", "r+b") as file:
        (here / "new").unlink()
        assert not (here / "new").exists()
        assert file.read() == b"new"
        file.write(b"more")
        file.flush()
        file.seek(0)
        assert file.read() == b"newmore"
        assert os.fstat(file.fileno()).st_nlink == 0
    (here / "old").write_bytes(b"old" * 100_000)
    sync(here / "old")
    with open(here / "old", "rb") as file:
        (here / "old").unlink()
        assert file.read() == b"old" * 100_000
    assert list(here.iterdir()) == []


def sync(path: Path) -> None:
    """Have it in the store."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def test_locks_hold_between_processes(here: Path) -> None:
    """Whole files (flock) and ranges of them (fcntl), until they are let go."""
    path = here / "locked"
    path.write_bytes(bytes(100))
    program = (
        "import errno, fcntl, sys\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "for lock in (lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB),\n"
        "             lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 50),\n"
        "             lambda: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)):\n"
        "    try:\n"
        "        lock()\n"
        "        print('got')\n"
        "    except OSError as error:\n"
        "        print(errno.errorcode[error.errno])\n"
    )

    def another() -> list[str]:
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=True)
        return done.stdout.decode().split()

    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        fcntl.lockf(file, fcntl.LOCK_EX, 20, 45)
        assert another() == ["EAGAIN", "EAGAIN", "got"]
        fcntl.flock(file, fcntl.LOCK_UN)
        fcntl.lockf(file, fcntl.LOCK_UN, 20, 45)
        assert another() == ["got", "got", "got"]


def test_a_memory_map_is_written(here: Path) -> None:
    path = here / "a"
    path.write_bytes(bytes(100_000))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[50_000:50_005] = b"hello"
        mapped.flush()
    assert path.read_bytes()[49_999:50_006] == b"\0hello\0"


def test_an_inode_stays_what_it_is_while_it_is_written_sent_and_moved(here: Path) -> None:
    path = here / "a"
    path.write_bytes(b"1")
    number = path.stat().st_ino
    path.write_bytes(b"22")
    sync(path)
    assert path.stat().st_ino == number
    path.rename(here / "b")
    sync(here / "b")
    assert (here / "b").stat().st_ino == number
    assert (here / "b").read_bytes() == b"22"


# ---------------------------------------------------------------- names


def test_folders(here: Path, server: R2) -> None:
    (here / "a/b").mkdir(parents=True)
    with fails(errno.EEXIST):
        (here / "a").mkdir()
    with fails(errno.ENOTEMPTY):
        (here / "a").rmdir()
    (here / "a/b/file").write_bytes(b"x")
    (here / "a/b/file").unlink()
    assert (here / "a/b").is_dir(), "a folder stays when the last file goes"
    (here / "a/b").rmdir()
    assert [p.name for p in here.iterdir()] == ["a"]
    with fails(errno.ENOTDIR):
        (here / "a/b").mkdir()
        (here / "f").write_bytes(b"")
        (here / "f").rmdir()


def test_a_folder_that_was_sent_goes_and_comes_again(here: Path) -> None:
    for _ in range(3):
        (here / "a/b/c").mkdir(parents=True)
        (here / "a/b/file").write_bytes(b"x")
        sync(here / "a/b/file")
        shutil.rmtree(here / "a")
        assert list(here.iterdir()) == []


def test_rename_of_files(here: Path) -> None:
    (here / "a").write_bytes(b"a")
    (here / "b").write_bytes(b"b")
    (here / "a").rename(here / "c")
    (here / "c").replace(here / "b")
    assert {p.name: p.read_bytes() for p in here.iterdir()} == {"b": b"a"}
    with fails(errno.ENOENT):
        (here / "a").rename(here / "d")
    (here / "folder").mkdir()
    with fails(errno.EISDIR):
        os.rename(here / "b", here / "folder")


def test_rename_of_stored_files_copies_in_the_store(server: R2, tmp_path: Path) -> None:
    body = os.urandom(100_000)
    server.fill("moves", {"a.bin": body, "f/x": b"x", "f/deep/y": b"y", "g/z": b"z"})
    with written(tmp_path, "r2://moves", server.environ, "write.trash_ttl=0") as mount:
        server.forget()
        (mount / "a.bin").rename(mount / "b.bin")
        assert (mount / "b.bin").read_bytes() == body
        (mount / "f").rename(mount / "h")
        assert not (mount / "f").exists()
        assert (mount / "h/deep/y").read_bytes() == b"y"
        os.rename(mount / "g/z", mount / "h/z")
    found = {key: value for key, value in stored(server, "moves").items() if not key.endswith("/")}
    assert found == {"b.bin": body, "h/x": b"x", "h/deep/y": b"y", "h/z": b"z"}
    log = server.log("moves")
    copies = sorted((entry.key, entry.status) for entry in log if entry.operation == "CopyObject")
    assert copies == [(key, 200) for key in ("b.bin", "h/deep/y", "h/x", "h/z")]
    puts = [entry.key for entry in log if entry.operation == "PutObject"]
    assert len(puts) <= 3
    assert all(key.endswith("/") for key in puts), "markers alone"


def test_a_copy_within_the_mount_is_made_in_the_store(server: R2, tmp_path: Path) -> None:
    body = os.urandom(9_000_000)
    server.fill("copies", {"a.mp4": body, "b.mp4": os.urandom(9_000_000)})
    with written(tmp_path, "r2://copies", server.environ) as mount:
        server.forget()
        (mount / "b.mp4").read_bytes()
        (mount / "c.mp4").write_bytes((mount / "a.mp4").read_bytes())
    assert stored(server, "copies")["c.mp4"] == body
    assert (server.count("CopyObject", "copies"), server.count("PutObject", "copies")) == (1, 0)


def test_two_files_change_places(server: R2, tmp_path: Path) -> None:
    server.fill("swap", {"a": b"one", "b": b"two"})
    with written(tmp_path, "r2://swap", server.environ, "write.trash_ttl=0") as mount:
        (mount / "a").rename(mount / "t")
        (mount / "b").rename(mount / "a")
        (mount / "t").rename(mount / "b")
        assert ((mount / "a").read_bytes(), (mount / "b").read_bytes()) == (b"two", b"one")
    assert stored(server, "swap") == {"a": b"two", "b": b"one"}


def test_symbolic_links(here: Path) -> None:
    (here / "a").write_bytes(b"a")
    (here / "link").symlink_to("a")
    (here / "out").symlink_to("/nowhere/ü")
    assert os.readlink(here / "link") == "a"
    assert (here / "link").read_bytes() == b"a"
    assert os.readlink(here / "out") == "/nowhere/ü"
    assert stat.S_ISLNK(os.lstat(here / "out").st_mode)


def test_what_a_bucket_has_no_place_for_is_refused(here: Path) -> None:
    (here / "a").write_bytes(b"")
    with fails(errno.EPERM):
        os.link(here / "a", here / "b")
    with fails(errno.EPERM):
        os.mkfifo(here / "pipe")
    with fails(errno.ENAMETOOLONG):
        (here / ("x" * 256)).write_bytes(b"")
    with fails(errno.EINVAL):
        Path(os.fsdecode(os.fsencode(here) + b"/\xff")).write_bytes(b"")
    deep = here
    with fails(errno.ENAMETOOLONG):
        for _ in range(6):
            deep /= "d" * 200
            deep.mkdir()
    (here / "é").write_bytes(b"")
    with fails(errno.EEXIST):
        (here / "e\u0301").write_bytes(b"")


def test_what_is_made_cannot_be_written_to(drive: WrittenMount) -> None:
    for path in (drive / ".reelfs/status.json", drive / ".reelfs/new", drive / ".raw/kept.txt"):
        with pytest.raises(OSError) as caught:
            path.write_bytes(b"")
        assert caught.value.errno in (errno.EROFS, errno.EACCES), path


def test_protected_objects_stay(drive: WrittenMount) -> None:
    drive.expect_log("write.protect")
    game = drive / "games/old.mp4"
    for act in (
        game.unlink,
        lambda: game.write_bytes(b""),
        lambda: game.rename(drive / "x.mp4"),
        lambda: (drive / "kept.txt").replace(game),
        lambda: os.chmod(game, 0o600),
        lambda: os.setxattr(game, "user.x", b"1"),
    ):
        with fails(errno.EPERM):
            act()
    assert game.read_bytes() == b"the game"
    (drive / "games/new.mp4").write_bytes(b"new games may come")


# ---------------------------------------------------------------- attributes


@pytest.mark.skipif(os.getuid() != 0, reason="programs of two users are needed")
def test_set_user_id_bits_go_when_another_user_writes(server: R2) -> None:
    """As on the disk of this machine: the kernel leaves that to the mount."""
    server.fill("privileges", {})
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        with written(Path(folder), "r2://privileges", server.environ, "allow_other=true") as mount:
            modes = []
            for path in (mount / "a", Path(folder) / "a"):
                seen = []
                for how in ("write", "truncate", "open to truncate", "chown"):
                    path.write_bytes(b"0123456789")
                    os.chmod(path, 0o6777)
                    with path.open("r+b") as file:
                        file.write(b"by root")
                    seen.append(stat.S_IMODE(path.stat().st_mode))
                    work = {
                        "write": f"printf x | dd of={path} conv=notrunc status=none",
                        "truncate": f"truncate -s 3 {path}",
                        "open to truncate": f": > {path}",
                    }
                    if how in work:
                        command = ["/bin/sh", "-c", work[how]]
                        subprocess.run(command, user=65534, group=65534, extra_groups=[], cwd="/", check=True)
                    else:
                        os.chown(path, 65534, 65534)
                    seen.append(stat.S_IMODE(path.stat().st_mode))
                    os.chown(path, 0, 0)
                modes.append(seen)
            assert modes[0] == modes[1]
            assert {0o6777, 0o777} == set(modes[0])


def test_attributes_are_kept_over_a_remount(server: R2, tmp_path: Path) -> None:
    server.fill("meta", {"other.txt": b"of another"})
    with written(tmp_path, "r2://meta", server.environ) as mount:
        (mount / "a").write_bytes(b"a")
        os.chmod(mount / "a", 0o640)
        os.chown(mount / "a", 1234, 4321)
        os.utime(mount / "a", ns=(0, 1_600_000_000_123_456_789))
        os.setxattr(mount / "a", "user.note", "grün".encode())
        os.setxattr(mount / "other.txt", "user.tag", b"goal")
        os.symlink("a", mount / "link")
        os.chmod(mount / "other.txt", 0o600)
        mount.unmount()
        client = server.client()
        told = client.head_object(Bucket="meta", Key="a")["Metadata"]
        client.close()
        assert (told["mtime"], told["mode"], told["uid"]) == ("1600000000.123456789", "0640", "1234")
        for forgets in (False, True):
            if forgets:
                for file in (tmp_path / "writes").rglob("journal*"):
                    file.unlink()
            mount.start()
            status = os.stat(mount / "a")
            assert os.getxattr(mount / "a", "user.note").decode() == "grün"
            assert os.getxattr(mount / "other.txt", "user.tag") == b"goal"
            assert os.readlink(mount / "link") == "a"
            until = time.monotonic() + 10
            while forgets and stat.S_IMODE(status.st_mode) != 0o640 and time.monotonic() < until:
                os.listxattr(mount / "a")  # the store is asked; the kernel looks again in a moment
                status = os.stat(mount / "a")
            assert stat.S_IMODE(status.st_mode) == 0o640
            assert (status.st_uid, status.st_gid) == (1234, 4321)
            assert status.st_mtime_ns == 1_600_000_000_123_456_789
            mount.unmount()
    assert stored(server, "meta") == {"a": b"a", "other.txt": b"of another", "link": b""}


def test_user_attributes(drive: WrittenMount, here: Path) -> None:
    drive.expect_log("room for 8192 bytes of attributes")
    path = here / "a"
    path.write_bytes(b"")
    os.setxattr(path, "user.one", b"1")
    os.setxattr(path, "user.two", b"")
    os.setxattr(path, "user.mtime", b"of the user")
    assert {"user.one", "user.two", "user.mtime"} <= set(os.listxattr(path))
    assert os.getxattr(path, "user.mtime") == b"of the user"
    os.removexattr(path, "user.two")
    for act, number in (
        (lambda: os.getxattr(path, "user.two"), errno.ENODATA),
        (lambda: os.removexattr(path, "user.two"), errno.ENODATA),
        (lambda: os.setxattr(path, "user.UPPER", b""), errno.EOPNOTSUPP),
        (lambda: os.setxattr(path, "user.bin", b"\xff"), errno.EOPNOTSUPP),
        (lambda: os.setxattr(path, "user.big", b"x" * 9000), errno.ENOSPC),
        (lambda: os.setxattr(path, "user.reelfs.key", b"x"), errno.EOPNOTSUPP),
    ):
        with fails(number):
            act()


# ---------------------------------------------------------------- with others


def test_a_lost_race_keeps_both(server: R2, tmp_path: Path) -> None:
    server.fill("race", {"a.txt": b"first"})
    with written(tmp_path, "r2://race", server.environ, "write.delay=60s") as mount:
        mount.expect_log("another version was stored meanwhile")
        (mount / "a.txt").write_bytes(b"ours")
        (mount / "new.txt").write_bytes(b"ours too")
        server.fill("race", {"a.txt": b"theirs", "new.txt": b"theirs too"})
        mount.unmount()
    found = stored(server, "race")
    assert (found.pop("a.txt"), found.pop("new.txt")) == (b"theirs", b"theirs too")
    assert sorted(found.values()) == [b"ours", b"ours too"]
    for name in found:
        assert " (conflict 20" in name
        assert name.endswith(").txt")


def test_fsync_of_a_lost_race_says_so(server: R2, tmp_path: Path) -> None:
    """Success would mean that the store has it under this name. Each handle is told once."""
    server.fill("racing", {"a.txt": b"first"})
    with written(tmp_path, "r2://racing", server.environ, "write.delay=60s") as mount:
        mount.expect_log("another version was stored meanwhile", "fsync")
        ours, beside = (os.open(mount / "a.txt", os.O_RDWR) for _ in range(2))
        server.fill("racing", {"a.txt": b"theirs"})
        os.pwrite(ours, b"OURS!", 0)
        for descriptor in (ours, beside):
            with pytest.raises(OSError) as caught:
                os.fsync(descriptor)
            assert caught.value.errno == errno.ESTALE
            os.fsync(descriptor)
        os.pwrite(ours, b"again", 0)
        os.fsync(ours)
        found = stored(server, "racing")
        assert found.pop("a.txt") == b"theirs"
        assert list(found.values()) == [b"again"]
        with (mount / next(iter(found))).open("r+b") as file:
            file.write(b"other")
            os.fsync(file.fileno())
        os.close(ours)
        os.close(beside)


def test_another_version_with_the_same_bytes_is_no_conflict(server: R2, tmp_path: Path) -> None:
    """Its etag was that of parts; who changes the metadata of such an object makes it another one."""
    body = random.Random(1).randbytes(11 << 20)
    server.fill("same", {})
    with closing(server.client()) as client:
        parts = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
        client.upload_fileobj(io.BytesIO(body), "same", "a.bin", Config=parts)
        assert client.head_object(Bucket="same", Key="a.bin")["ETag"].endswith('-3"')
        with written(tmp_path, "r2://same", server.environ, "write.delay=60s") as mount:
            with (mount / "a.bin").open("r+b") as file:
                file.write(body[: 1 << 20][::-1])
                file.seek(0)
                assert file.read() == body[: 1 << 20][::-1] + body[1 << 20 :]
            client.put_object(Bucket="same", Key="a.bin", Body=body, Metadata={"theirs": "kept"})
            mount.unmount()
        assert client.head_object(Bucket="same", Key="a.bin")["Metadata"]["theirs"] == "kept"
    assert stored(server, "same") == {"a.bin": body[: 1 << 20][::-1] + body[1 << 20 :]}


def test_what_another_changed_is_not_removed(server: R2, tmp_path: Path) -> None:
    server.fill("undel", {"a.txt": b"first"})
    with written(tmp_path, "r2://undel", server.environ, "write.delay=60s") as mount:
        mount.expect_log("it is not removed")
        (mount / "a.txt").unlink()
        server.fill("undel", {"a.txt": b"theirs"})
        mount.unmount()
    assert stored(server, "undel") == {"a.txt": b"theirs"}


def test_a_second_mount_of_the_same_journal_is_refused(server: R2, tmp_path: Path) -> None:
    server.fill("twice", {})
    with written(tmp_path, "r2://twice", server.environ) as mount:
        other = WrittenMount(tmp_path / "other", mount.source, server.environ)
        other.folder.mkdir()
        (other.folder / "writes").symlink_to(tmp_path / "writes")
        try:
            with pytest.raises(AssertionError, match="in use by another mount"):
                other.start()
        finally:
            other.finish()


def test_what_was_closed_before_a_crash_arrives(server: R2, tmp_path: Path) -> None:
    server.fill("crash", {"old.txt": b"old"})
    with written(tmp_path, "r2://crash", server.environ, "write.delay=60s") as mount:
        (mount / "new.txt").write_bytes(b"closed")
        (mount / "old.txt").write_bytes(b"replaced")
        (mount / "folder").mkdir()
        half = os.open(mount / "half.bin", os.O_CREAT | os.O_WRONLY)
        assert os.write(half, b"h" * 2_000_000) == 2_000_000
        mount.kill()
        with fails(errno.ENOTCONN):
            os.close(half)
        mount.expect_log("was being written when the last mount ended")
        mount.start()
        assert (mount / "new.txt").read_bytes() == b"closed"
        assert (mount / "old.txt").read_bytes() == b"replaced"
        assert (mount / "folder").is_dir()
        mount.unmount()
    found = stored(server, "crash")
    assert (found["new.txt"], found["old.txt"]) == (b"closed", b"replaced")
    kept = [key for key in found if key.startswith("half (recovered ")]
    assert [found[key] for key in kept] == [b"h" * 2_000_000]


def test_one_write_a_second_to_a_key(tmp_path: Path) -> None:
    with r2_server(tmp_path / "server", rate=True) as server:
        server.fill("rate", {})
        with written(tmp_path / "m", "r2://rate", server.environ, "write.delay=0") as mount:
            for count in range(30):
                (mount / "a").write_text(str(count))
        assert stored(server, "rate") == {"a": b"29"}
        assert server.count("PutObject") <= 12
        assert not [entry for entry in server.log() if entry.status == 429]


def test_many_writers_at_once(here: Path) -> None:
    def write(number: int) -> None:
        for count in range(10):
            (here / f"{number}-{count}").write_bytes(bytes([number]) * 5000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(here.iterdir())) == 80
    for number in range(8):
        assert (here / f"{number}-9").read_bytes() == bytes([number]) * 5000


def test_prefixes_that_may_be_written(server: R2, tmp_path: Path) -> None:
    server.fill("rules", {"a/x": b"x", "b/y": b"y"})
    with written(tmp_path, "r2://rules", server.environ, "write.allow=a/") as mount:
        (mount / "a/new").write_bytes(b"new")
        for act in (
            lambda: (mount / "b/new").write_bytes(b""),
            lambda: (mount / "b/y").write_bytes(b""),
            lambda: (mount / "new").mkdir(),
            lambda: (mount / "a/x").rename(mount / "b/x"),
        ):
            with pytest.raises(OSError) as caught:
                act()
            assert caught.value.errno in (errno.EROFS, errno.EACCES)
    assert set(stored(server, "rules")) == {"a/x", "a/new", "b/y"}


def test_statfs_tells_the_room_for_writes(drive: WrittenMount) -> None:
    told = os.statvfs(drive.path)
    assert 0 < told.f_bavail <= told.f_blocks


def test_a_clip_of_a_file_that_is_not_sent_yet(here: Path, tmp_path: Path) -> None:
    import importlib
    import sys

    root = Path(__file__).resolve().parents[2]
    sys.path.insert(0, str(root / "scripts"))
    media = importlib.import_module("sample_media")
    path = media.encode(tmp_path / "v.mp4", frames=60, size=(160, 90))
    (here / "v.mp4").write_bytes(path.read_bytes())
    assert (here / "v@1s.jpg").read_bytes()[:2] == b"\xff\xd8"
    told = json.loads((here / "v.mp4@/info.json").read_bytes())
    assert told


def reelfs(*words: str | Path) -> subprocess.CompletedProcess[bytes]:
    """One run of the command."""
    return subprocess.run([Path(sys.executable).parent / "reelfs", *words], capture_output=True, timeout=60)


def test_a_container_is_a_file_until_it_is_stored_and_goes_as_a_folder(server: R2, tmp_path: Path) -> None:
    packed = tmp_path / "made.h4mk"
    (tmp_path / "film").write_bytes(os.urandom(100_000))
    assert reelfs("h4mk", "pack", tmp_path / "film", "-o", packed).returncode == 0
    server.fill("containers", {"old/kept.txt": b"kept"})
    with written(tmp_path, "r2://containers", server.environ) as mount:
        first = mount / "old/first.h4mk"
        shutil.copyfile(packed, first)
        eventually(first.is_dir)
        assert (first / "container.h4mk").read_bytes() == packed.read_bytes()
        blocks = os.listdir(first / "blocks")
        with pytest.raises(OSError, match="Read-only"):
            (first / "stats.json").unlink()
        first.rename(mount / "second.h4mk")
        second = mount / "second.h4mk"

        def is_whole_again() -> bool:
            try:
                assert os.listdir(second / "blocks") == blocks
            except NotADirectoryError:  # a file while it is copied
                return False
            return second.is_dir()

        assert reelfs("flush", mount.path).returncode == 0
        eventually(is_whole_again)
        assert set(os.listdir(mount.path)) == {"old", "second.h4mk", "search"}
        second.rmdir()
        assert set(os.listdir(mount.path)) == {"old", "search"}
    assert set(stored(server, "containers")) == {"old/kept.txt"}
