"""Which decoded samples of a sound track are heard when: the player line in samples. Pure.

Packets are placed by the samples they decode to, not by their rounded time stamps: what follows without a gap
in the stream does so here. A time stamp that is half a packet or more away is a gap, and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vfs import Layout, Unsupported
from vfs_mp4 import groups, splice, timeline
from vfs_mp4.model import Movie, Ticks, Track
from vfs_mp4.soundformat import Format
from vfs_mp4.soundwork import Job, Run


@dataclass(frozen=True, eq=False)
class Line:
    """One sound track on the player line; sample 0 is at `Movie.zero`.

    position: number of the first sample of each row, on the line of the media; count: how many it gives.
    begin, end: samples of the player line that a stretch is heard at; shift: what to add to a number on the
    player line for the one on the line of the media. low, high: rows of a stretch [low, high).
    """

    movie: Movie
    track: Track
    format: Format
    position: Ticks
    count: Ticks
    begin: Ticks
    end: Ticks
    shift: Ticks
    low: Ticks
    high: Ticks

    @property
    def length(self) -> int:
        """Samples until the sound ends."""
        return int(self.end[-1]) if len(self.end) else 0

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.position.nbytes + self.count.nbytes + 5 * self.begin.nbytes


def nearest(seconds: Fraction, rate: int) -> int:
    """The sample nearest to a time; of two, the later."""
    return int((seconds * rate + Fraction(1, 2)) // 1)


def line(movie: Movie, track: Track, format: Format) -> Line:
    """Raises Unsupported for an edit list that changes the speed."""
    position, count = _positions(track, format)
    shown = timeline.shown(movie, track)
    order, offset = shown.order, splice.heard_shift(track, shown.order, shown.time)
    if np.count_nonzero(np.diff(offset)) >= splice.MAX_EDITS:
        raise Unsupported(f"the edit list cuts the sound into more than {splice.MAX_EDITS} parts")
    follows = (order[1:] == order[:-1] + 1) & (offset[1:] == offset[:-1])
    follows &= position[order[1:]] == position[order[:-1]] + count[order[:-1]]
    first = np.flatnonzero(np.concatenate((np.ones(min(len(order), 1), np.bool_), ~follows)))
    last = np.append(first[1:], len(order)) - 1
    low, high = order[first], order[last]
    # Where a stretch begins inside its first packet: both times are exact, only their difference is rounded.
    into = shown.time[first] - offset[first] - track.samples.pts[low]
    start = position[low] + _samples(into, track, format, Fraction(0))
    begin, end = (_samples(t, track, format, movie.zero) for t in (shown.time[first], shown.end[last]))
    shift, end = start - begin, np.minimum(end, begin + position[high] + count[high] - start)
    if len(low) and low[0] == 0 and track.samples.first == 0:
        begin[0] = min(max(begin[0], format.skip - shift[0]), end[0])
    return Line(movie, track, format, position, count, begin, end, shift, low, high + 1)


def _samples(ticks: Ticks, track: Track, format: Format, zero: Fraction) -> Ticks:
    """Ticks of a track, minus `zero` seconds, as samples."""
    seconds = (Fraction(tick, track.timescale) - zero for tick in ticks.tolist())
    return np.array([nearest(time, format.rate) for time in seconds], np.int64)


def _positions(track: Track, format: Format) -> tuple[Ticks, Ticks]:
    """(number of the first sample, samples) of each row."""
    samples, rate = track.samples, format.rate
    exact = samples.dts * rate // track.timescale
    if format.pcm is not None:
        count = samples.size // (format.pcm.width * format.channels)
    elif format.frame:
        count = np.full(len(samples), format.frame, np.int64)
    else:
        count = (samples.dur * rate + track.timescale // 2) // track.timescale
    if not len(count):
        return count, count
    told = np.diff(exact)
    jump = 2 * np.abs(told - count[:-1]) >= count[:-1] + 2 * (rate // track.timescale + 1)
    starts = np.concatenate(([0], np.flatnonzero(jump) + 1))
    running = np.cumsum(count) - count
    lengths = np.diff(starts, append=len(count))
    return running + np.repeat(exact[starts] - running[starts], lengths), count


def window(heard: Line, start: int, stop: int) -> tuple[Job, Layout]:
    """What decodes to samples [start, stop) of the player line, and the packets for it.

    Raises Damaged when they lie outside the file.
    """
    runs: list[Run] = []
    rows: list[NDArray[np.int64]] = []
    which = np.flatnonzero((heard.begin < stop) & (heard.end > start))
    for stretch in which.tolist():
        low, high = max(start, int(heard.begin[stretch])), min(stop, int(heard.end[stretch]))
        shift = int(heard.shift[stretch])
        needed = _rows(heard, stretch, low + shift, high + shift)
        runs.append(_run(heard, needed, low + shift, high + shift, low - start))
        rows.append(needed)
    chosen = np.concatenate(rows) if rows else np.empty(0, np.int64)
    samples = heard.track.samples
    offset, size = samples.offset[chosen], samples.size[chosen]
    splice.check_inside(heard.movie.object, offset, size)
    layout = Layout(splice.extents(heard.movie.object, offset, size))
    return Job(heard.format, tuple(runs), stop - start), layout


def _rows(heard: Line, stretch: int, start: int, stop: int) -> Ticks:
    """The rows that hold media samples [start, stop) of a stretch, and those its decoder must see before."""
    low, high = int(heard.low[stretch]), int(heard.high[stretch])
    inside = heard.position[low:high]
    first = low + max(int(np.searchsorted(inside, start, "right")) - 1, 0)
    last = low + int(np.searchsorted(inside, stop, "left"))
    lead = max(heard.format.lead, groups.lead(heard.track.groups))
    return np.arange(max(first - lead, 0), last)


def _run(heard: Line, rows: Ticks, start: int, stop: int, at: int) -> Run:
    size, position = heard.track.samples.size[rows], heard.position[rows]
    if heard.format.pcm is not None and len(rows):
        # Samples that follow each other are one packet: there may be 48,000 a second.
        joins = position[1:] == position[:-1] + heard.count[rows[:-1]]
        first = np.flatnonzero(np.concatenate((np.ones(1, np.bool_), ~joins)))
        size, position = np.add.reduceat(size, first), position[first]
    return Run(tuple(size.tolist()), tuple(position.tolist()), start, stop, at)
