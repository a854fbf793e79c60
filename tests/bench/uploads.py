"""Sending 1 GiB: in parts through the store, its guard and all checks, against boto3's own `upload_file`."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import boto3.s3.transfer
import trio

from tests.bench import mounted
from tests.bench.game import folder
from tests.bench.result import Row, at_least, at_most, figure, middle
from tests.servers import R2, r2_server
from vfs.storage import upload
from vfs.storage.guard import GuardedStore
from vfs.storage.open import open_store

MIB = 1 << 20
SIZE = 1 << 30
ROUNDS = 3
#: Both send so many parts of so many bytes at one time.
AT_ONCE, PART = upload.AT_ONCE, upload.part_size(SIZE)


def store_put() -> list[Row]:
    """1 GiB to a server that does as R2, in parts of 8 MiB, four at a time; medians of 3 rounds in turn.

    The server takes the MD5 and the SHA-256 of every part: it, and the disk, are most of the time.
    """
    ours, theirs, cpus, their_cpus = [], [], [], []
    with tempfile.TemporaryDirectory(dir=_roomy()) as room:
        source = _source(Path(room))
        with r2_server(Path(room) / "served") as server:
            server.fill("bucket", {})
            for number in range(ROUNDS):
                seconds, cpu = _theirs(server, source, f"theirs {number}")
                theirs.append(SIZE / seconds / 1e6)
                their_cpus.append(cpu)
                server.forget()
                seconds, cpu = _ours(server, source, f"ours {number}")
                ours.append(SIZE / seconds / 1e6)
                cpus.append(cpu)
                log = server.log()
                _remove(server, f"ours {number}")
                _remove(server, f"theirs {number}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    parts = sum(entry.operation == "UploadPart" for entry in log)
    return [
        at_least("upload of 1 GiB, of boto3's `upload_file`", middle(ours) / middle(theirs), 0.8),
        at_most("requests beside one a part", len(log) - parts, 3, exact=True),
        at_most("parts", parts, SIZE // PART, exact=True),
        at_most("CPU of the client, of boto3's", middle(cpus) / middle(their_cpus), 1.25, "x"),
        figure("through the store", middle(ours), "MB/s"),
        figure("boto3 upload_file", middle(theirs), "MB/s"),
        figure("most memory of this process, either way", peak, "MiB"),
    ]


def _roomy() -> Path:
    """In memory where there is room: the disk is not what is measured."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.statvfs(memory).f_bavail * os.statvfs(memory).f_frsize > 8 * SIZE:
        return memory
    return folder()


def _ours(server: R2, source: Path, key: str) -> tuple[float, float]:
    """Seconds, and seconds of CPU of this process."""

    async def run() -> tuple[float, float]:
        inner = open_store("s3://bucket", environ={**os.environ, **server.environ})
        assert inner is not None
        store = GuardedStore(inner, writable=True)
        with source.open("rb", buffering=0) as file:

            async def read(offset: int, length: int) -> bytes:
                return await trio.to_thread.run_sync(os.pread, file.fileno(), length, offset)

            began, cpu = time.perf_counter(), time.process_time()
            stored = await upload.send(store, key, SIZE, read, replaces=None)
            took = time.perf_counter() - began, time.process_time() - cpu
        assert stored.size == SIZE
        await store.aclose()
        return took

    return trio.run(run)


def _theirs(server: R2, source: Path, key: str) -> tuple[float, float]:
    """The same with boto3."""
    config = boto3.s3.transfer.TransferConfig(
        multipart_chunksize=PART, max_concurrency=AT_ONCE, multipart_threshold=PART
    )
    client = server.client()
    try:
        began, cpu = time.perf_counter(), time.process_time()
        client.upload_file(str(source), "bucket", key, Config=config)
        return time.perf_counter() - began, time.process_time() - cpu
    finally:
        client.close()


def _remove(server: R2, key: str) -> None:
    client = server.client()
    client.delete_object(Bucket="bucket", Key=key)
    client.close()


def mount_put() -> list[Row]:
    """`cp` of 1 GiB into a mount over the same server, and how it is sent then; boto3 in turn, 2 rounds.

    The copy returns once the file is on the local disk and in the journal; it is sent in the background.
    """
    copies, ours, theirs = [], [], []
    peak = extra = 0
    with tempfile.TemporaryDirectory(dir=_roomy()) as room:
        source = _source(Path(room))
        with r2_server(Path(room) / "served") as server:
            server.fill("bucket", {})
            for number in range(2):
                seconds, _ = _theirs(server, source, "theirs")
                theirs.append(SIZE / seconds / 1e6)
                _remove(server, "theirs")
                server.forget()
                options = ("--read-write", "-o", "write.delay=0")
                with mounted.reelfs("s3://bucket", Path(room), server.environ, *options) as mount:
                    began = time.perf_counter()
                    subprocess.run(["cp", source, mount / f"film {number}.mp4"], check=True)
                    copies.append(SIZE / (time.perf_counter() - began) / 1e6)
                    while not server.count("CompleteMultipartUpload"):
                        time.sleep(0.1)
                    log = [entry for entry in server.log() if entry.key]
                    peak = max(peak, mount.peak())
                at = {entry.operation: entry.at for entry in log}
                ours.append(SIZE / (at["CompleteMultipartUpload"] - at["CreateMultipartUpload"]) / 1e6)
                extra = sum(entry.operation != "UploadPart" for entry in log)
                _remove(server, f"film {number}.mp4")
    return [
        at_least("sending of 1 GiB, of boto3's `upload_file`", middle(ours) / middle(theirs), 0.8),
        at_most("requests beside one a part", extra, 6, exact=True),
        at_most("most memory of the daemon", peak / MIB, 512, "MiB"),
        figure("cp", middle(copies), "MB/s"),
        figure("sent by the mount", middle(ours), "MB/s"),
        figure("boto3 upload_file", middle(theirs), "MB/s"),
    ]


def _source(room: Path) -> Path:
    source = room / "source"
    with source.open("wb") as file:
        for _ in range(SIZE // (16 * MIB)):
            file.write(os.urandom(16 * MIB))
    return source
