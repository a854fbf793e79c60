"""`FILE@/faststart.mp4`: the moov before the media, offsets rewritten, everything else as it is. Pure.

All boxes are kept, known or not; only the tables of chunk offsets change (`stco` grows to `co64` where the
file would pass 4 GiB).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vfs import Damaged, Extent, Inline, Layout, StoredObject
from vfs_mp4 import boxes, write
from vfs_mp4.model import Ticks

#: Boxes that lead to tables of chunk offsets.
_CONTAINERS = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl"))


@dataclass(frozen=True, slots=True)
class Top:
    """A box at the top of a file."""

    kind: bytes
    offset: int
    size: int


def faststart(stored: StoredObject, tops: Sequence[Top], moov: bytes) -> Layout:
    """The file with its moov before the first media. Raises Damaged for a moov that cannot be rewritten.

    A file that has it there already, or is fragmented, is itself.
    """
    at = next((n for n, top in enumerate(tops) if top.kind == b"mdat"), None)
    here = next((n for n, top in enumerate(tops) if top.kind == b"moov"), None)
    if here is None or at is None or here < at or any(top.kind == b"moof" for top in tops):
        return Layout.whole(stored)
    begin, old = tops[at].offset, tops[here]
    large = stored.size + len(moov) > write.U32
    new = _rewritten(moov, begin, old, 0, large=large)
    moved = _rewritten(moov, begin, old, len(new), large=large)
    if len(moved) != len(new):
        raise Damaged(f"{stored.key}: its tables of offsets cannot be rewritten")
    after = old.offset + old.size
    return Layout(
        (
            Extent(stored, 0, begin),
            Inline(moved),
            Extent(stored, begin, old.offset - begin),
            Extent(stored, after, stored.size - after),
        )
    )


def _rewritten(moov: bytes, begin: int, old: Top, grown: int, *, large: bool) -> bytes:
    """The moov for a file in which `grown` bytes stand before `begin` and the old moov is gone."""

    def moved(offsets: Ticks) -> Ticks:
        shift = np.where(offsets >= begin, grown, 0)
        return offsets + shift - np.where(offsets >= old.offset + old.size, old.size, 0)

    def rebuilt(data: bytes, depth: int) -> bytes:
        notes, parts, end = boxes.Notes(), [], 0
        if depth > 8:
            raise Damaged("boxes nested too deep")
        for box in boxes.children(data, 0, len(data), notes):
            body, end = data[box.body : box.stop], box.stop
            if box.kind in _CONTAINERS:
                parts.append(write.box(box.kind, rebuilt(body, depth + 1)))
            elif box.kind in (b"stco", b"co64") and len(body) >= 8:
                parts.append(_table(box.kind, body))
            else:
                parts.append(data[box.start : box.stop])
        return b"".join(parts) + data[end:]

    def _table(kind: bytes, body: bytes) -> bytes:
        wide = kind == b"co64"
        (count,) = struct.unpack_from(">I", body, 4)
        count = min(count, (len(body) - 8) // (8 if wide else 4))
        offsets = np.frombuffer(body, ">u8" if wide else ">u4", count, 8).astype(np.int64)
        wide = wide or large
        table = moved(offsets).astype(">u8" if wide else ">u4").tobytes()
        head = body[:4] + struct.pack(">I", count)
        return write.box(b"co64" if wide else b"stco", head, table)

    return rebuilt(moov, 0)
