"""The view of files that are no MP4: Matroska, WebM and MPEG transport streams.

Their packets are found by FFmpeg in a worker, which reads them by ranges. Frames and `info.json` are made
there; a clip of a Matroska file is spliced from where its packets lie, as one of an MP4 is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np

from vfs import (
    Bytes,
    Damaged,
    Derived,
    Layout,
    Moment,
    Node,
    OutOfRange,
    Place,
    Selection,
    Source,
    Spliced,
    Unsupported,
    in_thread,
    in_worker,
    parse_derived,
)
from vfs_mp4 import boxes, clips, demuxwork, frames, index, plan, segments, splice
from vfs_mp4.boxes import Notes
from vfs_mp4.demuxio import BUFFER, DEMUXERS
from vfs_mp4.demuxwork import Located, Rows
from vfs_mp4.model import Movie, Samples, Ticks, Track
from vfs_mp4.plan import Window
from vfs_mp4.selecting import attributes

INFO = "info.json"
#: Part of every version: changed when the same file would come out as other bytes.
CODE = "mp4.demuxed.1"
#: Ticks a second of the movie; tracks have their own.
_TIMESCALE = 1000
#: Seconds by which a time of Matroska may be off: its clock's tick, and half of one at each end.
_ROUNDING = Fraction(2, 1000)


class Demuxed:
    """Everything derived from one stored file that FFmpeg must take apart."""

    name = "mp4.demuxed"

    def applies(self, place: Place) -> bool:
        """By the name of the file."""
        return _demuxer(place) is not None

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """What can be listed; selections resolve by name only."""
        return {INFO: None}

    async def resolve(self, place: Place, name: str) -> Node | None:
        """`info.json`, a frame, or a clip as `mp4`. Raises OutOfRange, MediaError, TooBig, StoreError."""
        if name == INFO:
            return _made(place, name, partial(_info, place))
        derived = parse_derived(name)
        if derived is None:
            return None
        selection = derived.selection
        if derived.format in frames.FORMATS and not selection.is_range and not derived.mode:
            produce = partial(_picture, place, selection.start, derived.format)
            about = {"source": place.path, "selection": selection.canonical}
            return _made(place, derived.canonical, produce, about)
        if derived.format != "mp4" or derived.mode not in (
            ("", "key", "frag") if selection.is_range else ("",)
        ):
            return None
        return await _clip(place, derived)


def _demuxer(place: Place) -> str | None:
    if place.is_folder:
        return None
    return DEMUXERS.get("." + place.name.rpartition(".")[2].lower())


def _made(
    place: Place,
    name: str,
    produce: Callable[[], Awaitable[bytes]],
    about: Mapping[str, str] | None = None,
) -> Bytes:
    return Bytes(
        produce=produce,
        version=f"{CODE}:{place.object.key}:{place.version}:{name}",
        mtime_ns=place.mtime_ns,
        attributes=about or {},
    )


def _source(place: Place) -> Source:
    whole = Layout.whole(place.object)
    return Source(partial(place.stream, whole), place.size, ahead=min(BUFFER, place.size))


def _crossing(moment: Moment) -> demuxwork.Moment:
    return moment.kind, moment.value


async def _info(place: Place) -> bytes:
    return await in_worker(demuxwork.describe, _name(place), place.size, source=_source(place))


async def _picture(place: Place, moment: Moment, format: str) -> bytes:
    return await in_worker(demuxwork.picture, _name(place), _crossing(moment), format, source=_source(place))


def _name(place: Place) -> str:
    found = _demuxer(place)
    assert found is not None
    return found


# ---------------------------------------------------------------- clips


async def _clip(place: Place, derived: Derived) -> Spliced:
    """A clip of a file whose packets lie whole in it."""
    if _name(place) == "mpegts":
        raise Unsupported(f"{place.path}: a transport stream cuts its frames into packets; frames can be had")
    selection = derived.selection
    located = await place.derive(
        f"{CODE}:{selection.canonical}", partial(_located, place, selection), cost=_cost
    )
    window = await in_thread(_window, place, located)
    about = attributes(place, selection, window)
    try:
        layout, shown = await in_thread(_spliced, window, derived)
    except ValueError as error:  # An extent outside its object.
        raise Damaged(f"{place.path}: {error}") from error
    about["start_frame_index"] = str(shown)
    return Spliced(layout=layout, mtime_ns=place.mtime_ns, attributes=about)


async def _located(place: Place, selection: Selection) -> Located:
    start, stop, length = selection.start, selection.stop, selection.length
    if length is not None and length.kind != "time":
        raise Unsupported(f"{selection.canonical}: frames counted from a time need the whole file read")
    if not selection.is_range:
        # The picture itself: the next one ends it.
        length = Moment("time", Fraction(1, 1000))
    return await in_worker(
        demuxwork.locate,
        _name(place),
        _crossing(start),
        None if stop is None else _crossing(stop),
        None if length is None else length.value,
        source=_source(place),
    )


def _cost(located: Located) -> int:
    return sum(200 * len(rows.pts) for rows in located.streams) + len(located.template)


def _window(place: Place, located: Located) -> Window:
    """The wanted frames, on tables made of what was located. Raises OutOfRange, Damaged, Unsupported."""
    movie = _movie(place, located)
    start, stop = Moment("time", located.start), located.stop
    if stop is None:
        return plan.locate(movie, Selection(start, open_end=True))
    if stop <= located.start:
        raise OutOfRange("the range ends before it begins")
    return plan.locate(movie, Selection(start, stop=Moment("time", stop)))


def _spliced(window: Window, derived: Derived) -> tuple[Layout, int]:
    """The file, and which decoded frame is the first wanted one."""
    if derived.mode == "frag" or not derived.selection.is_range:
        made = segments.made(window, sound=derived.selection.is_range)
        return made.layout, made.index
    if derived.mode == "key":
        return clips.from_key(window), window.first - splice.back_to_key(window).first
    return clips.exact(window), 0


def _movie(place: Place, located: Located) -> Movie:
    """Tables of the packets, with the descriptions of the template's tracks."""
    notes = Notes()
    top = boxes.first(list(boxes.children(located.template, 0, len(located.template), notes)), b"moov")
    if top is None:
        raise Damaged(f"{place.path}: FFmpeg describes no track")
    described = index.parse_moov(boxes.whole(located.template, top), len(located.template)).tracks
    if len(described) != len(located.streams):
        raise Damaged(f"{place.path}: FFmpeg describes {len(described)} of {len(located.streams)} tracks")
    tracks = tuple(_track(track, rows) for track, rows in zip(described, located.streams, strict=True))
    return Movie(
        object=place.object,
        timescale=_TIMESCALE,
        tracks=tracks,
        zero=located.zero,
        duration=_end(tracks) - located.zero,
        complete=located.ended,
        index_source="packets",
    )


def _end(tracks: tuple[Track, ...]) -> Fraction:
    return max(Fraction(int((t.samples.pts + t.samples.dur).max()), t.timescale) for t in tracks)


def _track(described: Track, rows: Rows) -> Track:
    """A track with the packets of a stream; its decode times are made, since Matroska has none."""
    offset, size, pts, duration, key = demuxwork.columns(rows)
    if rows.time_base.numerator != 1:
        raise Unsupported(f"a clock of {rows.time_base} seconds")
    timescale = rows.time_base.denominator
    if rows.rate:
        timescale, pts, duration = rows.rate, *_by_samples(rows, pts, duration)
    dts = _decode_times(pts)
    if not duration.all():
        typical = int(np.median(np.diff(np.sort(pts)))) if len(pts) > 1 else 1
        duration = np.where(duration > 0, duration, max(typical, 1))
    samples = Samples(
        dts=dts,
        dur=duration,
        pts=pts,
        size=size,
        offset=offset,
        sync=key,
        description=np.ones(len(pts), np.int32),
        first=None,
    )
    return replace(described, timescale=timescale, samples=samples, edits=())


def _by_samples(rows: Rows, pts: Ticks, duration: Ticks) -> tuple[Ticks, Ticks]:
    """Times of sound in samples: FFmpeg trims by these alone, and Matroska's are rounded to milliseconds.

    A packet begins where the one before ends, unless its own time says otherwise by more than the rounding.
    """
    scale = rows.rate * rows.time_base
    raw = [round(int(at) * scale) for at in pts]
    lengths = [rows.frame or round(int(ticks) * scale) for ticks in duration]
    near, at = rows.rate * _ROUNDING, raw[0]
    found = []
    for told, length in zip(raw, lengths, strict=True):
        at = at if abs(told - at) <= near else told
        found.append(at)
        at += length
    return np.array(found, np.int64), np.array(lengths, np.int64)


def _decode_times(pts: Ticks) -> Ticks:
    """Times that rise in decode order and are never after those of presentation."""
    line = np.sort(pts)
    found: Ticks = line - max(int((line - pts).max()), 0)
    return found
