"""Ordinary programs on a mount: they read the source's bytes; what would write is refused and said."""

from __future__ import annotations

import errno
import glob
import hashlib
import mmap
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from client_mounts import Mount

H264 = "games/h264.mp4"
CLIP = "games/h264@1s-3s.mp4"
FRAME = "games/h264@1s.png"
RANDOM = "a/b b/ü 🎬/random.bin"


def run(*command: str | Path, stdin: bytes = b"", cwd: Path | None = None) -> bytes:
    """What a program prints; it must end well and complain of nothing."""
    done = subprocess.run(list(map(str, command)), input=stdin, capture_output=True, cwd=cwd, check=False)
    assert (done.returncode, done.stderr) == (0, b""), command
    return done.stdout


def fails(*command: str | Path) -> str:
    """What a program complains of."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode != 0, command
    return done.stderr


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- whole files


@pytest.mark.parametrize("name", [H264, RANDOM, "notes.txt", "empty"])
def test_stored_files_are_their_bytes_to_every_program(mount: Mount, tmp_path: Path, name: str) -> None:
    source, path, copy = mount.source / name, mount / name, tmp_path / "copy"
    data = source.read_bytes()
    assert run("cat", path) == data
    assert run("cmp", path, source) == b""
    assert run("sha256sum", path).split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert run("wc", "-c", path).split()[0] == str(len(data)).encode()
    assert run("head", "-c", "1001", path) == data[:1001]
    assert run("tail", "-c", "1001", path) == data[-1001:]
    assert run("tail", "-c", "+1002", path) == data[1001:]
    for options in ((), ("-a",), ("--sparse=always",), ("--reflink=auto",)):
        run("cp", *options, path, copy)
        assert copy.read_bytes() == data
        copy.chmod(0o644)


@pytest.mark.parametrize("name", [H264, RANDOM, CLIP, "games/fragmented@0.5s-2s.frag.mp4", FRAME])
@pytest.mark.parametrize("block", [1, 513, 4095, 65537, 1 << 20])
def test_dd_reads_in_any_block_size(mount: Mount, name: str, block: int) -> None:
    """From the middle, so that no block lies as the kernel's pages do."""
    path = mount / name
    whole, skip, count = path.read_bytes(), 3, 2000 if block == 1 else 40
    found = run("dd", f"if={path}", f"bs={block}", f"skip={skip}", f"count={count}", "status=none")
    assert found == whole[skip * block : (skip + count) * block]


@pytest.mark.parametrize("name", [CLIP, FRAME, "games/h264.mp4@/info.json", "games/h264@2s.mp4"])
def test_derived_files_are_the_same_bytes_to_every_program(mount: Mount, tmp_path: Path, name: str) -> None:
    path = mount / name
    data = run("cat", path)
    assert len(data) == path.stat().st_size > 0
    run("cp", "-a", path, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert (tmp_path / "copy").stat().st_mtime_ns == (mount.source / H264).stat().st_mtime_ns
    assert run("sha256sum", path).split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert run("tail", "-c", "100", path) == data[-100:]
    assert run("wc", "-c", path).split()[0] == str(len(data)).encode()
    assert run("stat", "-c", "%s %A %h", path) == f"{len(data)} -r--r--r-- 1\n".encode()


# ---------------------------------------------------------------- folders


def test_folders_list_what_is_stored_and_nothing_derived(mount: Mount) -> None:
    """`find`, `ls -R` and globs see the library alone, also after derived names were used.

    Beside it there is `search`, which ends: folders whose names are queries list none of them.
    """
    assert (mount / FRAME).stat().st_size > 0
    found = run("find", ".", "-printf", "%P %y %s\n", cwd=mount.path).decode().splitlines()
    listed = [line for line in found if not line.startswith("search")]
    searched = sorted(line.split(" d ")[0] for line in found if line not in listed)
    assert searched == ["search", *(f"search/{kind}" for kind in ("clip", "drop", "frame", "saved", "text"))]
    stored = run("find", ".", "-printf", "%P %y %s\n", cwd=mount.source).decode().splitlines()
    files = [line for line in stored if " f " in line]
    assert sorted(line for line in listed if " f " in line) == sorted(files)
    folders = [line.split(" d ")[0] for line in stored if " d " in line]
    assert sorted(line.split(" d ")[0] for line in listed if " d " in line) == sorted(folders)
    assert run("ls", "-R", "games", cwd=mount.path) == run("ls", "-R", "games", cwd=mount.source)
    assert glob.glob(str(mount / "games" / "*@*")) == []
    assert run("sh", "-c", "echo games/*.mp4", cwd=mount.path) == run(
        "sh", "-c", "echo games/*.mp4", cwd=mount.source
    )


def test_ls_shows_sizes_times_and_modes(mount: Mount) -> None:
    form = ("ls", "-l", "--time-style=full-iso")
    shown = [line.split(maxsplit=8) for line in run(*form, mount / "games").decode().splitlines()[1:]]
    stored = [line.split(maxsplit=8) for line in run(*form, mount.source / "games").decode().splitlines()[1:]]
    assert [(row[4], row[5], row[6], row[8]) for row in shown] == [
        (row[4], row[5], row[6], row[8]) for row in stored
    ]
    assert {row[0] for row in shown} == {"-r--r--r--"}
    assert run("ls", "-lR", mount / "games").count(b"\n") == run("ls", "-lR", mount.source / "games").count(
        b"\n"
    )
    assert run("stat", "-c", "%F %a %U", mount / "games").decode().split()[:2] == ["directory", "555"]


def test_whole_trees_are_copied_faithfully(mount: Mount, tmp_path: Path) -> None:
    """cp -a, tar and rsync of a mount have the files of the source: bytes, times, names."""
    wanted = content(mount.source)
    run("cp", "-a", mount.path, tmp_path / "copied")
    archive = tmp_path / "all.tar"
    run("tar", "-cf", archive, "-C", mount.path, ".")
    (tmp_path / "unpacked").mkdir()
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):  # Debian 12 has Python 3.11.2, which has not
            tar.extraction_filter = tarfile.data_filter
        tar.extractall(tmp_path / "unpacked")
    run("rsync", "-a", "--checksum", f"{mount.path}/", tmp_path / "synced")
    for name in ("copied", "unpacked", "synced"):
        assert content(tmp_path / name) == wanted, name
        # tar's ordinary format keeps whole seconds.
        assert int((tmp_path / name / H264).stat().st_mtime) == int((mount.source / H264).stat().st_mtime)
    again = run("rsync", "-ani", "--checksum", f"{mount.path}/", tmp_path / "synced").decode().splitlines()
    assert [line for line in again if line.startswith(">")] == []


def test_diff_finds_no_difference(mount: Mount) -> None:
    assert run("diff", "-r", "-x", "search", mount.source, mount.path) == b""


# ---------------------------------------------------------------- what does not exist


@pytest.mark.parametrize(
    "name",
    [
        *("gone.txt", "games/h264@99s.jpg", "games/h264@-1s.jpg", "games/h264@nan.jpg", "games/h264@1e9.jpg"),
        *("games/h264@3s-1s.mp4", "games/h264@1s-1s.mp4", "games/h264@1s.xyz", "games/gone@1s.jpg"),
        *("games/h264@1s.wav.jpg", "notes@1s.jpg", "games/h264@k99.jpg", "games/h264@f99999.mp4"),
    ],
)
def test_names_that_mean_nothing_do_not_exist(mount: Mount, name: str) -> None:
    assert subprocess.run(["test", "-e", mount / name], check=False).returncode == 1
    assert "No such file or directory" in fails("cat", mount / name)
    assert "No such file or directory" in fails("stat", mount / name)


def test_names_that_mean_something_exist(mount: Mount) -> None:
    for name in (H264, CLIP, FRAME, "games/h264.mp4@/", ".reelfs/status.json", f".raw/{H264}"):
        assert subprocess.run(["test", "-e", mount / name], check=False).returncode == 0
    assert "Not a directory" in fails("cat", mount / H264 / "inside")
    assert "Is a directory" in fails("cat", mount / "games")


# ---------------------------------------------------------------- system calls


def read_by_mmap(file: int, size: int) -> bytes:
    with mmap.mmap(file, size, prot=mmap.PROT_READ) as mapped:
        return mapped[:]


def read_by_pread(file: int, size: int) -> bytes:
    return b"".join(os.pread(file, 70_001, at) for at in range(0, size, 70_001))


def read_backwards(file: int, size: int) -> bytes:
    parts = [os.pread(file, 30_011, at) for at in range(0, size, 30_011)][::-1]
    return b"".join(reversed(parts))


def read_by_readv(file: int, size: int) -> bytes:
    first, second = bytearray(size // 3), bytearray(size - size // 3)
    assert os.preadv(file, [first, second], 0) == size
    return bytes(first + second)


def read_by_sendfile(file: int, size: int) -> bytes:
    with open(os.memfd_create("copy"), "w+b") as copy:
        at = 0
        while sent := os.sendfile(copy.fileno(), file, at, 1 << 20):
            at += sent
        copy.seek(0)
        return copy.read()


def read_from_the_end(file: int, size: int) -> bytes:
    assert os.lseek(file, 0, os.SEEK_END) == size
    assert os.lseek(file, -size, os.SEEK_END) == 0
    return b"".join(iter(lambda: os.read(file, 99_991), b""))


@pytest.mark.parametrize("name", [H264, CLIP, FRAME, "games/hevc@0.5s-1.5s.key.mp4"])
@pytest.mark.parametrize(
    "way",
    [
        *(read_by_mmap, read_by_pread, read_backwards, read_by_readv, read_by_sendfile, read_from_the_end),
    ],
)
def test_every_way_to_read_gives_the_same_bytes(
    mount: Mount, name: str, way: Callable[[int, int], bytes]
) -> None:
    path = mount / name
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        assert way(file.fileno(), size) == path.read_bytes()
        assert os.pread(file.fileno(), 10, size) == b""
        assert os.pread(file.fileno(), 10, size + 12_345) == b""


def test_scandir_tells_kinds_and_sizes(mount: Mount) -> None:
    with os.scandir(mount / "games") as entries:
        found = {e.name: (e.is_file(), e.stat().st_size, e.inode() == e.stat().st_ino) for e in entries}
    assert found == {p.name: (True, p.stat().st_size, True) for p in (mount.source / "games").iterdir()}


def test_attributes_tell_where_bytes_come_from(mount: Mount) -> None:
    """What is listed can be read, so that programs that copy attributes do not fail half way."""
    for name in (H264, CLIP, FRAME, "games/h264@2s.mp4"):
        path = mount / name
        found = {attribute: os.getxattr(path, attribute) for attribute in os.listxattr(path)}
        assert all(key.startswith("user.reelfs.") for key in found)
        assert H264.encode() in {found.get("user.reelfs.source"), found.get("user.reelfs.key")}
    assert os.getxattr(mount / CLIP, "user.reelfs.start_frame_index") == b"0"
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(mount / H264, "user.other")


# ---------------------------------------------------------------- writing


WRITES = [
    ("touch", "{mount}/games/h264.mp4"),
    ("touch", "{mount}/new"),
    ("rm", "-f", "{mount}/games/h264.mp4"),
    ("rm", "-rf", "{mount}/games"),
    ("mv", "{mount}/notes.txt", "{mount}/moved"),
    ("mv", "{other}", "{mount}/moved"),
    ("mv", "-f", "{mount}/notes.txt", "{other}"),
    ("cp", "{other}", "{mount}/copied"),
    ("cp", "{other}", "{mount}/notes.txt"),
    ("mkdir", "{mount}/folder"),
    ("rmdir", "{mount}/games"),
    ("sh", "-c", 'echo x > "$1"', "sh", "{mount}/new"),
    ("sh", "-c", 'echo x >> "$1"', "sh", "{mount}/notes.txt"),
    ("chmod", "600", "{mount}/notes.txt"),
    ("chown", "65534", "{mount}/notes.txt"),
    ("ln", "{mount}/notes.txt", "{mount}/hard"),
    ("ln", "-s", "notes.txt", "{mount}/soft"),
    ("truncate", "-s", "0", "{mount}/notes.txt"),
    ("mkfifo", "{mount}/pipe"),
    ("dd", "if=/dev/zero", "of={mount}/notes.txt", "count=1"),
    ("tar", "-cf", "{mount}/all.tar", "/etc/hostname"),
    ("sed", "-i", "s/a/b/", "{mount}/notes.txt"),
    ("touch", "{mount}/games/h264@1s.jpg"),
    ("rm", "-f", "{mount}/games/h264@1s.jpg"),
    ("sh", "-c", 'echo x > "$1"', "sh", "{mount}/.reelfs/status.json"),
    ("rm", "-f", "{mount}/.raw/notes.txt"),
]


@pytest.mark.parametrize("command", WRITES, ids=lambda command: " ".join(command)[:60])
def test_writing_is_refused_and_said(mount: Mount, tmp_path: Path, command: tuple[str, ...]) -> None:
    other = tmp_path / "other"
    other.write_text("other")
    complaint = fails(*(part.format(mount=mount.path, other=other) for part in command))
    assert "Read-only file system" in complaint
    assert sorted(content(mount.path)) == sorted(content(mount.source))
    assert (mount / "notes.txt").read_bytes() == (mount.source / "notes.txt").read_bytes()


def test_system_calls_that_write_say_erofs(mount: Mount) -> None:
    path, name = mount / "notes.txt", os.fsencode(mount / "new")
    calls: list[Callable[[], object]] = [
        lambda: os.setxattr(path, "user.reelfs.key", b"x"),
        lambda: os.removexattr(path, "user.reelfs.key"),
        lambda: os.utime(path),
        lambda: os.open(path, os.O_RDWR),
        lambda: os.open(path, os.O_WRONLY | os.O_TRUNC),
        lambda: os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        lambda: os.mknod(name, stat.S_IFREG | 0o600),
        lambda: os.rename(path, name),
        lambda: os.symlink("notes.txt", name),
        lambda: os.link(path, name),
        lambda: shutil.rmtree(mount / "a"),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EROFS, number
    assert not os.access(path, os.W_OK)
    assert os.access(path, os.R_OK)
