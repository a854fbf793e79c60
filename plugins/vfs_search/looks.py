"""What is asked about, as it looks and sounds: decoded in the background, once for each version of it.

Nobody who lists an answer decodes: he waits for a moment, and is told when it takes longer. What was decoded
is kept, on disk where it is a stored file's; what cannot be decoded is not tried again for a while.
"""

from __future__ import annotations

import copy
import io
import time
import zipfile
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import trio

from vfs import (
    MediaError,
    NotFound,
    Place,
    ReelfsError,
    Source,
    Spliced,
    TooBig,
    WorkerFailed,
    in_worker,
)
from vfs_search import sampling, sidecar
from vfs_search.local import Local
from vfs_search.sampling import DEMUXERS, Plan, Question, Still

Look = TypeVar("Look", Question, Still)
#: Seconds of computing that a look may take.
_PATIENCE = 120.0
#: Seconds for which a failure stands, and how many of them.
FAILED_SECONDS, MOST_FAILED = 600.0, 256


class Preparing(Exception):
    """It is still being looked at."""


@dataclass(eq=False)
class _Job:
    """One that is under way. value, error: what came of it."""

    done: trio.Event = field(default_factory=trio.Event)
    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Asked(Generic[Look]):
    """Something to be looked at. key: names its version, and how it is looked at. kind: what comes of it.

    make: decodes it. place: the stored file that it is a part of, if it is.
    """

    key: str
    kind: type[Look]
    make: Callable[[], Awaitable[Look]]
    place: Place | None = None


class Looks:
    """Of one mount. wait: seconds that somebody waits for one."""

    def __init__(self, wait: float) -> None:
        self.wait = wait
        self._turn = trio.Lock()
        self._jobs: dict[str, _Job] = {}
        self._failed: OrderedDict[str, tuple[float, ReelfsError]] = OrderedDict()

    async def at(self, root: Place, asked: Asked[Look]) -> Look:
        """How it looks. Raises Preparing where that takes longer, and what `make` raises."""
        job = self._begin(root, asked)
        with trio.move_on_after(self.wait):
            await job.done.wait()
        if not job.done.is_set():
            raise Preparing
        if job.error is not None:
            raise copy.copy(job.error)  # one exception in several tasks would mix their tracebacks
        found: Look = job.value
        return found

    def begin_file(self, root: Place, file: Local, plan: Plan) -> None:
        """Have a file looked at that just came."""
        if demuxer_of(file) is None:
            self._begin(root, picture_of(file, plan))
        else:
            self._begin(root, video_of(file, plan))

    def _begin(self, root: Place, asked: Asked[Look]) -> _Job:
        job = self._jobs.get(asked.key)
        if job is None:
            job = self._jobs[asked.key] = _Job()
            trio.lowlevel.spawn_system_task(self._run, root, asked, job)
        return job

    async def _run(self, root: Place, asked: Asked[Look], job: _Job) -> None:
        try:
            job.value = await self._value(root, asked)
        except Exception as error:  # of whoever waits; here it would end the daemon
            job.error = error
        finally:
            del self._jobs[asked.key]
            job.done.set()

    async def _value(self, root: Place, asked: Asked[Look]) -> Look:
        when, error = self._failed.get(asked.key, (0.0, None))
        if error is not None and time.monotonic() - when < FAILED_SECONDS:
            raise copy.copy(error)
        try:
            return await root.derive(asked.key, lambda: self._made(asked), cost=_cost)
        except (MediaError, TooBig, WorkerFailed) as failure:  # of the file, not of the store
            self._failed[asked.key] = (time.monotonic(), failure)
            while len(self._failed) > MOST_FAILED:
                self._failed.popitem(last=False)
            raise

    async def _made(self, asked: Asked[Look]) -> Look:
        """From disk, or decoded and put there. One at a time: workers are left for who looks at pictures."""
        name = f"{sidecar.CODE}:{asked.key}"
        if asked.place is not None and (data := await asked.place.kept(name)) is not None:
            found = unpacked(asked.kind, data)
            if found is not None:
                return found
        async with self._turn:
            made = await asked.make()
        if asked.place is not None:
            await asked.place.keep(name, packed(made))
        return made


# ---------------------------------------------------------------- what may be asked about


async def clip_of(root: Place, node: Spliced, path: str, plan: Plan) -> Asked[Question]:
    """A clip of a file of the mount."""
    source = Source(partial(root.stream, node.layout), node.layout.size)
    make = partial(in_worker, sampling.question, "mp4", plan, source=source, deadline=_PATIENCE)
    return Asked(f"clip\0{node.version}\0{plan}", Question, make, await _stored(root, path))


async def frame_of(root: Place, node: Spliced, path: str, plan: Plan) -> Asked[Still]:
    """The picture of a perfect read."""
    source = Source(partial(root.stream, node.layout), node.layout.size)
    number = int(node.attributes.get("start_frame_index", "0"))
    make = partial(in_worker, sampling.one_frame, "mp4", number, plan, source=source, deadline=_PATIENCE)
    return Asked(f"frame\0{number}\0{node.version}\0{plan}", Still, make, await _stored(root, path))


async def _stored(root: Place, path: str) -> Place | None:
    """The stored file of a path; None for one that a view made."""
    try:
        found = await root.find(path)
    except NotFound:
        return None
    return None if found is None or found.is_folder else found


def demuxer_of(file: Local) -> str | None:
    """Of a video, by its name; None for what is looked at as a picture."""
    return DEMUXERS.get(file.path.suffix.lower())


def video_of(file: Local, plan: Plan) -> Asked[Question]:
    """A video that is not in the library."""
    source, demuxer = Source(file.stream, file.size), demuxer_of(file) or "mp4"
    make = partial(in_worker, sampling.question, demuxer, plan, source=source, deadline=_PATIENCE)
    return Asked(f"video\0{file.path}\0{file.version}\0{plan}", Question, make)


def picture_of(file: Local, plan: Plan) -> Asked[Still]:
    """A picture that is not in the library."""

    async def make() -> Still:
        return await in_worker(sampling.still, await file.read(), plan, deadline=_PATIENCE)

    return Asked(f"picture\0{file.path}\0{file.version}\0{plan}", Still, make)


# ---------------------------------------------------------------- on disk


def packed(look: Question | Still) -> bytes:
    """As a file of numpy's."""
    values = {one.name: getattr(look, one.name) for one in fields(look)}
    extra = {f"extra:{name}": vectors for name, vectors in values.pop("extra").items()}
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **{name: np.asarray(value) for name, value in values.items()}, **extra)
    return out.getvalue()


def unpacked(kind: type[Look], data: bytes) -> Look | None:
    """What was packed; None where it is something else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            values: dict[str, Any] = {name: file[name] for name in file.files}
        extra = {n.removeprefix("extra:"): values.pop(n) for n in list(values) if n.startswith("extra:")}
        values["names"] = [str(name) for name in values["names"]]
        if "duration" in values:
            values["duration"] = float(values["duration"])
        return kind(**values, extra=extra)
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile):
        return None


def _cost(look: Question | Still) -> int:
    """Bytes in memory."""
    return 1000 + sum(getattr(getattr(look, one.name), "nbytes", 0) for one in fields(look))
