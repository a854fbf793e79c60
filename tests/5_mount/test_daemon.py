"""Starting and ending the daemon: what is refused and how it is said."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vfs import daemon, logs, mounting
from vfs.config import Settings
from vfs.errors import ConfigError, ReelfsError
from vfs.mounts import mount_at, unmount

MountIt = Callable[..., Any]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A source with one file, and a mountpoint."""
    source, mountpoint = tmp_path / "source", tmp_path / "mnt"
    source.mkdir()
    mountpoint.mkdir()
    (source / "a.txt").write_bytes(b"stored\n")
    return source, mountpoint


def settings_of(source: Path | str, mountpoint: Path, **more: Any) -> Settings:
    return Settings.load({"source": str(source), "mountpoint": str(mountpoint), **more}, environ={})


# -- what is refused before mounting ----------------------------------------------------------------------


def test_a_mountpoint_that_can_be_used_passes(folders: tuple[Path, Path]) -> None:
    assert mounting.check(settings_of(*folders)) == folders[1]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda m: m.rmdir(), "mkdir -p"),
        (lambda m: (m.rmdir(), m.write_text("x")), "not a folder"),
        (lambda m: (m / "x").touch(), "not empty"),
    ],
    ids=["missing", "a file", "not empty"],
)
def test_a_mountpoint_that_cannot_be_used_is_named_with_the_mend(
    folders: tuple[Path, Path], spoil: Callable[[Path], object], said: str
) -> None:
    source, mountpoint = folders
    spoil(mountpoint)
    with pytest.raises(ConfigError, match=said) as refused:
        mounting.check(settings_of(source, mountpoint))
    assert str(mountpoint) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_nonempty_is_allowed_where_it_is_asked_for(folders: tuple[Path, Path]) -> None:
    (folders[1] / "x").touch()
    mounting.check(settings_of(*folders, nonempty=True))


@pytest.mark.parametrize("where", ["same", "inside", "around"])
def test_a_folder_is_not_mounted_on_itself(tmp_path: Path, where: str) -> None:
    source = tmp_path / "outer" / "source"
    source.mkdir(parents=True)
    mountpoint = {"same": source, "inside": source / "mnt", "around": tmp_path / "outer"}[where]
    mountpoint.mkdir(exist_ok=True)
    with pytest.raises(ConfigError, match="contain one another"):
        mounting.check(settings_of(source, mountpoint, nonempty=True))


@pytest.mark.parametrize(("more", "said"), [({"source": ""}, "a source and")])
def test_settings_that_cannot_be_served(folders: tuple[Path, Path], more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        mounting.check(settings_of(folders[0], folders[1]).model_copy(update=more))


def test_the_options_of_the_mount(tmp_path: Path) -> None:
    plain = mounting.options(settings_of("s3://bucket/a,b é", tmp_path))
    assert {"default_permissions", "ro", "subtype=reelfs", "fsname=s3://bucket/a%2Cb%20%C3%A9"} <= plain
    assert not any(option.startswith(("max_read", "auto_unmount", "allow_other")) for option in plain)
    assert "rw" in mounting.options(settings_of("s3://bucket", tmp_path, read_write=True))
    assert "allow_other" in mounting.options(settings_of("s3://bucket", tmp_path, allow_other=True))


def test_tuning_writes_what_it_may_and_passes_over_the_rest(tmp_path: Path) -> None:
    bdi = tmp_path / "class/bdi/0:77"
    bdi.mkdir(parents=True)
    mounting.tune("0:77", sys=tmp_path)
    mounting.tune(None, sys=tmp_path)
    assert (bdi / "read_ahead_kb").read_text() == "1024\n"


# -- detached ---------------------------------------------------------------------------------------------


@pytest.fixture
def detached(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Path]]:
    """`detached()` mounts the folder with `daemon.start`; unmounted and its process ended afterwards."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    source, mountpoint = folders

    def start(source: Path | str = source, **more: Any) -> Path:
        daemon.start(settings_of(source, mountpoint, **more).to_dict())
        return mountpoint

    yield start
    if mount_at(mountpoint) is not None:
        unmount(mountpoint, lazy=True)
    end_children()


def end_children() -> list[int]:
    """Wait for the daemons this process started; their exit statuses."""
    children = [
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]
    # multiprocessing keeps a helper process of its own for as long as this one lives.
    daemons = [
        pid for pid in children if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in daemons]


def test_start_returns_when_the_mount_answers(detached: Callable[..., Path], tmp_path: Path) -> None:
    mountpoint = detached()
    assert (mountpoint / "a.txt").read_bytes() == b"stored\n"
    with pytest.raises(ConfigError, match="mounted there already"):
        detached()
    unmount(mountpoint)
    assert end_children() == [0]
    log = next((tmp_path / "state" / "reelfs").iterdir())
    assert log.stat().st_mode & 0o777 == 0o600
    assert "mounted" in log.read_text()
    assert detached() == mountpoint


def test_the_daemon_is_in_a_session_of_its_own_and_shows_no_settings(detached: Callable[..., Path]) -> None:
    detached()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in children}
    pid = next(pid for pid, words in commands.items() if b"vfs.daemon" in words)
    assert os.getsid(int(pid)) == int(pid)
    assert commands[pid][1:] == [b"-P", b"-m", b"vfs.daemon", b""]
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_a_source_that_cannot_be_opened_is_one_line_and_no_mount(
    detached: Callable[..., Path], folders: tuple[Path, Path]
) -> None:
    with pytest.raises(ReelfsError) as refused:
        detached("nonsense://bucket")
    assert "nonsense" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert mount_at(folders[1]) is None
    assert os.listdir(folders[1]) == []


def test_a_daemon_that_dies_at_once_is_not_taken_for_a_mount(
    detached: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho no such thing >&2\nexit 7\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ReelfsError, match=r"status 7.*see .*log"):
        detached()
    log = next((tmp_path / "state" / "reelfs").iterdir())
    assert log.read_text() == "no such thing\n"


def test_a_log_file_that_cannot_be_written_is_named(detached: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"log_file: /proc/nothing/x\.log"):
        detached(log_file="/proc/nothing/x.log")


def test_a_big_log_is_set_aside(detached: Callable[..., Path], tmp_path: Path) -> None:
    log = tmp_path / "own.log"
    with log.open("wb") as file:
        file.truncate(logs.LOG_BYTES + 1)
    detached(log_file=str(log))
    assert (tmp_path / "own.log.1").stat().st_size == logs.LOG_BYTES + 1
    assert log.stat().st_size < 10_000


# -- in the foreground ------------------------------------------------------------------------------------

FOREGROUND = """
import json, sys
from vfs import daemon
from vfs.errors import ReelfsError
try:
    daemon.start(json.load(sys.stdin), foreground=True)
except ReelfsError as error:
    sys.exit(str(error))
"""


def test_in_the_foreground_it_tells_systemd_and_ends_with_the_mount(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    source, mountpoint = folders
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(20)
        process = subprocess.Popen(
            [sys.executable, "-c", FOREGROUND],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            process.stdin.write(json.dumps(settings_of(source, mountpoint).to_dict()).encode())
            process.stdin.close()
            assert notify.recv(100) == b"READY=1"
            assert (mountpoint / "a.txt").read_bytes() == b"stored\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
            said = process.stderr.read().decode().partition(": mounted\n")[2]
            assert "SIGINT: unmounting" in said
            assert "Traceback" not in said
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
            if mount_at(mountpoint) is not None:
                unmount(mountpoint, lazy=True)
    assert os.listdir(mountpoint) == []


def test_what_libfuse_says_is_the_reason(folders: tuple[Path, Path]) -> None:
    """An unprivileged user asks for allow_other where /etc/fuse.conf forbids it, or has no device at all."""
    code = (
        "import os, sys, pyfuse3\nfrom vfs import daemon\nlines = []\n"
        "with daemon._stderr_in(lines):\n    os.write(2, b'fusermount3: why\\n\\n')\n"
        "print(lines)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['fusermount3: why']\n"
    assert done.stderr == ""
