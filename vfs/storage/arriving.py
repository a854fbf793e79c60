"""The bytes of one read while they come: who needs no more than is here goes on at once.

A store that can fills a buffer from its start, in whatever thread, and says how far it has come; who waits
for a part of it is woken when that part is here, and nobody else is. Bytes count as here when they have
passed every check that can be made before the rest has come (docs/semantics.md, "What is given out early").
An attempt that fails leaves what it brought: the next one goes on behind it, in a buffer of its own, so that
a thread that was given up writes into nothing that is read.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import numpy as np
import trio

from vfs.storage.base import Body

#: Bytes a store reads at one time: fewer while somebody waits, since it is not told before they are all here.
LEAST, MOST = 16 * 1024, 256 * 1024


class Arriving:
    """`length` bytes on their way. Made, watched and read in the event loop's thread."""

    __slots__ = ("_intake", "_token", "_watchers", "length", "wanted")

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
        # Not filled with zeros, as a bytearray would be: that is a tenth of the CPU of a large read.
        buffer = np.empty(self.length, np.uint8).data
        if self._intake is not None:
            buffer[:have] = self.view(0, have)
        self._intake = Intake(self, buffer, have)
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


class Intake:
    """What one attempt of a store fills. room: for exactly the bytes it was asked for."""

    __slots__ = ("_arriving", "_begun", "buffer", "have", "room")

    def __init__(self, arriving: Arriving, buffer: memoryview, begun: int) -> None:
        self._arriving = arriving
        self._begun = begun
        self.buffer = buffer
        self.room = buffer[begun:]
        self.have = begun

    @property
    def due(self) -> int:
        """So many bytes to read before `reached` is called the next time. From any thread."""
        return int(min(max(self._arriving.wanted - self.have, LEAST), MOST))

    def reached(self, count: int) -> None:
        """The first `count` bytes of `room` are final and may be given out. From any thread; never waits."""
        self.have = self._begun + count
        if self.have >= self._arriving.wanted:
            self._arriving.soon()
