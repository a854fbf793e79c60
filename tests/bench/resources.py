"""The daemon itself: how soon it answers, what it holds when idle, and under 16 readers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

from tests.bench import mounted
from tests.bench.frames import SOURCE, fragmented_files
from tests.bench.game import BIG, fragmented
from tests.bench.mounted import Mounted
from tests.bench.result import Row, at_most, figure, middle
from tests.bench.stage import DELAY, STANDING, Stage, stage
from vfs.mounts import mount_at, unmount

MIB = 1 << 20
READERS = 16
#: Bytes each of the readers reads, from places of its own.
EACH = 24 * MIB
#: The memory budget under which they read: the default.
BUDGET = 256 * MIB
#: In the environment of the daemon of this run, to find it again.
MARK = "BENCH_MARK"
STARTS = 5


def daemon() -> list[Row]:
    """Starts of the detached daemon, its idle memory, and its memory while everybody reads."""
    with stage(fragmented_files(".index.sqlite")) as place:
        starts, idle = zip(*(_started(place) for _ in range(STARTS)), strict=True)
    with stage(fragmented_files(".index.sqlite"), delay=DELAY) as place:
        options = ("--memory", f"{BUDGET // MIB}MiB")
        with mounted.reelfs(SOURCE, place.root, place.environ, *options) as mount:
            time.sleep(STANDING)
            before = mount.memory()
            held = _under_readers(mount)
            peak = mount.peak()
    return [
        at_most("the mount answers after the command, median", middle(starts), 1.5, "s"),
        figure("the slowest of the starts", max(starts), "s"),
        at_most("idle, resident (decoding workers apart)", middle(idle) / 1e6, 120, "MB"),
        at_most(f"held by the caches under {READERS} readers, of the budget", held / BUDGET, 1, "x"),
        at_most("resident at its peak more than idle, of the budget", (peak - before) / BUDGET, 1.25, "x"),
        figure("the budget", BUDGET / MIB, "MiB"),
    ]


def _started(place: Stage) -> tuple[float, int]:
    """Seconds from the command to an answer of the mount, and bytes resident of the daemon a moment later."""
    point = place.root / "mnt"
    point.mkdir(exist_ok=True)
    mark = uuid.uuid4().hex
    environ = {**os.environ, **place.environ, "XDG_STATE_HOME": str(place.root / "state"), MARK: mark}
    command = [sys.executable, "-m", "vfs.cli", "mount", SOURCE, str(point)]
    try:
        began = time.perf_counter()
        subprocess.run([*command, "--cache-dir", str(place.root / "cache")], env=environ, check=True)
        os.listdir(point)
        seconds = time.perf_counter() - began
        time.sleep(0.5)  # idle, not starting
        return seconds, Mounted(point, _marked(mark), seconds).memory()
    finally:
        if mount_at(point) is not None:
            unmount(point)


def _marked(mark: str) -> int:
    """The daemon that has this mark in its environment."""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if b"vfs.daemon" in command and wanted in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:
            continue
    raise RuntimeError("the daemon is gone")


def _under_readers(mount: Mounted) -> int:
    """The most bytes the caches held while all readers were at it."""
    size = fragmented(BIG).stat().st_size
    failures: list[BaseException] = []

    def read(number: int) -> None:
        try:
            with (mount / "game.mp4").open("rb", buffering=0) as file:
                file.seek(number * size // READERS)
                for _ in range(EACH // MIB):
                    file.read(MIB)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
    for thread in threads:
        thread.start()
    held = 0
    while any(thread.is_alive() for thread in threads):
        held = max(held, _cached(mount))
        time.sleep(0.1)
    if failures:
        raise failures[0]
    return held


def _cached(mount: Mounted) -> int:
    """What `.reelfs/metrics` says about the memory of the caches."""
    text = (mount / ".reelfs/metrics").read_text()
    found = re.search(r'^reelfs_cache_bytes\{tier="memory"\} (\S+)$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError("no such metric: cache_bytes")
    return int(float(found[1]))
