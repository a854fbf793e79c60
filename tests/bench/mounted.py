"""The mounts that are measured: reelfs and `rclone mount`, as processes that always end with their block."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.servers import rclone_program
from vfs.mounts import mount_at

START_SECONDS = 30.0
END_SECONDS = 15.0
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mount and the process behind it. started: seconds from the command to the first answer."""

    path: Path
    pid: int
    started: float

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def cpu(self) -> float:
        """Seconds of user and system time of the process so far, and of its children that ended."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICK

    def memory(self) -> int:
        """Bytes resident, of the process alone."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE

    def peak(self) -> int:
        """Most bytes that were ever resident."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise ValueError("the kernel does not tell VmHWM")


@contextlib.contextmanager
def reelfs(
    source: str, folder: Path, environ: Mapping[str, str], *options: str, log: str = "reelfs.log"
) -> Iterator[Mounted]:
    """`reelfs mount` in the foreground, its disk cache, mountpoint and log in `folder`."""
    point = _fresh(folder / "reelfs mnt")
    cache = folder / "reelfs-cache"
    command = [sys.executable, "-m", "vfs.cli", "mount", source, str(point), "--foreground"]
    command += ["--cache-dir", str(cache), "--log-file", str(folder / log), *options]
    try:
        with _running(command, point, environ, folder / "reelfs.out") as mounted:
            yield mounted
    finally:
        shutil.rmtree(cache, ignore_errors=True)


@contextlib.contextmanager
def rclone(
    bucket: str, folder: Path, environ: Mapping[str, str], *options: str, read_only: bool = True
) -> Iterator[Mounted]:
    """`rclone mount` of a bucket (and prefix), the same way."""
    point = _fresh(folder / "rclone mnt")
    cache = folder / "rclone-cache"
    remote = f":s3,provider=Other,env_auth=true,endpoint='{environ['AWS_ENDPOINT_URL']}':{bucket}"
    command = [rclone_program(), "mount", remote, str(point), "--config", os.devnull]
    command += [*(["--read-only"] if read_only else []), "--cache-dir", str(cache), *options]
    try:
        with _running(command, point, environ, folder / "rclone.out") as mounted:
            yield mounted
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _fresh(point: Path) -> Path:
    point.mkdir(parents=True, exist_ok=True)
    return point


@contextlib.contextmanager
def _running(
    command: Sequence[str], point: Path, environ: Mapping[str, str], output: Path
) -> Iterator[Mounted]:
    began = time.monotonic()
    with output.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, **environ}
        )
    try:
        while mount_at(point) is None:
            if process.poll() is not None or time.monotonic() - began > START_SECONDS:
                raise RuntimeError(f"{command[:4]} did not mount: {output.read_text()[-2000:]}")
            time.sleep(0.005)
        os.stat(point)
        yield Mounted(point, process.pid, time.monotonic() - began)
    finally:
        _end(process, point)


def _end(process: subprocess.Popen[bytes], point: Path) -> None:
    """Ask, then insist; no process and no mount is left."""
    if mount_at(point) is not None:
        subprocess.run(["fusermount3", "-u", str(point)], capture_output=True, check=False)
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
            break
    if mount_at(point) is not None:
        subprocess.run(["fusermount3", "-u", "-z", str(point)], check=True)
