"""The worker's side of a job that reads from the daemon: a file whose ranges are asked for over a socket.

Imported in worker processes, so it imports next to nothing. The protocol, all integers little-endian:
a request is (number, offset, length), and the daemon answers with frames (number, length, bytes) until that
range is through. A new request ends the one before; frames of older ones are skipped. The length FAILED
ends the job's reading: what went wrong is known to the daemon, which raises it there.
"""

from __future__ import annotations

import io
import signal
import socket
import struct
from typing import TYPE_CHECKING

from vfs.errors import Unavailable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

REQUEST = struct.Struct("<IQQ")
FRAME = struct.Struct("<II")
#: In place of a frame's length: there will be no more bytes.
FAILED = 0xFFFF_FFFF

#: Asked for at a new position; doubled while reading goes on in sequence, up to the largest.
_FIRST_WINDOW, _LAST_WINDOW = 64 << 10, 4 << 20
#: A hole that is read over rather than asked around.
_SKIP = 128 << 10


class WorkerFile(io.RawIOBase):
    """`size` bytes that the daemon has or fetches. Reads are full but at the end; bytes come as they arrive.

    Raises Unavailable when the daemon gives no more: the caller of `in_worker` gets the true reason.
    """

    def __init__(self, address: bytes, size: int) -> None:
        super().__init__()
        self.size = size
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        self._at = 0
        # Of the request that runs: its number, the offset of the next byte to arrive, and its end.
        self._number = self._next = self._end = 0
        self._window = _FIRST_WINDOW
        # Of the frame that is being received: bytes still to come, and whether they are of this request.
        self._left, self._current = 0, False

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The offset of the next byte to be read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Costs nothing until something is read. Raises ValueError before the start."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}")
        self._at = base + offset
        return self._at

    def expect(self, length: int) -> None:
        """Ask at once for the next `length` bytes, which will be read in sequence."""
        length = min(length, self.size - self._at)
        if length > 0 and not self._next <= self._at < self._at + length <= self._end:
            self._ask(length)

    def read(self, size: int | None = -1, /) -> bytes:
        """`size` bytes (negative or None: all that is left), fewer only at the end."""
        left = max(0, self.size - self._at)
        buffer = bytearray(left if size is None or size < 0 else min(size, left))
        self.readinto(buffer)
        return bytes(buffer)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill the buffer, short only at the end."""
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self.size - self._at)]
        if len(view):
            self._position(len(view))
        got = 0
        while got < len(view):
            if self._next == self._end:
                self._ask(len(view) - got)
            count = self._receive(view[got:])
            got += count
            self._at += count
        return got

    def close(self) -> None:
        """End the connection."""
        if not self.closed:
            self._socket.close()
        super().close()

    def _position(self, wanted: int) -> None:
        """Make the next byte to arrive the one at the read position."""
        hole = self._at - self._next
        if not hole:
            return
        if not 0 < hole <= _SKIP or self._at >= self._end:
            self._ask(wanted)
            return
        scratch = memoryview(bytearray(min(hole, 16 << 10)))
        while hole:
            hole -= self._receive(scratch[:hole])

    def _ask(self, wanted: int) -> None:
        in_sequence = self._number > 0 and self._at == self._end
        self._window = min(self._window * 2, _LAST_WINDOW) if in_sequence else _FIRST_WINDOW
        length = min(max(wanted, self._window), self.size - self._at)
        self._number += 1
        self._next, self._end, self._current = self._at, self._at + length, False
        try:
            self._socket.sendall(REQUEST.pack(self._number, self._at, length))
        except OSError:
            raise Unavailable("the daemon takes no more requests") from None

    def _receive(self, view: memoryview) -> int:
        """Some of the next bytes of the request that runs."""
        while not (self._left and self._current):
            self._next_frame()
        count = self._take(view[: self._left])
        self._left -= count
        self._next += count
        return count

    def _next_frame(self) -> None:
        scratch = memoryview(bytearray(min(self._left, 256 << 10)))
        while self._left:
            self._left -= self._take(scratch[: self._left])
        header = memoryview(bytearray(FRAME.size))
        got = 0
        while got < FRAME.size:
            got += self._take(header[got:])
        number, length = FRAME.unpack(header)
        if length == FAILED:
            raise Unavailable("the daemon could not give the bytes")
        self._left, self._current = length, number == self._number

    def _take(self, view: memoryview) -> int:
        try:
            count = self._socket.recv_into(view, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            count = self._wait_for(view)
        except OSError:
            count = 0
        if not count:
            raise Unavailable("the daemon has gone")
        return count

    def _wait_for(self, view: memoryview) -> int:
        """Receive; the job's alarm stands still meanwhile, since its seconds are for computing."""
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            return self._socket.recv_into(view)
        except OSError:
            return 0
        finally:
            signal.setitimer(signal.ITIMER_REAL, left)
