"""A whole file as fragments, with an index of them: for browsers and for streaming. Pure, zero copy.

Browsers know no edit lists, and FFmpeg moves tracks whose composition offsets are negative. So times are
those of the player line plus one delay for all tracks, as long as the earliest picture is decoded before it
is shown; manifests say so where they can, and a file for itself takes it back by an edit list.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import numpy as np

from vfs import Inline, Layout, Span, TooBig, Unsupported
from vfs_mp4 import plan, segments, soundformat, timeline, write
from vfs_mp4.model import Movie, Ticks, Track
from vfs_mp4.segments import Lane

#: Seconds that a fragment has at least, but where the next key frame is further away.
LEAST = Fraction(2)
#: Pieces of a stored file that one stream is made of at most: their description takes 100 MB.
MAX_SPANS = 500_000
#: Bit of a `sidx` reference: it begins with a point of random access; type 1 (ISO/IEC 14496-12 8.16.3).
_SAP = 0x90000000


@dataclass(frozen=True, slots=True)
class Segment:
    """One fragment. offset, size: in the stream; start: player seconds; duration: seconds."""

    offset: int
    size: int
    start: Fraction
    duration: Fraction


@dataclass(frozen=True, eq=False)
class Stream:
    """Fragments of one or more tracks. init: bytes of ftyp and moov; index: of the sidx behind them. delay:
    seconds that all times in it are later than on the player line.
    """

    tracks: tuple[Track, ...]
    layout: Layout
    init: int
    index: int
    segments: tuple[Segment, ...]
    delay: Fraction = Fraction(0)

    @property
    def nbytes(self) -> int:
        """Memory held, about."""
        return 250 * len(self.layout.spans) + 200 * len(self.segments)

    @property
    def peak(self) -> int:
        """Bits a second of the fullest segment, rounded up."""
        return max((int(-(-8 * s.size // s.duration)) for s in self.segments if s.duration), default=0)

    @property
    def average(self) -> int:
        """Bits a second over all."""
        seconds = sum((s.duration for s in self.segments), Fraction(0))
        return int(8 * sum(s.size for s in self.segments) / seconds) if seconds else 0


def streamed(movie: Movie, tracks: Sequence[Track], delay: Fraction, *, edited: bool = False) -> Stream:
    """The tracks as one stream; the first leads. edited: an edit list takes the delay back.

    Raises Unsupported, TooBig, ValueError (tables that lie).
    """
    lanes = [_late(lane(movie, track), delay) for track in tracks]
    groups = _groups(lanes)
    shown = [replace(one, media=int(delay * one.track.timescale)) for one in lanes] if edited else lanes
    head = segments.init_of(shown, movie.duration)
    made: list[list[Span]] = [segments.fragment(movie, n, group) for n, group in enumerate(groups, 1)]
    if sum(map(len, made)) > MAX_SPANS:
        raise TooBig(f"{movie.object.key} is interleaved into more than {MAX_SPANS} pieces")
    sizes = [sum(span.length for span in spans) for spans in made]
    times = [Fraction(int(t), lanes[0].track.timescale) - delay for t in _starts(lanes[0], groups, delay)]
    durations = [b - a for a, b in zip(times, [*times[1:], max(movie.duration, times[-1])], strict=True)]
    index = _sidx(lanes[0].track, delay, times, durations, sizes)
    at = len(head) + len(index)
    found = []
    for size, start, duration in zip(sizes, times, durations, strict=True):
        found.append(Segment(at, size, start, duration))
        at += size
    spans = [Inline(head + index), *(span for part in made for span in part)]
    return Stream(tuple(tracks), Layout(spans), len(head), len(index), tuple(found), delay)


def lane(movie: Movie, track: Track) -> Lane:
    """All samples of a track that are shown or needed for it, on the player line."""
    if track.encrypted:
        raise Unsupported(f"track {track.track_id} is encrypted")
    if track.unit:
        raise Unsupported(f"track {track.track_id}: uncompressed sound is not streamed")
    shown, samples = timeline.shown(movie, track), track.samples
    if not len(shown):
        raise Unsupported(f"track {track.track_id}: nothing of it is shown")
    # An edit that begins within a packet shows it from there on: the first may come up later than the rest.
    shifts = (shown.time - samples.pts[shown.order])[min(1, len(shown) - 1) :]
    if (shifts != shifts[0]).any():
        raise Unsupported(f"track {track.track_id}: its edit list cuts or repeats, which streams cannot say")
    low, high = timeline.start_row(track, shown.order), int(shown.order.max())
    if track.handler == "soun":
        # What a decoder needs to settle lies before 0, where players cut it off.
        low = max(low - soundformat.lead(track.codec, (track.boxes or {}).get("stsd", b"")), 0)
    rows = np.arange(low, high + 1)
    shift = int(shifts[0]) - int(movie.zero * track.timescale)
    offsets = samples.pts[rows] - samples.dts[rows]
    lift = max(0, -int(offsets.min()))
    decoded = samples.dts[rows] + shift - lift
    dur = np.maximum(np.append(np.diff(decoded), samples.dur[high]), 0)
    return Lane(track, rows, decoded, dur, offsets + lift, 0)


def delay_of(movie: Movie, tracks: Sequence[Track]) -> Fraction:
    """Seconds by which all are late, so that no decode time is negative: whole ticks of every clock."""
    clock = math.gcd(*(track.timescale for track in tracks))
    early = max(Fraction(-int(lane(movie, track).dts[0]), track.timescale) for track in tracks)
    return Fraction(max(0, math.ceil(early * clock)), clock)


def _groups(lanes: Sequence[Lane]) -> list[list[tuple[Lane, slice]]]:
    """Fragments: of the leading lane from key frame to key frame, of the others up to the same time."""
    bounds = _bounds(lanes[0])
    times = [Fraction(int(lanes[0].dts[b]), lanes[0].track.timescale) for b in bounds[1:-1]]
    parts = [[(lanes[0], slice(a, b))] for a, b in pairwise(bounds)]
    for other in lanes[1:]:
        ticks = [math.ceil(time * other.track.timescale) for time in times]
        cuts = np.searchsorted(other.dts, ticks, "left").tolist()
        edges = [0, *cuts, len(other.rows)]
        for part, (a, b) in zip(parts, pairwise(edges), strict=True):
            if b > a:
                part.append((other, slice(a, b)))
    return parts


def _bounds(leading: Lane) -> list[int]:
    """Rows at which fragments begin, and the end."""
    samples = leading.track.samples
    kinds = samples.description[leading.rows]
    keys = samples.sync[leading.rows].copy()
    keys[1:] |= kinds[1:] != kinds[:-1]
    least, bounds = int(LEAST * leading.track.timescale), [0]
    for row in np.flatnonzero(keys).tolist():
        changed = row > 0 and kinds[row] != kinds[row - 1]
        if row > 0 and (changed or leading.dts[row] - leading.dts[bounds[-1]] >= least):
            bounds.append(row)
    return [*bounds, len(leading.rows)]


def _late(one: Lane, delay: Fraction) -> Lane:
    return replace(one, dts=one.dts + int(delay * one.track.timescale))


def _starts(leading: Lane, groups: Sequence[Sequence[tuple[Lane, slice]]], delay: Fraction) -> Ticks:
    """When the first picture of each fragment comes up; what comes before the delay does at it."""
    presented = leading.dts + leading.cts
    first = [int(presented[group[0][1].start]) for group in groups]
    begin = int(delay * leading.track.timescale)
    return np.maximum.accumulate(np.maximum(np.array(first, np.int64), begin))


def _sidx(
    track: Track,
    delay: Fraction,
    times: Sequence[Fraction],
    durations: Sequence[Fraction],
    sizes: Sequence[int],
) -> bytes:
    """The segment index (ISO/IEC 14496-12 8.16.3), version 1, one reference a fragment."""
    scale = track.timescale
    edges = [round((t + delay) * scale) for t in (*times, times[-1] + durations[-1])]
    rows = b"".join(
        struct.pack(">III", size, b - a, _SAP) for size, (a, b) in zip(sizes, pairwise(edges), strict=True)
    )
    if len(sizes) > 0xFFFF:
        raise TooBig(f"{len(sizes)} fragments are more than an index can say")
    head = struct.pack(">IIQQHH", track.track_id, scale, edges[0], 0, 0, len(sizes))
    return write.full(b"sidx", 1, 0, head, rows)


def streamable(movie: Movie) -> list[Track]:
    """The tracks that can be streamed: the leading one first, then sounds. Raises what it raises for it."""
    first = plan.leading_track(movie)
    others = [t for t in movie.tracks if t.handler == "soun" and t.usable and t is not first and not t.unit]
    return [first, *others]
