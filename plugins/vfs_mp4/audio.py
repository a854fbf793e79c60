"""The view of sound: `audio.m4a` and `audio.wav` of a file, `A-B.m4a` and `A-B.wav` of a range."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from vfs import Damaged, Layout, MediaError, Node, OutOfRange, Place, Spliced, in_thread, parse_derived
from vfs_mp4 import clips, hearing, splice, timeline, wav, write
from vfs_mp4.hearing import Span
from vfs_mp4.model import Track
from vfs_mp4.selecting import SMALL, is_video

FORMATS = ("m4a", "wav")
#: `audio` is the first track, `audio-2` the second.
_WHOLE = re.compile(r"audio(?:-([1-9]\d{0,3}))?\.(m4a|wav)", re.ASCII)


class Sounds:
    """The sound of one stored video: as stored, and decoded."""

    name = "mp4.sound"

    def applies(self, place: Place) -> bool:
        """By the name of the file."""
        return is_video(place)

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """Two names for each sound track."""
        try:
            found = await hearing.tracks(place)
        except MediaError:
            # `info.json` tells what is wrong with the file.
            return {}
        return {_name(number, format): None for format in FORMATS for number in range(len(found))}

    async def resolve(self, place: Place, name: str) -> Node | None:
        """A name of `entries`, or a range as `m4a` or `wav`. Raises OutOfRange, MediaError, StoreError."""
        if (match := _WHOLE.fullmatch(name)) is not None:
            number = int(match[1] or 1) - 1
            if name != _name(number, match[2]) or number >= len(await hearing.tracks(place)):
                return None
            return await _node(place, await hearing.whole(place), number, match[2], {})
        derived = parse_derived(name)
        if derived is None or derived.mode or derived.format not in FORMATS or not derived.selection.is_range:
            return None
        span = await hearing.span_of(place, derived.selection)
        about = {"selection": derived.selection.canonical}
        return await _node(place, span, 0, derived.format, about)


def _name(number: int, format: str) -> str:
    return f"audio-{number + 1}.{format}" if number else f"audio.{format}"


async def _node(place: Place, span: Span, number: int, format: str, about: dict[str, str]) -> Spliced:
    track = hearing.the_sound(span.movie, number)
    about |= {"source": place.path, "codec": track.codec}
    about |= {"start_time": f"{float(span.start):.9f}", "end_time": f"{float(span.stop):.9f}"}
    try:
        if format == "wav":
            layout, heard = await wav.layout(place, span, number)
            about |= {"rate": str(heard.format.rate), "channels": str(heard.format.channels)}
        elif len(track.samples) > SMALL:
            layout = await in_thread(m4a, span, track)
        else:
            layout = m4a(span, track)
    except ValueError as error:  # An extent outside its object: the tables lie.
        raise Damaged(f"{place.path}: {error}") from error
    return Spliced(layout=layout, mtime_ns=place.mtime_ns, attributes=about)


def m4a(span: Span, track: Track) -> Layout:
    """The stored sound of a span as a file of its own, cut to the tick by its edit list, with its chapters.

    Raises OutOfRange where nothing sounds in the span, Unsupported.
    """
    shown = timeline.shown(span.movie, track)
    start, stop = (_tick(seconds + span.movie.zero, track) for seconds in (span.start, span.stop))
    pieces = splice.sounds(track, shown, start, stop)
    if not pieces:
        raise OutOfRange(f"there is no sound between {float(span.start):g} and {float(span.stop):g} s")
    parts = (clips.text(span.movie, one, start, stop) for one in clips.chapter_tracks(span.movie))
    found = [splice.arrange(track, pieces), *(part for part in parts if part is not None)]
    if found[1:]:
        # Also where in the source the pictures alone named them.
        named = write.reference(b"chap", [part.track.track_id for part in found[1:]])
        sound = replace(track, boxes={**(track.boxes or {}), "tref": write.box(b"tref", named)})
        found[0] = replace(found[0], track=sound)
    told = clips.chapters(span.movie, start, stop)
    return splice.progressive(span.movie, found, _file_type(track), told)


def _tick(seconds: Fraction, track: Track) -> Fraction:
    """The nearest tick of a track."""
    return Fraction(int(seconds * track.timescale + Fraction(1, 2)), track.timescale)


def _file_type(track: Track) -> bytes:
    if splice.quicktime_sound(track):
        return write.ftyp(b"qt  ", b"qt  ")
    return write.ftyp(b"M4A ", b"M4A ", b"mp42", b"isom", b"iso2")
