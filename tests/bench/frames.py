"""Frames: requests and bytes counted at the store, and the time against `ffmpeg -ss` on `rclone mount`."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tests.bench import mounted
from tests.bench.game import BIG, fragmented, need, progressive
from tests.bench.result import Row, at_least, at_most, figure, middle
from tests.bench.stage import BANDWIDTH, BUCKET, DELAY, STANDING, Stage, stage

#: A key frame itself, the last frame of a group of pictures, and frames in between.
TIMES = (84.0, 61.9, 30.7, 121.0)
SOURCE = f"s3://{BUCKET}/games"
KIB = 1024


def fragmented_files(*sidecars: str) -> dict[str, Path]:
    """The big game in fragments under its key, with some of its sidecars."""
    path = fragmented(BIG)
    return {f"games/game.mp4{end}": Path(f"{path}{end}") for end in ("", *sidecars)}


def frame_fragmented() -> list[Row]:
    """Fragmented, with a sidecar: GETs cold, with a warm index, again; bytes against the least there is."""
    cold, warm, again, ratios = [], [], [], []
    with stage(fragmented_files(".index.sqlite")) as place:
        for first, second in zip(TIMES, TIMES[1:] + TIMES[:1], strict=True):
            with mounted.reelfs(SOURCE, place.root, place.environ) as mount:
                count, size = _read(place, mount / f"game@{first}s.jpg")
                cold.append(count)
                ratios.append(size / need(fragmented(BIG), first).total)
                warm.append(_read(place, mount / f"game@{second}s.jpg")[0])
                again.append(_read(place, mount / f"game@{second}s.jpg")[0])
    with (
        stage(fragmented_files(".index.sqlite", ".index.json")) as place,
        mounted.reelfs(SOURCE, place.root, place.environ) as mount,
    ):
        both = _read(place, mount / f"game@{TIMES[0]}s.jpg")[0]
    return [
        at_most("GETs cold", max(cold), 3, exact=True),
        at_most("GETs with the index warm", max(warm), 1, exact=True),
        at_most("GETs of a second read", max(again), 0, exact=True),
        at_most("bytes cold / (init + key frame..target), worst", max(ratios), 1.5, "x", exact=True),
        figure("the same, median", middle(ratios), "x"),
        figure("GETs cold where both kinds of sidecar are stored", both),
    ]


def frame_progressive() -> list[Row]:
    """Progressive, moov at the end, nothing beside it."""
    path, cold, over, warm = progressive(BIG), [], [], []
    with stage({"games/game.mp4": path}) as place:
        for number, first in enumerate(TIMES):
            with mounted.reelfs(SOURCE, place.root, place.environ) as mount:
                count, size = _read(place, mount / f"game@{first}s.jpg")
                cold.append(count)
                over.append((size - need(path, first).total) / KIB)
                warm.append(_read(place, mount / f"game@{TIMES[number - 1]}s.jpg")[0])
    return [
        at_most("GETs cold", max(cold), 4, exact=True),
        at_most("bytes cold beyond moov + key frame..target, worst", max(over), 128, "KiB", exact=True),
        at_most("GETs with the index warm", max(warm), 1, exact=True),
    ]


def frame_vs_rclone() -> list[Row]:
    """One frame out of the fragmented game at 40 ms and 200 Mbit/s, in one run."""
    at = 121.0
    ours: list[float] = []
    with stage(fragmented_files(".index.sqlite"), delay=DELAY, bandwidth=BANDWIDTH) as place:
        for _ in range(3):
            with mounted.reelfs(SOURCE, place.root, place.environ) as mount:
                time.sleep(STANDING)
                place.proxy.reset()
                began = time.perf_counter()
                assert (mount / f"game@{at}s.jpg").read_bytes()
                ours.append(time.perf_counter() - began)
                our_gets, our_bytes = place.gets()
                began = time.perf_counter()
                assert (mount / f"game@{at - 50}s.jpg").read_bytes()
                warm = time.perf_counter() - began
        plain = _peer(place, at, {})
        full = _peer(place, at, {"--vfs-cache-mode": "full"})
    return [
        at_least("faster than ffmpeg -ss on rclone mount", plain[0] / middle(ours), 25),
        at_least("fewer bytes", plain[2] / our_bytes, 40, exact=True),
        figure("reelfs cold", middle(ours) * 1e3, "ms"),
        figure("reelfs, another frame", warm * 1e3, "ms"),
        figure("reelfs GETs", our_gets),
        figure("reelfs bytes", our_bytes / 1e6, "MB"),
        figure("rclone mount", plain[0] * 1e3, "ms"),
        figure("rclone mount GETs", plain[1]),
        figure("rclone mount bytes", plain[2] / 1e6, "MB"),
        figure("rclone mount --vfs-cache-mode full", full[0] * 1e3, "ms"),
        figure("rclone mount --vfs-cache-mode full, bytes", full[2] / 1e6, "MB"),
    ]


def _peer(place: Stage, at: float, options: Mapping[str, str]) -> tuple[float, int, int]:
    """Seconds, GETs and bytes of `ffmpeg -ss` on a fresh `rclone mount`."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise RuntimeError("ffmpeg is needed to compare with")
    flat = [text for pair in options.items() for text in pair]
    picture = place.root / "peer.jpg"
    with mounted.rclone(f"{BUCKET}/games", place.root, place.environ, *flat) as mount:
        time.sleep(STANDING)
        place.proxy.reset()
        began = time.perf_counter()
        command = [ffmpeg, "-v", "error", "-y", "-ss", str(at), "-i", str(mount / "game.mp4")]
        subprocess.run([*command, "-frames:v", "1", str(picture)], check=True)
        seconds = time.perf_counter() - began
        count, size = place.gets()
    assert picture.stat().st_size > 0
    return seconds, count, size


def _read(place: Stage, path: Path) -> tuple[int, int]:
    """GETs and bytes that reading a file whole takes."""
    place.proxy.reset()
    assert path.read_bytes()
    return place.gets()
