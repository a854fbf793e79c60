"""One frame out of its samples, as a picture. Runs in worker processes; nothing here is called in the daemon.

The media and picture libraries are imported inside the functions, so that naming one of them to the pool
costs the daemon nothing.
"""

from __future__ import annotations

import importlib
import io
import struct
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vfs import TooBig, WorkerFile
from vfs_mp4.gops import Groups
from vfs_mp4.visual import MAX_PIXELS, UNSAID, Entry, Job, read_entry

if TYPE_CHECKING:
    import av
    from PIL import Image

Picture = NDArray[np.uint8]

#: Largest picture after the pixel aspect is applied, each side: what JPEG can hold.
MAX_SIDE = 65_500
#: nclx matrix coefficients (ITU-T H.273) as swscale's colour spaces; 2 = not said.
_BT709, _BT601, _FULL = 1, 5, 2
#: A picture larger than standard definition whose matrix is not said is taken as BT.709, as players do.
_SD_WIDTH, _SD_HEIGHT = 1279, 576
JPEG_QUALITY, WEBP_QUALITY = 90, 85


#: Of this process: what one job decodes the next may need.
_groups = Groups()


def prepare() -> None:
    """Import what decodes and draws, which takes longer than most pictures."""
    importlib.import_module("av")
    importlib.import_module("PIL.Image")


def picture(data: bytes | WorkerFile, job: Job, format: str) -> bytes:
    """The wanted frame as a file: `jpg`, `png`, `webp`, `bmp`, `ppm` or `npy`.

    Raises Unsupported without a decoder, TooBig for pictures over the limit, Damaged when the frame does
    not come out.
    """
    if format == "npy":
        return _npy(coded_picture(data, job))
    entry = read_entry(job)
    return _encode(upright(_groups.frame(job, data), entry, job.tkhd), format)


def drawn(frame: av.VideoFrame, entry: Entry, tkhd: bytes, format: str) -> bytes:
    """A decoded frame as a file. Raises TooBig."""
    if format == "npy":
        return _npy(to_rgb(frame, entry))
    return _encode(upright(frame, entry, tkhd), format)


def coded_picture(data: bytes | WorkerFile, job: Job) -> Picture:
    """The wanted frame as RGB, height x width x 3, neither turned nor scaled. Raises as `picture`."""
    entry = read_entry(job)
    return to_rgb(_groups.frame(job, data), entry)


def upright(frame: av.VideoFrame, entry: Entry, tkhd: bytes) -> Image.Image:
    """The picture as it is to be looked at: RGB, square pixels, turned as the track header says."""
    aspect = entry.aspect or frame_aspect(frame)
    return turned(_stretched(_merged(_planes(frame, entry)), aspect), tkhd)


def frame_aspect(frame: av.VideoFrame) -> Fraction:
    """Width / height of a pixel as the bit stream says; 1 where it does not."""
    aspect = getattr(frame, "sample_aspect_ratio", None)
    return Fraction(aspect) if aspect else Fraction(1)


def to_rgb(frame: av.VideoFrame, entry: Entry) -> Picture:
    """The coded picture as RGB, height x width x 3: neither turned nor scaled."""
    return np.ascontiguousarray(_planes(frame, entry).to_ndarray())


def _planes(frame: av.VideoFrame, entry: Entry) -> av.VideoFrame:
    """The coded picture as planes of green, blue and red, in this order.

    What the bit stream says of matrix and range comes first, then colr, then the habit of players.
    """
    if frame.width * frame.height > MAX_PIXELS:
        raise TooBig(f"a picture of {frame.width} x {frame.height}: the limit is {MAX_PIXELS} pixels")
    matrix = int(frame.colorspace)
    if matrix == UNSAID:
        large = frame.width > _SD_WIDTH or frame.height > _SD_HEIGHT
        matrix = entry.matrix or (_BT709 if large else _BT601)
    range_ = int(frame.color_range) or (_FULL if entry.full or frame.format.name.startswith("yuvj") else 1)
    # H.273 numbers: 6 (SMPTE 170M) has the coefficients of 5; 10 (BT.2020 constant luminance) is not done.
    return _reformatted(frame, {6: _BT601, 10: 9}.get(matrix, matrix), range_)


def _reformatted(frame: av.VideoFrame, space: int, range_: int) -> av.VideoFrame:
    """Planes and not rgb24: the same values in a quarter of the time, since swscale need not interleave."""
    from av.video.reformatter import Interpolation, VideoReformatter

    if frame.format.is_rgb or frame.format.name.startswith("gray"):
        return VideoReformatter().reformat(frame, format="gbrp", threads=1)
    return VideoReformatter().reformat(
        frame,
        format="gbrp",
        src_colorspace=space,
        src_color_range=range_,
        dst_color_range=_FULL,
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
        threads=1,
    )


def _merged(planes: av.VideoFrame) -> Image.Image:
    from PIL import Image

    size = planes.width, planes.height
    green, blue, red = (
        Image.frombuffer(
            "L", size, np.frombuffer(memoryview(plane), np.uint8), "raw", "L", plane.line_size, 1
        )
        for plane in planes.planes
    )
    return Image.merge("RGB", (red, green, blue))


# ---------------------------------------------------------------- for looking at


def turned(image: Image.Image, tkhd: bytes) -> Image.Image:
    """The picture as the matrix of the track header wants it shown: quarter turns and mirrors."""
    from PIL.Image import Transpose

    start = 8 + (52 if tkhd[8:9] == b"\1" else 40)
    if len(tkhd) < start + 36:
        return image
    a, b, _, c, d = struct.unpack_from(">5i", tkhd, start)
    if a and d and not b and not c:
        flip_x, flip_y = a < 0, d < 0
    elif b and c and not a and not d:
        image, flip_x, flip_y = image.transpose(Transpose.TRANSPOSE), c < 0, b < 0
    else:
        return image
    if flip_x:
        image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
    return image.transpose(Transpose.FLIP_TOP_BOTTOM) if flip_y else image


def _stretched(image: Image.Image, aspect: Fraction) -> Image.Image:
    """Square pixels: the longer way is stretched, nothing is thrown away."""
    from PIL.Image import Resampling

    width, height = image.size
    new = (round(width * aspect), height) if aspect >= 1 else (width, round(height / aspect))
    # An absurd ratio is a slip or an attack.
    if new == (width, height) or max(new) > MAX_SIDE or new[0] * new[1] > MAX_PIXELS:
        return image
    return image.resize(new, Resampling.BICUBIC)


def _encode(image: Image.Image, format: str) -> bytes:
    options: dict[str, dict[str, Any]] = {
        "jpg": {"format": "JPEG", "quality": JPEG_QUALITY},
        # Level 2 of 9: a third of the time of the default for a twentieth more bytes.
        "png": {"format": "PNG", "compress_level": 2},
        "webp": {"format": "WEBP", "quality": WEBP_QUALITY, "method": 2},
        "bmp": {"format": "BMP"},
        "ppm": {"format": "PPM"},
    }
    out = io.BytesIO()
    try:
        image.save(out, **options[format])
    except (OSError, ValueError) as error:
        raise TooBig(f"{image.width} x {image.height} does not fit {format}: {error}") from None
    return out.getvalue()


def _npy(pixels: Picture) -> bytes:
    out = io.BytesIO()
    np.save(out, pixels, allow_pickle=False)
    return out.getvalue()
