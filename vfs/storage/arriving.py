"""The bytes of one read while they come: who needs no more than is here goes on at once.

A store that can fills a buffer from its start, in whatever thread, and says how far it has come; who waits
for a part of it is woken when that part is here, and nobody else is. Bytes count as here when they have
passed every check that can be made before the rest has come (docs/semantics.md, "What is given out early").
An attempt that fails leaves what it brought: the next one goes on behind it, in a buffer of its own, so that
a thread that was given up writes into nothing that is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
import weakref
from collections.abc import Callable

import trio

from vfs.storage.base import Body

#: Bytes a store reads at one time: fewer while somebody waits, since it is not told before they are all here.
LEAST, MOST = 16 * 1024, 1024 * 1024
#: Else about as many as come in this time (seconds): somebody may begin to wait meanwhile.
_STEP = 0.01
#: Bodies from this size on begin at a page.
_ALIGNED = 256 * 1024
_PAGE = 4096


class Arriving:
    """`length` bytes on their way. Made, watched and read in the event loop's thread."""

    __slots__ = ("__weakref__", "_intake", "_token", "_watchers", "length", "wanted")

    def __init__(self, length: int) -> None:
        self.length = length
        #: The nearest position somebody waits for: below it there is nothing to tell.
        self.wanted = math.inf
        self._intake: Intake | None = None
        self._watchers: list[tuple[int, Callable[[], object]]] = []
        self._token = trio.lowlevel.current_trio_token()

    @property
    def have(self) -> int:
        """So many bytes, from the start on, may be given out."""
        return self._intake.have if self._intake is not None else 0

    def begin(self) -> Intake:
        """Where the next attempt of a store puts the bytes that are missing; the one before is given up."""
        have = self.have
        self._intake = Intake(self, self.view(0, have) if have else memoryview(b""))
        return self._intake

    def view(self, start: int, stop: int) -> memoryview:
        """Bytes that are here, never to change."""
        assert self._intake is not None
        assert stop <= self.have
        return self._intake.buffer[start:stop].toreadonly()

    def completed(self, begun: int, body: Body) -> Body:
        """All bytes, of which the last attempt, begun when there were `begun`, gave `body`."""
        if not begun:
            return body
        if self.have < self.length:
            intake = self.begin()
            intake.room[:] = body
            intake.reached(len(body))
        return self.view(0, self.length)

    def watch(self, position: int, watcher: Callable[[], object]) -> None:
        """Have `watcher()` called, soon, once so many bytes are here, or when there will be no more."""
        self._watchers.append((position, watcher))
        self.wanted = min(self.wanted, position)
        # After it was said: a thread that came so far just before has not seen it.
        if self.have >= position:
            self.look()

    def forget(self, watcher: Callable[[], object]) -> None:
        """It is not to be called any more."""
        self._watchers = [watching for watching in self._watchers if watching[1] is not watcher]

    def look(self) -> None:
        """Tell those whose bytes are here."""
        self._tell(self.have)

    def close(self) -> None:
        """There will be no more: tell everybody."""
        self._tell(math.inf)

    def soon(self) -> None:
        """`look`, from any thread, without waiting for it."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.look, idempotent=True)

    def _tell(self, have: float) -> None:
        told = [watcher for position, watcher in self._watchers if position <= have]
        self._watchers = [watching for watching in self._watchers if watching[0] > have]
        self.wanted = min((position for position, _ in self._watchers), default=math.inf)
        for watcher in told:
            watcher()


#: With NULL for the bytes it leaves them as they are (Python/C API, "Byte Array Objects").
_bytearray = ctypes.pythonapi.PyByteArray_FromStringAndSize
_bytearray.argtypes, _bytearray.restype = [ctypes.c_char_p, ctypes.c_ssize_t], ctypes.py_object


def _buffer(length: int) -> memoryview:
    """Room for so many bytes, at the start of a page where they are many: from there a disk writes without a
    copy. Not filled with zeros, which is a tenth of the CPU of a large read. (Nor of numpy: it has the kernel
    make huge pages for 4 MiB and more, anew each time.)
    """
    slack = _PAGE if length >= _ALIGNED else 0
    room: bytearray = _bytearray(None, length + slack)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(room)) % _PAGE if slack else 0
    return memoryview(room)[start : start + length]


class Intake:
    """What one attempt of a store fills. begun: what earlier ones brought."""

    __slots__ = ("_arriving", "_asked", "_begun", "_buffer", "_length", "_step", "have")

    def __init__(self, arriving: Arriving, begun: memoryview) -> None:
        # Weakly: a cycle would keep megabytes until the garbage collector comes by.
        self._arriving = weakref.ref(arriving)
        self._length = arriving.length
        self._begun = begun
        self._buffer: memoryview | None = None
        self.have = len(begun)
        self._asked, self._step = math.inf, 4 * LEAST

    @property
    def buffer(self) -> memoryview:
        """Room for all bytes, those of earlier attempts included.

        Made when it is first asked for, in the thread that fills it: the C library keeps what a thread has
        given back for the next request, and clean pages cost as much as the bytes that are put into them.
        """
        if self._buffer is None:
            self._buffer = _buffer(self._length)
            self._buffer[: len(self._begun)] = self._begun
        return self._buffer

    @property
    def room(self) -> memoryview:
        """For exactly the bytes that the attempt was asked for."""
        return self.buffer[len(self._begun) :]

    def due(self) -> int:
        """So many bytes to read before `reached` is called the next time. From the thread that reads."""
        now = time.monotonic()
        if now - self._asked < _STEP / 2:
            self._step = min(self._step * 2, MOST)
        elif now - self._asked > _STEP * 2:
            self._step = max(self._step // 2, LEAST)
        self._asked = now
        arriving = self._arriving()
        wanted = math.inf if arriving is None else arriving.wanted - self.have
        return int(min(max(wanted, LEAST), self._step))

    def reached(self, count: int) -> None:
        """The first `count` bytes of `room` are final and may be given out. From any thread; never waits."""
        self.have = len(self._begun) + count
        arriving = self._arriving()
        if arriving is not None and self.have >= arriving.wanted:
            arriving.soon()
