"""The rules of R2 that one request or object is held to."""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping

from tests.r2.answers import META
from tests.r2.state import Part, Piece, Stored
from tests.r2.wire import Refusal, Request

LEAST_PART = 5 << 20
_KEPT = ("content-type", "cache-control", "content-disposition", "content-encoding", "content-language")
_FAILED = "At least one of the pre-conditions you specified did not hold."


def matches(given: str, stored: Stored | None) -> bool:
    """Whether an object is one of those that a condition names: `*`, etags, weak or strong, quoted or not."""
    if stored is None:
        return False
    names = (name.strip().removeprefix("W/").strip('"') for name in given.split(","))
    return any(name in ("*", stored.etag) for name in names)


def failed() -> Refusal:
    """A condition does not hold."""
    return Refusal(412, "PreconditionFailed", _FAILED, 10031)


def check_write(headers: Mapping[str, str], now: Stored | None) -> None:
    """Raises Refusal where a write's condition does not hold."""
    holds = "if-match" not in headers or matches(headers["if-match"], now)
    if not holds or ("if-none-match" in headers and matches(headers["if-none-match"], now)):
        raise failed()


def check_parts(parts: list[Part]) -> None:
    """Raises Refusal where parts cannot be joined."""
    if not parts:
        raise Refusal(400, "MalformedXML", "The list of parts is empty.", 10040)
    first = parts[0].size
    if any(part.size != first for part in parts[:-1]) or parts[-1].size > first:
        raise Refusal(400, "InvalidPart", "All non-trailing parts must have the same length.", 10048)
    if len(parts) > 1 and first < LEAST_PART:
        raise Refusal(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum.", 10011)


def cut(pieces: tuple[Piece, ...], start: int, stop: int) -> tuple[Piece, ...]:
    """The pieces of [start, stop)."""
    found, at = [], 0
    for piece in pieces:
        begin, end = max(start, at), min(stop, at + piece.size)
        if begin < end:
            found.append(Piece(piece.blob, piece.offset + begin - at, end - begin))
        at += piece.size
    return tuple(found)


def check_signed(request: Request) -> None:
    """Raises Refusal for a request without a signature, or with a URL that was signed too long ago."""
    query = request.query
    if "X-Amz-Signature" in query:
        signed = calendar.timegm(time.strptime(query.get("X-Amz-Date", ""), "%Y%m%dT%H%M%SZ"))
        if time.time() > signed + int(query.get("X-Amz-Expires", "0")):
            raise Refusal(403, "ExpiredRequest", "Request has expired.", 10018)
    elif not request.headers.get("authorization", "").startswith("AWS4-HMAC-SHA256 "):
        raise Refusal(403, "AccessDenied", "Access Denied.", 10003)


def window_of(given: str, size: int) -> tuple[int, int] | None:
    """[start, stop) of a Range header; None for the whole. Raises Refusal where there is nothing in it."""
    first, dash, last = given.removeprefix("bytes=").partition("-")
    if not given.startswith("bytes=") or not dash or not (first + last).isdigit():
        return None
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= size or stop <= start:
        raise Refusal(416, "InvalidRange", "The requested range is not satisfiable.", 10039)
    return start, stop


def kept(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that an object keeps."""
    return {name: headers[name] for name in _KEPT if name in headers}


def metadata_of(headers: Mapping[str, str]) -> dict[str, str]:
    """Raises Refusal where it is too large."""
    told = {name[len(META) :]: value for name, value in headers.items() if name.startswith(META)}
    if sum(len(name) + len(value) for name, value in told.items()) > 8192:
        raise Refusal(400, "MetadataTooLarge", "Your metadata exceeds 8192 bytes.", 10012)
    return told
