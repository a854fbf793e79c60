"""The view of a file's sidecars, made: `index.sqlite`, `index.json` and `offsets.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial

from vfs import Bytes, MediaError, Node, Place, in_thread
from vfs_mp4 import generate, source
from vfs_mp4.model import Movie
from vfs_mp4.selecting import is_video

#: What each name is made by; the first two list fragments.
MADE: Mapping[str, Callable[[Movie], bytes]] = {
    "index.sqlite": generate.index_sqlite,
    "index.json": generate.index_json,
    "offsets.json": generate.offsets_json,
}


class Indexes:
    """The sidecars of one stored video, as if somebody had stored them."""

    name = "mp4.indexes"

    def applies(self, place: Place) -> bool:
        """By the name of the file."""
        return is_video(place)

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """Those the file can have: a progressive one has no fragments to list, sound has no pictures."""
        try:
            movie = await source.movie_at(place, Fraction(0), Fraction(0))
        except MediaError:
            # `info.json` tells what is wrong with the file.
            return {}
        fragments = ("index.sqlite", "index.json") if movie.init is not None else ()
        pictures = ("offsets.json",) if movie.video is not None else ()
        return dict.fromkeys((*fragments, *pictures))

    async def resolve(self, place: Place, name: str) -> Node | None:
        """One of the names. Reading it raises Unsupported where the file has nothing to list, MediaError."""
        if name not in MADE or name not in await self.entries(place):
            return None
        return Bytes(
            produce=partial(_produce, place, MADE[name]),
            version=f"{generate.CODE}:{place.object.key}:{place.version}:{name}",
            mtime_ns=place.mtime_ns,
            attributes={"source": place.path},
        )


async def _produce(place: Place, make: Callable[[Movie], bytes]) -> bytes:
    return await in_thread(make, await source.open_movie(place))
