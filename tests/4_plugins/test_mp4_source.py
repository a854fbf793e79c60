"""Tables of stored files read by range: as PyAV demuxes them, windows as the whole, few requests."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import sys
import time
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import trio
from vfs_mp4 import source, timeline
from vfs_mp4.model import Movie, Track

from vfs import Damaged, MediaError, NoMedia, OutOfRange

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "scripts")]

from mp4_places import MemoryPlace  # noqa: E402
from sample_media import encode, sidecars  # type: ignore[import-not-found]  # noqa: E402

SHARED = HERE.parents[2] / "shared" / "media"
FILES = sorted(p for p in SHARED.glob("*.m[po][4v]") if "derived" not in p.name) if SHARED.is_dir() else []
# FFmpeg cannot open the first, stops at the broken second (its media is elsewhere).
NOT_BY_FFMPEG = {"media_sample_fragmented_clearkey.mp4", "go-mp4_sample_qt.mp4"}
# FFmpeg joins samples of raw sound to larger packets.
RAW_SOUND = frozenset(("ipcm", "twos", "sowt"))


def opened(place: MemoryPlace) -> Movie:
    return trio.run(source.open_movie, place)


def at(place: MemoryPlace, start: Fraction, stop: Fraction | None = None) -> Movie:
    return trio.run(source.movie_at, place, start, start if stop is None else stop)


def packets(path: Path) -> dict[int, np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
    """(pts, dts, size, position, key) by stream, as stored: edit lists not applied."""
    rows: dict[int, list[tuple[int, ...]]] = {}
    with av.open(str(path), options={"ignore_editlist": "1"}) as container:
        for packet in container.demux():
            if packet.size and packet.pos is not None and packet.pts is not None and packet.dts is not None:
                row = (packet.pts, packet.dts, packet.size, packet.pos, packet.is_keyframe)
                rows.setdefault(packet.stream.index, []).append(row)
    return {index: np.array(found, np.int64) for index, found in rows.items()}


def assert_same(track: Track, found: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> None:
    rows = track.samples
    assert len(rows) == len(found)
    assert np.array_equal(rows.size, found[:, 2])
    assert np.array_equal(rows.offset, found[:, 3])
    assert np.array_equal(rows.sync, found[:, 4])
    # One constant apart at most: FFmpeg moves dts or pts of a track whose offsets are negative.
    assert len(np.unique(found[:, 0] - rows.pts)) == 1
    assert len(np.unique(found[:, 1] - rows.dts)) == 1


@pytest.mark.shared
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_tables_are_what_pyav_demuxes(path: Path) -> None:
    if path.name in NOT_BY_FFMPEG:
        pytest.skip("FFmpeg cannot demux it")
    movie, demuxed = opened(MemoryPlace(path.read_bytes())), packets(path)
    for index, track in enumerate(movie.tracks):
        if index in demuxed and track.codec not in RAW_SOUND:
            assert_same(track, demuxed[index])
    assert movie.complete


@pytest.mark.shared
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_frames_come_up_when_ffmpeg_shows_them(path: Path) -> None:
    if path.name in NOT_BY_FFMPEG or path.name in {
        "decord_corrupted.mp4",
        "media_sample_with_invalid_nalu.mp4",
    }:
        pytest.skip("FFmpeg cannot decode it")
    if path.stat().st_size > 2_500_000 and path.name != "media_sample_edit_list.mp4":
        pytest.skip("large pictures: decoding takes long")
    movie = opened(MemoryPlace(path.read_bytes()))
    if movie.video is None or movie.video.encrypted or movie.video.codec == "vvc1" or "long" in path.name:
        pytest.skip("no pictures that can be decoded quickly")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "SLICE", 1
        times = sorted(frame.pts for frame in container.decode(stream) if frame.pts is not None)
    shown = timeline.shown(movie, movie.video)
    assert len(shown) == len(times)
    assert np.array_equal(np.array(times) - times[0], shown.time - shown.time[0])
    assert (shown.end > shown.time).all()


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "error", "word"),
    [
        ("derived__empty", NoMedia, "empty"),
        ("derived__truncated_mid_moov", Damaged, "moov claims"),
    ],
)
def test_files_beyond_use_say_why(name: str, error: type[MediaError], word: str) -> None:
    with pytest.raises(error, match=word):
        opened(MemoryPlace((SHARED / f"{name}.mp4").read_bytes()))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "count", "word"),
    [
        ("derived__moov_size_lies", 30, "moov claims"),
        ("derived__stsz_count_lies", 30, "stsz claims"),
        ("derived__truncated_mid_mdat", 30, ""),
        ("derived__frag_cut_mid_moof", 594, "moof at 310147"),
        ("media_sample_mdat_too_long", 30, ""),
    ],
)
def test_lying_files_keep_what_is_there(name: str, count: int, word: str) -> None:
    place = MemoryPlace((SHARED / f"{name}.mp4").read_bytes())
    tracemalloc.start()
    begun = time.perf_counter()
    movie = opened(place)
    spent, peak = time.perf_counter() - begun, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert movie.video is not None
    assert len(movie.video.samples) == count
    assert any(word in line for line in movie.damage) == bool(word)
    assert spent < 1
    assert peak < 64 << 20


@pytest.mark.shared
def test_encrypted_tracks_are_flagged_with_their_codec() -> None:
    movie = opened(MemoryPlace((SHARED / "mp4ff_prog_8s_enc_dashinit.mp4").read_bytes()))
    assert [(t.codec, t.encrypted) for t in movie.tracks] == [("avc1", True), ("mp4a", True)]


# ------------------------------------------------------------------ windows

CLIPS: dict[str, dict[str, object]] = {
    "h264": {"codec": "libx264", "gop": 20, "frames": 200, "audio": True},
    "open": {"codec": "libx265", "gop": 20, "frames": 160, "audio": False, "open_gop": True, "tag": "hev1"},
    "vfr": {"codec": "libx264", "gop": 25, "frames": 150, "audio": False, "vfr": True, "bframes": 3},
}


@pytest.fixture(scope="module", params=sorted(CLIPS))
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / f"{request.param}.mp4"
    encode(path, fragmented=True, size=(320, 180), **CLIPS[request.param])
    sidecars(path)
    return path


def beside(path: Path, *suffixes: str) -> dict[str, bytes]:
    return {suffix: Path(f"{path}{suffix}").read_bytes() for suffix in suffixes}


def without_mfra(data: bytes) -> bytes:
    at = data.rindex(b"mfra") - 4
    return data[:at]


def frame_at(movie: Movie, when: Fraction) -> tuple[int, int]:
    """(offset, size) of the picture shown at a time."""
    track = movie.video
    assert track is not None
    shown = timeline.shown(movie, track)
    row = int(shown.order[timeline.row_at(shown, timeline.ticks(when, track, movie))])
    return int(track.samples.offset[row]), int(track.samples.size[row])


def span_of(movie: Movie, when: Fraction) -> list[tuple[int, int]]:
    """(offset, size) of all that must be decoded for the picture at a time."""
    track = movie.video
    assert track is not None
    shown = timeline.shown(movie, track)
    row = int(shown.order[timeline.row_at(shown, timeline.ticks(when, track, movie))])
    key = timeline.start_row(track, np.array([row]))
    rows = slice(key, row + 1)
    return list(zip(track.samples.offset[rows].tolist(), track.samples.size[rows].tolist(), strict=True))


@pytest.mark.parametrize("hint", [".index.sqlite", ".index.json", "mfra", "search"])
def test_a_window_shows_what_the_whole_shows(clip: Path, hint: str) -> None:
    data = clip.read_bytes()
    sides = beside(clip, hint) if hint.startswith(".") else {}
    data = data if hint == "mfra" else without_mfra(data)
    whole = opened(MemoryPlace(without_mfra(data) if hint == "mfra" else data))
    track = whole.video
    assert track is not None
    shown = timeline.shown(whole, track)
    place = MemoryPlace(data, beside=sides)
    picks = random.Random(7)
    numbers = [0, len(shown) - 1, *(picks.randrange(len(shown)) for _ in range(25))]
    for number in numbers:
        for offset in (0, -1, 1):
            when = Fraction(int(shown.time[number]) + offset, track.timescale) - whole.zero
            if when < 0:
                continue
            window = at(place, when)
            assert span_of(window, when) == span_of(whole, when)
            assert (window.zero, window.index_source == "search") == (whole.zero, hint == "search")
            assert not window.exact_duration or window.duration == whole.duration
    assert place.reports == []


def test_a_range_has_all_tracks(clip: Path) -> None:
    whole = opened(MemoryPlace(clip.read_bytes()))
    place = MemoryPlace(clip.read_bytes(), beside=beside(clip, ".index.json"))
    start, stop = Fraction(17, 10), Fraction(31, 10)
    window = at(place, start, stop)
    assert not window.complete
    for small, large in zip(window.tracks, whole.tracks, strict=True):
        kept = []
        for movie, track in ((window, small), (whole, large)):
            shown = timeline.shown(movie, track)
            begin, end = (timeline.ticks(t, track, movie) for t in (start, stop))
            rows = shown.order[timeline.rows_between(shown, begin, end)]
            kept.append(track.samples.offset[rows].tolist())
        assert kept[0] == kept[1]


def test_beyond_the_end_is_out_of_range(clip: Path) -> None:
    place = MemoryPlace(clip.read_bytes(), beside=beside(clip, ".index.json"))
    end = opened(MemoryPlace(clip.read_bytes())).duration
    assert at(place, end).duration == end
    for start, stop in (
        (end, end + 1),
        (end + Fraction(1, 10**6),) * 2,
        (Fraction(-1),) * 2,
        (Fraction(2), Fraction(1)),
    ):
        with pytest.raises(OutOfRange):
            at(place, start, stop)


def read_frame(place: MemoryPlace, when: Fraction) -> int:
    """Read what a picture needs; the bytes that were really needed of the media."""

    async def go() -> int:
        spans = span_of(await source.movie_at(place, when, when), when)
        begin, stop = spans[0][0], spans[-1][0] + spans[-1][1]
        await place.read(begin, stop - begin)
        return stop - begin

    return trio.run(go)


@pytest.mark.parametrize("suffix", [".index.sqlite", ".index.json"])
def test_a_frame_costs_three_requests_cold_and_one_warm(clip: Path, suffix: str) -> None:
    whole = opened(MemoryPlace(clip.read_bytes()))
    init = whole.init
    assert init is not None
    cold, warm, ratios = [], [], []
    for tenth in range(11, int(whole.duration * 10) - 1, 7):
        place = MemoryPlace(clip.read_bytes(), beside=beside(clip, suffix))
        need = init[1] + read_frame(place, Fraction(tenth, 10))
        cold.append(len(place.log))
        ratios.append(place.requested / need)
        place.log.clear()
        read_frame(place, Fraction(tenth, 10))
        assert place.log == []
    place = MemoryPlace(clip.read_bytes(), beside=beside(clip, suffix))
    at(place, Fraction(0))
    for region in range(2, len(whole.fragments) - 1, 2):
        begin = whole.fragments[region]
        assert whole.video is not None
        when = Fraction(begin.decode_time, whole.video.timescale) + Fraction(1, 3)
        place.log.clear()
        read_frame(place, when)
        warm.append(len(place.log))
    print(f"\n{clip.stem}: cold {cold} warm {warm} bytes " + " ".join(f"{r:.2f}" for r in ratios))
    assert max(cold) <= 3
    assert max(warm) <= 1


def test_progressive_costs_three_requests_at_most(tmp_path: Path) -> None:
    path = encode(tmp_path / "p.mp4", frames=60, gop=30, faststart=False, size=(160, 90))
    place = MemoryPlace(path.read_bytes())
    assert at(place, Fraction(1)).complete
    assert len(place.log) <= 3
    place = MemoryPlace(encode(tmp_path / "f.mp4", frames=60, gop=30, size=(160, 90)).read_bytes())
    assert at(place, Fraction(1)).index_source == "moov"
    assert len(place.log) <= 2


# ------------------------------------------------------------------ hints that are wrong


def test_a_sidecar_of_another_file_is_reported_and_ignored(clip: Path, tmp_path: Path) -> None:
    other = encode(tmp_path / "other.mp4", frames=90, gop=15, fragmented=True, audio=False, size=(160, 90))
    sidecars(other)
    place = MemoryPlace(clip.read_bytes(), beside=beside(other, ".index.json"))
    whole = opened(MemoryPlace(clip.read_bytes()))
    assert span_of(at(place, Fraction(3)), Fraction(3)) == span_of(whole, Fraction(3))
    assert any(".index.json ignored" in line for line in place.reports)


def test_a_sidecar_with_one_wrong_row_never_gives_wrong_frames(clip: Path) -> None:
    whole = opened(MemoryPlace(clip.read_bytes()))
    good = beside(clip, ".index.json")[".index.json"]
    row = whole.fragments[3]
    bad = good.replace(f'"t":{row.decode_time},'.encode(), f'"t":{row.decode_time + 1},'.encode())
    assert bad != good
    place = MemoryPlace(clip.read_bytes(), beside={".index.json": bad})
    assert whole.video is not None
    when = Fraction(row.decode_time, whole.video.timescale) + Fraction(1, 5)
    assert span_of(at(place, when), when) == span_of(whole, when)
    assert any("another one" in line for line in place.reports)


@pytest.mark.parametrize("late", [1, 5_000])
@pytest.mark.parametrize("suffixes", [(".index.sqlite",), (".index.sqlite", ".index.json")])
def test_a_row_that_is_late_never_gives_the_frame_before_it(
    clip: Path, tmp_path: Path, suffixes: tuple[str, ...], late: int
) -> None:
    """Where two sidecars disagree, the one that fits is used in the end."""
    whole = opened(MemoryPlace(clip.read_bytes()))
    both = beside(clip, *suffixes)
    row = whole.fragments[3]
    (tmp_path / "db").write_bytes(both[".index.sqlite"])
    with contextlib.closing(sqlite3.connect(tmp_path / "db")) as database, database:
        database.execute("UPDATE fragments SET t = t + ? WHERE t = ?", (late, row.decode_time))
    place = MemoryPlace(clip.read_bytes(), beside=both | {".index.sqlite": (tmp_path / "db").read_bytes()})
    assert whole.video is not None
    for ticks in (row.decode_time, row.decode_time + late - 1, row.decode_time + late):
        when = Fraction(ticks, whole.video.timescale)
        assert span_of(at(place, when), when) == span_of(whole, when)
    assert (at(place, Fraction(1)).index_source == "sidecar") is (len(suffixes) == 2)
    assert [line for line in place.reports if ".index.sqlite ignored" in line]


def test_of_two_sidecars_the_one_that_fits_is_used(clip: Path, tmp_path: Path) -> None:
    other = encode(tmp_path / "other.mp4", frames=90, gop=15, fragmented=True, audio=False, size=(160, 90))
    sidecars(other)
    whole = opened(MemoryPlace(clip.read_bytes()))
    for wrong, right in ((".index.json", ".index.sqlite"), (".index.sqlite", ".index.json")):
        place = MemoryPlace(clip.read_bytes(), beside=beside(clip, right) | beside(other, wrong))
        window = at(place, Fraction(2))
        assert window.index_source == "sidecar"
        assert span_of(window, Fraction(2)) == span_of(whole, Fraction(2))
        # The database is asked first, and the other one only if it has to be.
        assert bool(place.reports) is (wrong == ".index.sqlite")


def test_mutated_files_raise_only_media_errors(clip: Path) -> None:
    data = clip.read_bytes()
    head = data.index(b"mdat")
    picks = random.Random(11)
    for _ in range(150):
        mutated = bytearray(data)
        for _ in range(picks.randrange(1, 6)):
            mutated[picks.randrange(head)] = picks.choice((0, 1, 0x7F, 0x80, 0xFF, picks.randrange(256)))
        place = MemoryPlace(bytes(mutated), beside=beside(clip, ".index.json"))
        try:
            at(place, Fraction(2))
            opened(place)
        except (MediaError, OutOfRange):
            continue


@pytest.mark.parametrize("both", [False, True])
def test_head_and_sidecar_of_a_big_file_are_asked_for_together(
    clip: Path, both: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threshold is lowered instead of making 64 MiB."""
    monkeypatch.setattr(source, "BIG_FILE", 0)
    suffixes = (".index.json", ".index.sqlite") if both else (".index.json",)
    place = MemoryPlace(clip.read_bytes(), beside=beside(clip, *suffixes))
    assert at(place, Fraction(2)).index_source == "sidecar"
    assert len(place.log) == 3


def test_offsets_of_another_file_are_reported(clip: Path) -> None:
    whole = opened(MemoryPlace(clip.read_bytes()))
    assert whole.video is not None
    rows = whole.video.samples
    keys = np.maximum.accumulate(np.where(rows.sync, rows.offset, 0))
    listed = [{"offset": int(o), "irap_offset": int(k)} for o, k in zip(rows.offset, keys, strict=True)]
    fitting = MemoryPlace(
        clip.read_bytes(), beside={".offsets.json": json.dumps({"frames": listed}).encode()}
    )
    opened(fitting)
    assert fitting.reports == []
    listed[5]["offset"] += 1
    wrong = MemoryPlace(clip.read_bytes(), beside={".offsets.json": json.dumps({"frames": listed}).encode()})
    opened(wrong)
    assert wrong.reports == [".offsets.json ignored: frames where the movie has none"]


def test_concurrent_readers_share_one_wrong_sidecar(clip: Path) -> None:
    """Many windows at once while the hint turns out to be wrong: all right, one report."""
    whole = opened(MemoryPlace(clip.read_bytes()))
    row = whole.fragments[2]
    bad = beside(clip, ".index.json")[".index.json"].replace(
        f'"t":{row.decode_time},'.encode(), f'"t":{row.decode_time + 1},'.encode()
    )
    place = MemoryPlace(clip.read_bytes(), beside={".index.json": bad})

    async def one(when: Fraction) -> None:
        assert span_of(await source.movie_at(place, when, when), when) == span_of(whole, when)

    async def go() -> None:
        async with trio.open_nursery() as nursery:
            for tenth in range(2, 40):
                nursery.start_soon(one, Fraction(tenth, 10))

    trio.run(go)
    assert len(place.reports) == 1
