"""The heads of HTTP/1.1 requests and answers: as little as a proxy needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class Head:
    """First line and headers; the bytes of both are kept as they came until one is changed."""

    first: str
    headers: list[tuple[str, str]]
    raw: bytes | None = None

    @classmethod
    def parse(cls, raw: bytes) -> Head:
        """From the bytes through the empty line."""
        first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        pairs = [line.partition(":")[::2] for line in lines]
        return cls(first, [(name.strip(), value.strip()) for name, value in pairs], raw)

    def get(self, name: str, default: str = "") -> str:
        """The value of a header, whatever its case."""
        return next((v for n, v in self.headers if n.lower() == name.lower()), default)

    def change(self, changes: Mapping[str, str | None]) -> None:
        """Set headers (None removes)."""
        lower = {name.lower() for name in changes}
        kept = [(n, v) for n, v in self.headers if n.lower() not in lower]
        self.headers = kept + [(n, v) for n, v in changes.items() if v is not None]
        self.raw = None

    def rename(self, first: str) -> None:
        """Another first line."""
        self.first, self.raw = first, None

    def encode(self) -> bytes:
        """As bytes, through the empty line."""
        if self.raw is not None:
            return self.raw
        lines = [self.first, *(f"{name}: {value}" for name, value in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    @property
    def length(self) -> int | None:
        """Content-Length, None where there is none."""
        given = self.get("content-length")
        return int(given) if given.isdigit() else None

    @property
    def is_chunked(self) -> bool:
        """The body comes in chunks."""
        return "chunked" in self.get("transfer-encoding").lower()

    @property
    def closes(self) -> bool:
        """The sender closes the connection afterwards."""
        return "close" in self.get("connection").lower() or self.first.startswith("HTTP/1.0")

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.first.split(" ", 2)[1])

    @property
    def method(self) -> str:
        """Of a request."""
        return self.first.split(" ", 1)[0]

    @property
    def target(self) -> str:
        """Of a request: path and query."""
        return self.first.split(" ")[1]


def shifted(range_header: str, by: int) -> str:
    """`bytes=A-B` moved by so many bytes, the other way where it would begin before 0."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", range_header)
    if match is None:
        return range_header
    start = int(match[1])
    by = by if start < by else -by
    return f"bytes={start + by}-{int(match[2]) + by if match[2] else ''}"


def asked_range(range_header: str, content_range: str) -> str:
    """The Content-Range that would answer what was asked for."""
    match = re.fullmatch(r"bytes=(\d+)-(\d+)", range_header)
    return f"bytes {match[1]}-{match[2]}/{content_range.rpartition('/')[2]}" if match else content_range


def one_off(content_range: str) -> str:
    """A Content-Range that is one byte further on."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(.*)", content_range)
    if match is None:
        return "bytes 1-1/1"
    return f"bytes {int(match[1]) + 1}-{int(match[2]) + 1}/{match[3]}"
