"""`faststart.mp4`: the tables come first, their offsets fit, and every other byte is where it was."""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

sys.path[:0] = [str(Path(__file__).parent)]
import mp4_exact  # noqa: E402
import mp4_sparse  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from mp4_whole import Box, boxes, content, packets, spliced  # noqa: E402

from vfs import Damaged, Inline, Layout, Unsupported  # noqa: E402

NAME = "faststart.mp4"
FILE_TYPE = b"ftyp"


@functools.cache
def plain(*, faststart: bool = False) -> bytes:
    """A file as FFmpeg writes it, with an unknown box and user data of its own."""
    path = Path(mp4_exact._FOLDER.name) / f"faststart {faststart}.mp4"
    mp4_exact.encode(path, frames=60, size=(160, 90), faststart=faststart)
    return path.read_bytes()


def boxed(kind: bytes, *parts: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, parts)), kind) + b"".join(parts)


def with_extras(data: bytes, more: bytes = b"") -> bytes:
    """`more` in the moov, user data in it, a box before the media and two behind the tables."""
    tops = {b.kind: data[b.offset : b.offset + b.size] for b in boxes(data)}
    udta = boxed(b"udta", boxed(b"\xa9xyz", b"\0\0\0\0+27.5+086.9/"), bytes(4))
    moov = boxed(b"moov", tops["moov"][8:], udta, more)
    odd = boxed(b"free", b"made by hand")
    shifted = _shifted(moov, len(odd))
    order = [tops["ftyp"], tops["free"], odd, tops["mdat"], shifted, boxed(b"uuid", bytes(range(40))), odd]
    return b"".join(order)


def _shifted(moov: bytes, by: int) -> bytes:
    """Every stco moved by some bytes."""
    found, at = bytearray(moov), 0
    while (at := moov.find(b"stco", at + 1)) > 0:
        (count,) = struct.unpack_from(">I", moov, at + 8)
        offsets = struct.unpack_from(f">{count}I", moov, at + 12)
        struct.pack_into(f">{count}I", found, at + 12, *(offset + by for offset in offsets))
    return bytes(found)


def read(data: bytes) -> bytes:
    return trio.run(content, MemoryPlace(data), NAME)


def rest(data: bytes) -> list[bytes]:
    """Everything but the moov."""
    return [data[b.offset : b.offset + b.size] for b in boxes(data) if b.kind != "moov"]


def test_the_tables_come_first_and_all_else_stays() -> None:
    stored = with_extras(plain())
    data = read(stored)
    assert [b.kind for b in boxes(data)] == ["ftyp", "moov", "free", "free", "mdat", "uuid", "free"]
    assert rest(data) == rest(stored)
    moov = next(b for b in boxes(data) if b.kind == "moov")
    old = next(b for b in boxes(stored) if b.kind == "moov")
    assert b"+27.5+086.9" in data[moov.offset : moov.offset + moov.size]
    assert moov.size == old.size
    for kind in ("video", "audio"):
        assert packets(data, kind) == packets(stored, kind)


def test_it_is_what_ffmpeg_makes_of_it() -> None:
    """The same packets at the same places as after `-movflags faststart`, but for boxes of FFmpeg's own."""
    for kind in ("video", "audio"):
        assert packets(read(plain()), kind) == packets(plain(faststart=True), kind)


@pytest.mark.parametrize("fragmented", [False, True])
def test_a_file_that_begins_with_its_tables_is_itself(fragmented: bool) -> None:
    data = plain(faststart=True)
    if fragmented:
        data = mp4_exact.sample("h264_fragmented").data
    place = MemoryPlace(data)
    assert trio.run(spliced, place, NAME).layout == Layout.whole(place.object)


@pytest.mark.parametrize("size", [100, 200_000])
@pytest.mark.parametrize("at_end", [True, False])
def test_nothing_large_stays_before_the_tables(at_end: bool, size: int) -> None:
    """Previews of cameras and room kept by encoders: a player would fetch them before it can begin."""
    stored = plain(faststart=not at_end)
    tops = {b.kind: stored[b.offset : b.offset + b.size] for b in boxes(stored)}
    large = boxed(b"uuid", bytes(size))
    moov = _shifted(tops["moov"], len(large))
    order = [tops["free"], tops["mdat"], moov] if at_end else [moov, tops["free"], tops["mdat"]]
    stored = b"".join([tops["ftyp"], large, *order])
    data = read(stored)
    begin = next(b.offset for b in boxes(data) if b.kind == "moov")
    assert begin == len(tops["ftyp"]) or (not at_end and size == 100 and data == stored)
    assert rest(data) == rest(stored)
    for kind in ("video", "audio"):
        assert [p.data for p in packets(data, kind)] == [p.data for p in packets(stored, kind)]


def test_offsets_of_auxiliary_information_move_too() -> None:
    """`saio` holds offsets into the file like `stco`, 32 or 64 bits, with and without a type before them."""
    stored = plain()
    mdat = next(b for b in boxes(stored) if b.kind == "mdat").offset
    forms: list[tuple[bytes, str]] = [
        (struct.pack(">II2I", 0, 2, mdat + 100, mdat + 200), ">2I"),
        (struct.pack(">I4sIII", 1, b"cenc", 0, 1, mdat + 100), ">I"),
        (struct.pack(">IIQ", 1 << 24, 1, mdat + 100), ">Q"),
    ]
    for body, row in forms:
        data = _with_saio(stored, boxed(b"saio", body))
        found = read(data)
        at = found.index(b"saio") - 4
        (size,) = struct.unpack_from(">I", found, at)
        moov = next(b for b in boxes(found) if b.kind == "moov").size
        before = struct.unpack_from(row, body, len(body) - struct.calcsize(row))
        after = struct.unpack_from(row, found, at + size - struct.calcsize(row))
        assert [b - a for a, b in zip(before, after, strict=True)] == [moov] * len(before)


def _with_saio(data: bytes, saio: bytes) -> bytes:
    """The box at the end of the first stbl, all sizes above it grown."""
    found = bytearray(data)
    path: list[Box] = []
    inside: list[Box] = boxes(data)
    for kind in ("moov", "trak", "mdia", "minf", "stbl"):
        path.append(next(b for b in inside if b.kind == kind))
        inside = boxes(data, path[-1].offset + 8, path[-1].offset + path[-1].size)
    for box in path:
        struct.pack_into(">I", found, box.offset, box.size + len(saio))
    end = path[-1].offset + path[-1].size
    return bytes(found[:end]) + saio + bytes(found[end:])


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (
            lambda data: with_extras(data, boxed(b"meta", bytes(4), boxed(b"iloc", bytes(8)))),
            Unsupported,
            "meta",
        ),
        (lambda data: data[:-500], Damaged, "moov"),
    ],
)
def test_what_cannot_be_rewritten_says_so(spoil: Callable[[bytes], bytes], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        read(spoil(plain()))


@pytest.mark.parametrize(("size", "grows"), [(3 << 30, False), ((4 << 30) - 1000, True), (6 << 30, True)])
def test_a_large_file_costs_three_requests_and_no_media(size: int, grows: bool) -> None:
    """The media is a hole of zeros, the tables are real; past 4 GiB the offsets have 64 bits."""
    stored = plain()
    tops = {b.kind: b for b in boxes(stored)}
    mdat, moov = tops["mdat"], tops["moov"]
    hole = size - len(stored) - 8
    head = stored[: mdat.offset] + struct.pack(">I4sQ", 1, b"mdat", mdat.size + 8 + hole)
    tail = _shifted(stored[moov.offset :], 8)
    pieces = [(0, head + stored[mdat.offset + 8 : mdat.offset + mdat.size]), (size - len(tail), tail)]
    place = mp4_sparse.SparsePlace(mp4_sparse.Bytes(size, pieces))  # type: ignore[arg-type]

    async def main() -> tuple[Layout, bytes, int]:
        layout = (await spliced(place, NAME)).layout
        asked = len(place.log)
        return layout, await place.fetch(layout.window(0, 400_000)), asked

    layout, front, asked = trio.run(main)
    assert asked <= 3
    assert place.log[0][1] == 0
    assert all(offset == 0 or offset >= mdat.offset + mdat.size + hole for _, offset, _ in place.log[:asked])
    inline = b"".join(span.data for span in layout.spans if isinstance(span, Inline))
    assert (b"co64" in inline, b"stco" in inline) == (grows, not grows)
    assert layout.size == size + len(inline) - moov.size
    assert front.startswith(stored[:4] + FILE_TYPE)
    assert [p.data for p in packets(front, "video")] == [p.data for p in packets(stored, "video")]
