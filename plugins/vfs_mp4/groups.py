"""Sample groups (ISO/IEC 14496-12 8.9): where decoding may begin, and how much must be decoded before. Pure.

Read are `rap ` (open-group random access points), `sync` (of HEVC, by NAL unit type), `roll` and `prol`
(decoding must begin so many samples earlier). The rows of gradual refreshes are no starting points: pictures
before the refresh is over are not the source's to the bit. What is spliced keeps these groups, cut to its
samples; others (`seig` is of encryption) are left out.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vfs_mp4 import boxes
from vfs_mp4.boxes import Box, Notes
from vfs_mp4.model import Grouping, Ticks

_RAP, _SYNC = b"rap ", b"sync"
_LEADS = frozenset((b"roll", b"prol"))
#: What is read, with the bytes of one description.
KINDS = {_RAP: 1, _SYNC: 1, b"roll": 2, b"prol": 2}
#: What makes samples random access points.
STARTS = frozenset(("rap ", "sync"))
# NAL unit types of HEVC that decoding may begin at (ITU-T H.265, table 7-1: BLA, IDR, CRA).
_IRAP = range(16, 22)
# From here on an index means a description of the same traf (8.9.4).
_LOCAL = 0x10000
# Descriptions and runs of one kind that are looked at: real files have a handful, and a run a sample at most.
_MOST_DESCRIBED, _MOST_RUNS = 1024, 262_144
#: Most samples that decoding begins earlier: far more than any codec needs.
_MOST_LEAD = 1000


def read(data: bytes, found: Sequence[Box], notes: Notes) -> tuple[Grouping, ...]:
    """The groups in the children of an stbl."""
    described: dict[bytes, Box] = {}
    runs: dict[bytes, tuple[Ticks, Ticks]] = {}
    for box in found:
        kind = data[box.body + 4 : box.body + 8]
        if kind not in KINDS or box.cut:
            continue
        if box.kind == b"sgpd":
            described.setdefault(kind, box)
        elif box.kind == b"sbgp":
            runs.setdefault(kind, _runs(data, box, notes))
    none = np.empty(0, np.int64)
    return tuple(
        Grouping(kind.decode(), boxes.whole(data, box), *runs.get(kind, (none, none)))
        for kind, box in described.items()
    )


def _runs(data: bytes, box: Box, notes: Notes) -> tuple[Ticks, Ticks]:
    """(ends, index) of an sbgp: version 1 has a parameter before the count."""
    at = 12 if data[box.body] == 1 else 8
    rows = boxes.table(data, box, notes, ">u4", 2, at=at)[:_MOST_RUNS].astype(np.int64)
    return np.cumsum(rows[:, 0]), rows[:, 1]


def descriptions(grouping: Grouping) -> list[bytes]:
    """The descriptions of a group, the first has index 1; none where they cannot be read."""
    box, kind = grouping.described, grouping.kind.encode()
    version, at, length = int.from_bytes(box[8:9], "big"), 16, KINDS.get(kind, 0)
    if version >= 1:
        length, at = int.from_bytes(box[at : at + 4], "big"), at + 4
    if version >= 2:
        at += 4
    count, at = int.from_bytes(box[at : at + 4], "big"), at + 4
    found: list[bytes] = []
    while len(found) < min(count, _MOST_DESCRIBED) and at < len(box):
        each = length
        if version >= 1 and not length:
            each, at = int.from_bytes(box[at : at + 4], "big"), at + 4
        if not each:
            break
        found.append(box[at : at + each])
        at += each
    return found


def members(grouping: Grouping, rows: Ticks) -> Ticks:
    """Index of the description of each row, 0 = of no group."""
    run = np.searchsorted(grouping.ends, rows, "right")
    found: Ticks = np.append(grouping.index, 0)[run]
    return found


def starts(found: Sequence[Grouping], count: int) -> NDArray[np.bool_]:
    """Which of the first `count` samples are random access points by their groups."""
    rows, here = np.arange(count), np.zeros(count, np.bool_)
    for grouping in found:
        if grouping.kind == "rap ":
            here |= members(grouping, rows) > 0
        elif grouping.kind == "sync":
            kinds = [0, *(entry[0] & 0x3F for entry in descriptions(grouping) if entry)]
            good = np.array([kind in _IRAP for kind in kinds])
            index = members(grouping, rows)
            here |= good[np.where(index < len(good), index, 0)]
    return here


def lead(found: Sequence[Grouping]) -> int:
    """So many samples earlier must decoding begin, 0 where no group says so (`roll` of sound is negative)."""
    distances = [
        -int.from_bytes(entry[:2], "big", signed=True)
        for grouping in found
        if grouping.kind.encode() in _LEADS
        for entry in descriptions(grouping)
    ]
    return min(max(distances, default=0), _MOST_LEAD) if distances else 0


def cut(found: Sequence[Grouping], rows: Ticks) -> bytes:
    """sgpd and sbgp of the kept rows, of the groups that have one of them."""
    parts = []
    for grouping in found:
        index = members(grouping, rows)
        if index.any():
            first = np.flatnonzero(np.diff(index, prepend=index[:1] - 1))
            table = np.stack((np.diff(first, append=len(index)), index[first]), axis=1).astype(">u4")
            body = struct.pack(">I4sI", 0, grouping.kind.encode(), len(table)) + table.tobytes()
            parts += [grouping.described, struct.pack(">I4s", 8 + len(body), b"sbgp") + body]
    return b"".join(parts)


def starts_in_fragment(data: bytes, found: Sequence[Box], count: int) -> NDArray[np.bool_]:
    """Which samples of a traf, given its children, are random access points by an sbgp of `rap `."""
    here = np.zeros(count, np.bool_)
    for box in found:
        if box.kind == b"sbgp" and data[box.body + 4 : box.body + 8] == _RAP:
            ends, index = _runs(data, box, Notes())
            run = np.searchsorted(ends, np.arange(count), "right")
            here |= np.append(index % _LOCAL, 0)[run] > 0
    return here
