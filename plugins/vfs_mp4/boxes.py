"""ISO base media boxes: headers and small boxes by construct, tables as numpy arrays. Pure.

Nothing a file claims is believed: a box ends where its parent does, a count is cut to what the payload
holds before anything is allocated, levels and boxes are counted. What was wrong is noted in words in
`Notes`, and what can be kept is kept. Layouts: ISO/IEC 14496-12.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from construct import Bytes, ConstructError, If, Int16sb, Int32sb, Int32ub, Int64sb, Int64ub, Struct, this
from numpy.typing import DTypeLike, NDArray

from vfs import Damaged

# Caps on what one file may claim. A box costs a few microseconds, so the box budget bounds time; a real
# moov has a few hundred boxes, a moof about ten.
MAX_DEPTH = 16
MAX_BOXES = 20_000
MAX_TRACK_SAMPLES = 8_000_000
MAX_TABLE_BYTES = 256 << 20
# One row of model.Samples: five int64 columns, a bool and an int32.
ROW_BYTES = 5 * 8 + 1 + 4
MAX_ROWS = MAX_TABLE_BYTES // ROW_BYTES

# Macintosh language codes from 0 on (QuickTime File Format, language code values), as ISO 639-2.
_QUICKTIME_LANGUAGES = (
    *("eng", "fra", "deu", "ita", "nld", "swe", "spa", "dan", "por", "nor", "heb", "jpn", "ara", "fin"),
    *("ell", "isl", "mlt", "tur", "hrv", "zho", "urd", "hin", "tha", "kor", "lit", "pol", "hun", "est"),
    *("lav", "sme", "fao", "fas", "rus", "zho"),
)

# What construct raises where bytes are missing: interpreted forms the first, compiled ones the second.
_UNREADABLE = (ConstructError, struct.error)

_HEADER = Struct("size" / Int32ub, "kind" / Bytes(4), "large" / If(this.size == 1, Int64ub)).compile()
_MVHD = {
    0: Struct("_times" / Bytes(12), "timescale" / Int32ub, "duration" / Int32ub).compile(),
    1: Struct("_times" / Bytes(20), "timescale" / Int32ub, "duration" / Int64ub).compile(),
}
_MDHD = {
    0: Struct("_times" / Bytes(12), "timescale" / Int32ub, "duration" / Int32ub, "language" / Bytes(2)),
    1: Struct("_times" / Bytes(20), "timescale" / Int32ub, "duration" / Int64ub, "language" / Bytes(2)),
}
_TKHD = {
    0: Struct("_times" / Bytes(12), "track_id" / Int32ub),
    1: Struct("_times" / Bytes(20), "track_id" / Int32ub),
}
_EDIT = {
    0: Struct("duration" / Int32ub, "media_time" / Int32sb, "rate" / Int16sb, "fraction" / Int16sb),
    1: Struct("duration" / Int64ub, "media_time" / Int64sb, "rate" / Int16sb, "fraction" / Int16sb),
}
_TREX = Struct(
    "_flags" / Bytes(4),
    "track_id" / Int32ub,
    "description" / Int32ub,
    "duration" / Int32ub,
    "size" / Int32ub,
    "flags" / Int32ub,
)
_TFDT = {
    0: Struct("_flags" / Bytes(4), "time" / Int32ub).compile(),
    1: Struct("_flags" / Bytes(4), "time" / Int64ub).compile(),
}


@dataclass(slots=True)
class Notes:
    """What was found wrong, in words, and how many more boxes may be looked at."""

    damage: list[str] = field(default_factory=list)
    budget: int = MAX_BOXES

    def note(self, message: str) -> None:
        """Remember a defect, each once, at most 50 of them."""
        if message not in self.damage and len(self.damage) < 50:
            self.damage.append(message)

    def spend(self) -> None:
        """Count one box. Raises Damaged when there are more than any real file has."""
        self.budget -= 1
        if self.budget < 0:
            raise Damaged(f"more than {MAX_BOXES} boxes")


@dataclass(frozen=True, slots=True)
class Header:
    """A box header. size: as claimed, header included, 0 = to the end of the parent. length: 8 or 16."""

    kind: bytes
    size: int
    length: int


@dataclass(frozen=True, slots=True)
class Box:
    """A box inside a buffer. start: of its header; body: of its payload; stop: after its last byte here.

    cut: it claimed to be longer than its parent.
    """

    kind: bytes
    start: int
    body: int
    stop: int
    cut: bool = False

    @property
    def size(self) -> int:
        """Bytes present, header included."""
        return self.stop - self.start


def parse_header(data: bytes) -> Header | None:
    """The header at the start of `data`; None where there are too few bytes for one.

    Raises Damaged for a size that is smaller than the header itself (a walk would never move on).
    """
    if len(data) < 8:
        return None
    try:
        found = _HEADER.parse(data)
    except _UNREADABLE:
        return None
    length = 8 if found.large is None else 16
    size = found.size if found.large is None else found.large
    if size < length and not (size == 0 and length == 8):
        raise Damaged(f"box {name_of(found.kind)} claims {size} bytes, less than its header")
    return Header(found.kind, size, length)


def name_of(kind: bytes) -> str:
    """A 4cc for people: `moov`, or hexadecimal where it is not printable."""
    text = kind.decode("latin-1")
    return text if text.isascii() and text.isprintable() else kind.hex()


def children(data: bytes, start: int, stop: int, notes: Notes) -> Iterator[Box]:
    """The boxes of [start, stop), each cut to the range; a broken level ends with a note."""
    at = start
    while at + 8 <= stop:
        notes.spend()
        try:
            head = parse_header(data[at : min(at + 16, stop)])
        except Damaged as error:
            notes.note(str(error))
            return
        if head is None:
            return
        end = at + head.size if head.size else stop
        cut = end > stop
        if cut:
            notes.note(f"{name_of(head.kind)} claims {head.size} bytes, {stop - at} are there")
        yield Box(head.kind, at, min(at + head.length, stop), min(end, stop), cut)
        at = end


def inside(data: bytes, box: Box, notes: Notes, depth: int, skip: int = 0) -> list[Box]:
    """The children of a container, `skip` payload bytes in. Raises Damaged deeper than MAX_DEPTH."""
    if depth > MAX_DEPTH:
        raise Damaged(f"boxes nested deeper than {MAX_DEPTH}")
    return list(children(data, box.body + skip, box.stop, notes))


def first(found: list[Box], kind: bytes) -> Box | None:
    """The first box of a kind."""
    return next((box for box in found if box.kind == kind), None)


def whole(data: bytes, box: Box) -> bytes:
    """The bytes of a box, header included."""
    return data[box.start : box.stop]


def _small(forms: dict[int, Any], data: bytes, box: Box, skip: int = 0) -> Any:
    """Parse a small versioned box; None where it is too short or of an unknown version."""
    payload = data[box.body : box.stop]
    form = forms.get(payload[0]) if payload else None
    try:
        return None if form is None else form.parse(payload[skip:])
    except _UNREADABLE:
        return None


def movie_times(data: bytes, box: Box) -> tuple[int, int]:
    """(timescale, duration) of an mvhd; zeros where it is unreadable."""
    found = _small(_MVHD, data, box)
    return (0, 0) if found is None else (found.timescale, found.duration)


def media_header(data: bytes, box: Box) -> tuple[int, int, str]:
    """(timescale, duration, language) of an mdhd; zeros where it is unreadable."""
    found = _small(_MDHD, data, box)
    if found is None:
        return 0, 0, "und"
    return found.timescale, found.duration, _language(int.from_bytes(found.language, "big"))


def _language(code: int) -> str:
    """Three letters packed in 15 bits (ISO/IEC 14496-12 8.4.2); below 0x400 a number of QuickTime's."""
    if code < 0x400:
        return _QUICKTIME_LANGUAGES[code] if code < len(_QUICKTIME_LANGUAGES) else "und"
    letters = [(code >> shift & 31) + 0x60 for shift in (10, 5, 0)]
    good = all(0x61 <= letter <= 0x7A for letter in letters)
    return "".join(map(chr, letters)) if good else "und"


def track_id(data: bytes, box: Box) -> int:
    """The track_ID of a tkhd, 0 where it is unreadable."""
    found = _small(_TKHD, data, box)
    return 0 if found is None else int(found.track_id)


def edit_rows(data: bytes, box: Box, notes: Notes) -> list[tuple[int, int, int, int]]:
    """The rows of an elst: (duration, media_time, rate integer, rate fraction), cut to the payload."""
    payload = data[box.body : box.stop]
    form = _EDIT.get(payload[0]) if payload else None
    if form is None:
        notes.note("elst of an unknown version")
        return []
    width = form.sizeof()
    count = fitting(payload[4:8], len(payload) - 8, width, "elst", notes)
    rows = (form.parse(payload[8 + i * width :]) for i in range(min(count, 4096)))
    return [(row.duration, row.media_time, row.rate, row.fraction) for row in rows]


def track_defaults(data: bytes, box: Box) -> tuple[int, int, int, int, int] | None:
    """A trex: (track_ID, description, duration, size, flags), None where it is too short."""
    try:
        found = _TREX.parse(data[box.body : box.stop])
    except _UNREADABLE:
        return None
    return found.track_id, found.description, found.duration, found.size, found.flags


def decode_time(data: bytes, box: Box) -> int | None:
    """baseMediaDecodeTime of a tfdt; None where it is unreadable."""
    found = _small(_TFDT, data, box)
    return None if found is None else int(found.time)


def fitting(count: bytes, room: int, width: int, name: str, notes: Notes) -> int:
    """A count field cut to the rows that fit into `room` bytes."""
    claimed = int.from_bytes(count, "big") if len(count) == 4 else 0
    fits = max(room, 0) // width
    if claimed > fits:
        notes.note(f"{name} claims {claimed} rows, {fits} fit")
    return min(claimed, fits)


def table(
    data: bytes, box: Box, notes: Notes, dtype: DTypeLike, columns: int = 1, *, at: int = 4
) -> NDArray[Any]:
    """The rows of a table box: a view of the bytes, shape (rows, columns), big endian as stored.

    at: payload offset of the u32 count; rows follow it.
    """
    kind = np.dtype(dtype)
    count_at, rows_at = box.body + at, box.body + at + 4
    width = kind.itemsize * columns
    count = fitting(data[count_at:rows_at], box.stop - rows_at, width, name_of(box.kind), notes)
    if not count:
        return np.empty((0, columns), kind)
    return np.frombuffer(data, kind, count * columns, rows_at).reshape(count, columns)
