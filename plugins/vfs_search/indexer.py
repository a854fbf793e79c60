"""What `reelfs index` does for `search/`: one pass over each video, kept in the catalogue of the library."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import trio

from vfs import (
    Damaged,
    Descriptor,
    Layout,
    MediaError,
    Place,
    Settings,
    Sidecars,
    Source,
    Stale,
    TooBig,
    Unsupported,
    in_thread,
    in_worker,
)
from vfs_search import sampling, sidecar
from vfs_search.catalog import Catalog
from vfs_search.options import Options
from vfs_search.sampling import DEMUXERS, SUFFIXES
from vfs_search.sidecar import HEAD, SUFFIX, Identity, Writer

#: Seconds of a video that are one job: what an interrupted run loses, and a worker holds.
STRETCH = 60.0
#: Seconds of computing that a second of video may take, beside a start: a hang, not a slow machine.
_PATIENCE, _START = 10.0, 60.0


class Pictures:
    """See `vfs.Indexer`."""

    name = "search"
    needs_cache = False

    def __init__(self, settings: Settings, further: Mapping[str, Descriptor] | None = None) -> None:
        self._options = Options.load(settings)
        self._plan = self._options.plan(further)
        self._folder = self._options.place(settings)
        self._catalog: Catalog | None = None
        self._lock = trio.Lock()

    def wants(self, key: str) -> bool:
        """By the name of the file."""
        return key.lower().endswith(SUFFIXES)

    async def index(self, place: Place, sidecars: Sidecars | None) -> tuple[str, str]:
        """Describe a video, or take over what is there already. Raises StoreError, WorkerFailed."""
        identity = Identity(place.object.key, place.version, place.size, self._plan)
        state, told = "there", ""
        if not self._opened().has(place.object, identity.text):
            state, told = await self._taken_in(place, identity)
        if sidecars is not None and state in ("made", "there"):
            try:
                told = await _beside(place, self._opened().path_of(place.object), identity, sidecars) or told
            except Stale as error:
                return "failed", str(error)
        return state, told

    async def _taken_in(self, place: Place, identity: Identity) -> tuple[str, str]:
        """Have it in the catalogue, from beside the video or by looking at it."""
        path = self._opened().path_of(place.object)
        state = "there"
        try:
            if not await in_thread(sidecar.is_whole, path, identity):
                beside = await place.sidecar(SUFFIX)
                if beside is None or not await _taken(beside, path, identity):
                    state = "made"
                    await self._describe(place, path, identity)
            contents = await in_thread(sidecar.read, path)
        except Unsupported as error:
            return "none fits", str(error)
        except (MediaError, TooBig) as error:
            path.unlink(missing_ok=True)
            return "unplayable", str(error)
        async with self._lock:
            await in_thread(self._opened().add, place.object, identity.text, contents)
        return state, f"{len(contents.times)} pictures of {contents.duration:.0f} s"

    async def take(self, place: Place, beside: Place) -> bool:
        """Take over what lies beside a video, if it is of this version. Raises StoreError, OSError."""
        identity = Identity(place.object.key, place.version, place.size, self._plan)
        if self._opened().has(place.object, identity.text):
            return False
        path = self._opened().path_of(place.object)
        if not await in_thread(sidecar.is_whole, path, identity) and not await _taken(beside, path, identity):
            return False
        contents = await in_thread(sidecar.read, path)
        async with self._lock:
            await in_thread(self._opened().add, place.object, identity.text, contents)
        return True

    async def _describe(self, place: Place, path: Path, identity: Identity) -> None:
        """Stretch by stretch, from where an earlier run got to."""
        demuxer = DEMUXERS[place.name[place.name.rindex(".") :].lower()]
        source = Source(partial(place.stream, Layout.whole(place.object)), place.size)
        length = await in_worker(sampling.duration, demuxer, source=source, deadline=_START)
        writer = await in_thread(Writer, path, identity)
        try:
            start, found = writer.until, writer.pictures
            end = min(length, self._options.max_duration or length)
            while start < end or (not end and not start):
                # The last one has no end: what a file says of its length is not always so.
                last = start + STRETCH >= end
                stop = float("inf") if last and not self._options.max_duration else min(start + STRETCH, end)
                plan = self._plan
                patience = _START + _PATIENCE * (min(stop, end) - start)
                part = await in_worker(
                    sampling.describe, demuxer, start, stop, plan, source=source, deadline=patience
                )
                if plan.max_pictures and found + len(part.times) > plan.max_pictures:
                    part, last = part.first(plan.max_pictures - found), True
                    place.report(f"only the first {plan.max_pictures} pictures are indexed (max_keyframes)")
                found += len(part.times)
                start += STRETCH
                async with self._lock:
                    await in_thread(writer.add, part, start)
                if last:
                    break
            if not found:
                raise Damaged("not one picture of it can be decoded")
            writer.finish()
        finally:
            writer.close()

    async def finish(self, there: Callable[[str], bool], count: int) -> str:
        """Drop what is of videos that are gone, and what goes over the budget."""
        catalog = self._opened()
        gone = [key for key in catalog.known() if not there(key)]
        await in_thread(catalog.forget, gone)
        orphans, dropped = await in_thread(catalog.clean, count, self._options.index_budget)
        told = [f"{len(gone)} videos are gone"] if gone else []
        told += [f"{orphans} old files removed"] if orphans else []
        if await in_thread(catalog.make_lists):
            told.append("vectors sorted into lists")
        told += [f"{dropped} videos dropped: index_budget is {self._options.index_budget}"] if dropped else []
        return ", ".join(told)

    def _opened(self) -> Catalog:
        """The catalogue, opened where it is used: processes do not share a database."""
        if self._catalog is None:
            self._catalog = Catalog(self._folder)
        return self._catalog


async def _taken(beside: Place, path: Path, identity: Identity) -> bool:
    """Copy a `.search.sqlite` that lies beside its video, if it is of this version."""
    if beside.size > sidecar.MAX_BYTES or not sidecar.stands_in(await beside.read(0, HEAD), identity):
        return False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            async for piece in beside.stream(Layout.whole(beside.object)):
                await in_thread(file.write, piece)
        if not await in_thread(_is_good, part, identity):
            return False
        os.replace(part, path)
        return True
    finally:
        part.unlink(missing_ok=True)


def _is_good(path: Path, identity: Identity) -> bool:
    """Whether a file of somebody else's can be used: all of it, not only what it says of itself."""
    try:
        return sidecar.is_whole(path, identity) and bool(sidecar.read(path))
    except Damaged:
        return False


async def _beside(place: Place, path: Path, identity: Identity, sidecars: Sidecars) -> str:
    """Have a copy beside the video; why there is none, or "". Raises Stale for a file that is not ours."""
    target = f"{place.path}{SUFFIX}"
    there = await place.sidecar(SUFFIX)
    if there is not None:
        head = await there.read(0, HEAD)
        if sidecar.stands_in(head, identity):
            return ""
        if not sidecar.stands_in(head):
            raise Stale(f"{target} is there and was not made by this: it is left as it is")
    if not sidecars.allows(target, replaces=there):
        return f"kept on this machine: {target} may not be written (write.allow, write.protect)"
    await sidecars.put(target, path, replaces=there)
    return ""
