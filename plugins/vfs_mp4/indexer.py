"""What `reelfs index` does for fragmented videos: the index by which mounts find their frames at once."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from vfs import MediaError, Place, Sidecars, Unsupported, in_thread
from vfs_mp4 import generate, hints, sidecar, source
from vfs_mp4.selecting import SUFFIXES

#: Sources of an index that a file brings itself.
_OWN = ("moov", "sidx", "mfra")


class Frames:
    """See `vfs.Indexer`."""

    name = "frames"
    needs_cache = True

    def wants(self, key: str) -> bool:
        """By the name of the file."""
        return key.lower().endswith(SUFFIXES)

    async def index(self, place: Place, sidecars: Sidecars | None) -> tuple[str, str]:
        """See `index_one`."""
        return await index_one(place, sidecars)

    async def finish(self, there: Callable[[str], bool], count: int) -> str:
        """Nothing is left of videos that are gone: sidecars beside them are files like others."""
        return ""


async def index_one(place: Place, sidecars: Sidecars | None) -> tuple[str, str]:
    """(state, reason) of one video: its index is made where there is none.

    sidecars: where it is stored beside its video, where that is allowed; else it is kept in the cache.
    States: `made`, `there`, `none needed`, `none fits` (its fragments are not what an index lists),
    `unplayable`. Raises Stale where somebody else stored one meanwhile, StoreError and the like where it
    could not be asked.
    """
    path = f"{place.path}{sidecar.SQLITE}"
    beside = sidecars if sidecars is not None and sidecars.allows(path) else None
    try:
        movie = await source.movie_at(place, Fraction(0), Fraction(0))
        if movie.init is None or (beside is None and movie.index_source in _OWN):
            return "none needed", movie.index_source
        stored = await place.sidecar(sidecar.SQLITE)
        if movie.index_source == "sidecar" and (beside is None or stored is not None):
            return "there", ""
        if (
            beside is not None
            and stored is not None
            and not (beside.allows(path, replaces=stored) and await _outdated(stored, place))
        ):
            return "failed", f"{sidecar.SQLITE} is there and not of this video: remove it"
        data = await in_thread(generate.index_sqlite, whole := await source.open_movie(place))
    except Unsupported as error:
        return "none fits", str(error)
    except MediaError as error:
        return "unplayable", str(error)
    count = f"{len(whole.fragments)} fragments"
    if beside is not None:
        await beside.put(path, data, replaces=stored)
    elif not await place.keep(hints.KEPT, data):
        return "failed", "the cache folder does not take it (is it full?)"
    return "made", count


async def _outdated(stored: Place, place: Place) -> bool:
    """Whether a sidecar says that it was made of another version of the video: it may be replaced."""
    if stored.size > sidecar.MAX_BYTES:
        return False
    told = await in_thread(sidecar.source_of, await stored.read(0, stored.size))
    return told is not None and told != (place.version, place.size)
