"""One frame out of its samples, as a picture. Runs in worker processes; nothing here is called in the daemon.

The media and picture libraries are imported inside the functions, so that naming one of them to the pool
costs the daemon nothing.
"""

from __future__ import annotations

import importlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vfs import Damaged, TooBig, Unsupported

if TYPE_CHECKING:
    import av

Picture = NDArray[np.uint8]

#: Largest picture decoded: 8K (7680 x 4320) with room for 8192 x 8192 panoramas.
MAX_PIXELS = 1 << 26
#: Largest picture after the pixel aspect is applied, each side: what JPEG can hold.
MAX_SIDE = 65_500
#: Decoder by sample entry 4cc. What several codecs share (mp4v) is told apart by its esds.
DECODERS = {
    "avc1": "h264", "avc3": "h264", "dva1": "h264", "dvav": "h264",
    "hvc1": "hevc", "hev1": "hevc", "dvh1": "hevc", "dvhe": "hevc",
    "av01": "libdav1d", "vp08": "vp8", "vp09": "vp9", "vvc1": "vvc", "vvi1": "vvc",
    "s263": "h263", "h263": "h263", "jpeg": "mjpeg", "mjpa": "mjpeg", "mjpb": "mjpegb", "png ": "png",
    "apcn": "prores", "apch": "prores", "apcs": "prores", "apco": "prores", "ap4h": "prores",
    "ap4x": "prores", "SVQ1": "svq1", "SVQ3": "svq3", "rle ": "qtrle", "cvid": "cinepak", "mp4v": "mpeg4",
}  # fmt: skip
#: MPEG-4 object type in esds (ISO/IEC 14496-1, table 5) -> decoder, where it is not part 2.
_OBJECT_TYPES = {0x6A: "mpeg1video", 0x6C: "mjpeg", 0x6D: "png", 0x6E: "jpeg2000"} | dict.fromkeys(
    range(0x60, 0x66), "mpeg2video"
)
#: Boxes of a sample entry whose payload a decoder takes as its set-up, and how much of it to skip: vvcC alone
#: is a full box (ISO/IEC 14496-15, 11.2.4.2), its version and flags are no part of the set-up.
_SETUP = {b"avcC": 0, b"hvcC": 0, b"av1C": 0, b"vvcC": 4, b"glbl": 0}
#: Decoders in which a frame that nothing refers to can be told and skipped. Not HEVC: there a frame of a
#: higher temporal layer may still refer to it.
_SKIPPABLE = frozenset(("h264", "mpeg4", "mpeg2video", "mpeg1video"))
#: nclx matrix coefficients (ITU-T H.273) as swscale's colour spaces; 2 = not said.
_BT709, _UNSAID, _BT601, _FULL = 1, 2, 5, 2
#: A picture larger than standard definition whose matrix is not said is taken as BT.709, as players do.
_SD_WIDTH, _SD_HEIGHT = 1279, 576
JPEG_QUALITY, WEBP_QUALITY = 90, 85


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to know. stsd, tkhd: whole boxes; description: 1-based sample entry of all samples.

    sizes, pts: of the samples, which lie one behind the other in the data. wanted: pts of the frame.
    """

    codec: str
    stsd: bytes
    tkhd: bytes
    description: int
    sizes: tuple[int, ...]
    pts: tuple[int, ...]
    wanted: int
    timescale: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A visual sample entry. aspect: width / height of a pixel; matrix, full: of colr, None = not said."""

    decoder: str
    width: int
    height: int
    setup: bytes
    aspect: Fraction | None = None
    matrix: int | None = None
    full: bool | None = None


def prepare() -> None:
    """Import what decodes and draws, which takes longer than most pictures."""
    importlib.import_module("av")
    importlib.import_module("PIL.Image")


def picture(job: Job, data: bytes, format: str) -> bytes:
    """The wanted frame as a file: `jpg`, `png`, `webp`, `bmp`, `ppm` or `npy`.

    Raises Unsupported without a decoder, TooBig for pictures over the limit, Damaged when the frame does
    not come out.
    """
    entry = read_entry(job)
    frame = decode(job, entry, data)
    pixels = to_rgb(frame, entry)
    if format == "npy":
        return _npy(pixels)
    aspect = entry.aspect or frame_aspect(frame)
    return _encode(turned(_stretched(pixels, aspect), job.tkhd), format)


# ---------------------------------------------------------------- sample entry


def read_entry(job: Job) -> Entry:
    """The sample entry of a job. Raises Damaged or Unsupported."""
    entries = list(_children(job.stsd, 16, len(job.stsd)))
    if not 1 <= job.description <= len(entries):
        raise Damaged(f"there is no sample description {job.description}")
    _, start, stop = entries[job.description - 1]
    # 8 bytes of SampleEntry, 16 unused, then the size; child boxes after 78 bytes.
    if stop - start < 78:
        raise Damaged("the sample description is cut short")
    width, height = struct.unpack_from(">HH", job.stsd, start + 24)
    if width * height > MAX_PIXELS:
        raise TooBig(f"pictures of {width} x {height}: the limit is {MAX_PIXELS} pixels")
    inner = {kind: job.stsd[low:high] for kind, low, high in _children(job.stsd, start + 78, stop)}
    decoder, setup = DECODERS.get(job.codec), b""
    if decoder == "mpeg4":
        kind, setup = _esds(inner.get(b"esds", b""))
        decoder = _OBJECT_TYPES.get(kind, decoder)
    if decoder is None:
        raise Unsupported(f"no decoder for {job.codec!r}")
    setup = next((inner[name][skip:] for name, skip in _SETUP.items() if name in inner), setup)
    matrix, full = _colour(inner.get(b"colr", b""))
    return Entry(decoder, width, height, setup, _aspect(inner.get(b"pasp", b"")), matrix, full)


def _children(data: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """(4cc, payload start, payload end) of small boxes."""
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        if not 8 <= size <= stop - start:
            return
        yield kind, start + 8, start + size
        start += size


def _aspect(pasp: bytes) -> Fraction | None:
    across, down = struct.unpack_from(">II", pasp) if len(pasp) >= 8 else (0, 0)
    return Fraction(across, down) if across and down else None


def _colour(colr: bytes) -> tuple[int | None, bool | None]:
    """Matrix and range of an nclx (or QuickTime's nclc, which does not tell the range) colour box."""
    if colr[:4] not in (b"nclx", b"nclc") or len(colr) < 10:
        return None, None
    matrix = int.from_bytes(colr[8:10], "big")
    full = bool(colr[10] & 0x80) if colr[:4] == b"nclx" and len(colr) > 10 else None
    return (None if matrix == _UNSAID else matrix), full


def _esds(payload: bytes) -> tuple[int, bytes]:
    """Object type and decoder set-up: descriptors 3 > 4 > 5 of ISO/IEC 14496-1, 7.2.6."""
    at, kind = 4, 0
    while at < len(payload):
        tag, at, length = (*_descriptor(payload, at),)
        if tag == 3:
            flags = payload[at + 2] if at + 2 < len(payload) else 0
            at += 3 + 2 * bool(flags & 0x80) + 2 * bool(flags & 0x20)
            if flags & 0x40 and at < len(payload):
                at += 1 + payload[at]
        elif tag == 4:
            kind = payload[at] if at < len(payload) else 0
            at += 13
        elif tag == 5:
            return kind, payload[at : at + length]
        else:
            at += length
    return kind, b""


def _descriptor(payload: bytes, at: int) -> tuple[int, int, int]:
    """(tag, start, length): the length is written in 7-bit groups, four at most."""
    tag, at, length = payload[at], at + 1, 0
    for _ in range(4):
        if at >= len(payload):
            break
        byte = payload[at]
        at, length = at + 1, length << 7 | byte & 0x7F
        if not byte & 0x80:
            break
    return tag, at, length


# ---------------------------------------------------------------- decoding


def decode(job: Job, entry: Entry, data: bytes) -> av.VideoFrame:
    """The frame with the wanted pts. Raises Damaged when the decoder does not put it out."""
    import av

    context: Any = av.CodecContext.create(entry.decoder, "r")
    # Frame threads hang the process when a context is dropped undrained (PyAV 18): one thread, and a drain.
    context.thread_type, context.thread_count = "SLICE", 1
    context.options = {"max_pixels": str(MAX_PIXELS)}
    if entry.decoder == "h264":
        # Strict: a stream that does not say how far it reorders is taken to reorder as far as it may. Else
        # the decoder guesses not at all, and drops the B-frames that come after what it has put out.
        context.options |= {"strict": "strict"}
    if entry.setup:
        context.extradata = entry.setup
    context.width, context.height = entry.width, entry.height
    try:
        return _decoded(context, job, entry, data)
    except MemoryError:
        raise TooBig(f"{entry.width} x {entry.height} {entry.decoder}: out of the worker's memory") from None
    finally:
        context.flush_buffers()


def _decoded(context: Any, job: Job, entry: Entry, data: bytes) -> av.VideoFrame:
    import av

    at, error = 0, ""
    for number, (size, pts) in enumerate(zip(job.sizes, job.pts, strict=True)):
        packet = av.Packet(data[at : at + size]) if size else None
        at += size
        if packet is None:
            continue
        packet.pts, packet.time_base = pts, Fraction(1, job.timescale)
        if entry.decoder in _SKIPPABLE:
            context.skip_frame = "DEFAULT" if pts == job.wanted or not number else "NONREF"
        try:
            for frame in context.decode(packet):
                if frame.pts == job.wanted:
                    return frame  # type: ignore[no-any-return]
        except av.error.FFmpegError as problem:
            # As players do: what cannot be decoded is left out, the rest may still be good.
            error = str(problem)
    try:
        for frame in context.decode(None):
            if frame.pts == job.wanted:
                return frame  # type: ignore[no-any-return]
    except av.error.FFmpegError as problem:
        error = str(problem)
    raise Damaged(f"the frame does not come out of the decoder {error}".strip())


def frame_aspect(frame: av.VideoFrame) -> Fraction:
    """Width / height of a pixel as the bit stream says; 1 where it does not."""
    aspect = getattr(frame, "sample_aspect_ratio", None)
    return Fraction(aspect) if aspect else Fraction(1)


def to_rgb(frame: av.VideoFrame, entry: Entry) -> Picture:
    """The coded picture as RGB, height x width x 3: neither turned nor scaled.

    What the bit stream says of matrix and range comes first, then colr, then the habit of players.
    """
    from av.video.reformatter import Interpolation

    if frame.width * frame.height > MAX_PIXELS:
        raise TooBig(f"a picture of {frame.width} x {frame.height}: the limit is {MAX_PIXELS} pixels")
    matrix = int(frame.colorspace)
    if matrix == _UNSAID:
        large = frame.width > _SD_WIDTH or frame.height > _SD_HEIGHT
        matrix = entry.matrix or (_BT709 if large else _BT601)
    range_ = int(frame.color_range) or (_FULL if entry.full or frame.format.name.startswith("yuvj") else 1)
    if frame.format.is_rgb or frame.format.name.startswith("gray"):
        return _array(frame.reformat(format="rgb24", threads=1))
    # H.273 numbers: 6 (SMPTE 170M) has the coefficients of 5; 10 (BT.2020 constant luminance) is not done.
    space = {6: _BT601, 10: 9}.get(matrix, matrix)
    return _array(
        frame.reformat(
            format="rgb24",
            src_colorspace=space,
            src_color_range=range_,
            dst_color_range=_FULL,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
            threads=1,
        )
    )


def _array(frame: av.VideoFrame) -> Picture:
    return np.ascontiguousarray(frame.to_ndarray())


# ---------------------------------------------------------------- for looking at


def turned(pixels: Picture, tkhd: bytes) -> Picture:
    """The picture as the matrix of the track header wants it shown: quarter turns and mirrors."""
    start = 8 + (52 if tkhd[8:9] == b"\1" else 40)
    if len(tkhd) < start + 36:
        return pixels
    a, b, _, c, d = struct.unpack_from(">5i", tkhd, start)
    if a and d and not b and not c:
        flip_x, flip_y = a < 0, d < 0
    elif b and c and not a and not d:
        pixels, flip_x, flip_y = pixels.transpose(1, 0, 2), c < 0, b < 0
    else:
        return pixels
    if flip_x:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels[::-1] if flip_y else pixels)


def _stretched(pixels: Picture, aspect: Fraction) -> Picture:
    """Square pixels: the longer way is stretched, nothing is thrown away."""
    from PIL import Image

    height, width = pixels.shape[:2]
    new = (round(width * aspect), height) if aspect >= 1 else (width, round(height / aspect))
    # An absurd ratio is a slip or an attack.
    if new == (width, height) or max(new) > MAX_SIDE or new[0] * new[1] > MAX_PIXELS:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(new, Image.Resampling.BICUBIC))


def _encode(pixels: Picture, format: str) -> bytes:
    from PIL import Image

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
        Image.fromarray(pixels).save(out, **options[format])
    except (OSError, ValueError) as error:
        height, width = pixels.shape[:2]
        raise TooBig(f"{width} x {height} does not fit {format}: {error}") from None
    return out.getvalue()


def _npy(pixels: Picture) -> bytes:
    out = io.BytesIO()
    np.save(out, pixels, allow_pickle=False)
    return out.getvalue()
