"""Sockets that fill large buffers: in one call, with timeouts, and whoever ends them is heard."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from vfs.storage.sockets import FILLED, FillingSocket


@pytest.fixture
def pair() -> Iterator[tuple[FillingSocket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        plain = socket.create_connection(server.getsockname(), timeout=5)
        other, _ = server.accept()
    with FillingSocket.of(plain) as ours, other:
        yield ours, other


def test_a_large_buffer_is_filled_from_many_segments_in_one_call(
    pair: tuple[FillingSocket, socket.socket],
) -> None:
    ours, other = pair
    body = bytes(range(256)) * 4096

    def send() -> None:
        for at in range(0, len(body), 10_000):
            other.sendall(body[at : at + 10_000])

    sender = threading.Thread(target=send)
    sender.start()
    room = bytearray(len(body))
    assert ours.recv_into(memoryview(room)) == len(body)
    sender.join()
    assert room == body


def test_small_reads_take_what_there_is(pair: tuple[FillingSocket, socket.socket]) -> None:
    ours, other = pair
    other.sendall(b"HTTP/1.1 200 OK")
    assert ours.recv_into(bytearray(FILLED - 1)) == 15


@pytest.mark.parametrize("size", [100, FILLED])
def test_silence_is_a_timeout(pair: tuple[FillingSocket, socket.socket], size: int) -> None:
    ours, _ = pair
    ours.settimeout(0.1)
    assert ours.gettimeout() == 0.1
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        ours.recv_into(bytearray(size))
    assert 0.04 < time.monotonic() - began < 3


def test_no_timeout_after_one(pair: tuple[FillingSocket, socket.socket]) -> None:
    ours, _ = pair
    for value, allowed in ((0.25, 250_000), (None, 0)):
        ours.settimeout(value)
        assert ours.gettimeout() == value
        kernels = struct.unpack("ll", ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))
        assert kernels[0] == 0
        assert allowed <= kernels[1] <= allowed + 10_000, "it counts in ticks"


def test_what_came_before_the_silence_is_given(pair: tuple[FillingSocket, socket.socket]) -> None:
    ours, other = pair
    ours.settimeout(0.1)
    other.sendall(b"x" * 1000)
    room = memoryview(bytearray(FILLED))
    assert ours.recv_into(room) == 1000
    with pytest.raises(TimeoutError):
        ours.recv_into(room)


def test_the_end_comes_after_what_came(pair: tuple[FillingSocket, socket.socket]) -> None:
    ours, other = pair
    other.sendall(b"x" * 1000)
    other.shutdown(socket.SHUT_WR)
    room = memoryview(bytearray(FILLED))
    assert ours.recv_into(room) == 1000
    assert ours.recv_into(room) == 0


def test_another_thread_ends_a_call_that_waits(pair: tuple[FillingSocket, socket.socket]) -> None:
    ours, other = pair
    got: list[int] = []
    reader = threading.Thread(target=lambda: got.append(ours.recv_into(bytearray(FILLED))))
    reader.start()
    other.sendall(b"x" * 10)
    ours.shutdown(socket.SHUT_RDWR)
    reader.join(5)
    assert not reader.is_alive()
    assert len(got) == 1
    assert got[0] < FILLED
