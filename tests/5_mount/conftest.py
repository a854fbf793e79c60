"""Mounts for tests: a real daemon process on a real kernel mount, always ended, its log looked at."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.logs import troubles
from vfs.config import Settings
from vfs.mounts import mount_at

HERE = Path(__file__).parent
READY_SECONDS = 20.0


@dataclass
class Mount:
    """A daemon and its mount. expected: patterns of log lines that belong to the test."""

    path: Path
    process: subprocess.Popen[bytes]
    log: Path
    control: Path
    settings: dict[str, Any]
    expected: list[str] = field(default_factory=list)
    killed: bool = False

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def expect_log(self, *patterns: str) -> None:
        self.expected += patterns

    def known(self) -> dict[str, Any]:
        """What the fake daemon tells of itself now."""
        told: dict[str, Any] = json.loads(os.getxattr(self.path, "user.reelfs.known"))
        return told

    def lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()

    def unmount(self) -> None:
        until = time.monotonic() + 5
        while True:
            done = subprocess.run(["fusermount3", "-u", str(self.path)], capture_output=True, text=True)
            if done.returncode == 0 or mount_at(self.path) is None:
                break
            assert "busy" in done.stderr.lower(), done.stderr
            assert time.monotonic() < until, done.stderr
            select.select([], [], [], 0.05)
        assert self.process.wait(10) == 0

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.killed = True
        self.process.send_signal(number)
        self.process.wait(10)

    def finish(self) -> None:
        """Whatever happened: no process, no mount; then the log must hold nothing unexpected."""
        (self.control / "gate").touch()
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        if mount_at(self.path) is not None:
            subprocess.run(["fusermount3", "-u", "-z", str(self.path)], check=True)
        unexpected = [
            line
            for line in troubles("\n".join(self.lines()), killed=self.killed)
            if not any(re.search(pattern, line) for pattern in self.expected)
        ]
        assert unexpected == []
        missing = [p for p in self.expected if not any(re.search(p, line) for line in self.lines())]
        assert missing == []


MountIt = Callable[..., Mount]


@contextlib.contextmanager
def mounting_in(folder: Path) -> Iterator[MountIt]:
    """A function that mounts; everything it mounted has ended when the block is left."""
    mounts: list[Mount] = []

    def mount(
        objects: dict[str, bytes] | None = None, *, environ: dict[str, str] | None = None, **settings: Any
    ) -> Mount:
        number = len(mounts)
        control, point = folder / f"control{number}", folder / f"mnt {number}"
        source = folder / f"source{number}"
        for made_folder in (control, point, source):
            made_folder.mkdir()
        (control / "version").write_text("1")
        for key, data in (objects or {}).items():
            (source / key).parent.mkdir(parents=True, exist_ok=True)
            (source / key).write_bytes(data)
        flags = {"source": str(source), "mountpoint": str(point), **settings}
        made = launch(
            flags, control, folder / f"log{number}", real=objects is not None, environ=environ or {}
        )
        mounts.append(made)
        wait_ready(made)
        return made

    try:
        yield mount
    finally:
        failures = []
        for made in mounts:
            try:
                made.finish()
            except AssertionError as error:
                failures.append(error)
            made.process.stdout.close()  # type: ignore[union-attr]
        for failure in failures:
            raise failure


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[MountIt]:
    """`mounted()` mounts the fake source; `mounted(objects={key: bytes})` a folder with these through the
    whole real stack. Further keywords are settings; `environ` is added to the daemon's environment.
    """
    with mounting_in(tmp_path) as mount:
        yield mount


@pytest.fixture(scope="module")
def mounting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountIt]:
    """As `mounted`, for mounts that the tests of a module share."""
    with mounting_in(tmp_path_factory.mktemp("mounting")) as mount:
        yield mount


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount of the fake source for the tests of a module that neither count nor change anything."""
    with mounting_in(tmp_path_factory.mktemp("common")) as mount:
        yield mount()


def launch(flags: dict[str, Any], control: Path, log: Path, *, real: bool, environ: dict[str, str]) -> Mount:
    """Start a daemon as `vfs.daemon` starts itself: settings on stdin, descriptor 3 for its answer."""
    settings = Settings.load(flags, environ={}).to_dict()
    command = ["-m", "vfs.daemon"] if real else [str(HERE / "fake_source.py")]
    # The answer comes through stdout, which the shell makes descriptor 3.
    shell = ["sh", "-c", 'exec "$@" 3>&1 1>&2', "sh", sys.executable, "-P", *command]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            shell,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "FAKE_CONTROL": str(control), "PYTHONDONTWRITEBYTECODE": "1", **environ},
            start_new_session=True,
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps(settings).encode())
    process.stdin.close()
    return Mount(Path(flags["mountpoint"]), process, log, control, settings)


def wait_ready(mount: Mount) -> None:
    stdout = mount.process.stdout
    assert stdout is not None
    readable, _, _ = select.select([stdout], [], [], READY_SECONDS)
    line = stdout.readline() if readable else b""
    assert line, f"the daemon did not answer: {mount.log.read_text()}"
    assert json.loads(line) == {"ready": True}, mount.log.read_text()
