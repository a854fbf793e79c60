"""Frames as pictures: the right one, in the right colours, the right way up."""

from __future__ import annotations

import io
import random
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import trio
from numpy.typing import NDArray
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import mp4_exact as exact  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from vfs_mp4 import render, visual  # noqa: E402
from vfs_mp4.plugin import Videos  # noqa: E402

from vfs import Bytes, Damaged, TooBig, Unsupported  # noqa: E402
from vfs.workers import open_workers  # noqa: E402

Pixels = NDArray[np.uint8]

#: No sample entry says anything of colour: as the tests make them.
PLAIN = visual.Entry("h264", 0, 0, b"")


def pictures(place: MemoryPlace, *names: str) -> list[bytes]:
    async def main() -> list[bytes]:
        async with open_workers():
            return [await exact.produced(place, name) for name in names]

    return trio.run(main)


def array(data: bytes) -> Pixels:
    loaded: Pixels = np.load(io.BytesIO(data), allow_pickle=False)
    return loaded


def reference(place: MemoryPlace) -> list[Pixels]:
    """Every frame of a full decode, through the same conversion to RGB."""
    with av.open(io.BytesIO(place.data), "r") as container:
        return [render.to_rgb(frame, PLAIN) for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", [n for n in exact.SAMPLES if n not in ("h264", "opus", "silent_mov")])
def test_a_frame_is_the_source_s_pixel_by_pixel(name: str) -> None:
    place, truth = exact.sample(name), exact.truth(name)
    rng = random.Random(name)
    duration = truth.frames[-1].time - truth.zero
    times = [Fraction(rng.randrange(int(duration * 1000)), 1000) for _ in range(5)]
    wanted = reference(place)
    found = pictures(place, *(f"{int(t * 1000)}ms.npy" for t in times), "f0.npy", f"f{len(wanted) - 1}.npy")
    ranks = [*(truth.at(t) for t in times), 0, len(wanted) - 1]
    for data, rank in zip(found, ranks, strict=True):
        assert np.array_equal(array(data), wanted[rank]), rank


@pytest.mark.parametrize("format", ["jpg", "png", "webp", "bmp", "ppm"])
def test_each_format_is_the_same_picture(format: str) -> None:
    found, raw = pictures(exact.sample("h264"), f"1.5s.{format}", "1.5s.npy")
    image = np.asarray(Image.open(io.BytesIO(found)).convert("RGB"))
    lossless = format in ("png", "bmp", "ppm")
    difference = np.abs(image.astype(int) - array(raw))
    assert difference.max() == 0 if lossless else difference.mean() < 6
    wanted = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "ppm": "PPM"}
    assert Image.open(io.BytesIO(found)).format == wanted[format]


def test_pictures_are_turned_and_stretched_but_arrays_are_not() -> None:
    png, raw = pictures(exact.sample("rotated_wide_pixels"), "1s.png", "1s.npy")
    coded = array(raw)
    assert coded.shape == (180, 320, 3)
    image = Image.open(io.BytesIO(png))
    # 320 x 4/3 wide, then a quarter turn clockwise.
    assert image.size == (180, 427)
    upright = np.asarray(image.rotate(90, expand=True).resize((320, 180))).astype(int)
    assert np.abs(upright - coded).mean() < 8


MATRICES = {
    (1, 0, 0, 1): lambda p: p,
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),
    (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
}


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("matrix", MATRICES)
def test_every_quarter_turn_and_mirror(matrix: tuple[int, int, int, int], version: int) -> None:
    a, b, c, d = (value * 0x10000 for value in matrix)
    numbers = np.array([a, b, 0, c, d, 0, 0, 0, 0x40000000], ">i4").tobytes()
    tkhd = bytes(4) + b"tkhd" + bytes((version, 0, 0, 7)) + bytes(48 if version else 36) + numbers + bytes(8)
    pixels = np.random.default_rng(1).integers(0, 255, (4, 6, 3), np.uint8)
    found = render.turned(Image.fromarray(pixels), tkhd)
    assert np.array_equal(np.asarray(found), MATRICES[matrix](pixels))


COEFFICIENTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


def flat(width: int, height: int, values: tuple[int, int, int]) -> av.VideoFrame:
    """One colour, as luma, blue and red difference."""
    planes = np.stack([np.full((height, width), value, np.uint8) for value in values])
    return av.VideoFrame.from_ndarray(planes, "yuv444p")


@pytest.mark.parametrize("matrix", [1, 2, 5, 6, 9])
@pytest.mark.parametrize("full", [False, True])
def test_matrix_and_range_give_the_colours_of_the_standard(matrix: int, full: bool) -> None:
    """One flat colour, against the formula of H.273 worked out here. 2 = not said: BT.601 for a small one."""
    luma, blue, red = 140, 100, 170
    frame = flat(64, 64, (luma, blue, red))
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    kr, kb = COEFFICIENTS.get(matrix, COEFFICIENTS[5])
    y = luma / 255 if full else (luma - 16) / 219
    cb, cr = ((v - 128) / (255 if full else 224) for v in (blue, red))
    r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    g = (y - kr * r - kb * b) / (1 - kr - kb)
    wanted = [round(255 * min(max(v, 0), 1)) for v in (r, g, b)]
    got = render.to_rgb(frame, PLAIN)[32, 32].astype(int)
    assert np.abs(got - wanted).max() <= 2, (got, wanted)


def test_colr_and_size_decide_where_the_stream_is_silent() -> None:
    small, large = flat(64, 64, (100, 100, 200)), flat(1280, 720, (100, 100, 200))
    as_709 = visual.Entry("h264", 0, 0, b"", matrix=1)
    assert np.array_equal(render.to_rgb(small, as_709)[0, 0], render.to_rgb(large, PLAIN)[0, 0])
    assert not np.array_equal(render.to_rgb(small, PLAIN)[0, 0], render.to_rgb(large, PLAIN)[0, 0])


def test_planes_give_the_same_values_as_packed_pixels() -> None:
    """Which swscale promises nowhere; the first is what is done, the second what it is meant to be."""
    from av.video.reformatter import Interpolation, VideoReformatter

    rng = np.random.default_rng(3)
    for format in (
        "yuv420p",
        "yuvj420p",
        "yuv422p",
        "yuv444p",
        "nv12",
        "yuv420p10le",
        "pal8",
        "gbrp",
        "gray",
    ):
        frame = av.VideoFrame(321, 181, format)
        for plane in frame.planes:
            plane.update(rng.integers(0, 4, plane.buffer_size, np.uint8).tobytes())
        frame.colorspace, frame.color_range = 1, 1
        packed = VideoReformatter().reformat(
            frame,
            format="rgb24",
            src_colorspace=1,
            src_color_range=1,
            dst_color_range=2,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
        )
        if format in ("gbrp", "gray"):
            packed = VideoReformatter().reformat(frame, format="rgb24")
        found = render.to_rgb(frame, PLAIN)
        assert np.array_equal(found, packed.to_ndarray()), format
        assert np.array_equal(np.asarray(render.upright(frame, PLAIN, b"")), found), format


# ---------------------------------------------------------------- hostile and unknown


def job(stsd: bytes, codec: str = "avc1", description: int = 1) -> visual.Job:
    return visual.Job(codec, stsd, b"", description, (4,), (0,), 0, 1000)


def stsd(width: int, height: int) -> bytes:
    entry = bytes(24) + width.to_bytes(2, "big") + height.to_bytes(2, "big") + bytes(50)
    whole = (8 + len(entry)).to_bytes(4, "big") + b"avc1" + entry
    return (16 + len(whole)).to_bytes(4, "big") + b"stsd" + bytes(7) + b"\1" + whole


def test_a_picture_that_claims_to_be_enormous_is_refused_before_decoding() -> None:
    with pytest.raises(TooBig, match="65535 x 65535"):
        render.picture(b"\0\0\0\0", job(stsd(65535, 65535)), "jpg")


def test_an_unknown_codec_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="'wxyz'"):
        render.picture(b"\0\0\0\0", job(stsd(64, 64), "wxyz"), "jpg")


@pytest.mark.parametrize("broken", [b"", stsd(64, 64)[:60], stsd(64, 64)])
def test_a_broken_description_or_sample_is_damage(broken: bytes) -> None:
    with pytest.raises(Damaged):
        render.picture(b"\0\0\0\0", job(broken), "jpg")


def test_every_prefix_of_an_esds_ends() -> None:
    payload = bytes(4) + b"\x03\x19\0\1\0\x04\x11\x20\x15" + bytes(11) + b"\x05\x80\x80\x03abc\x06\1\2"
    results = [visual._esds(payload[:n]) for n in range(len(payload) + 1)]
    assert results[-1] == (0x20, b"abc")
    for n in range(len(payload)):
        visual._esds(b"\xff" * n)


def test_damaged_media_is_one_error_and_the_next_frame_is_fine() -> None:
    good = exact.sample("h264_no_b")
    data = bytearray(good.data)
    start = data.index(b"mdat") + 4
    for at in range(start, start + 60_000, 7):
        data[at] ^= 0x5A
    bad = MemoryPlace(bytes(data), good.path)

    async def main() -> bytes:
        async with open_workers():
            with pytest.raises(Damaged):
                await exact.produced(bad, "f3.png")
            return await exact.produced(good, "f3.png")

    assert trio.run(main).startswith(b"\x89PNG")


# ---------------------------------------------------------------- what it costs


def test_a_frame_reads_from_its_key_to_itself() -> None:
    place = exact.sample("h264")

    async def node() -> Bytes:
        found = await Videos().resolve(place, "f35.jpg")
        assert isinstance(found, Bytes)
        return found

    found = trio.run(node)
    assert found.reads is not None
    assert 0 < found.reads.size < place.size / 5
    assert found.size is None


def test_versions_of_frames_differ_by_frame_and_format() -> None:
    place = exact.sample("h264")

    async def versions() -> list[object]:
        names = ("f35.jpg", "f36.jpg", "f35.png", "f0.jpg")
        return [getattr(await Videos().resolve(place, name), "version", None) for name in names]

    assert len(set(trio.run(versions))) == 4
