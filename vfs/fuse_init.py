"""What the kernel is told at the beginning of a session, beyond what pyfuse3 lets one say.

libfuse answers INIT, the first request of each mount, and names the features it wants; pyfuse3 has no way to
add one. `Opening` therefore stands between the two for that one request: the session's descriptor leads to a
socket meanwhile, the answer gets `FUSE_PARALLEL_DIROPS` and goes on to the kernel. Without it the kernel
holds a lock of the folder during each lookup: while one waits for the store, everybody else who looks a name
up in that folder waits too, in the kernel, where no signal ends it.

Layouts: linux/fuse.h, `struct fuse_in_header`, `fuse_init_in`, `fuse_out_header`, `fuse_init_out`.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct

log = logging.getLogger("vfs.fuse_init")

PARALLEL_DIROPS = 1 << 18
#: Who answers takes away set-user-ID bits when a file is written to. The kernel then need not ask for
#: `security.capability` before each write, but once for each file.
HANDLE_KILLPRIV_V2 = 1 << 28
_INIT = 26
#: More than the largest request: with less room the kernel refuses to be read.
_ROOM = 2 << 20
_IN = struct.Struct("=II")  # length, opcode
_OUT = struct.Struct("=Ii")  # length, error
#: Where `flags` stands in the request and in the answer, their headers included.
_FLAGS_IN, _FLAGS_OUT = 40 + 12, 16 + 12
_FLAGS = struct.Struct("=I")


class Opening:
    """INIT of one session. descriptor: its /dev/fuse, whose first request was not read yet."""

    def __init__(self, descriptor: int, wanted: int = PARALLEL_DIROPS) -> None:
        self.granted = 0
        self._descriptor = descriptor
        self._wanted = wanted
        self._kernel: int | None = None
        self._ours: socket.socket | None = None
        self._over = False

    def step(self) -> bool:
        """To be called before each wait for a request. True when there is one to be read: INIT itself."""
        if self._over:
            return False
        if self._kernel is None:
            return self._hand_over()
        self._answer()
        return False

    def _hand_over(self) -> bool:
        """Read INIT, and put it where libfuse will read it."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        if not poll.poll(0):
            self._over = True
            return False
        self._kernel = os.dup(self._descriptor)
        request = os.read(self._kernel, _ROOM)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            os.dup2(theirs.fileno(), self._descriptor, inheritable=False)
        self._ours.setblocking(False)
        self._ours.send(request)
        if len(request) >= _FLAGS_IN + 4 and _IN.unpack_from(request)[1] == _INIT:
            self._wanted &= _FLAGS.unpack_from(request, _FLAGS_IN)[0]  # what this kernel has
        else:
            self._wanted = 0
        return True

    def _answer(self) -> None:
        """Give the kernel libfuse's answer and what we want, and the session its descriptor back."""
        assert self._kernel is not None
        assert self._ours is not None
        self._over = True
        try:
            answer = bytearray(self._ours.recv(1 << 16))
            if len(answer) >= _FLAGS_OUT + 4 and _OUT.unpack_from(answer)[1] == 0:
                flags = _FLAGS.unpack_from(answer, _FLAGS_OUT)[0]
                _FLAGS.pack_into(answer, _FLAGS_OUT, flags | self._wanted)
                self.granted = self._wanted
            os.write(self._kernel, answer)
        finally:
            os.dup2(self._kernel, self._descriptor, inheritable=False)
            os.close(self._kernel)
            self._ours.close()
        log.debug("INIT: parallel lookups in a folder: %s", "yes" if self.granted else "no")
