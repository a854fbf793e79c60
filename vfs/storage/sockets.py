"""A TCP socket that fills large buffers in one call.

Python's sockets with a timeout do not block: each call polls, takes what has come so far, and needs the
interpreter lock again for the next one, some 8,000 times for half a gigabyte. Here the kernel waits (its own
timeouts, MSG_WAITALL) and a thread comes back when its buffer is full.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

#: Buffers from this size on are filled: below are the heads of answers, whose end is not known before.
FILLED = 16 * 1024
# Not the enum's member: it makes a new one of each sum.
_FILL = int(socket.MSG_WAITALL)


class FillingSocket(socket.socket):
    """A connected socket. With a timeout it blocks, and raises TimeoutError as others do.

    Where a buffer is filled, silence of half of the timeout counts: what came before it may be there already.
    """

    __slots__ = ("_patience", "_set")

    @classmethod
    def of(cls, sock: socket.socket) -> FillingSocket:
        """The connection of another socket, which is not used any more."""
        timeout = sock.gettimeout()
        made = cls(sock.family, sock.type, sock.proto, sock.detach())
        made.settimeout(timeout)
        return made

    def settimeout(self, value: float | None, /) -> None:
        """Seconds without a byte, at most; None waits for ever. Zero (do not block) is not possible here."""
        super().settimeout(None)
        self._patience = self._set = value
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.setsockopt(socket.SOL_SOCKET, option, _timeval(value))

    def gettimeout(self) -> float | None:
        """What was set."""
        return self._patience

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> int:
        """Bytes received; fewer than a large buffer takes only at the end, or after silence."""
        filled = len(buffer) >= FILLED and not nbytes
        self._allow(self._patience / 2 if filled and self._patience is not None else self._patience)
        try:
            return super().recv_into(buffer, nbytes, flags | _FILL if filled else flags)
        except BlockingIOError:
            raise TimeoutError("timed out") from None

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send all of it."""
        try:
            super().sendall(data, flags)
        except BlockingIOError:
            raise TimeoutError("timed out") from None

    def _allow(self, value: float | None) -> None:
        if value != self._set:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(value))
            self._set = value


def _timeval(seconds: float | None) -> bytes:
    """`struct timeval`; the kernel takes zero for ever."""
    whole, rest = divmod(max(seconds, 1e-3), 1) if seconds is not None else (0, 0)
    return struct.pack("ll", int(whole), int(rest * 1e6))
