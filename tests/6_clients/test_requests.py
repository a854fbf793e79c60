"""What reading through a mount asks of a bucket: requests and bytes, counted before a real S3 server.

The small brothers of `tests/bench`: exact counts, no times. Each mount is fresh, with caches of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bench import mounted
from tests.bench.game import SMALL, Game, fragmented, many_keys, need, progressive
from tests.bench.mounted import Mounted
from tests.bench.stage import BANDWIDTH, BUCKET, Stage, stage

pytestmark = pytest.mark.fuse

KIB, MIB = 1 << 10, 1 << 20
FOLDERS, FILES = 12, 8
#: Two minutes, sixty fragments of 2 MB.
LONG = Game((640, 360), 8, 4, 30)
#: Frames inside of groups of pictures of two seconds, one in the last. Not the key frames: what is estimated
#: for them holds the picture after it, too, and took 1.6 times the bytes in a game this small.
TIMES = (5.0, 11.3)
#: A busy machine takes its time, and nothing is asked anew: `ls -l` looks for a file named as search/ is.
NO_TTL = ("-o", "attr_ttl=60s", "-o", "negative_ttl=60s")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One server for all: a fragmented game with a sidecar, a progressive one, and many small keys."""
    base = tmp_path_factory.mktemp("material")
    cut, whole, long = fragmented(SMALL, base), progressive(SMALL, base), fragmented(LONG, base)
    many_keys(base, FOLDERS, FILES)
    files = {
        "cut/game.mp4": cut,
        "cut/game.mp4.index.sqlite": Path(f"{cut}.index.sqlite"),
        "whole/game.mp4": whole,
        "long/game.mp4": long,
        **{str(path.relative_to(base)): path for path in base.glob("library/*/*")},
    }
    with stage(files, base=base) as made:
        yield made


@contextmanager
def mount(place: Stage, prefix: str) -> Iterator[Mounted]:
    """A fresh mount; what it asked for to be mounted is not counted. Its log must hold no trouble."""
    log = place.root / "reelfs.log"
    log.unlink(missing_ok=True)
    with mounted.reelfs(f"s3://{BUCKET}/{prefix}", place.root, place.environ, *NO_TTL) as made:
        place.proxy.reset()
        yield made
    assert not re.findall(r"^.* (?:WARNING|ERROR|CRITICAL) .*$", log.read_text(), re.MULTILINE)


def reading(place: Stage, path: Path) -> tuple[int, int]:
    """GETs and bytes of reading a file whole; there may be no other request."""
    place.proxy.reset()
    assert path.read_bytes()
    assert set(place.proxy.counts().requests) <= {"get"}
    return place.gets()


@pytest.mark.parametrize("at", TIMES)
def test_a_frame_of_a_fragmented_game_with_a_sidecar(place: Stage, at: float) -> None:
    """Cold: sidecar, head, fragment. Another one: its fragment. Again: nothing."""
    game = place.root / "served" / BUCKET / "cut" / "game.mp4"
    other = TIMES[TIMES.index(at) - 1]
    with mount(place, "cut") as mnt:
        count, size = reading(place, mnt / f"game@{at}s.jpg")
        assert count <= 3
        assert size <= 1.5 * need(game, at).total + os.path.getsize(f"{game}.index.sqlite")
        assert reading(place, mnt / f"game@{other}s.jpg")[0] <= 1
        assert reading(place, mnt / f"game@{other}s.jpg") == (0, 0)
        assert reading(place, mnt / f"game@{at}s.jpg") == (0, 0)


@pytest.mark.parametrize("at", TIMES)
def test_a_frame_of_a_progressive_game_with_its_moov_at_the_end(place: Stage, at: float) -> None:
    """Cold: head, moov, pictures. Another one: its pictures. Again: nothing."""
    game = place.root / "served" / BUCKET / "whole" / "game.mp4"
    other = TIMES[TIMES.index(at) - 1]
    with mount(place, "whole") as mnt:
        count, size = reading(place, mnt / f"game@{at}s.jpg")
        assert count <= 4
        assert size <= need(game, at).total + 128 * KIB
        assert reading(place, mnt / f"game@{other}s.jpg")[0] <= 1
        assert reading(place, mnt / f"game@{other}s.jpg") == (0, 0)


@pytest.fixture
def line(place: Stage) -> Iterator[None]:
    """A line of 200 Mbit/s: without one all that is asked for has come before anything is given up."""
    place.proxy.shape(bandwidth=BANDWIDTH)
    yield
    place.proxy.shape()


@pytest.mark.usefixtures("line")
def test_a_frame_of_a_game_that_nothing_lists(place: Stage) -> None:
    """A look for a fragment is a request that is given up when one is seen: what comes after is not sent."""
    game = place.root.parent / (LONG.name + "-fragmented") / "game.mp4"
    with mount(place, "long") as made:
        count, size = reading(place, made / "game@83.1s.jpg")
        assert count <= 8
        assert size <= need(game, 83.1).total + 3 * MIB
        count, size = reading(place, made / "game@85.2s.jpg")
        assert count <= 2
        assert size <= 1.5 * need(game, 85.2).total


def test_the_size_of_a_clip_is_known_before_its_media_is_read(place: Stage) -> None:
    """`stat` reads the index and no picture; reading the clip then reads what it holds, once."""
    with mount(place, "whole") as mnt:
        size = (mnt / "game@2s-6s.mp4").stat().st_size
        assert place.gets()[1] <= 128 * KIB
        assert size > 3 * MIB
        _, fetched = reading(place, mnt / "game@2s-6s.mp4")
        assert fetched <= size


def test_a_listing_is_one_request_a_folder_and_looks_at_no_object(place: Stage) -> None:
    """`ls -lR`: a LIST for each folder below the root, which was listed to be mounted. Again: nothing."""
    with mount(place, "library") as mnt:
        for expected in ({"list": FOLDERS}, {}):
            place.proxy.reset()
            done = subprocess.run(["ls", "-lR", str(mnt.path)], capture_output=True, check=True, text=True)
            assert done.stdout.count("clip ") == FOLDERS * FILES
            assert place.proxy.counts().requests == expected


def test_a_stored_file_read_in_order_is_fetched_once_in_large_pieces(place: Stage) -> None:
    """Every byte once, in requests that soon are of megabytes; the kernel answers the second time."""
    path = place.root / "served" / BUCKET / "whole" / "game.mp4"
    with mount(place, "whole") as mnt:
        assert (mnt / "game.mp4").read_bytes() == path.read_bytes()
        count, size = place.gets()
        assert size == path.stat().st_size
        assert count <= 8 + size // MIB
        assert reading(place, mnt / "game.mp4") == (0, 0)
