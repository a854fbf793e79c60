"""A mount of a real S3 server behind the fault proxy, and what tests do to it.

The whole way: kernel, daemon, caches, S3 client, proxy (`tests.faults`), server process (`tests.servers`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.proxy import Proxy
from tests.servers import Server, environ_for

#: Seconds that a busy machine may add to what is to be done at once, or at a deadline. Where something would
#: wait in vain, it waits for much longer.
SLACK = 5.0
#: Seconds an operation may take in these tests; with a fraction of it for the daemon's own limit, `LATE` is
#: when it is too late.
DEADLINE = 1.0
LATE = DEADLINE * 1.25 + SLACK
#: What a read may fail with when the store is at fault.
HONEST = {errno.EIO, errno.ETIMEDOUT, errno.ESTALE}

MountIt = Callable[..., Any]


@dataclass
class Bench:
    """A mounted bucket, its server, and the proxy between them."""

    mount: Any
    server: Server
    proxy: Proxy
    bucket: str

    def __truediv__(self, name: str) -> Path:
        path: Path = self.mount / name
        return path

    def put(self, key: str, body: bytes) -> None:
        """Store an object past the proxy."""
        self.server.fill(self.bucket, {key: body})

    def status(self) -> Mapping[str, Any]:
        """`.reelfs/status.json`."""
        import json

        found: Mapping[str, Any] = json.loads((self / ".reelfs/status.json").read_bytes())
        return found


@contextlib.contextmanager
def bench(
    mount: MountIt, server: Server, bucket: str, objects: Mapping[str, bytes], **settings: Any
) -> Iterator[Bench]:
    """Mount a new bucket with these objects; the proxy has no faults yet."""
    server.fill(bucket, objects)
    chosen = {"deadline": DEADLINE, "cache_dir": "none", **settings}
    with Proxy(server.url) as proxy:
        mounted = mount({}, source=f"s3://{bucket}", environ=environ_for(proxy.url), **chosen)
        try:
            yield Bench(mounted, server, proxy, bucket)
        finally:
            proxy.clear()
            mounted.kill(signal.SIGTERM)


def read(path: Path | str) -> bytes | int:
    """The bytes of a file, or the errno of what went wrong."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        return error.errno or -1


def read_uncached(path: Path | str) -> bytes | int:
    """The same, past the pages the kernel has kept."""
    try:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return file.read()
    except OSError as error:
        return error.errno or -1


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the seconds it took."""
    started = time.monotonic()
    result = call()
    return result, time.monotonic() - started


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition. Raises AssertionError when it does not come true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        select.select([], [], [], 0.02)


@contextlib.contextmanager
def started(command: Sequence[str | Path], **given: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs; killed, if need be, at the end. given: further arguments of Popen."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **given}
    process: subprocess.Popen[bytes] = subprocess.Popen([*map(str, command)], **streams)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
