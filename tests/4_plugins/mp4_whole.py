"""What the tests of whole files share: names inside companion folders, and what is in their boxes."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from mp4_places import MemoryPlace
from numpy.typing import NDArray
from vfs_mp4.whole import Whole

from vfs import Directory, Node, Place, Spliced


async def node_of(place: Place, path: str) -> Node | None:
    """`faststart.mp4`, or `hls/video/stream.mp4`."""
    first, *rest = path.split("/")
    node = await Whole().resolve(place, first)
    for name in rest:
        assert isinstance(node, Directory)
        entries = await node.entries()
        node = entries.get(name) or await node.lookup(name)
    return node


async def spliced(place: Place, path: str) -> Spliced:
    """A file of the companion folder."""
    node = await node_of(place, path)
    assert isinstance(node, Spliced), path
    return node


async def content(place: MemoryPlace, path: str) -> bytes:
    """All its bytes."""
    node = await spliced(place, path)
    data = await place.fetch(node.layout)
    assert len(data) == node.layout.size
    return data


@dataclass(frozen=True)
class Packet:
    """A packet as FFmpeg reads it, in seconds."""

    pts: Fraction
    dts: Fraction
    data: bytes


def packets(data: bytes, kind: str) -> list[Packet]:
    """The packets of the first stream of a kind, in the order of the file."""
    found = []
    with av.open(io.BytesIO(data), "r") as media:
        stream = next(s for s in media.streams if s.type == kind)
        assert stream.time_base is not None
        for packet in media.demux(stream):
            if packet.size and packet.pts is not None and packet.dts is not None:
                times = packet.pts * stream.time_base, packet.dts * stream.time_base
                found.append(Packet(*times, bytes(packet)))
    return found


@dataclass(frozen=True)
class Box:
    """A box at the top of a file, or inside another."""

    kind: str
    offset: int
    size: int


def boxes(data: bytes, start: int = 0, stop: int | None = None) -> list[Box]:
    """Boxes of [start, stop); all sizes of 32 bits, but that of an mdat."""
    found, at, stop = [], start, len(data) if stop is None else stop
    while at < stop:
        size, kind = struct.unpack_from(">I4s", data, at)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
        assert 8 <= size <= stop - at
        found.append(Box(kind.decode("latin-1"), at, size))
        at += size
    return found


def inside(data: bytes, box: Box) -> list[Box]:
    """The children of a container."""
    return boxes(data, box.offset + 8, box.offset + box.size)


def index_of(data: bytes) -> tuple[int, int, NDArray[np.int64]]:
    """(timescale, earliest time, rows of size, ticks, access point) of the first sidx, version 1."""
    at = next(b.offset for b in boxes(data) if b.kind == "sidx") + 8
    version, _, scale, start, after, count = struct.unpack_from(">B3xIIQQ2xH", data, at)
    assert (version, after) == (1, 0)
    rows = np.frombuffer(data, ">u4", 3 * count, at + 32).reshape(-1, 3).astype(np.int64)
    return scale, start, rows
