"""Views of MP4 and QuickTime files: clips, perfect reads, frames and `info.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import TypeVar

from vfs import (
    Bytes,
    Damaged,
    Derived,
    Layout,
    Node,
    Place,
    Selection,
    Spliced,
    View,
    hookimpl,
    in_thread,
    parse_derived,
)
from vfs_mp4 import frames, info, leading, plan, render, segments, source, splice, timeline
from vfs_mp4.model import Movie
from vfs_mp4.plan import Window
from vfs_mp4.segments import Verbatim

R = TypeVar("R")

SUFFIXES = (".mp4", ".m4v", ".mov", ".qt")
INFO = "info.json"
#: Tables and ranges of more samples than this are worked on in a thread: a millisecond, roughly, each.
SMALL = 20_000
#: Seconds beyond a range whose tables settle when its last frame ends.
MARGIN = Fraction(1)


@hookimpl
def vfs_views() -> list[View]:
    """The one view of this plugin."""
    return [Videos()]


@hookimpl
def vfs_prepare_worker() -> list[Callable[[], None]]:
    """The decoder takes a third of a second to import."""
    return [render.prepare]


class Videos:
    """Everything derived from one stored video."""

    name = "mp4"

    def applies(self, place: Place) -> bool:
        """By the name of the file."""
        return not place.is_folder and place.name.lower().endswith(SUFFIXES)

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """What can be listed; selections are endless and resolve by name only."""
        return {INFO: None}

    async def resolve(self, place: Place, name: str) -> Node | None:
        """`info.json`, or `SEL[.MODE].FMT` of the grammar. Raises OutOfRange, MediaError, StoreError."""
        if name == INFO:
            return Bytes(
                produce=partial(_info, place),
                version=f"{info.CODE}:{place.object.key}:{place.version}",
                mtime_ns=place.mtime_ns,
            )
        derived = parse_derived(name)
        if derived is None or not _offered(derived):
            return None
        try:
            return await _node(place, derived)
        except ValueError as error:  # An extent outside its object: the tables lie.
            raise Damaged(f"{place.path}: {error}") from error


def _offered(derived: Derived) -> bool:
    if derived.selection.is_range:
        return derived.format == "mp4" and derived.mode in ("", "key", "frag")
    return not derived.mode and (derived.format == "mp4" or derived.format in frames.FORMATS)


async def _info(place: Place) -> bytes:
    movie = await source.open_movie(place)
    return await in_thread(info.describe, movie)


async def _node(place: Place, derived: Derived) -> Node:
    window = await _window(place, derived)
    about = _attributes(place, derived.selection, window)
    if derived.format in frames.FORMATS:
        return frames.frame(place, window, derived.format, about)
    if derived.mode == "frag" or not derived.selection.is_range:
        layout, index = await _perfect(place, window, sound=derived.selection.is_range)
        about["start_frame_index"] = str(index)
    else:
        make = splice.from_key if derived.mode == "key" else splice.exact
        layout = await _maybe_in_thread(window, make)
        shown_first = splice.back_to_key(window).first if derived.mode == "key" else window.first
        about["start_frame_index"] = str(window.first - shown_first)
    return Spliced(layout=layout, mtime_ns=place.mtime_ns, attributes=about)


async def _window(place: Place, derived: Derived) -> Window:
    """The wanted frames, on tables that are large enough to know when the last one ends."""
    needed = plan.seconds_needed(derived.selection)
    if needed is None:
        return await _locate(await source.open_movie(place), derived.selection)
    start, stop = needed
    window = await _locate(await source.movie_at(place, start, stop), derived.selection)
    if window.open_ended and derived.format == "mp4" and derived.selection.is_range:
        beyond = window.stop - window.movie.zero + MARGIN
        window = await _locate(await source.movie_at(place, start, beyond), derived.selection)
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


async def _maybe_in_thread(window: Window, make: Callable[[Window], R]) -> R:
    if window.last - window.first > SMALL:
        return await in_thread(make, window)
    return make(window)


async def _perfect(place: Place, window: Window, *, sound: bool) -> tuple[Layout, int]:
    """Whole stored fragments where there are some that can be moved, else fragments that are made."""
    stored = segments.verbatim(window)
    if stored is not None and await _can_move(place, stored):
        return stored.layout, stored.index(await leading.dropped(place, stored))
    made = await _maybe_in_thread(window, partial(segments.made, sound=sound))
    return made.layout, made.index


async def _can_move(place: Place, stored: Verbatim) -> bool:
    first = stored.fragments[0]
    return segments.relocatable(await place.read(first.offset, first.moof_size))


def _attributes(place: Place, selection: Selection, window: Window) -> dict[str, str]:
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
