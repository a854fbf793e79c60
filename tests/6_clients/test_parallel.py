"""Sixteen readers of clips, frames and stored files at once: right bytes, `ls` answers, memory is bounded."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from client_mounts import VIDEOS, Mount, mounted

READERS = 16
#: The least there is: sixteen readers of several MiB each do not fit, so that the budget has work to do.
MEMORY = 16 << 20
BIG = 12 << 20
#: What the daemon may need beside its budget: replies on their way, tables being built, pictures whole.
IN_FLIGHT = 96 << 20
#: `ls -l` of a folder; a request that waits for a reader would take far longer.
LONGEST_LIST = 5.0
NAMES = [
    "games/h264.mp4",
    "games/h264@0.5s-4s.mp4",
    "games/hevc@0.3s-2.5s.mp4",
    "games/fragmented@0.3s-2.5s.frag.mp4",
    "games/vfr@0.3s-2.5s.key.mp4",
    "games/h264@2.2s.mp4",
    "games/h264@1.7s.npy",
    "games/hevc@1.7s.png",
    "games/turned@1.2s.jpg",
    "games/fragmented sidecar@0.9s.ppm",
    "games/h264.mp4@/info.json",
    "big.bin",
    ".raw/games/hevc.mp4",
    "games/moov at end@1s-2s.mp4",
    "games/opus@1s-2.2s.mp4",
    "games/ntsc@0.4s-1.9s.mp4",
]


@pytest.fixture
def busy_mount(tmp_path: Path, client_library: Path) -> Iterator[Mount]:
    """A mount of its own with little memory, and a file that is most of it."""
    library = shutil.copytree(client_library, tmp_path / "library")
    (library / "big.bin").write_bytes(os.urandom(BIG))
    with mounted(tmp_path, library, "--memory", str(MEMORY)) as made:
        yield made


def read(path: Path, block: int) -> str:
    """Hash of a file, read past the page cache in parts."""
    found, at = hashlib.md5(), 0
    with path.open("rb", buffering=0) as file:
        while data := os.pread(file.fileno(), block, at):
            at += len(data)
            found.update(data)
            os.posix_fadvise(file.fileno(), 0, at, os.POSIX_FADV_DONTNEED)
        assert at == os.fstat(file.fileno()).st_size, path
    return found.hexdigest()


def read_all(mount: Mount, number: int) -> dict[str, str]:
    """All files, each reader in an order and in parts of its own."""
    names = NAMES[number:] + NAMES[:number]
    return {name: read(mount / name, 30_011 * (number + 1)) for name in names}


def list_slowest(folder: Path, until: Callable[[], bool]) -> tuple[float, int]:
    """How long `ls -l` of a folder takes at worst while it is asked over and over, and how often it was."""
    slowest, times = 0.0, 0
    while not until() or not times:
        started = time.monotonic()
        done = subprocess.run(["ls", "-l", folder], capture_output=True, check=True)
        slowest, times = max(slowest, time.monotonic() - started), times + 1
        assert done.stdout.count(b".mp4\n") == len(VIDEOS)
    return slowest, times


def daemon_of(mount: Mount) -> Path:
    """The folder in /proc of the daemon: the process that writes the log of this mount."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "fd" / "1").readlink() == mount.log:
                return process
    raise AssertionError("the daemon is not found")


def resident(mount: Mount, field: str = "VmRSS") -> int:
    """Memory of the daemon in bytes, now or at most (VmHWM)."""
    lines = (daemon_of(mount) / "status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def stalls_over(mount: Mount, bound: str) -> int:
    """How often the event loop of the daemon did not turn for longer than a bound of the histogram."""
    counts = {}
    for line in (mount / ".reelfs" / "metrics").read_text().splitlines():
        if match := re.fullmatch(r'reelfs_loop_stall_seconds_bucket\{le="(.+)"\} (.+)', line):
            counts[match[1]] = int(float(match[2]))
    # Without a single stall there are no buckets.
    return counts["+Inf"] - counts[bound] if counts else 0


@pytest.mark.timeout(180)
def test_sixteen_readers_and_a_listing(
    mount: Mount, busy_mount: Mount, request: pytest.FixtureRequest
) -> None:
    """Every reader gets every byte right, `ls -l` answers all the while, memory stays within the budget."""
    wanted = {name: read(mount / name, 1 << 20) for name in NAMES if name != "big.bin"}
    wanted["big.bin"] = hashlib.md5((busy_mount.source / "big.bin").read_bytes()).hexdigest()
    before = resident(busy_mount)
    with ThreadPoolExecutor(READERS) as pool:
        readers = [pool.submit(read_all, busy_mount, number) for number in range(READERS)]
        slowest, times = list_slowest(busy_mount / "games", lambda: all(r.done() for r in readers))
    for reader in readers:
        assert reader.result() == wanted
    status, grown = busy_mount.status(), resident(busy_mount, "VmHWM") - before
    told = (
        f"16 readers: slowest of {times} `ls -l` {slowest:.3f} s; stalls of the loop over 0.1 s: "
        f"{stalls_over(busy_mount, '0.1')}, over 0.5 s: {stalls_over(busy_mount, '0.5')}; "
        f"memory at most {grown >> 20} MiB more than at first"
    )
    request.node.user_properties.append(("told", told))
    assert slowest < LONGEST_LIST
    assert status["gauges"]["cache_bytes"]["memory"] <= MEMORY
    assert grown < MEMORY + IN_FLIGHT
    assert status["gauges"]["open_files"] <= 1  # status.json itself
    # `ls -l` asks every file for attributes of SELinux and ACLs.
    assert set(status["counters"]["errors"]) <= {"ENODATA"}


def test_many_open_the_same_frame_and_one_is_made(mount: Mount) -> None:
    """Readers of one frame that nobody read before wait for one decoding, and get the same bytes."""
    before = sum(mount.status()["counters"]["worker_jobs"].values())
    path = mount / "games" / "h264@3.21s.png"
    with ThreadPoolExecutor(READERS) as pool:
        found = set(pool.map(lambda _: path.read_bytes(), range(READERS)))
    assert len(found) == 1
    # status.json is a second old at most.
    deadline = time.monotonic() + 10
    while (jobs := sum(mount.status()["counters"]["worker_jobs"].values())) == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert jobs == before + 1
