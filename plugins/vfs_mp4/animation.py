"""Animations out of single pictures: the blocks of each are moved into one file, nothing is encoded. Pure.

GIF: "GIF89a Specification" (CompuServe, 1990), the loop is Netscape's application extension. WebP: RFC 9649.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vfs import Damaged

_EXTENSION, _IMAGE, _END = 0x21, 0x2C, 0x3B
#: Flag of a table of colours in a packed field, and the exponent of its size in it.
_TABLE, _SIZE = 0x80, 0x07
_FOREVER = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"


def gif(pictures: Sequence[bytes], size: tuple[int, int], durations: Sequence[int]) -> bytes:
    """Still GIFs, all of the given size, one after the other for ever. durations: hundredths of a second."""
    parts = [b"GIF89a", struct.pack("<HHBBB", *size, 0, 0, 0), _FOREVER]
    for picture, duration in zip(pictures, durations, strict=True):
        parts += [struct.pack("<BBBBHBB", _EXTENSION, 0xF9, 4, 0, duration, 0, 0), _image(picture)]
    return b"".join((*parts, bytes((_END,))))


def _image(still: bytes) -> bytes:
    """The image block of a still GIF, with a table of colours of its own."""
    packed, at = still[10], 13
    table = still[at : at + _table_bytes(packed)]
    at += len(table)
    while still[at] == _EXTENSION:
        at = _after_blocks(still, at + 2)
    if still[at] != _IMAGE:
        raise Damaged("a still GIF without an image")
    head, local, at = still[at : at + 9], still[at + 9], at + 10
    if local & _TABLE:
        packed, table = local, still[at : at + _table_bytes(local)]
        at += len(table)
    flags = packed & _SIZE | packed & _TABLE | local & 0x40  # 0x40: interlaced
    return head + bytes((flags,)) + table + still[at : _after_blocks(still, at + 1)]


def _table_bytes(packed: int) -> int:
    return 3 << (packed & _SIZE) + 1 if packed & _TABLE else 0


def _after_blocks(data: bytes, at: int) -> int:
    """The offset after a run of sub-blocks, which an empty one ends."""
    while data[at]:
        at += data[at] + 1
    return at + 1


def webp(pictures: Sequence[bytes], size: tuple[int, int], durations: Sequence[int]) -> bytes:
    """Still WebPs without transparency, all of the given size, for ever. durations: milliseconds."""
    width, height = (side - 1 for side in size)
    canvas = struct.pack("<B3x", 0x02) + _u24(width) + _u24(height)  # 0x02: an animation
    chunks = [_chunk(b"VP8X", canvas), _chunk(b"ANIM", struct.pack("<IH", 0xFF000000, 0))]
    for picture, duration in zip(pictures, durations, strict=True):
        place = _u24(0) + _u24(0) + _u24(width) + _u24(height) + _u24(duration)
        chunks.append(_chunk(b"ANMF", place + b"\x02" + _bitstream(picture)))  # 0x02: not blended
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _bitstream(still: bytes) -> bytes:
    """The chunk of a still WebP that holds the picture, lossy or lossless."""
    at = 12
    while at + 8 <= len(still):
        kind, length = struct.unpack_from("<4sI", still, at)
        if kind in (b"VP8 ", b"VP8L"):
            return _chunk(kind, still[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    raise Damaged("a still WebP without a picture")


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("<I", len(payload)) + payload + bytes(len(payload) % 2)


def _u24(value: int) -> bytes:
    return value.to_bytes(3, "little")
