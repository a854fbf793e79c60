"""Animations joined from stills: what Pillow and FFmpeg find in them is what was put in."""

from __future__ import annotations

import io
import struct
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from vfs_mp4 import animation

from vfs import Damaged

JOIN = {"gif": animation.gif, "webp": animation.webp}


def still(pixels: NDArray[np.uint8], format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.quantize(256) if format == "gif" else image).save(out, format=format.upper(), **options)
    return out.getvalue()


def noise(number: int, width: int, height: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)


def pixels(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("format", JOIN)
@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    durations=st.lists(st.integers(2, 300), min_size=1, max_size=5),
)
def test_pictures_sizes_and_durations_come_out_as_they_went_in(
    format: str, size: tuple[int, int], durations: list[int]
) -> None:
    options = {"quality": 90} if format == "webp" else {}
    stills = [still(noise(n, *size), format, **options) for n in range(len(durations))]
    data = JOIN[format](stills, size, durations)
    tick = 10 if format == "gif" else 1
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size, image.info["loop"]) == (format.upper(), size, 0)
        for frame, alone, duration in zip(ImageSequence.Iterator(image), stills, durations, strict=True):
            assert np.array_equal(np.asarray(frame.convert("RGB")), pixels(alone))
            assert frame.info["duration"] == duration * tick


def test_ffmpeg_decodes_the_gif() -> None:
    stills = [still(noise(n, 33, 21), "gif") for n in range(4)]
    data = animation.gif(stills, (33, 21), [7, 6, 7, 50])
    with av.open(io.BytesIO(data), "r", format="gif") as container:
        frames = list(container.decode(video=0))
    assert [round(float(frame.time or 0) * 100) for frame in frames] == [0, 7, 13, 20]
    for frame, alone in zip(frames, stills, strict=True):
        assert np.array_equal(frame.to_ndarray(format="rgb24"), pixels(alone))


def test_stills_of_other_writers_are_taken() -> None:
    """Few colours, a table of its own for the image, comments before it; lossless WebP."""
    flat = np.zeros((4, 4, 3), np.uint8)
    gif = still(flat, "gif", comment=b"somebody was here")
    table_bytes = 3 << (gif[10] & 7) + 1
    at = gif.index(b",", 13 + table_bytes)
    local = gif[:10] + b"\0" + gif[11:13] + gif[13 + table_bytes : at + 9]
    local += bytes((0x80 | gif[10] & 7,)) + gif[13 : 13 + table_bytes] + gif[at + 10 :]
    joined = animation.gif([gif, local], (4, 4), [10, 10])
    with Image.open(io.BytesIO(joined)) as image:
        assert [np.asarray(f.convert("RGB")).max() for f in ImageSequence.Iterator(image)] == [0, 0]
    lossless = [still(noise(n, 5, 5), "webp", lossless=True) for n in range(2)]
    with Image.open(io.BytesIO(animation.webp(lossless, (5, 5), [40, 40]))) as image:
        for n, frame in enumerate(ImageSequence.Iterator(image)):
            assert np.array_equal(np.asarray(frame.convert("RGB")), noise(n, 5, 5))


def test_a_still_without_a_picture_is_damaged() -> None:
    with pytest.raises(Damaged, match="without a picture"):
        animation.webp([b"RIFF" + struct.pack("<I", 4) + b"WEBP"], (4, 4), [10])
    gif = still(noise(0, 4, 4), "gif")
    with pytest.raises(Damaged, match="without an image"):
        animation.gif([gif[: gif.index(b",", 13 + (3 << (gif[10] & 7) + 1))] + b";"], (4, 4), [10])
