"""The view of storyboards: sheets of small pictures, and the WebVTT file that says when each is shown.

Key frames only are decoded, one in a slot of some seconds. How many sheets there are follows from the length
alone, so that they are listed without the whole index.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import numpy as np

from vfs import Bytes, Damaged, Layout, Node, NoMedia, Place, TooBig, gather, in_thread, in_worker
from vfs_mp4 import frames, pictures, runs, shape, sheets, source
from vfs_mp4.plan import Window
from vfs_mp4.selecting import is_video, window_of
from vfs_mp4.shape import Size
from vfs_mp4.visual import Job, read_entry

CUES = "storyboard.vtt"
#: Part of every version: changed when the same video would give other sheets.
CODE = "mp4.storyboard.1"
#: Longest side of a tile in pixels, tiles side by side, tiles of a sheet.
SIDE, COLUMNS, PER_SHEET = 160, 10, 100
#: Seconds of a slot at least, and slots at most: of 90 minutes one picture every 13.5 s, four sheets.
STEP, MAX_SLOTS = Fraction(2), 400
#: Key frames decoded at once: seconds of a worker at most, and how many.
_SECONDS, _BATCH = 10, 20
_AT_ONCE = 2
_SHEET = re.compile(r"storyboard(?:-([1-9]\d?))?\.jpg", re.ASCII)


class Storyboards:
    """One stored video at a glance."""

    name = "mp4.storyboard"

    def applies(self, place: Place) -> bool:
        """By the name of the file."""
        return is_video(place)

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """The sheets and the cues, where there are pictures."""
        if not await pictures.has_pictures(place):
            return {}
        movie = await source.movie_at(place, Fraction(0), Fraction(0))
        found: dict[str, Node | None] = {CUES: _cues_node(place)}
        for number in range(sheet_count(movie.duration)):
            found[sheet_name(number)] = _sheet_node(place, number)
        return found

    async def resolve(self, place: Place, name: str) -> Node | None:
        """One of the entries. Raises MediaError, StoreError."""
        match = _SHEET.fullmatch(name)
        if (match is None and name != CUES) or not await pictures.has_pictures(place):
            return None
        if match is None:
            return _cues_node(place)
        number = int(match[1] or 1) - 1
        if name != sheet_name(number) or (number and not await _has_sheet(place, number)):
            return None
        return _sheet_node(place, number)


async def _has_sheet(place: Place, number: int) -> bool:
    """Asked of the whole index: what is listed goes by a length that may be a guess."""
    return number < sheet_count((await source.open_movie(place)).duration)


def sheet_name(number: int) -> str:
    """The name of a sheet, counted from 0."""
    return f"storyboard-{number + 1}.jpg" if number else "storyboard.jpg"


def _cues_node(place: Place) -> Bytes:
    return _node(place, CUES, partial(_vtt, place))


def _sheet_node(place: Place, number: int) -> Bytes:
    return _node(place, sheet_name(number), partial(_sheet, place, number))


def _node(place: Place, name: str, produce: Callable[[], Awaitable[bytes]]) -> Bytes:
    return Bytes(
        produce=produce,
        version=f"{CODE}:{place.object.key}:{place.version}:{name}",
        keep=True,
        mtime_ns=place.mtime_ns,
        attributes={"source": place.path},
    )


# ---------------------------------------------------------------- which pictures


@dataclass(frozen=True, slots=True)
class Cue:
    """A tile and when it is shown, in seconds of path times. index: into `Window.shown`. From 0."""

    start: Fraction
    stop: Fraction
    index: int
    sheet: int
    tile: int


def _slots(duration: Fraction) -> tuple[Fraction, int]:
    """Seconds of a slot, and how many slots there are."""
    step = max(STEP, duration / MAX_SLOTS)
    return step, max(-int(-duration // step), 1)


def sheet_count(duration: Fraction) -> int:
    """Sheets of a video that lasts so many seconds."""
    return -(-_slots(duration)[1] // PER_SHEET)


def cues(window: Window) -> list[Cue]:
    """One for the first key frame of each slot that has one; they follow each other from 0 to the end.

    A sheet in whose time there is no key frame has the one before. Raises NoMedia without any.
    """
    duration, indices = window.movie.duration, pictures.keys(window)
    if not len(indices):
        raise NoMedia("there is no key frame")
    step, count = _slots(duration)
    # In whole numbers of any size: rounded, a key frame where a slot begins would be in the one before it.
    zero, width = window.movie.zero * window.track.timescale, step * window.track.timescale
    unit = math.lcm(zero.denominator, width.denominator)
    ticks = window.shown.time[indices].astype(object) * unit - int(zero * unit)
    slot = np.clip((ticks // int(width * unit)).astype(np.int64), 0, count - 1)
    taken, firsts = np.unique(slot, return_index=True)
    found: list[tuple[Fraction, int, int]] = []  # when, which frame, which sheet
    for number in range(sheet_count(duration)):
        inside = firsts[taken // PER_SHEET == number]
        for index in indices[inside].tolist():
            at = Fraction(int(window.shown.time[index]), window.track.timescale) - window.movie.zero
            found.append((at if found else Fraction(0), index, number))
        if not len(inside):
            last = found[-1][1] if found else int(indices[0])
            found.append((number * PER_SHEET * step, last, number))
    return _numbered(found, duration)


def _numbered(found: Sequence[tuple[Fraction, int, int]], duration: Fraction) -> list[Cue]:
    """Cues with their ends, and their tiles counted anew on each sheet."""
    ends = [*(start for start, _, _ in found[1:]), duration]
    made: list[Cue] = []
    for (start, index, sheet), end in zip(found, ends, strict=True):
        tile = made[-1].tile + 1 if made and made[-1].sheet == sheet else 0
        made.append(Cue(start, max(end, start), index, sheet, tile))
    return made


# ---------------------------------------------------------------- their files


async def _vtt(place: Place) -> bytes:
    window = await window_of(place, pictures.WHOLE)
    found = await in_thread(cues, window)
    return vtt(found, _tile_size(_job(window, found[0])[1])).encode()


def vtt(found: Sequence[Cue], size: Size) -> str:
    """WebVTT whose cues are media fragments of the sheets: `storyboard.jpg#xywh=160,0,160,90`."""
    parts = ["WEBVTT\n"]
    for cue in found:
        start, stop = round(cue.start * 1000), round(cue.stop * 1000)
        if start < stop:
            across, down = (cue.tile % COLUMNS) * size[0], (cue.tile // COLUMNS) * size[1]
            where = f"{sheet_name(cue.sheet)}#xywh={across},{down},{size[0]},{size[1]}"
            parts.append(f"\n{_clock(start)} --> {_clock(stop)}\n{where}\n")
    return "".join(parts)


def _clock(ms: int) -> str:
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"


def _tile_size(job: Job) -> Size:
    """Of every tile of a video, by its sample description."""
    return shape.fitted(shape.upright(read_entry(job), job.tkhd), SIDE)


async def _sheet(place: Place, number: int) -> bytes:
    window = await window_of(place, pictures.WHOLE)
    size, batches = await in_thread(_batches, window, number)
    found = await gather([partial(_tiles, place, batch, size) for batch in batches], _AT_ONCE)
    made = [tile for tiles in found for tile in tiles]
    if not any(made):
        raise Damaged(f"{place.path}: no key frame comes out of the decoder")
    return await in_worker(sheets.sheet, made, size, min(COLUMNS, len(made)))


_Coded = tuple[Layout, Job]


def _batches(window: Window, number: int) -> tuple[Size, list[list[_Coded]]]:
    """The size of a tile, and what is to be decoded for a sheet, in parts. Raises TooBig."""
    found = cues(window)
    size = _tile_size(_job(window, found[0])[1])
    coded = [_job(window, cue) for cue in found if cue.sheet == number]
    media = sum(layout.size for layout, _ in coded)
    if media > frames.MAX_MEDIA:
        raise TooBig(f"{media} bytes of key frames in a sheet, the limit is {frames.MAX_MEDIA}")
    entry = read_entry(coded[0][1])
    each = max(min(_SECONDS * runs.PACE // (entry.width * entry.height), _BATCH), 1)
    return size, [coded[at : at + each] for at in range(0, len(coded), each)]


def _job(window: Window, cue: Cue) -> _Coded:
    return runs.coded(replace(window, first=cue.index, last=cue.index))


async def _tiles(place: Place, batch: Sequence[_Coded], size: Size) -> list[bytes]:
    """Fetched in one go: what lies far apart is asked for at the same time."""
    data = await place.fetch(Layout(span for layout, _ in batch for span in layout.spans))
    return await in_worker(sheets.tiles, data, tuple(job for _, job in batch), size)
