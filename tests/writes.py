"""Mounts that can be written to, for tests: a real daemon over a real server or a folder, always ended.

with drive(tmp_path, server) as mount:
    (mount.path / "a.txt").write_text("hello")
    mount.unmount()
assert server.objects() == {"a.txt": b"hello"}
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.logs import troubles
from vfs.mounts import mount_at

READY_SECONDS = 30.0
END_SECONDS = 60.0


@dataclass
class WrittenMount:
    """A mount of `source` at `path`. folder: where its log and mountpoint are. keeps: where it keeps what it
    writes and caches, if not there.
    """

    folder: Path
    source: str
    environ: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    #: A machine that runs other tests beside this one is slow at times.
    expected: list[str] = field(default_factory=lambda: ["the event loop stood still"])
    process: subprocess.Popen[bytes] | None = None
    keeps: Path | None = None
    killed: bool = False

    @property
    def path(self) -> Path:
        """The mountpoint."""
        return self.folder / "mnt"

    @property
    def log(self) -> Path:
        """What the daemon writes."""
        return self.folder / "log"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def expect_log(self, *patterns: str) -> None:
        """Lines that belong to the test."""
        self.expected += patterns

    def start(self) -> None:
        """Mount; returns when it answers."""
        self.path.mkdir(exist_ok=True)
        keeps = self.keeps or self.folder
        options = [f"write.dir={keeps / 'writes'}", f"log_file={self.log}", *self.options]
        if "://" in self.source:
            options.append(f"cache_dir={keeps / 'cache'}")
        ready_read, ready_write = os.pipe()
        command = [sys.executable, "-m", "vfs.cli", "mount", self.source, str(self.path)]
        command += ["--read-write", "--foreground"]
        for option in options:
            command += ["-o", option]
        with (self.folder / "output").open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"HOME": str(self.folder), "PATH": os.environ["PATH"], **self.environ},
                pass_fds=(ready_write,),
            )
        os.close(ready_write)
        try:
            self._wait(ready_read)
        finally:
            os.close(ready_read)

    def _wait(self, gone: int) -> None:
        """Until the mount answers, or the process has ended (then the pipe says so)."""
        until = time.monotonic() + READY_SECONDS
        while mount_at(self.path) is None or not (self.path / ".reelfs").is_dir():
            if select.select([gone], [], [], 0.02)[0]:
                said = (self.folder / "output").read_text(errors="replace")
                raise AssertionError(f"the mount did not start: {said[-3000:]}\n{self._tail()}")
            assert time.monotonic() < until, self._tail()

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    def unmount(self) -> None:
        """As an operator does; the queue is sent, as far as it goes."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(END_SECONDS) == 0, self._tail()
        assert mount_at(self.path) is None
        self.process = None

    def kill(self) -> None:
        """As a crash: nothing is finished."""
        assert self.process is not None
        self.process.kill()
        self.died()

    def died(self) -> None:
        """It was killed, or soon will be."""
        assert self.process is not None
        assert self.process.wait(END_SECONDS) == -signal.SIGKILL, self._tail()
        self.process, self.killed = None, True
        if mount_at(self.path) is not None:  # else it was still starting
            subprocess.run(["fusermount3", "-u", "-z", str(self.path)], check=True)

    def finish(self) -> None:
        """Whatever happened: no process, no mount."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SECONDS)
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(END_SECONDS)
        if mount_at(self.path) is not None:
            subprocess.run(["fusermount3", "-u", "-z", str(self.path)], check=False)

    def check_log(self) -> None:
        """Nothing in it that nobody expects."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        trouble = troubles(text, killed=self.killed)
        assert [t for t in trouble if not any(re.search(e, t) for e in self.expected)] == []


@contextlib.contextmanager
def written(
    folder: Path, source: str, environ: Mapping[str, str] | None = None, *options: str
) -> Iterator[WrittenMount]:
    """`source` mounted below `folder`, for reading and writing; always ended, its log looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = WrittenMount(folder, source, environ or {}, options)
    try:
        mount.start()
        yield mount
        if mount.process is not None:
            mount.unmount()
    finally:
        mount.finish()
    mount.check_log()
