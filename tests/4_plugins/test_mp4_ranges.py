"""Ranges as arrays and animations: every frame the source's, in step with it, through the real parts."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Awaitable, Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import trio
from numpy.typing import NDArray
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import mp4_exact as exact  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from vfs_mp4 import arrays, decode, previews, render, runs, timeline, visual  # noqa: E402
from vfs_mp4.plan import Window  # noqa: E402
from vfs_mp4.ranges import Ranges  # noqa: E402
from vfs_mp4.selecting import window_of  # noqa: E402

from vfs import Bytes, Damaged, Spliced, TooBig, Unsupported, parse_derived  # noqa: E402
from vfs.config import Settings  # noqa: E402
from vfs.runtime import Runtime, open_runtime  # noqa: E402

Pixels = NDArray[np.uint8]
PLAIN = visual.Entry("h264", 0, 0, b"")


def on(folder: Path, ask: Callable[[Runtime], Awaitable[None]]) -> None:
    """A session over a folder, with everything that a mount has but the kernel."""

    async def session() -> None:
        settings = Settings.load({"source": folder.as_uri(), "cache_dir": "none"}, environ={})
        async with open_runtime(settings) as runtime:
            await ask(runtime)

    trio.run(session)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """All generated samples."""
    for name in exact.SAMPLES:
        place = exact.sample(name)
        (tmp_path / place.name).write_bytes(place.data)
    return tmp_path


def frames_of(data: bytes) -> list[Pixels]:
    """Every frame of a full decode as RGB, by the conversion that single frames take."""
    with av.open(io.BytesIO(data), "r") as container:
        return [render.to_rgb(frame, PLAIN) for frame in container.decode(video=0)]


async def whole(runtime: Runtime, path: str) -> bytes:
    found = await runtime.tree.resolve(path)
    if isinstance(found.node, Bytes):
        return await runtime.tree.settle(found)
    assert isinstance(found.node, Spliced)
    data = await runtime.reader.fetch(found.node.layout)
    assert len(data) == found.size
    return data


def window(place: MemoryPlace, name: str) -> Window:
    derived = parse_derived(name)
    assert derived is not None
    return trio.run(window_of, place, derived.selection)


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_every_array_is_the_source_frame_by_frame(library: Path, part: int) -> None:
    """B-frames, open groups, variable rates, edit lists, fragments: the frames that the clip would show."""

    async def ask(runtime: Runtime) -> None:
        for name in list(exact.SAMPLES)[part::2]:
            place, truth = exact.sample(name), exact.truth(name)
            wanted = frames_of(place.data)
            begin = Fraction(random.Random(name).randrange(900), 1000)
            end = begin + Fraction(3, 2)
            data = await whole(runtime, f"{place.name}@{int(begin * 1000)}ms-{int(end * 1000)}ms.npy")
            found = np.load(io.BytesIO(data), allow_pickle=False)
            first, after = truth.between(begin, end)
            assert found.dtype == np.uint8, name
            assert found.shape == (after - first, *wanted[0].shape), name
            assert all(map(np.array_equal, found, wanted[first:after])), name

    on(library, ask)


def test_any_part_of_an_array_can_be_read_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = exact.sample("hevc_open_gop")
    (tmp_path / "x.mp4").write_bytes(place.data)
    monkeypatch.setattr(arrays, "PIECE", 3 * 320 * 180 * 3)
    pixels = b"".join(frame.tobytes() for frame in frames_of(place.data))

    async def ask(runtime: Runtime) -> None:
        found = await runtime.tree.resolve("x@0s-.npy")
        assert isinstance(found.node, Spliced)
        head = found.node.layout.size - len(pixels)
        expected = (await runtime.reader.read(found.node.layout, 0, head)).tobytes() + pixels  # type: ignore[union-attr]
        assert np.load(io.BytesIO(expected)).shape == (110, 180, 320, 3)
        rng = random.Random(3)
        for _ in range(12):
            at, length = rng.randrange(len(expected)), rng.randrange(400_000)
            assert (
                bytes(await runtime.reader.read(found.node.layout, at, length)) == expected[at : at + length]
            )

    on(tmp_path, ask)


def test_the_size_of_an_array_costs_no_media() -> None:
    """It is known as soon as the index is: no sample is read to tell it."""
    place = MemoryPlace(exact.sample("h264").data, "games/x.mp4")
    trio.run(window_of, place, parse_derived("0s-1s.npy").selection)  # type: ignore[union-attr]
    before = place.requested
    node = trio.run(Ranges().resolve, place, "0.5s-3s.npy")
    assert isinstance(node, Spliced)
    assert node.layout.size == 128 + 75 * 180 * 320 * 3
    assert place.requested == before
    assert (node.attributes["frames"], node.attributes["width"], node.attributes["height"]) == (
        "75", "320", "180",
    )  # fmt: skip


def test_a_read_in_sequence_decodes_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of one group of pictures go on with the decoder of the piece before."""
    fed: list[int] = []
    feed = decode.Decoder.decode

    def count(self: Any, pts: int, data: bytes, **options: bool) -> Any:
        fed.append(pts)
        return feed(self, pts, data, **options)

    async def here(function: Callable[..., Any], *arguments: Any, source: Any, **_: Any) -> Any:
        data = b"".join([bytes(piece) async for piece in source.stream(0, source.size)])
        return function(data, *arguments)

    monkeypatch.setattr(decode.Decoder, "decode", count)
    monkeypatch.setattr(arrays, "in_worker", here)
    monkeypatch.setattr(arrays, "PIECE", 2 * 320 * 180 * 3)
    place = MemoryPlace(exact.sample("h264").data, "games/sequence.mp4")
    node = trio.run(Ranges().resolve, place, "f0-f90.npy")
    assert isinstance(node, Spliced)
    body: Any = node.layout.spans[1].object  # type: ignore[union-attr]
    for at in range(0, body.size, body.grain):
        trio.run(body.make, at, body.grain)
    # Three groups of 30: a first frame is decoded alone, and a decoder is fed ahead of what it puts out.
    assert len(fed) <= 90 + 3 * 6


def test_pictures_of_another_size_than_promised_are_an_error(tmp_path: Path) -> None:
    data = bytearray(exact.sample("h264").data)
    at = data.index(b"avc1", data.index(b"stsd")) + 4 + 24
    data[at : at + 4] = (160).to_bytes(2, "big") + (90).to_bytes(2, "big")
    (tmp_path / "x.mp4").write_bytes(data)

    async def ask(runtime: Runtime) -> None:
        with pytest.raises(Damaged, match="320 x 180 where the description says 160 x 90"):
            await whole(runtime, "x@0s-1s.npy")
        assert len(await whole(runtime, "x@0s.npy")) == 128 + 180 * 320 * 3

    on(tmp_path, ask)


def test_a_damaged_group_spoils_its_own_frames_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "PIECE", 1)
    place = exact.sample("h264_no_b")
    track = window(place, "0s-.npy").track.samples
    data = bytearray(place.data)
    for row in range(30, 60):
        at, size = int(track.offset[row]), int(track.size[row])
        data[at : at + size] = bytes(size)
    (tmp_path / "x.mp4").write_bytes(data)
    wanted = frames_of(place.data)

    async def ask(runtime: Runtime) -> None:
        node = (await runtime.tree.resolve("x@0s-.npy")).node
        assert isinstance(node, Spliced)
        picture = wanted[0].size
        for frame in (0, 29, 60, 109):
            found = await runtime.reader.read(node.layout, 128 + frame * picture, picture)
            assert bytes(found) == wanted[frame].tobytes()
        with pytest.raises(Damaged):
            await runtime.reader.read(node.layout, 128 + 40 * picture, picture)

    on(tmp_path, ask)


# ---------------------------------------------------------------- which frames together


@pytest.mark.parametrize("name", ["h264", "h264_open_gop", "hevc_open_gop", "hevc_radl_fragmented", "vfr"])
def test_frames_are_split_where_another_key_frame_is_decoded_from(name: str) -> None:
    """As one frame alone would be, and every frame stands in exactly one piece."""
    found = window(exact.sample(name), "0s-.npy")
    pieces = runs.split(found, range(len(found.shown)))
    assert np.concatenate(pieces).tolist() == list(range(len(found.shown)))
    begins = [[timeline.start_row(found.track, found.shown.order[[i]]) for i in piece] for piece in pieces]
    assert all(len(set(rows)) == 1 for rows in begins)
    assert [rows[0] for rows in begins] == sorted({rows[0] for rows in begins})
    for piece in pieces:
        job = runs.run(found, piece).job
        assert set(runs.run(found, piece).pts) <= set(job.pts)
        assert bool(found.track.samples.sync[begins[0][0]])


# ---------------------------------------------------------------- animations


def opened(data: bytes, format: str) -> tuple[list[Pixels], list[int]]:
    """Pictures and durations in milliseconds, by Pillow."""
    pictures, durations = [], []
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == format.upper()
        assert image.info["loop"] == 0
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            pictures.append(np.asarray(image.convert("RGB")))
            durations.append(int(image.info["duration"]))
    return pictures, durations


def test_an_animation_shows_the_frames_of_the_range(library: Path) -> None:
    """At most one in 64 ms, for as long as the source shows them, turned and stretched as a player does."""

    async def ask(runtime: Runtime) -> None:
        for name in ("h264", "hevc_open_gop", "vfr_fragmented", "rotated_wide_pixels", "trimmed", "ntsc"):
            place, truth = exact.sample(name), exact.truth(name)
            with av.open(io.BytesIO(place.data), "r") as container:
                source = [
                    Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)
                ]
            first, after = truth.between(Fraction(1, 2), Fraction(2))
            times = [frame.time for frame in truth.frames]
            kept = [first]
            for index in range(first, after):
                if times[index] - times[kept[-1]] >= previews.STEP:
                    kept.append(index)
            ends = [*(times[index] for index in kept[1:]), times[after]]
            for format, unit in (("gif", 10), ("webp", 1))[name in ("h264", "trimmed", "ntsc") :]:
                pictures, durations = opened(await whole(runtime, f"{place.name}@0.5s-2s.{format}"), format)
                assert len(pictures) == len(kept), (name, format)
                at = 0.0
                for number, (index, length) in enumerate(zip(kept, durations, strict=True)):
                    assert abs(at - float(times[index] - times[first]) * 1000) <= unit / 2 + 0.01
                    at += length
                    assert difference(pictures[number], source[index], name) < (14 if format == "gif" else 8)
                assert abs(at - float(ends[-1] - times[first]) * 1000) <= unit / 2 + 0.01, (name, format)

    on(library, ask)


def difference(found: Pixels, source: Image.Image, name: str) -> float:
    """Mean difference to the frame it should be, made upright by hand."""
    if name == "rotated_wide_pixels":
        source = source.resize((427, 180)).rotate(-90, expand=True)
    assert found.shape[:2] == (source.height, source.width)
    return float(np.abs(found.astype(int) - np.asarray(source.convert("RGB"))).mean())


def test_large_pictures_are_made_small_and_small_ones_are_not_enlarged(tmp_path: Path) -> None:
    for name, size in (("wide", (1280, 640)), ("tall", (360, 640)), ("tiny", (64, 48))):
        exact.encode(tmp_path / f"{name}.mp4", frames=6, size=size, audio=False)

    async def ask(runtime: Runtime) -> None:
        for name, size in (("wide", (480, 240)), ("tall", (270, 480)), ("tiny", (64, 48))):
            for format in ("gif", "webp"):
                found = await runtime.tree.resolve(f"{name}@0s-.{format}")
                assert (found.attributes["width"], found.attributes["height"]) == tuple(map(str, size))
                pictures, _ = opened(await runtime.tree.settle(found), format)
                assert {picture.shape for picture in pictures} == {(size[1], size[0], 3)}

    on(tmp_path, ask)


def test_what_does_not_decode_leaves_the_picture_before_where_it_is(tmp_path: Path) -> None:
    place = exact.sample("h264_no_b")
    track = window(place, "0s-.npy").track.samples
    data = bytearray(place.data)
    for row in range(30, 60):
        at, size = int(track.offset[row]), int(track.size[row])
        data[at : at + size] = bytes(size)
    (tmp_path / "x.mp4").write_bytes(data)

    async def ask(runtime: Runtime) -> None:
        pictures, durations = opened(await whole(runtime, "x@0s-3s.webp"), "webp")
        assert len(pictures) == 30
        assert sum(durations) == 3000
        assert max(durations) in (1066, 1067)
        with pytest.raises(Damaged, match="none of the pictures"):
            await whole(runtime, "x@1.2s-1.8s.gif")

    on(tmp_path, ask)


def test_limits_are_named_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    place = MemoryPlace(exact.sample("h264").data, "games/limits.mp4")
    monkeypatch.setattr(previews, "MAX_PICTURES", 20)
    with pytest.raises(TooBig, match="more than 20 pictures for one animation; take a shorter range"):
        trio.run(Ranges().resolve, place, "0s-2s.gif")
    assert trio.run(Ranges().resolve, place, "0s-1s.gif") is not None
    monkeypatch.setattr(previews, "MAX_MEDIA", 1000)
    with pytest.raises(TooBig, match="the limit is 1000; take a shorter range"):
        trio.run(Ranges().resolve, place, "0s-1s.webp")


def test_the_result_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "MAX_RESULT", 1000)
    (tmp_path / "x.mp4").write_bytes(exact.sample("h264").data)

    async def ask(runtime: Runtime) -> None:
        with pytest.raises(TooBig, match="the limit is 1000; take a shorter range"):
            await whole(runtime, "x@0s-1s.gif")

    on(tmp_path, ask)


@pytest.mark.parametrize("name", ["1s.gif", "1s.npy", "1s-2s.jpg", "1s-2s.key.gif", "2s-1s.gif", "1s-2s.GIF"])
def test_what_is_no_range_is_left_to_others_without_a_read(name: str) -> None:
    place = MemoryPlace(exact.sample("h264").data, "games/x.mp4")
    assert trio.run(Ranges().resolve, place, name) is None
    assert trio.run(Ranges().entries, place) == {}
    assert place.log == []


def test_spellings_of_one_range_are_the_same_bytes() -> None:
    place = MemoryPlace(exact.sample("h264").data, "games/x.mp4")
    for spellings in (("1s-2s", "1.0-2000ms", "1s+1s"), ("0s-", "0-")):
        for format in ("npy", "gif", "webp"):
            nodes = [trio.run(Ranges().resolve, place, f"{spelling}.{format}") for spelling in spellings]
            assert len({node.version for node in nodes if isinstance(node, Bytes | Spliced)}) == 1


@pytest.mark.parametrize("format", ["npy", "gif", "webp"])
def test_other_ranges_are_other_versions(format: str) -> None:
    """Also where they need the same samples and are as long."""
    place, seen = MemoryPlace(exact.sample("h264").data, "games/x.mp4"), set()
    for first in range(0, 8):
        for length in (2, 3, 4):
            node = trio.run(Ranges().resolve, place, f"f{first}+f{length}.{format}")
            assert isinstance(node, Bytes | Spliced)
            seen.add(node.version)
    assert len(seen) == 8 * 3


def test_sound_alone_has_no_pictures(tmp_path: Path) -> None:
    exact.encode(tmp_path / "x.mp4", frames=30)
    with av.open(str(tmp_path / "x.mp4")) as source, av.open(str(tmp_path / "y.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    place = MemoryPlace((tmp_path / "y.mp4").read_bytes(), "games/y.mp4")
    for format in ("npy", "gif"):
        with pytest.raises(Unsupported, match="mp4a"):
            trio.run(Ranges().resolve, place, f"0s-0.5s.{format}")


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        "torchcodec_bt709_full_range.mp4",
        "media_sample_edit_list.mp4",
        "media_sample_partially_fragmented.mp4",
    ],
)
def test_real_files(name: str, tmp_path: Path) -> None:
    """Files nobody here wrote: each frame of a range is what the frame alone is."""
    place = exact.shared(name)
    (tmp_path / "x.mp4").write_bytes(place.data)

    async def ask(runtime: Runtime) -> None:
        found = np.load(io.BytesIO(await whole(runtime, "x@f0-f16.npy")))
        for number in random.Random(name).sample(range(len(found)), 3):
            assert np.array_equal(
                found[number], np.load(io.BytesIO(await whole(runtime, f"x@f{number}.npy")))
            )
        pictures, _ = opened(await whole(runtime, "x@f0-f16.webp"), "webp")
        assert len(pictures) >= 6

    on(tmp_path, ask)
