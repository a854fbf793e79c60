"""The view of whole files in another form, not copied: `faststart.mp4`, `fragmented.mp4`, `hls/`, `dash/`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from vfs import (
    Damaged,
    Directory,
    Inline,
    Layout,
    MediaError,
    Node,
    Place,
    Spliced,
    in_thread,
)
from vfs_mp4 import codecs, faststart, playlists, segments, source, streams
from vfs_mp4.model import Movie, Track
from vfs_mp4.playlists import PLAYLIST, STREAM, Rendition
from vfs_mp4.selecting import is_video
from vfs_mp4.streams import Stream

FASTSTART, FRAGMENTED = "faststart.mp4", "fragmented.mp4"
#: Folders of streams, and what is in them beside the streams.
FOLDERS: Mapping[str, tuple[str, Callable[[Sequence[Rendition]], bytes]]] = {
    "hls": ("master.m3u8", playlists.master),
    "dash": ("manifest.mpd", playlists.manifest),
}


class Whole:
    """The forms of one stored video."""

    name = "mp4.whole"

    def applies(self, place: Place) -> bool:
        """By the name of the file."""
        return is_video(place)

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """Those that the file has; folders where its leading track is of a codec of browsers."""
        try:
            movie = await source.movie_at(place, Fraction(0), Fraction(0))
        except MediaError:
            # `info.json` tells what is wrong with the file.
            return {}
        found: dict[str, Node | None] = {FASTSTART: None}
        try:
            lead = streams.whole(movie)[0]
        except MediaError:  # Encrypted: it can be moved, but not taken apart.
            return found
        found[FRAGMENTED] = None
        if lead.codec in codecs.PLAYABLE:
            found |= {name: _Folder(place, name).node() for name in FOLDERS}
        return found

    async def resolve(self, place: Place, name: str) -> Node | None:
        """One of them. Raises NoMedia, Unsupported, Damaged, StoreError."""
        if name == FASTSTART:
            return await _spliced(place, partial(faststart.layout_of, place))
        if name == FRAGMENTED:
            return await _spliced(place, partial(_fragmented, place))
        return _Folder(place, name).node() if name in FOLDERS else None


async def _spliced(place: Place, make: Callable[[], Awaitable[Layout]]) -> Spliced:
    try:
        layout = await make()
    except ValueError as error:  # An extent outside its object: the tables lie.
        raise Damaged(f"{place.path}: {error}") from error
    return Spliced(layout=layout, mtime_ns=place.mtime_ns, attributes={"source": place.path})


# ---------------------------------------------------------------- fragments


async def _fragmented(place: Place) -> Layout:
    movie = await source.open_movie(place)
    if movie.init is None or not movie.fragments:
        return (await _stream(place, movie, streams.whole(movie))).layout
    first = movie.fragments[0]
    if not segments.relocatable(await place.read(first.offset, first.moof_size)):
        return Layout.whole(place.object)
    make = partial(in_thread, streams.indexed, movie)
    return await place.derive("mp4.indexed.1", make, cost=lambda layout: 250 * len(layout.spans))


async def _stream(place: Place, movie: Movie, tracks: Sequence[Track]) -> Stream:
    name = ".".join(str(track.track_id) for track in tracks)
    make = partial(in_thread, streams.streamed, movie, tracks)
    return await place.derive(f"{streams.CODE}.{name}", make, cost=lambda stream: stream.nbytes)


# ---------------------------------------------------------------- folders


@dataclass(frozen=True)
class _Folder:
    """`hls/` or `dash/`: a master file, and a folder for each track. Streams are made when looked at."""

    place: Place
    name: str

    def node(self) -> Directory:
        """The folder."""
        return Directory(entries=self._entries, lookup=self._lookup, mtime_ns=self.place.mtime_ns)

    async def _entries(self) -> Mapping[str, Node | None]:
        movie = await source.open_movie(self.place)
        tracks = {name: self._track(movie, track) for name, track in named(movie).items()}
        return {FOLDERS[self.name][0]: None, **tracks}

    async def _lookup(self, name: str) -> Node | None:
        master, write = FOLDERS[self.name]
        if name != master:
            return (await self._entries()).get(name)
        return await _spliced(self.place, partial(self._master, write))

    async def _master(self, write: Callable[[Sequence[Rendition]], bytes]) -> Layout:
        movie = await source.open_movie(self.place)
        pairs = listed(movie).items()
        made = [Rendition(name, movie, await _stream(self.place, movie, [track])) for name, track in pairs]
        return Layout([Inline(await in_thread(write, made))])

    def _track(self, movie: Movie, track: Track) -> Directory:
        async def lookup(name: str) -> Node | None:
            if name not in entries:
                return None
            make = self._stream if name == STREAM else self._playlist
            return await _spliced(self.place, partial(make, movie, track))

        async def listing() -> Mapping[str, Node | None]:
            return entries

        entries: dict[str, Node | None] = {STREAM: None}
        if self.name == "hls":
            entries[PLAYLIST] = None
        return Directory(entries=listing, lookup=lookup, mtime_ns=self.place.mtime_ns)

    async def _stream(self, movie: Movie, track: Track) -> Layout:
        return (await _stream(self.place, movie, [track])).layout

    async def _playlist(self, movie: Movie, track: Track) -> Layout:
        stream = await _stream(self.place, movie, [track])
        return Layout([Inline(await in_thread(playlists.media, stream))])


def named(movie: Movie) -> dict[str, Track]:
    """The tracks that browsers may play: `video`, `audio`, `audio-2`, ...; the leading one first."""
    found: dict[str, Track] = {}
    for track in streams.of_pictures_and_sound(movie):
        if track.codec in codecs.PLAYABLE:
            stem = "video" if track.handler == "vide" else "audio"
            number = 1 + sum(name.partition("-")[0] == stem for name in found)
            found[stem if number == 1 else f"{stem}-{number}"] = track
    return found


def listed(movie: Movie) -> dict[str, Track]:
    """Those that master files tell of: further pictures are not the same at another rate.

    Raises Unsupported where there is none.
    """
    found = {name: track for name, track in named(movie).items() if not name.startswith("video-")}
    lead = streams.whole(movie)[0]
    if lead not in found.values():
        codecs.codec_string(lead)
    return found
