"""The view of single pictures in folders: `keyframes/`, `frames/`, and `thumbnail.png`.

Folders list from the index alone; a picture is decoded when it is looked at by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import numpy as np

from vfs import (
    Bytes,
    Damaged,
    Directory,
    MediaError,
    Moment,
    Node,
    Place,
    Selection,
    TooBig,
    in_thread,
    in_worker,
)
from vfs_mp4 import frames, runs, sheets, source
from vfs_mp4.hardware import Hardware
from vfs_mp4.model import Ticks
from vfs_mp4.plan import Window
from vfs_mp4.selecting import is_video, window_of

KEYFRAMES, FRAMES, THUMBNAIL = "keyframes", "frames", "thumbnail.png"
#: Parts of every version: changed when the same name would come out as other bytes.
CODE, THUMBNAIL_CODE = "mp4.picture.1", "mp4.thumbnail.1"
#: Frames in one listed folder of `frames/`.
PAGE = 100
#: Most key frames listed: nine hours at one in half a second. More are looked at by page.
MAX_LISTED = 65_536
#: Most pixels of a thumbnail each way: "large" of freedesktop's Thumbnail Managing Standard.
SIDE = 256
#: How far into a video its thumbnail is taken: after titles and black, before it gives anything away.
PART = Fraction(1, 10)

WHOLE = Selection(Moment("frame", Fraction(0)), open_end=True)
_KEY = re.compile(r"k(\d{4,9})@\d+\.\d{3}s\.jpg", re.ASCII)
_PICTURE = re.compile(r"(\d{6,9})\.([a-z]+)", re.ASCII)
_PAGE = re.compile(r"(\d{6,9})-\d{6,9}", re.ASCII)


class Pictures:
    """The frames of one stored video, one by one."""

    name = "mp4.pictures"

    def __init__(self, hardware: Hardware | None = None) -> None:
        self._hardware = hardware or Hardware()

    def applies(self, place: Place) -> bool:
        """By the name of the file."""
        return is_video(place)

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """Two folders and the thumbnail, where there are pictures."""
        if not await has_pictures(place):
            return {}
        return {KEYFRAMES: self._keyframes(place), FRAMES: self._frames(place), THUMBNAIL: None}

    async def resolve(self, place: Place, name: str) -> Node | None:
        """One of the three. Raises MediaError, StoreError."""
        if name not in (KEYFRAMES, FRAMES, THUMBNAIL) or not await has_pictures(place):
            return None
        if name == THUMBNAIL:
            return await _thumbnail(place)
        return self._keyframes(place) if name == KEYFRAMES else self._frames(place)

    def _keyframes(self, place: Place) -> Directory:
        async def entries() -> Mapping[str, Node | None]:
            return await in_thread((await self._line(place)).key_nodes)

        async def lookup(name: str) -> Node | None:
            match = _KEY.fullmatch(name)
            return (await self._line(place)).key_node(int(match[1]), name) if match else None

        return Directory(entries=entries, lookup=lookup, mtime_ns=place.mtime_ns)

    def _frames(self, place: Place) -> Directory:
        async def entries() -> Mapping[str, Node | None]:
            count = len((await self._line(place)).window.shown)
            return {_page_name(first): self._page(place, first) for first in range(0, count, PAGE)}

        async def lookup(name: str) -> Node | None:
            if match := _PICTURE.fullmatch(name):
                return (await self._line(place)).frame_node(int(match[1]), name)
            first = int(match[1]) if (match := _PAGE.fullmatch(name)) else -1
            if first % PAGE or name != _page_name(first):
                return None
            inside = first < len((await self._line(place)).window.shown)
            return self._page(place, first) if inside else None

        return Directory(entries=entries, lookup=lookup, mtime_ns=place.mtime_ns)

    def _page(self, place: Place, first: int) -> Directory:
        async def entries() -> Mapping[str, Node | None]:
            line = await self._line(place)
            names = [f"{index:06d}.png" for index in range(first, min(first + PAGE, len(line.window.shown)))]
            return {name: line.frame_node(int(name[:-4]), name) for name in names}

        async def lookup(name: str) -> Node | None:
            match = _PICTURE.fullmatch(name)
            if match is None or not first <= int(match[1]) < first + PAGE:
                return None
            return (await self._line(place)).frame_node(int(match[1]), name)

        return Directory(entries=entries, lookup=lookup, mtime_ns=place.mtime_ns)

    async def _line(self, place: Place) -> _Line:
        return _Line(place, await window_of(place, WHOLE, exact_end=False), self._hardware)


def _page_name(first: int) -> str:
    return f"{first:06d}-{first + PAGE - 1:06d}"


async def has_pictures(place: Place) -> bool:
    """Whether there is a usable video track; False for what cannot be read (`info.json` tells why)."""
    try:
        return (await source.movie_at(place, Fraction(0), Fraction(0))).video is not None
    except MediaError:
        return False


def keys(window: Window) -> Ticks:
    """Indices into `Window.shown` of all shown key frames."""
    found: Ticks = np.flatnonzero(window.track.samples.sync[window.shown.order])
    return found


@dataclass(frozen=True, eq=False)
class _Line:
    """All frames of a video, as nodes that are worked out when they are looked at."""

    place: Place
    window: Window
    hardware: Hardware

    def key_nodes(self) -> dict[str, Node | None]:
        """One JPEG for each key frame. Raises TooBig."""
        indices = keys(self.window).tolist()
        if len(indices) > MAX_LISTED:
            raise TooBig(f"{len(indices)} key frames, the limit of a listing is {MAX_LISTED}: see {FRAMES}/")
        return {
            self._key_name(number, index): self._node(index, f"k{number}", "jpg")
            for number, index in enumerate(indices)
        }

    def key_node(self, number: int, name: str) -> Node | None:
        """Key frame `number`, if that is its name."""
        indices = keys(self.window)
        if number >= len(indices) or name != self._key_name(number, int(indices[number])):
            return None
        return self._node(int(indices[number]), f"k{number}", "jpg")

    def frame_node(self, number: int, name: str) -> Node | None:
        """Frame `number` in the format of the name, if that is how it is written."""
        stem, _, format = name.partition(".")
        if number >= len(self.window.shown) or stem != f"{number:06d}" or format not in frames.FORMATS:
            return None
        return self._node(number, f"f{number}", format)

    def _key_name(self, number: int, index: int) -> str:
        """The time is rounded up, so that as an instant it selects this very frame."""
        ms = -int(-self._seconds(index) * 1000 // 1)
        return f"k{number:04d}@{ms // 1000}.{ms % 1000:03d}s.jpg"

    def _seconds(self, index: int) -> Fraction:
        return (
            Fraction(int(self.window.shown.time[index]), self.window.track.timescale) - self.window.movie.zero
        )

    def _node(self, index: int, selection: str, format: str) -> Bytes:
        place, code = self.place, f"{CODE}:{'hardware:' * self.hardware.wanted}"
        return Bytes(
            produce=partial(self._produce, index, format),
            version=f"{code}{place.object.key}:{place.version}:{selection}:{format}",
            mtime_ns=place.mtime_ns,
            attributes={
                "source": place.path,
                "selection": selection,
                "start_time": f"{float(self._seconds(index)):.9f}",
            },
        )

    async def _produce(self, index: int, format: str) -> bytes:
        at = replace(self.window, first=index, last=index)
        try:
            node = frames.frame(self.place, at, format, {}, self.hardware)
        except ValueError as error:  # An extent outside its object: the tables lie.
            raise Damaged(f"{self.place.path}: {error}") from error
        return await node.produce()


async def _thumbnail(place: Place) -> Bytes:
    """The key frame on screen at a tenth of the video. Costs one key frame, and its part of the index."""
    movie = await source.movie_at(place, Fraction(0), Fraction(0))
    # In milliseconds: the length of a fragmented file is made more precise when its end is looked at.
    at = Fraction(int(movie.duration * PART * 1000), 1000)
    window = await window_of(place, Selection(Moment("time", at)))
    indices = keys(window)
    before = indices[indices <= window.first]
    index = int(before[-1] if len(before) else indices[0] if len(indices) else window.first)
    layout, job = runs.coded(replace(window, first=index, last=index))
    return Bytes(
        produce=partial(in_worker, sheets.thumbnail, job, SIDE, source=frames.source(place, layout)),
        version=f"{THUMBNAIL_CODE}:{layout.fingerprint()}:{job.wanted}",
        keep=True,
        mtime_ns=place.mtime_ns,
        reads=layout,
        attributes={"source": place.path},
    )
