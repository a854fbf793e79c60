"""The clips people play: pictures and sound, and what goes with them: text, chapters, timecode. Pure.

Samples of text are whole in themselves: the first and the last one of a clip are shown for less long, and
need no edit list. Not so documents of TTML, whose times count from the start of the track: they keep them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

import numpy as np

from vfs import Layout
from vfs_mp4 import splice, timeline, write
from vfs_mp4.model import Movie, Ticks, Track
from vfs_mp4.plan import Window
from vfs_mp4.splice import Part

#: Handlers of tracks of text: subtitles, captions, and chapters of QuickTime.
TEXT = frozenset(("text", "sbtl", "subt", "clcp", "subp"))
#: Codecs whose samples tell times that count from the start of the track (ISO/IEC 14496-30, 4.2).
_TIMED_INSIDE = frozenset(("stpp", "sbtt"))
#: tmcd (QuickTime File Format, timecode sample description): where it tells ticks a second, ticks a frame.
_TIMECODE_RATE = struct.Struct(">40xII")


def exact(window: Window, codes: Mapping[int, int] | None = None) -> Layout:
    """A file that plays exactly the frames of a window, and what goes with them.

    codes: by track the timecode at the start of the window, as `timecodes_at` numbers frames. Raises
    Damaged, Unsupported.
    """
    found = splice.parts(window)
    for track in window.movie.tracks:
        if track.usable and not track.encrypted and track is not window.track:
            is_text = track.handler in TEXT
            part = text(window.movie, track, window.start, window.stop) if is_text else None
            if codes and track.track_id in codes:
                part = _timecode(window, track, codes[track.track_id])
            found += [part] if part else []
    return splice.progressive(window.movie, found, chapters=chapters(window.movie, window.start, window.stop))


def from_key(window: Window, codes: Mapping[int, int] | None = None) -> Layout:
    """The same from the key frame at or before the window: it plays alike where edit lists are ignored."""
    return exact(splice.back_to_key(window), codes)


# ---------------------------------------------------------------- text


def text(movie: Movie, track: Track, begin: Fraction, end: Fraction) -> Part | None:
    """The samples of text that are shown between two times (seconds on the line of `Shown.time`).

    None where there is none, or it is not all there.
    """
    shown = timeline.shown(movie, track)
    start, stop = (round(time * track.timescale) for time in (begin, end))
    first = int(np.searchsorted(shown.end, start, "right"))
    last = int(np.searchsorted(shown.time, stop, "left"))
    if last <= first:
        return None
    rows = shown.order[first:last]
    begins = np.maximum(shown.time[first:last], start)
    until = min(int(shown.end[last - 1]), stop)
    if (np.diff(rows) <= 0).any() or until <= int(begins[-1]):
        return None  # Edits that repeat: rare enough with text to leave it out.
    offset, size = track.samples.offset[rows], track.samples.size[rows]
    if int(offset.min()) < 0 or int((offset + size).max()) > movie.object.size:
        return None  # A file that was cut has pictures still.
    dur = np.diff(begins, append=until)
    dts = np.cumsum(dur) - dur
    cts = np.zeros_like(dts)
    if track.codec in _TIMED_INSIDE:
        cts = track.samples.pts[rows] + begins - shown.time[first:last] - dts
        if (cts < 0).any() or int(cts.max()) > write.U32 >> 1:
            return None
    gap = int(begins[0]) - start
    edits = [(Fraction(gap), -1)] if gap > 0 else []
    return Part(track, rows, dur, cts, (*edits, (Fraction(int(dur.sum())), int(cts[0]))))


def chapter_tracks(movie: Movie) -> list[Track]:
    """The tracks of text that others name as their chapters (QuickTime File Format, track references)."""
    named = {number for track in movie.tracks for number in track.references.get("chap", ())}
    return [track for track in movie.tracks if track.track_id in named and track.handler in TEXT]


def chapters(movie: Movie, begin: Fraction, end: Fraction) -> list[tuple[int, bytes]]:
    """Nero's chapters that are on between two times: (100 ns from the first one, title)."""
    low, high = (round((time - movie.zero) * 10_000_000) for time in (begin, end))
    found = [(time - low, title) for time, title in nero_chapters(movie.chapters) if time < high]
    # The one that is on at the start began before it.
    past = [one for one in found if one[0] <= 0]
    return [(0, title) for _, title in past[-1:]] + [one for one in found if one[0] > 0]


def nero_chapters(chpl: bytes) -> list[tuple[int, bytes]]:
    """(100 ns, title) of a whole `chpl` box: u8 count of u64 time, u8 length and title."""
    at = 8 + (9 if chpl[8:9] == b"\1" else 5)
    count, found = chpl[at - 1] if at <= len(chpl) else 0, []
    for _ in range(count):
        if at + 9 > len(chpl):
            break
        length = chpl[at + 8]
        found.append((int.from_bytes(chpl[at : at + 8], "big"), chpl[at + 9 : at + 9 + length]))
        at += 9 + length
    return found


# ---------------------------------------------------------------- timecode


def timecodes_at(window: Window) -> dict[int, tuple[int, int]]:
    """By track of timecode: the row that is on at the start of a window, and the frames counted since."""
    found = {}
    for track in window.movie.tracks:
        stsd = (track.boxes or {}).get("stsd", b"")
        if track.codec != "tmcd" or not track.usable or len(stsd) < _TIMECODE_RATE.size:
            continue
        ticks, each = _TIMECODE_RATE.unpack_from(stsd)
        shown = timeline.shown(window.movie, track)
        if not len(shown) or not ticks or not each:
            continue
        at = timeline.row_at(shown, int(window.start * track.timescale))
        since = window.start - Fraction(int(shown.time[at]), track.timescale)
        row = int(shown.order[at])
        if track.samples.size[row] == 4:
            # A frame that is on the screen for a tick already counts.
            found[track.track_id] = row, int(since * ticks / each + Fraction(1, 1000))
    return found


def _timecode(window: Window, track: Track, code: int) -> Part:
    """One sample, the code of the first frame, for as long as the clip."""
    length = (window.stop - window.start) * track.timescale
    dur: Ticks = np.array([-int(-length // 1)])
    made = struct.pack(">I", code & write.U32)
    lone = replace(track, groups=())
    return Part(lone, np.empty(0, np.int64), dur, np.zeros(1, np.int64), ((length, 0),), made)
