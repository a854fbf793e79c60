"""Sidecars, sidx and mfra: what is read, what is refused."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vfs_mp4 import anchors, sidecar
from vfs_mp4.anchors import Anchors

from vfs import Damaged

SIZE = 10_000
ROWS = [(0, 100, 50, 150, 850, 19), (68_400, 1000, 60, 1060, 940, 20), (140_400, 2000, 60, 2060, 500, 10)]


def agree(one: Anchors, other: Anchors) -> bool:
    """Whether two say the same about where the fragments lie and when they begin."""
    same = np.array_equal(one.offset, other.offset) and np.array_equal(one.time, other.time)
    return same and (one.timescale, one.end) == (other.timescale, other.end)


def as_json(rows: Sequence[tuple[Any, ...]] = ROWS, **top: Any) -> bytes:
    keys = ("t", "moofOffset", "moofSize", "mdatOffset", "mdatSize", "sampleCount")
    listed = [dict(zip(keys, row, strict=True)) for row in rows]
    return json.dumps({"version": 1, "trackId": 1, "timescale": 90_000, "fragments": listed} | top).encode()


def as_sqlite(
    folder: Path, rows: Sequence[tuple[Any, ...]] = ROWS, *, default: int | None = None, wal: bool = False
) -> bytes:
    path = folder / "x.sqlite"
    path.unlink(missing_ok=True)
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE meta(timescale, track_id, default_sample_duration)")
    database.execute("INSERT INTO meta VALUES (90000, 1, ?)", (default,))
    database.execute(
        "CREATE TABLE fragments(id INTEGER PRIMARY KEY, t, moof_offset, moof_size, mdat_offset, mdat_size,"
        " sample_count)"
    )
    database.executemany("INSERT INTO fragments VALUES (NULL,?,?,?,?,?,?)", rows)
    database.commit()
    database.close()
    data = path.read_bytes()
    return data[:18] + b"\2\2" + data[20:] if wal else data


def test_both_forms_say_the_same(tmp_path: Path) -> None:
    one, other = sidecar.parse_json(as_json(), SIZE), sidecar.parse_sqlite(as_sqlite(tmp_path), SIZE)
    assert agree(one, other)
    assert one.offset.tolist() == [100, 1000, 2000]
    assert one.time.tolist() == [0, 68_400, 140_400]
    assert (one.end, one.length, one.timescale) == (2560, 36_000, 90_000)


def test_rows_may_come_in_any_order() -> None:
    assert agree(sidecar.parse_json(as_json(ROWS[::-1]), SIZE), sidecar.parse_json(as_json(), SIZE))


def test_a_database_left_in_wal_mode_is_read(tmp_path: Path) -> None:
    assert len(sidecar.parse_sqlite(as_sqlite(tmp_path, wal=True), SIZE)) == 3


def test_the_length_of_the_last_fragment(tmp_path: Path) -> None:
    assert sidecar.parse_sqlite(as_sqlite(tmp_path, default=3600), SIZE).length == 36_000
    assert sidecar.parse_json(as_json(ROWS[:1]), SIZE).length is None


def changed(row: int, column: int, value: object) -> list[tuple[Any, ...]]:
    rows: list[list[Any]] = [list(values) for values in ROWS]
    rows[row][column] = value
    return [tuple(values) for values in rows]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        changed(1, 1, -1),
        changed(1, 1, "x"),
        changed(1, 1, 1.5),
        changed(1, 1, None),
        changed(1, 1, True),
        changed(1, 1, 1 << 70),
        changed(1, 1, 900),
        changed(1, 0, 0),
        changed(1, 2, 0),
        changed(2, 4, 9000),
        changed(0, 4, 5000),
    ],
)
def test_rows_that_cannot_be_are_refused(rows: list[tuple[Any, ...]], tmp_path: Path) -> None:
    with pytest.raises(Damaged):
        sidecar.parse_json(as_json(rows), SIZE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"[" * 100_000,
        as_json(timescale=0),
        as_json(timescale="1"),
        as_json(version=2),
        as_json(fragments=[1]),
        b'{"fragments": [{"t": NaN}], "timescale": 1}',
    ],
)
def test_json_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(Damaged):
        sidecar.parse_json(data, SIZE)


def test_a_view_that_computes_for_ever_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.sqlite"
    database = sqlite3.connect(path)
    database.executescript(
        "CREATE TABLE meta(timescale, track_id, default_sample_duration);"
        "INSERT INTO meta VALUES (90000, 1, NULL);"
        "CREATE VIEW fragments AS WITH RECURSIVE n(t) AS (SELECT 1 UNION ALL SELECT t + 1 FROM n)"
        " SELECT t, t AS moof_offset, t AS moof_size, t AS mdat_offset, t AS mdat_size, t AS sample_count"
        " FROM n;"
    )
    database.close()
    with pytest.raises(Damaged):
        sidecar.parse_sqlite(path.read_bytes(), SIZE)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=20))
def test_mutated_databases_are_refused_or_right(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    global _database
    if not _database:
        _database = as_sqlite(tmp_path_factory.mktemp("db"))
    data = bytearray(_database)
    for at, value in changes:
        data[at % len(data)] = value
    try:
        found = sidecar.parse_sqlite(bytes(data), SIZE)
    except Damaged:
        return
    assert 0 <= found.offset[0] < found.end <= SIZE


_database = b""


@pytest.mark.parametrize(
    ("data", "own", "keys"),
    [
        (
            b'{"frames": [{"offset": 48, "irap_offset": 48}, {"offset": 90, "irap_offset": 48}]}',
            [48, 90],
            [48, 48],
        ),
        (
            b'{"video_url": "x", "iraps": [{"offset": 48, "frames": [{"offset": 48, "size": 3}]}]}',
            [48],
            [48],
        ),
    ],
)
def test_offsets_of_both_versions(data: bytes, own: list[int], keys: list[int]) -> None:
    found = sidecar.parse_offsets(data)
    assert [column.tolist() for column in found] == [own, keys]


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"frames": [{}]}', b'{"frames": [{"offset": -1, "irap_offset": 0}]}']
)
def test_offsets_that_are_none(data: bytes) -> None:
    with pytest.raises(Damaged):
        sidecar.parse_offsets(data)


# ------------------------------------------------------------------ sidx and mfra


def boxed(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def sidx(rows: list[tuple[int, int]], *, count: int | None = None, timescale: int = 1000) -> bytes:
    head = struct.pack(">IIIIIHH", 0, 1, timescale, 500, 10, 0, len(rows) if count is None else count)
    return boxed(b"sidx", head + b"".join(struct.pack(">III", size, length, 0) for size, length in rows))


def test_sidx() -> None:
    data = sidx([(100, 40), (200, 40)])
    found = anchors.parse_sidx(data, 1000)
    begin = 1000 + len(data) + 10
    assert found.offset.tolist() == [begin, begin + 100]
    assert found.time.tolist() == [500, 540]
    assert (found.end, found.stop(0), found.length) == (begin + 300, begin + 100, 40)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        sidx([]),
        sidx([(1, 1)], count=9),
        sidx([(1 << 31, 1)]),
        sidx([(0, 1)]),
        sidx([(1, 1)], timescale=0),
    ],
)
def test_a_sidx_that_lies_is_refused(data: bytes) -> None:
    with pytest.raises(Damaged):
        anchors.parse_sidx(data, 0)


def mfra(times: list[int], offsets: list[int], *, track: int = 1, count: int | None = None) -> bytes:
    head = struct.pack(">IIII", 0, track, 0, len(times) if count is None else count)
    rows = b"".join(struct.pack(">II3s", *pair, b"\1\1\1") for pair in zip(times, offsets, strict=True))
    return boxed(b"mfra", boxed(b"tfra", head + rows) + boxed(b"mfro", struct.pack(">II", 0, 0)))


def test_mfra() -> None:
    found = anchors.parse_mfra(mfra([0, 40, 80], [100, 100, 300]), 900, {1: 50})
    assert found.offset.tolist() == [100, 300]
    assert found.time.tolist() == [0, 80]
    assert (found.timescale, found.end) == (50, 900)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        mfra([], []),
        mfra([0], [100], count=1 << 31),
        mfra([0], [5000]),
        mfra([0], [1], track=7),
        mfra([9, 0], [1, 2]),
    ],
)
def test_an_mfra_that_lies_is_refused(data: bytes) -> None:
    with pytest.raises(Damaged):
        anchors.parse_mfra(data, 900, {1: 50})


def test_what_may_follow_the_last_fragment() -> None:
    found = anchors.Anchors("mfra", "mfra", np.array([0]), 1000, np.array([0]), 1)
    assert found.covers(1000)
    assert found.covers(1100)
    assert not found.covers(999)
    assert not found.covers(100_000)
