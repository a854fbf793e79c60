"""From a selection in a name to the wanted frames of a stored video: where every view begins."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import TypeVar

from vfs import Layout, Place, Selection, in_thread
from vfs_mp4 import clips, plan, source, timeline
from vfs_mp4.model import Movie
from vfs_mp4.plan import Window

R = TypeVar("R")

SUFFIXES = (".mp4", ".m4v", ".mov", ".qt")
#: Tables and ranges of more samples than this are worked on in a thread: a millisecond, roughly, each.
SMALL = 20_000
#: Seconds beyond a range whose tables settle when its last frame ends.
MARGIN = Fraction(1)


def is_video(place: Place) -> bool:
    """A stored MP4 or QuickTime file, by its name."""
    return not place.is_folder and place.name.lower().endswith(SUFFIXES)


async def window_of(place: Place, selection: Selection, *, exact_end: bool = True) -> Window:
    """The wanted frames; with `exact_end` on tables large enough to know when the last one of a range ends.

    Fetches the index alone, and of a fragmented file only what the selection needs. Raises OutOfRange,
    NoMedia, Unsupported (encrypted), Damaged, StoreError.
    """
    needed = plan.seconds_needed(selection)
    if needed is None:
        return await _locate(await source.open_movie(place), selection)
    start, stop = needed
    window = await _locate(await source.movie_at(place, start, stop), selection)
    if window.open_ended and exact_end and selection.is_range:
        beyond = window.stop - window.movie.zero + MARGIN
        window = await _locate(await source.movie_at(place, start, beyond), selection)
    return window


async def _locate(movie: Movie, selection: Selection) -> Window:
    if max((len(track.samples) for track in movie.tracks), default=0) > SMALL:
        return await in_thread(_locate_warm, movie, selection)
    return plan.locate(movie, selection)


def _locate_warm(movie: Movie, selection: Selection) -> Window:
    """In a thread, and all that is worked out once a track with it."""
    for track in movie.tracks:
        if track.usable and track.handler in ("vide", "soun"):
            timeline.shown(movie, track)
    return plan.locate(movie, selection)


async def maybe_in_thread(window: Window, make: Callable[[Window], R]) -> R:
    """`make(window)`, in a thread where the window is long."""
    if window.last - window.first > SMALL:
        return await in_thread(make, window)
    return make(window)


async def clip(place: Place, window: Window) -> Layout:
    """The file that plays a window. Reads the four bytes of a timecode where there is one.

    Raises Unsupported, Damaged, StoreError, Stale.
    """
    codes = {}
    tracks = {track.track_id: track for track in window.movie.tracks}
    for number, (row, since) in clips.timecodes_at(window).items():
        at = int(tracks[number].samples.offset[row])
        if at + 4 <= place.size:
            codes[number] = int.from_bytes(await place.read(at, 4), "big") + since
    return await maybe_in_thread(window, partial(clips.exact, codes=codes))


def attributes(place: Place, selection: Selection, window: Window) -> dict[str, str]:
    """What `user.reelfs.*` tells of a selection; times in seconds on the line of path times."""
    zero, steps = window.movie.zero, window.shown.end - window.shown.time
    found = {
        "source": place.path,
        "selection": selection.canonical,
        "codec": window.track.codec,
        "timescale": str(window.track.timescale),
        "start_time": f"{float(window.start - zero):.9f}",
        "end_time": f"{float(window.stop - zero):.9f}",
        "frames": str(window.last - window.first + 1),
    }
    inside = steps[max(window.first - 1, 0) : window.last + 1]
    # Unknown is absent, never 0.
    if len(inside) and bool((inside == inside[0]).all()):
        found["default_sample_duration"] = str(int(inside[0]))
    return found
