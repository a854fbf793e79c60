"""`ls -lR` of 10,000 keys in 100 folders: requests counted, time against `rclone mount`."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.bench import mounted
from tests.bench.game import many_keys
from tests.bench.result import Row, at_least, at_most, figure, middle
from tests.bench.stage import BUCKET, DELAY, Stage, stage
from tests.faults.rules import Counts

ROUNDS = 3


def listing() -> list[Row]:
    """`ls -lR` of 10,000 keys in 100 folders, cold and warm, 40 ms round trip; medians of 3 rounds."""
    cold, warm, theirs = [], [], []
    with stage(delay=DELAY) as place:
        keys = many_keys(place.root / "served" / BUCKET)
        _let_the_server_read(place, keys)
        for _ in range(ROUNDS):
            with mounted.reelfs(f"s3://{BUCKET}/library", place.root, place.environ) as mount:
                place.proxy.reset()
                cold.append(_list(mount.path, keys))
                counts = place.proxy.counts()
                place.proxy.reset()
                warm.append(_list(mount.path, keys))
                after = place.proxy.counts()
            options = ("--use-server-modtime",)
            with mounted.rclone(f"{BUCKET}/library", place.root, place.environ, *options) as mount:
                place.proxy.reset()
                theirs.append(_list(mount.path, keys))
                peer = place.proxy.counts()
    return [
        at_most("requests cold", counts.total, 110, exact=True),
        at_most("GETs and HEADs cold", _objects(counts), 0, exact=True),
        at_most("requests warm", after.total, 0, exact=True),
        at_least("faster than rclone mount --use-server-modtime", middle(theirs) / middle(cold), 1),
        figure("reelfs cold", middle(cold), "s"),
        figure("reelfs warm", middle(warm), "s"),
        figure("rclone mount", middle(theirs), "s"),
        figure("rclone mount requests", peer.total),
    ]


def _objects(counts: Counts) -> int:
    return counts.requests.get("get", 0) + counts.requests.get("head", 0)


def _let_the_server_read(place: Stage, keys: int) -> None:
    """It computes the etag of every object the first time it is listed."""
    client = place.server.client()
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        assert sum(page["KeyCount"] for page in pages) == keys
    finally:
        client.close()


def _list(path: Path, keys: int) -> float:
    """Seconds of `ls -lR`, which must show every key."""
    began = time.perf_counter()
    done = subprocess.run(["ls", "-lR", str(path)], capture_output=True, check=True)
    seconds = time.perf_counter() - began
    assert done.stdout.count(b"clip ") == keys
    return seconds
