"""Codec strings as browsers want them (RFC 6381), told from sample descriptions. Pure."""

from __future__ import annotations

from vfs import Damaged, Unsupported
from vfs_mp4 import descriptions
from vfs_mp4.model import Track

#: What needs no more than its name.
_PLAIN = {"Opus": "opus", "fLaC": "flac", "alac": "alac", "ac-3": "ac-3", "ec-3": "ec-3", "vp08": "vp8"}
#: What no browser plays from fragments; a player that finds it in a manifest refuses the whole of it.
PLAYABLE = frozenset(("avc1", "avc3", "hvc1", "hev1", "av01", "vp09", "mp4a")) | _PLAIN.keys()


def codec_string(track: Track) -> str:
    """The RFC 6381 string of a track. Raises Unsupported for a codec without one, Damaged."""
    if track.codec not in PLAYABLE:
        raise Unsupported(f"track {track.track_id}: {track.codec} is no codec of browsers")
    if track.codec in _PLAIN:
        return _PLAIN[track.codec]
    setup = descriptions.entries(track)[0].setup
    try:
        return _WRITTEN[track.codec](track.codec, setup)
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


_WRITTEN = {
    "avc1": _avc,
    "avc3": _avc,
    "hvc1": _hevc,
    "hev1": _hevc,
    "av01": _av1,
    "vp09": _vp9,
    "mp4a": _esds,
}
