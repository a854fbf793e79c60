"""A mount that is written to: a git session, small files, a large copy, against `rclone mount`."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.bench import mounted
from tests.bench.game import folder
from tests.bench.result import Row, at_least, figure, middle
from tests.servers import R2, r2_server

ROUNDS = 3
BUCKET = "bench"
COMMITS, SMALL_FILES = 20, 300
COPY = 1 << 30
GIT = {
    **{f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    "GIT_CONFIG_GLOBAL": os.devnull,
}

Work = Callable[[Path], None]


def writing() -> list[Row]:
    """The server does as R2, without a delay; medians of 3 rounds in turn. rclone mount runs with
    `--vfs-cache-mode full`: its fsync waits for nothing, as ours does with `write.fsync=local`. It also puts
    nothing on the disk when a file is closed; ours does: the floor is what this disk takes for that alone.
    """
    with tempfile.TemporaryDirectory(dir=folder()) as room:
        base = Path(room)
        source = base / "source.bin"
        with source.open("wb") as file:
            for _ in range(COPY // (16 << 20)):
                file.write(os.urandom(16 << 20))
        works: Mapping[str, Work] = {
            "git session": _git,
            "small files": _small,
            "cp of 1 GiB": lambda point: _copy(source, point),
        }
        times: dict[tuple[str, str], list[float]] = {}
        rows = _floor(base)
        for number in range(ROUNDS):
            for name, peer in (
                ("ours", _ours),
                ("ours, fsync waits for the store", _strict),
                ("rclone", _rclone),
            ):
                place = base / f"{name} {number}"
                place.mkdir()
                with r2_server(place / "served") as server:
                    server.fill(BUCKET, {})
                    with peer(place, server) as point:
                        os.sync()  # nobody waits for what another left to the disk
                        for what, work in works.items():
                            began = time.perf_counter()
                            work(point)
                            times.setdefault((name, what), []).append(time.perf_counter() - began)
                shutil.rmtree(place)
    for what in works:
        theirs = middle(times["rclone", what])
        rows.append(at_least(f"{what}, of rclone mount", theirs / middle(times["ours", what]), 1))
        strict = middle(times["ours, fsync waits for the store", what])
        rows.append(figure(f"{what}, of rclone mount, fsync waiting for the store", theirs / strict, "x"))
        rows.append(figure(f"{what}: ours", middle(times["ours", what]), "s"))
        rows.append(figure(f"{what}: rclone mount", theirs, "s"))
    return rows


def _floor(base: Path) -> list[Row]:
    """What the disk takes for the promise of `close`, whoever makes it."""
    began = time.perf_counter()
    for number in range(SMALL_FILES):
        _synced(base / f"floor-{number}", b"x" * 15_000)
    new = (time.perf_counter() - began) / SMALL_FILES
    log = base / "floor-log"
    _synced(log, bytes(16_384 * SMALL_FILES))
    descriptor = os.open(log, os.O_WRONLY)
    began = time.perf_counter()
    for number in range(SMALL_FILES):
        os.pwrite(descriptor, b"x" * 16_384, number * 16_384)
        os.fdatasync(descriptor)
    over = (time.perf_counter() - began) / SMALL_FILES
    os.close(descriptor)
    began = time.perf_counter()
    with (base / "floor-large").open("wb") as file:
        for _ in range(COPY // (16 << 20)):
            file.write(bytes(16 << 20))
        os.fdatasync(file.fileno())
    large = time.perf_counter() - began
    (base / "floor-large").unlink()
    return [
        figure("floor: a new file of 15 KB, synced", new * 1e3, "ms"),
        figure("floor: 16 KB of a log, synced", over * 1e3, "ms"),
        figure("floor: 1 GiB written and synced", large, "s"),
    ]


def _synced(path: Path, body: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, body)
    os.fdatasync(descriptor)
    os.close(descriptor)


@contextlib.contextmanager
def _ours(place: Path, server: R2) -> Iterator[Path]:
    options = ("--read-write", "-o", "write.fsync=local,write.max_deletes_per_minute=0")
    with mounted.reelfs(f"s3://{BUCKET}", place, server.environ, *options) as mount:
        yield mount.path


@contextlib.contextmanager
def _strict(place: Path, server: R2) -> Iterator[Path]:
    options = ("--read-write", "-o", "write.max_deletes_per_minute=0")
    with mounted.reelfs(f"s3://{BUCKET}", place, server.environ, *options) as mount:
        yield mount.path


@contextlib.contextmanager
def _rclone(place: Path, server: R2) -> Iterator[Path]:
    options = ("--vfs-cache-mode", "full")
    with mounted.rclone(BUCKET, place, server.environ, *options, read_only=False) as mount:
        yield mount.path


def _run(*command: str | Path, cwd: Path) -> None:
    subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **GIT}, check=True, capture_output=True
    )


def _git(point: Path) -> None:
    """30 commits would be a morning's work: init, commits, gc, fsck, clone."""
    repo = point / "repo"
    _run("git", "init", "-q", repo, cwd=point)
    for number in range(COMMITS):
        (repo / f"f{number}.txt").write_text(f"{number}\n" * 500)
        _run("git", "add", ".", cwd=repo)
        _run("git", "commit", "-q", "-m", str(number), cwd=repo)
    _run("git", "gc", "-q", cwd=repo)
    _run("git", "fsck", cwd=repo)
    _run("git", "clone", "-q", repo, point / "clone", cwd=point)


def _small(point: Path) -> None:
    """What dbench does: files are made, written, looked at, read, moved, removed."""
    base = point / "small"
    base.mkdir()
    for number in range(SMALL_FILES):
        path = base / f"f{number}"
        path.write_bytes(b"x" * (1 + number * 97 % 30_000))
        path.stat()
        path.read_bytes()
        path.rename(base / f"g{number}")
    for path in list(base.iterdir()):
        path.unlink()
    base.rmdir()


def _copy(source: Path, point: Path) -> None:
    """cp, and the file is there: closed, not yet sent."""
    subprocess.run(["cp", source, point / "big.bin"], check=True)
    assert (point / "big.bin").stat().st_size == COPY
