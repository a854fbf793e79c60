"""Folders of pictures, the thumbnail, and storyboards: what is listed, what it costs, and what is in it."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import mp4_exact as exact  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from vfs_mp4 import pictures, shape, source, storyboard, visual  # noqa: E402
from vfs_mp4.model import Movie, Samples, Track  # noqa: E402
from vfs_mp4.pictures import Pictures  # noqa: E402
from vfs_mp4.plan import Window  # noqa: E402
from vfs_mp4.plugin import Videos  # noqa: E402
from vfs_mp4.selecting import window_of  # noqa: E402
from vfs_mp4.storyboard import Storyboards  # noqa: E402
from vfs_mp4.timeline import Shown  # noqa: E402

from vfs import (  # noqa: E402
    Bytes,
    Damaged,
    Directory,
    Node,
    NoMedia,
    StoredObject,
    TooBig,
    Unsupported,
    View,
    parse_derived,
)
from vfs.workers import open_workers  # noqa: E402

T = TypeVar("T")
NAMES = ["h264", "hevc_open_gop", "hevc_open_gop_fragmented", "vfr", "delayed_video", "trimmed"]


def fresh(name: str) -> MemoryPlace:
    """A sample that nobody has read from."""
    place = exact.sample(name)
    return MemoryPlace(place.data, place.path)


def listed(view: View, place: MemoryPlace, folder: str = "") -> Mapping[str, Node | None]:
    """The entries of the companion folder, or of a folder in it; nothing may be made for them."""

    async def main() -> Mapping[str, Node | None]:
        found = await view.entries(place)
        for name in filter(None, folder.split("/")):
            node = found[name]
            assert isinstance(node, Directory)
            found = await node.entries()
        return found

    return trio.run(main)


async def node_of(view: View, place: MemoryPlace, path: str) -> Node | None:
    first, *rest = path.split("/")
    node = await view.resolve(place, first)
    for name in rest:
        assert isinstance(node, Directory)
        node = await node.lookup(name)
    return node


def made(view: View, place: MemoryPlace, *paths: str) -> list[bytes]:
    """The files at these paths."""

    async def main() -> list[bytes]:
        async with open_workers():
            nodes = [await node_of(view, place, path) for path in paths]
            return [await node.produce() for node in nodes if isinstance(node, Bytes)]

    found = trio.run(main)
    assert len(found) == len(paths)
    return found


def absent(view: View, place: MemoryPlace, path: str) -> bool:
    return trio.run(node_of, view, place, path) is None


# ---------------------------------------------------------------- keyframes/


@pytest.mark.parametrize("name", NAMES)
def test_key_frames_are_listed_with_the_times_at_which_they_are_shown(name: str) -> None:
    place = fresh(name)
    names = list(listed(Pictures(), place, "keyframes"))
    with av.open(io.BytesIO(place.data), "r") as container:
        keys = [i for i, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    truth = exact.truth(name)
    assert len(names) == len(keys) >= 3
    for number, (found, rank) in enumerate(zip(names, keys, strict=True)):
        match = re.fullmatch(r"k(\d{4})@(\d+\.\d{3})s\.jpg", found)
        assert match is not None
        assert int(match[1]) == number
        # The time in the name selects this frame, and is at most a millisecond late.
        assert truth.at(Fraction(match[2])) == rank
        assert 0 <= Fraction(match[2]) - (truth.frames[rank].time - truth.zero) < Fraction(1, 1000)


def test_listing_reads_the_index_alone() -> None:
    for name in ("h264", "hevc_open_gop_fragmented"):
        place = fresh(name)
        movie: Movie = trio.run(source.open_movie, place)
        assert movie.video is not None
        samples = movie.video.samples
        inside = np.zeros(place.size, bool)
        for offset, size in zip(samples.offset, samples.size, strict=True):
            inside[offset : offset + size] = True
        place = fresh(name)
        listed(Pictures(), place, "keyframes")
        listed(Pictures(), place, "frames")
        listed(Pictures(), place, "frames/000100-000199")
        listed(Storyboards(), place)
        read = sum(int(inside[at : at + length].sum()) for _, at, length in place.log)
        # A few KB at the head come along with the index.
        assert read < 16_000


def test_a_key_frame_is_the_same_bytes_as_by_its_number() -> None:
    place = fresh("hevc_open_gop")
    names = list(listed(Pictures(), place, "keyframes"))
    found = made(Pictures(), place, *(f"keyframes/{name}" for name in names))
    assert found == made(Videos(), place, *(f"k{number}.jpg" for number in range(len(names))))


@pytest.mark.parametrize("name", ["k0001@1.001s.jpg", "k0009@1.000s.jpg", "k1@1.000s.jpg", "k0001.jpg", "x"])
def test_what_is_not_listed_is_not_there(name: str) -> None:
    assert absent(Pictures(), fresh("h264"), f"keyframes/{name}")
    assert not absent(Pictures(), fresh("h264"), "keyframes/k0001@1.000s.jpg")


def test_too_many_key_frames_for_a_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_LISTED", 2)
    with pytest.raises(TooBig, match="4 key frames, the limit of a listing is 2: see frames/"):
        listed(Pictures(), fresh("h264"), "keyframes")
    assert not absent(Pictures(), fresh("h264"), "keyframes/k0001@1.000s.jpg")


# ---------------------------------------------------------------- frames/


def test_frames_are_listed_by_the_hundred() -> None:
    place = fresh("h264")
    assert list(listed(Pictures(), place, "frames")) == ["000000-000099", "000100-000199"]
    page = list(listed(Pictures(), place, "frames/000100-000199"))
    assert page == [f"{number:06d}.png" for number in range(100, 110)]
    assert len(listed(Pictures(), place, "frames/000000-000099")) == 100


def test_a_frame_is_the_same_by_every_name() -> None:
    place = fresh("vfr")
    paths = ["frames/000100-000199/000104.png", "frames/000104.png", "frames/000104.jpg", "frames/000104.npy"]
    paged, direct, jpg, npy = made(Pictures(), place, *paths)
    assert [paged, direct, jpg, npy] == made(
        Videos(), place, *(f"f104.{f}" for f in ("png", "png", "jpg", "npy"))
    )
    one, other = (trio.run(node_of, Pictures(), place, path) for path in paths[:2])
    assert isinstance(one, Bytes)
    assert isinstance(other, Bytes)
    assert one.version == other.version


@pytest.mark.parametrize(
    "name",
    ["000110.png", "0.png", "0000104.png", "000104.gif", "000104", "000200-000299", "000050-000149",
     "000000-000100", "000000-000099/000100.png", "000000-000099/x"],
)  # fmt: skip
def test_what_is_no_frame_is_not_there(name: str) -> None:
    assert absent(Pictures(), fresh("h264"), f"frames/{name}")


# ---------------------------------------------------------------- the thumbnail


def test_a_thumbnail_is_one_small_key_frame_upright() -> None:
    place = fresh("rotated_wide_pixels")
    (data,) = made(Pictures(), place, "thumbnail.png")
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("PNG", (108, 256))
        found = np.asarray(image.convert("RGB")).astype(int)
    (whole,) = made(Videos(), place, "k0.png")
    expected = Image.open(io.BytesIO(whole)).resize((108, 256), Image.Resampling.BICUBIC)
    assert np.abs(found - np.asarray(expected)).mean() < 3


@pytest.mark.parametrize("name", ["h264", "h264_fragmented", "hevc_open_gop_fragmented"])
def test_a_thumbnail_costs_one_key_frame(name: str) -> None:
    place = fresh(name)
    node = trio.run(node_of, Pictures(), place, "thumbnail.png")
    assert isinstance(node, Bytes)
    assert node.reads is not None
    before = place.requested
    trio.run(node.produce)
    assert place.requested - before <= node.reads.size
    movie: Movie = trio.run(source.open_movie, fresh(name))
    track = movie.video
    assert track is not None
    assert [(e.offset, e.length) for e in node.reads.extents] == [
        (int(track.samples.offset[0]), int(track.samples.size[0]))
    ]


# ---------------------------------------------------------------- storyboards

_CUE = re.compile(r"(\S+) --> (\S+)\n(storyboard(?:-\d+)?\.jpg)#xywh=(\d+),(\d+),(\d+),(\d+)")


def seconds(clock: str) -> Fraction:
    hours, minutes, rest = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + Fraction(rest)


def cues_in(vtt: str) -> list[tuple[Fraction, Fraction, str, tuple[int, int, int, int]]]:
    head, *blocks = vtt.split("\n\n")
    assert head == "WEBVTT"
    found = []
    for block in blocks:
        match = _CUE.fullmatch(block.strip())
        assert match is not None, block
        x, y, width, height = map(int, match.groups()[3:])
        found.append((seconds(match[1]), seconds(match[2]), match[3], (x, y, width, height)))
    return found


@pytest.mark.parametrize("name", ["h264", "hevc_open_gop_fragmented", "rotated_wide_pixels", "delayed_video"])
def test_cues_cover_the_video_and_point_at_the_key_frames(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 0 to the end without a hole, each inside its sheet and showing the key frame of its time."""
    monkeypatch.setattr(storyboard, "STEP", Fraction(1, 2))
    monkeypatch.setattr(storyboard, "PER_SHEET", 4)
    monkeypatch.setattr(storyboard, "COLUMNS", 2)
    place = fresh(name)
    names = list(listed(Storyboards(), place))
    assert names == ["storyboard.vtt", *(storyboard.sheet_name(n) for n in range(len(names) - 1))]
    vtt, *sheets = made(Storyboards(), place, *names)
    opened = dict(zip(names[1:], (Image.open(io.BytesIO(sheet)) for sheet in sheets), strict=True))
    cues = cues_in(vtt.decode())
    movie: Movie = trio.run(source.open_movie, place)
    assert cues[0][0] == 0
    assert abs(cues[-1][1] - movie.duration) <= Fraction(1, 2000)
    assert all(cue[1] == after[0] for cue, after in pairwise(cues))
    assert {cue[2] for cue in cues} == set(opened)
    keys = list(listed(Pictures(), place, "keyframes"))
    stills = made(Videos(), place, *(f"k{number}.png" for number in range(len(keys))))
    for start, _, sheet, (x, y, width, height) in cues:
        assert x + width <= opened[sheet].width
        assert y + height <= opened[sheet].height
        before = [k for k, key in enumerate(keys) if Fraction(key[6:-5]) <= start + Fraction(1, 1000)]
        alone = stills[before[-1] if before else 0]
        expected = Image.open(io.BytesIO(alone)).resize((width, height), Image.Resampling.BICUBIC)
        tile = opened[sheet].crop((x, y, x + width, y + height)).convert("RGB")
        assert np.abs(np.asarray(tile).astype(int) - np.asarray(expected)).mean() < 12


def test_a_sheet_costs_its_key_frames() -> None:
    place = fresh("h264")
    movie: Movie = trio.run(source.open_movie, place)
    assert movie.video is not None
    before, samples = place.requested, movie.video.samples
    made(Storyboards(), place, "storyboard.jpg")
    assert place.requested - before <= int(samples.size[samples.sync].sum())


@pytest.mark.parametrize(
    "name", ["storyboard-1.jpg", "storyboard-2.jpg", "storyboard-0.jpg", "storyboard.png"]
)
def test_there_are_no_other_sheets(name: str) -> None:
    assert absent(Storyboards(), fresh("h264"), name)


def line(times: list[int], keys: list[bool], duration: int) -> Window:
    """Frames at times in milliseconds."""
    count = len(times)
    time = np.array(times, np.int64)
    none = np.zeros(count, np.int64)
    samples = Samples(time, none + 1, time, none, none, np.array(keys), np.ones(count, np.int32))
    track = Track(1, "vide", 1000, "avc1", samples)
    stored = StoredObject("x.mp4", 0, "v")
    movie = Movie(stored, 1000, (track,), Fraction(0), Fraction(duration, 1000))
    return Window(movie, track, Shown(np.arange(count), time, time + 1), 0, count - 1)


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.tuples(st.integers(1, 900_000), st.booleans()), min_size=1, max_size=60),
    rest=st.integers(1, 2_000_000),
)
# A key frame where a slot begins, which a rounded quotient would put into the slot before.
@example(gaps=[(416_614, False)], rest=416_614)
def test_cues_of_any_video(gaps: list[tuple[int, bool]], rest: int) -> None:
    """However long it is and wherever its key frames lie: every sheet has a tile, none too many."""
    times = np.cumsum([gap for gap, _ in gaps]).tolist()
    keys = [True, *(key for _, key in gaps[1:])]
    duration = times[-1] + rest
    found = storyboard.cues(line(times, keys, duration))
    assert found[0].start == 0
    assert found[-1].stop == Fraction(duration, 1000)
    assert all(cue.stop == after.start and cue.start < cue.stop for cue, after in pairwise(found))
    sheets = storyboard.sheet_count(Fraction(duration, 1000))
    assert sorted({cue.sheet for cue in found}) == list(range(sheets))
    assert sheets <= -(-storyboard.MAX_SLOTS // storyboard.PER_SHEET)
    for sheet in range(sheets):
        tiles = [cue.tile for cue in found if cue.sheet == sheet]
        assert tiles == list(range(len(tiles)))
        assert len(tiles) <= storyboard.PER_SHEET
    for cue in found:
        assert keys[cue.index]
        # Before the first key frame there is nothing else to show.
        assert cue.start >= Fraction(times[cue.index], 1000) or not any(keys[: cue.index])


def test_without_a_key_frame_there_is_no_storyboard() -> None:
    with pytest.raises(NoMedia, match="no key frame"):
        storyboard.cues(line([0, 40], [False, False], 80))


def test_a_key_frame_that_does_not_decode_is_black() -> None:
    place = exact.sample("h264_no_b")
    derived = parse_derived("0s-.npy")
    assert derived is not None
    samples = trio.run(window_of, place, derived.selection).track.samples
    data = bytearray(place.data)
    keys = np.flatnonzero(samples.sync)
    for row in keys[2:3]:
        at, size = int(samples.offset[row]), int(samples.size[row])
        data[at : at + size] = bytes(size)
    (sheet,) = made(Storyboards(), MemoryPlace(bytes(data), place.path), "storyboard.jpg")
    found = np.asarray(Image.open(io.BytesIO(sheet))).astype(int)
    assert found.shape == (90, 320, 3)
    assert found[:, 170:].max() < 16
    assert found[:, :150].mean() > 60
    for row in keys:
        at, size = int(samples.offset[row]), int(samples.size[row])
        data[at : at + size] = bytes(size)
    with pytest.raises(Damaged, match="no key frame comes out"):
        made(Storyboards(), MemoryPlace(bytes(data), place.path), "storyboard.jpg")


# ---------------------------------------------------------------- sizes, and files without pictures


def test_sizes_are_those_of_upright_pictures() -> None:
    entry = visual.Entry("h264", 1920, 1080, b"")
    assert shape.fitted(shape.upright(entry, b""), 160) == (160, 90)
    wide = visual.Entry("h264", 720, 576, b"", aspect=Fraction(64, 45))
    assert shape.fitted(shape.upright(wide, b""), 2000) == (1024, 576)
    tall = visual.Entry("h264", 720, 480, b"", aspect=Fraction(8, 9))
    assert shape.fitted(shape.upright(tall, b""), 2000) == (720, 540)
    thin = visual.Entry("h264", 4000, 2, b"")
    assert shape.fitted(shape.upright(thin, b""), 160) == (160, 1)
    with pytest.raises(Damaged, match="no size"):
        shape.upright(visual.Entry("h264", 0, 1080, b""), b"")


@pytest.mark.parametrize("view", [Pictures(), Storyboards()])
@pytest.mark.parametrize("data", [b"", bytes(4000), b"\0\0\0\x08moov"])
def test_of_what_is_no_video_nothing_is_listed(view: View, data: bytes) -> None:
    place = MemoryPlace(data, "games/x.mp4")
    assert listed(view, place) == {}
    assert absent(view, place, "thumbnail.png")
    assert absent(view, place, "storyboard.jpg")


def test_encrypted_pictures_say_so() -> None:
    data = exact.sample("h264").data
    at = data.index(b"avc1", data.index(b"stsd"))
    place = MemoryPlace(data[:at] + b"encv" + data[at + 4 :], "games/x.mp4")
    with pytest.raises(Unsupported, match="encrypted"):
        listed(Pictures(), place, "keyframes")
    with pytest.raises(Unsupported, match="encrypted"):
        made(Storyboards(), place, "storyboard.vtt")
    for ask in (
        partial_made(Pictures(), place, "thumbnail.png"),
        partial_made(Storyboards(), place, "storyboard.jpg"),
    ):
        with pytest.raises(Unsupported, match="encrypted"):
            trio.run(ask)


def partial_made(view: View, place: MemoryPlace, path: str) -> Callable[[], Awaitable[bytes]]:
    async def main() -> bytes:
        node = await node_of(view, place, path)
        assert isinstance(node, Bytes)
        return await node.produce()

    return main
