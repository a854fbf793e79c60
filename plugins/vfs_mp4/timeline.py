"""The player line: which samples are shown, when, and what must be decoded for them. Pure.

Edit lists (ISO/IEC 14496-12 8.6.6) are composed in order; the result is what FFmpeg 8.1 shows: of a video
track the frames whose pts lies inside an edit, of an audio track also the one the edit begins in. In a
fragmented movie an edit list only shifts: no demuxer trims fragments by it, and its durations speak of the
moov alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from vfs import Damaged
from vfs_mp4.model import Edit, Movie, Ticks, Track

_HEARD = frozenset(("vide", "soun"))
# Ticks that no edit list reaches: 800 years of the finest clock. Sums of two stay within 64 bits.
_BEYOND = 1 << 61


@dataclass(frozen=True, eq=False)
class Shown:
    """The shown samples of a track in display order, all int64 and of equal length.

    order: their row indices in `Track.samples` (a row that several edits show is there several times).
    time, end: when each comes up and when the next replaces it, in track ticks after the edit list, not
    yet minus `Movie.zero`.
    """

    order: Ticks
    time: Ticks
    end: Ticks

    def __len__(self) -> int:
        """Number of shown samples."""
        return len(self.order)


@dataclass(frozen=True, slots=True)
class _Span:
    """One edit on both lines, in track ticks: player times from `at`, media times [start, stop).

    stop None = to the end of the media; rate 0 = the frame at start alone, for `dwell` ticks.
    """

    at: int
    start: int
    stop: int | None
    rate: Fraction
    dwell: int = 0


_KEPT: WeakKeyDictionary[Track, Shown] = WeakKeyDictionary()


def shown(movie: Movie, track: Track) -> Shown:
    """What a player shows of a track, and when; worked out once a track.

    Raises Damaged for an edit list that repeats the media, or lasts, beyond reason.
    """
    return place_samples(track, movie.timescale, shift_only=movie.init is not None)


def place_samples(track: Track, timescale: int, *, shift_only: bool) -> Shown:
    """`shown` without a movie. timescale: of the movie; shift_only: the edit list never trims."""
    found = _KEPT.get(track)
    if found is None:
        found = _KEPT[track] = _placed(track, timescale, shift_only)
    return found


def _placed(track: Track, timescale: int, shift_only: bool) -> Shown:
    rows = track.samples
    order = np.argsort(rows.pts, kind="stable")
    pts = rows.pts[order]
    parts: list[tuple[Ticks, Ticks]] = []
    final: _Span | None = None
    room = 2 * len(rows) + 65_536
    spans = list(_spans(track, timescale, shift_only))
    for span in spans:
        first, last = (0, len(pts)) if shift_only else _inside(span, track, order, pts)
        room -= last - first
        if room < 0:
            raise Damaged(f"track {track.track_id}: the edit list shows the media too often")
        parts.append((order[first:last], _player_times(span, pts[first:last])))
        if last > first:
            final = span
    return _joined(parts, track, final)


def _joined(parts: Sequence[tuple[Ticks, Ticks]], track: Track, final: _Span | None) -> Shown:
    """One table; the end of a sample is the time of the next, that of the last its own or its edit's."""
    none = np.empty(0, np.int64)
    order = np.concatenate([rows for rows, _ in parts] or [none])
    time = np.concatenate([times for _, times in parts] or [none])
    if final is None or not len(order):
        return Shown(none, none, none)
    last, line_end = int(time[-1] + track.samples.dur[order[-1]]), _line_end(final)
    if line_end is not None:
        last = min(last, line_end) if final.rate == 1 else line_end
    last = max(last, int(time[-1]) + 1)
    return Shown(order, time, np.append(time[1:], last))


def rescale(value: int, timescale: int, old: int) -> int:
    """`value` ticks of `old` a second in ticks of `timescale`, to the nearest, halves away from 0."""
    half = old // 2
    return (abs(value) * timescale + half) // old * (1 if value >= 0 else -1) if old > 0 else 0


def _spans(track: Track, timescale: int, shift_only: bool) -> Iterator[_Span]:
    """The edits that show media, laid end to end on the player line."""
    at = 0
    edits = track.edits
    if not any(edit.media_time >= 0 for edit in edits):
        edits = (*edits, Edit(0, 0))
    for edit in edits:
        length = rescale(edit.duration, track.timescale, timescale)
        if max(at + length, edit.media_time) >= _BEYOND:
            raise Damaged(f"track {track.track_id}: the edit list has times beyond reason")
        if edit.media_time < 0:
            at += length
            continue
        if shift_only:
            yield _Span(at, edit.media_time, None, Fraction(1))
            return
        rate = edit.rate if edit.rate >= 0 else Fraction(1)
        if not edit.duration or rate == 0:
            yield _Span(at, edit.media_time, None, rate, length)
        else:
            yield _Span(at, edit.media_time, edit.media_time + int(length * rate), rate)
        at += length


def _inside(span: _Span, track: Track, order: Ticks, pts: Ticks) -> tuple[int, int]:
    """The samples of one edit, as a range of the display order."""
    first = int(np.searchsorted(pts, span.start, "left"))
    if span.rate == 0:
        shown_at = max(int(np.searchsorted(pts, span.start, "right")) - 1, 0)
        return shown_at, min(shown_at + 1, len(pts))
    last = len(pts) if span.stop is None else int(np.searchsorted(pts, span.stop, "left"))
    if track.handler == "soun" and 0 < first <= len(pts):
        # Sound that begins before the edit is heard from the edit on: priming is rarely whole frames.
        before = first - 1
        if pts[before] + track.samples.dur[order[before]] > span.start:
            first = before
    return first, max(first, last)


def _player_times(span: _Span, pts: Ticks) -> Ticks:
    """When the samples of an edit come up."""
    if span.rate == 0:
        return np.full(len(pts), span.at, np.int64)
    since = pts - span.start
    if span.rate != 1:
        since = since * span.rate.denominator // span.rate.numerator
    # Before 0 only where nothing is trimmed (a fragmented movie), or for sound that straddles the edit.
    return since + span.at if span.stop is None else np.maximum(since, 0) + span.at


def _line_end(span: _Span) -> int | None:
    """Where an edit ends on the player line, None = with its media."""
    if span.rate == 0:
        return span.at + span.dwell
    return None if span.stop is None else span.at + int((span.stop - span.start) / span.rate)


def row_at(shown: Shown, ticks: int) -> int:
    """Index into `shown` of what is on screen at `ticks`: greatest time <= ticks, the first before any.

    Raises ValueError when nothing is shown at all.
    """
    if not len(shown):
        raise ValueError("nothing is shown")
    return max(int(np.searchsorted(shown.time, ticks, "right")) - 1, 0)


def rows_between(shown: Shown, start: int, stop: int) -> Ticks:
    """Indices into `shown` of a range [start, stop): what is on screen at start, and all before stop."""
    first = row_at(shown, start)
    return np.arange(first, max(int(np.searchsorted(shown.time, stop, "left")), first + 1))


def ticks(seconds: Fraction, track: Track, movie: Movie) -> int:
    """A path time (0 = `Movie.zero`) in ticks of a track, rounded down."""
    return int((seconds + movie.zero) * track.timescale // 1)


def start_row(track: Track, rows: NDArray[np.int64]) -> int:
    """The decode row to begin at so that all of `rows` (decode rows, not empty) can be decoded.

    The last sync sample at or before them; one sync sample earlier where a wanted row is a leading picture
    of that one (after it in decode order, before it in display order: its references may lie before the
    sync sample, as in an open GOP). Row 0 where there is no sync sample.
    """
    key = _key_for(track, rows)
    if key is not None:
        return key
    syncs = np.flatnonzero(track.samples.sync[: int(rows.min()) + 1])
    return int(syncs[0]) if len(syncs) else 0


def decodable(track: Track, rows: NDArray[np.int64]) -> bool:
    """Whether the tables hold a sync sample from which all of `rows` can be decoded."""
    return _key_for(track, rows) is not None


def _key_for(track: Track, rows: NDArray[np.int64]) -> int | None:
    pts = track.samples.pts
    syncs = np.flatnonzero(track.samples.sync[: int(rows.min()) + 1])
    for key in syncs[::-1]:
        if not np.any((rows > key) & (pts[rows] < pts[key])):
            return int(key)
    return None


def zero(tracks: Sequence[tuple[Track, Shown]]) -> Fraction:
    """The earliest presentation time in seconds: the 0 of path times. 0 where nothing is shown."""
    return min((Fraction(int(s.time[0]), t.timescale) for t, s in counted(tracks)), default=Fraction(0))


def end(tracks: Sequence[tuple[Track, Shown]]) -> Fraction:
    """When the last sample of all tracks ends, in seconds, not yet minus zero."""
    return max((Fraction(int(s.end[-1]), t.timescale) for t, s in counted(tracks)), default=Fraction(0))


def counted(tracks: Sequence[tuple[Track, Shown]]) -> list[tuple[Track, Shown]]:
    """The tracks that make the player line: usable pictures and sound, else whatever is usable."""
    some = [(track, shows) for track, shows in tracks if track.usable and len(shows)]
    return [pair for pair in some if pair[0].handler in _HEARD] or some
