"""CPU of one small ranged GET: signed once over a kept connection, against boto3's get_object."""

from __future__ import annotations

import os
import time
from pathlib import Path

import trio

from tests.bench.game import SMALL, fragmented
from tests.bench.result import Row, at_most, figure, middle
from tests.bench.stage import BUCKET, Stage, stage
from vfs.storage.open import open_store

KIB = 1024
LENGTH = 64 * KIB
COUNT = 300
ROUNDS = 5


def store_get() -> list[Row]:
    """CPU of one small ranged GET after the other; medians of 5 rounds, the two clients in turn."""
    ours, theirs = [], []
    path = fragmented(SMALL)
    with stage({"game.mp4": path}) as place:
        for _ in range(ROUNDS):
            ours.append(_ours(place, path))
            theirs.append(_theirs(place, path))
    mine, boto = middle(ours), middle(theirs)
    return [
        at_most("CPU of a GET of 64 KiB, of boto3's", mine / boto, 0.5, "x"),
        figure("signed once", mine * 1e3, "ms"),
        figure("boto3 get_object", boto * 1e3, "ms"),
    ]


def _ours(place: Stage, path: Path) -> float:
    """Seconds of CPU of one GET through the store, its thread and all its checks included."""

    async def run() -> float:
        store = open_store(f"s3://{BUCKET}", environ={**os.environ, **place.server.environ})
        assert store is not None
        stored = (await store.head("game.mp4")).object
        await store.read(stored, 0, LENGTH)
        began = time.process_time()
        for number in range(COUNT):
            assert len(await store.read(stored, number * LENGTH % path.stat().st_size // 2, LENGTH)) == LENGTH
        seconds = time.process_time() - began
        await store.aclose()
        return seconds / COUNT

    return trio.run(run)


def _theirs(place: Stage, path: Path) -> float:
    """The same with boto3, without any thread."""
    client = place.server.client()
    try:
        etag = client.head_object(Bucket=BUCKET, Key="game.mp4")["ETag"]
        began = time.process_time()
        for number in range(COUNT):
            at = number * LENGTH % path.stat().st_size // 2
            answer = client.get_object(
                Bucket=BUCKET, Key="game.mp4", Range=f"bytes={at}-{at + LENGTH - 1}", IfMatch=etag
            )
            assert len(answer["Body"].read()) == LENGTH
        return (time.process_time() - began) / COUNT
    finally:
        client.close()
