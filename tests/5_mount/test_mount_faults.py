"""What goes wrong costs what it concerns, never the mount."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faulty_mounts import SLACK, eventually

MountIt = Callable[..., Any]


def raised(call: Callable[..., object], *args: object) -> int:
    """The errno of a call that must fail."""
    with pytest.raises(OSError) as failure:
        call(*args)
    assert failure.value.errno is not None
    return failure.value.errno


@pytest.mark.parametrize(
    ("name", "log"),
    [
        ("raises", ["lookup .*raises failed", "RuntimeError: a fault of ours", "Traceback"]),
        ("exits", ["lookup .*exits failed", "SystemExit", "Traceback"]),
        ("grouped", ["lookup .*grouped: one"]),
    ],
)
def test_an_exception_in_a_handler_is_eio_and_the_mount_lives(
    mounted: MountIt, name: str, log: list[str]
) -> None:
    mount = mounted()
    mount.expect_log(*log)
    for _ in range(3):
        assert raised(os.stat, mount / name) == errno.EIO
    assert (mount / "hello.txt").read_bytes() == b"hello\n"
    assert mount.known()["status"]["counters"]["errors"]["EIO"] == 3
    assert any("lookup" in line for line in mount.lines())


@pytest.mark.parametrize(
    ("name", "number", "log"),
    [
        ("short.bin", errno.EIO, ["read short.bin: 5 bytes at"]),
        ("gone.bin", errno.ESTALE, []),
        ("crash.bin", errno.EIO, ["read crash.bin failed", "RuntimeError", "Traceback"]),
        ("failing.txt", errno.EIO, ["failing.txt: not a video"]),
    ],
)
def test_a_read_that_fails_says_so(mounted: MountIt, name: str, number: int, log: list[str]) -> None:
    """Never a short file: an errno, that file alone, and the reason in the log."""
    mount = mounted()
    mount.expect_log(*log)
    assert raised((mount / name).read_bytes) == number
    assert (mount / "hello.txt").read_bytes() == b"hello\n"


def test_while_the_store_hangs_the_rest_answers(mounted: MountIt) -> None:
    """A1: what is cached answers; reads that hang can be killed; then they come back to life."""
    mount = mounted()
    os.listdir(mount / "folder")
    readers = [subprocess.Popen(["cat", mount / "hanging.bin"], stdout=subprocess.DEVNULL) for _ in range(20)]
    try:
        eventually(lambda: mount.known()["waiting"] >= 1)
        started = time.monotonic()
        assert len(os.listdir(mount / "folder")) == 3
        assert (mount / "hello.txt").read_bytes() == b"hello\n"
        assert time.monotonic() - started < SLACK
        for reader in readers[:10]:
            reader.send_signal(signal.SIGINT)
        for reader in readers[:10]:
            assert reader.wait(5) == -signal.SIGINT
        (mount.control / "gate").touch()
        for reader in readers[10:]:
            assert reader.wait(20) == 0
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()


@pytest.mark.parametrize(
    "command",
    [["stat", "hanging-name"], ["ls", "hanging"], ["cat", "hanging.bin"], ["head", "-c1", "hanging.bin"]],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_who_waits_for_a_hanging_store_can_be_killed(
    mounted: MountIt, command: list[str], number: signal.Signals
) -> None:
    """Ctrl-C works, though pyfuse3 has no interrupts: the caller's pending signal is noticed."""
    mount = mounted()
    process = subprocess.Popen(
        [*command[:-1], mount / command[-1]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: mount.known()["waiting"] >= 2)  # and who asks
        process.send_signal(number)
        assert process.wait(5) == -number
        if command[0] in ("stat", "ls"):
            eventually(lambda: mount.known()["waiting"] == 1)
        # What the kernel reads ahead for a killed reader goes on until it is answered.
        (mount.control / "gate").touch()
        eventually(lambda: mount.known()["waiting"] == 1)
    finally:
        process.kill()
        process.wait()


def test_what_hangs_for_ever_ends_at_the_deadline(mounted: MountIt) -> None:
    """A1: every operation ends; the file whose reading hung reads well afterwards."""
    mount = mounted(deadline=0.4)
    mount.expect_log("lookup .*hanging-name: took longer", "read hanging.bin: took longer")
    assert raised(os.stat, mount / "hanging-name") == errno.ETIMEDOUT
    assert raised((mount / "hanging.bin").read_bytes) in (errno.ETIMEDOUT, errno.EIO)
    (mount.control / "gate").touch()
    assert len((mount / "hanging.bin").read_bytes()) == 24 << 20


def test_a_killed_daemon_leaves_a_dead_mount_never_an_empty_folder(mounted: MountIt) -> None:
    """A5: "Transport endpoint is not connected"."""
    mount = mounted()
    descriptor = os.open(mount / "big.bin", os.O_RDONLY)
    mount.kill()
    assert raised(os.pread, descriptor, 10, 20 << 20) == errno.ENOTCONN
    assert raised(os.close, descriptor) == errno.ENOTCONN
    assert raised(os.listdir, mount.path) == errno.ENOTCONN
    subprocess.run(["fusermount3", "-u", mount.path], check=True)
    assert os.listdir(mount.path) == []


def test_a_fault_of_the_daemon_leaves_a_dead_mount_too(mounted: MountIt) -> None:
    """An exception that ends the daemon must not look like an unmount."""
    mount = mounted()
    mount.expect_log("the daemon crashed", "Traceback", "RuntimeError", r"\| ")
    (mount.control / "crash").touch()
    assert mount.process.wait(10) == 2
    assert raised(os.listdir, mount.path) == errno.ENOTCONN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_unmounts(mounted: MountIt, number: signal.Signals) -> None:
    mount = mounted()
    descriptor = os.open(mount / "hello.txt", os.O_RDONLY)
    mount.process.send_signal(number)
    assert mount.process.wait(10) == 0
    assert raised(os.close, descriptor) == errno.ENOTCONN
    assert os.listdir(mount.path) == []


def test_told_to_end_while_the_store_hangs_it_unmounts(mounted: MountIt) -> None:
    mount = mounted()
    with subprocess.Popen(["cat", mount / "hanging.bin"], stderr=subprocess.DEVNULL) as reader:
        eventually(lambda: mount.known()["waiting"] >= 2)
        mount.process.send_signal(signal.SIGTERM)
        assert mount.process.wait(10) == 0
        assert reader.wait(10) == 1
    assert os.listdir(mount.path) == []


def test_a_hangup_is_survived(mounted: MountIt) -> None:
    mount = mounted()
    mount.process.send_signal(signal.SIGHUP)
    eventually(lambda: any("SIGHUP" in line for line in mount.lines()))
    assert (mount / "hello.txt").read_bytes() == b"hello\n"


def test_unmounting_ends_the_daemon(mounted: MountIt) -> None:
    mount = mounted()
    (mount / "big.bin").read_bytes()
    mount.unmount()
    assert os.listdir(mount.path) == []


def test_a_busy_mount_stays(mounted: MountIt) -> None:
    mount = mounted()
    with open(mount / "hello.txt", "rb") as file:
        done = subprocess.run(["fusermount3", "-u", mount.path], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "busy" in done.stderr.lower()
        assert file.read() == b"hello\n"
    assert Path(mount.path, "hello.txt").exists()
