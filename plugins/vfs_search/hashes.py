"""Coded pictures as hashes: a part of a video that was copied without encoding is found without decoding.

Of H.264 and HEVC the slices are hashed and nothing else, so that MP4, Matroska and transport streams give the
same; of other codecs the whole packet.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

_START = re.compile(rb"\x00\x00\x01")
#: Votes are taken in steps of 50 ms.
STEP = 0.05


def digest(parts: Iterable[bytes | memoryview]) -> int:
    """64 bits."""
    made = hashlib.blake2b(digest_size=8)
    for part in parts:
        made.update(part)
    return int.from_bytes(made.digest(), "little")


def length_size(codec: str, setup: bytes) -> int:
    """Bytes of the length before each unit, 0 where units follow start codes.

    ISO/IEC 14496-15 5.3.3.1 (avcC) and 8.3.3.1 (hvcC).
    """
    if not setup or setup[0] != 1:
        return 0
    at = 4 if codec == "h264" else 21
    return (setup[at] & 3) + 1 if len(setup) > at else 0


def picture(codec: str, width: int, packet: bytes) -> int:
    """The hash of a coded picture. width: as `length_size` says."""
    if codec not in ("h264", "hevc"):
        return digest([packet])
    units = _lengths(packet, width) if width else _start_codes(packet)
    return digest(unit for unit in units if _is_slice(codec, unit))


def _lengths(packet: bytes, width: int) -> Iterator[bytes]:
    at = 0
    while at + width < len(packet):
        size = int.from_bytes(packet[at : at + width], "big")
        yield packet[at + width : at + width + size].rstrip(b"\0")
        at += width + size


def _start_codes(packet: bytes) -> Iterator[bytes]:
    marks = [(match.start(), match.end()) for match in _START.finditer(packet)]
    for (_, begin), (end, _) in zip(marks, [*marks[1:], (len(packet), 0)], strict=True):
        yield packet[begin:end].rstrip(b"\0")


def _is_slice(codec: str, unit: bytes) -> bool:
    if not unit:
        return False
    return 1 <= unit[0] & 0x1F <= 5 if codec == "h264" else (unit[0] >> 1 & 0x3F) < 32


Hashes = NDArray[np.uint64]


def votes(
    query: Hashes, query_times: NDArray[np.float64], known: Hashes, times: NDArray[np.float64]
) -> tuple[int, float]:
    """(pictures in common at the best offset, that offset in seconds); t_reference = t_query + offset.

    known: sorted; times: those of the same rows.
    """
    low, high = np.searchsorted(known, query, "left"), np.searchsorted(known, query, "right")
    there = np.flatnonzero(high > low)
    if not len(there):
        return 0, 0.0
    offsets = np.concatenate([times[low[n] : high[n]] - query_times[n] for n in there[:5000]])
    steps = np.rint(offsets / STEP).astype(np.int64)
    bins, sizes = np.unique(steps, return_counts=True)
    best = bins[int(sizes.argmax())]
    near = np.abs(steps - best) <= 1
    return int(sizes.max()), float(np.median(offsets[near]))
