"""What a container says of itself: META, SAFE, the SEEK table, tracks; and answers to seeks. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: JSON of a container is taken up to this many bytes; a multi-track one of 100,000 blocks has 13 MB.
MAX_JSON = 32 << 20


def parse_json(payload: bytes) -> Any:
    """The value; as the original has it, `{"_raw": length}` for what is no JSON."""
    if len(payload) <= MAX_JSON:
        try:
            return json.loads(payload.decode("utf-8"))
        except (ValueError, RecursionError):
            pass
    return {"_raw": len(payload)}


def is_raw(value: Any) -> bool:
    """Stands for JSON that could not be read."""
    return isinstance(value, dict) and set(value) == {"_raw"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a seek table. index: in the table as stored. offset: as stored (decoded bytes; of
    media-kernel-le an offset in the file). block: its block, None where that is not known.
    """

    index: int
    pts_us: int
    offset: int
    block: int | None = None


@dataclass(frozen=True)
class Seeks:
    """A seek table, asked for the last entry at or before a time; of equal times the last as stored."""

    entries: tuple[Entry, ...]
    _sorted: tuple[Entry, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sorted", tuple(sorted(self.entries, key=lambda e: e.pts_us)))

    def at(self, pts_us: int) -> tuple[Entry, bool] | None:
        """The last entry with pts <= t, and False; before all the first, and True. None without any."""
        if not self._sorted:
            return None
        found = bisect_right(self._sorted, pts_us, key=lambda e: e.pts_us)
        return (self._sorted[found - 1], False) if found else (self._sorted[0], True)


def parse_seek(payload: bytes) -> Seeks | None:
    """The table of a SEEK chunk (u32 count; u64 pts_us, u64 offset); None where its count lies."""
    if len(payload) < 4:
        return None
    (count,) = struct.unpack_from(">I", payload)
    if count * 16 > len(payload) - 4:
        return None
    rows = np.frombuffer(payload, ">u8", 2 * count, 4).reshape(-1, 2).tolist()
    return Seeks(tuple(Entry(n, pts, offset) for n, (pts, offset) in enumerate(rows)))


@dataclass(frozen=True, slots=True)
class TrackTable:
    """One track. blocks: their indices, in order of presentation as stored. pts_us, kinds: of each ("I",
    "P", "B"). seeks: its key frames; `Entry.offset` is the number of the block (media-kernel-le: an offset).
    about: what else is said of it.
    """

    track_id: str
    blocks: tuple[int, ...] = ()
    pts_us: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()
    seeks: Seeks = field(default_factory=lambda: Seeks(()))
    about: Mapping[str, Any] = field(default_factory=dict)


def tracks_of_meta(meta: Mapping[str, Any], count: int) -> tuple[dict[str, TrackTable], list[str]]:
    """Tracks of a transport-be container, from META's `trak_b64` and `seekm_b64`; and what is wrong there.

    count: blocks in the container; rows that point beyond are left out.
    """
    problems: list[str] = []
    rows: dict[str, list[tuple[int, int, str]]] = {}
    listed = meta.get("tracks")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    for name in names:
        rows.setdefault(name, [])
    try:
        told = json.loads(base64.b64decode(meta.get("trak_b64", "") or b"e30=", validate=True))
        for row in told.get("trak", []):
            index, pts = int(row["core_index"]), int(row["pts_us"])
            if 0 <= index < count:
                rows.setdefault(str(row["track_id"]), []).append((index, pts, str(row.get("kind", ""))))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        problems.append("META.trak_b64 cannot be read")
    try:
        seeks = parse_seekm(base64.b64decode(meta.get("seekm_b64", "") or b"AAAAAA==", validate=True))
    except (binascii.Error, struct.error, UnicodeDecodeError, TypeError, ValueError):
        problems.append("META.seekm_b64 cannot be read")
        seeks = {}
    found = {}
    for name in dict.fromkeys([*rows, *seeks]):
        own = rows.get(name, [])
        entries = tuple(
            Entry(n, pts, core, core if core < count else None)
            for n, (pts, core) in enumerate(seeks.get(name, ()))
        )
        found[name] = TrackTable(
            name,
            tuple(i for i, _, _ in own),
            tuple(p for _, p, _ in own),
            tuple(k for _, _, k in own),
            Seeks(entries),
        )
    return found, problems


def parse_seekm(data: bytes) -> dict[str, list[tuple[int, int]]]:
    """Rows (pts_us, core_index) by track. u32 tracks; each u16 length, id, u32 n, n * (u64, u32)."""
    found: dict[str, list[tuple[int, int]]] = {}
    (tracks,) = struct.unpack_from(">I", data)
    at = 4
    for _ in range(tracks):
        (length,) = struct.unpack_from(">H", data, at)
        name = data[at + 2 : at + 2 + length].decode("utf-8")
        (count,) = struct.unpack_from(">I", data, at + 2 + length)
        at += 6 + length
        if count * 12 > len(data) - at:
            raise ValueError("more rows than bytes")
        found[name] = [struct.unpack_from(">QI", data, at + 12 * n) for n in range(count)]
        at += 12 * count
    return found


def map_offsets(seeks: Seeks, sizes: NDArray[np.int64] | None, meta: Mapping[str, Any], count: int) -> Seeks:
    """The table with the block of each entry: its offset counts decoded bytes.

    sizes: of the decoded blocks, -1 = unknown, None = none of them known; beyond an unknown one only
    META.block_size (offset / size) or META.gop (entry i is block i * gop) help.
    """
    starts = ends = np.zeros(0, np.int64)
    if sizes is not None:
        unknown = np.flatnonzero(sizes < 0)
        solid = sizes[: int(unknown[0])] if len(unknown) else sizes
        ends = np.cumsum(solid)
        starts = ends - solid
    step, gop = _positive(meta.get("block_size")), _positive(meta.get("gop"))

    def block(entry: Entry) -> int | None:
        if len(ends) and entry.offset < int(ends[-1]):
            at = int(np.searchsorted(ends, entry.offset, "right"))
            return at if int(starts[at]) <= entry.offset else None
        if len(ends) == count:
            return None
        if step is not None:
            return entry.offset // step if entry.offset // step < count else None
        if gop is not None:
            return entry.index * gop if entry.index * gop < count else None
        return None

    return Seeks(tuple(Entry(e.index, e.pts_us, e.offset, block(e)) for e in seeks.entries))


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def block_size(meta: Mapping[str, Any]) -> int | None:
    """META.block_size: what every block of an export but the last decodes to."""
    return _positive(meta.get("block_size"))


def parse_tsek(payload: bytes) -> tuple[int, list[tuple[int, int]]] | None:
    """Track and rows (pts_ms, offset in the file) of a TSEK chunk; None where it cannot be read.

    "H4TS", u16 track, u16 0, "H4SK", u16 count, u16 0, count * (u32, u32), little endian.
    """
    if len(payload) < 16 or payload[:4] != b"H4TS" or payload[8:12] != b"H4SK":
        return None
    track, count = struct.unpack_from("<4xH6xH", payload)
    if count * 8 > len(payload) - 16:
        return None
    return track, [struct.unpack_from("<II", payload, 16 + 8 * n) for n in range(count)]


def track_rows(payload: Any) -> Sequence[Mapping[str, Any]]:
    """The tracks of a TRAK chunk of media-kernel-le."""
    told = payload.get("tracks") if isinstance(payload, dict) else None
    return [row for row in told if isinstance(row, dict)] if isinstance(told, list) else []
