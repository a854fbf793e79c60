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
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.machinery import ModuleSpec
from typing import Any, TypeVar, TypeVarTuple, cast

import trio

from vfs import workerproc
from vfs.errors import ReelfsError, WorkerFailed

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
    """processes: most at once. memory: bytes of address space each may have. deadline: seconds for a call."""

    processes: int = 2
    memory: int = DEFAULT_MEMORY
    deadline: float = 20.0


@dataclass(frozen=True, slots=True)
class _Pool:
    context: Any
    slots: trio.CapacityLimiter


#: Calls by how they ended: `ok`, `failed` (an error of the function), `died`, `overran`.
jobs: Counter[str] = Counter()
_settings = WorkerSettings()
_pool: trio.lowlevel.RunVar[_Pool | None] = trio.lowlevel.RunVar("vfs workers", None)


def configure(
    *, processes: int | None = None, memory: int | None = None, deadline: float | None = None
) -> None:
    """Set what pools opened from now on look like; None keeps a value."""
    global _settings
    if processes is not None:
        _settings = replace(_settings, processes=max(1, processes))
    if memory is not None:
        _settings = replace(_settings, memory=memory)
    if deadline is not None:
        _settings = replace(_settings, deadline=deadline)


async def in_worker(function: Callable[[*Args], T], *args: *Args, deadline: float | None = None) -> T:
    """`function(*args)` in a worker process; the function must be a module's own, the arguments picklable.

    deadline: seconds from the moment a worker takes the call; None = the setting `workers.deadline`.
    Raises what the function raises of `vfs.errors`, and WorkerFailed for any other exception, a process
    that died, and the deadline.
    """
    module, name = function.__module__, function.__qualname__
    deadline = _settings.deadline if deadline is None else deadline
    result = await _run(f"{module}.{name}", deadline, workerproc.call, module, name, args, deadline)
    return cast(T, result)


async def in_thread(function: Callable[[*Args], T], *args: *Args) -> T:
    """`function(*args)` in a thread: for the daemon's own slow work, never for untrusted media."""
    return await trio.to_thread.run_sync(function, *args)


async def _run(what: str, deadline: float, function: Callable[..., Any], *args: Any) -> Any:
    from trio_parallel import BrokenWorkerError

    pool = _pool.get() or await _pool_until_end_of_run()
    async with pool.slots:
        with trio.move_on_after(deadline) as scope:
            try:
                result = await pool.context.run_sync(
                    function, *args, kill_on_cancel=True, limiter=_Unlimited()
                )
            except BrokenWorkerError as error:
                jobs["died"] += 1
                log.warning("the worker of %s died", what)
                raise WorkerFailed(f"{what}: the process died") from error
            except ReelfsError:
                jobs["failed"] += 1
                raise
            jobs["ok"] += 1
            return result
        jobs["overran"] += 1
        if scope.cancelled_caught:
            log.warning("%s overran its deadline of %g s; its worker was killed", what, deadline)
        raise WorkerFailed(f"{what}: no result within {deadline:g} s")


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


async def _pool_until_end_of_run() -> _Pool:
    """A pool whose processes end with this `trio.run`."""
    opened: list[_Pool] = []
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
async def _open_pool() -> AsyncIterator[_Pool]:
    # Imported when first needed: a process that only lists files never pays for it.
    import trio_parallel

    # A worker that was killed from outside while idle must not turn a shutdown into an error.
    with _no_main_module(), contextlib.suppress(trio_parallel.BrokenWorkerError):
        async with trio_parallel.open_worker_context(
            idle_timeout=IDLE_SECONDS,
            init=partial(workerproc.start, _settings.memory),
            grace_period=GRACE_SECONDS,
        ) as context:
            yield _Pool(context, trio.CapacityLimiter(_settings.processes))


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
