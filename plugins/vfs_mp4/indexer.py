"""What `reelfs index` does for fragmented videos: the index by which mounts find their frames at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import trio

from vfs import MediaError, Place, Unsupported, in_thread
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

    async def index(self, place: Place, folder: Path | None) -> tuple[str, str]:
        """See `index_one`."""
        return await index_one(place, folder)

    async def finish(self, there: Callable[[str], bool], count: int) -> str:
        """Nothing is left of videos that are gone: sidecars beside them are files like others."""
        return ""


async def index_one(place: Place, folder: Path | None) -> tuple[str, str]:
    """(state, reason) of one video: its index is made where there is none.

    folder: of a local source, where sidecars are written; None = kept in the cache. States: `made`, `there`,
    `none needed`, `none fits` (its fragments are not what an index lists), `unplayable`. Raises StoreError
    and the like where it could not be asked.
    """
    try:
        movie = await source.movie_at(place, Fraction(0), Fraction(0))
        if movie.init is None or (folder is None and movie.index_source in _OWN):
            return "none needed", movie.index_source
        stored = await place.sidecar(sidecar.SQLITE)
        if movie.index_source == "sidecar" and (folder is None or stored is not None):
            return "there", ""
        if folder is not None and stored is not None:
            return "failed", f"{sidecar.SQLITE} is there and not of this video: remove it"
        data = await in_thread(generate.index_sqlite, whole := await source.open_movie(place))
    except Unsupported as error:
        return "none fits", str(error)
    except MediaError as error:
        return "unplayable", str(error)
    count = f"{len(whole.fragments)} fragments"
    if folder is not None:
        await trio.to_thread.run_sync(_write, folder / f"{place.path}{sidecar.SQLITE}", data)
    elif not await place.keep(hints.KEPT, data):
        return "failed", "the cache folder does not take it (is it full?)"
    return "made", count


def _write(path: Path, data: bytes) -> None:
    """A new file, whole or not at all; an existing one stays. Raises FileExistsError, OSError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(beside, path)
    finally:
        beside.unlink(missing_ok=True)
