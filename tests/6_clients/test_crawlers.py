"""Crawlers, limits and metrics on a real mount of a bucket; what a probe of a 3 GB game costs."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import mounted
from tests.bench.game import Game, progressive
from tests.bench.stage import BUCKET, Stage, stage
from tests.ports import free_port
from vfs.controlclient import Client, the_mount

pytestmark = pytest.mark.fuse

MIB = 1 << 20
#: Bytes; the server reads a file whole once to know its etag, so that of the issue is for --slow.
SIZES = [300_000_000, pytest.param(3_000_000_000, marks=pytest.mark.slow)]
#: 12 s and 12 MB of which little has to be encoded.
LITTLE = Game((320, 180), 8, 2, 6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A game with its moov at the end."""
    return progressive(LITTLE, tmp_path_factory.mktemp("game"))


def hollow(whole: Path, size: int, game: Path) -> Path:
    """The same with a hole before its moov."""
    data = whole.read_bytes()
    moov, mdat = data.rindex(b"moov") - 4, data.index(b"mdat") - 4
    with game.open("wb") as file:
        file.write(data[:mdat])
        file.write(struct.pack(">I4s", size - (len(data) - moov) - mdat, b"mdat"))
        file.write(data[mdat + 8 : moov])
        file.seek(size - (len(data) - moov))
        file.write(data[moov:])
    return game


@pytest.fixture(scope="module")
def place(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The game, and a file to be read whole."""
    base = tmp_path_factory.mktemp("material")
    plain = base / "plain.bin"
    plain.write_bytes(os.urandom(8 * MIB))
    with stage({"v/game.mp4": whole, "v/plain.bin": plain}, base=base) as made:
        yield made


@pytest.mark.parametrize("size", SIZES)
def test_a_probe_of_a_3_gb_game_costs_three_gets_and_a_megabyte(
    size: int, whole: Path, tmp_path: Path
) -> None:
    """Beside the one GET for the moov: the head, and what the kernel reads ahead of the first frames."""
    files = {"v/game.mp4": hollow(whole, size, tmp_path / "game.mp4")}
    options = ("-o", "attr_ttl=60s")
    with (
        stage(files, base=tmp_path) as place,
        mounted.reelfs(f"s3://{BUCKET}/v", place.root, place.environ, *options) as mnt,
    ):
        assert (mnt / "game.mp4").stat().st_size == size
        place.proxy.reset()
        command = ["ffprobe", "-v", "error", "-of", "json", "-show_format", "-show_streams"]
        done = subprocess.run([*command, str(mnt / "game.mp4")], capture_output=True, check=True, text=True)
        assert float(json.loads(done.stdout)["format"]["duration"]) > 10
        count, fetched = place.gets()
        print(f"ffprobe of a game of {size} bytes: {count} GETs, {fetched} bytes, the moov among them")
        assert count - 1 <= 3
        assert fetched <= MIB


def test_a_crawler_stops_at_its_budget_and_others_do_not(place: Stage, tmp_path: Path) -> None:
    crawler = tmp_path / "tumblerd"
    shutil.copy(shutil.which("cat") or "", crawler)
    options = ("-o", "crawlers.budget=2MiB")
    with mounted.reelfs(f"s3://{BUCKET}/v", place.root, place.environ, *options) as mnt:
        place.proxy.reset()
        done = subprocess.run([str(crawler), str(mnt / "plain.bin")], capture_output=True, check=False)
        assert done.returncode != 0
        assert os.strerror(errno.EDQUOT) in done.stderr.decode()
        assert place.gets()[1] <= 2 * MIB
        found, _ = the_mount(str(mnt.path))
        with Client(found) as client:
            told = client.ask("status")
        assert told["counters"]["crawler_opens"] == {"tumblerd": 1}
        assert told["counters"]["crawler_refusals"]["tumblerd"] >= 1
        assert [r["program"] for r in told["readers"] if r["crawler"]] == ["tumblerd"]
        assert any("crawlers.budget" in note for note in told["notes"]["plain.bin"])
        again = subprocess.run(["cat", str(mnt / "plain.bin")], capture_output=True, check=True)
        assert len(again.stdout) == 8 * MIB
        done = subprocess.run([str(crawler), str(mnt / "plain.bin")], capture_output=True, check=True)
        assert done.stdout == again.stdout  # cached by now


@pytest.mark.skipif(shutil.which("ffmpegthumbnailer") is None, reason="ffmpegthumbnailer is not installed")
def test_a_real_thumbnailer_is_known_and_kept_within_its_budget(place: Stage, tmp_path: Path) -> None:
    """By the name the kernel shows of it, which is cut; its picture is right, and reading on is refused."""
    picture = tmp_path / "short.png"
    with mounted.reelfs(f"s3://{BUCKET}/v", place.root, place.environ, "-o", "crawlers.budget=1MiB") as mnt:
        place.proxy.reset()
        command = ["ffmpegthumbnailer", "-i", str(mnt / "game.mp4"), "-o", str(picture), "-s", "128"]
        done = subprocess.run(command, capture_output=True, check=False)
        count, size = place.gets()
        found, _ = the_mount(str(mnt.path))
        with Client(found) as client:
            told = client.ask("status")
        print(
            f"ffmpegthumbnailer: {count} GETs, {size} bytes of a file of {(mnt / 'game.mp4').stat().st_size}"
        )
        assert done.returncode == 0, done.stderr
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert list(told["counters"]["crawler_opens"]) == ["ffmpegthumbnail"]
        assert size <= MIB
        # What a desktop would use instead, made once.
        assert (mnt / "game.mp4@/thumbnail.png").read_bytes().startswith(b"\x89PNG")


def test_a_limit_of_the_day_is_edquot_and_what_is_cached_is_read(place: Stage, tmp_path: Path) -> None:
    port = free_port()
    options = ("-o", f"limits.egress_per_day=1MiB,metrics.listen=127.0.0.1:{port},read_ahead=0")
    with mounted.reelfs(f"s3://{BUCKET}/v", place.root, place.environ, *options) as mnt:
        with (mnt / "plain.bin").open("rb") as file:
            first = file.read(1 << 20)
        with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)), (mnt / "game.mp4").open("rb") as file:
            file.read(1 << 20)
        with (mnt / "plain.bin").open("rb") as file:
            assert file.read(1 << 20) == first
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/metrics",
            headers={"Accept": "application/openmetrics-text; version=1.0.0"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            text = response.read().decode()
            assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        assert 'reelfs_limit_reached{limit="egress"} 1.0' in text
        assert 'reelfs_errors_total{errno="EDQUOT"}' in text
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/secrets", timeout=10)
        top = [sys.executable, "-m", "vfs.cli", "top", str(mnt.path), "--count", "2", "--interval", "0.1"]
        shown = subprocess.run(top, capture_output=True, check=True, text=True, timeout=60).stdout
        assert shown.count("LIMIT REACHED: egress") == 2
        assert "plain.bin" in shown or "game.mp4" in shown
