"""Bytes from socket to socket without passing through Python, and a bandwidth shared by all of them."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable

#: fcntl(2): set the capacity of a pipe; 1 MiB is what an unprivileged user may have.
F_SETPIPE_SZ = 1031
PIPE_BYTES = 1 << 20
#: With a bandwidth limit, bytes go in pieces that take about this long (seconds), so that connections share.
PIECE_SECONDS = 0.004
SMALLEST_PIECE = 8 * 1024


class Closed(Exception):
    """The other side ended the connection."""


class Bandwidth:
    """Bytes per second in all; None = no limit."""

    def __init__(self, rate: float | None = None) -> None:
        self.rate = rate
        self._lock = threading.Lock()
        self._free = 0.0

    def piece(self, wanted: int) -> int:
        """How many bytes to send at one time."""
        rate = self.rate
        if not rate:
            return min(wanted, PIPE_BYTES)
        return min(wanted, max(SMALLEST_PIECE, int(rate * PIECE_SECONDS)))

    def wait(self, count: int) -> None:
        """Return when `count` bytes have had their time on the line; callers are served in turn."""
        rate = self.rate
        if not rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now) + count / rate
            pause = self._free - now
        # Sleeping less than the timer can tell apart only makes the line slower than asked for.
        if pause > 0.001:
            time.sleep(pause)


class Stream:
    """A socket with what was read from it too much."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.ahead = bytearray()

    def head(self, limit: int = 1 << 20) -> bytes | None:
        """Everything through the empty line; None when the connection ended before a first byte.

        Raises Closed when it ends in the middle.
        """
        while (end := self.ahead.find(b"\r\n\r\n")) < 0:
            more = self.sock.recv(65536)
            if not more:
                if self.ahead:
                    raise Closed("in the middle of a head")
                return None
            self.ahead += more
            if len(self.ahead) > limit:
                raise Closed("a head without end")
        head = bytes(self.ahead[: end + 4])
        del self.ahead[: end + 4]
        return head

    def line(self) -> bytes:
        """Through the next newline."""
        while (end := self.ahead.find(b"\n")) < 0:
            self.fill()
        line = bytes(self.ahead[: end + 1])
        del self.ahead[: end + 1]
        return line

    def fill(self) -> None:
        """At least one more byte read ahead. Raises Closed."""
        more = self.sock.recv(65536)
        if not more:
            raise Closed("in the middle of a body")
        self.ahead += more

    def take(self, most: int) -> bytes:
        """1 to `most` bytes. Raises Closed."""
        if not self.ahead:
            self.fill()
        part = bytes(self.ahead[:most])
        del self.ahead[:most]
        return part


class Pipe:
    """Moves bytes from one socket to another inside the kernel (splice(2)). One per thread."""

    def __init__(self, bandwidth: Bandwidth, passed: Callable[[int], None]) -> None:
        self._bandwidth = bandwidth
        self._passed = passed
        self._ends: tuple[int, int] | None = None

    def move(self, source: Stream, target: socket.socket, count: int | None) -> int:
        """`count` bytes (None = to the end of the connection). Raises Closed when there are fewer."""
        done = 0
        while count is None or done < count:
            piece = self._bandwidth.piece(PIPE_BYTES if count is None else count - done)
            if source.ahead:
                part = source.take(piece)
                moved = len(part)
                self._bandwidth.wait(moved)
                self._passed(moved)
                target.sendall(part)
            else:
                moved = self._spliced(source.sock, target, piece)
            if not moved:
                if count is None:
                    return done
                raise Closed(f"{count - done} bytes short")
            done += moved
        return done

    def close(self) -> None:
        """Close the pipe."""
        if self._ends is not None:
            for end in self._ends:
                os.close(end)
            self._ends = None

    def _spliced(self, source: socket.socket, target: socket.socket, piece: int) -> int:
        if self._ends is None:
            self._ends = os.pipe2(os.O_CLOEXEC)
            fcntl.fcntl(self._ends[1], F_SETPIPE_SZ, PIPE_BYTES)
        reading, writing = self._ends
        moved = left = os.splice(source.fileno(), writing, piece)
        self._bandwidth.wait(moved)
        self._passed(moved)  # before whoever gets the bytes can ask
        while left:
            left -= os.splice(reading, target.fileno(), left)
        return moved
