"""Which leading pictures a decoder leaves out when it begins at a key frame. Pure, but for one small read.

HEVC and VVC say it in the type of a picture (ITU-T H.265, table 7-1; H.266, table 5): RASL pictures lean on
what precedes the key frame and are dropped, RADL pictures do not and come out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vfs import Layout, Place
from vfs_mp4 import splice
from vfs_mp4.model import Ticks
from vfs_mp4.segments import HEVC, VVC, Verbatim


@dataclass(frozen=True, slots=True)
class Types:
    """Where a NAL unit says its type (byte and shift; 5 bits in VVC, 6 in HEVC), which are random access
    decodable leading pictures, and the first that is no picture."""

    byte: int
    shift: int
    mask: int
    radl: tuple[int, ...]
    no_picture: int


HEVC_TYPES = Types(0, 1, 0x3F, (6, 7), 32)
VVC_TYPES = Types(1, 3, 0x1F, (2,), 12)
#: Bytes read of a picture: its first slice header comes after a delimiter and short messages.
HEAD_BYTES = 256
#: lengthSizeMinusOne in hvcC, counted from the start of its payload.
_LENGTH_SIZE_AT = 21


async def dropped(place: Place, read: Verbatim) -> Ticks:
    """Rows that a decoder of exactly these fragments does not put out. Raises StoreError, Stale."""
    rows = read.leading
    track = read.window.track
    if track.codec not in HEVC | VVC or not len(rows):
        return rows
    types = HEVC_TYPES if track.codec in HEVC else VVC_TYPES
    offset, size = track.samples.offset[rows], np.minimum(track.samples.size[rows], HEAD_BYTES)
    splice.check_inside(place.object, offset, size)
    data = await place.fetch(Layout(splice.extents(place.object, offset, size)))
    width = length_size((track.boxes or {}).get("stsd", b""))
    ends = np.cumsum(size).tolist()
    heads = [data[end - have : end] for end, have in zip(ends, size.tolist(), strict=True)]
    return rows[np.array([picture_type(head, width, types) not in types.radl for head in heads], np.bool_)]


def length_size(stsd: bytes) -> int:
    """Bytes of the length before each NAL unit, from hvcC; 4 where there is none."""
    at = stsd.find(b"hvcC")
    return (stsd[at + 4 + _LENGTH_SIZE_AT] & 3) + 1 if 0 <= at < len(stsd) - 4 - _LENGTH_SIZE_AT else 4


def picture_type(head: bytes, width: int, types: Types = HEVC_TYPES) -> int | None:
    """Type of the first NAL unit that is a picture; None when it lies beyond `head`."""
    at = 0
    while at + width + types.byte < len(head):
        length = int.from_bytes(head[at : at + width], "big")
        kind = head[at + width + types.byte] >> types.shift & types.mask
        if kind < types.no_picture:
            return kind
        at += width + length
    return None
