"""One process of `reelfs index`: keys come in as lines of JSON, outcomes go out the same way.

`python -m vfs_mp4.indexwork`: the first line is the settings and where to write, each further one a key. It
ends when its input does, so it never outlives the command.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import trio

from vfs import (
    MediaError,
    NotFound,
    Place,
    ReelfsError,
    Settings,
    Unsupported,
    in_thread,
    open_runtime,
)
from vfs_mp4 import generate, hints, sidecar, source

#: Files that one process works on at a time: a walk waits for one small request after another.
AT_ONCE = 4
#: Sources of an index that a file brings itself.
_OWN = ("moov", "sidx", "mfra")


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


async def _outcome(root: Place, key: str, folder: Path | None) -> dict[str, str]:
    try:
        place = await root.find(key)
        if place is None or place.is_folder:
            raise NotFound("it is not there any more")
        state, reason = await index_one(place, folder)
    except (ReelfsError, OSError) as error:
        state, reason = "failed", str(error) or type(error).__name__
    return {"key": key, "state": state, "reason": reason}


async def _lines() -> AsyncIterator[Any]:
    """What comes in, as values."""
    rest = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        async for piece in stream:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield json.loads(line)


async def _serve() -> None:
    lines = _lines()
    first = await anext(lines)
    folder = Path(first["folder"]) if first["folder"] is not None else None
    slots = trio.CapacityLimiter(AT_ONCE)

    async def one(root: Place, key: str) -> None:
        async with slots:
            found = await _outcome(root, key, folder)
        with suppress(BrokenPipeError):  # told by the end of the input, too
            os.write(1, json.dumps(found).encode() + b"\n")

    async with open_runtime(Settings.from_dict(first["settings"])) as runtime, trio.open_nursery() as nursery:
        root = (await runtime.tree.root()).place
        assert root is not None
        async for key in lines:
            nursery.start_soon(one, root, key)
        # Nobody waits for what is still being done.
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    # What it reports about single files comes out as their outcomes.
    logging.basicConfig(level=logging.ERROR)
    trio.run(_serve)
