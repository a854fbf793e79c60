"""What sample descriptions tell of sound: decoders, rates, channels, and what only the stream can tell."""

from __future__ import annotations

import struct

import pytest
from vfs_mp4 import soundformat
from vfs_mp4.soundformat import Pcm

from vfs import Damaged, Unsupported


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def stsd(
    codec: str,
    *boxes: bytes,
    rate: int = 48_000,
    channels: int = 2,
    version: int = 0,
    more: bytes = b"",
    bits: int = 16,
) -> bytes:
    entry = struct.pack(">6xHH6xHHHHI", 1, version, channels, bits, 0, 0, rate << 16)
    return box(b"stsd", bytes(4), struct.pack(">I", 1), box(codec.encode(), entry, more, *boxes))


def esds(setup: bytes, kind: int = 0x40) -> bytes:
    inner = bytes([5, len(setup)]) + setup
    middle = bytes([4, 13 + len(inner), kind]) + bytes(12) + inner
    return box(b"esds", bytes(4), bytes([3, 3 + len(middle), 0, 0, 0]) + middle)


def bits(*fields: tuple[int, int]) -> bytes:
    """Numbers of so many bits, filled up with zeros to whole bytes."""
    text = "".join(f"{value:0{width}b}" for value, width in fields)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


LC = [(0, 3)]
NO_SBR = [(0x2B7, 11), (5, 5), (0, 1)]


@pytest.mark.parametrize(
    ("setup", "rate", "channels", "frame", "known"),
    [
        (bits((2, 5), (3, 4), (2, 4), *LC), 48_000, 2, 1024, True),
        (bits((2, 5), (4, 4), (1, 4), *LC), 44_100, 1, 1024, True),
        (bits((2, 5), (3, 4), (6, 4), *LC), 48_000, 6, 1024, True),
        (bits((2, 5), (3, 4), (7, 4), *LC), 48_000, 8, 1024, True),
        (bits((2, 5), (3, 4), (2, 4), (1, 1), (0, 2)), 48_000, 2, 960, True),
        # A rate in full.
        (bits((2, 5), (15, 4), (37_800, 24), (2, 4), *LC), 37_800, 2, 1024, True),
        # Low rates may hide band replication, unless it is said that there is none.
        (bits((2, 5), (6, 4), (2, 4), *LC), 48_000, 2, 0, False),
        (bits((2, 5), (6, 4), (2, 4), *LC, *NO_SBR), 24_000, 2, 1024, True),
        # HE-AAC, announced before or behind: the rate and the frame double.
        (bits((5, 5), (6, 4), (2, 4), (3, 4), (2, 5), *LC), 48_000, 2, 2048, True),
        (bits((2, 5), (7, 4), (2, 4), *LC, (0x2B7, 11), (5, 5), (1, 1), (4, 4)), 44_100, 2, 2048, True),
        # HE-AAC v2: two channels out of one. One channel with replication may be that, unsaid.
        (bits((29, 5), (6, 4), (1, 4), (3, 4), (2, 5), *LC), 48_000, 2, 2048, True),
        (bits((5, 5), (6, 4), (1, 4), (3, 4), (2, 5), *LC), 48_000, 2, 0, False),
        # Replication that keeps the rate, channels by a program config, xHE-AAC, nothing at all.
        (bits((5, 5), (3, 4), (2, 4), (3, 4), (2, 5), *LC), 48_000, 2, 0, False),
        (bits((2, 5), (3, 4), (0, 4), *LC), 48_000, 2, 0, False),
        (bits((31, 5), (10, 6), (3, 4), (2, 4), *LC), 48_000, 2, 0, False),
        (b"", 48_000, 2, 0, False),
    ],
)
def test_aac(setup: bytes, rate: int, channels: int, frame: int, known: bool) -> None:
    found = soundformat.read("mp4a", stsd("mp4a", esds(setup)))
    assert (found.decoder, found.setup) == ("aac", setup)
    assert (found.rate, found.channels, found.frame, found.known) == (rate, channels, frame, known)


@pytest.mark.parametrize(
    ("codec", "boxes", "decoder", "rate", "channels"),
    [
        ("ac-3", [box(b"dac3", bits((0, 2), (8, 5), (0, 3), (7, 3), (1, 1), (10, 5)))], "ac3", 48_000, 6),
        ("ac-3", [box(b"dac3", bits((1, 2), (8, 5), (0, 3), (2, 3), (0, 1), (10, 5)))], "ac3", 44_100, 2),
        ("Opus", [box(b"dOps", struct.pack(">BBHIhB", 0, 1, 312, 16_000, 0, 0))], "opus", 48_000, 1),
        ("fLaC", [box(b"dfLa", bytes(8), bytes(10), bits((96_000, 20), (1, 3), (23, 5), (0, 4)), bytes(20))],
         "flac", 96_000, 2),
        ("alac", [box(b"alac", bytes(4), struct.pack(">I5xB10xI", 4096, 2, 44_100))], "alac", 44_100, 2),
    ],
)  # fmt: skip
def test_others(codec: str, boxes: list[bytes], decoder: str, rate: int, channels: int) -> None:
    found = soundformat.read(codec, stsd(codec, *boxes, rate=1, channels=9))
    assert (found.decoder, found.rate, found.channels, found.known) == (decoder, rate, channels, True)
    # The same inside QuickTime's `wave`, behind the fields of version 1.
    quicktime = stsd(codec, box(b"wave", *boxes), version=1, more=bytes(16))
    assert soundformat.read(codec, quicktime) == found


@pytest.mark.parametrize(
    ("codec", "options", "expected"),
    [
        ("sowt", {}, Pcm("i", 2, False)),
        ("twos", {}, Pcm("i", 2, True)),
        ("twos", {"bits": 8}, Pcm("i", 1, True)),
        ("raw ", {"bits": 8}, Pcm("u", 1, True)),
        ("in24", {}, Pcm("i", 3, True)),
        ("fl32", {}, Pcm("f", 4, True)),
        ("ulaw", {}, Pcm("m", 1, True)),
    ],
)
def test_uncompressed(codec: str, options: dict[str, int], expected: Pcm) -> None:
    assert soundformat.read(codec, stsd(codec, **options)).pcm == expected  # type: ignore[arg-type]


def test_little_endian_quicktime_and_core_audio() -> None:
    inner = box(b"wave", box(b"enda", b"\0\1"))
    found = soundformat.read("in24", stsd("in24", inner, version=1, more=bytes(16)))
    assert found.pcm == Pcm("i", 3, False)
    more = struct.pack(">IdIIIIII", 72, 96_000.0, 6, 0x7F000000, 24, 0xC, 18, 1)
    found = soundformat.read("lpcm", stsd("lpcm", version=2, channels=3, rate=1, more=more))
    assert (found.rate, found.channels, found.pcm) == (96_000, 6, Pcm("i", 3, False))
    found = soundformat.read("fpcm", stsd("fpcm", box(b"pcmC", bytes(4), b"\1\x20")))
    assert found.pcm == Pcm("f", 4, False)


@pytest.mark.parametrize(
    ("codec", "data", "error"),
    [
        ("mp4a", stsd("mp4a"), Damaged),
        ("mp4a", stsd("mp4a", esds(b"", kind=0x20)), Unsupported),
        ("qqqq", stsd("qqqq"), Unsupported),
        ("alac", stsd("alac"), Damaged),
        ("Opus", stsd("Opus"), Damaged),
        ("fLaC", stsd("fLaC"), Damaged),
        ("sowt", stsd("sowt", channels=0), Damaged),
        ("sowt", stsd("sowt", bits=40), Unsupported),
        ("sowt", b"", Damaged),
        ("sowt", box(b"stsd", bytes(8), box(b"sowt", bytes(20))), Damaged),
    ],
)
def test_what_cannot_be(codec: str, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        soundformat.read(codec, data)
    assert soundformat.lead(codec, data) == 2
