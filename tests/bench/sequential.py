"""Reading 540 MB in order: cold at 40 ms against `rclone mount` and a bare client, hot against tmpfs."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import trio

from tests.bench import mounted
from tests.bench.game import BIG, fragmented
from tests.bench.mounted import Mounted
from tests.bench.result import Row, at_least, at_most, figure, middle
from tests.bench.stage import BUCKET, DELAY, Stage, stage, timed
from vfs.storage.base import Store
from vfs.storage.open import open_store

MIB = 1 << 20
RANGE = 8 * MIB
#: Requests at once of the bare client: more gain nothing at this round trip.
AT_ONCE = 8
ROUNDS = 3


def sequential() -> list[Row]:
    """Medians of a few rounds, each with every reader in turn."""
    path = fragmented(BIG)
    found: dict[str, list[tuple[float, float]]] = {}
    hot: list[float] = []
    with stage({"games/game.mp4": path}, delay=DELAY) as place:
        for _ in range(ROUNDS):
            _cold(place, path.stat().st_size, found, hot)
    memory_file = _memory(path)
    speed = {name: middle([s for s, _ in runs]) for name, runs in found.items()}
    cpu = {name: middle([c for _, c in runs]) for name, runs in found.items()}
    ours, theirs, bare = speed["reelfs"], speed["rclone mount"], speed["bare client"]
    return [
        at_least("cold, of rclone mount", ours / theirs, 1.5),
        at_most("CPU, of rclone mount", cpu["reelfs"] / cpu["rclone mount"], 0.5, "x"),
        at_least("cold, of the bare client", ours / bare, 0.9),
        at_least("hot, of tmpfs", middle(hot) / memory_file, 0.9),
        *(figure(f"{name}, cold", value, "MB/s") for name, value in speed.items()),
        *(figure(f"{name}, CPU", value, "s") for name, value in cpu.items()),
        figure("reelfs, hot", middle(hot), "MB/s"),
        figure("tmpfs", memory_file, "MB/s"),
    ]


def _cold(place: Stage, size: int, found: dict[str, list[tuple[float, float]]], hot: list[float]) -> None:
    """One round. found: by reader, (MB/s, seconds of CPU); hot: MB/s."""
    source = f"s3://{BUCKET}/games"
    speed, cpu = _bare(place, source, size)
    found.setdefault("bare client", []).append((speed, cpu))
    with mounted.reelfs(source, place.root, place.environ) as mount:
        found.setdefault("reelfs", []).append(_read(mount, size))
        hot.append(_read(mount, size)[0])
    with mounted.reelfs(source, place.root, place.environ, "--cache-dir", "none") as mount:
        found.setdefault("reelfs without its disk cache", []).append(_read(mount, size))
    with mounted.rclone(f"{BUCKET}/games", place.root, place.environ) as mount:
        found.setdefault("rclone mount", []).append(_read(mount, size))
    with mounted.rclone(f"{BUCKET}/games", place.root, place.environ, "--vfs-cache-mode", "full") as mount:
        found.setdefault("rclone mount --vfs-cache-mode full", []).append(_read(mount, size))


def _read(mount: Mounted, size: int) -> tuple[float, float]:
    """MB/s of a read of the whole game, and the CPU it took the mount's process."""
    before = mount.cpu()
    count, seconds = timed(mount / "game.mp4")
    assert count == size
    return size / seconds / 1e6, mount.cpu() - before


def _bare(place: Stage, source: str, size: int) -> tuple[float, float]:
    """MB/s and CPU of our own client reading ranges side by side, no file system anywhere."""
    store = open_store(source, environ={**os.environ, **place.environ})
    assert store is not None
    began, cpu = time.perf_counter(), time.process_time()
    trio.run(_ranges, store, size)
    return size / (time.perf_counter() - began) / 1e6, time.process_time() - cpu


async def _ranges(store: Store, size: int) -> None:
    stored = (await store.head("game.mp4")).object
    slots = trio.Semaphore(AT_ONCE)
    done = 0

    async def one(offset: int) -> None:
        nonlocal done
        body = await store.read(stored, offset, min(RANGE, size - offset))
        done += len(body)
        slots.release()

    async with trio.open_nursery() as nursery:
        for offset in range(0, size, RANGE):
            await slots.acquire()
            nursery.start_soon(one, offset)
    await store.aclose()
    assert done == size


def _memory(path: Path) -> float:
    """MB/s of the same read from tmpfs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        copy = Path(shutil.copy(path, folder))
        rounds = [timed(copy) for _ in range(ROUNDS)]
    return middle([size / seconds / 1e6 for size, seconds in rounds])
