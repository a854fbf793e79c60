"""Perfect reads to the letter: four kinds of files of which the original served wrong frames, frame by frame.

Each file is made for one of them, has the trait that misled the original (which is checked first), and the
sidecars that the original's generator writes for it, quirks included.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "scripts")]

import mp4_exact as exact  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from sample_media import encode, fragment_rows, sidecars  # type: ignore[import-not-found]  # noqa: E402
from vfs_mp4 import source, timeline  # noqa: E402
from vfs_mp4.leading import picture_type  # noqa: E402
from vfs_mp4.model import Track  # noqa: E402

GOP, FRAMES = 20, 62
SIDECARS = (".index.sqlite", ".index.json")
#: As the original encodes: two B-frames, a key frame every 20 pictures, no sound, written as fragments.
MADE: dict[str, dict[str, Any]] = {
    "durations in tfhd": {"codec": "libx265", "tag": "hev1"},
    "open groups": {"codec": "libx265", "tag": "hev1", "open_gop": True, "bframes": 3},
    "decode times": {"codec": "libx264", "bframes": 2},
    "variable durations": {"codec": "libx264", "vfr": True},
}


@dataclass(frozen=True)
class Made:
    """A file with its sidecars, and its frames as PyAV decodes them."""

    place: MemoryPlace
    truth: exact.Truth
    track: Track


@pytest.fixture(scope="module", params=MADE)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Made]:
    path = tmp_path_factory.mktemp("made") / "x.mp4"
    encode(path, frames=FRAMES, gop=GOP, fragmented=True, audio=False, size=(160, 90), **MADE[request.param])
    beside = {suffix: made.read_bytes() for suffix, made in zip(SIDECARS, sidecars(path), strict=True)}
    place = MemoryPlace(path.read_bytes(), "games/x.mp4", beside=beside)
    movie = trio.run(source.open_movie, place)
    return request.param, Made(place, exact.truth_of(place), movie.tracks[0])


def trait(name: str, made: Made) -> None:
    """That the file is what it is for."""
    data, samples = made.place.data, made.track.samples
    rows = fragment_rows(data)
    assert len(rows) >= 3
    if name == "durations in tfhd":
        at = data.index(b"trex")
        assert data[at + 16 : at + 20] == bytes(4)
        assert all(not row.durations for row in rows)
        assert data[data.index(b"tfhd") + 7] & 0x08
    elif name == "open groups":
        second = np.flatnonzero(samples.sync)[1]
        head = data[int(samples.offset[second]) :][:200]
        assert picture_type(head, 4) == 21
        assert (samples.pts[second + 1 :] < samples.pts[second]).any()
    elif name == "decode times":
        # The greatest tfdt that is not after a frame is not always of the frame's own fragment.
        starts = np.array([row.t for row in rows])
        own = np.searchsorted([row.moof_offset for row in rows], samples.offset, "right") - 1
        assert (np.searchsorted(starts, samples.pts, "right") - 1 != own).any()
    else:
        assert len(set(samples.dur.tolist())) > 2


def test_every_frame_is_where_the_attribute_says(made: tuple[str, Made]) -> None:
    """At the moment it comes up, and a nanosecond before: with both sidecars, with one, with none."""
    name, one = made
    trait(name, one)
    for rank, frame in enumerate(one.truth.frames):
        beside = [dict(one.place.beside), {SIDECARS[rank % 2]: one.place.beside[SIDECARS[rank % 2]]}, {}]
        place = replace(one.place, beside=beside[rank % 3], memo={}, locks={})
        time = frame.time - one.truth.zero
        nanos = -int(-time * 10**9 // 1)
        for at, wanted in ((nanos, rank), (nanos - 1, rank - 1))[: 1 + (rank % 3 == 0)]:
            if wanted < 0:
                continue
            seconds = f"{at // 10**9}.{at % 10**9:09d}s"
            data, about = trio.run(exact.spliced, place, f"{seconds}.mp4")
            shown = exact.decode(data)
            index = int(about["start_frame_index"])
            assert shown[index].hash == one.truth.frames[wanted].hash, (seconds, wanted)
            assert about["frames"] == "1"


def test_a_read_is_the_init_and_whole_fragments_and_no_more_than_two(made: tuple[str, Made]) -> None:
    """One fragment, or, where the frame leans on the one before it, two."""
    _, one = made
    rows = fragment_rows(one.place.data)
    init = one.place.data[: rows[0].moof_offset]
    wholes = [one.place.data[row.moof_offset : row.mdat_offset + row.mdat_size] for row in rows]
    counts = []
    for rank in range(0, FRAMES, 3):
        data, _ = trio.run(exact.spliced, one.place, f"f{rank}.mp4")
        fits = [n for n in (1, 2) for at in range(len(rows)) if data == init + b"".join(wholes[at : at + n])]
        assert len(fits) >= 1, rank
        counts.append(fits[0])
    assert counts.count(1) > counts.count(2)


def test_windows_are_half_open(made: tuple[str, Made]) -> None:
    """[from, to): a `to` at the first time of a fragment does not pull it in; past the end is to the end."""
    _, one = made
    movie = trio.run(source.open_movie, one.place)
    shown = timeline.shown(movie, one.track)
    keys = np.flatnonzero(one.track.samples.sync)
    second = int(np.flatnonzero(shown.order == keys[1])[0])
    until = Fraction(int(shown.time[second]), one.track.timescale) - movie.zero
    nanos = int(until * 10**9)
    bound = f"{nanos // 10**9}.{nanos % 10**9:09d}s"
    rows = fragment_rows(one.place.data)
    data, about = trio.run(exact.spliced, one.place, f"0s-{bound}.frag.mp4")
    lone = rows[0].mdat_offset + rows[0].mdat_size
    if not (one.track.samples.pts[keys[1] + 1 :] < one.track.samples.pts[keys[1]]).any():
        assert len(data) == lone
    assert about["start_frame_index"] == "0"
    whole, _ = trio.run(exact.spliced, one.place, "0s-9999s.frag.mp4")
    last = rows[-1].mdat_offset + rows[-1].mdat_size
    assert whole == one.place.data[:last]
