"""Tracks on the player line without an edit list: which samples, and when each is decoded and shown. Pure.

Browsers' media source extensions know no edit lists, and throw away a picture before 0 with all that lean on
it. So the times that an edit list makes are written into the samples. What must be decoded but is not shown
(the pictures between a key frame and the first wanted one) gets one tick each, just before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vfs import Unsupported
from vfs_mp4 import segments, splice, timeline
from vfs_mp4.model import Movie, Ticks, Track
from vfs_mp4.plan import Window
from vfs_mp4.timeline import Shown

#: Ticks a second at least where pictures that are not shown take a tick each: thirty take a third of a ms.
FINE = 90_000
#: Seconds between decoding and showing a picture at most; a time stamp that asks for more is broken.
MAX_AHEAD = 2
_U32 = 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class Lane:
    """Rows of one track in decode order, a row that is shown twice is there twice.

    track: the source's, its timescale the one that times are in. dts: when each is decoded, never falling;
    dur: how long it lasts; cts: from when it is decoded until it is shown, never negative: FFmpeg 8.1 moves a
    whole track by its most negative one. end: when the last one that is shown goes.
    """

    track: Track
    rows: Ticks
    dts: Ticks
    dur: Ticks
    cts: Ticks
    end: int


def lane(movie: Movie, track: Track) -> Lane | None:
    """A track on the player line, 0 = `Movie.zero`; None where nothing of it is shown.

    Pictures that begin later are shown from 0 on, as an instant before the first picture is that picture.
    Raises Unsupported for an edit list beyond reason.
    """
    shown = timeline.shown(movie, track)
    if not len(shown):
        return None
    zero = round(movie.zero * track.timescale)
    time = np.maximum.accumulate(np.maximum(shown.time - zero, 0))
    end = max(int(shown.end[-1]) - zero, int(time[-1]) + 1)
    if track.handler != "vide":
        return _placed(track, shown.order, time, end)
    time[0] = 0
    return _pictures(movie, track, replace(shown, time=time, end=np.append(time[1:], end)))


def _placed(track: Track, rows: Ticks, time: Ticks, end: int) -> Lane:
    """Rows in decode order with the times at which they are shown, the first of which is 0 or later.

    Each lasts as long as it is shown, and is decoded as far ahead as the order needs, all alike: so the first
    may be decoded before 0.
    """
    order = np.argsort(time, kind="stable")
    dur = np.empty(len(time), np.int64)
    dur[order] = np.diff(time[order], append=end)
    dts = time[order[0]] + np.cumsum(dur) - dur
    dts -= min(int((dts - time).max()), MAX_AHEAD * track.timescale)
    return Lane(track, rows, dts, dur, time - dts, end)


def fitted(lane: Lane, starts: Ticks) -> Lane:
    """The lane in fragments, the first row of each decoded when the first of the fragment is shown.

    Players place a fragment by its decode time alone where they begin in the middle (hls.js 1.7) or lay one
    behind the other (shaka-player 5.2 with HLS): were it decoded earlier, its pictures would be as much late.
    What is decoded before it is shown follows by a tick each; where ticks are too long for that, the first is
    decoded earlier. No row lasts longer than it is shown: Chromium 156, paused, would show it that long.
    """
    starts, number = np.unique(starts[starts < len(lane.rows)]), np.arange(len(lane.rows))
    time = lane.dts + lane.cts
    yet, latest = (np.minimum.accumulate(t[::-1])[::-1] for t in (time, time - number))
    ramp = np.repeat(latest[starts], np.diff(starts, append=len(number))) + number
    # At the front there is no earlier: where ticks are too long, several are decoded at once.
    begin = time.min()
    front = np.minimum(begin + np.minimum(number, np.count_nonzero(lane.dts < begin)), yet)
    dts = np.maximum(np.maximum(lane.dts, ramp), front)
    dur = np.diff(dts, append=dts[-1] + lane.dur[-1])
    last = starts[1:] - 1
    dur[last] = np.minimum(dur[last], lane.dur[last])
    return replace(lane, dts=dts, dur=dur, cts=time - dts)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Shown pictures [low, high) that follow each other in the media; what is decoded for them.

    rows: decode rows; place: of each, where it comes in display order from the first shown one on; early: how
    many come before it; late: after the last shown one.
    """

    low: int
    high: int
    rows: Ticks
    place: Ticks
    early: int
    late: int


def _pictures(movie: Movie, track: Track, shown: Shown) -> Lane:
    """Pictures, with those that are decoded only."""
    rank = np.empty(len(track.samples), np.int64)
    rank[np.argsort(track.samples.pts, kind="stable")] = np.arange(len(rank))
    at = rank[shown.order]
    bounds = [0, *(np.flatnonzero(np.diff(at) != 1) + 1).tolist(), len(at)]
    if len(bounds) > splice.MAX_EDITS:
        raise Unsupported(f"track {track.track_id}: its edit list makes more than {splice.MAX_EDITS} parts")
    pieces = [_piece(movie, track, shown, rank, *pair) for pair in itertools.pairwise(bounds)]
    factor = _factor(track, shown, pieces)
    finer = replace(track, timescale=track.timescale * factor)
    time, ends = shown.time * factor, shown.end * factor
    times = [_times(piece, time[piece.low : piece.high], int(ends[piece.high - 1])) for piece in pieces]
    rows = np.concatenate([piece.rows for piece in pieces])
    return _placed(finer, rows, np.concatenate(times), int(ends[-1]))


def _piece(movie: Movie, track: Track, shown: Shown, rank: Ticks, low: int, high: int) -> _Piece:
    rows = segments.decoded_rows(Window(movie, track, shown, low, high - 1))
    place = rank[rows] - rank[shown.order[low]]
    return _Piece(low, high, rows, place, int((place < 0).sum()), int((place >= high - low).sum()))


def _factor(track: Track, shown: Shown, pieces: Sequence[_Piece]) -> int:
    """By how much finer ticks must be for the pictures that take one each.

    Raises Unsupported where no timescale is fine enough.
    """
    hidden = [piece for piece in pieces if piece.early or piece.late]
    if not hidden:
        return 1
    length = shown.end - shown.time
    needed = -(-FINE // track.timescale)
    for piece in hidden:
        room = min(int(length[piece.low]), int(length[piece.high - 1]))
        needed = max(needed, 2 * (piece.early + piece.late) // max(room, 1) + 1)
    if needed * track.timescale > _U32:
        raise Unsupported(f"track {track.track_id}: too many pictures are hidden by its edit list")
    return needed


def _times(piece: _Piece, time: Ticks, end: int) -> Ticks:
    """When the rows of a piece are shown, hidden ones a tick each."""
    wanted = (piece.place >= 0) & (piece.place < piece.high - piece.low)
    found = np.empty(len(piece.rows), np.int64)
    found[wanted] = time[piece.place[wanted]]
    found[piece.place == 0] += piece.early
    order = np.argsort(piece.place, kind="stable")
    found[order[: piece.early]] = time[0] + np.arange(piece.early)
    found[order[len(order) - piece.late :]] = end - piece.late + np.arange(piece.late)
    return found
