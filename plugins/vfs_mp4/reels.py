"""The view of reels: `NAME@.mp4` of a stored `NAME.reel`; `reel.mp4` and `reel.json` in `NAME.reel@/`.

`key` before `.mp4` has each clip begin at its key frame, for players that show what edit lists hide.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import xxhash

from vfs import (
    Bytes,
    Damaged,
    Layout,
    MediaError,
    Node,
    NotFound,
    Place,
    ReelfsError,
    Spliced,
    TooBig,
    Unsupported,
    gather,
    in_thread,
)
from vfs_mp4 import joined, openings, reel, splice
from vfs_mp4.joined import Clip
from vfs_mp4.plan import Window
from vfs_mp4.reel import Line, Wrong
from vfs_mp4.selecting import SUFFIXES, is_video, window_of

VIDEO, KEY, LIST = "reel.mp4", "reel.key.mp4", "reel.json"
#: Part of every version: changed when the same reel would come out as other bytes.
CODE = "mp4.reel.1"


@dataclass(frozen=True, eq=False)
class _Entry:
    """A line with the window it selects, or what is wrong with it. stored: path of its source."""

    line: Line | Wrong
    stored: Place | None = None
    window: Window | None = None
    error: ReelfsError | None = None

    @property
    def label(self) -> str:
        """What to call it in an error."""
        return f"line {self.line.number} ({self.line.text})"


class Reels:
    """Clips of several videos joined as a text list says."""

    name = "mp4.reel"

    def applies(self, place: Place) -> bool:
        """By the name of the file."""
        return not place.is_folder and place.name.lower().endswith(reel.SUFFIX)

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """The video and what it is made of."""
        return {VIDEO: None, KEY: None, LIST: None}

    async def resolve(self, place: Place, name: str) -> Node | None:
        """`reel.mp4`, `reel.key.mp4` (`.mp4`, `.key.mp4` behind `NAME@`) or `reel.json`.

        Raises Damaged and Unsupported that name the line, TooBig, StoreError.
        """
        if name not in (".mp4", ".key.mp4", VIDEO, KEY, LIST):
            return None
        entries = await _opened(place)
        if name == LIST:
            return _described(place, entries)
        for entry in entries:
            if entry.error is not None:
                raise _about(entry.label, entry.error)
        return await _video(place, entries, from_key=name.endswith("key.mp4"))


async def _opened(place: Place) -> list[_Entry]:
    """All lines with what they select. Raises TooBig, Damaged, StoreError (of any source)."""
    if place.size > reel.MAX_BYTES:
        raise TooBig(f"a reel of {place.size} bytes: the limit is {reel.MAX_BYTES}")
    data = await place.read(0, place.size)
    lines = reel.parse(data, place.path.rpartition("/")[0])
    return await gather([partial(_entry, place, line) for line in lines])


async def _entry(place: Place, line: Line | Wrong) -> _Entry:
    if isinstance(line, Wrong):
        return _Entry(line, error=Damaged(line.reason))
    stored = None
    try:
        stored = await _source(place, line.path)
        return _Entry(line, stored, await window_of(stored, line.selection))
    except (NotFound, MediaError, TooBig) as error:
        return _Entry(line, stored, error=error)


async def _source(place: Place, path: str) -> Place:
    """The stored video at a path, named with or without its extension. Raises NotFound, Unsupported."""
    for suffix in ("", *SUFFIXES):
        found = await place.find(path + suffix)
        if found is not None and is_video(found):
            return found
        if found is not None and not found.is_folder:
            raise Unsupported(f"{path} is no MP4 or QuickTime file")
    raise NotFound(f"there is no video {path}")


def _about(label: str, error: ReelfsError) -> ReelfsError:
    """The same trouble, with its line; what a line names and is not there is the reel's mistake."""
    kind = Damaged if isinstance(error, NotFound) else type(error)
    return kind(f"{label}: {error}")


async def _video(place: Place, entries: Sequence[_Entry], *, from_key: bool) -> Spliced:
    clips = await gather([partial(_clip, entry, follows=entry is not entries[0]) for entry in entries])
    if from_key:
        clips = [replace(clip, window=splice.back_to_key(clip.window)) for clip in clips]
    objects = [clip.window.movie.object for clip in clips]
    told = "\0".join(f"{o.key}\0{o.version}" for o in objects)
    versions = xxhash.xxh3_128_hexdigest(told.encode("utf-8", "surrogateescape"))

    async def make() -> Layout:
        try:
            return await in_thread(joined.join, clips)
        except ValueError as error:  # An extent outside its object: the tables lie.
            raise Damaged(f"{place.path}: {error}") from error

    layout = await place.derive(f"{CODE}:{from_key}:{versions}", make, cost=_cost)
    about = {
        "source": place.path,
        "clips": str(len(clips)),
        "codec": clips[0].window.track.codec,
        "duration": f"{float(sum(clip.length for clip in clips)):.9f}",
        "frames": str(sum(len(clip.window.rows) for clip in clips)),
    }
    newest = max(place.mtime_ns, *(stored.mtime_ns for stored in objects))
    return Spliced(layout=layout, mtime_ns=newest, attributes=about)


async def _clip(entry: _Entry, *, follows: bool) -> Clip:
    """follows: another clip comes before it."""
    assert entry.stored is not None
    assert entry.window is not None
    try:
        patches = await openings.patches(entry.stored, entry.window) if follows else ()
    except MediaError as error:
        raise _about(entry.label, error) from error
    return Clip(entry.label, entry.window, patches)


def _cost(layout: Layout) -> int:
    """Bytes in memory: what is written, and the spans."""
    return 200 * len(layout.spans) + layout.size - sum(extent.length for extent in layout.extents)


def _described(place: Place, entries: Sequence[_Entry]) -> Bytes:
    """What a reel is made of, line by line, with the reason where a line fails."""
    good = [Clip(entry.label, entry.window) for entry in entries if entry.window is not None]
    begin = dict(zip((id(clip.window) for clip in good), joined.begins(good), strict=True))
    whole = len(good) == len(entries)
    clips = [_row(entry, float(begin[id(entry.window)]) if whole else None) for entry in entries]
    found: dict[str, Any] = {"clips": clips, "usable": whole}
    if whole:
        found["duration"] = round(float(sum(clip.length for clip in good)), 9)
    data = json.dumps(found, indent=1).encode() + b"\n"

    async def produce() -> bytes:
        return data

    version = f"{CODE}:{place.object.key}:{place.version}:{xxhash.xxh3_128_hexdigest(data)}"
    return Bytes(produce=produce, version=version, size=len(data), mtime_ns=place.mtime_ns)


def _row(entry: _Entry, begin: float | None) -> dict[str, Any]:
    """One line of `reel.json`; times in seconds: `begin` in the reel, the others in the source."""
    row: dict[str, Any] = {"line": entry.line.number, "text": entry.line.text}
    if isinstance(entry.line, Line):
        row |= {"selection": entry.line.selection.canonical}
        row |= {"path": entry.stored.path if entry.stored else entry.line.path}
    if entry.stored is not None:
        row["version"] = entry.stored.version
    if entry.window is not None:
        window, zero = entry.window, entry.window.movie.zero
        row |= {
            "begin": None if begin is None else round(begin, 9),
            "start_time": round(float(window.start - zero), 9),
            "end_time": round(float(window.stop - zero), 9),
            "frames": len(window.rows),
            "codec": window.track.codec,
        }
    return row | ({"error": str(entry.error)} if entry.error is not None else {})
