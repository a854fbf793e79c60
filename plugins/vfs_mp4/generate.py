"""The sidecars that others read, made from the tables of a movie. Pure.

`.index.sqlite` and `.index.json` are those of Perfect Reads, `.offsets.json` is that of bucket-streamer (its
second form). Both indexes also say of which object they are: in a table, and under a key, of their own that
readers of the known schema pass over. The same movie gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import apsw
import numpy as np

from vfs import Unsupported
from vfs_mp4.model import Movie, Samples, Ticks, Track

#: Part of every version: changed when the same movie would give other bytes.
CODE = "mp4.sidecars.1"
_SCHEMA = (
    "PRAGMA page_size = 4096",
    "CREATE TABLE meta(timescale INTEGER NOT NULL, track_id INTEGER NOT NULL,"
    " default_sample_duration INTEGER NULL)",
    "CREATE TABLE reelfs_source(etag TEXT NOT NULL, size INTEGER NOT NULL)",
    "CREATE TABLE fragments(id INTEGER PRIMARY KEY, t INTEGER NOT NULL, moof_offset INTEGER NOT NULL,"
    " moof_size INTEGER NOT NULL, mdat_offset INTEGER NOT NULL, mdat_size INTEGER NOT NULL,"
    " sample_count INTEGER NOT NULL)",
    "CREATE TABLE sample_durations(fragment_id INTEGER NOT NULL, idx INTEGER NOT NULL, dur INTEGER NOT NULL,"
    " PRIMARY KEY(fragment_id, idx))",
)
# The change counter, the version it is valid for and that of SQLite (here 3.46; SQLite's file format, 1.3)
# say who wrote a database, not what is in it. A reader that finds the first two equal believes the size in
# the header.
_WRITER = ((24, b"\0\0\0\1"), (92, b"\0\0\0\1\0\x2e\x7a\x70"))


@dataclass(frozen=True, eq=False)
class Rows:
    """The fragments of a movie as the sidecars list them.

    Columns, one value a fragment: t (decode time, ticks), moof, moof_size, mdat_size, count (samples of the
    first track of the fragment). durations: of all samples, in order. default: the most frequent duration.
    """

    track: Track
    t: Ticks
    moof: Ticks
    moof_size: Ticks
    mdat_size: Ticks
    count: Ticks
    durations: Ticks
    default: int

    @property
    def uneven(self) -> Iterator[tuple[int, Ticks]]:
        """(fragment, durations) of those whose samples do not all last `default`."""
        ends = np.cumsum(self.count)
        others = np.flatnonzero(self.durations != self.default)
        for number in np.unique(np.searchsorted(ends, others, "right")).tolist():
            yield number, self.durations[ends[number] - self.count[number] : ends[number]]


def rows_of(movie: Movie) -> Rows:
    """What the indexes list. Raises Unsupported for a movie that they cannot say."""
    found = movie.fragments
    if movie.init is None or not found:
        raise Unsupported("it has no fragments: its moov is its index")
    track = next((t for t in movie.tracks if t.track_id == found[0].track_id), None)
    t, moof, moof_size, end = (
        np.array(column, np.int64)
        for column in zip(*((f.decode_time, f.offset, f.moof_size, f.end) for f in found), strict=True)
    )
    if track is None or any(f.track_id != track.track_id for f in found) or (np.diff(t) <= 0).any():
        raise Unsupported("tracks with fragments of their own: the known indexes list those of one track")
    samples = track.samples
    owner = np.searchsorted(moof, samples.offset, "right") - 1
    if not len(samples) or (owner < 0).any() or (np.diff(owner) < 0).any():
        raise Unsupported("samples outside of the fragments: the known indexes do not list them")
    count = np.bincount(owner, minlength=len(found)).astype(np.int64)
    lengths, often = np.unique(samples.dur, return_counts=True)
    default = int(lengths[np.argmax(often)])
    return Rows(track, t, moof, moof_size, end - moof - moof_size, count, samples.dur, default)


def index_sqlite(movie: Movie) -> bytes:
    """`.index.sqlite`. Raises Unsupported."""
    rows = rows_of(movie)
    connection = apsw.Connection(":memory:")
    try:
        for statement in _SCHEMA:
            connection.execute(statement)
        with connection:
            _fill(connection, movie, rows)
        connection.execute("CREATE INDEX idx_fragments_t ON fragments(t)")
        data = bytearray(connection.serialize("main"))
    finally:
        connection.close()
    for at, value in _WRITER:
        data[at : at + len(value)] = value
    return bytes(data)


def _fill(connection: apsw.Connection, movie: Movie, rows: Rows) -> None:
    meta = (rows.track.timescale, rows.track.track_id, rows.default or None)
    connection.execute("INSERT INTO meta VALUES (?, ?, ?)", meta)
    source = (movie.object.version, movie.object.size)
    connection.execute("INSERT INTO reelfs_source VALUES (?, ?)", source)
    columns = (rows.t, rows.moof, rows.moof_size, rows.moof + rows.moof_size, rows.mdat_size, rows.count)
    listed = zip(range(len(rows.t)), *(column.tolist() for column in columns), strict=True)
    connection.executemany("INSERT INTO fragments VALUES (?, ?, ?, ?, ?, ?, ?)", listed)
    for number, durations in rows.uneven:
        each = ((number, index, value) for index, value in enumerate(durations.tolist()))
        connection.executemany("INSERT INTO sample_durations VALUES (?, ?, ?)", each)


def index_json(movie: Movie) -> bytes:
    """`.index.json`, version 1. Raises Unsupported."""
    rows = rows_of(movie)
    starts = np.cumsum(rows.count) - rows.count
    lasts = np.add.reduceat(np.append(rows.durations, 0), starts) * (rows.count > 0)
    names = ("t", "moofOffset", "moofSize", "mdatOffset", "mdatSize", "sampleCount", "duration")
    columns = (
        rows.t,
        rows.moof,
        rows.moof_size,
        rows.moof + rows.moof_size,
        rows.mdat_size,
        rows.count,
        lasts,
    )
    listed = [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]
    for number, durations in rows.uneven:
        listed[number]["durations"] = durations.tolist()
    found = {
        "version": 1,
        "trackId": rows.track.track_id,
        "timescale": rows.track.timescale,
        "defaultSampleDuration": rows.default or None,
        "source": {"etag": movie.object.version, "size": movie.object.size},
        "fragments": listed,
    }
    return json.dumps(found, separators=(",", ":")).encode()


def offsets_json(movie: Movie) -> bytes:
    """`.offsets.json`: each picture in decode order, with its key frame. Raises Unsupported without any."""
    if movie.video is None:
        raise Unsupported("there are no pictures")
    rows: Samples = movie.video.samples
    keys = np.where(rows.sync, np.arange(len(rows)), -1)
    last = np.maximum.accumulate(keys) if len(rows) else keys
    # Before the first key frame there is none: 0, as the known generator has it.
    key = np.where(last >= 0, rows.offset[np.maximum(last, 0)], 0) if len(rows) else rows.offset
    pairs = zip(rows.offset.tolist(), key.tolist(), strict=True)
    listed = [{"offset": offset, "irap_offset": irap} for offset, irap in pairs]
    found = {"video_url": movie.object.key, "frames": listed}
    return json.dumps(found, separators=(",", ":")).encode()
