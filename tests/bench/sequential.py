"""Reading 540 MB in order: cold at 40 ms against `rclone mount` and a bare client, hot against tmpfs."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import bare, mounted
from tests.bench.game import BIG, fragmented
from tests.bench.mounted import Mounted
from tests.bench.result import Row, at_least, at_most, figure, middle
from tests.bench.stage import BUCKET, DELAY, STANDING, Stage, stage, timed

ROUNDS = 3

#: Bytes a second of a line of 1 Gbit/s, where the line is what everybody waits for.
GIGABIT = 125e6
Mount = Callable[..., AbstractContextManager[Mounted]]
#: Readers by name: whose mount, and its options. Like is compared with like: both keep nothing on disk, or
#: both keep all.
MOUNTS: Mapping[str, tuple[Mount, str, Sequence[str]]] = {
    "reelfs": (mounted.reelfs, f"s3://{BUCKET}/games", ("--cache-dir", "none")),
    "rclone mount": (mounted.rclone, f"{BUCKET}/games", ()),
    "reelfs, disk cache": (mounted.reelfs, f"s3://{BUCKET}/games", ()),
    "rclone mount, disk cache": (mounted.rclone, f"{BUCKET}/games", ("--vfs-cache-mode", "full")),
}


@dataclass
class Runs:
    """Of one reader: MB/s and seconds of CPU of its process, round by round."""

    speeds: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)

    @property
    def speed(self) -> float:
        """The median."""
        return middle(self.speeds)

    @property
    def cpu(self) -> float:
        """The median."""
        return middle(self.cpus)

    def add(self, speed: float, cpu: float) -> None:
        """One more round."""
        self.speeds.append(speed)
        self.cpus.append(cpu)


def sequential() -> list[Row]:
    """Reading 545 MB in order, 40 ms round trip; medians of 3 rounds, each with every reader in turn.

    As they come, reelfs has a disk cache and rclone mount has none. Server, proxy, reader and mount share the
    CPU. The bare clients have no file system and hand their bytes to nobody; the fastest of them counts.
    Where the CPU is the limit, a mount cannot come up to it: each byte is copied to the kernel and from there
    to the reader besides (0.14 s and 0.13 s of CPU for the game; receiving it takes 0.15 s).
    """
    path = fragmented(BIG)
    size, hot = path.stat().st_size, Runs()
    with stage({"games/game.mp4": path}, delay=DELAY) as place:
        found = {name: Runs() for name in MOUNTS}
        clients = {name: Runs() for name in bare.CLIENTS}
        for _ in range(ROUNDS):
            for name in clients:
                clients[name].add(*bare.measured(place, name, size))
            for name in MOUNTS:
                found[name].add(*_mounted(place, name, size, hot if name == "reelfs" else None))
        place.proxy.shape(delay=DELAY, bandwidth=GIGABIT)
        line = _mounted(place, "reelfs", size, None)[0]
        bare_line = max(bare.measured(place, name, size)[0] for name in clients)
    memory_file = _memory(path)
    ours, theirs = found["reelfs"], found["rclone mount"]
    ours_disk, theirs_disk = found["reelfs, disk cache"], found["rclone mount, disk cache"]
    fastest = max(clients, key=lambda name: clients[name].speed)
    return [
        at_least("cold, of rclone mount (both as they come)", ours_disk.speed / theirs.speed, 1.5),
        at_most("CPU, of rclone mount (both as they come)", ours_disk.cpu / theirs.cpu, 0.5, "x"),
        at_least("cold, of rclone mount (neither with a disk cache)", ours.speed / theirs.speed, 1.5),
        at_most("CPU, of rclone mount (neither with a disk cache)", ours.cpu / theirs.cpu, 0.5, "x"),
        figure("cold, of rclone mount (both with a disk cache)", ours_disk.speed / theirs_disk.speed, "x"),
        figure("CPU, of rclone mount (both with a disk cache)", ours_disk.cpu / theirs_disk.cpu, "x"),
        at_least("cold, of the fastest bare client, on a line of 1 Gbit/s", line / bare_line, 0.9),
        at_least(
            f"cold, of the fastest bare client ({fastest}), no limit but the CPU",
            ours.speed / clients[fastest].speed,
            0.9,
        ),
        at_least("hot, of tmpfs", hot.speed / memory_file, 0.9),
        *(figure(f"bare: {name}", runs.speed, "MB/s") for name, runs in clients.items()),
        *(figure(f"bare: {name}, CPU", runs.cpu, "s") for name, runs in clients.items()),
        *(figure(f"{name}, cold", runs.speed, "MB/s") for name, runs in found.items()),
        *(figure(f"{name}, CPU", runs.cpu, "s") for name, runs in found.items()),
        figure("reelfs, hot", hot.speed, "MB/s"),
        figure("tmpfs", memory_file, "MB/s"),
    ]


def _mounted(place: Stage, name: str, size: int, hot: Runs | None) -> tuple[float, float]:
    """MB/s and CPU of a cold read on a fresh mount. hot: gets those of later reads."""
    kind, source, options = MOUNTS[name]
    with kind(source, place.root, place.environ, *options) as mount:
        time.sleep(STANDING)
        cold = _read(mount, size)
        if hot is not None:
            _read(mount, size)  # here the kernel still moves pages to the list of those used more than once
            for _ in range(ROUNDS):
                hot.add(*_read(mount, size))
    return cold


def _read(mount: Mounted, size: int) -> tuple[float, float]:
    """MB/s of a read of the whole game, and the CPU it took the mount's process."""
    before = mount.cpu()
    count, seconds = timed(mount / "game.mp4")
    assert count == size
    return size / seconds / 1e6, mount.cpu() - before


def _memory(path: Path) -> float:
    """MB/s of the same read from tmpfs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        copy = Path(shutil.copy(path, folder))
        rounds = [timed(copy) for _ in range(ROUNDS)]
    return middle([size / seconds / 1e6 for size, seconds in rounds])
