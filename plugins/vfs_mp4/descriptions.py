"""Sample descriptions of several files made one: what may differ within a track, and what may not. Pure.

Pictures whose parameter sets change keep one description and carry their sets in the samples (`avc3`,
`hev1`; ISO/IEC 14496-15 5.3.3.1, 8.3.3.1): FFmpeg, and with it most players, loses count of several
descriptions where an edit list jumps. Sound must be set up alike throughout.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vfs import Damaged, Unsupported
from vfs_mp4 import soundformat, write
from vfs_mp4.model import Track

#: Where child boxes begin in a visual and in a sound sample entry (header included).
_VISUAL, _SOUND = 86, 36
#: Boxes that hold the decoder's set-up.
SETUPS = frozenset((b"avcC", b"hvcC", b"av1C", b"vpcC", b"esds", b"dOps", b"dac3", b"dec3", b"dfLa", b"alac"))
#: Boxes that say nothing a picture depends on: bit rate, the name of the encoder, field order of frames.
_IDLE = frozenset((b"btrt", b"fiel", b"gama"))
#: Sample entries whose samples may carry parameter sets, by the ones whose may not.
_CARRIED = {b"avc1": b"avc3", b"avc3": b"avc3", b"hvc1": b"hev1", b"hev1": b"hev1"}
#: Baseline, Main, Extended and High of H.264: 8 bits, 4:2:0, all of them.
_PLAIN_PROFILES = frozenset((66, 77, 88, 100))
#: NAL unit types of video, sequence and picture parameter sets.
_HEVC_SETS = (32, 33, 34)
_SQUARE = bytes((0, 0, 0, 1, 0, 0, 0, 1))


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample entry taken apart: data is the whole box, setup the payload of its decoder's box.

    fixed: what must be equal in one track; other: child boxes that shape the picture, by 4cc.
    """

    data: bytes
    codec: bytes
    fixed: bytes
    setup: bytes
    other: tuple[tuple[bytes, bytes], ...]


def merged(tracks: Sequence[Track], labels: Sequence[str]) -> tuple[bytes, bool]:
    """One stsd with one entry for all tracks, and whether their samples must carry parameter sets.

    labels: what to call each track in an error. Raises Unsupported naming the first that does not fit and
    the difference, Damaged for a description that is cut short.
    """
    first = entries(tracks[0])[0]
    in_band = False
    for track, label in zip(tracks, labels, strict=True):
        for entry in entries(track):
            if why := difference(first, entry, track.handler):
                raise Unsupported(f"{label}: {why}, unlike {labels[0]}")
            unlike = (entry.codec, entry.setup) != (first.codec, first.setup)
            in_band |= unlike and first.codec in _CARRIED
    codec = _CARRIED[first.codec] if in_band else first.codec
    entry_box = first.data[:4] + codec + first.data[8:]
    return write.full(b"stsd", 0, 0, struct.pack(">I", 1), entry_box), in_band


def parameter_sets(entry: Entry) -> bytes:
    """The parameter sets of an entry as they stand in samples: each behind its length.

    avcC: 5 bytes, then counts of SPS (5 bits) and PPS; hvcC: arrays from byte 22 on, those of messages are
    left out. Raises Damaged.
    """
    setup, width = entry.setup, length_size(entry)
    avc = entry.codec in (b"avc1", b"avc3")
    at, found = (5, []) if avc else (23, [])
    try:
        for array in range(2 if avc else setup[22]):
            wanted, count = True, setup[at] & 0x1F if avc and not array else setup[at]
            if not avc:
                wanted = setup[at] & 0x3F in _HEVC_SETS
                count, at = int.from_bytes(setup[at + 1 : at + 3], "big"), at + 2
            at += 1
            for _ in range(count):
                length = int.from_bytes(setup[at : at + 2], "big")
                if wanted:
                    found.append(length.to_bytes(width, "big") + setup[at + 2 : at + 2 + length])
                at += 2 + length
    except (IndexError, OverflowError):
        raise Damaged("the parameter sets are cut short") from None
    return b"".join(found)


def length_size(entry: Entry) -> int:
    """Bytes before each NAL unit of a sample that hold its length (avcC at 4, hvcC at 21)."""
    at = 4 if entry.codec in (b"avc1", b"avc3") else 21
    return (entry.setup[at] & 3) + 1 if len(entry.setup) > at else 4


def entries(track: Track) -> list[Entry]:
    """The sample entries of a track. Raises Damaged."""
    stsd = (track.boxes or {}).get("stsd", b"")
    found = [_entry(stsd[low - 8 : high], track.handler) for _, low, high in _children(stsd, 16, len(stsd))]
    if not found:
        raise Damaged(f"track {track.track_id} has no sample description")
    return found


def _entry(data: bytes, handler: str) -> Entry:
    start = _VISUAL if handler == "vide" else _SOUND
    if len(data) < start:
        raise Damaged("the sample description is cut short")
    boxes = [(kind, data[low:high]) for kind, low, high in _children(data, start, len(data))]
    setup = next((payload for kind, payload in boxes if kind in SETUPS), b"")
    if any(kind == b"esds" for kind, _ in boxes):
        # The rest of the descriptor is bit rates and buffer sizes.
        kind_of, inner = soundformat.esds(setup)
        setup = bytes((kind_of,)) + inner
    shaping = [(k, p) for k, p in boxes if k not in SETUPS | _IDLE and not (k == b"pasp" and p == _SQUARE)]
    # Visual: width and height at 32; sound: version at 16, channels and bits at 24, rate at 32.
    fixed = data[32:36] if handler == "vide" else data[16:18] + data[24:28] + data[32:36]
    return Entry(data, data[4:8], fixed, setup, tuple(sorted(shaping)))


def _children(data: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """(4cc, payload start, payload end) of small boxes."""
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        if not 8 <= size <= stop - start:
            return
        yield kind, start + 8, start + size
        start += size


def difference(first: Entry, entry: Entry, handler: str) -> str | None:
    """Why an entry cannot follow the first in one track; None where it can."""
    if _CARRIED.get(entry.codec, entry.codec) != _CARRIED.get(first.codec, first.codec):
        return f"{_name(entry.codec)} follows {_name(first.codec)}"
    if (entry.fixed, entry.setup, entry.other) == (first.fixed, first.setup, first.other):
        return None
    if handler != "vide":
        return "its sound is set up in another way (rate, channels or profile)"
    if entry.fixed != first.fixed:
        (width, height), (old_width, old_height) = (struct.unpack(">HH", e.fixed) for e in (entry, first))
        return f"{width} x {height} follows {old_width} x {old_height}"
    if entry.other != first.other:
        changed = sorted({_name(kind) for kind, _ in set(entry.other) ^ set(first.other)})
        return f"its pictures are described in another way ({', '.join(changed)})"
    if _profile(entry) is None or _profile(entry) != _profile(first):
        return "its pictures are coded in another way (profile, depth or colour sampling)"
    return None


def _profile(entry: Entry) -> tuple[int, ...] | None:
    """What must not change with the parameter sets; None where nothing may.

    avcC and hvcC: ISO/IEC 14496-15 5.3.3.1 and 8.3.3.1 (profile, length size; chroma, depths, length size).
    av1C: AV1-ISOBMFF 2.3.3 (profile; depth and sampling). vpcC: profile, depth and sampling.
    """
    setup = entry.setup
    if entry.codec in (b"avc1", b"avc3") and len(setup) >= 7:
        return (0 if setup[1] in _PLAIN_PROFILES else setup[1]), setup[4] & 3
    if entry.codec in (b"hvc1", b"hev1") and len(setup) >= 23:
        return setup[16] & 3, setup[17] & 7, setup[18] & 7, setup[21] & 3
    if entry.codec == b"av01" and len(setup) >= 4:
        return setup[1] >> 5, setup[2] & 0x7F
    if entry.codec in (b"vp08", b"vp09") and len(setup) >= 7:
        return setup[4], setup[6] & 0xFE
    return None


def _name(kind: bytes) -> str:
    return kind.decode("latin-1")
