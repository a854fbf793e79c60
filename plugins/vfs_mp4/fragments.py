"""moof bytes -> sample rows per track. Pure.

Precedence of a sample's duration, size and flags: its own field in trun, first_sample_flags, the default of
tfhd, that of trex (FFmpeg writes the duration in tfhd and 0 in trex). Layouts: ISO/IEC 14496-12 8.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from vfs import Damaged
from vfs_mp4 import boxes, groups
from vfs_mp4.boxes import Box, Notes
from vfs_mp4.index import Defaults
from vfs_mp4.model import Samples, Ticks

# Sample flags. FFmpeg counts a sample that depends on others as no key either; so does this.
_NOT_SYNC, _DEPENDS = 0x00010000, 0x01000000
_BASE, _DESCRIPTION, _DURATION, _SIZE, _FLAGS, _FROM_MOOF = 0x1, 0x2, 0x8, 0x10, 0x20, 0x20000
_DATA_OFFSET, _FIRST_FLAGS = 0x1, 0x4
_PER_SAMPLE = (0x100, 0x200, 0x400, 0x800)
# Rows without any field of their own are bounded by nothing in the file: 10 s of raw 48 kHz sound in one
# moof is the most that is met, in runs that are much shorter.
_MOOF_ROWS, _BARE_ROWS = 500_000, 16_384


@dataclass(frozen=True, eq=False)
class Moof:
    """A parsed moof. offset, size: of the box. decode_time, track_id: of its first traf.

    rows: the samples of each track it has some of (`first` None). timed: every traf has a tfdt, so the
    times need nothing that came before. data_end: the end of the last sample.
    """

    offset: int
    size: int
    decode_time: int
    track_id: int
    rows: Mapping[int, Samples]
    timed: bool
    data_end: int


@dataclass(slots=True)
class _Cursor:
    """What runs on through a moof. moof: its offset; data: where the next run begins if nobody says."""

    moof: int
    data: int
    room: int
    notes: Notes
    timed: bool = True


@dataclass(frozen=True, slots=True)
class _Header:
    """A tfhd with the defaults of trex filled in."""

    track_id: int
    base: int
    defaults: Defaults


def parse_moof(
    data: bytes,
    offset: int,
    defaults: Mapping[int, Defaults],
    times: Mapping[int, int],
) -> Moof:
    """Parse a whole moof box, header included.

    offset: where it lies in the object. defaults: trex by track. times: where each track goes on, in its
    ticks, used for a traf without tfdt. Raises Damaged when it is cut short or its tables lie.
    """
    cursor = _Cursor(offset, offset, _MOOF_ROWS, Notes())
    top = next(boxes.children(data, 0, len(data), cursor.notes), None)
    if top is None or top.kind != b"moof" or top.cut:
        raise Damaged(f"no whole moof at {offset}")
    times = dict(times)
    found: list[tuple[int, int, Samples]] = []
    for box in boxes.inside(data, top, cursor.notes, 1):
        if box.kind == b"traf":
            track, begin, part = _traf(data, box, cursor, defaults, times)
            times[track] = begin + int(part.dur.sum())
            found.append((track, begin, part))
    if cursor.notes.damage:
        raise Damaged(f"moof at {offset}: {cursor.notes.damage[0]}")
    if not found:
        raise Damaged(f"moof at {offset} has no track fragment")
    by_track: dict[int, list[Samples]] = {}
    for track, _, part in found:
        if len(part):
            by_track.setdefault(track, []).append(part)
    rows = {track: concatenate(parts) for track, parts in by_track.items()}
    ends = [int((part.offset + part.size).max()) for part in rows.values()]
    first_track, begin, _ = found[0]
    return Moof(offset, top.size, begin, first_track, rows, cursor.timed, max(ends, default=offset))


def concatenate(parts: list[Samples], first: int | None = None) -> Samples:
    """Tables end to end. first: decode index of the first row in the whole track."""
    return Samples(
        dts=np.concatenate([p.dts for p in parts]),
        dur=np.concatenate([p.dur for p in parts]),
        pts=np.concatenate([p.pts for p in parts]),
        size=np.concatenate([p.size for p in parts]),
        offset=np.concatenate([p.offset for p in parts]),
        sync=np.concatenate([p.sync for p in parts]),
        description=np.concatenate([p.description for p in parts]),
        first=first,
    )


def _traf(
    data: bytes, traf: Box, cursor: _Cursor, defaults: Mapping[int, Defaults], times: Mapping[int, int]
) -> tuple[int, int, Samples]:
    """(track, decode time, rows) of one track fragment."""
    inner = boxes.inside(data, traf, cursor.notes, 2)
    tfhd = boxes.first(inner, b"tfhd")
    if tfhd is None:
        raise Damaged(f"moof at {cursor.moof}: a traf without tfhd")
    head = _header(data, tfhd, cursor, defaults)
    tfdt = boxes.first(inner, b"tfdt")
    begin = None if tfdt is None else boxes.decode_time(data, tfdt)
    cursor.timed = cursor.timed and begin is not None
    if begin is None:
        begin = times.get(head.track_id, 0)
    if begin >= 1 << 60:
        raise Damaged(f"moof at {cursor.moof}: a decode time of {begin}")
    cursor.data = head.base
    parts, time = [_no_rows()], begin
    for box in inner:
        if box.kind == b"trun":
            rows = _trun(data, box, head, time, cursor)
            time += int(rows.dur.sum())
            parts.append(rows)
    rows = concatenate(parts)
    rows = replace(rows, sync=rows.sync | groups.starts_in_fragment(data, inner, len(rows)))
    return head.track_id, begin, rows


def _header(data: bytes, box: Box, cursor: _Cursor, defaults: Mapping[int, Defaults]) -> _Header:
    """tfhd: optional fields by flag, in this order."""
    payload = data[box.body : box.stop]
    flags = int.from_bytes(payload[1:4], "big")
    track = int.from_bytes(payload[4:8], "big")
    at, values = 8, {}
    for flag, width in ((_BASE, 8), (_DESCRIPTION, 4), (_DURATION, 4), (_SIZE, 4), (_FLAGS, 4)):
        if flags & flag:
            values[flag] = int.from_bytes(payload[at : at + width], "big")
            at += width
    if len(payload) < at:
        raise Damaged(f"moof at {cursor.moof}: tfhd is too short")
    base = values.get(_BASE, cursor.moof if flags & _FROM_MOOF else cursor.data)
    trex = defaults.get(track, Defaults())
    return _Header(
        track,
        min(base, 1 << 62),
        Defaults(
            values.get(_DESCRIPTION, trex.description),
            values.get(_DURATION, trex.duration),
            values.get(_SIZE, trex.size),
            values.get(_FLAGS, trex.flags),
        ),
    )


def _trun(data: bytes, box: Box, head: _Header, time: int, cursor: _Cursor) -> Samples:
    """One run of samples; moves `cursor.data` behind it."""
    payload = data[box.body : box.stop]
    if len(payload) < 8:
        raise Damaged(f"moof at {cursor.moof}: trun is too short")
    flags, count = int.from_bytes(payload[1:4], "big"), int.from_bytes(payload[4:8], "big")
    at = 8
    if flags & _DATA_OFFSET:
        cursor.data = head.base + int.from_bytes(payload[at : at + 4], "big", signed=True)
        at += 4
    first_flags = None
    if flags & _FIRST_FLAGS:
        first_flags = int.from_bytes(payload[at : at + 4], "big")
        at += 4
    columns = [flag for flag in _PER_SAMPLE if flags & flag]
    fits = max(len(payload) - at, 0) // (4 * len(columns)) if columns else _BARE_ROWS
    if count > min(fits, cursor.room) or cursor.data < 0:
        raise Damaged(f"moof at {cursor.moof}: trun claims {count} samples, {fits} fit")
    cursor.room -= count
    table = np.frombuffer(payload, ">u4", count * len(columns), min(at, len(payload)))
    fields = dict(zip(columns, table.reshape(count, len(columns)).T, strict=True)) if columns else {}
    return _rows(fields, count, first_flags, head.defaults, time, cursor)


def _rows(
    fields: dict[int, np.ndarray[tuple[int], np.dtype[np.uint32]]],
    count: int,
    first_flags: int | None,
    defaults: Defaults,
    time: int,
    cursor: _Cursor,
) -> Samples:
    """The columns of a run."""

    def column(flag: int, default: int) -> Ticks:
        found = fields.get(flag)
        return np.full(count, default, np.int64) if found is None else found.astype(np.int64)

    dur, size = column(0x100, defaults.duration), column(0x200, defaults.size)
    flags, offsets = column(0x400, defaults.flags), fields.get(0x800)
    if first_flags is not None and 0x400 not in fields and count:
        flags[0] = first_flags
    # Signed in both versions, as FFmpeg reads it.
    late = np.zeros(count, np.int64) if offsets is None else offsets.astype(np.uint32).view(np.int32)
    dts = time + np.cumsum(dur) - dur
    begin = cursor.data
    cursor.data = begin + int(size.sum())
    if not 0 <= cursor.data < 1 << 62:
        raise Damaged(f"moof at {cursor.moof}: data beyond any object")
    return Samples(
        dts=dts,
        dur=dur,
        pts=dts + late,
        size=size,
        offset=begin + np.cumsum(size) - size,
        sync=(flags & (_NOT_SYNC | _DEPENDS)) == 0,
        description=np.full(count, min(defaults.description, 0x7FFFFFFF), np.int32),
        first=None,
    )


def _no_rows() -> Samples:
    none = np.empty(0, np.int64)
    return Samples(none, none, none, none, none, np.empty(0, np.bool_), np.empty(0, np.int32), None)
