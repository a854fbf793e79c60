"""Whole files in another form: `faststart.mp4`, `fragmented.mp4`, `hls/`, `dash/`. Nothing is copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial

from vfs import (
    Damaged,
    Directory,
    Inline,
    Layout,
    MediaError,
    Node,
    NoMedia,
    Place,
    Spliced,
    Unsupported,
    in_thread,
)
from vfs_mp4 import faststart, playlists, source, streams
from vfs_mp4.codecs import PLAYABLE
from vfs_mp4.faststart import Top
from vfs_mp4.model import Movie, Track
from vfs_mp4.probe import MAX_MOOV, Reader, head_size
from vfs_mp4.selecting import is_video
from vfs_mp4.streams import Stream

FASTSTART, FRAGMENTED, HLS, DASH = "faststart.mp4", "fragmented.mp4", "hls", "dash"
#: Boxes at the top of one file that are looked at for its moov.
_MAX_TOPS = 64


class Whole:
    """The forms of one stored video."""

    name = "whole"

    def applies(self, place: Place) -> bool:
        """By the name of the file."""
        return is_video(place)

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """All of them; what cannot be made says why when it is opened. Reads nothing."""
        unread: list[Node] = [_folder(place, HLS), _folder(place, DASH)]
        return {FASTSTART: None, FRAGMENTED: None, HLS: unread[0], DASH: unread[1]}

    async def resolve(self, place: Place, name: str) -> Node | None:
        """One of them. Raises NoMedia, Unsupported, Damaged, StoreError."""
        try:
            if name == FASTSTART:
                return Spliced(layout=await _faststart(place), mtime_ns=place.mtime_ns)
            if name == FRAGMENTED:
                return Spliced(layout=await _fragmented(place), mtime_ns=place.mtime_ns)
        except ValueError as error:  # An extent outside its object: the tables lie.
            raise Damaged(f"{place.path}: {error}") from error
        return _folder(place, name) if name in (HLS, DASH) else None


async def _faststart(place: Place) -> Layout:
    reader = Reader(place)
    tops = await _tops(reader)
    moov = next((top for top in tops if top.kind == b"moov"), None)
    if moov is None:
        raise NoMedia("no moov box")
    if moov.size > MAX_MOOV:
        raise Damaged(f"a moov of {moov.size} bytes is over the limit of {MAX_MOOV}")
    data = await reader.peek(moov.offset, moov.size)
    return await in_thread(faststart.faststart, place.object, tops, data)


async def _tops(reader: Reader) -> list[Top]:
    """The boxes at the top, up to the moov and the media."""
    found: list[Top] = []
    at, size = 0, reader.place.size
    while at < size and len(found) < _MAX_TOPS:
        box = await reader.header(at, head_size(size) if not at else 0)
        if box is None:
            break
        length = box.size or size - at
        if at + length > size:
            raise Damaged(f"{box.kind!r} claims {length} bytes, {size - at} are there")
        found.append(Top(box.kind, at, length))
        kinds = {top.kind for top in found}
        if {b"moov", b"mdat"} <= kinds or b"moof" in kinds:
            break
        at += length
    return found


async def _fragmented(place: Place) -> Layout:
    movie = await source.open_movie(place)
    if movie.init is not None and movie.fragments:
        return Layout.whole(place.object)
    tracks = streams.streamable(movie)

    def make() -> Stream:
        return streams.streamed(movie, tracks, streams.delay_of(movie, tracks), edited=True)

    return (await place.derive("mp4.fragmented.1", partial(in_thread, make))).layout


async def _stream(place: Place, movie: Movie, track: Track, delay: Fraction) -> Stream:
    def make() -> Stream:
        return streams.streamed(movie, [track], delay)

    return await place.derive(f"mp4.stream.1.{track.track_id}.{delay}", partial(in_thread, make))


async def _named(place: Place) -> tuple[Movie, list[tuple[str, Stream]]]:
    """The streams of the manifests: `video`, `audio`, `audio-2`, ...; unplayable sound is left out.

    Raises Unsupported where the leading track cannot be streamed.
    """
    movie = await source.open_movie(place)
    first, *others = streams.streamable(movie)
    if first.codec not in PLAYABLE:
        raise Unsupported(f"track {first.track_id}: {first.codec} is no codec of browsers")
    tracks = [first, *(track for track in others if _is_playable(place, movie, track))]
    delay = await in_thread(streams.delay_of, movie, tracks)
    found: list[tuple[str, Stream]] = []
    for track in tracks:
        stem = "video" if track.handler == "vide" else "audio"
        number = sum(1 for name, _ in found if name.startswith(stem)) + 1
        name = stem if number == 1 else f"{stem}-{number}"
        found.append((name, await _stream(place, movie, track, delay)))
    return movie, found


def _is_playable(place: Place, movie: Movie, track: Track) -> bool:
    if track.codec not in PLAYABLE:
        return False
    try:
        streams.lane(movie, track)
    except MediaError as error:
        place.report(f"left out of hls and dash: {error}")
        return False
    return True


def _folder(place: Place, name: str) -> Directory:
    """`hls/` or `dash/`; its names are told when it is listed."""

    async def entries() -> Mapping[str, Node | None]:
        try:
            movie, named = await _named(place)
        except ValueError as error:
            raise Damaged(f"{place.path}: {error}") from error
        texts = await in_thread(partial(_texts, name, movie, named))
        files: dict[str, Node | None] = {
            text: Spliced(layout=Layout((Inline(body),)), mtime_ns=place.mtime_ns)
            for text, body in texts.items()
        }
        for stem, stream in named:
            files[f"{stem}.mp4"] = Spliced(layout=stream.layout, mtime_ns=place.mtime_ns)
        return files

    return Directory(entries=entries, mtime_ns=place.mtime_ns)


def _texts(folder: str, movie: Movie, named: Sequence[tuple[str, Stream]]) -> dict[str, bytes]:
    if folder == DASH:
        return {"manifest.mpd": playlists.manifest(movie, named)}
    playlist = {f"{stem}.m3u8": playlists.media(stream, f"{stem}.mp4") for stem, stream in named}
    return {"master.m3u8": playlists.master(movie, named), **playlist}
