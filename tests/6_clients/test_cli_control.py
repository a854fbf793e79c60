"""The commands that talk to a mount, as processes, on a bucket of a real S3 server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faulty_mounts import started
from tests.servers import ACCESS_KEY, SECRET_KEY, Server, moto_server
from vfs import mounts
from vfs.controlclient import Client, the_mount
from vfs.errors import ConfigError, NotFound

pytestmark = pytest.mark.fuse

MEDIA = bytes(range(256)) * 8192


@dataclass
class Desk:
    """A mount, and who types commands about it."""

    home: Path
    point: Path
    server: Server
    environ: dict[str, str]

    def reelfs(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vfs.cli", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=self.environ, timeout=60, check=False
        )

    def json(self, *arguments: str | Path) -> Any:
        done = self.reelfs(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def requests(self) -> dict[str, int]:
        told: dict[str, int] = self.json("status", self.point)["counters"]["store_requests"]
        return told


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    home = tmp_path_factory.mktemp("home")
    point, runtime = home / "my mount", home / "run"
    point.mkdir()
    runtime.mkdir(mode=0o700)
    with moto_server() as server:
        server.fill("videos", {"games/a.bin": MEDIA, "games/b.bin": MEDIA, "top.txt": b"top"})
        environ = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "XDG_RUNTIME_DIR": str(runtime),
            "R2_ENDPOINT": server.url,
            "R2_ACCESS_KEY_ID": ACCESS_KEY,
            "R2_SECRET_ACCESS_KEY": SECRET_KEY,
        }
        made = Desk(home, point, server, environ)
        done = made.reelfs("mount", "r2://videos", point, "-o", "attr_ttl=60,negative_ttl=60")
        assert done.returncode == 0, done.stderr
        try:
            yield made
        finally:
            if mounts.mount_at(point) is not None:
                mounts.unmount(point, lazy=True)


def test_the_socket_is_its_owners_alone(desk: Desk) -> None:
    path = Path(os.fsdecode(os.getxattr(desk.point, "user.reelfs.control")))
    assert path.parent == desk.home / "run" / "reelfs"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert "user.reelfs.control" not in os.listxattr(desk.point)
    with pytest.raises(OSError, match="No data"):
        os.getxattr(desk.point / "top.txt", "user.reelfs.control")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_turned_away(desk: Desk) -> None:
    path = os.fsdecode(os.getxattr(desk.point, "user.reelfs.control"))
    # The permissions of the folder would stop them already: root goes there first.
    code = (
        "import os, socket, sys\n"
        "os.chdir(os.path.dirname(sys.argv[1]))\n"
        "made = socket.socket(socket.AF_UNIX)\n"
        "made.connect(os.path.basename(sys.argv[1]))\n"
        'made.sendall(b\'{"command": "status"}\\n\')\n'
        "print(len(made.recv(100)))\n"
    )
    as_root = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(as_root.stdout) > 0
    setuid = code.replace("made.connect", "os.setegid(65534); os.seteuid(65534); made.connect")
    other = subprocess.run([sys.executable, "-c", setuid, path], capture_output=True, text=True, check=False)
    assert "PermissionError" in other.stderr
    Path(path).chmod(0o666)
    Path(path).parent.chmod(0o711)
    try:
        let = subprocess.run(
            [sys.executable, "-c", setuid, path], capture_output=True, text=True, check=False
        )
    finally:
        Path(path).chmod(0o600)
        Path(path).parent.chmod(0o700)
    assert let.stdout.strip() in ("0", ""), let.stderr
    assert "PermissionError" not in let.stderr, let.stderr
    log = next((desk.home / ".local" / "state" / "reelfs").glob("*.log")).read_text()
    assert "of user 65534 was turned away" in log


def test_status_as_text_and_as_json(desk: Desk) -> None:
    told = desk.json("status", desk.point)
    assert (told["mountpoint"], told["source"]) == (str(desk.point), "r2://videos")
    assert told["queue"]["files"] == 0
    lines = desk.reelfs("status", desk.point / "games").stdout.splitlines()
    rows = dict(line.split(maxsplit=1) for line in lines)
    assert rows["mount"] == str(desk.point)
    assert rows["state"] == "read-only, online"
    assert rows["queue"] == "nothing is queued"
    assert f"pid {told['pid']}" in rows["up"]
    assert "list/A" in rows["store"]


def test_refresh_shows_what_came_and_went_without_unmounting(desk: Desk) -> None:
    games = desk.point / "games"
    assert sorted(os.listdir(games)) == ["a.bin", "b.bin"]
    assert (games / "a.bin").stat().st_size == len(MEDIA)
    with pytest.raises(FileNotFoundError):
        (games / "new.bin").stat()
    desk.server.fill("videos", {"games/new.bin": b"new", "games/b.bin": b"other"})
    assert not (games / "new.bin").exists()
    assert desk.reelfs("refresh", games).returncode == 0
    _until(lambda: (games / "new.bin").exists())
    assert (games / "new.bin").read_bytes() == b"new"
    assert (games / "b.bin").read_bytes() == b"other"
    desk.server.fill("videos", {"games/b.bin": MEDIA})
    assert desk.reelfs("refresh", games / "b.bin").returncode == 0
    _until(lambda: (games / "b.bin").stat().st_size == len(MEDIA))


@pytest.mark.timeout(40)
def test_watch_tells_what_the_mount_finds_by_looking(desk: Desk) -> None:
    """No event, no refresh: the version is another at the next open, after `attr_ttl`."""
    point = desk.home / "looking"
    point.mkdir()
    options = "attr_ttl=0,dir_ttl=0,negative_ttl=0,cache_dir=none"
    done = desk.reelfs("mount", "r2://videos/games", point, "-o", options)
    assert done.returncode == 0, done.stderr
    try:
        os.listdir(point)
        command = [sys.executable, "-m", "vfs.cli", "watch", str(point)]
        with started(command) as watch:
            assert watch.stdout is not None
            assert json.loads(watch.stdout.readline())["action"] == "watching"
            desk.server.fill("videos", {"games/looked.bin": b"one"})
            os.listdir(point)
            told = json.loads(watch.stdout.readline())
            assert (told["action"], told["path"], told["size"]) == ("stored", "looked.bin", 3)
            assert told["source"] == "look"
            desk.server.fill("videos", {"games/looked.bin": b"longer"})
            assert (point / "looked.bin").read_bytes() == b"longer"
            assert json.loads(watch.stdout.readline())["size"] == 6
    finally:
        mounts.unmount(point, lazy=True)


def _until(holds: Any) -> None:
    """The kernel drops names on its own time, a moment later."""
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_warm_then_reading_asks_nothing_and_forget_drops_it(desk: Desk) -> None:
    desk.reelfs("forget", desk.point)
    told = desk.json("warm", desk.point / "games" / "a.bin")
    assert (told["bytes"], told["files"]) == (len(MEDIA), 1)
    before = desk.requests()
    assert (desk.point / "games" / "a.bin").read_bytes() == MEDIA
    assert desk.requests().get("get/B") == before["get/B"]
    dropped = desk.json("forget", desk.point / "games" / "a.bin")
    assert dropped["bytes"] >= len(MEDIA)
    _until(lambda: (desk.point / "games" / "a.bin").stat())
    again = desk.json("warm", desk.point / "games")
    assert again["bytes"] >= 2 * len(MEDIA)
    assert desk.requests()["get/B"] > before["get/B"]


def on_a_terminal(desk: Desk, *words: str | Path) -> str:
    """What a command draws on a screen of 100 columns."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "vfs.cli", *map(str, words)]
    environ = desk.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    with started(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ) as process:
        os.close(theirs)
        drawn = bytearray()
        with contextlib.suppress(OSError):  # EIO: nobody has the other side open any more
            while data := os.read(ours, 65536):
                drawn += data
        os.close(ours)
        assert process.wait(10) == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.decode())


@pytest.mark.timeout(60)
def test_a_bar_and_a_live_view_on_a_terminal(desk: Desk) -> None:
    assert desk.reelfs("forget", desk.point / "games").returncode == 0
    drawn = on_a_terminal(desk, "warm", desk.point / "games" / "a.bin")
    assert re.search(r"games/a\.bin ━+ 2\.1/2\.1 MB", drawn), drawn
    assert "1 file(s)" in drawn
    drawn = on_a_terminal(desk, "top", desk.point, "--count", "2", "--interval", "0.1")
    assert drawn.count("online") >= 2, drawn  # drawn again
    assert re.search(r"\bGETs?\b", drawn), drawn


def test_nothing_is_queued_on_a_mount_that_is_read(desk: Desk) -> None:
    for command in ("flush", "queue"):
        done = desk.reelfs(command, desk.point)
        assert (done.returncode, done.stdout) == (0, "nothing is queued\n")


def test_log_level_is_changed_while_it_runs(desk: Desk) -> None:
    assert desk.reelfs("log-level", "--mount", desk.point).stdout == "info\n"
    assert desk.reelfs("log-level", "debug", "--mount", desk.point).stdout == "debug\n"
    assert desk.reelfs("log-level", "info", "--mount", desk.point).stdout == "info\n"
    done = desk.reelfs("log-level", "loud", "--mount", desk.point)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "'loud' is not a log level" in done.stderr


def test_errors_are_those_of_the_daemon(desk: Desk) -> None:
    mounted, _ = the_mount(str(desk.point))
    with Client(mounted) as client:
        with pytest.raises(NotFound, match=r"none\.bin"):
            client.ask("warm", {"path": "games/none.bin"})
        with pytest.raises(ConfigError, match="no such command"):
            client.ask("explode")
        with pytest.raises(ConfigError, match="'path' must be text"):
            client.ask("refresh", {"path": 3})
        assert client.ask("queue")["files"] == 0
    assert "is not on a reelfs mount" in desk.reelfs("status", desk.home).stderr


def test_what_is_no_request_does_no_harm(desk: Desk) -> None:
    path = os.fsdecode(os.getxattr(desk.point, "user.reelfs.control"))
    folder = os.open(os.path.dirname(path), os.O_PATH)
    try:
        for nonsense in (b"\n", b"{}\n", b"[1]\n", b"\xff\xfe\n", b'{"command": "warm"', b"x" * (2 << 20)):
            with socket.socket(socket.AF_UNIX) as made:
                made.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
                made.settimeout(5)
                try:
                    made.sendall(nonsense)
                    if nonsense.endswith(b"\n"):
                        assert b'"error"' in made.recv(65536)
                except (BrokenPipeError, ConnectionResetError):
                    assert len(nonsense) > 1 << 20
    finally:
        os.close(folder)
    assert desk.json("queue", desk.point)["files"] == 0


def test_the_socket_goes_with_the_mount(desk: Desk) -> None:
    path = Path(os.fsdecode(os.getxattr(desk.point, "user.reelfs.control")))
    assert desk.reelfs("umount", desk.point).returncode == 0
    _until(lambda: not path.exists())
    done = desk.reelfs("status", desk.point)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_what_is_written_is_queued_until_it_is_flushed(desk: Desk) -> None:
    point = desk.home / "drive"
    point.mkdir()
    done = desk.reelfs("mount", "r2://videos", point, "--read-write", "-o", "write.delay=1h")
    assert done.returncode == 0, done.stderr
    try:
        (point / "notes.txt").write_bytes(b"kick off\n")
        told = desk.json("queue", point)
        assert (told["files"], told["bytes"], told["entries"][0]["path"]) == (1, 9, "notes.txt")
        line = desk.reelfs("queue", point).stdout
        assert line.split()[:4] == ["waits", "file", "9", "B"]
        assert line.split()[-1] == "notes.txt"
        assert desk.reelfs("flush", point / "games").stdout == "nothing is queued\n"
        assert desk.json("queue", point)["files"] == 1
        assert "queue 1 file(s), 9 B" in " ".join(desk.reelfs("status", point).stdout.split())
        assert desk.reelfs("flush", point).stdout == "nothing is queued\n"
        assert desk.reelfs("cat", "r2://videos", "notes.txt").stdout == "kick off\n"
    finally:
        mounts.unmount(point, lazy=True)
