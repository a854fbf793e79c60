"""Fragment forms: what a decoder or a browser takes in pieces, and the perfect read of an instant. Pure.

Fragmented sources are given verbatim: their init and whole fragments. For progressive ones an init and one
fragment a group of pictures are made, with nothing re-encoded.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vfs import Extent, Inline, Layout, Span
from vfs_mp4 import boxes, splice, timeline, write
from vfs_mp4.model import Fragment, Movie, Ticks, Track
from vfs_mp4.plan import Window

#: Codecs with open groups of pictures. Decoders drop the leading pictures of the key frame they begin at
#: (RASL in HEVC, what precedes the recovery point in H.264), and no picture after them refers to them.
HEVC = frozenset(("hvc1", "hev1"))
VVC = frozenset(("vvc1", "vvi1"))
DROPS_LEADING = HEVC | VVC | {"mp4v", "avc1", "avc3"}
#: tfhd flag: the fragment names its data by an offset in the whole file, so it cannot be moved.
_BASE_DATA_OFFSET = 0x1


@dataclass(frozen=True, slots=True)
class Read:
    """A layout, and which frame a decoder puts out for it, counted from 0, is the wanted one."""

    layout: Layout
    index: int


# ---------------------------------------------------------------- verbatim


@dataclass(frozen=True, eq=False)
class Verbatim:
    """Whole fragments that hold a window. rows: decode rows of the leading track in them."""

    window: Window
    init: tuple[int, int]
    fragments: tuple[Fragment, ...]
    rows: Ticks

    @property
    def layout(self) -> Layout:
        """The init and the fragments as they are stored."""
        stored = self.window.movie.object
        spans: list[Span] = [Extent(stored, *self.init)]
        spans += [Extent(stored, f.offset, f.end - f.offset) for f in self.fragments]
        return Layout(spans)

    @property
    def leading(self) -> Ticks:
        """Rows of the leading pictures of the first sample: a decoder that begins here may drop them.

        None where a wanted frame is one of them: then they lean on nothing before.
        """
        track, pts = self.window.track, self.window.track.samples.pts
        after, key = self.rows[1:], self.rows[0]
        if track.codec not in DROPS_LEADING or not len(after) or not track.samples.sync[key]:
            return after[:0]
        if (pts[self.window.rows] < pts[key]).any():
            return after[:0]
        syncs = np.flatnonzero(self.window.track.samples.sync[after])
        group = after[: syncs[0]] if len(syncs) else after
        found: Ticks = group[pts[group] < pts[self.rows[0]]]
        return found

    def index(self, dropped: Ticks) -> int:
        """Which frame put out is the first wanted one, when a decoder drops these rows."""
        pts = self.window.track.samples.pts
        kept = self.rows[~np.isin(self.rows, dropped)]
        return int(np.count_nonzero(pts[kept] < pts[self.window.rows[0]]))


def verbatim(window: Window) -> Verbatim | None:
    """The stored fragments that hold a window, from a key frame on; None where there are no such."""
    movie, samples = window.movie, window.track.samples
    if movie.init is None or not movie.fragments:
        return None
    starts = np.array([f.offset for f in movie.fragments], np.int64)
    holder = np.searchsorted(starts, samples.offset, "right") - 1
    low, high = timeline.start_row(window.track, window.rows), int(window.rows.max())
    needed = holder[low : high + 1]
    first, last = int(needed.min()), int(needed.max())
    while first > 0:
        row = int(np.flatnonzero(holder >= first)[0])
        if samples.sync[row]:
            break
        keys = np.flatnonzero(samples.sync[:row])
        first = min(int(holder[keys[-1]]) if len(keys) else 0, first - 1)
    if first < 0:
        return None  # A sample that lies in the moov's own data, before any fragment.
    rows = np.flatnonzero((holder >= first) & (holder <= last))
    return Verbatim(window, movie.init, movie.fragments[first : last + 1], rows)


def relocatable(moof: bytes) -> bool:
    """Whether a fragment means the same at another offset of another file."""
    notes = boxes.Notes()
    top = next(boxes.children(moof, 0, len(moof), notes), None)
    for traf in boxes.inside(moof, top, notes, 1) if top is not None else ():
        for box in boxes.inside(moof, traf, notes, 2) if traf.kind == b"traf" else ():
            if box.kind == b"tfhd" and moof[box.body + 3] & _BASE_DATA_OFFSET:
                return False
    return True


# ---------------------------------------------------------------- made


def made(window: Window, *, sound: bool) -> Read:
    """An init and one fragment a group of pictures, with just the samples that the window needs."""
    lead = _pictures(window)
    lanes = [lead]
    if sound:
        lanes += map(_placed, _sound_lanes(window))
    spans: list[Span] = [Inline(init_of(lanes, window.stop - window.start))]
    for number, group in enumerate(_groups(lanes), 1):
        spans += fragment(window.movie, number, group)
    kept = window.track.samples.pts[lead.rows]
    wanted = window.track.samples.pts[window.rows[0]]
    return Read(Layout(spans), int(np.count_nonzero(kept < wanted)))


@dataclass(frozen=True, eq=False)
class Lane:
    """Rows of one track in decode order. dts: from 0 until placed; media: pts shown first; at: seconds of
    the first row's pts from the start of the window (sound)."""

    track: Track
    rows: Ticks
    dts: Ticks
    dur: Ticks
    cts: Ticks
    media: int
    at: Fraction = Fraction(0)


def _lane(track: Track, rows: Ticks, media: int, at: Fraction = Fraction(0)) -> Lane:
    samples = track.samples
    dts = samples.dts[rows] - samples.dts[rows[0]]
    dur = np.maximum(np.append(np.diff(dts), samples.dur[rows[-1]]), 0)
    cts = samples.pts[rows] - samples.dts[rows]
    lift = max(0, -int(cts.min()))
    return Lane(track, rows, dts, dur, cts + lift, media - int(samples.dts[rows[0]]) + lift, at)


def keeps_leading(window: Window, key: int) -> bool:
    """Whether the leading pictures of the row a decoder begins at are given to it."""
    track, pts = window.track, window.track.samples.pts
    return track.codec not in DROPS_LEADING or bool((pts[window.rows] < pts[key]).any())


def decoded_rows(window: Window) -> Ticks:
    """The decode rows from the key frame to the last wanted frame, less what cannot be decoded from it.

    Nothing is left out where a wanted frame is a leading picture itself: of the first key frame, which has
    nothing before it to lean on.
    """
    track, pts = window.track, window.track.samples.pts
    low, high = timeline.start_row(track, window.rows), int(window.rows.max())
    rows = np.arange(low, high + 1)
    if not keeps_leading(window, low):
        keys = np.flatnonzero(track.samples.sync[low + 1 : high + 1])
        group_end = low + 1 + int(keys[0]) if len(keys) else high + 1
        rows = rows[(rows >= group_end) | (pts[rows] >= pts[low])]
    return rows


def _pictures(window: Window) -> Lane:
    return _lane(window.track, decoded_rows(window), int(window.track.samples.pts[window.rows[0]]))


def _sound_lanes(window: Window) -> list[Lane]:
    """Sound on the clock of the window's start. Only the first stretch of an edited track is kept."""
    found = []
    for track in window.movie.tracks:
        if track.handler != "soun" or not track.usable or track is window.track:
            continue
        pieces = splice.sounds(track, timeline.shown(window.movie, track), window.start, window.stop)
        for piece in pieces[:1]:
            rows = np.arange(piece.low, piece.high)
            early = piece.gap - (piece.media - int(track.samples.pts[piece.low]))
            found.append(_lane(track, rows, piece.media, early / track.timescale))
    return found


def _placed(lane: Lane) -> Lane:
    """A lane of sound on a clock of its own, on which the window begins as soon as its pre-roll is over.

    Not on the clock of the pictures, whose pre-roll is longer: of AAC in fragments FFmpeg 8.1 drops as many
    samples as the edit skips, whether they are there or not.
    """
    scale = lane.track.timescale
    preroll = max(-lane.at, Fraction(0))
    begin = round((preroll + lane.at) * scale) - int(lane.cts[0])
    return replace(lane, dts=lane.dts + max(begin, 0), media=round(preroll * scale) + max(-begin, 0))


def init_of(lanes: list[Lane], length: Fraction) -> bytes:
    """ftyp and moov without samples. The edit begins at the window: what is only decoded lies before 0.

    It has no end, as is the rule with fragments (ISO/IEC 14496-12, 8.6.6): GStreamer 1.22 cuts in the middle
    where it has one.
    """
    timescale = splice.common_timescale([lane.track for lane in lanes])
    duration = round(length * timescale)
    traks = [
        write.trak(
            lane.track,
            duration=duration,
            media_duration=0,
            edits=[(0, lane.media)] if lane.media else [],
            tables=write.empty_tables(),
        )
        for lane in lanes
    ]
    ids = [lane.track.track_id for lane in lanes]
    mvhd = write.mvhd(timescale, duration, min(max(ids) + 1, write.U32))
    brands = write.ftyp(b"iso5", b"iso5", b"iso6", b"mp41")
    return brands + write.box(b"moov", mvhd, *traks, write.mvex(ids))


def _groups(lanes: list[Lane]) -> Iterator[list[tuple[Lane, slice]]]:
    """For each group of pictures its rows and the sound up to the next group."""
    lead, *others = lanes
    samples = lead.track.samples
    kinds = samples.description[lead.rows]
    cuts = samples.sync[lead.rows[1:]] | (kinds[1:] != kinds[:-1])
    if lead.track.handler == "soun":
        cuts = np.zeros_like(cuts)  # Every sample of sound is a key: one group of all.
    bounds = [0, *(np.flatnonzero(cuts) + 1).tolist(), len(lead.rows)]
    done = [0] * len(others)
    for low, high in itertools.pairwise(bounds):
        group = [(lead, slice(low, high))]
        for number, lane in enumerate(others):
            stop = len(lane.rows)
            if high < len(lead.rows):
                until = Fraction(int(lead.dts[high]) - lead.media, lead.track.timescale)
                ticks = math.ceil(until * lane.track.timescale) + lane.media
                stop = max(int(np.searchsorted(lane.dts, ticks, "left")), done[number])
            if stop > done[number]:
                group.append((lane, slice(done[number], stop)))
            done[number] = stop
        yield group


def fragment(movie: Movie, number: int, group: list[tuple[Lane, slice]]) -> list[Span]:
    """moof and mdat of one group: the pictures, then the sound."""
    sizes = [int(lane.track.samples.size[lane.rows[part]].sum()) for lane, part in group]
    head = len(_moof(number, group, [0] * len(group))) + 8
    places = [head + sum(sizes[:i]) for i in range(len(sizes))]
    total = 8 + sum(sizes)
    front = _moof(number, group, places) + struct.pack(">I4s", total, b"mdat")
    spans: list[Span] = [Inline(front)]
    for lane, part in group:
        rows = lane.rows[part]
        offset, size = lane.track.samples.offset[rows], lane.track.samples.size[rows]
        splice.check_inside(movie.object, offset, size)
        spans += splice.extents(movie.object, offset, size)
    return spans


def _moof(number: int, group: list[tuple[Lane, slice]], places: list[int]) -> bytes:
    return write.moof(
        number,
        *(
            write.traf(
                lane.track,
                int(lane.dts[part.start]),
                int(lane.track.samples.description[lane.rows[part.start]]),
                _columns(lane, part),
                place,
            )
            for (lane, part), place in zip(group, places, strict=True)
        ),
    )


def _columns(lane: Lane, part: slice) -> NDArray[np.int64]:
    samples, rows = lane.track.samples, lane.rows[part]
    flags = np.where(samples.sync[rows], write.SYNC_FLAGS, write.OTHER_FLAGS)
    return np.stack((lane.dur[part], samples.size[rows], flags, lane.cts[part]), axis=1)
