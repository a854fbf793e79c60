"""`reelfs put`, `get` and `presign` as programs, against a server that does as R2: what broke off goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import urllib3

from tests.r2.faults import Fault
from tests.servers import R2, r2_server
from vfs import transfer
from vfs.storage import upload

PART = upload.LEAST_PART
#: More than what one PUT takes.
SIZE = upload.SINGLE + PART + 12_345
PARTS = upload.part_count(SIZE)
PATIENCE = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[R2]:
    with r2_server(tmp_path_factory.mktemp("r2")) as made:
        made.fill("bucket", {})
        yield made


@pytest.fixture(autouse=True)
def _healthy(server: R2) -> Iterator[None]:
    server.forget()
    yield
    server.heal()


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    path.write_bytes(random.Random(4).randbytes(SIZE))
    return path


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(server: R2, tmp_path: Path) -> Iterator[Start]:
    """Starts `reelfs` with these arguments; whatever runs at the end is killed."""
    begun: list[subprocess.Popen[str]] = []

    def run(*arguments: str | Path) -> subprocess.Popen[str]:
        environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "REELFS_PLUGINS_BLOCK": "mp4"}
        process = subprocess.Popen(
            [sys.executable, "-m", "vfs.cli", *map(str, arguments)],
            env=environ | server.environ | {"R2_ENDPOINT": server.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        begun.append(process)
        return process

    yield run
    for process in begun:
        process.kill()
        process.communicate()


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def noted(home: Path) -> int:
    """Parts that `put` has written down as sent."""
    notes = list((home / ".local/state/reelfs/uploads").glob("*.json"))
    return sum(len(json.loads(note.read_text())["parts"]) for note in notes)


def body_of(server: R2, key: str) -> bytes:
    client = server.client()
    try:
        body: bytes = client.get_object(Bucket="bucket", Key=key)["Body"].read()
        return body
    finally:
        client.close()


def arrived(server: R2) -> int:
    return sum(entry.operation == "UploadPart" and entry.status == 200 for entry in server.log())


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_put_that_was_ended_goes_on(
    server: R2, start: Start, film: Path, tmp_path: Path, end: signal.Signals
) -> None:
    """Only the parts that are missing are sent, by the same upload."""
    target = f"r2://bucket/{end.name}.mp4"
    server.fault(Fault("hang", "UploadPart", times=-1, skip=4))
    first = start("put", film, target)
    until(lambda: noted(tmp_path) == 4)
    first.send_signal(end)
    first.wait(PATIENCE)
    assert first.returncode != 0
    server.heal()
    server.forget()
    finished(start("put", film, target))
    assert arrived(server) == PARTS - 4
    assert noted(tmp_path) == 0
    assert server.count("CreateMultipartUpload") == 0
    assert server.count("CompleteMultipartUpload") == 1
    assert body_of(server, f"{end.name}.mp4") == film.read_bytes()


def test_a_get_that_was_killed_goes_on(server: R2, start: Start, film: Path, tmp_path: Path) -> None:
    """Nothing that was written is fetched again, and the file appears under its name when it is whole."""
    finished(start("put", film, "r2://bucket/got.mp4"))
    target, part = tmp_path / "got.mp4", tmp_path / "got.mp4.part"
    server.fault(Fault("hang", "GetObject", times=-1, skip=transfer.AT_ONCE))
    first = start("get", "r2://bucket/got.mp4", target)
    until(lambda: part.exists() and part.stat().st_size == transfer.AT_ONCE * transfer.PIECE)
    first.kill()
    first.wait(PATIENCE)
    had = part.stat().st_size
    assert not target.exists()
    server.heal()
    server.forget()
    finished(start("get", "r2://bucket/got.mp4", target))
    assert sum(entry.sent for entry in server.log() if entry.operation == "GetObject") == SIZE - had
    assert target.read_bytes() == film.read_bytes()
    assert not part.exists()


def test_a_put_waits_for_a_server_that_restarts(server: R2, start: Start, film: Path) -> None:
    server.fault(Fault("hang", "UploadPart", times=-1, skip=3))
    process = start("put", film, "r2://bucket/restart.mp4")
    until(lambda: arrived(server) == 3)
    server.kill()
    server.start()
    finished(process)
    assert body_of(server, "restart.mp4") == film.read_bytes()


def test_nothing_is_replaced_unseen(server: R2, start: Start, tmp_path: Path) -> None:
    """Not even what was stored between the look and the write."""
    small = tmp_path / "small"
    small.write_bytes(b"ours")
    server.fill("bucket", {"small": b"theirs"})
    refused = start("put", small, "r2://bucket/small")
    output, _ = refused.communicate(timeout=PATIENCE)
    assert (refused.returncode, "--replace" in output) == (1, True)
    assert body_of(server, "small") == b"theirs"
    finished(start("put", "--replace", small, "r2://bucket/small"))
    assert body_of(server, "small") == b"ours"


def test_presigned_urls_store_and_read(server: R2, start: Start) -> None:
    """Without any key pair. (The server checks that they are young enough, not their signatures.)"""
    store_by = finished(start("presign", "--put", "--expires", "5m", "r2://bucket/by url ü.bin")).strip()
    read_by = finished(start("presign", "--expires", "5m", "r2://bucket/by url ü.bin")).strip()
    with urllib3.PoolManager() as pool:
        assert pool.request("PUT", store_by, body=b"sent by url").status == 200
        assert pool.request("GET", read_by).data == b"sent by url"
        old = finished(start("presign", "--expires", "1s", "r2://bucket/by url ü.bin")).strip()
        until(lambda: pool.request("GET", old).status == 403)
    assert body_of(server, "by url ü.bin") == b"sent by url"
