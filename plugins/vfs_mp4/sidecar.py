"""Sidecars written by others: `.index.sqlite`, `.index.json` (Perfect Reads), `.offsets.json`. Pure.

They are untrusted and tied to no version of the video: every row is checked against the object's size here
and against the fragments themselves when used. Anything wrong raises Damaged with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import apsw
import numpy as np

from vfs import Damaged, harden
from vfs_mp4.anchors import Anchors
from vfs_mp4.model import Movie, Ticks

SQLITE, JSON, OFFSETS = ".index.sqlite", ".index.json", ".offsets.json"
# 90 minutes of 0.8 s fragments are 0.3 MB, with the durations of all samples 4 MB.
MAX_BYTES = 32 << 20
_MAX_ROWS = 1_000_000
TABLES = frozenset(("meta", "fragments", "reelfs_source"))
#: Columns of a fragment, in the order of `checked`.
COLUMNS = "t, moof_offset, moof_size, mdat_offset, mdat_size, sample_count"
_KEYS = ("t", "moofOffset", "moofSize", "mdatOffset", "mdatSize", "sampleCount")


@dataclass(frozen=True, slots=True)
class Meta:
    """What a sidecar says of all fragments: ticks a second, ticks a sample, and of which object it was made.

    timescale and default come as they are in the sidecar, unchecked. source: (etag, size), None = not told.
    """

    timescale: object
    default: object
    source: tuple[str, int] | None


def parse(suffix: str, data: bytes, size: int) -> Anchors:
    """The fragments a sidecar lists. suffix: SQLITE or JSON; size: bytes of the video."""
    return (parse_sqlite if suffix == SQLITE else parse_json)(data, size)


def parse_sqlite(data: bytes, size: int) -> Anchors:
    """`.index.sqlite`: tables `meta` and `fragments`; sample_durations is not needed."""
    with _opened(data) as connection:
        meta = meta_of(connection)
        rows = list(connection.execute(f"SELECT {COLUMNS} FROM fragments LIMIT {_MAX_ROWS + 1}"))
    return checked(SQLITE, meta, rows, None, size)


def source_of(data: bytes) -> tuple[str, int] | None:
    """(etag, size) of what an `.index.sqlite` says it was made of; None: it says nothing, or is none."""
    try:
        with _opened(data) as connection:
            return meta_of(connection).source
    except Damaged:
        return None


@contextmanager
def _opened(data: bytes) -> Iterator[apsw.Connection]:
    """A database in memory, query only, with a bound on its work. Raises Damaged for all that SQLite says."""
    if len(data) < 512 or data[:16] != b"SQLite format 3\0":
        raise Damaged("not an SQLite database")
    # A database left in WAL mode (18, 19 = 2) cannot be opened from memory; its main file is complete.
    data = data[:18] + b"\1\1" + data[20:]
    connection = apsw.Connection(":memory:")
    try:
        connection.deserialize("main", data)
        harden(connection, TABLES)
        yield connection
    except (apsw.Error, UnicodeDecodeError, MemoryError) as error:
        raise Damaged(f"unreadable: {error}") from None
    finally:
        connection.close()


def meta_of(connection: apsw.Connection) -> Meta:
    """What the tables `meta` and, where it is there, `reelfs_source` say. Raises Damaged, apsw.Error."""
    meta = list(connection.execute("SELECT timescale, default_sample_duration FROM meta LIMIT 2"))
    if len(meta) != 1:
        raise Damaged(f"meta has {len(meta)} rows")
    try:
        told = list(connection.execute("SELECT etag, size FROM reelfs_source LIMIT 2"))
    except apsw.SQLError:
        told = []
    return Meta(meta[0][0], meta[0][1], _source(*told[0]) if told else None)


def _source(etag: object, size: object) -> tuple[str, int] | None:
    """The object that a sidecar says it is of, None where that is no answer."""
    return (etag, size) if isinstance(etag, str) and isinstance(size, int) else None


def _loaded(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Damaged("not a JSON object")
    return found


def parse_json(data: bytes, size: int) -> Anchors:
    """`.index.json`, version 1."""
    found = _loaded(data)
    listed = found.get("fragments")
    if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
        raise Damaged("no list of fragments")
    if found.get("version", 1) != 1:
        raise Damaged("an unknown version")
    rows = [tuple(row.get(key) for key in _KEYS) for row in listed[: _MAX_ROWS + 1]]
    told = found.get("source")
    source = _source(told.get("etag"), told.get("size")) if isinstance(told, dict) else None
    meta = Meta(found.get("timescale"), found.get("defaultSampleDuration"), source)
    return checked(JSON, meta, rows, listed, size)


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60


def checked(
    name: str,
    meta: Meta,
    rows: Sequence[tuple[Any, ...]],
    listed: Sequence[dict[str, Any]] | None,
    size: int,
) -> Anchors:
    """Rows in any order -> anchors; everything that can be known without the video is checked.

    Raises Damaged.
    """
    timescale = meta.timescale
    if meta.source is not None and meta.source[1] != size:
        raise Damaged(f"it is of an object of {meta.source[1]} bytes, this one has {size}")
    if not isinstance(timescale, int) or not 0 < timescale < 1 << 32:
        raise Damaged("timescale is not a positive number")
    if not 0 < len(rows) <= _MAX_ROWS:
        raise Damaged(f"{len(rows)} fragments")
    if not all(_number(value) for row in rows for value in row):
        raise Damaged("a field that is no number of ticks or bytes")
    table = np.array(rows, np.int64)
    order = np.argsort(table[:, 0], kind="stable")
    time, moof, moof_size, mdat, mdat_size, count = table[order].T
    ends = mdat + mdat_size
    if (moof_size < 8).any() or (mdat != moof + moof_size).any() or (mdat_size < 8).any():
        raise Damaged("a moof without its mdat behind it")
    if (ends[:-1] > moof[1:]).any() or (np.diff(time) <= 0).any():
        raise Damaged("fragments that overlap")
    if ends[-1] > size:
        raise Damaged(f"fragments end at {ends[-1]}, the file at {size}")
    last = None if listed is None else listed[int(order[-1])].get("durations")
    length = _length(time, count, meta.default, last)
    return Anchors(
        source="sidecar",
        name=name,
        offset=moof,
        end=int(ends[-1]),
        time=time,
        timescale=timescale,
        moof_size=moof_size,
        data_end=ends,
        length=length,
    )


def _length(time: Ticks, count: Ticks, default: object, last: object) -> int | None:
    """Ticks the last fragment lasts. Its own "duration" is a copy of the one before: not used."""
    if isinstance(last, list) and last and all(_number(d) and d > 0 for d in last):
        return sum(last)
    if isinstance(default, int) and 0 < default < 1 << 32:
        return int(count[-1]) * default
    if len(time) > 1 and count[-2] > 0:
        return round(int(time[-1] - time[-2]) * int(count[-1]) / int(count[-2]))
    return None


def parse_offsets(data: bytes) -> tuple[Ticks, Ticks]:
    """`.offsets.json` of bucket-streamer, v1 or v2: (offset, offset of its key frame) in decode order.

    v1 has `iraps`, v2 has `frames` at the top; v1 gives each group's own offset for the key frame.
    """
    found = _loaded(data)
    groups, frames = found.get("iraps"), found.get("frames")
    try:
        if isinstance(groups, list):
            pairs = [(frame["offset"], group["offset"]) for group in groups for frame in group["frames"]]
        elif isinstance(frames, list):
            pairs = [(frame["offset"], frame["irap_offset"]) for frame in frames]
        else:
            raise Damaged("neither iraps nor frames")
    except (KeyError, TypeError) as error:
        raise Damaged(f"a frame without its offsets: {error!r}") from None
    if len(pairs) > 8 * _MAX_ROWS or not all(_number(value) for pair in pairs for value in pair):
        raise Damaged("offsets that are no numbers")
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def disagreement(offsets: tuple[Ticks, Ticks], movie: Movie) -> str | None:
    """Why an `.offsets.json` is not of this movie; None when it fits. It is never an index of its own.

    Packets whose position was not known are missing from such a file, so a subset is no contradiction.
    """
    video = movie.video
    if video is None:
        return "the movie has no pictures"
    stored = video.samples.offset
    own, keys = offsets
    if not len(own):
        return "it lists no frames"
    if not np.isin(own, stored).all():
        return "frames where the movie has none"
    named = keys[keys > 0]
    if not np.isin(named, stored[video.samples.sync]).all():
        return "key frames that are none"
    return None
