"""What a worker is told of coded pictures: samples, and the sample entry that sets a decoder up. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from vfs import Damaged, TooBig, Unsupported

#: Largest picture decoded: 8K (7680 x 4320) with room for 8192 x 8192 panoramas.
MAX_PIXELS = 1 << 26
#: Decoder by sample entry 4cc. What several codecs share (mp4v) is told apart by its esds.
DECODERS = {
    "avc1": "h264", "avc3": "h264", "dva1": "h264", "dvav": "h264",
    "hvc1": "hevc", "hev1": "hevc", "dvh1": "hevc", "dvhe": "hevc",
    "av01": "libdav1d", "vp08": "vp8", "vp09": "vp9", "vvc1": "vvc", "vvi1": "vvc",
    "s263": "h263", "h263": "h263", "jpeg": "mjpeg", "mjpa": "mjpeg", "mjpb": "mjpegb", "png ": "png",
    "apcn": "prores", "apch": "prores", "apcs": "prores", "apco": "prores", "ap4h": "prores",
    "ap4x": "prores", "SVQ1": "svq1", "SVQ3": "svq3", "rle ": "qtrle", "cvid": "cinepak", "mp4v": "mpeg4",
}  # fmt: skip
#: Those that devices have, too.
HARDWARE = frozenset(("h264", "hevc", "vp9", "mpeg2video"))
#: MPEG-4 object type in esds (ISO/IEC 14496-1, table 5) -> decoder, where it is not part 2.
_OBJECT_TYPES = {0x6A: "mpeg1video", 0x6C: "mjpeg", 0x6D: "png", 0x6E: "jpeg2000"} | dict.fromkeys(
    range(0x60, 0x66), "mpeg2video"
)
#: Boxes of a sample entry whose payload a decoder takes as its set-up, and how much of it to skip: vvcC alone
#: is a full box (ISO/IEC 14496-15, 11.2.4.2), its version and flags are no part of the set-up.
_SETUP = {b"avcC": 0, b"hvcC": 0, b"av1C": 0, b"vvcC": 4, b"glbl": 0}
#: nclx matrix coefficients (ITU-T H.273): not said.
UNSAID = 2


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to know. stsd, tkhd: whole boxes; description: 1-based sample entry of all samples.

    sizes, pts: of the samples, which lie one behind the other in the data. wanted: pts of the frame. spare:
    so many of the last samples are not needed for it; a decoder goes on with them when frames are asked for
    one after another. group: names what the samples begin with: jobs of one group are the same samples, as
    far as they go; None = nothing is kept. device: kind of device to decode on where it can; "" = none.
    """

    codec: str
    stsd: bytes
    tkhd: bytes
    description: int
    sizes: tuple[int, ...]
    pts: tuple[int, ...]
    wanted: int
    timescale: int
    spare: int = 0
    group: tuple[str | int | bool, ...] | None = None
    device: str = ""


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
    return (None if matrix == UNSAID else matrix), full


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
