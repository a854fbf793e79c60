"""A mount as a service: a real notify socket, reload, watchdog, dumps; it ends when all is sent."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import ACCESS_KEY, SECRET_KEY, moto_server
from vfs.mounts import mount_at, unmount

pytestmark = pytest.mark.fuse


class Service:
    """`reelfs mount --foreground --config FILE` as systemd runs it."""

    def __init__(self, folder: Path, config: str, environ: dict[str, str]) -> None:
        self.point = folder / "mnt"
        self.config = folder / "video.toml"
        self.stderr = folder / "journal"
        self.point.mkdir()
        self.config.write_text(f'mountpoint = "{self.point}"\n{config}')
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(folder / "notify"))
        self.notify.settimeout(30)
        with self.stderr.open("wb") as journal:
            status = os.fstat(journal.fileno())
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vfs.cli", "mount", "--foreground", "--config", str(self.config)],
                stderr=journal,
                env={
                    "HOME": str(folder),
                    "PATH": os.environ["PATH"],
                    "RUNTIME_DIRECTORY": str(folder / "run"),
                    "NOTIFY_SOCKET": str(folder / "notify"),
                    "WATCHDOG_USEC": "400000",
                    "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}",
                    **environ,
                },
            )

    def hears(self, wanted: str) -> str:
        """The next message that has a line which starts so."""
        while True:
            told = self.notify.recv(65536).decode()
            if any(line.startswith(wanted) for line in told.splitlines()):
                return told

    def logged(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.stderr.read_text().splitlines()]

    def until_logged(self, text: str) -> dict[str, str]:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            for line in self.logged():
                if text in line["message"]:
                    return line
            time.sleep(0.02)
        raise AssertionError(self.stderr.read_text())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.notify.close()
        if mount_at(self.point) is not None:
            unmount(self.point, lazy=True)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A mount of a bucket that is written to, with its keys in a file."""
    with moto_server() as server:
        server.fill("videos", {"a.txt": b"stored\n"})
        keys = tmp_path / "video.env"
        keys.write_text(f"R2_ACCESS_KEY_ID={ACCESS_KEY}\nR2_SECRET_ACCESS_KEY='{SECRET_KEY}'\n")
        keys.chmod(0o600)
        config = (
            f'source = "r2://videos"\ncredentials = "{keys}"\nread_write = true\ndir_ttl = "50s"\n'
            '[write]\ndelay = "1h"\n'
        )
        made = Service(tmp_path, config, {"R2_ENDPOINT": server.url})
        try:
            yield made
        finally:
            made.end()


def test_a_life_under_a_service_manager(service: Service, tmp_path: Path) -> None:
    assert service.hears("READY=1") == "READY=1"
    assert (service.point / "a.txt").read_bytes() == b"stored\n"
    beat = service.hears("WATCHDOG=1")
    assert "STATUS=online, " in beat
    began = time.monotonic()
    service.hears("WATCHDOG=1")
    assert time.monotonic() - began < 5

    # Other settings and other keys, while it is mounted.
    service.config.write_text(service.config.read_text().replace("50s", "40s") + "staging = 1000000000\n")
    keys = tmp_path / "video.env"
    keys.write_text("R2_ACCESS_KEY_ID=anotherone\nR2_SECRET_ACCESS_KEY=anothersecret\n")
    service.process.send_signal(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in service.hears("RELOADING=1")
    service.hears("READY=1")
    assert "dir_ttl changed" in service.until_logged("read again")["message"]
    assert "write.staging" in service.until_logged("change with the next mount")["message"]
    settings = (service.point / ".reelfs" / "config.toml").read_text()
    assert "dir_ttl = 40.0" in settings
    url = os.getxattr(service.point / "a.txt", "user.reelfs.presigned_url").decode()
    assert "X-Amz-Credential=anotherone" in url

    # What cannot be read changes nothing.
    service.config.write_text("dir_ttl = nonsense\n")
    service.process.send_signal(signal.SIGHUP)
    service.hears("READY=1")
    failed = service.until_logged("nothing was changed")
    assert failed["level"] == "error"
    assert str(service.config) in failed["message"]
    assert (service.point / "a.txt").read_bytes() == b"stored\n"

    service.process.send_signal(signal.SIGUSR1)
    dump = service.until_logged("SIGUSR1")["message"]
    assert "_obey_signals" in dump
    assert "Uploader.run" in dump
    assert "vfs/daemon.py" in dump
    assert "thread MainThread" in dump

    (service.point / "notes.txt").write_bytes(b"kick off\n")
    service.process.send_signal(signal.SIGTERM)
    service.hears("STOPPING=1")
    assert service.process.wait(30) == 0
    assert os.listdir(service.point) == []
    lines = service.logged()
    assert {"time", "level", "logger", "message"} <= set(lines[0])
    assert not any("anothersecret" in json.dumps(line) for line in lines)
    assert not any("wait in the journal" in line["message"] for line in lines)  # it was sent


def test_reloading_without_a_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "a.txt").write_bytes(b"stored\n")
    made = Service(tmp_path, f'source = "{tmp_path}/library"\n', {"NOTIFY_SOCKET": ""})
    try:
        made.until_logged(": mounted")
        made.process.send_signal(signal.SIGHUP)
        assert "no setting changed" in made.until_logged("read again")["message"]
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(20) == 0
    finally:
        made.end()
