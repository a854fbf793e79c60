"""Fragmented files of any size that take no room: real moofs, media of zeros that are made when read."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import trio
from mp4_places import MemoryPlace

from vfs import Extent, StoredObject

Moment = int


def boxed(kind: bytes, body: bytes) -> bytes:
    """A box."""
    return struct.pack(">I4s", 8 + len(body), kind) + body


def moof(number: int, time: int, sizes: Sequence[int], duration: int, track: int = 1) -> bytes:
    """A fragment of one track as FFmpeg writes it: durations in tfhd, data behind the mdat's header."""

    def traf(offset: int) -> bytes:
        tfhd = boxed(b"tfhd", struct.pack(">IIII", 0x020028, track, duration, 0x01010000))
        tfdt = boxed(b"tfdt", struct.pack(">IQ", 1 << 24, time))
        rows = struct.pack(f">{len(sizes)}I", *sizes)
        trun = boxed(b"trun", struct.pack(">IIiI", 0x205, len(sizes), offset, 0x02000000) + rows)
        return boxed(b"traf", tfhd + tfdt + trun)

    def whole(offset: int) -> bytes:
        return boxed(b"moof", boxed(b"mfhd", struct.pack(">II", 0, number)) + traf(offset))

    return whole(len(whole(0)) + 8)


@dataclass
class Bytes:
    """Bytes of which only some are not zero. pieces: (offset, bytes), in order."""

    size: int
    pieces: list[tuple[int, bytes]] = field(default_factory=list)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: slice) -> bytes:
        start, stop, _ = key.indices(self.size)
        data = bytearray(max(stop - start, 0))
        first = max(bisect_right(self.pieces, start, key=lambda piece: piece[0]) - 1, 0)
        for at, piece in self.pieces[first:]:
            if at >= stop:
                break
            low, high = max(at, start), min(at + len(piece), stop)
            if low < high:
                data[low - start : high - start] = piece[low - at : high - at]
        return bytes(data)


class SparsePlace(MemoryPlace):
    """A `MemoryPlace` of `Bytes`."""

    @property
    def version(self) -> str:
        return "sparse"

    @property
    def object(self) -> StoredObject:
        return StoredObject(self.path, self.size, self.version, self.mtime_ns)

    def extent(self, offset: int, length: int) -> Extent:
        return Extent(self.object, offset, length)


@dataclass
class Sparse:
    """A fragmented file. fragments: (offset, end, time in ticks) of each; ticks: of a second.

    each: ticks a fragment lasts, on average.
    """

    place: SparsePlace
    fragments: list[tuple[int, int, int]]
    ticks: int
    each: int

    def at(self, when: Fraction) -> tuple[int, int, int]:
        """The fragment of a time in seconds."""
        return self.fragments[bisect_right(self.fragments, int(when * self.ticks), key=lambda f: f[2]) - 1]


def sparse(
    init: bytes,
    count: int,
    size_of: Callable[[int], int],
    *,
    ticks: int,
    samples: int | Callable[[int], int] = 20,
    inside: dict[int, bytes] | None = None,
    between: bytes = b"",
    tail: bytes = b"",
) -> Sparse:
    """`count` fragments of `samples` samples (a number, or that of each) behind a real init section.

    size_of: bytes of media of a fragment. ticks: of a second in the track; 20 samples last 0.8 s. inside:
    bytes that lie in the middle of the media of a fragment. between: boxes before each moof but the first.
    """
    pieces, fragments, at = [(0, init)], [], len(init)
    duration, time = ticks * 8 // 10 // (samples if isinstance(samples, int) else 20), 0
    for number in range(count):
        if number:
            pieces.append((at, between))
            at += len(between)
        media, held = size_of(number), samples if isinstance(samples, int) else samples(number)
        rows = [media // held] * (held - 1)
        rows.append(media - sum(rows))
        head = moof(number + 1, time, rows, duration)
        head += struct.pack(">I4s", 8 + media, b"mdat")
        pieces.append((at, head))
        if inside and number in inside:
            pieces.append((at + len(head) + media // 2, inside[number]))
        fragments.append((at, at + len(head) + media, time))
        at, time = at + len(head) + media, time + duration * held
    pieces.append((at, tail))
    place = SparsePlace(Bytes(at + len(tail), pieces))  # type: ignore[arg-type]
    return Sparse(place, fragments, ticks, time // count)


def init_of(path: Path) -> tuple[bytes, int]:
    """(everything up to the end of moov, ticks a second of its first track) of a fragmented file."""
    from vfs_mp4 import source

    place = MemoryPlace(path.read_bytes())
    movie = trio.run(source.open_movie, place)
    assert movie.init is not None
    return place.data[: movie.init[1]], movie.tracks[0].timescale


def far_away(video: bytes, far: int) -> Bytes:
    """A video of one track with all media behind a hole of `far` bytes.

    Of a progressive one (its moov at the end) the moov moves to the front and gets offsets of 64 bits.
    """
    if b"moof" in video:
        at = video.index(b"moof") - 4
        gap = struct.pack(">I4sQ", 1, b"free", far)
        return Bytes(far + len(video), [(0, video[:at] + gap), (at + far, video[at:])])
    mdat, moov = video.index(b"mdat") - 4, video.index(b"moov") - 4
    head = with_large_offsets(video[moov:], far)
    gap = struct.pack(">I4sQ", 1, b"free", far - len(head))
    return Bytes(far + moov, [(0, video[:mdat] + head + gap), (far + mdat, video[mdat:moov])])


def with_large_offsets(moov: bytes, more: int) -> bytes:
    """A moov of one track whose stco becomes a co64 with offsets so much larger."""
    at = moov.index(b"stco") - 4
    size, _, _, count = struct.unpack_from(">I4sII", moov, at)
    offsets = struct.unpack_from(f">{count}I", moov, at + 16)
    wide = struct.pack(f">{count}Q", *(offset + more for offset in offsets))
    box = struct.pack(">I4sII", 16 + len(wide), b"co64", 0, count) + wide
    out, parent = bytearray(moov), 0
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        parent = moov.index(kind, parent) - 4
        struct.pack_into(">I", out, parent, struct.unpack_from(">I", out, parent)[0] + len(box) - size)
        parent += 8
    out[at : at + size] = box
    return bytes(out)
