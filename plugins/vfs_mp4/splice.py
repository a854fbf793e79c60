"""Clips without re-encoding: a progressive file whose edit list shows exactly the wanted frames. Pure.

The samples kept of a track run from the key frame that decoding needs to the last wanted one, in decode
order; the edit list hides what comes before the first wanted frame and what is decoded after the last. Sound
is kept in step by an edit list of its own, which begins some frames earlier so that its decoder is settled.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm

import numpy as np
from numpy.typing import NDArray

from vfs import Damaged, Extent, Inline, Layout, Span, StoredObject, Unsupported
from vfs_mp4 import groups, soundformat, timeline, write
from vfs_mp4.model import Movie, Ticks, Track
from vfs_mp4.plan import Window
from vfs_mp4.timeline import Shown

#: More edits than this in one clip come from a slow-motion list, which is not spliced.
MAX_EDITS = 500
#: Codec 4cc that are also file brands.
BRANDS = frozenset(("avc1", "hvc1", "hev1", "av01"))


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of media on the player line: decode rows [low, high) hold all it needs.

    media: pts at which it begins to be shown; length: track ticks it is shown; gap: track ticks of nothing
    before it.
    """

    low: int
    high: int
    media: int
    length: Fraction
    gap: Fraction = Fraction(0)


@dataclass(frozen=True, eq=False)
class Part:
    """One track of a clip: the kept rows in decode order, new composition offsets, and the edits.

    edits: (length in track ticks, media time in the clip; -1 = nothing). dur, cts: track ticks. made: where
    rows is empty, the bytes of the one sample, which is not the source's.
    """

    track: Track
    rows: Ticks
    dur: Ticks
    cts: Ticks
    edits: tuple[tuple[Fraction, int], ...]
    made: bytes = b""

    @property
    def columns(self) -> tuple[Ticks, Ticks, NDArray[np.int32]]:
        """(offset, size, description) of the samples; a made one lies nowhere."""
        if self.made:
            return np.zeros(1, np.int64), np.array([len(self.made)]), np.ones(1, np.int32)
        samples = self.track.samples
        return samples.offset[self.rows], samples.size[self.rows], samples.description[self.rows]

    @property
    def length(self) -> Fraction:
        """Seconds on the player line."""
        return sum((length for length, _ in self.edits), Fraction(0)) / self.track.timescale


def parts(window: Window) -> list[Part]:
    """The leading track and every sound track that is heard meanwhile."""
    found = [arrange(window.track, pictures(window))]
    for track in window.movie.tracks:
        if track.handler == "soun" and track.usable and track is not window.track:
            shown = timeline.shown(window.movie, track)
            heard = sounds(track, shown, window.start, window.stop, beside=True)
            if heard:
                found.append(arrange(track, heard))
    return found


def back_to_key(window: Window) -> Window:
    """The window moved back to the shown key frame from which its frames can be decoded."""
    key = timeline.start_row(window.track, window.rows)
    at = np.flatnonzero(window.shown.order[: window.first + 1] == key)
    return replace(window, first=int(at[-1])) if len(at) else window


# ---------------------------------------------------------------- which media


def pictures(window: Window) -> list[Piece]:
    """The media of a window of the leading track: one piece for each of the source's edits it touches."""
    shown, track = window.shown, window.track
    pts, dur = track.samples.pts, track.samples.dur
    if track.handler == "soun":
        return sounds(track, shown, window.start, window.stop)
    time = shown.time[window.first : window.last + 1]
    found: list[Piece] = []
    gap = Fraction(0)
    for low, high in _runs(time - pts[window.rows]):
        rows = window.rows[low:high]
        start = timeline.start_row(track, rows)
        end = int(rows.max()) + 1
        until = int(time[high]) if high < len(time) else int(shown.end[window.last])
        length = until - int(time[low])
        if high < len(time):
            # Where the source jumps, what is kept behind the last frame must not come up in the clip.
            kept = pts[start:end]
            later = kept[kept > pts[rows[-1]]]
            room = int(later.min()) if len(later) else int(pts[rows[-1]] + dur[rows[-1]])
            length = min(length, room - int(pts[rows[0]]))
        found.append(Piece(start, end, int(pts[rows[0]]), Fraction(length), gap))
        gap = Fraction(until - int(time[low]) - length)
    return found


def sounds(
    track: Track, shown: Shown, start: Fraction, stop: Fraction, *, beside: bool = False
) -> list[Piece]:
    """What is heard of a track between two times (seconds on the line of `Shown.time`).

    beside: beside pictures, where being in step is worth more than the first samples: Opus begins with the
    first whole packet, and fades in for a tenth of a second. Of an Opus track that begins before 0, as what
    an edit list hides does, Chromium moves all times by the first decode time of any track: hidden pictures
    of VP9 and AV1 would make the sound late by seconds.
    """
    begin, end = start * track.timescale, stop * track.timescale
    first = int(np.searchsorted(shown.end, int(begin // 1), "right"))
    last = int(np.searchsorted(shown.time, -int(-end // 1), "left"))
    if last <= first:
        return []
    order, time = shown.order[first:last], shown.time[first:last]
    # One more than is heard: it tells whether the last one is cut.
    shift = heard_shift(track, shown.order[first : last + 1], shown.time[first : last + 1])[: last - first]
    found: list[Piece] = []
    at = begin
    for low, high in _runs(shift):
        from_ = max(begin, Fraction(int(time[low])))
        until = min(end, Fraction(int(shown.end[first + high - 1])))
        if until <= from_:
            continue
        rows = order[low:high]
        bare = beside and track.codec == "Opus"
        if bare and int(time[low]) < from_ and high - low > 1:
            low += 1
            rows, from_ = order[low:high], Fraction(int(time[low]))
        media = round(from_ - int(shift[low]))
        start_row = int(rows.min()) if bare else _preroll(track, int(rows.min()))
        found.append(Piece(start_row, int(rows.max()) + 1, media, until - from_, from_ - at))
        at = until
    return found


def heard_shift(track: Track, order: Ticks, time: Ticks) -> Ticks:
    """Player time minus pts of sound; of the first sample of an edit the end alone may be heard."""
    shift = time - track.samples.pts[order]
    if len(shift) < 2:
        return shift
    over = shift[:-1] - shift[1:]
    cut = (over > 0) & (over < track.samples.dur[order[:-1]])
    cut[1:] &= shift[1:-1] != shift[:-2]
    shift[:-1][cut] = shift[1:][cut]
    return shift


def _preroll(track: Track, row: int) -> int:
    """The row to begin decoding at so that `row` sounds as in a decode of the whole."""
    lead = soundformat.lead(track.codec, (track.boxes or {}).get("stsd", b""))
    return max(row - max(lead, groups.lead(track.groups)), 0)


def _runs(values: Ticks) -> list[tuple[int, int]]:
    """[low, high) of the runs of equal values. Raises Unsupported for too many."""
    starts = np.flatnonzero(np.diff(values)) + 1
    if len(starts) >= MAX_EDITS:
        raise Unsupported(f"the edit list cuts this range into {len(starts) + 1} parts")
    bounds = [0, *starts.tolist(), len(values)]
    return list(itertools.pairwise(bounds))


# ---------------------------------------------------------------- one track


def arrange(track: Track, pieces: Sequence[Piece]) -> Part:
    """Lay the media of all pieces end to end, each row once, and say what to show of it."""
    ranges = _merged((piece.low, piece.high) for piece in pieces)
    rows = np.concatenate([np.arange(low, high) for low, high in ranges])
    samples = track.samples
    dur = np.concatenate([_steps(track, low, high) for low, high in ranges])
    dts = np.cumsum(dur) - dur
    starts = np.cumsum([0, *(high - low for low, high in ranges)])
    moved = [int(dts[at] - samples.dts[low]) for at, (low, _) in zip(starts, ranges, strict=False)]
    shift = np.repeat(np.array(moved, np.int64), np.diff(starts))
    cts = samples.pts[rows] + shift - dts
    # One constant makes every offset positive: old readers take them as unsigned.
    lift = max(0, -int(cts.min()))
    edits: list[tuple[Fraction, int]] = []
    for piece in pieces:
        if piece.gap:
            edits.append((piece.gap, -1))
        by = next(m for m, (low, high) in zip(moved, ranges, strict=True) if low <= piece.low < high)
        edits.append((piece.length, max(piece.media + by + lift, 0)))
    return Part(track, rows, dur, cts + lift, tuple(edits))


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges joined where they overlap or touch, in order."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return joined


def _steps(track: Track, low: int, high: int) -> Ticks:
    """Decode durations of rows [low, high): steps of dts, since fragments may leave gaps."""
    dts = track.samples.dts[low:high]
    steps: Ticks = np.maximum(np.append(np.diff(dts), track.samples.dur[high - 1]), 0)
    return steps


# ---------------------------------------------------------------- the file


def common_timescale(tracks: Sequence[Track]) -> int:
    """Ticks a second in which the lengths of all tracks are whole; that of the first if it fits no u32.

    Text is not counted among others: a tick more or less of it does no harm.
    """
    counted = [track for track in tracks if track.handler in ("vide", "soun")] or tracks
    common = lcm(*(track.timescale for track in counted))
    return common if common <= write.U32 else tracks[0].timescale


def progressive(
    movie: Movie,
    found: Sequence[Part],
    file_type: bytes | None = None,
    chapters: Sequence[tuple[int, bytes]] = (),
) -> Layout:
    """ftyp, moov and one mdat with the samples of all parts, in the order of the source; made ones first.

    file_type: a whole ftyp box, None = that of a clip. chapters: those of `write.chapters`.
    """
    columns = [part.columns for part in found]
    offset, size = (np.concatenate([column[n] for column in columns]) for n in (0, 1))
    made = np.concatenate([np.full(len(c[0]), bool(p.made)) for p, c in zip(found, columns, strict=True)])
    stored = ~made
    check_inside(movie.object, offset[stored], size[stored])
    order = np.argsort(np.where(made, -1, offset), kind="stable")
    ordered = size[order]
    position = np.empty_like(size)
    position[order] = np.cumsum(ordered) - ordered
    head = file_type or _file_type(found)
    blank = _moov(found, position, chapters)
    # All offsets are 64 bits: the length of the moov does not depend on where the data begins.
    base = len(head) + len(blank) + 16
    front = head + _moov(found, position + base, chapters) + write.large_mdat_header(int(size.sum()))
    first = int(made.sum())
    data = b"".join(part.made for part in found)
    return Layout([Inline(front + data), *extents(movie.object, offset[order[first:]], ordered[first:])])


def _file_type(found: Sequence[Part]) -> bytes:
    """Brands; QuickTime's own where a sample description is in its form (version 1 or 2 of sound)."""
    if any(quicktime_sound(part.track) for part in found):
        return write.ftyp(b"qt  ", b"qt  ")
    codec = found[0].track.codec
    return write.ftyp(b"isom", b"isom", b"iso2", *((codec.encode(),) if codec in BRANDS else ()), b"mp41")


def quicktime_sound(track: Track) -> bool:
    """Whether the description is in QuickTime's own form.

    stsd: header 8, version and count 8, entry: size and 4cc 8, reserved and reference 8, version 2.
    """
    stsd = (track.boxes or {}).get("stsd", b"")
    if track.handler != "soun":
        return False
    return track.codec in soundformat.QUICKTIME_PCM or stsd[32:34] not in (b"", b"\0\0")


def _moov(found: Sequence[Part], position: Ticks, chapters: Sequence[tuple[int, bytes]]) -> bytes:
    kept = frozenset(part.track.track_id for part in found)
    timescale = common_timescale([part.track for part in found])
    traks, longest, at = [], 0, 0
    for part in found:
        rows = [(round(length * timescale / part.track.timescale), media) for length, media in part.edits]
        duration = sum(length for length, _ in rows)
        longest = max(longest, duration)
        tables = _tables(part, position[at : at + len(part.dur)])
        at += len(part.dur)
        traks.append(
            write.trak(
                part.track,
                duration=duration,
                media_duration=int(part.dur.sum()),
                edits=rows,
                tables=tables,
                references=write.references(part.track, kept),
            )
        )
    header = write.mvhd(timescale, longest, min(max(kept) + 1, write.U32))
    return write.box(b"moov", header, *traks, write.chapters(chapters))


def _tables(part: Part, position: Ticks) -> bytes:
    samples, rows = part.track.samples, part.rows
    _, size, description = part.columns
    count = len(size)
    starts = write.chunk_starts(position, size, description)
    if part.track.unit:
        each = size // part.track.unit
        ticks = int(samples.dur[rows[0]] // each[0])
        return b"".join(
            (
                write.uniform(part.track.unit, int(each.sum()), ticks),
                write.stsc(starts, count, description, each),
                write.co64(position[starts]),
            )
        )
    return b"".join(
        (
            write.stts(part.dur),
            write.ctts(part.cts),
            write.stss(samples.sync[rows]),
            write.stsc(starts, count, description),
            write.stsz(size),
            write.co64(position[starts]),
            groups.cut(part.track.groups, rows),
        )
    )


def check_inside(stored: StoredObject, offset: Ticks, size: Ticks) -> None:
    """Raises Damaged when a sample lies outside the object."""
    if len(offset) and (int(offset.min()) < 0 or int((offset + size).max()) > stored.size):
        raise Damaged("samples of this range lie beyond the end of the file")


def extents(stored: StoredObject, offset: NDArray[np.int64], size: NDArray[np.int64]) -> list[Span]:
    """Spans of samples in the given order, neighbours joined."""
    if not len(offset):
        return []
    starts = np.flatnonzero(np.concatenate((np.ones(1, np.bool_), offset[1:] != offset[:-1] + size[:-1])))
    lengths = np.add.reduceat(size, starts)
    return [
        Extent(stored, at, length)
        for at, length in zip(offset[starts].tolist(), lengths.tolist(), strict=True)
    ]
