"""The metrics for Prometheus over HTTP: on loopback or a unix socket, off unless asked for."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

import trio

from vfs.control import address
from vfs.errors import ConfigError
from vfs.telemetry import Status

log = logging.getLogger("vfs.metricsserver")

MAX_HEAD = 16 << 10
SECONDS = 10.0
CLIENTS = 8


async def serve_metrics(where: str, status: Status) -> None:
    """Answer `GET /metrics` until cancelled. where: `127.0.0.1:PORT`, `[::1]:PORT` or `unix:PATH`.

    One that cannot be opened is logged, and the mount goes on.
    """
    try:
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(_listen(where)))]
    except OSError as error:
        log.error("metrics.listen: %s: %s", where, error.strerror or error)
        return
    free = trio.CapacityLimiter(CLIENTS)

    async def handle(stream: trio.SocketStream) -> None:
        async with stream, free:
            with trio.move_on_after(SECONDS):
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await _answer(stream, status)

    try:
        await trio.serve_listeners(handle, listeners)
    finally:
        if where.startswith("unix:"):
            Path(where.removeprefix("unix:")).unlink(missing_ok=True)


def _listen(where: str) -> socket.socket:
    if where.startswith("unix:"):
        path = Path(where.removeprefix("unix:"))
        path.unlink(missing_ok=True)
        with address(path) as name:
            return _listening(socket.AF_UNIX, name)
    host, port = host_and_port(where)
    return _listening(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port))


def _listening(family: socket.AddressFamily, name: str | tuple[str, int]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_UNIX:
            os.fchmod(made.fileno(), 0o600)  # what bind makes has this mode from the beginning
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(name)
        made.listen(CLIENTS)
    except BaseException:
        made.close()
        raise
    return made


def host_and_port(where: str) -> tuple[str, int]:
    """Of `127.0.0.1:9464` or `[::1]:9464`. Raises ConfigError for an address that others reach."""
    host, _, port = where.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if host not in ("127.0.0.1", "::1", "localhost") or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"metrics.listen: {where!r}: give 127.0.0.1:PORT, [::1]:PORT or unix:PATH")
    return "127.0.0.1" if host == "localhost" else host, int(port)


async def _answer(stream: trio.SocketStream, status: Status) -> None:
    head = bytearray()
    while b"\r\n\r\n" not in head and len(head) < MAX_HEAD:
        if not (more := await stream.receive_some()):
            return
        head += more
    lines = head.decode("latin-1").split("\r\n")
    method, _, rest = lines[0].partition(" ")
    path = rest.split(" ")[0].split("?")[0]
    accept = next((v.strip() for n, _, v in (x.partition(":") for x in lines) if n.lower() == "accept"), "")
    if method not in ("GET", "HEAD") or path != "/metrics":
        await _send(stream, "404 Not Found", "text/plain", b"GET /metrics\n", method)
        return
    kind, body = status.exposition(accept)
    await _send(stream, "200 OK", kind, body, method)


async def _send(stream: trio.SocketStream, code: str, kind: str, body: bytes, method: str) -> None:
    head = (
        f"HTTP/1.1 {code}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    await stream.send_all(head.encode() + (b"" if method == "HEAD" else body))
