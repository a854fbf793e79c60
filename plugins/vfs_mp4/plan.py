"""A selection made concrete: which shown frames of which track. Pure.

An instant is the frame shown at it; a range [A, B) runs from the frame shown at A to the last frame whose
time is before B, whatever the spelling.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from vfs import Moment, NoMedia, OutOfRange, Selection, Unsupported
from vfs_mp4 import timeline
from vfs_mp4.model import Movie, Ticks, Track
from vfs_mp4.timeline import Shown


@dataclass(frozen=True, eq=False)
class Window:
    """Shown frames first..last (both included, indices into `shown`) of the track that leads."""

    movie: Movie
    track: Track
    shown: Shown
    first: int
    last: int

    @property
    def rows(self) -> Ticks:
        """Decode rows of the wanted frames, in display order."""
        return self.shown.order[self.first : self.last + 1]

    @property
    def start(self) -> Fraction:
        """When the first frame comes up, in seconds on the line of `Shown.time` (not minus `Movie.zero`)."""
        return Fraction(int(self.shown.time[self.first]), self.track.timescale)

    @property
    def stop(self) -> Fraction:
        """When the last frame goes, on the same line."""
        return Fraction(int(self.shown.end[self.last]), self.track.timescale)

    @property
    def open_ended(self) -> bool:
        """True when the tables end with the last frame although the movie goes on: its end is a guess."""
        return self.last == len(self.shown) - 1 and not self.movie.complete


def seconds_needed(selection: Selection) -> tuple[Fraction, Fraction] | None:
    """The player seconds whose tables a selection needs; None = those of the whole movie."""
    start, stop = selection.start, selection.stop
    if start.kind != "time" or selection.open_end or selection.length is not None:
        return None
    if stop is None:
        return start.value, start.value
    return (start.value, stop.value) if stop.kind == "time" else None


def leading_track(movie: Movie) -> Track:
    """The track whose frames a selection counts: the first video track, else the first sound.

    Raises NoMedia without one, Unsupported where it or a sound track is encrypted.
    """
    sounds = [t for t in movie.tracks if t.handler == "soun" and t.usable]
    track = movie.video or (sounds[0] if sounds else None)
    if track is None:
        raise NoMedia("no usable video or sound track" + _why(movie))
    for one in (track, *sounds):
        if one.encrypted:
            raise Unsupported(f"track {one.track_id} ({one.codec}) is encrypted")
    return track


def _why(movie: Movie) -> str:
    return f": {'; '.join(movie.damage)}" if movie.damage else ""


def locate(movie: Movie, selection: Selection) -> Window:
    """The frames of a selection. Raises OutOfRange, and what `leading_track` raises."""
    track = leading_track(movie)
    shown = timeline.shown(movie, track)
    if not len(shown):
        raise NoMedia("nothing in it is shown" + _why(movie))
    at = _Line(movie, track, shown)
    first = at.index(selection.start)
    if not selection.is_range:
        return Window(movie, track, shown, first, first)
    stop = at.stop_index(selection, first)
    mixed = selection.stop is not None and selection.stop.kind != selection.start.kind
    if stop <= first and mixed:
        raise OutOfRange(f"{selection.canonical} ends before it begins")
    return Window(movie, track, shown, first, max(stop - 1, first))


@dataclass(frozen=True, eq=False)
class _Line:
    """Moments as indices into the shown frames."""

    movie: Movie
    track: Track
    shown: Shown

    def index(self, moment: Moment) -> int:
        """The frame at a moment. Raises OutOfRange."""
        if moment.kind == "time":
            self._inside(moment.value)
            return timeline.row_at(self.shown, timeline.ticks(moment.value, self.track, self.movie))
        known = self._keys() if moment.kind == "key" else np.arange(len(self.shown))
        if moment.value >= len(known):
            raise OutOfRange(f"{moment.canonical}: there are {len(known)}")
        return int(known[int(moment.value)])

    def stop_index(self, selection: Selection, first: int) -> int:
        """The index after the last frame of a range that begins at `first`; past the end = to the end."""
        count, stop, length = len(self.shown), selection.stop, selection.length
        if length is not None and length.kind == "frame":
            return min(first + int(length.value), count)
        if length is not None:
            start = Fraction(int(self.shown.time[first]), self.track.timescale) - self.movie.zero
            return self._before(start + length.value)
        if stop is None:
            return count
        if stop.kind == "time":
            return self._before(stop.value)
        if stop.kind == "frame":
            return min(int(stop.value), count)
        keys = self._keys()
        return int(keys[int(stop.value)]) if stop.value < len(keys) else count

    def _before(self, seconds: Fraction) -> int:
        """How many frames come up before a time: their ticks are below it, so it is rounded up."""
        ticks = -int(-(seconds + self.movie.zero) * self.track.timescale // 1)
        return int(np.searchsorted(self.shown.time, ticks, "left"))

    def _keys(self) -> Ticks:
        """Indices of the shown key frames, in display order."""
        return np.flatnonzero(self.track.samples.sync[self.shown.order])

    def _inside(self, seconds: Fraction) -> None:
        if self.movie.complete and seconds >= self.movie.duration:
            raise OutOfRange(f"{float(seconds):g} s: it is {float(self.movie.duration):g} s long")
