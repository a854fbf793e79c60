"""Boxes, sample tables and fragments from synthetic bytes: rules, lies, speed."""

from __future__ import annotations

import struct
import time
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vfs_mp4 import boxes, fragments, index, timeline
from vfs_mp4.boxes import Notes
from vfs_mp4.index import Defaults
from vfs_mp4.model import Edit, Movie, Samples, Track

from vfs import Damaged, MediaError


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, bytes([version]) + flags.to_bytes(3, "big"), *parts)


def rows(*values: int) -> bytes:
    return np.array(values, np.int64).astype(">u4").tobytes()


def counted(kind: bytes, count: int, data: bytes) -> bytes:
    return full(kind, rows(count), data)


def stbl(*tables: bytes) -> bytes:
    entry = box(b"avc1", bytes(78))
    return box(b"stbl", full(b"stsd", rows(1), entry), *tables)


def trak(tables: bytes, *, number: int = 1, timescale: int = 1000, edits: bytes = b"") -> bytes:
    return box(
        b"trak",
        full(b"tkhd", bytes(8), rows(number), bytes(68)),
        edits,
        box(
            b"mdia",
            full(b"mdhd", bytes(8), rows(timescale, 0), b"\x15\xc7\0\0"),
            full(b"hdlr", bytes(4), b"vide", bytes(13)),
            box(b"minf", full(b"vmhd", bytes(8)), tables),
        ),
    )


def moov(*children: bytes, timescale: int = 1000) -> bytes:
    return box(b"moov", full(b"mvhd", bytes(8), rows(timescale, 0), bytes(80)), *children)


def simple(count: int = 6, *extra: bytes) -> bytes:
    """`count` samples of 10 bytes in chunks of 2 at 100, 200, ..., all 40 ticks long."""
    chunks = (count + 1) // 2
    return stbl(
        counted(b"stts", 1, rows(count, 40)),
        counted(b"stsc", 1, rows(1, 2, 1)),
        full(b"stsz", rows(10, count)),
        counted(b"stco", chunks, rows(*range(100, 100 * chunks + 1, 100))),
        *extra,
    )


def only(data: bytes, size: int = 10_000) -> Track:
    return index.parse_moov(data, size).tracks[0]


def test_sample_places_times_and_language() -> None:
    track = only(moov(trak(simple())))
    assert track.samples.offset.tolist() == [100, 110, 200, 210, 300, 310]
    assert track.samples.dts.tolist() == [0, 40, 80, 120, 160, 200]
    assert track.samples.sync.all()
    assert (track.language, track.handler, track.codec, track.usable) == ("eng", "vide", "avc1", True)
    assert track.boxes is not None
    assert track.boxes["stsd"][4:8] == b"stsd"


def test_ctts_is_signed_in_version_0_and_zero_where_it_is_short() -> None:
    track = only(moov(trak(simple(4, counted(b"ctts", 2, rows(1, 80, 1, -40 & 0xFFFFFFFF))))))
    assert track.samples.pts.tolist() == [80, 0, 80, 120]


def test_no_stss_is_all_sync_and_an_empty_one_is_none() -> None:
    assert only(moov(trak(simple(4)))).samples.sync.tolist() == [True] * 4
    assert not only(moov(trak(simple(4, counted(b"stss", 0, b""))))).samples.sync.any()
    some = only(moov(trak(simple(4, counted(b"stss", 3, rows(1, 3, 99))))))
    assert some.samples.sync.tolist() == [True, False, True, False]


@pytest.mark.parametrize(("width", "data"), [(4, b"\x12\x30"), (8, b"\1\2\3"), (16, b"\0\1\0\2\0\3")])
def test_compact_sizes(width: int, data: bytes) -> None:
    tables = stbl(
        counted(b"stts", 1, rows(3, 1)),
        counted(b"stsc", 1, rows(1, 3, 1)),
        full(b"stz2", bytes([0, 0, 0, width]), rows(3), data),
        counted(b"stco", 1, rows(8)),
    )
    assert only(moov(trak(tables))).samples.size.tolist() == [1, 2, 3]


def test_offsets_past_4_gib() -> None:
    far = 5 << 32
    tables = stbl(
        counted(b"stts", 1, rows(1, 1)),
        counted(b"stsc", 1, rows(1, 1, 1)),
        full(b"stsz", rows(7, 1)),
        counted(b"co64", 1, struct.pack(">Q", far)),
    )
    assert only(moov(trak(tables)), far + 7).samples.offset.tolist() == [far]


def test_a_short_stts_goes_on_with_its_last_value() -> None:
    tables = simple(6).replace(rows(6, 40), rows(2, 40))
    found = index.parse_moov(moov(trak(tables)), 10_000)
    assert found.tracks[0].samples.dts.tolist() == [0, 40, 80, 120, 160, 200]
    assert any("stts" in line for line in found.damage)


@pytest.mark.parametrize("kind", [b"stts", b"stsc", b"stco", b"stsz"])
def test_a_lying_count_allocates_nothing(kind: bytes) -> None:
    data = bytearray(moov(trak(simple())))
    at = data.index(kind) + (12 if kind == b"stsz" else 8)
    data[at : at + 4] = b"\x7f\xff\xff\xff"
    tracemalloc.start()
    found = index.parse_moov(bytes(data), 10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert found.tracks[0].samples.offset.tolist()[:6] == [100, 110, 200, 210, 300, 310]


def test_more_samples_than_the_cap_make_the_track_unusable() -> None:
    tables = stbl(
        counted(b"stts", 1, rows(9_000_000, 1)),
        counted(b"stsc", 1, rows(1, 9_000_000, 1)),
        full(b"stsz", rows(1, 9_000_000)),
        counted(b"stco", 1, rows(8)),
    )
    found = index.parse_moov(moov(trak(tables), trak(simple(), number=2)), 1 << 40)
    assert [track.usable for track in found.tracks] == [False, True]


def test_timescale_0_is_unusable_with_a_reason() -> None:
    found = index.parse_moov(moov(trak(simple(), timescale=0)), 10_000)
    assert not found.tracks[0].usable
    assert any("timescale" in line for line in found.damage)


def test_a_size_below_its_header_ends_that_level() -> None:
    notes = Notes()
    data = box(b"free") + struct.pack(">I4s", 4, b"loop") + box(b"free")
    assert [b.kind for b in boxes.children(data, 0, len(data), notes)] == [b"free"]
    assert "loop claims 4 bytes" in notes.damage[0]


def test_64_bit_and_open_ended_sizes() -> None:
    data = struct.pack(">I4sQ", 1, b"free", 20) + b"data" + struct.pack(">I4s", 0, b"mdat") + b"rest"
    found = list(boxes.children(data, 0, len(data), Notes()))
    assert [(b.kind, b.body, b.stop) for b in found] == [(b"free", 16, 20), (b"mdat", 28, 32)]


def test_too_many_boxes_are_refused() -> None:
    with pytest.raises(Damaged, match="boxes"):
        index.parse_moov(box(b"moov", box(b"free") * 30_000), 1 << 20)


def test_300_000_samples() -> None:
    """Prints the time; what it must not exceed is checked by the benchmarks."""
    count = 300_000
    many = np.arange(count, dtype=np.int64)
    deltas = np.stack((np.ones(count, np.int64), 512 + many % 3), axis=1)
    tables = stbl(
        counted(b"stts", count, rows(*deltas.ravel())),
        counted(b"ctts", count, rows(*np.stack((np.ones(count, np.int64), many % 4), axis=1).ravel())),
        counted(b"stsc", 1, rows(1, 1, 1)),
        full(b"stsz", rows(0, count, *(100 + many % 50))),
        counted(b"co64", count, (48 + many * 200).astype(">u8").tobytes()),
        counted(b"stss", count // 60, rows(*range(1, count, 60))),
    )
    data = moov(trak(tables))
    begun = time.perf_counter()
    track = only(data, 1 << 40)
    spent = time.perf_counter() - begun
    print(f"\nindex of {count} samples, {len(data)} bytes: {spent * 1000:.1f} ms")
    assert np.array_equal(track.samples.dts, np.cumsum(deltas[:, 1]) - deltas[:, 1])
    assert np.array_equal(track.samples.offset, 48 + many * 200)
    assert int(track.samples.sync.sum()) == count // 60


# ------------------------------------------------------------------ fragments


def tfhd(flags: int, *fields: int, number: int = 1) -> bytes:
    return full(b"tfhd", rows(number, *fields), flags=flags)


def trun(flags: int, count: int, *fields: int) -> bytes:
    return full(b"trun", rows(count, *[field & 0xFFFFFFFF for field in fields]), flags=flags)


def tfdt(when: int) -> bytes:
    return full(b"tfdt", struct.pack(">Q", when), version=1)


def moof(*trafs: bytes) -> bytes:
    return box(b"moof", full(b"mfhd", rows(1)), *trafs)


DEFAULTS = {1: Defaults(1, 10, 20, 0x10000), 2: Defaults(3, 7, 9, 0)}


def parse(data: bytes, offset: int = 1000, times: dict[int, int] | None = None) -> fragments.Moof:
    return fragments.parse_moof(data, offset, DEFAULTS, times or {})


def test_defaults_of_tfhd_win_over_trex() -> None:
    found = parse(moof(box(b"traf", tfhd(0x20018, 40, 5), tfdt(100), trun(0x5, 3, 200, 0x2000000))))
    samples = found.rows[1]
    assert samples.dts.tolist() == [100, 140, 180]
    assert samples.size.tolist() == [5, 5, 5]
    assert samples.offset.tolist() == [1200, 1205, 1210]
    # first_sample_flags for the first, trex for the others
    assert samples.sync.tolist() == [True, False, False]
    assert found.timed


def test_fields_of_a_run_win_over_all_and_offsets_are_signed() -> None:
    run = trun(0xF01, 2, 50, 3, 11, 0x2000000, -6, 4, 12, 0x1010000, 6)
    samples = parse(moof(box(b"traf", tfhd(0x20038, 40, 5, 0), tfdt(0), run))).rows[1]
    assert samples.dur.tolist() == [3, 4]
    assert samples.size.tolist() == [11, 12]
    assert samples.pts.tolist() == [-6, 9]
    assert samples.sync.tolist() == [True, False]


def test_bases_of_data() -> None:
    first = box(b"traf", tfhd(0), tfdt(0), trun(0x1, 2, 100), trun(0, 1))
    second = box(b"traf", tfhd(0, number=2), tfdt(0), trun(0, 1))
    third = box(b"traf", tfhd(0x20000, number=2), tfdt(50), trun(0x1, 1, 10))
    fourth = box(b"traf", full(b"tfhd", rows(2), struct.pack(">Q", 5000), flags=1), tfdt(90), trun(0, 1))
    found = parse(moof(first, second, third, fourth))
    assert found.rows[1].offset.tolist() == [1100, 1120, 1140]
    assert found.rows[2].offset.tolist() == [1160, 1010, 5000]
    assert found.rows[2].description.tolist() == [3, 3, 3]


def test_without_tfdt_the_track_goes_on() -> None:
    found = parse(moof(box(b"traf", tfhd(0x20000), trun(0, 2))), times={1: 77})
    assert found.rows[1].dts.tolist() == [77, 87]
    assert not found.timed


@pytest.mark.parametrize(
    "data",
    [
        moof(box(b"traf", tfhd(0x20000), tfdt(0), trun(0xF00, 1 << 30))),
        moof(box(b"traf", tfhd(0x20000), tfdt(0), trun(0, 1 << 30))),
        moof(box(b"traf", tfdt(0), trun(0, 1))),
        moof(),
        moof(box(b"traf", tfhd(0x20000), tfdt(0), trun(0, 1)))[:-4],
        moof(box(b"traf", tfhd(0x20000), tfdt((1 << 64) - 1), trun(0, 1))),
        b"",
    ],
)
def test_lying_fragments_are_refused(data: bytes) -> None:
    with pytest.raises(Damaged):
        parse(data)


# ------------------------------------------------------------------ the player line


def track_of(
    pts: list[int],
    edits: tuple[Edit, ...] = (),
    *,
    dur: int = 10,
    sync: list[int] | None = None,
    handler: str = "vide",
) -> Track:
    count = len(pts)
    keys = np.zeros(count, np.bool_)
    keys[sync if sync is not None else [0]] = True
    column = np.arange(count, dtype=np.int64)
    samples = Samples(
        dts=column * dur,
        dur=np.full(count, dur, np.int64),
        pts=np.array(pts, np.int64),
        size=np.ones(count, np.int64),
        offset=column,
        sync=keys,
        description=np.ones(count, np.int32),
    )
    return Track(1, handler, 100, "avc1", samples, edits)


def placed(track: Track, *, shift_only: bool = False) -> timeline.Shown:
    return timeline.place_samples(track, 1000, shift_only=shift_only)


@pytest.mark.parametrize("when", [1 << 32, 1 << 61, (1 << 63) - 1, (1 << 64) - 1])
def test_edit_lists_with_times_beyond_reason_are_refused_or_shown(when: int) -> None:
    """Whatever 64 bits can say, in the coarsest and the finest clock."""
    media = min(when, (1 << 63) - 1)
    for edits in ((Edit(when, 0),), (Edit(when, -1), Edit(0, 0)), (Edit(when, media),), (Edit(0, media),)):
        for timescale in (1, 1 << 31):
            for shift_only in (False, True):
                track = track_of([0, 10, 20], edits)
                try:
                    shown = timeline.place_samples(track, timescale, shift_only=shift_only)
                except Damaged:
                    continue
                assert shown.time.dtype == shown.end.dtype == np.int64
                assert (shown.end > shown.time).all()


def test_display_order_and_ends() -> None:
    shown = placed(track_of([0, 30, 10, 20]))
    assert shown.order.tolist() == [0, 2, 3, 1]
    assert shown.time.tolist() == [0, 10, 20, 30]
    assert shown.end.tolist() == [10, 20, 30, 40]


def test_a_trim_shows_what_begins_inside_it() -> None:
    shown = placed(track_of([0, 10, 20, 30, 40], (Edit(200, 15),)))
    assert shown.order.tolist() == [2, 3]
    assert shown.time.tolist() == [5, 15]
    assert shown.end.tolist() == [15, 20]


def test_sound_is_heard_from_the_edit_on() -> None:
    shown = placed(track_of([0, 10, 20, 30, 40], (Edit(200, 15),), handler="soun"))
    assert shown.order.tolist() == [1, 2, 3]
    assert shown.time.tolist() == [0, 5, 15]


def test_delays_and_several_edits_are_laid_end_to_end() -> None:
    edits = (Edit(100, -1), Edit(200, 20), Edit(100, 0))
    shown = placed(track_of([0, 10, 20, 30, 40], edits))
    assert shown.order.tolist() == [2, 3, 0]
    assert shown.time.tolist() == [10, 20, 30]
    assert shown.end.tolist() == [20, 30, 40]


def test_a_dwell_holds_one_frame_and_a_rate_stretches() -> None:
    held = placed(track_of([0, 10, 20], (Edit(500, 15, Fraction(0)),)))
    assert (held.order.tolist(), held.time.tolist(), held.end.tolist()) == ([1], [0], [50])
    slow = placed(track_of([0, 10, 20], (Edit(600, 0, Fraction(1, 2)),)))
    assert slow.time.tolist() == [0, 20, 40]


def test_fragments_are_shifted_never_trimmed() -> None:
    shown = placed(track_of([0, 10, 20], (Edit(40, -1), Edit(10, 10))), shift_only=True)
    assert shown.time.tolist() == [-6, 4, 14]


def test_no_edit_list_of_delays_alone_hides_everything() -> None:
    assert placed(track_of([0, 10], (Edit(100, -1),))).time.tolist() == [10, 20]


def test_an_edit_list_that_repeats_without_end_is_refused() -> None:
    edits = tuple(Edit(0, 0) for _ in range(4000))
    with pytest.raises(Damaged, match="too often"):
        placed(track_of(list(range(100)), edits))


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30), st.integers(-50, 500))
def test_row_at_is_the_greatest_time_not_after(pts: list[int], when: int) -> None:
    shown = placed(track_of(pts))
    expected = max([p for p in pts if p <= when], default=min(pts))
    assert int(shown.time[timeline.row_at(shown, when)]) == expected


def test_start_row_steps_back_for_leading_pictures() -> None:
    # decode: I0 P3 b1 b2 | K6 b4 b5 P8
    track = track_of([0, 30, 10, 20, 60, 40, 50, 80], sync=[0, 4])
    assert timeline.start_row(track, np.array([4])) == 4
    assert timeline.start_row(track, np.array([7])) == 4
    assert timeline.start_row(track, np.array([5])) == 0
    assert timeline.start_row(track, np.array([4, 6])) == 0
    assert not timeline.decodable(track_of([60, 40, 50], sync=[0]), np.array([1]))
    assert timeline.start_row(track_of([60, 40, 50], sync=[]), np.array([1])) == 0


def test_ticks_round_down_with_exact_fractions() -> None:
    track = track_of([0])
    movie = Movie(None, 1000, (track,), Fraction(1, 8), Fraction(1))  # type: ignore[arg-type]
    assert timeline.ticks(Fraction("0.1"), track, movie) == 22


# ------------------------------------------------------------------ hostile bytes

VALID_MOOV = moov(
    trak(
        simple(8, counted(b"ctts", 1, rows(8, 20)), counted(b"stss", 2, rows(1, 5))),
        edits=box(b"edts", full(b"elst", rows(2, 100, 0xFFFFFFFF, 0x10000, 0, 20, 0x10000))),
    ),
    box(b"mvex", full(b"trex", rows(1, 1, 10, 20, 0))),
)
VALID_MOOF = moof(box(b"traf", tfhd(0x20038, 40, 5, 0), tfdt(9), trun(0xF05, 1, 8, 0, 4, 12, 0, 6)))
MUTATIONS = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=8)


def mutated(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    out = bytearray(data)
    for at, value in changes:
        out[at % len(out)] = value
    return bytes(out)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MUTATIONS, st.integers(0, 400))
def test_mutated_moovs_raise_media_errors_only(changes: list[tuple[int, int]], cut: int) -> None:
    data = mutated(VALID_MOOV, changes)
    data = data[: len(data) - cut] if cut < 200 else data
    try:
        found = index.parse_moov(data, 100_000)
        for track in found.tracks:
            if track.timescale > 0:
                timeline.place_samples(track, found.timescale, shift_only=False)
    except MediaError:
        return
    assert sum(len(track.samples) for track in found.tracks) <= 200_000


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MUTATIONS)
def test_mutated_moofs_raise_media_errors_only(changes: list[tuple[int, int]]) -> None:
    try:
        found = parse(mutated(VALID_MOOF, changes))
    except MediaError:
        return
    assert sum(len(part) for part in found.rows.values()) <= 500_000
