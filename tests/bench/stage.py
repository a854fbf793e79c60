"""Where benchmarks happen: an S3 server over a folder, a counting proxy before it, room for mounts."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench.game import folder
from tests.faults.process import ProxyProcess
from tests.servers import Server, environ_for, rclone_server

BUCKET = "bucket"
#: The line of the issue: 40 ms round trip, 200 Mbit/s.
DELAY = 0.04
BANDWIDTH = 25e6
#: Seconds a mount stands before it is timed, as mounts do: what starts in its background is over.
STANDING = 3.0


@dataclass(frozen=True)
class Stage:
    """root: a folder for mounts. server: the store itself; proxy: what clients are given."""

    root: Path
    server: Server
    proxy: ProxyProcess

    @property
    def environ(self) -> Mapping[str, str]:
        """Makes a client use the proxy."""
        return environ_for(self.proxy.url)

    def gets(self) -> tuple[int, int]:
        """GETs and their bytes since the last `reset`."""
        counts = self.proxy.counts()
        return counts.requests.get("get", 0), counts.body.get("get", 0)


@contextlib.contextmanager
def stage(
    files: Mapping[str, Path] | None = None,
    *,
    delay: float = 0.0,
    bandwidth: float | None = None,
    base: Path | None = None,
) -> Iterator[Stage]:
    """A server with these files (by key), and a proxy with this round trip and these bytes a second.

    base: where the files are and room is made (default: the folder of the material).
    """
    root = Path(tempfile.mkdtemp(prefix="run-", dir=base or folder()))
    try:
        bucket = root / "served" / BUCKET
        bucket.mkdir(parents=True)
        for key, path in (files or {}).items():
            (bucket / key).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, bucket / key)
        with rclone_server(root / "served") as server:
            server.warm(BUCKET, *(files or {}))
            with ProxyProcess(server.url, delay=delay, bandwidth=bandwidth, handshakes=1) as proxy:
                yield Stage(root, server, proxy)
    finally:
        shutil.rmtree(root)


def timed(path: Path, chunk: int = 1 << 20) -> tuple[int, float]:
    """Read a file once from start to end: its bytes and the seconds it took."""
    buffer, total = bytearray(chunk), 0
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total, time.perf_counter() - began
