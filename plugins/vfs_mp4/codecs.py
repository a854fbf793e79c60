"""Sample descriptions for browsers: codec strings (RFC 6381), QuickTime's own in the form of MP4. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

from vfs import Damaged, Unsupported
from vfs_mp4 import boxes, descriptions, write
from vfs_mp4.boxes import Box
from vfs_mp4.model import Track

#: What needs no more than its name.
_PLAIN = {"Opus": "opus", "fLaC": "flac", "alac": "alac", "ac-3": "ac-3", "ec-3": "ec-3", "vp08": "vp8"}
#: What no browser plays from fragments; a player that finds it in a manifest refuses the whole of it.
PLAYABLE = frozenset(("avc1", "avc3", "hvc1", "hev1", "dvh1", "dvhe", "av01", "vp09", "mp4a")) | _PLAIN.keys()


def codec_string(track: Track) -> str:
    """The RFC 6381 string of a track. Raises Unsupported for a codec without one, Damaged."""
    if track.codec not in PLAYABLE:
        raise Unsupported(f"track {track.track_id}: {track.codec} is no codec of browsers")
    if track.codec in _PLAIN:
        return _PLAIN[track.codec]
    entry = descriptions.entries(track)[0]
    other = dict(entry.other)
    dolby = other.get(b"dvcC") or other.get(b"dvvC") if track.codec in ("dvh1", "dvhe") else None
    try:
        if dolby:
            return _dolby(track.codec, dolby)
        return _WRITTEN[track.codec](track.codec, entry.setup)
    except IndexError:
        raise Damaged(f"track {track.track_id}: the decoder's set-up is cut short") from None


def _avc(codec: str, setup: bytes) -> str:
    """Profile, constraints and level (ISO/IEC 14496-15 5.3.3.1.2: bytes 1 to 3)."""
    return f"{codec}.{setup[1]:02X}{setup[2]:02X}{setup[3]:02X}"


def _hevc(codec: str, setup: bytes) -> str:
    """Profile, compatibility (its bits reversed), tier and level, constraints (ISO/IEC 14496-15 E.3)."""
    space = ("", "A", "B", "C")[setup[1] >> 6]
    tier = "H" if setup[1] & 0x20 else "L"
    flags = int(f"{int.from_bytes(setup[2:6], 'big'):032b}"[::-1], 2)
    limits = setup[6:12].rstrip(b"\0")
    parts = [codec, f"{space}{setup[1] & 31}", f"{flags:X}", f"{tier}{setup[12]}"]
    return ".".join([*parts, *(f"{byte:X}" for byte in limits)])


def _av1(codec: str, setup: bytes) -> str:
    """Profile, level and tier, bits (AV1 in ISOBMFF 2.3.3 and 5)."""
    tier = "H" if setup[2] & 0x80 else "M"
    bits = 12 if setup[2] & 0x20 else 10 if setup[2] & 0x40 else 8
    return f"{codec}.{setup[1] >> 5}.{setup[1] & 31:02d}{tier}.{bits:02d}"


def _vp9(codec: str, setup: bytes) -> str:
    """Profile, level, bits (VP codec ISO media file format binding; a full box)."""
    return f"{codec}.{setup[4]:02d}.{setup[5]:02d}.{setup[6] >> 4:02d}"


def _esds(codec: str, setup: bytes) -> str:
    """Object type in hex; of MPEG-4 audio the audio object type (ISO/IEC 14496-3 1.6.2.1), too."""
    if setup[0] != 0x40:
        return f"{codec}.{setup[0]:02X}"
    kind = setup[1] >> 3
    if kind == 31:
        kind = 32 + ((setup[1] & 7) << 3 | setup[2] >> 5)
    return f"{codec}.40.{kind}"


def _dolby(codec: str, setup: bytes) -> str:
    """Profile and level (Dolby Vision streams within the ISO base media file format: dvcC, dvvC)."""
    value = int.from_bytes(setup[2:4], "big")
    return f"{codec}.{value >> 9:02d}.{value >> 3 & 63:02d}"


_WRITTEN = {
    "avc1": _avc,
    "avc3": _avc,
    "hvc1": _hevc,
    "hev1": _hevc,
    "dvh1": _hevc,
    "dvhe": _hevc,
    "av01": _av1,
    "vp09": _vp9,
    "mp4a": _esds,
}


#: Bytes that a sound sample entry of QuickTime has beyond that of MP4, by its version.
_MORE = {1: 16, 2: 36}
#: Where child boxes begin in a sound sample entry of MP4, header included.
_CHILDREN = 36


def described(track: Track) -> Track:
    """The track with a sample description that browsers read: sound without the fields of QuickTime.

    Those hold what `esds` says again, and put it into a box `wave` (QuickTime File Format, sound sample
    descriptions); of ISO/IEC 14496-12, 12.2.3 there is version 0 alone, but where `stsd` is of version 1.
    """
    stsd = (track.boxes or {}).get("stsd", b"")
    if track.handler != "soun" or len(stsd) < 16 or stsd[8]:
        return track
    parts = [_plain(stsd[box.start : box.stop]) for box in boxes.children(stsd, 16, len(stsd), boxes.Notes())]
    made = write.full(b"stsd", 0, 0, struct.pack(">I", len(parts)), *parts)
    return track if made == stsd else replace(track, boxes={**(track.boxes or {}), "stsd": made})


def _plain(entry: bytes) -> bytes:
    """One sample entry as version 0, with the boxes that set a decoder up."""
    version = int.from_bytes(entry[16:18], "big")
    start = _CHILDREN + _MORE.get(version, 0)
    setups = [box for box in _opened(entry, start, len(entry)) if box.kind in descriptions.SETUPS]
    if version not in _MORE or not setups:
        return entry
    fixed = entry[8:16] + bytes(8) + entry[24:36]
    return write.box(entry[4:8], fixed, *(entry[box.start : box.stop] for box in setups))


def _opened(data: bytes, start: int, stop: int) -> Iterator[Box]:
    """The boxes of a sample entry, those inside `wave` in its place."""
    for box in boxes.children(data, start, stop, boxes.Notes()):
        if box.kind == b"wave":
            yield from boxes.children(data, box.body, box.stop, boxes.Notes())
        else:
            yield box
