"""Ports for servers of tests."""

from __future__ import annotations

import random
import socket

#: Linux gives ports from 32768 on to connections: one may have it before its server listens, or while that is
#: down; and who asks for it then may even be connected to itself.
PORTS = range(10_000, 32_768)
#: Not the numbers of `random`, which tests begin anew: processes would all choose the same.
_CHANCE = random.SystemRandom()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has at this moment, and that the kernel gives to nobody."""
    while True:
        port = _CHANCE.choice(PORTS)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
