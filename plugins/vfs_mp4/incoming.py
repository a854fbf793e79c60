"""Bytes of a file that are looked through while they come, and given up when enough was seen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager

from vfs import Layout
from vfs_mp4 import walk
from vfs_mp4.probe import Reader

#: A box header and the first child of a moof, up to its sequence number (ISO/IEC 14496-12 8.8.5).
MOOF_HEAD = 24
# Places in one window that are looked at: media can be full of the letters.
_MAX_TRIED = 64
# Behind a moof: the header of its mdat, and of the box before it if there is one.
_BEHIND = 64


class Incoming:
    """Bytes from an offset on."""

    def __init__(self, reader: Reader, pieces: AsyncIterator[bytes | memoryview], start: int) -> None:
        self._reader, self._pieces = reader, pieces
        self._start, self._data = start, bytearray()
        self._shown: tuple[int, bytes] | None = None

    @property
    def end(self) -> int:
        """Offset behind the last byte that is here."""
        return self._start + len(self._data)

    async def has(self, end: int) -> bool:
        """Wait for the bytes before an offset; False where they do not come."""
        while self.end < end:
            piece = await anext(self._pieces, None)
            if piece is None:
                return False
            self._data += piece
        return True

    def hide(self) -> None:
        """Take it back: bytes of a request that was given up steer the search, nothing is made of them."""
        if self._shown in self._reader.pieces:
            self._reader.pieces.remove(self._shown)

    def show(self) -> None:
        """Let the reader have what is here."""
        self.hide()
        self._shown = (self._start, bytes(self._data))
        self._reader.pieces.append(self._shown)

    async def find(self, low: int) -> int | None:
        """Where from `low` on a moof could be, of which all is here; None where none comes."""
        while True:
            self._drop(low)
            found = next(candidates(self._data, self._start, self.end), None)
            if found is not None:
                at = found - self._start
                await self.has(found + int.from_bytes(self._data[at : at + 4], "big") + _BEHIND)
                return found
            low = max(low, self.end - MOOF_HEAD)
            if not await self.has(self.end + 1):
                return None

    def _drop(self, low: int) -> None:
        """Forget what is before an offset."""
        gone = min(max(low - self._start, 0), len(self._data))
        del self._data[:gone]
        self._start += gone


@asynccontextmanager
async def incoming(reader: Reader, start: int, stop: int) -> AsyncIterator[Incoming]:
    """Bytes [start, stop) of a file as they come, in one request that ends with the context."""
    layout = Layout((reader.place.extent(start, stop - start),))
    async with aclosing(reader.place.stream(layout)) as pieces:  # type: ignore[type-var]
        media = Incoming(reader, pieces, start)
        try:
            yield media
        finally:
            media.hide()


def candidates(data: bytes | bytearray, low: int, end: int) -> Iterator[int]:
    """Offsets in [low, end) where the head of a moof could be; `data` begins at `low`."""
    at, tried = data.find(b"moof"), 0
    while at >= 0 and tried < _MAX_TRIED and low + at - 4 < end:
        size = int.from_bytes(data[at - 4 : at], "big") if at >= 4 else 0
        if MOOF_HEAD <= size <= walk.MAX_MOOF and data[at + 8 : at + 12] == b"mfhd":
            tried += 1
            yield low + at - 4
        at = data.find(b"moof", at + 1)
