"""moov bytes -> tracks with their sample tables (progressive sources). Pure.

Every table is read with numpy; 300,000 samples take a few milliseconds. A lying table is cut to what is
there and the lie is noted; a track that cannot be used is kept with `usable=False`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfs import Damaged
from vfs_mp4 import boxes, groups, uniform
from vfs_mp4.boxes import Box, Notes
from vfs_mp4.model import Edit, Samples, Ticks, Track

_MEDIA_HEADERS = frozenset((b"vmhd", b"smhd", b"nmhd", b"hmhd", b"sthd", b"gmhd"))
_ENCRYPTED = frozenset((b"encv", b"enca", b"encs", b"enct"))
# Payload bytes before the child boxes of a visual and of an audio sample entry (ISO/IEC 14496-12 8.5.2).
_VISUAL_ENTRY, _AUDIO_ENTRY = 78, 28


@dataclass(frozen=True, slots=True)
class Defaults:
    """One trex: what a sample of a fragment is when neither trun nor tfhd says so."""

    description: int = 1
    duration: int = 0
    size: int = 0
    flags: int = 0


@dataclass(frozen=True, eq=False)
class Moov:
    """A parsed moov. duration: mvhd's, in movie ticks. fragmented: it has an mvex. chapters: its `chpl`."""

    timescale: int
    duration: int
    tracks: tuple[Track, ...]
    defaults: Mapping[int, Defaults]
    fragmented: bool
    damage: tuple[str, ...]
    chapters: bytes = b""


@dataclass(slots=True)
class _Room:
    """How many more sample rows this file may have, and how many bytes its object has."""

    object_size: int
    rows: int = boxes.MAX_ROWS
    notes: Notes = field(default_factory=Notes)


def parse_moov(data: bytes, object_size: int) -> Moov:
    """Parse a moov box, header included (cut short where the object is).

    object_size: bytes of the stored object, the bound of what constant sample sizes may claim. Raises
    Damaged when it is not a moov or its boxes are hostile.
    """
    room = _Room(object_size)
    notes = room.notes
    top = next(boxes.children(data, 0, len(data), notes), None)
    if top is None or top.kind != b"moov":
        raise Damaged("no moov box where one was expected")
    inner = boxes.inside(data, top, notes, 1)
    header = boxes.first(inner, b"mvhd")
    timescale, duration = (0, 0) if header is None else boxes.movie_times(data, header)
    if timescale <= 0:
        notes.note("mvhd has no timescale")
    mvex = boxes.first(inner, b"mvex")
    defaults = {} if mvex is None else _defaults(data, mvex, notes)
    tracks: list[Track] = []
    for box in inner:
        if box.kind == b"trak":
            track = _track(data, box, room, mvex is not None)
            if track is not None:
                tracks.append(track)
    chapters, fragmented = _chapters(data, inner), mvex is not None
    return Moov(timescale, duration, tuple(tracks), defaults, fragmented, tuple(notes.damage), chapters)


def _chapters(data: bytes, inner: list[Box]) -> bytes:
    """udta/chpl: chapters as Nero writes them. What else is in udta is nobody's damage."""
    udta = boxes.first(inner, b"udta")
    chpl = None if udta is None else boxes.first(boxes.inside(data, udta, Notes(), 2), b"chpl")
    return b"" if chpl is None else boxes.whole(data, chpl)


def _defaults(data: bytes, mvex: Box, notes: Notes) -> dict[int, Defaults]:
    rows = (
        boxes.track_defaults(data, box) for box in boxes.inside(data, mvex, notes, 2) if box.kind == b"trex"
    )
    return {row[0]: Defaults(*row[1:]) for row in rows if row is not None}


def _track(data: bytes, trak: Box, room: _Room, fragmented: bool) -> Track | None:
    """One trak; None where not even its media header is there."""
    notes = room.notes
    inner = boxes.inside(data, trak, notes, 2)
    tkhd, mdia = boxes.first(inner, b"tkhd"), boxes.first(inner, b"mdia")
    if mdia is None or tkhd is None:
        notes.note("a trak without tkhd or mdia")
        return None
    media = boxes.inside(data, mdia, notes, 3)
    mdhd, hdlr, minf = (boxes.first(media, kind) for kind in (b"mdhd", b"hdlr", b"minf"))
    number = boxes.track_id(data, tkhd)
    timescale, _, language = (0, 0, "und") if mdhd is None else boxes.media_header(data, mdhd)
    handler = "" if hdlr is None else boxes.name_of(data[hdlr.body + 8 : hdlr.body + 12])
    info = [] if minf is None else boxes.inside(data, minf, notes, 4)
    stbl = boxes.first(info, b"stbl")
    inner_tables = [] if stbl is None else boxes.inside(data, stbl, notes, 5)
    tables, grouped = _by_kind(inner_tables), groups.read(data, inner_tables, notes)
    copied = {"tkhd": tkhd, "mdhd": mdhd, "hdlr": hdlr, "stsd": tables.get(b"stsd")}
    copied["media_header"] = next((box for box in info if box.kind in _MEDIA_HEADERS), None)
    copied["tref"] = boxes.first(inner, b"tref")
    entries = _entries(data, tables.get(b"stsd"), notes)
    codec = boxes.name_of(_format(data, entries[0], handler, notes)) if entries else ""
    unit = (
        uniform.unit(codec, boxes.whole(data, tables[b"stsd"]), _constant_size(data, tables)) if codec else 0
    )
    samples = _usable_samples(data, tables, room, number, unit)
    if any(one.kind in groups.STARTS for one in grouped):
        samples = replace(samples, sync=samples.sync | groups.starts(grouped, len(samples)))
    usable = timescale > 0 and bool(entries) and (fragmented or len(samples) > 0)
    if not usable:
        what = "timescale" if timescale <= 0 else "sample description" if not entries else "samples"
        notes.note(f"track {number}: no {what}")
    return Track(
        track_id=number,
        handler=handler,
        timescale=timescale,
        codec=codec,
        samples=samples,
        edits=_edits(data, boxes.first(inner, b"edts"), notes),
        boxes={name: boxes.whole(data, box) for name, box in copied.items() if box is not None},
        language=language,
        encrypted=any(entry.kind in _ENCRYPTED for entry in entries),
        usable=usable,
        unit=unit,
        groups=grouped,
    )


def _by_kind(found: list[Box]) -> dict[bytes, Box]:
    """The first box of each kind."""
    return {box.kind: box for box in reversed(found)}


def _entries(data: bytes, stsd: Box | None, notes: Notes) -> list[Box]:
    """The sample entries, those that claim more than there is left out."""
    return [] if stsd is None else [b for b in boxes.inside(data, stsd, notes, 6, skip=8) if not b.cut]


def _format(data: bytes, entry: Box, handler: str, notes: Notes) -> bytes:
    """The codec of a sample entry; for an encrypted one the original format (sinf/frma)."""
    if entry.kind not in _ENCRYPTED:
        return entry.kind
    skip = _VISUAL_ENTRY if handler == "vide" else _AUDIO_ENTRY if handler == "soun" else 8
    sinf = boxes.first(boxes.inside(data, entry, notes, 7, skip=skip), b"sinf")
    frma = None if sinf is None else boxes.first(boxes.inside(data, sinf, notes, 8), b"frma")
    return entry.kind if frma is None else data[frma.body : frma.body + 4]


def _edits(data: bytes, edts: Box | None, notes: Notes) -> tuple[Edit, ...]:
    elst = None if edts is None else boxes.first(boxes.inside(data, edts, notes, 3), b"elst")
    if elst is None:
        return ()
    rows = boxes.edit_rows(data, elst, notes)
    return tuple(
        Edit(duration, media_time, Fraction((rate << 16) + (part & 0xFFFF), 1 << 16))
        for duration, media_time, rate, part in rows
    )


def no_samples() -> Samples:
    """Empty tables."""
    none = np.empty(0, np.int64)
    return Samples(none, none, none, none, none, np.empty(0, np.bool_), np.empty(0, np.int32))


def _usable_samples(
    data: bytes, tables: dict[bytes, Box], room: _Room, number: int, unit: int = 0
) -> Samples:
    """The sample tables; empty, with a note, where they are missing or over a cap."""
    if unit:
        return _uniform_samples(data, tables, room, number, unit)
    sizes = _sizes(data, tables, room)
    if sizes is None:
        room.notes.note(f"track {number}: more samples than the cap of {boxes.MAX_TRACK_SAMPLES}")
        return no_samples()
    starts, runs = _chunks(data, tables, room.notes)
    if not len(sizes) or not len(starts):
        return no_samples()
    if _too_many(len(sizes), room, number):
        return no_samples()
    offset, description = _places(starts, runs, sizes)
    count = len(offset)
    if count < len(sizes):
        room.notes.note(f"track {number}: {len(sizes)} samples claimed, chunks hold {count}")
    room.rows -= count
    dur = _durations(data, tables.get(b"stts"), count, room.notes)
    dts = np.cumsum(dur) - dur
    return Samples(
        dts=dts,
        dur=dur,
        pts=dts + _compositions(data, tables.get(b"ctts"), count, room.notes),
        size=sizes[:count],
        offset=offset,
        sync=_sync(data, tables.get(b"stss"), count, room.notes),
        description=description,
    )


def _uniform_samples(data: bytes, tables: dict[bytes, Box], room: _Room, number: int, unit: int) -> Samples:
    """The tables of uncompressed sound, all of whose samples are of one size and length."""
    stsz, stts = tables[b"stsz"], tables.get(b"stts")
    count = int.from_bytes(data[stsz.body + 8 : min(stsz.body + 12, stsz.stop)], "big")
    lengths = np.empty((0, 2), ">u4") if stts is None else boxes.table(data, stts, room.notes, ">u4", 2)
    starts, runs = _chunks(data, tables, room.notes)
    if not len(starts) or not len(runs) or not len(lengths):
        return no_samples()
    held, kinds = _held(len(starts), runs, min(count, room.object_size // unit))
    rows = uniform.rows_of(held)
    if _too_many(rows, room, number):
        return no_samples()
    room.rows -= rows
    return uniform.samples(starts, held, kinds, unit, int(lengths[0, 1]))


def _too_many(rows: int, room: _Room, number: int) -> bool:
    """Whether there is no room for so many rows, which is noted."""
    if rows > room.rows:
        room.notes.note(f"track {number}: tables over {boxes.MAX_TABLE_BYTES} bytes a file")
    return rows > room.rows


def _chunks(data: bytes, tables: dict[bytes, Box], notes: Notes) -> tuple[Ticks, Ticks]:
    """(offset of each chunk, rows of stsc); empty where one of the boxes is missing."""
    offsets = tables.get(b"co64") or tables.get(b"stco")
    if offsets is None or b"stsc" not in tables:
        return np.empty(0, np.int64), np.empty((0, 3), np.int64)
    chunks = boxes.table(data, offsets, notes, ">u8" if offsets.kind == b"co64" else ">u4")[:, 0]
    runs = boxes.table(data, tables[b"stsc"], notes, ">u4", 3).astype(np.int64)
    # An offset with the top bit set cannot lie inside any object; kept as the largest that fits.
    return np.minimum(chunks, np.uint64((1 << 62) - 1)).astype(np.int64), runs


def _constant_size(data: bytes, tables: dict[bytes, Box]) -> int:
    """The size that stsz says all samples have, 0 where it has a table or is missing."""
    box = tables.get(b"stsz")
    return 0 if box is None else int.from_bytes(data[box.body + 4 : min(box.body + 8, box.stop)], "big")


def _sizes(data: bytes, tables: dict[bytes, Box], room: _Room) -> Ticks | None:
    """Sample sizes from stsz or stz2; None when there are more than the cap."""
    box = tables.get(b"stsz")
    if box is None:
        return _compact_sizes(data, tables.get(b"stz2"), room.notes)
    constant = _constant_size(data, tables)
    if not constant:
        count = int.from_bytes(data[box.body + 8 : box.body + 12], "big")
        fits = max(box.stop - box.body - 12, 0) // 4
        if min(count, fits) > boxes.MAX_TRACK_SAMPLES:
            return None
        return boxes.table(data, box, room.notes, ">u4", at=8)[:, 0].astype(np.int64)
    # No table bounds this count; the bytes of the object do.
    count = int.from_bytes(data[box.body + 8 : min(box.body + 12, box.stop)], "big")
    count = min(count, room.object_size // constant)
    return None if count > boxes.MAX_TRACK_SAMPLES else np.full(count, constant, np.int64)


def _compact_sizes(data: bytes, box: Box | None, notes: Notes) -> Ticks | None:
    """stz2: sizes of 4, 8 or 16 bits."""
    if box is None or box.stop - box.body < 12:
        return np.empty(0, np.int64)
    width, start = data[box.body + 7], box.body + 12
    if width not in (4, 8, 16):
        notes.note(f"stz2 with {width}-bit sizes")
        return np.empty(0, np.int64)
    claimed = int.from_bytes(data[box.body + 8 : start], "big")
    count = min(claimed, (box.stop - start) * 8 // width)
    if count < claimed:
        notes.note(f"stz2 claims {claimed} rows, {count} fit")
    if count > boxes.MAX_TRACK_SAMPLES:
        return None
    if width == 4:
        packed = np.frombuffer(data, np.uint8, (count + 1) // 2, start)
        return np.stack((packed >> 4, packed & 15), axis=1).reshape(-1)[:count].astype(np.int64)
    return np.frombuffer(data, ">u2" if width == 16 else np.uint8, count, start).astype(np.int64)


def _places(starts: Ticks, runs: NDArray[np.int64], sizes: Ticks) -> tuple[Ticks, NDArray[np.int32]]:
    """(offset, description) of each sample: chunk offset + the sizes before it in its chunk."""
    if not len(starts) or not len(runs):
        return np.empty(0, np.int64), np.empty(0, np.int32)
    held, kinds = _held(len(starts), runs, len(sizes))
    ends = np.cumsum(held)
    count = int(ends[-1])
    before = np.cumsum(sizes[:count]) - sizes[:count]
    chunk = np.repeat(np.arange(len(starts)), held)
    at_chunk = (
        before[np.minimum(ends - held, max(count - 1, 0))] if count else np.zeros(len(starts), np.int64)
    )
    offset = starts[chunk] + before - at_chunk[chunk]
    return offset, kinds[chunk]


def _held(chunks: int, runs: Ticks, count: int) -> tuple[Ticks, NDArray[np.int32]]:
    """(samples, description) of each chunk, of `count` samples in all."""
    first = np.maximum.accumulate(np.clip(runs[:, 0] - 1, 0, chunks))
    first[0] = 0
    lengths = np.diff(first, append=chunks)
    ends = np.minimum(np.cumsum(np.repeat(runs[:, 1], lengths)), count)
    kinds = np.repeat(np.minimum(runs[:, 2], 0x7FFFFFFF), lengths)
    return np.diff(ends, prepend=0), kinds.astype(np.int32)


def _expand(rows: NDArray[Any], count: int) -> tuple[Ticks, int]:
    """Run-length rows (count, value) -> `count` values, padded with the last; how many there were."""
    ends = np.minimum(np.cumsum(rows[:, 0].astype(np.int64)), count)
    values = np.repeat(rows[:, 1].astype(np.int64), np.diff(ends, prepend=0))
    have = len(values)
    if have < count:
        values = np.pad(values, (0, count - have), mode="edge" if have else "constant")
    return values, have


def _durations(data: bytes, box: Box | None, count: int, notes: Notes) -> Ticks:
    """stts: a table that is too short goes on with its last value, one too long is cut."""
    rows = np.empty((0, 2), ">u4") if box is None else boxes.table(data, box, notes, ">u4", 2)
    values, have = _expand(rows, count)
    if have < count:
        notes.note(f"stts has {have} of {count} durations")
    return values


def _compositions(data: bytes, box: Box | None, count: int, notes: Notes) -> Ticks:
    """ctts, signed in both versions as FFmpeg reads it; 0 where it is absent or short."""
    if box is None:
        return np.zeros(count, np.int64)
    raw = boxes.table(data, box, notes, ">u4", 2)
    rows = np.stack((raw[:, 0].astype(np.int64), raw[:, 1].astype(np.uint32).view(np.int32)), axis=1)
    values, have = _expand(rows, count)
    values[have:] = 0
    return values


def _sync(data: bytes, box: Box | None, count: int, notes: Notes) -> NDArray[np.bool_]:
    """stss: no box = every sample is a sync sample, a box without rows = none is."""
    if box is None:
        return np.ones(count, np.bool_)
    sync = np.zeros(count, np.bool_)
    numbers = boxes.table(data, box, notes, ">u4")[:, 0].astype(np.int64) - 1
    sync[numbers[(numbers >= 0) & (numbers < count)]] = True
    return sync
