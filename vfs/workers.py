"""Processes for decoding: nothing untrusted is decoded in the daemon, and nothing slow blocks its loop.

A few worker processes are started on demand, kept, and shared by all calls. A call that overruns its deadline
or is cancelled has its process killed; the next call starts a fresh one. A worker ends with the daemon:
when idle by the end of its pipe, in a call by watching its parent, and in a hung decoder by an alarm of the
kernel. `open_workers()` bounds the life of the processes; without it they end with `trio.run`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.machinery import ModuleSpec
from typing import Any, TypeVar, TypeVarTuple, overload

import trio

from vfs import workerproc
from vfs.errors import ReelfsError, WorkerFailed
from vfs.tasks import background
from vfs.workerfeed import Clock, Feed, Source
from vfs.workerfile import WorkerFile
from vfs.workerlanes import Pool

log = logging.getLogger("vfs.workers")

T = TypeVar("T")
Args = TypeVarTuple("Args")

#: Seconds an idle worker is kept: long enough for somebody who looks at one frame after another.
IDLE_SECONDS = 600.0
#: Seconds a worker that was told to end is given before it is killed.
GRACE_SECONDS = 2.0
#: Address space of a worker: an 8K picture in 16 bit with its references takes about 1.5 GiB.
DEFAULT_MEMORY = 4 << 30


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """processes: most at once. memory: bytes of address space each may have. deadline: seconds for a call.

    kept: bytes each may hold on to from one call for the next. isolate: without files, network and programs.
    """

    processes: int = 2
    memory: int = DEFAULT_MEMORY
    deadline: float = 20.0
    kept: int = workerproc.DEFAULT_KEPT
    isolate: bool = True


class _Lane:
    """A place for one worker process."""

    def __init__(self, context: Any) -> None:
        self.context = context


#: Goes after which a job whose source stalls keeps its worker, whoever waits.
_GOES = 4

#: Calls by how they ended: `ok`, `failed` (an error of the function), `died`, `overran`.
jobs: Counter[str] = Counter()
_settings = WorkerSettings()
_pool: trio.lowlevel.RunVar[Pool[_Lane] | None] = trio.lowlevel.RunVar("vfs workers", None)


def configure(
    *,
    processes: int | None = None,
    memory: int | None = None,
    deadline: float | None = None,
    kept: int | None = None,
    isolate: bool | None = None,
) -> None:
    """Set what pools opened from now on look like; None keeps a value."""
    global _settings
    if processes is not None:
        _settings = replace(_settings, processes=max(1, processes))
    if memory is not None:
        _settings = replace(_settings, memory=memory)
    if deadline is not None:
        _settings = replace(_settings, deadline=deadline)
    if kept is not None:
        _settings = replace(_settings, kept=kept)
    if isolate is not None:
        _settings = replace(_settings, isolate=isolate)


@overload
async def in_worker(
    function: Callable[[*Args], T],
    *args: *Args,
    affinity: Hashable = None,
    deadline: float | None = None,
) -> T: ...
@overload
async def in_worker(
    function: Callable[[WorkerFile, *Args], T],
    *args: *Args,
    source: Source,
    affinity: Hashable = None,
    deadline: float | None = None,
) -> T: ...
async def in_worker(
    function: Callable[..., Any],
    *args: *Args,
    source: Source | None = None,
    affinity: Hashable = None,
    deadline: float | None = None,
) -> Any:
    """`function(*args)` in a worker process; the function must be a module's own, the arguments picklable.

    source: bytes the function reads while it runs: its first argument is then a `WorkerFile`. It may be begun
    again from the start, when the source stalled and others needed the worker. affinity: jobs of one key go
    to the worker that had the last of them, where what they keep is at hand. deadline: seconds of computing
    from the moment a worker takes the call, waits for the source not counted; None = `workers.deadline`.
    Raises what the source raises, what the function raises of `vfs.errors`, and WorkerFailed for any other
    exception, a process that died, and the deadline.
    """
    deadline = _settings.deadline if deadline is None else deadline
    call = _Call(function.__module__, function.__qualname__, args, deadline, affinity)
    pool = _pool.get() or await _pool_until_end_of_run()
    if source is None:
        async with pool.lane(affinity) as lane:
            result = await _run(lane, call, Clock(deadline))
    else:
        result = await _run_fed(pool, call, source)
    return result


async def in_thread(function: Callable[[*Args], T], *args: *Args) -> T:
    """`function(*args)` in a thread: for the daemon's own slow work, never for untrusted media."""
    return await trio.to_thread.run_sync(function, *args)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a function by name. deadline: seconds."""

    module: str
    name: str
    arguments: tuple[Any, ...]
    deadline: float
    affinity: Hashable

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


async def _run_fed(pool: Pool[_Lane], call: _Call, source: Source) -> Any:
    """Run a call that reads, in as many goes as its source makes necessary."""
    if pool.knows(call.affinity):
        source = replace(source, ahead=0)  # the worker may have what it needs already
    async with background() as nursery:
        return await _goes(pool, call, Feed(source, pool.crowded, nursery))


async def _goes(pool: Pool[_Lane], call: _Call, feed: Feed) -> Any:
    await feed.first()
    go = 0
    while True:
        go += 1
        async with pool.lane(call.affinity) as lane:
            clock = Clock(call.deadline)
            job = partial(_run, lane, call, clock)
            try:
                result = await feed.serve(job, clock, patient=go == _GOES)
            except ReelfsError:
                if feed.failure is None and not feed.stalled:
                    raise
        if feed.failure is not None:
            raise feed.failure
        if not feed.stalled:
            return result
        await feed.settle()


async def _run(lane: _Lane, call: _Call, clock: Clock, source: tuple[bytes, int] | None = None) -> Any:
    from trio_parallel import BrokenWorkerError

    arguments = (call.module, call.name, call.arguments, call.deadline, source)
    with clock.scope:
        try:
            result = await lane.context.run_sync(
                workerproc.call, *arguments, kill_on_cancel=True, limiter=_Unlimited()
            )
        except BrokenWorkerError as error:
            jobs["died"] += 1
            log.warning("the worker of %s died", call)
            raise WorkerFailed(f"{call}: the process died") from error
        except ReelfsError:
            jobs["failed"] += 1
            raise
        jobs["ok"] += 1
        return result
    jobs["overran"] += 1
    if clock.scope.cancelled_caught:
        log.warning("%s overran its deadline of %g s; its worker was killed", call, call.deadline)
    raise WorkerFailed(f"{call}: no result within {call.deadline:g} s")


class _Unlimited:
    """Stands in for a limiter: the slots were taken before the deadline began to run."""

    async def __aenter__(self) -> None:
        await trio.lowlevel.checkpoint()

    async def __aexit__(self, *exc: object) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()


@asynccontextmanager
async def open_workers() -> AsyncIterator[None]:
    """The processes of every `in_worker` inside: ended, and waited for, on the way out."""
    outer = _pool.get()
    async with _open_pool() as pool:
        _pool.set(pool)
        try:
            yield
        finally:
            _pool.set(outer)


async def _pool_until_end_of_run() -> Pool[_Lane]:
    """A pool whose processes end with this `trio.run`."""
    opened: list[Pool[_Lane]] = []
    ready = trio.Event()

    async def hold() -> None:
        async with _open_pool() as pool:
            opened.append(pool)
            ready.set()
            await trio.sleep_forever()

    trio.lowlevel.spawn_system_task(hold)
    await ready.wait()
    # Two first calls may both have come here: the later one uses the pool of the first, its own stays empty.
    kept = _pool.get()
    if kept is None:
        kept = opened[0]
        _pool.set(kept)
    return kept


@asynccontextmanager
async def _open_pool() -> AsyncIterator[Pool[_Lane]]:
    # Imported when first needed: a process that only lists files never pays for it.
    import trio_parallel

    async with AsyncExitStack() as stack:
        stack.enter_context(_no_main_module())
        lanes = []
        for _ in range(_settings.processes):
            # A worker that was killed from outside while idle must not turn a shutdown into an error.
            stack.enter_context(contextlib.suppress(trio_parallel.BrokenWorkerError))
            opened = trio_parallel.open_worker_context(
                idle_timeout=IDLE_SECONDS,
                init=partial(workerproc.start, _settings.memory, _settings.kept, _settings.isolate),
                grace_period=GRACE_SECONDS,
            )
            lanes.append(_Lane(await stack.enter_async_context(opened)))
        yield Pool(lanes)


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Keep workers from importing the program's main module (the daemon, pytest) when they start.

    multiprocessing runs `__main__` again in a spawned child unless its name ends in `.__main__`.
    """
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    main.__spec__ = ModuleSpec("vfs.workers.__main__", None)
    try:
        yield
    finally:
        main.__spec__ = spec
