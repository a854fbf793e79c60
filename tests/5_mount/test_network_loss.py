"""A network that is away for long: nothing hangs for good, the cache is read, and it comes back by itself."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.rules import Rule
from tests.faulty_mounts import SLACK, Bench, MountIt, bench, eventually, read, read_uncached, started, timed
from tests.servers import moto_server

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from sample_media import encode  # type: ignore[import-not-found]

pytestmark = pytest.mark.fuse

BODY = random.Random(7).randbytes(300_000)
#: Seconds: a lift, a tunnel, a laptop that slept. The longer ones with --slow.
OUTAGES = [
    4,
    pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(200)]),
    pytest.param(600, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
]


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = encode(tmp_path_factory.mktemp("game") / "game.mp4", frames=45, gop=15, size=(160, 96))
    return Path(path).read_bytes()


@pytest.fixture
def away(mounted: MountIt, game: bytes) -> Iterator[Bench]:
    objects = {"game.mp4": game, "cached.bin": BODY, "unread.bin": BODY, "folder/a.bin": b"a"}
    with moto_server() as server, bench(mounted, server, "away", objects, deadline="30s", dir_ttl=2) as made:
        made.mount.expect_log(r" (WARNING|INFO) ")
        yield made


@pytest.mark.parametrize("how", ["hang", pytest.param("down", marks=pytest.mark.slow)])
@pytest.mark.parametrize("seconds", OUTAGES)
def test_an_outage(away: Bench, seconds: int, how: str) -> None:
    assert read(away / "cached.bin") == BODY
    assert os.listdir(away / "folder") == ["a.bin"]
    clip = read(away / "game@0.5s-1.2s.mp4")
    assert isinstance(clip, bytes)
    if how == "down":
        away.proxy.down()
    else:
        away.proxy.fault(Rule("hang"))
    ends = time.monotonic() + seconds
    try:
        with started(["cat", away / "unread.bin"]) as waiting:
            eventually(lambda: bool(away.status()["offline"]), 20)  # at the first attempt that got no answer
            while time.monotonic() < ends:
                data, took = timed(lambda: read_uncached(away / "cached.bin"))
                assert data == BODY
                assert took < SLACK
                assert read_uncached(away / "game@0.5s-1.2s.mp4") == clip
                # Its listing is long too old by then.
                names, took = timed(lambda: os.listdir(away / "folder"))
                assert names == ["a.bin"]
                assert took < SLACK
                time.sleep(min(5.0, max(0.0, ends - time.monotonic())))
            if waiting.poll() is None:
                waiting.send_signal(signal.SIGINT)
                _, took = timed(lambda: waiting.wait(20))
                assert took < SLACK
    finally:
        away.proxy.up()
        away.proxy.clear()
    eventually(lambda: read(away / "unread.bin") == BODY, 30)
    assert Path(away / "folder" / "a.bin").read_bytes() == b"a"
    eventually(lambda: not away.status()["offline"], 15)
