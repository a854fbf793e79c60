"""Requests a second: pyfuse3's request loop as it is, and with the fast wait of `vfs.fuse_loop`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.game import folder
from tests.bench.result import Row, at_least, figure, middle
from vfs.config import Settings
from vfs.mounts import mount_at, unmount

#: The daemon of `vfs.daemon`, which takes its settings on stdin and answers on descriptor 3.
AS_IT_IS = "import sys; from vfs import fuse_loop; fuse_loop.KNOWN_VERSIONS = (); "
FAST = "import sys; "
RUN = "from vfs.daemon import main; sys.exit(main())"
SECONDS = 1.0
ROUNDS = 3


def request_loop() -> list[Row]:
    """Requests a second without and with the fast wait; medians of 3 rounds, the two daemons in turn."""
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="loop-", dir=folder()) as name:
        root = Path(name)
        (root / "source").mkdir()
        (root / "source" / "file").write_bytes(b"x" * 4096)
        for _ in range(ROUNDS):
            for kind, code in (("plain", AS_IT_IS), ("fast", FAST)):
                with _mounted(root, code + RUN) as point:
                    for what, rate in _rates(point).items():
                        found.setdefault(what, {}).setdefault(kind, []).append(rate)
    rows = []
    for what, kinds in found.items():
        plain, fast = middle(kinds["plain"]), middle(kinds["fast"])
        rows += [
            at_least(f"{what}, with the fast wait, of without", fast / plain, 1.0),
            figure(f"{what}, with", fast, "/s"),
            figure(f"{what}, without", plain, "/s"),
        ]
    return rows


def _rates(point: Path) -> dict[str, float]:
    """Operations a second that the kernel cannot answer by itself: it keeps attributes, not these."""
    stored = str(point / "file")

    def statfs() -> None:
        os.statvfs(point)

    def look() -> None:
        descriptor = os.open(stored, os.O_RDONLY)
        os.read(descriptor, 4096)
        os.close(descriptor)

    return {
        "statfs, 1 thread": _rate(statfs, 1),
        "statfs, 4 threads": _rate(statfs, 4),
        "open+read+close, 1 thread": _rate(look, 1),
    }


def _rate(work: Callable[[], None], threads: int) -> float:
    """How often all threads together do it in a second."""
    work()
    until = time.perf_counter() + SECONDS
    counts = [0] * threads

    def repeat(number: int) -> None:
        while time.perf_counter() < until:
            work()
            counts[number] += 1

    running = [threading.Thread(target=repeat, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(counts) / SECONDS


@contextlib.contextmanager
def _mounted(root: Path, code: str) -> Iterator[Path]:
    point = root / "mnt"
    point.mkdir(exist_ok=True)
    flags = {"source": str(root / "source"), "mountpoint": str(point), "attr_ttl": "60"}
    settings = Settings.load(flags, environ={}).to_dict()
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" 3>&1 1>&2', "sh", sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(settings).encode())
        process.stdin.close()
        if b"true" not in process.stdout.readline():
            raise RuntimeError((root / "log").read_text())
        yield point
    finally:
        if mount_at(point) is not None:
            unmount(point)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
        process.stdout.close()
