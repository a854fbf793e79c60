"""Commands of a mount that is written to: what waits, sending it, leaving, bringing back what was deleted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers import R2, r2_server
from vfs.mounts import mount_at, unmount

pytestmark = pytest.mark.fuse

Reelfs = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[R2]:
    with r2_server(tmp_path_factory.mktemp("r2")) as made:
        yield made


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    if mount_at(path) is not None:
        unmount(path, lazy=True)


@pytest.fixture
def reelfs(tmp_path: Path, server: R2) -> Reelfs:
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], **server.environ}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vfs.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=100, check=False)

    return run


def said(done: subprocess.CompletedProcess[str], status: int = 0) -> str:
    assert (done.returncode, done.stderr) == (status, ""), done
    return done.stdout


def keys(server: R2, bucket: str) -> dict[str, bytes]:
    client = server.client()
    listed = client.list_objects_v2(Bucket=bucket).get("Contents", ())
    found = {item["Key"]: client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read() for item in listed}
    client.close()
    return found


def test_what_waits_is_shown_sent_and_left(server: R2, reelfs: Reelfs, point: Path) -> None:
    server.fill("queue", {})
    said(reelfs("mount", "r2://queue", point, "--read-write", "-o", "write.delay=1h"))
    (point / "a.txt").write_bytes(b"hello")
    waiting = json.loads((point / ".reelfs/queue.json").read_bytes())
    assert [(one["path"], one["bytes"], one["attempts"]) for one in waiting] == [("a.txt", 5, 0)]
    assert "a.txt" in said(reelfs("queue", point))
    assert json.loads(said(reelfs("status", point, "--json")))["queue"]["bytes"] == 5
    assert keys(server, "queue") == {}
    assert said(reelfs("flush", point)) == "nothing is queued\n"
    assert keys(server, "queue") == {"a.txt": b"hello"}
    (point / "b.txt").write_bytes(b"later")
    assert "1 file(s) are not sent yet" in said(reelfs("umount", point, "--now"))
    assert set(keys(server, "queue")) == {"a.txt"}
    again = said(reelfs("mount", "r2://queue", point, "--read-write", "-o", "write.delay=1h"))
    assert again == "1 file(s) of an earlier mount are being sent\n"
    assert (point / "b.txt").read_bytes() == b"later"
    said(reelfs("umount", point))
    assert keys(server, "queue") == {"a.txt": b"hello", "b.txt": b"later"}


def test_what_cannot_be_sent_is_said_and_kept(server: R2, reelfs: Reelfs, point: Path) -> None:
    server.fill("down", {})
    options = "write.delay=0,deadline=2s,write.flush_timeout=1s"
    said(reelfs("mount", "r2://down", point, "--read-write", "-o", options))
    server.kill()
    try:
        (point / "a.txt").write_bytes(b"kept")
        done = reelfs("flush", point)
        assert done.returncode == 1
        assert "1 file(s) are still queued" in done.stderr
        assert (point / "a.txt").read_bytes() == b"kept"
        assert "no usable answer" in said(reelfs("queue", point))
        done = reelfs("umount", point)
        assert (done.returncode, "1 file(s) are not sent yet" in done.stdout) == (1, True), done
    finally:
        server.start()
    said(reelfs("mount", "r2://down", point, "--read-write"))
    said(reelfs("umount", point))
    assert keys(server, "down") == {"a.txt": b"kept"}


def test_what_was_deleted_can_be_had_back(server: R2, reelfs: Reelfs, point: Path) -> None:
    server.fill("trash", {"a/one.txt": b"1", "a/two.txt": b"2", "b.txt": b"3"})
    said(reelfs("mount", "r2://trash", point, "--read-write", "-o", "write.delay=0"))
    for path in ("a/one.txt", "a/two.txt", "b.txt"):
        (point / path).unlink()
    (point / "a").rmdir()
    said(reelfs("flush", point))
    there = [
        p.relative_to(point / ".reelfs/trash").parts[1:] for p in (point / ".reelfs/trash").rglob("*.txt")
    ]
    assert sorted("/".join(parts) for parts in there) == ["a/one.txt", "a/two.txt", "b.txt"]
    assert ".reelfs-trash" not in os.listdir(point)
    assert ".reelfs-trash" in os.listdir(point / ".raw")
    assert (point / ".reelfs-trash").is_dir()
    assert said(reelfs("undelete", point / "a")) == "a/one.txt\na/two.txt\n"
    assert (point / "a/two.txt").read_bytes() == b"2"
    assert "nothing of a" in reelfs("undelete", point / "a").stderr
    said(reelfs("umount", point))
    assert said(reelfs("undelete", "r2://trash", "b.txt")) == "b.txt\n"
    assert keys(server, "trash") == {"a/one.txt": b"1", "a/two.txt": b"2", "b.txt": b"3"}


def test_a_runaway_delete_is_stopped(server: R2, reelfs: Reelfs, point: Path) -> None:
    server.fill("runaway", {f"{number:02}.txt": b"x" for number in range(20)})
    options = "write.max_deletes_per_minute=5"
    said(reelfs("mount", "r2://runaway", point, "--read-write", "-o", options))
    done = subprocess.run(
        ["rm", "-r", *map(str, point.glob("*.txt"))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Operation not permitted" in done.stderr
    assert len(list(point.glob("*.txt"))) == 15
    said(reelfs("umount", point))


def test_conflicts_are_listed(server: R2, reelfs: Reelfs, point: Path) -> None:
    server.fill("told", {"a.txt": b"1"})
    said(reelfs("mount", "r2://told", point, "--read-write", "-o", "write.delay=1h"))
    (point / "a.txt").write_bytes(b"ours")
    server.fill("told", {"a.txt": b"theirs"})
    said(reelfs("flush", point))
    line = (point / ".reelfs/conflicts").read_text().rstrip("\n").split("\t")
    assert line[1] == "a.txt"
    assert line[2].startswith("a (conflict 20")
    assert (point / line[2]).read_bytes() == b"ours"
    until = time.monotonic() + 10
    while (point / "a.txt").read_bytes() != b"theirs":  # the kernel is told a moment later
        assert time.monotonic() < until
    said(reelfs("umount", point))


def test_in_a_folder_of_this_machine(reelfs: Reelfs, point: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "games").mkdir(parents=True)
    (source / "games/a.mp4").write_bytes(b"game")
    said(reelfs("mount", source, point, "--read-write", "-o", "write.delay=0,write.trash_ttl=0"))
    (point / "notes").mkdir()
    (point / "notes/a.txt").write_bytes(b"hello")
    os.symlink("a.txt", point / "notes/link")
    (point / "notes/a.txt").rename(point / "notes/b.txt")
    with pytest.raises(PermissionError):
        (point / "games/a.mp4").unlink()
    said(reelfs("umount", point))
    assert (source / "notes/b.txt").read_bytes() == b"hello"
    assert os.readlink(source / "notes/link") == "a.txt"
    assert sorted(p.name for p in source.iterdir()) == ["games", "notes"]
