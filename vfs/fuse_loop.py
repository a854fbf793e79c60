"""The request loop of pyfuse3: read faster, watched for stalls, and interrupted where the caller is.

pyfuse3 3.5 takes a `trio.Lock` and an epoll wait for every request, which costs more than answering a
`stat`. `install_fast_wait` replaces its module function `_wait_fuse_readable`: the descriptor is polled
first and spun on for some microseconds, since the next request of a busy client is nearly there. The name is
private, so this is done only for versions it was read and tried with; any other runs as it is.

pyfuse3 has no interrupt support: who waits for an answer cannot be killed until it comes. `Callers` therefore
looks, for operations that take long, whether the caller has a signal waiting that would end it, and cancels.
"""

from __future__ import annotations

import logging
import math
import os
import select
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pyfuse3
import trio

from vfs.fuse_init import HANDLE_KILLPRIV_V2, PARALLEL_DIROPS, Opening

#: The module with its private names.
_pyfuse3: Any = pyfuse3

log = logging.getLogger("vfs.fuse_loop")

#: pyfuse3 versions whose `_wait_fuse_readable` was read: takes nothing, True = readable, False = end.
KNOWN_VERSIONS = ("3.4.", "3.5.")
#: A client in a loop sends its next request some 10 to 20 us after an answer; waiting longer is waste.
SPIN_SECONDS = 30e-6
#: While nothing came in the last spin, so many requests are waited for without one: a reader of large pieces
#: takes longer over each than a spin lasts.
SPIN_PAUSE = 16
#: Other tasks (downloads, timers, other requests' handlers) get their turn at least this often.
TURN_REQUESTS = 32
TURN_SECONDS = 1e-3

#: Steps of a task longer than this are counted; longer than `STALL_LOGGED` they are logged.
STALL_COUNTED = 0.05
STALL_LOGGED = 1.0

#: How often callers of slow operations are looked at, and the age at which an operation is slow.
CALLER_INTERVAL = 0.25
#: HUP, INT, QUIT, KILL, TERM: what a user or a supervisor ends a program with. Timers and child exits are
#: not among them: no program expects EINTR from a regular file because a timer ran out.
FATAL_SIGNALS = sum(1 << (number - 1) for number in (1, 2, 3, 9, 15))

Wait = Callable[[], Awaitable[bool]]


def fuse_descriptor(before: set[int]) -> int | None:
    """The descriptor of /dev/fuse that was opened since `before` (`open_fuse_descriptors`), or None."""
    new = open_fuse_descriptors() - before
    return new.pop() if len(new) == 1 else None


def open_fuse_descriptors() -> set[int]:
    """The descriptors of this process that are /dev/fuse."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.add(int(name))
        except OSError:  # the descriptor that listed the directory is closed by now
            continue
    return found


def install_fast_wait(descriptor: int | None, *, writable: bool = False) -> bool:
    """Make the session loop poll before it waits. False (and no change) where that is not known to work.

    descriptor: the session's /dev/fuse. writable: the handlers are those of `WritableAdapter`.
    """
    original = getattr(pyfuse3, "_wait_fuse_readable", None)
    if descriptor is None or original is None or not pyfuse3.__version__.startswith(KNOWN_VERSIONS):
        log.info("pyfuse3 %s: its request loop is used as it is", pyfuse3.__version__)
        return False
    wanted = PARALLEL_DIROPS | (HANDLE_KILLPRIV_V2 if writable else 0)
    _pyfuse3._wait_fuse_readable = FastWait(
        descriptor, getattr(original, "original", original), opening=Opening(descriptor, wanted)
    )
    return True


def remove_fast_wait() -> None:
    """Put pyfuse3's own function back."""
    current = getattr(pyfuse3, "_wait_fuse_readable", None)
    if isinstance(current, FastWait):
        _pyfuse3._wait_fuse_readable = current.original


class FastWait:
    """Waits for a request: polls, spins a little, and only then joins pyfuse3's own queue of waiters.

    Between the poll that says yes and pyfuse3's `read` there is no await, so no other task can take the
    request and leave this one blocked in `read`.
    """

    def __init__(
        self,
        descriptor: int,
        original: Wait,
        clock: Callable[[], float] = time.perf_counter,
        opening: Opening | None = None,
    ) -> None:
        self.original = original
        self.fast = 0
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._clock = clock
        self._count = 0
        self._pause = 0
        self._turn_ends = 0.0
        self._opening = opening

    async def __call__(self) -> bool:
        """True when a request can be read, False when the session ends."""
        if self._opening is not None and self._opening.step():
            return True
        now = self._clock()
        if self._count < TURN_REQUESTS and now < self._turn_ends:
            until = now + SPIN_SECONDS if not self._pause else now
            while True:
                if self._poll.poll(0):
                    self._count += 1
                    self.fast += 1
                    return True
                now = self._clock()
                if now >= until:
                    break
            self._pause = self._pause - 1 if self._pause else SPIN_PAUSE
        while await self.original():
            self._count = 0
            self._turn_ends = self._clock() + TURN_SECONDS
            # The kernel takes a request back when its caller is killed; a blocking read would then hold
            # up everything until the next one.
            if self._poll.poll(0):
                return True
        return False


class StallWatch(trio.abc.Instrument):
    """Measures how long single steps of tasks hold the event loop: a step that long stalls the mount.

    report: called with the seconds of each step over `STALL_COUNTED`.
    """

    def __init__(self, report: Callable[[float], None]) -> None:
        self.longest = 0.0
        self._report = report
        self._started = math.inf  # the step that installs this is not measured

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """A task is about to run."""
        self._started = time.perf_counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """It gave the loop back."""
        seconds = time.perf_counter() - self._started
        if seconds < STALL_COUNTED:
            return
        self.longest = max(self.longest, seconds)
        self._report(seconds)
        if seconds >= STALL_LOGGED:
            log.warning("the event loop stood still for %.1f s in %s", seconds, task.name)


@dataclass(slots=True, eq=False)
class Waiting:
    """One operation in flight: who waits for it, since and until when (monotonic seconds), and its scope."""

    pid: int
    since: float
    until: float
    scope: trio.CancelScope
    overdue: bool = False


class Callers:
    """Operations in flight that somebody waits for; cancelled when the caller is being killed, or overdue.

    limit: seconds an operation may take. The store and the workers have deadlines of their own that come
    first; this one is for whatever forgot to have any.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._waiting: set[Waiting] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, pid: int, patience: float, scope: trio.CancelScope) -> Waiting:
        """Process (or thread) `pid`, 0 = not visible from here, waits for what runs in `scope`.

        patience: times the limit.
        """
        now = time.monotonic()
        waiting = Waiting(pid, now, now + self._limit * patience, scope)
        self._waiting.add(waiting)
        return waiting

    def remove(self, waiting: Waiting) -> None:
        """The operation is answered."""
        self._waiting.remove(waiting)

    async def run(self) -> None:
        """Look at the callers of slow operations until cancelled."""
        while True:
            await trio.sleep(CALLER_INTERVAL)
            self.check(time.monotonic())

    def check(self, now: float) -> None:
        """Cancel the operations that are overdue or whose callers are being ended."""
        for waiting in list(self._waiting):
            waiting.overdue = now >= waiting.until
            slow = now - waiting.since >= CALLER_INTERVAL
            if waiting.overdue or (slow and being_ended(waiting.pid)):
                waiting.scope.cancel()


def being_ended(pid: int) -> bool:
    """Whether a signal that ends programs is pending for a thread, neither blocked nor ignored.

    False for a process that is gone: then nobody waits, or the handle was passed on to another one.
    """
    if pid <= 0:
        return False
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            fields: dict[bytes, Any] = dict(line.split(b":", 1) for line in status if b":" in line)
    except OSError:
        return False
    mask = {name: int(fields.get(name, b"0"), 16) for name in (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigIgn")}
    pending = mask[b"SigPnd"] | mask[b"ShdPnd"]
    return bool(pending & FATAL_SIGNALS & ~mask[b"SigBlk"] & ~mask[b"SigIgn"])
