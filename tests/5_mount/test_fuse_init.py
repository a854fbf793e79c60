"""The answer to INIT: what is added to it, when, and that all else goes through as it is."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from vfs.fuse_init import PARALLEL_DIROPS, Opening

OTHER = 1 << 3


def request(flags: int, opcode: int = 26) -> bytes:
    """INIT as a kernel sends it: header, versions, read-ahead, flags, and what newer ones add."""
    return (
        struct.pack("=IIQQIIII", 104, opcode, 2, 0, 0, 0, 0, 0)
        + struct.pack("=IIII", 7, 45, 1 << 17, flags)
        + bytes(48)
    )


def answer(flags: int, error: int = 0) -> bytes:
    return struct.pack("=IiQ", 80, error, 2) + struct.pack("=IIII", 7, 31, 1 << 17, flags) + bytes(48)


def exchange(asked: bytes, answered: bytes) -> tuple[bytes, bytes, Opening]:
    """What libfuse reads and what the kernel gets, by way of an opening. The device is a socket."""
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        kernel.settimeout(5)
        kernel.send(asked)
        opening = Opening(device.fileno())
        assert opening.step()
        read = os.read(device.fileno(), 1 << 20)
        os.write(device.fileno(), answered)
        assert not opening.step()
        got = kernel.recv(1 << 16)
        # From here on the session talks to the kernel itself, and steps cost nothing.
        kernel.send(b"next")
        assert not opening.step()
        assert os.read(device.fileno(), 100) == b"next"
        return read, got, opening


def test_what_the_kernel_has_is_granted() -> None:
    asked = request(PARALLEL_DIROPS | OTHER)
    read, got, opening = exchange(asked, answer(OTHER))
    assert read == asked
    assert got == answer(OTHER | PARALLEL_DIROPS)
    assert opening.granted == PARALLEL_DIROPS


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (request(OTHER), answer(OTHER)),  # a kernel that has it not
        (request(PARALLEL_DIROPS), answer(0, error=-71)),  # refused
        (request(PARALLEL_DIROPS, opcode=1), answer(0)),  # no INIT
        (request(PARALLEL_DIROPS), answer(0)[:24]),  # of a version before flags
        (request(PARALLEL_DIROPS)[:40], answer(0)),
    ],
)
def test_all_else_goes_through_as_it_is(asked: bytes, answered: bytes) -> None:
    read, got, opening = exchange(asked, answered)
    assert (read, got, opening.granted) == (asked, answered, 0)


def test_without_a_first_request_nothing_is_put_in_between() -> None:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        opening = Opening(device.fileno())
        assert not opening.step()
        kernel.send(request(PARALLEL_DIROPS))
        assert not opening.step()
        assert os.read(device.fileno(), 1000) == request(PARALLEL_DIROPS)
