"""`FILE@/faststart.mp4`: the moov at the front, offsets rewritten, everything else as it is.

All boxes are kept, known or not; only the tables of offsets change (`stco` grows to `co64` where the file
would pass 4 GiB).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial

import numpy as np

from vfs import Damaged, Extent, Inline, Layout, Place, StoredObject, Unsupported, in_thread
from vfs_mp4 import boxes, write
from vfs_mp4.boxes import Box
from vfs_mp4.model import Ticks
from vfs_mp4.probe import MAX_MOOV, Reader, open_moov

#: Boxes of so many bytes may stand before the moov: they come with it in the first request.
_LITTLE = 4 << 10
#: Boxes that lead to tables of offsets.
_CONTAINERS = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl"))
#: Tables of offsets into the file by box, and where their count is: behind version and flags; of `saio`
#: (8.7.9 of ISO/IEC 14496-12) behind a type that is there where flag 1 is set.
_TABLES = frozenset((b"stco", b"co64", b"saio"))
#: Boxes with offsets that are not rewritten: items of a `meta` box, and a moov that is compressed.
_REFUSED = frozenset((b"iloc", b"cmov"))


@dataclass(frozen=True, slots=True)
class Move:
    """The moov at [begin, end) goes before `at`."""

    at: int
    begin: int
    end: int


async def layout_of(place: Place) -> Layout:
    """The file with its moov at its front, behind `ftyp`; a file that has it there is itself.

    Reads box headers and the moov. Raises NoMedia, Damaged, Unsupported, StoreError.
    """
    reader = Reader(place)
    opened = await open_moov(reader)
    if opened.damage:
        raise Damaged(f"{place.path}: {'; '.join(opened.damage)}")
    at = await _front(reader)
    if opened.offset - at <= _LITTLE and not await _media(reader, at, opened.offset):
        return Layout.whole(place.object)
    move = Move(at, opened.offset, opened.end)
    if move.end - move.begin > MAX_MOOV:
        raise Damaged(f"a moov of {move.end - move.begin} bytes is over the limit of {MAX_MOOV}")
    data = await reader.peek(move.begin, move.end - move.begin)
    make = partial(in_thread, moved, place.object, move, data)
    return await place.derive("mp4.faststart.1", make, cost=lambda _: len(data))


async def _front(reader: Reader) -> int:
    """Where the moov belongs: behind `ftyp`, which is first where there is one."""
    box = await reader.header(0)
    return box.size if box is not None and box.kind == b"ftyp" else 0


async def _media(reader: Reader, at: int, stop: int) -> bool:
    """Whether there is an mdat between two offsets, the second being that of the moov; headers are read."""
    while at < stop:
        box = await reader.header(at)
        if box is None or box.kind == b"mdat" or not box.size:
            return True
        at += box.size
    return False


def moved(stored: StoredObject, move: Move, moov: bytes) -> Layout:
    """The file after the move. Raises Damaged, Unsupported for a moov that cannot be rewritten."""
    large = stored.size + len(moov) > write.U32
    # Its length does not depend on the offsets.
    length = len(_Rewriting(move, 0, large).box(moov))
    front = _Rewriting(move, length, large).box(moov)
    before, between = Extent(stored, 0, move.at), Extent(stored, move.at, move.begin - move.at)
    return Layout((before, Inline(front), between, Extent(stored, move.end, stored.size - move.end)))


@dataclass(slots=True)
class _Rewriting:
    """A moov on its way. length: of the new one; large: all chunk offsets need 64 bits."""

    move: Move
    length: int
    large: bool

    def box(self, data: bytes, depth: int = 0) -> bytes:
        """A run of boxes, rewritten."""
        if depth > boxes.MAX_DEPTH:
            raise Damaged("boxes nested too deep")
        parts, end = [], 0
        for box in boxes.children(data, 0, len(data), boxes.Notes()):
            end = box.stop
            if box.kind in _CONTAINERS:
                parts.append(write.box(box.kind, self.box(data[box.body : box.stop], depth + 1)))
            elif box.kind in _TABLES:
                parts.append(self._table(box, data[box.body : box.stop]))
            else:
                if box.kind in _REFUSED or (box.kind == b"meta" and b"iloc" in data[box.body : box.stop]):
                    raise Unsupported(
                        f"its {boxes.name_of(box.kind)} box holds offsets that are not rewritten"
                    )
                parts.append(data[box.start : box.stop])
        # What is no box, as the four zero bytes that end QuickTime's lists, is kept too.
        return b"".join(parts) + data[end:]

    def _table(self, box: Box, body: bytes) -> bytes:
        """`stco`, `co64` or `saio`: every offset moved, the first as 64 bits where it must be."""
        aux = box.kind == b"saio"
        at = 4 + 8 * (aux and len(body) > 3 and body[3] & 1)
        wide = box.kind == b"co64" or (aux and body[:1] == b"\1")
        if len(body) < at + 4:
            return write.box(box.kind, body)
        count = min(struct.unpack_from(">I", body, at)[0], (len(body) - at - 4) // (8 if wide else 4))
        offsets = np.frombuffer(body, ">u8" if wide else ">u4", count, at + 4)
        new = self._moved(np.minimum(offsets, np.uint64(1 << 62)).astype(np.int64))
        grown = wide or self.large
        head = bytes([1]) + body[1:at] if aux and grown else body[:at]
        kind = box.kind if aux else b"co64" if grown else b"stco"
        table = new.astype(">u8" if grown else ">u4").tobytes()
        return write.box(kind, head, struct.pack(">I", count), table)

    def _moved(self, offsets: Ticks) -> Ticks:
        shift = np.where(offsets >= self.move.at, self.length, 0)
        return offsets + shift - np.where(offsets >= self.move.end, self.move.end - self.move.begin, 0)
