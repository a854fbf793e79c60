"""HTTP, as much of it as S3 clients speak: requests in, answers out, bodies from socket to file and back."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl, unquote

#: SO_LINGER with zero seconds: closing sends a reset.
_RESET = struct.pack("ii", 1, 0)
_BUFFER = 1 << 20
#: Bodies that are read into memory: lists of parts, of keys.
_MOST_TOLD = 8 << 20


class Refusal(Exception):
    """An error as S3 tells it. number: R2's own. headers, detail: more of the head, and of the XML."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        number: int = 0,
        *,
        headers: Mapping[str, str] | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.number = number
        self.headers = headers or {}
        self.detail = detail


class Gone(Exception):
    """The client has left, or is to be left."""


@dataclass(frozen=True, slots=True)
class Window:
    """Bytes of a file."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent. body: bytes, or windows of files."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | tuple[Window, ...] = b""


class Request:
    """A request whose head has come. bucket, key: of its path, decoded. query: last values by name."""

    def __init__(self, reader: BinaryIO, method: str, target: str, headers: Mapping[str, str]) -> None:
        path, _, query = target.partition("?")
        _, bucket, *rest = path.split("/", 2) if path.startswith("/") else ("", "")
        self.method = method
        self.bucket = unquote(bucket)
        self.raw_key = rest[0] if rest else ""
        self.query = dict(parse_qsl(query, keep_blank_values=True))
        self.headers = headers
        self.received = 0
        self._reader = reader
        self._left = int(headers.get("content-length", "0"))

    @property
    def key(self) -> str:
        """The key. Raises Refusal where it is not UTF-8 or too long."""
        try:
            key = unquote(self.raw_key, errors="strict")
        except UnicodeDecodeError:
            raise Refusal(400, "InvalidObjectName", "The key is not UTF-8.", 10020) from None
        if len(key.encode()) > 1024:
            raise Refusal(400, "KeyTooLongError", "Your key is too long.", 10029)
        return key

    def told(self) -> bytes:
        """The whole of a small body."""
        if self._left > _MOST_TOLD:
            raise Refusal(400, "EntityTooLarge", "Your proposed upload exceeds the maximum size.", 10010)
        body = self._reader.read(self._left)
        self._count(len(body))
        return body

    def save(self, descriptor: int) -> tuple[int, str]:
        """Write the body into a file: its size and MD5. Raises Refusal where it is not what was signed."""
        size, digest = self._left, hashlib.md5(usedforsecurity=False)
        signed = self.headers.get("x-amz-content-sha256", "")
        sha = hashlib.sha256() if len(signed) == 64 else None
        buffer = memoryview(bytearray(min(_BUFFER, size or 1)))
        while self._left:
            piece = buffer[: self._reader.readinto(buffer[: self._left])]  # type: ignore[attr-defined]
            self._count(len(piece))
            digest.update(piece)
            if sha is not None:
                sha.update(piece)
            os.write(descriptor, piece)
        if sha is not None and sha.hexdigest() != signed:
            raise Refusal(400, "XAmzContentSHA256Mismatch", "The body is not the one that was signed.", 10050)
        return size, digest.hexdigest()

    def skip(self, most: int | None = None) -> None:
        """Read (so many bytes of) the rest of the body for nothing."""
        left = self._left if most is None else min(most, self._left)
        while left:
            count = len(self._reader.read(min(left, _BUFFER)))
            self._count(count)
            left -= count

    def _count(self, count: int) -> None:
        if not count and self._left:
            raise Gone
        self.received += count
        self._left -= count


def read_request(reader: BinaryIO) -> Request | None:
    """The next request of a connection; None at its end."""
    line = reader.readline(65536)
    while line == b"\r\n":
        line = reader.readline(65536)
    parts = line.decode("latin-1").split()
    if len(parts) != 3:
        return None
    headers: dict[str, str] = {}
    while (line := reader.readline(65536)) not in (b"\r\n", b"\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return Request(reader, parts[0], parts[1], headers)


def size_of(answer: Answer) -> int:
    """Bytes of its body."""
    if isinstance(answer.body, bytes):
        return len(answer.body)
    return sum(window.size for window in answer.body)


def send(sock: socket.socket, answer: Answer, *, without_body: bool) -> None:
    """Send an answer. Raises FileNotFoundError, before anything is sent, where a file of it is gone."""
    headers = {"Content-Length": str(size_of(answer)), "Date": _date(int(time.time())), "Server": "r2server"}
    if answer.status in (204, 304):
        del headers["Content-Length"]
    head = f"HTTP/1.1 {answer.status} {_phrase(answer.status)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in (headers | dict(answer.headers)).items())
    packet = head.encode("utf-8", "surrogateescape") + b"\r\n"
    if without_body or answer.status in (204, 304):
        sock.sendall(packet)
        return
    if isinstance(answer.body, bytes):
        sock.sendall(packet + answer.body)
        return
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(window.path.open("rb", buffering=0)) for window in answer.body]
        sock.sendall(packet)
        for window, file in zip(answer.body, files, strict=True):
            _send_file(sock, file.fileno(), window.offset, window.size)


def _send_file(sock: socket.socket, file: int, offset: int, left: int) -> None:
    while left:
        count = os.sendfile(sock.fileno(), file, offset, left)
        if not count:
            raise Gone
        offset, left = offset + count, left - count


def reset(sock: socket.socket) -> None:
    """End a connection as a crash does."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Unknown"


@lru_cache(maxsize=8)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def http_date(moment: float) -> str:
    """A time as headers tell it."""
    return _date(int(moment))
