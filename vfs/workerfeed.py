"""The daemon's side of a job that reads: ranges of a `Source`, handed to a worker over a socket of its own.

Bytes are handed on as they arrive, so a worker computes while the rest is still on its way. What goes wrong
with the source is kept, and is what the caller of the job gets, whatever a decoder made of the missing bytes.
"""

from __future__ import annotations

import math
import os
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import trio

from vfs.errors import BadBody
from vfs.tasks import background
from vfs.workerfile import FAILED, FRAME, REQUEST

Data = bytes | memoryview
T = TypeVar("T")

#: Seconds without a byte after which a job gives its worker up to others who wait for one.
STALL = 0.25
#: Pieces taken from a source ahead of what the worker has taken.
_PIECES_AHEAD = 4
#: struct ucred of SO_PEERCRED, unix(7): pid, uid, gid.
_CREDENTIALS = struct.Struct("3i")


class Stream(Protocol):
    """See `__call__`."""

    def __call__(self, offset: int, length: int, /) -> AsyncIterator[Data]:
        """Give the bytes [offset, offset + length) in pieces as they come."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a job reads: `size` bytes, any range by `stream`, which `partial(place.stream, layout)` is.

    ahead: so many bytes from the start on are needed for sure: they are asked for at once, and no worker is
    taken before the first of them is there.
    """

    stream: Stream
    size: int
    ahead: int = 0


class Clock:
    """The seconds a job has; they stand still while it waits for its source."""

    def __init__(self, seconds: float) -> None:
        self.scope = trio.CancelScope(deadline=trio.current_time() + seconds)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time spent inside does not count."""
        left = self.scope.deadline - trio.current_time()
        self.scope.deadline = math.inf
        try:
            yield
        finally:
            self.scope.deadline = trio.current_time() + left


class _Pull:
    """A range on its way: a task of its own takes it from the source, a few pieces ahead of the worker."""

    def __init__(self, source: Source, offset: int, length: int) -> None:
        self.at, self.end = offset, offset + length
        self._failure: Exception | None = None
        self._stream = source.stream(offset, length)
        self._held = memoryview(b"")
        self._pieces, self._arrived = trio.open_memory_channel[Data](_PIECES_AHEAD)
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Ends when the range is through, has failed, or is not wanted any more."""
        with self._scope, self._pieces:
            try:
                # Every iterator that comes from an `async def` with `yield` is a generator and wants closing.
                async with aclosing(cast(AsyncGenerator[Data, None], self._stream)) as pieces:
                    async for piece in pieces:
                        await self._pieces.send(piece)
            except trio.BrokenResourceError:
                pass
            except Exception as error:
                self._failure = error

    async def ready(self) -> None:
        """Wait for the next bytes. Raises what the source raised, BadBody when it ends too early."""
        while not self._held:
            try:
                self._held = memoryview(await self._arrived.receive())
            except trio.EndOfChannel:
                raise self._failure or BadBody(f"the source ended at {self.at} of {self.end}") from None

    async def take(self, most: int) -> memoryview:
        """The next bytes, at most so many. Raises as `ready`."""
        await self.ready()
        piece, self._held = self._held[:most], self._held[most:]
        self.at += len(piece)
        return piece

    def stop(self) -> None:
        """It is not wanted any more."""
        self._scope.cancel()
        self._arrived.close()


class Feed:
    """What one job reads, in several goes if it was given up. failure: what the source raised.

    stalled: the last go was given up for others. crowded: whether others wait for a worker.
    """

    def __init__(self, source: Source, crowded: Callable[[], bool], nursery: trio.Nursery) -> None:
        self.failure: Exception | None = None
        self.stalled = False
        self._source, self._crowded, self._nursery = source, crowded, nursery
        self._pull = self._begin(0, min(source.ahead, source.size))

    async def first(self) -> None:
        """Wait for the first of the bytes that are needed for sure. Raises what the source raises."""
        if self._pull.end:
            await self._pull.ready()

    async def settle(self) -> None:
        """Wait until the range that stalled is through: the next go finds it in the caches of its source."""
        self.stalled = False
        while self._pull.at < self._pull.end:
            await self._pull.take(self._pull.end)

    async def serve(
        self, job: Callable[[tuple[bytes, int]], Awaitable[T]], clock: Clock, *, patient: bool
    ) -> T:
        """`await job(address and size)`, with its worker served meanwhile. patient: never give it up."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("")  # Linux picks a free name in the abstract namespace: nothing to clean up
            listener.listen(1)
            listener.setblocking(False)
            async with background() as nursery:
                nursery.start_soon(self._serve, listener, clock, patient)
                return await job((listener.getsockname(), self._source.size))

    async def _serve(self, listener: socket.socket, clock: Clock, patient: bool) -> None:
        async with await _accepted(listener) as connection, trio.open_nursery() as nursery:
            session = _Session(connection)
            nursery.start_soon(session.listen)
            while (request := await session.next()) is not None:
                number, offset, length = request
                with session.scope:
                    await self._answer(session, number, offset, offset + length, clock, patient)

    async def _answer(
        self, session: _Session, number: int, at: int, end: int, clock: Clock, patient: bool
    ) -> None:
        while at < end:
            if self._pull.at != at or self._pull.end == at:
                self._pull.stop()
                self._pull = self._begin(at, end - at)
            try:
                with clock.stopped():
                    await self._arrival(patient)
                piece = await self._pull.take(end - at)
            except _Stalled:
                self.stalled = True
                await session.fail(number)
                break
            except Exception as error:
                self.failure = error
                await session.fail(number)
                break
            at += len(piece)
            await session.give(number, piece)

    async def _arrival(self, patient: bool) -> None:
        """Wait for the next bytes. Raises _Stalled when they do not come and others need the worker."""
        while True:
            with trio.move_on_after(math.inf if patient else STALL):
                return await self._pull.ready()
            if self._crowded():
                raise _Stalled

    def _begin(self, offset: int, length: int) -> _Pull:
        pull = _Pull(self._source, offset, length)
        if length:
            self._nursery.start_soon(pull.run)
        return pull


class _Stalled(Exception):
    """The source gives nothing while others wait for the worker."""


class _Session:
    """One connection: the latest request counts; what is sent is sent whole."""

    def __init__(self, connection: trio.SocketStream) -> None:
        self.scope = trio.CancelScope()
        self._connection = connection
        self._latest: tuple[int, int, int] | None = None
        self._changed = trio.Event()
        self._ended = False

    async def listen(self) -> None:
        """Take requests until the worker closes its side; each ends the answer to the one before."""
        received = b""
        while data := await self._receive():
            received += data
            whole = len(received) // REQUEST.size * REQUEST.size
            if whole:
                self._latest = REQUEST.unpack(received[whole - REQUEST.size : whole])
                received = received[whole:]
                self._wake()
        self._ended = True
        self._wake()

    async def next(self) -> tuple[int, int, int] | None:
        """The latest request that was not answered: number, offset, length; None when there will be none."""
        while self._latest is None and not self._ended:
            await self._changed.wait()
            self._changed = trio.Event()
        request, self._latest = self._latest, None
        self.scope = trio.CancelScope()
        return request

    async def give(self, number: int, piece: memoryview) -> None:
        """Send a frame."""
        await self._send(FRAME.pack(number, len(piece)), piece)

    async def fail(self, number: int) -> None:
        """Tell the worker that there will be no more."""
        await self._send(FRAME.pack(number, FAILED))

    async def _send(self, *parts: bytes | memoryview) -> None:
        # Half a frame would be the end of the connection. A worker that ends, or is ended, ends this wait.
        with trio.CancelScope(shield=True):
            try:
                for part in parts:
                    await self._connection.send_all(part)
            except trio.BrokenResourceError:
                self._ended = True
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _receive(self) -> bytes | bytearray:
        try:
            return await self._connection.receive_some()
        except trio.BrokenResourceError:
            return b""

    def _wake(self) -> None:
        self.scope.cancel()
        self._changed.set()


async def _accepted(listener: socket.socket) -> trio.SocketStream:
    """The connection of a process of this user; all others are turned away."""
    while True:
        await trio.lowlevel.wait_readable(listener)
        try:
            connection, _ = listener.accept()
        except BlockingIOError:  # whoever it was has gone again
            continue
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(found)[1] == os.getuid():
            connection.setblocking(False)
            return trio.SocketStream(trio.socket.from_stdlib_socket(connection))
        connection.close()
