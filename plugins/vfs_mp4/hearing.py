"""From a place and a selection to sound: which track, between which times, in which format."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np

from vfs import Layout, NoMedia, OutOfRange, Place, Selection, Unsupported, in_thread, in_worker
from vfs_mp4 import plan, soundformat, soundline, soundwork, source, splice
from vfs_mp4.model import Movie, Track
from vfs_mp4.selecting import SMALL
from vfs_mp4.soundformat import Format
from vfs_mp4.soundline import Line

#: Seconds of tables wanted before a range, so that every decoder has settled when it begins.
BEFORE = Fraction(2)
#: Packets that tell what comes out of a decoder: band replication is heard of within half a second.
_PROBE = 24


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds [start, stop) of path times (0 = `Movie.zero`); the tables of `movie` cover them."""

    movie: Movie
    start: Fraction
    stop: Fraction


async def tracks(place: Place) -> list[Track]:
    """The sound tracks of a file, usable or not, in file order; without samples where it has fragments."""
    movie = await source.movie_at(place, Fraction(0), Fraction(0))
    return sounds_of(movie)


def sounds_of(movie: Movie) -> list[Track]:
    """The sound tracks of a movie."""
    return [track for track in movie.tracks if track.handler == "soun"]


def the_sound(movie: Movie, number: int = 0) -> Track:
    """A sound track by number, from 0. Raises NoMedia, Unsupported where it is encrypted."""
    found = sounds_of(movie)
    if number >= len(found):
        raise NoMedia("there is no sound track" if not found else f"there are {len(found)} sound tracks")
    track = found[number]
    if track.encrypted:
        raise Unsupported(f"track {track.track_id} ({track.codec}) is encrypted")
    if not track.usable or not len(track.samples):
        raise NoMedia(f"track {track.track_id} ({track.codec}) has no sound here")
    return track


async def whole(place: Place) -> Span:
    """All of a file."""
    movie = await source.open_movie(place)
    return Span(movie, Fraction(0), movie.duration)


async def span_of(place: Place, selection: Selection) -> Span:
    """A range: times as they are, frames and keys for when they come up. Raises OutOfRange."""
    needed = plan.seconds_needed(selection)
    if needed is not None:
        movie = await source.movie_at(place, max(needed[0] - BEFORE, Fraction(0)), needed[1])
        if needed[0] >= movie.duration:
            raise OutOfRange(f"{float(needed[0]):g} s: it is {float(movie.duration):g} s long")
        return Span(movie, needed[0], min(needed[1], movie.duration))
    movie = await source.open_movie(place)
    window = plan.locate(movie, selection)
    start, stop, length = selection.start, selection.stop, selection.length
    begin = start.value if start.kind == "time" else window.start - movie.zero
    if length is not None and length.kind == "time":
        end = begin + length.value
    elif stop is not None and stop.kind == "time":
        end = stop.value
    else:
        end = movie.duration if selection.open_end else window.stop - movie.zero
    return Span(movie, begin, min(end, movie.duration))


async def format_of(place: Place, track: Track) -> Format:
    """What comes out of the decoder of a track; what its description leaves open, the decoder is asked.

    Raises Unsupported without a decoder and for a track whose description changes, Damaged.
    """
    if (track.samples.description != track.samples.description[0]).any():
        raise Unsupported(f"track {track.track_id}: the sound has several sample descriptions")
    stsd = (track.boxes or {}).get("stsd", b"")
    found = soundformat.read(track.codec, stsd, int(track.samples.description[0]))
    if found.known:
        return found
    return await place.derive(
        f"mp4.sound.{track.track_id}.1", partial(_measure, place, track, found), cost=lambda _: 500
    )


async def _measure(place: Place, track: Track, guess: Format) -> Format:
    rows = np.arange(min(_PROBE, len(track.samples)))
    offset, size = track.samples.offset[rows], track.samples.size[rows]
    splice.check_inside(place.object, offset, size)
    data = await place.fetch(Layout(splice.extents(place.object, offset, size)))
    return await in_worker(soundwork.measure, guess, tuple(size.tolist()), data)


async def line_of(place: Place, movie: Movie, track: Track) -> Line:
    """The track on the player line; of a complete movie worked out once."""
    format = await format_of(place, track)
    if not movie.complete:
        return soundline.line(movie, track, format)

    async def make() -> Line:
        if len(track.samples) > SMALL:
            return await in_thread(soundline.line, movie, track, format)
        return soundline.line(movie, track, format)

    return await place.derive(f"mp4.soundline.{track.track_id}.1", make)
