"""How large pictures come out that are made small: by arithmetic, before anything is decoded. Pure."""

from __future__ import annotations

import struct
from fractions import Fraction

from vfs import Damaged
from vfs_mp4.visual import Entry

Size = tuple[int, int]


def upright(entry: Entry, tkhd: bytes) -> tuple[Fraction, Fraction]:
    """Width and height of a picture as it is looked at: square pixels, turned as the track header says.

    What a bit stream alone says of the shape of its pixels is not known here. Raises Damaged for no size.
    """
    if not entry.width or not entry.height:
        raise Damaged("the sample description gives no size of the pictures")
    aspect = entry.aspect or Fraction(1)
    width, height = Fraction(entry.width), Fraction(entry.height)
    width, height = (width * aspect, height) if aspect >= 1 else (width, height / aspect)
    return (height, width) if is_turned(tkhd) else (width, height)


def is_turned(tkhd: bytes) -> bool:
    """Whether the matrix of a whole `tkhd` box (ISO/IEC 14496-12, 8.3.2) makes a quarter turn."""
    start = 8 + (52 if tkhd[8:9] == b"\1" else 40)
    if len(tkhd) < start + 36:
        return False
    a, b, _, c, d = struct.unpack_from(">5i", tkhd, start)
    return bool(b and c and not a and not d)


def fitted(size: tuple[Fraction, Fraction], side: int) -> Size:
    """The size within a square of `side` pixels, never enlarged, each at least a pixel."""
    scale = min(Fraction(1), side / max(size))
    width, height = (max(1, round(length * scale)) for length in size)
    return width, height
