"""The view of text: `subtitles/1.eng.srt`, one file for each track and form, and `chapters.txt`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np

from vfs import Bytes, Damaged, Directory, Layout, MediaError, Node, Place, TooBig, Unsupported, in_worker
from vfs_mp4 import source, splice, textwork, timeline
from vfs_mp4.clips import TEXT, chapter_tracks, nero_chapters
from vfs_mp4.model import Movie, Track
from vfs_mp4.selecting import is_video

#: Part of every version: changed when the same text would come out as other bytes.
CODE = "mp4.text.1"
FOLDER, CHAPTERS = "subtitles", "chapters.txt"
FORMATS = ("srt", "vtt")
#: Most text of one track: a hundred hours of talk are some 5 MB.
MAX_TEXT = 64 << 20
_WHY = {
    "c608": "closed captions (CEA-608) are drawn by the player",
    "c708": "closed captions (CEA-708) are drawn by the player",
    "mp4s": "subtitles that are pictures",
    "sbtt": "subtitles in a form of their own",
}


class Texts:
    """Subtitles and chapters of one stored video."""

    name = "mp4.text"

    def applies(self, place: Place) -> bool:
        """By the name of the file."""
        return is_video(place)

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """The folder where there is a track, `chapters.txt` where there are chapters."""
        try:
            movie = await source.movie_at(place, Fraction(0), Fraction(0))
        except MediaError:
            # `info.json` tells what is wrong with the file.
            return {}
        found: dict[str, Node | None] = {}
        if text_tracks(movie):
            found[FOLDER] = _folder(place, movie)
        if chapter_track(movie) is not None or nero_chapters(movie.chapters):
            found[CHAPTERS] = None
        return found

    async def resolve(self, place: Place, name: str) -> Node | None:
        """One of the two names. Raises MediaError, StoreError."""
        if name == FOLDER:
            return (await self.entries(place)).get(name)
        if name != CHAPTERS or name not in await self.entries(place):
            return None
        return Bytes(
            produce=partial(_chapters, place),
            version=f"{CODE}:{place.object.key}:{place.version}:{name}",
            mtime_ns=place.mtime_ns,
            attributes={"source": place.path},
        )


def text_tracks(movie: Movie) -> list[Track]:
    """The tracks of text that are no chapters, in file order."""
    chapters = set().union(*(track.references.get("chap", ()) for track in movie.tracks))
    return [t for t in movie.tracks if t.handler in TEXT and t.track_id not in chapters]


def chapter_track(movie: Movie) -> Track | None:
    """The track of chapters, the first where there are several."""
    return next(iter(chapter_tracks(movie)), None)


# ---------------------------------------------------------------- subtitles


def _folder(place: Place, movie: Movie) -> Directory:
    names = {
        f"{number}.{track.language}.{format}": (number, format)
        for number, track in enumerate(text_tracks(movie), 1)
        for format in FORMATS
    }

    async def entries() -> Mapping[str, Node | None]:
        return dict.fromkeys(names)

    async def lookup(name: str) -> Node | None:
        return await _subtitles(place, *names[name]) if name in names else None

    return Directory(entries=entries, lookup=lookup, mtime_ns=place.mtime_ns)


async def _subtitles(place: Place, number: int, format: str) -> Bytes:
    """One track in one form. Raises Unsupported for what is no text, Damaged, TooBig."""
    movie = await source.open_movie(place)
    track = text_tracks(movie)[number - 1]
    if track.encrypted:
        raise Unsupported(f"track {track.track_id} ({track.codec}) is encrypted")
    if track.codec not in textwork.KINDS:
        why = _WHY.get(track.codec, f"subtitles of type {track.codec!r} are not read")
        raise Unsupported(f"track {track.track_id}: {why}")
    line = _line(movie, track)
    job = textwork.Job(track.codec, line.sizes, line.starts, line.ends, line.shifts)
    return Bytes(
        produce=partial(_produce, place, line.layout, job, format),
        version=f"{CODE}:{place.object.key}:{place.version}:{track.track_id}:{format}",
        mtime_ns=place.mtime_ns,
        reads=line.layout,
        attributes={"source": place.path, "codec": track.codec, "language": track.language},
    )


async def _produce(place: Place, layout: Layout, job: textwork.Job, format: str) -> bytes:
    return await in_worker(textwork.subtitles, job, await place.fetch(layout), format)


@dataclass(frozen=True)
class _Line:
    """The samples of a text track in display order; times in milliseconds of path times."""

    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    shifts: tuple[int, ...]
    layout: Layout


def _line(movie: Movie, track: Track) -> _Line:
    shown, samples = timeline.shown(movie, track), track.samples
    offset, size = samples.offset[shown.order], samples.size[shown.order]
    splice.check_inside(movie.object, offset, size)
    if int(size.sum()) > MAX_TEXT:
        raise TooBig(f"{int(size.sum())} bytes of text, the limit is {MAX_TEXT}")

    def path_times(ticks: Sequence[int], zero: Fraction) -> tuple[int, ...]:
        return tuple(round((Fraction(t, track.timescale) - zero) * 1000) for t in ticks)

    starts, ends = (path_times(c.tolist(), movie.zero) for c in (shown.time, shown.end))
    shift = path_times((shown.time - samples.pts[shown.order]).tolist(), movie.zero)
    try:
        layout = Layout(splice.extents(movie.object, offset, size))
    except ValueError as error:
        raise Damaged(f"track {track.track_id}: {error}") from error
    first = tuple(np.maximum(starts, 0).tolist())
    return _Line(tuple(size.tolist()), first, ends, shift, layout)


# ---------------------------------------------------------------- chapters


async def _chapters(place: Place) -> bytes:
    """Chapters as FFmpeg's metadata file, times in milliseconds of path times."""
    movie = await source.open_movie(place)
    track = chapter_track(movie)
    if track is not None and track.usable and len(track.samples):
        line = _line(movie, track)
        names = await in_worker(textwork.titles, line.sizes, await place.fetch(line.layout))
        found = list(zip(line.starts, names, strict=True))
    else:
        zero = round(movie.zero * 1000)
        found = [
            (max(time // 10_000 - zero, 0), title.decode("utf-8", "replace"))
            for time, title in nero_chapters(movie.chapters)
        ]
    return metadata(found, round(movie.duration * 1000)).encode()


def metadata(found: Sequence[tuple[int, str]], duration: int) -> str:
    """`;FFMETADATA1` and a section for each chapter, which ends where the next begins."""
    parts = [";FFMETADATA1\n"]
    starts = [start for start, _ in found]
    for (start, title), end in zip(found, [*starts[1:], max(duration, *starts, 0)], strict=True):
        escaped = re.sub(r"([=;#\\\n])", r"\\\1", title)
        parts.append(f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={start}\nEND={max(end, start)}\ntitle={escaped}\n")
    return "".join(parts)
