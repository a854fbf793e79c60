"""Movie fragments of a whole file: all their headers in one array of words, their data as spans. Pure.

A two-hour game has 430,000 samples in 3,600 fragments: every field is written for all fragments together.
All of a moof is 32-bit words (ISO/IEC 14496-12, 8.8). Of each track there is one run of samples in the
order tfhd, tfdt, trun, which is what players insist on; its data lies together.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vfs import Layout, SpanTable, StoredObject, Unsupported
from vfs_mp4 import splice, write
from vfs_mp4.lanes import Lane
from vfs_mp4.model import Ticks

#: tfhd: description, default duration and flags follow, data is counted from the moof.
_TFHD = 0x020000 | 0x2 | 0x8 | 0x20
_DEFAULT_SIZE = 0x10
#: trun: a data offset, then per sample duration, size, flags, composition offset.
_DATA_OFFSET, _DURATION, _SIZE, _FLAGS, _OFFSET = 0x1, 0x100, 0x200, 0x400, 0x800
Field = NDArray[np.int64] | int


@dataclass(frozen=True, eq=False)
class Woven:
    """Fragments one after another. heads: bytes of all moofs and mdat headers; head, data: bytes of each.

    spans: where the data of all is, as (first of each fragment, offset in the object, length).
    """

    heads: bytes
    head: Ticks
    data: Ticks
    first: Ticks
    offset: Ticks
    length: Ticks

    def layout(self, stored: StoredObject, front: bytes) -> Layout:
        """A file of `front` and the fragments."""
        inside = np.cumsum(self.head) - self.head + len(front)
        inline = self.head.copy()
        inside[0], inline[0] = 0, inline[0] + len(front)
        starts = np.insert(self.offset, self.first, ~inside)
        ends = np.cumsum(np.insert(self.length, self.first, inline))
        return Layout(SpanTable(stored, front + self.heads, starts.data, ends.data))


@dataclass(frozen=True, eq=False)
class _Part:
    """One lane in all fragments: rows [low, high) of each. size: bytes of each row."""

    lane: Lane
    low: Ticks
    high: Ticks
    size: Ticks

    @property
    def count(self) -> Ticks:
        """Rows in each fragment."""
        return self.high - self.low

    @property
    def bytes(self) -> Ticks:
        """Of data in each fragment."""
        return _sums(self.size, self.low, self.high)

    def uneven(self, values: Ticks) -> NDArray[np.bool_]:
        """Whether the values of a fragment are not all equal to its first."""
        changes = np.concatenate(([0], np.cumsum(values[1:] != values[:-1]))) if len(values) else values
        last = np.maximum(self.high - 1, self.low)
        top = max(len(values) - 1, 0)
        found: NDArray[np.bool_] = changes[np.minimum(last, top)] != changes[np.minimum(self.low, top)]
        return found & (self.count > 0)

    def first(self, values: Ticks) -> Ticks:
        """The first value of each fragment; anything of one without rows."""
        return values[np.minimum(self.low, len(values) - 1)]


def _sums(values: Ticks, low: Ticks, high: Ticks) -> Ticks:
    total = np.concatenate(([0], np.cumsum(values)))
    found: Ticks = total[high] - total[low]
    return found


def woven(stored: StoredObject, lanes: Sequence[Lane], cuts: Sequence[Ticks]) -> Woven:
    """The fragments of lanes. cuts: of each lane the rows at which they begin, and the end.

    Raises Damaged where samples lie outside the object, Unsupported for a track that changes its
    description within a fragment.
    """
    parts = []
    for lane, bounds in zip(lanes, cuts, strict=True):
        size = lane.track.samples.size[lane.rows]
        splice.check_inside(stored, lane.track.samples.offset[lane.rows], size)
        parts.append(_Part(lane, bounds[:-1], bounds[1:], size))
    heads, head = _heads(parts)
    data = np.sum([part.bytes for part in parts], axis=0)
    return Woven(heads, head, data, *_spans(parts))


# ---------------------------------------------------------------- headers


@dataclass(frozen=True, eq=False)
class _Run:
    """The traf of one lane in all fragments, but where it is. fields: words before the samples, in order.

    columns: values per row, and in which fragments they are written. words: of each traf, 0 = none.
    """

    part: _Part
    fields: list[Field]
    columns: list[tuple[Ticks, NDArray[np.bool_]]]
    words: Ticks


def _heads(parts: Sequence[_Part]) -> tuple[bytes, Ticks]:
    """(all headers, bytes of each: a moof and the header of its mdat)."""
    runs = [_run(part) for part in parts]
    words = 8 + np.sum([run.words for run in runs], axis=0)
    out = np.zeros(int(words.sum()), np.uint32)
    start = np.cumsum(words) - words
    number = np.arange(1, len(words) + 1)
    _put(out, start, [(words - 2) * 4, _kind(b"moof"), 16, _kind(b"mfhd"), 0, number])
    at, data = start + 6, words * 4
    for run in runs:
        there = run.words > 0
        _write(out, at, there, run, data)
        at, data = at + run.words, data + run.part.bytes
    _put(out, at, [data - words * 4 + 8, _kind(b"mdat")])
    return out.astype(">u4").tobytes(), words * 4


def _kind(name: bytes) -> int:
    return int.from_bytes(name, "big")


def _put(out: NDArray[np.uint32], at: Ticks, fields: Sequence[Field]) -> None:
    """Words one after another, at each of the places."""
    for number, value in enumerate(fields):
        out[at + number] = np.asarray(value, np.int64) & write.U32


def _run(part: _Part) -> _Run:
    lane, samples = part.lane, part.lane.track.samples
    description = samples.description[lane.rows].astype(np.int64)
    if part.uneven(description).any():
        raise Unsupported(f"track {lane.track.track_id} changes its description between key frames")
    flags = np.where(samples.sync[lane.rows], write.SYNC_FLAGS, write.OTHER_FLAGS)
    unit = lane.track.unit
    always = np.full(len(part.low), not unit)
    each = part.size // unit if unit else np.ones(len(part.size), np.int64)
    duration = lane.dur // np.maximum(each, 1)
    columns = [
        (duration, part.uneven(duration) & always),
        (part.size, always),
        (flags, part.uneven(flags)),
        (lane.cts, _sums(lane.cts != 0, part.low, part.high) > 0),
    ]
    bits = _DATA_OFFSET + sum(
        bit * there.astype(np.int64)
        for bit, (_, there) in zip((_DURATION, _SIZE, _FLAGS, _OFFSET), columns, strict=True)
    )
    times = part.first(lane.dts)
    tfhd: list[Field] = [lane.track.track_id, part.first(description), part.first(duration)]
    tfhd += [unit] * bool(unit) + [part.first(flags)]
    bits_of_tfhd = _TFHD | _DEFAULT_SIZE * bool(unit)
    width = sum(there.astype(np.int64) for _, there in columns)
    trun = 20 + 4 * part.count * width
    fields: list[Field] = [0, _kind(b"traf"), 4 * (3 + len(tfhd)), _kind(b"tfhd"), bits_of_tfhd, *tfhd]
    fields += [20, _kind(b"tfdt"), 1 << 24, times >> 32, times]
    fields += [trun, _kind(b"trun"), 1 << 24 | bits, _sums(each, part.low, part.high), 0]
    words = np.where(part.count > 0, len(fields) + part.count * width, 0)
    fields[0] = 4 * words
    return _Run(part, fields, columns, words)


def _write(out: NDArray[np.uint32], at: Ticks, there: NDArray[np.bool_], run: _Run, data: Ticks) -> None:
    """One traf in each fragment that has it. data: offset of its data from the moof."""
    fields = [value[there] if isinstance(value, np.ndarray) else value for value in run.fields]
    _put(out, at[there], [*fields[:-1], data[there]])
    width = sum(column.astype(np.int64) for _, column in run.columns)
    count = run.part.count
    place = np.repeat(at + len(fields) - run.part.low * width, count)
    place += np.arange(len(place)) * np.repeat(width, count)
    for values, column in run.columns:
        written = np.repeat(column, count)
        out[place[written]] = values[written] & write.U32
        place += written


# ---------------------------------------------------------------- data


def _spans(parts: Sequence[_Part]) -> tuple[Ticks, Ticks, Ticks]:
    """(the first span of each fragment, offset, length): the data of fragment by fragment, lane by lane."""
    number = np.concatenate(
        [np.repeat(np.arange(len(p.low)) * len(parts) + n, p.count) for n, p in enumerate(parts)]
    )
    offset = np.concatenate([part.lane.track.samples.offset[part.lane.rows] for part in parts])
    size = np.concatenate([part.size for part in parts])
    if len(parts) > 1:
        order = np.argsort(number, kind="stable")
        number, offset, size = number[order], offset[order], size[order]
    some = size > 0
    number, offset, size = number[some] // len(parts), offset[some], size[some]
    breaks = (offset[1:] != offset[:-1] + size[:-1]) | (number[1:] != number[:-1])
    starts = np.flatnonzero(np.concatenate((np.ones(min(len(offset), 1), np.bool_), breaks)))
    length = np.add.reduceat(size, starts) if len(starts) else size
    first = np.searchsorted(number[starts], np.arange(len(parts[0].low)), "left")
    return first, offset[starts], length


# ---------------------------------------------------------------- index


def sidx(track_id: int, timescale: int, start: int, rows: Sequence[tuple[int, int, int]]) -> bytes:
    """A segment index (ISO/IEC 14496-12, 8.16.3) that stands before the first fragment, version 1.

    start: earliest presentation in ticks. rows: (bytes, ticks, type of the access point it begins with,
    0 = none) of each fragment.
    """
    table = b"".join(
        struct.pack(">III", size, ticks, (kind > 0) << 31 | kind << 28) for size, ticks, kind in rows
    )
    head = struct.pack(">IIQQHH", track_id, timescale, start, 0, 0, len(rows))
    return write.full(b"sidx", 1, 0, head, table)
