"""Find and read the moov of a stored object with few ranged reads.

One read of the head; where the moov is not there, one more at the end of the media that brings a small rest
of the file whole, else the moov's header, and one for what of the moov is missing. An mdat is never read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, TypeVarTuple

import trio

from vfs import Damaged, NoMedia, Place
from vfs_mp4 import boxes, index
from vfs_mp4.boxes import Header
from vfs_mp4.index import Moov

T = TypeVar("T")
Args = TypeVarTuple("Args")
# The head holds ftyp and, of a fragmented file, moov and the first moof: 2 to 5 KiB with short GOPs. Bytes
# beyond are wasted, so a small file is read by less.
HEAD_SMALL, HEAD_BIG, BIG_FILE = 8 << 10, 16 << 10, 64 << 20
# Behind the mdat there is nothing but the moov in nearly every file: a rest of this size is read at once,
# be it small, or small beside the file (a moov has 12 to 20 bytes a sample).
REST_SMALL, REST_BIG, REST_PART = 64 << 10, 8 << 20, 50
_HOP = 4 << 10
# Top-level boxes before the moov; each one outside what was read costs a request.
_MAX_HOPS = 64
MAX_MOOV = 128 << 20
# A moov that claims to reach beyond the end of the object: this much of it is looked at.
_MAX_CUT_MOOV = 16 << 20
# Parsing more than this is done in a thread, so that the loop that serves the mount never waits for it.
_THREAD_BYTES = 16 << 10
_OUTSIDE = frozenset(
    (b"mdat", b"free", b"skip", b"wide", b"moof", b"mfra", b"uuid", b"pdin", b"meta", b"udta")
)
_OPENING = _OUTSIDE | frozenset(
    (b"ftyp", b"styp", b"sidx", b"moov", b"pnot", b"PICT", b"junk", b"ssix", b"emsg")
)


@dataclass(slots=True)
class Reader:
    """Reads a place in pieces that are kept while this reader lives.

    `peek` reads ahead by `reach`, so that the small questions that follow need no request of their own.
    """

    place: Place
    pieces: list[tuple[int, bytes]] = field(default_factory=list)

    async def peek(self, offset: int, length: int, reach: int = 0) -> bytes:
        """Bytes [offset, offset + length), short at the end of the object."""
        length = max(min(length, self.place.size - offset), 0)
        for start, data in self.pieces:
            if start <= offset and offset + length <= start + len(data):
                return data[offset - start : offset - start + length]
        if not length:
            return b""
        data = await self.place.read(offset, max(length, min(reach, self.place.size - offset)))
        self.pieces.append((offset, data))
        return data[:length]

    def drop(self, offset: int) -> None:
        """Forget the pieces that begin before `offset`: a walk only goes on."""
        self.pieces = [piece for piece in self.pieces if piece[0] >= offset]

    def knows(self, offset: int, length: int) -> bool:
        """Whether a peek would cost nothing."""
        return any(start <= offset and offset + length <= start + len(data) for start, data in self.pieces)

    async def header(self, offset: int, reach: int = 0) -> Header | None:
        """The box header at `offset`; None at the end. Raises Damaged for a size that is too small."""
        return boxes.parse_header(await self.peek(offset, 16, reach))


@dataclass(frozen=True, slots=True)
class Opened:
    """A moov and where it lies. end: offset of the byte after it (claimed, at most the object's size)."""

    moov: Moov
    offset: int
    end: int
    damage: tuple[str, ...]


def head_size(size: int) -> int:
    """Bytes to read of the start of an object of `size` bytes."""
    return min(size, HEAD_BIG if size >= BIG_FILE else HEAD_SMALL)


async def open_moov(reader: Reader, head: int | None = None) -> Opened:
    """Find, read and parse the moov. head: bytes to begin with, None = `head_size`.

    Raises NoMedia where there is none, Damaged where it is cut off.
    """
    size = reader.place.size
    if not size:
        raise NoMedia("the file is empty")
    at, reach, cut, jumped = 0, head or head_size(size), "", False
    for _ in range(_MAX_HOPS):
        box = await reader.header(at, reach)
        if box is None:
            break
        if at == 0 and box.kind not in _OPENING:
            raise NoMedia(f"not MP4: begins with {boxes.name_of(box.kind)!r}")
        if box.kind == b"moov":
            return await _read_moov(reader, at, box)
        end = at + box.size if box.size else size
        if end > size:
            cut = f": {boxes.name_of(box.kind)} claims {box.size} bytes, {size - at} are there"
        at = min(end, size)
        if not reader.knows(at, 16):
            reach = _HOP if jumped else _reach(size, size - at)
            jumped = True
    if cut:
        raise Damaged("no moov" + cut)
    raise NoMedia("no moov box")


def _reach(size: int, rest: int) -> int:
    """How much to read where the head ends: the whole rest of the file when it is little, else a part."""
    whole = rest <= REST_SMALL or rest <= min(REST_BIG, size // REST_PART)
    return rest if whole else REST_SMALL


async def _read_moov(reader: Reader, offset: int, head: Header) -> Opened:
    size = reader.place.size
    end = offset + head.size if head.size else size
    damage: tuple[str, ...] = ()
    length = min(end, size) - offset
    if end > size:
        damage = (f"moov claims {head.size} bytes, {length} are there",)
        length = min(length, _MAX_CUT_MOOV)
    if length > MAX_MOOV:
        raise Damaged(f"a moov of {length} bytes is over the limit of {MAX_MOOV}")
    data = await reader.peek(offset, length)
    moov = await off_loop(length, index.parse_moov, data, size)
    return Opened(moov, offset, min(end, size), damage)


async def off_loop(weight: int, work: Callable[[*Args], T], *arguments: *Args) -> T:
    """`work(*arguments)`, in a thread where it has `weight` bytes to look at and these are many."""
    if weight <= _THREAD_BYTES:
        return work(*arguments)
    return await trio.to_thread.run_sync(work, *arguments)
