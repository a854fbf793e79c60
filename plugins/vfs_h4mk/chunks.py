"""The chunk chain of a container: framing of both variants, and what a walk has found so far. Pure.

Two formats share the magic `H4MK`. *transport-be*: an 8-byte head, then chunks `tag[4] u32 size u32 crc`
(CRC-32 of the payload alone) and payload, to the end of the file. *media-kernel-le*: a 16-byte head, then
chunks `tag[4] u32 flags u32 size`, payload, u32 CRC-32 of header and payload; a CRC-32 of everything ends it.
"""

from __future__ import annotations

import json
import struct
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from vfs import NoMedia, Unsupported

MAGIC = b"H4MK"
#: Bytes that tell the variants apart.
HEAD = 8
#: A chunk header in either variant.
HEADER = 12
#: Of a `CORE` of media-kernel-le: "H4TB", u16 track, u16 0 stand before the opaque bytes.
BLOCK_HEAD = 8
#: Chunks of one container at most: 120 MB of tables.
MAX_CHUNKS = 4_000_000
CORE, SEEK, META, SAFE, VERI, TRAK, NOTE, TSEK = (
    b"CORE", b"SEEK", b"META", b"SAFE", b"VERI", b"TRAK", b"NOTE", b"TSEK",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Framing:
    """How one variant frames its chunks. start: offset of the first. after: bytes between a payload and the
    next header. footer: bytes after the last chunk. known: the tags it writes.
    """

    variant: str
    order: str
    start: int
    after: int
    footer: int
    known: frozenset[bytes]

    def header(self, data: bytes | memoryview, at: int = 0) -> tuple[bytes, int, int]:
        """Tag, size of the payload, and the CRC (big endian) or the flags (little endian) of a chunk."""
        tag, one, two = struct.unpack_from(self.order + "4sII", data, at)
        return (tag, one, two) if self.order == ">" else (tag, two, one)

    def crc_fits(self, framed: bytes | memoryview) -> bool:
        """A whole chunk, header to its last byte: does the stored CRC fit?"""
        if self.order == ">":
            return zlib.crc32(framed[HEADER:]) == int.from_bytes(framed[8:12], "big")
        return zlib.crc32(framed[:-4]) == int.from_bytes(framed[-4:], "little")


TRANSPORT = Framing("transport-be", ">", 8, 0, 0, frozenset((CORE, SEEK, META, SAFE, VERI)))
KERNEL = Framing("media-kernel-le", "<", 16, 4, 4, frozenset((CORE, META, SAFE, VERI, TRAK, NOTE, TSEK)))


def framing_of(head: bytes) -> Framing:
    """The variant of a file by its first 8 bytes. Raises NoMedia for no container, Unsupported by version."""
    if len(head) < HEAD or head[:4] != MAGIC:
        raise NoMedia("not an H4MK container: it does not begin with the magic")
    version = head[4:6]
    if version == b"\x00\x01":
        return TRANSPORT
    if version == b"\x01\x00":
        return KERNEL
    raise Unsupported(f"H4MK version {int.from_bytes(version, 'big')} is not known (1 is)")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk. header, payload: offsets in the file. end: after its last byte. word: CRC or flags."""

    number: int
    tag: bytes
    header: int
    size: int
    word: int
    end: int

    @property
    def payload(self) -> int:
        """Offset of the payload."""
        return self.header + HEADER


@dataclass(eq=False)
class Chain:
    """What is known of the chunks of one container; grows while it is walked.

    limit: where chunks must end. next: where the next header is expected. stuck: the header that cannot be
    one, None while all is well. ended: the walk is over. trailing: bytes after the last chunk that are none.
    broken: blocks (by index) whose framing is damaged. gaps: byte ranges that belong to no chunk. problems:
    the same in words.
    """

    framing: Framing
    file_size: int
    next: int = 0
    stuck: int | None = None
    ended: bool = False
    trailing: int = 0
    broken: set[int] = field(default_factory=set)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _tags: bytearray = field(default_factory=bytearray)
    _headers: array[int] = field(default_factory=lambda: array("Q"))
    _sizes: array[int] = field(default_factory=lambda: array("Q"))
    _words: array[int] = field(default_factory=lambda: array("I"))
    cores: array[int] = field(default_factory=lambda: array("I"))
    tracks: array[int] = field(default_factory=lambda: array("H"))
    _first: dict[bytes, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.next = self.next or self.framing.start

    @property
    def limit(self) -> int:
        """Offset where the last chunk must end."""
        return self.file_size - self.framing.footer

    @property
    def step(self) -> int:
        """Bytes of a header that the walk looks at: of a block of media-kernel-le its track, too."""
        return HEADER + (BLOCK_HEAD if self.framing is KERNEL else 0)

    @property
    def nbytes(self) -> int:
        """Memory held, about."""
        return 64 + 30 * len(self._headers)

    def __len__(self) -> int:
        """Chunks found so far. (A thread that adds one does so last with its word.)"""
        return len(self._words)

    def __getitem__(self, number: int) -> Chunk:
        """A chunk by its place in the file. Raises IndexError."""
        header, size = self._headers[number], self._sizes[number]
        tag = bytes(self._tags[4 * number : 4 * number + 4])
        end = header + HEADER + size + self.framing.after
        return Chunk(number, tag, header, size, self._words[number], end)

    def __iter__(self) -> Iterator[Chunk]:
        """All chunks found so far."""
        return (self[number] for number in range(len(self)))

    def block(self, index: int) -> Chunk:
        """The chunk of a block. Raises IndexError where it was not found (yet)."""
        return self[self.cores[index]]

    def first(self, tag: bytes) -> Chunk | None:
        """The first chunk of a tag: of several META, SAFE, SEEK or VERI it is the one that counts."""
        number = self._first.get(tag)
        return None if number is None else self[number]

    def to_bytes(self) -> bytes:
        """Everything, to be kept beyond this process."""
        columns = [self._headers, self._sizes, self._words, self.tracks]
        told = {
            "next": self.next,
            "stuck": self.stuck,
            "ended": self.ended,
            "trailing": self.trailing,
            "broken": sorted(self.broken),
            "gaps": self.gaps,
            "problems": self.problems,
            "lengths": [len(self._tags), *(len(column) * column.itemsize for column in columns)],
        }
        head = json.dumps(told).encode()
        rows = b"".join(column.tobytes() for column in columns)
        return struct.pack("<I", len(head)) + head + bytes(self._tags) + rows

    @classmethod
    def from_bytes(cls, framing: Framing, file_size: int, data: bytes) -> Chain:
        """What `to_bytes` gave, of the same version of the same file. Raises ValueError for anything else."""
        try:
            (length,) = struct.unpack_from("<I", data)
            told = json.loads(data[4 : 4 + length])
            lengths = told.pop("lengths")
            told["broken"], told["gaps"] = set(told["broken"]), [tuple(gap) for gap in told["gaps"]]
            chain = cls(framing, file_size, **told)
            at = 4 + length + lengths[0]
            chain._tags += data[4 + length : at]
            columns = (chain._headers, chain._sizes, chain._words, chain.tracks)
            for column, size in zip(columns, lengths[1:], strict=True):
                column.frombytes(data[at : at + size])
                at += size
        except (struct.error, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"not a kept chain: {error}") from None
        for number in range(len(chain)):
            tag = bytes(chain._tags[4 * number : 4 * number + 4])
            chain._first.setdefault(tag, number)
            if tag == CORE:
                chain.cores.append(number)
        return chain

    def feed(self, data: bytes | memoryview, base: int) -> None:
        """Take the headers that lie in `data`, the bytes of the file from offset `base` on."""
        until, limit, step = base + len(data), self.limit, self.step
        while not self.ended and self.stuck is None:
            if limit - self.next < HEADER:
                self._end()
                return
            if self.next < base or min(self.next + step, limit) > until:
                return
            at = self.next - base
            tag, size, word = self.framing.header(data, at)
            end = self.next + HEADER + size + self.framing.after
            if end > limit:
                self.stuck = self.next
                return
            track = int.from_bytes(data[at + 16 : at + 18], "little") if size >= BLOCK_HEAD else 0
            self.add(tag, self.next, size, word, track)
            self.next = end

    def add(self, tag: bytes, header: int, size: int, word: int, track: int = 0) -> None:
        """Append a chunk."""
        number = len(self._headers)
        if number >= MAX_CHUNKS:
            self.problems.append(f"more than {MAX_CHUNKS} chunks: the rest is not looked at")
            self.ended = True
            return
        self._tags += tag
        self._headers.append(header)
        self._sizes.append(size)
        self._words.append(word)
        self._first.setdefault(tag, number)
        if tag == CORE:
            self.cores.append(number)
            if self.framing is KERNEL:
                self.tracks.append(track)

    def _end(self) -> None:
        self.ended, self.trailing = True, max(self.limit - self.next, 0)
        if self.trailing:
            self.problems.append(f"{self.trailing} bytes after the last chunk")

    def give_up(self, tag: bytes, why: str) -> None:
        """Nothing after the header that cannot be one is a chunk. tag: what it says it is."""
        self._lose(tag, self.limit, why)
        self.ended, self.stuck, self.next = True, None, self.limit

    def resume(self, tag: bytes, at: int, why: str) -> None:
        """Go on with a header that was found beyond the damage."""
        self._lose(tag, at, why)
        self.stuck, self.next = None, at

    def drop_from(self, number: int) -> None:
        """Take back the chunks from one on, whose framing cannot be trusted; that one stands as damaged."""
        hit = self[number]
        del self._tags[4 * number :], self._headers[number:], self._sizes[number:], self._words[number:]
        while self.cores and self.cores[-1] >= number:
            self.cores.pop()
            if self.framing is KERNEL:
                self.tracks.pop()
        self._first = {tag: n for tag, n in self._first.items() if n < number}
        self.stuck, self.next = hit.header, hit.header

    def _lose(self, tag: bytes, stop: int, why: str) -> None:
        """The damaged chunk keeps its place: as a block, unless it says that it is something else we know."""
        assert self.stuck is not None
        start, tag = self.stuck, tag if tag in self.framing.known else CORE
        if tag == CORE:
            self.broken.add(len(self.cores))
        self.add(tag, start, max(stop - start - HEADER - self.framing.after, 0), 0)
        self.gaps.append((start, stop))
        self.problems.append(f"bytes {start} to {stop}: {why}")
