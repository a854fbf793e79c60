"""Hints where the fragments of a movie lie: `sidx`, `mfra`, or a sidecar. Pure.

A hint is never believed on its own: what is read at an anchor must be a fragment that fits it, else the
hint is dropped and the fragments themselves are walked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vfs import Damaged
from vfs_mp4 import boxes
from vfs_mp4.boxes import Notes
from vfs_mp4.model import Ticks

# What may follow the last fragment: an mfra has at most 28 bytes a fragment and a small frame around it.
_TAIL_BASE, _TAIL_EACH = 4096, 64


@dataclass(frozen=True, eq=False)
class Anchors:
    """Regions of a fragmented movie, in file and time order; each holds one fragment or more.

    source: `sidecar`, `sidx`, `mfra` or `search`; name: the same for people. offset: where each begins,
    strictly increasing; end: where the last one ends. time: decode time of the first traf (`presentation`:
    the earliest presentation time instead) in ticks of `timescale`, None = of the track of the first traf.
    moof_size, data_end: of a sidecar, whose regions are exactly one moof and its mdat. length: ticks that
    the last region lasts, None = unknown. fine: of what is still being found (`table.Finder`), which regions
    are looked into; the others hold any number of fragments, and their times are predictions. None = all.
    """

    source: str
    name: str
    offset: Ticks
    end: int
    time: Ticks
    timescale: int | None
    presentation: bool = False
    moof_size: Ticks | None = None
    data_end: Ticks | None = None
    length: int | None = None
    fine: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """Number of regions."""
        return len(self.offset)

    def stop(self, index: int) -> int:
        """Offset of the byte after region `index`."""
        return int(self.offset[index + 1]) if index + 1 < len(self) else self.end

    def is_fine(self, index: int) -> bool:
        """Whether region `index` can be read as it is."""
        return self.fine is None or bool(self.fine[index])

    def covers(self, size: int) -> bool:
        """True when nothing but an mfra can follow in an object of `size` bytes."""
        return 0 <= size - self.end <= _TAIL_BASE + _TAIL_EACH * len(self)


def parse_sidx(data: bytes, offset: int) -> Anchors:
    """A segment index (ISO/IEC 14496-12 8.16.3), header included, that lies at `offset` in the object.

    Raises Damaged when it is cut, points at other indexes, or is empty.
    """
    notes = Notes()
    box = next(boxes.children(data, 0, len(data), notes), None)
    if box is None or box.kind != b"sidx" or box.cut or box.stop - box.body < 24:
        raise Damaged("no whole sidx")
    payload = data[box.body : box.stop]
    wide = payload[0] != 0
    timescale = int.from_bytes(payload[8:12], "big")
    width = 8 if wide else 4
    earliest = int.from_bytes(payload[12 : 12 + width], "big")
    skipped = int.from_bytes(payload[12 + width : 12 + 2 * width], "big")
    at = 12 + 2 * width + 2
    count = int.from_bytes(payload[at : at + 2], "big")
    if not timescale or not count or count * 12 > len(payload) - at - 2 or max(earliest, skipped) >= 1 << 60:
        raise Damaged("sidx is empty or lies about its length")
    rows = np.frombuffer(payload, ">u4", count * 3, at + 2).reshape(count, 3).astype(np.int64)
    if (rows[:, 0] >> 31).any() or not (rows[:, 0] > 0).all():
        raise Damaged("sidx points at other indexes")
    ends = offset + box.stop + skipped + np.cumsum(rows[:, 0])
    times = earliest + np.cumsum(rows[:, 1]) - rows[:, 1]
    return Anchors(
        "sidx", "sidx", ends - rows[:, 0], int(ends[-1]), times, timescale, True, length=int(rows[-1, 1])
    )


def parse_mfra(data: bytes, end: int, timescales: dict[int, int]) -> Anchors:
    """The random access table of one track (tfra; ISO/IEC 14496-12 8.8.9 to 8.8.11), header included.

    end: where the mfra begins, and so the last region ends. timescales: by track; the table with most
    entries is taken. Raises Damaged when there is none that can be used.
    """
    notes = Notes()
    box = next(boxes.children(data, 0, len(data), notes), None)
    if box is None or box.kind != b"mfra" or box.cut:
        raise Damaged("no whole mfra")
    best: tuple[Ticks, Ticks, int] | None = None
    for child in boxes.inside(data, box, notes, 1):
        if child.kind == b"tfra":
            found = _tfra(data[child.body : child.stop], timescales)
            if found is not None and (best is None or len(found[0]) > len(best[0])):
                best = found
    if best is None:
        raise Damaged("mfra has no usable table")
    times, offsets, timescale = best
    offsets, rows = np.unique(offsets, return_index=True)
    times = times[rows]
    if offsets[0] < 0 or offsets[-1] >= end or (np.diff(times) < 0).any():
        raise Damaged("mfra points outside the movie")
    return Anchors("mfra", "mfra", offsets, end, times, timescale)


def _tfra(payload: bytes, timescales: dict[int, int]) -> tuple[Ticks, Ticks, int] | None:
    """(times, moof offsets, timescale) of a tfra; None where it is empty, cut or of no known track."""
    if len(payload) < 16:
        return None
    wide = payload[0] != 0
    timescale = timescales.get(int.from_bytes(payload[4:8], "big"), 0)
    widths = int.from_bytes(payload[8:12], "big")
    rest = sum((widths >> shift & 3) + 1 for shift in (4, 2, 0))
    count = int.from_bytes(payload[12:16], "big")
    each = np.dtype(
        [("time", ">u8" if wide else ">u4"), ("moof", ">u8" if wide else ">u4"), ("rest", f"V{rest}")]
    )
    if not count or timescale <= 0 or count * each.itemsize > len(payload) - 16:
        return None
    rows = np.frombuffer(payload, each, count, 16)
    if int(rows["time"].max()) >= 1 << 60 or int(rows["moof"].max()) >= 1 << 60:
        return None
    return rows["time"].astype(np.int64), rows["moof"].astype(np.int64), timescale
