"""Which leading pictures a decoder leaves out when it begins at a key frame. Pure, but for one small read.

HEVC says it in the type of a picture (ITU-T H.265, table 7-1): RASL pictures lean on what precedes the key
frame and are dropped, RADL pictures do not and come out.
"""

from __future__ import annotations

import numpy as np

from vfs import Layout, Place
from vfs_mp4 import splice
from vfs_mp4.model import Ticks
from vfs_mp4.segments import HEVC, Verbatim

#: Types of NAL units: random access decodable leading pictures; the first that is no picture.
RADL, NO_PICTURE = (6, 7), 32
#: Bytes read of a picture: its first slice header comes after a delimiter and short messages.
HEAD_BYTES = 256
#: lengthSizeMinusOne in hvcC, counted from the start of its payload.
_LENGTH_SIZE_AT = 21


async def dropped(place: Place, read: Verbatim) -> Ticks:
    """Rows that a decoder of exactly these fragments does not put out. Raises StoreError, Stale."""
    rows = read.leading
    track = read.window.track
    if track.codec not in HEVC or not len(rows):
        return rows
    offset, size = track.samples.offset[rows], np.minimum(track.samples.size[rows], HEAD_BYTES)
    splice.check_inside(place.object, offset, size)
    data = await place.fetch(Layout(splice.extents(place.object, offset, size)))
    width = length_size((track.boxes or {}).get("stsd", b""))
    ends = np.cumsum(size).tolist()
    heads = [data[end - have : end] for end, have in zip(ends, size.tolist(), strict=True)]
    return rows[np.array([picture_type(head, width) not in RADL for head in heads], np.bool_)]


def length_size(stsd: bytes) -> int:
    """Bytes of the length before each NAL unit, from hvcC; 4 where there is none."""
    at = stsd.find(b"hvcC")
    return (stsd[at + 4 + _LENGTH_SIZE_AT] & 3) + 1 if 0 <= at < len(stsd) - 4 - _LENGTH_SIZE_AT else 4


def picture_type(head: bytes, width: int) -> int | None:
    """Type of the first NAL unit that is a picture; None when it lies beyond `head`."""
    at = 0
    while at + width < len(head):
        length = int.from_bytes(head[at : at + width], "big")
        kind = head[at + width] >> 1 & 0x3F
        if kind < NO_PICTURE:
            return kind
        at += width + length
    return None
