"""Whole files in another form: the same samples at the same times, nothing copied or fetched beforehand."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

sys.path[:0] = [str(Path(__file__).parent)]
import mp4_exact  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from mp4_whole import boxes, content, index_of, inside, node_of, packets, spliced  # noqa: E402
from vfs_mp4 import codecs, source, streams, timeline  # noqa: E402
from vfs_mp4.model import Edit, Movie, Samples, Track  # noqa: E402
from vfs_mp4.whole import Whole  # noqa: E402

from vfs import Directory, Inline, Layout, StoredObject, Unsupported  # noqa: E402

SOURCES: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "moov at end": {"faststart": False},
    "fragmented": {"fragmented": True},
    "hevc open group": {"codec": "libx265", "open_gop": True, "bframes": 3},
    "vfr": {"vfr": True},
    "ntsc": {"fps": Fraction(30000, 1001)},
    "coarse": {"timescale": 30},
    "delayed": {"delay": Fraction(1, 5)},
    "trimmed": {"trim": Fraction(1, 2)},
    "trimmed coarse": {"trim": Fraction(1, 2), "timescale": 30},
    "opus": {"audio_codec": "libopus"},
    "silent": {"audio": False},
    "vp9": {"codec": "libvpx-vp9", "audio_codec": "libopus"},
    "mov": {"audio_codec": "pcm_s16le"},
}
STREAMS = ("hls/video/stream.mp4", "dash/video/stream.mp4")
SOUND = "hls/audio/stream.mp4"


@functools.cache
def place_of(name: str) -> MemoryPlace:
    folder = Path(mp4_exact._FOLDER.name)
    path = folder / f"whole {name}.{'mov' if name == 'mov' else 'mp4'}"
    mp4_exact.encode(path, **{"frames": 90, "size": (160, 90), "gop": 24, **SOURCES[name]})
    return MemoryPlace(path.read_bytes(), f"games/{path.name}")


@pytest.fixture(params=SOURCES)
def place(request: pytest.FixtureRequest) -> MemoryPlace:
    return place_of(request.param)


def read(place: MemoryPlace, path: str) -> bytes:
    return trio.run(content, place, path)


def movie_of(place: MemoryPlace) -> Movie:
    return trio.run(source.open_movie, place)


# ---------------------------------------------------------------- what is shown, and when


def test_every_picture_is_shown_when_the_source_shows_it(place: MemoryPlace) -> None:
    """Bit for bit, on the line of path times; the first from 0 on. Hidden ones go by in a ms."""
    truth = mp4_exact.truth_of(place)
    movie = movie_of(place)
    names = STREAMS if movie.init is not None else (*STREAMS, "fragmented.mp4")
    for name in names:
        frames = mp4_exact.decode(read(place, name))
        hidden = len(frames) - len(truth.frames)
        assert hidden >= 0
        assert [f.hash for f in frames[hidden:]] == [f.hash for f in truth.frames], name
        assert frames[0].time == 0
        first, *times = [f.time for f in frames[hidden:]]
        assert first < Fraction(1, 500)
        assert all(
            abs(time - (frame.time - truth.zero)) < Fraction(1, 10_000)
            for time, frame in zip(times, truth.frames[1:], strict=True)
        ), name


def test_decoding_goes_before_showing(place: MemoryPlace) -> None:
    """No composition offset is negative: FFmpeg would move the whole track; the first is decoded at 0."""
    for name in STREAMS:
        found = packets(read(place, name), "video")
        assert found[0].dts == 0
        assert all(packet.dts <= packet.pts for packet in found)
        assert all(a.dts <= b.dts for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("name", ["plain", "vfr", "delayed", "ntsc", "vp9"])
def test_fragments_are_decoded_from_when_they_are_shown(name: str) -> None:
    """Players that begin in the middle, or lay fragments behind each other, know their decode time alone."""
    data = read(place_of(name), STREAMS[0])
    scale, _, rows = index_of(data)
    edges = [Fraction(int(ticks), scale) for ticks in np.cumsum([0, *rows[:, 1]])]
    decoded = {packet.pts: packet.dts for packet in packets(data, "video")}
    assert len(edges) > 2
    assert [decoded[edge] for edge in edges[:-1]] == edges[:-1]


def test_no_picture_lasts_longer_than_it_is_shown(place: MemoryPlace) -> None:
    """Chromium, paused after a seek, shows a picture as long as it lasts, even where the next is due."""
    samples = movie_of(MemoryPlace(read(place, STREAMS[0]))).tracks[0].samples
    order = np.argsort(samples.pts, kind="stable")
    # Hidden ones are shown for a tick each.
    assert (samples.dur[order][:-1] <= np.maximum(np.diff(samples.pts[order]), 2)).all()
    assert samples.dur[order][-1] > 0
    assert (samples.dur >= 0).all()


@pytest.mark.parametrize("name", [n for n in SOURCES if n not in ("silent", "mov")])
def test_sound_is_heard_when_the_source_sounds(name: str) -> None:
    """Every packet that is heard, on the line of the pictures, to one tick of the movie's clock."""
    place, movie = place_of(name), movie_of(place_of(name))
    track = next(t for t in movie.tracks if t.handler == "soun")
    stored = packets(place.data, "audio")
    lengths = {
        p.data: Fraction(int(d), track.timescale) for p, d in zip(stored, track.samples.dur, strict=True)
    }
    heard = [p for p in stored if p.pts - movie.zero + lengths[p.data] > 0]
    paths = (SOUND,) if movie.init is not None else (SOUND, "fragmented.mp4")
    for path in paths:
        found = packets(read(place, path), "audio")
        assert [p.data for p in found] == [p.data for p in heard][: len(found)]
        assert len(found) >= len(heard) - 1  # what begins where the edit list ends is not heard
        for mine, theirs in zip(found, heard, strict=False):
            assert abs(mine.pts - max(theirs.pts - movie.zero, Fraction(0))) <= Fraction(1, 1000)


def test_an_edit_list_of_parts_is_played_as_it_is_written() -> None:
    """Cut out of the middle, repeated, out of order: each part is decoded from a key frame of its own."""
    place = place_of("silent")
    plain = movie_of(place)
    (track,) = plain.tracks
    scale = plain.timescale
    start = track.edits[0].media_time if track.edits else 0
    tick = track.timescale // 30
    parts = [(50, 20), (10, 15), (11, 10)]
    edits = tuple(Edit(count * scale // 30, start + first * tick) for first, count in parts)
    cut = replace(track, edits=edits)
    movie = replace(plain, tracks=(cut,), duration=Fraction(45, 30), zero=Fraction(0))
    layout = streams.streamed(movie, [cut]).layout
    data = mp4_exact.content(place, layout)
    frames = mp4_exact.decode(data)
    whole = mp4_exact.truth_of(place).frames
    shown = timeline.shown(movie, cut)
    rank = np.argsort(np.argsort(cut.samples.pts, kind="stable"))
    wanted = [whole[int(rank[row])].hash for row in shown.order]
    times = {f.time: f.hash for f in frames}
    ends = [
        *(Fraction(int(t), cut.timescale) for t in shown.time[1:]),
        Fraction(int(shown.end[-1]), cut.timescale),
    ]
    for number, (hash, end) in enumerate(zip(wanted, ends, strict=True)):
        # What is on the screen a little before each picture goes.
        at = max(t for t in times if t <= end - Fraction(1, 100))
        assert times[at] == hash, number
    assert frames[-1].time < ends[-1]


# ---------------------------------------------------------------- boxes and indexes


def test_boxes_are_as_players_want_them(place: MemoryPlace) -> None:
    """tfhd, tfdt, trun; 32-bit mdats; brands in the list, too; no edit list, samples in fragments alone."""
    movie = movie_of(place)
    names = {*STREAMS, *(["fragmented.mp4"] if movie.init is None else [])}
    for name in names | ({SOUND} if place is place_of("plain") else set()):
        data = read(place, name)
        tops = boxes(data)
        assert [b.kind for b in tops[:3]] == ["ftyp", "moov", "sidx"]
        assert [b.kind for b in tops[3:]] == ["moof", "mdat"] * (len(tops[3:]) // 2)
        assert b"iso6" in data[16 : tops[0].size]
        assert b"elst" not in data[: tops[2].offset]
        for number, moof in enumerate((b for b in tops if b.kind == "moof"), 1):
            mfhd, *trafs = inside(data, moof)
            assert int.from_bytes(data[mfhd.offset + 12 : mfhd.offset + 16], "big") == number
            for traf in trafs:
                assert [b.kind for b in inside(data, traf)] == ["tfhd", "tfdt", "trun"]


def test_the_index_and_the_playlist_say_where_the_fragments_are(place: MemoryPlace) -> None:
    """Offsets, sizes, times; the playlist to a microsecond, without an error that grows."""
    data = read(place, STREAMS[0])
    text = read(place, "hls/video/playlist.m3u8").decode()
    tops = boxes(data)
    moofs = [n for n, box in enumerate(tops) if box.kind == "moof"]
    fragments = [(tops[n].offset, tops[n].size + tops[n + 1].size) for n in moofs]
    ranges = [line.partition(":")[2].split("@") for line in text.splitlines() if "BYTERANGE:" in line]
    assert [(int(offset), int(size)) for size, offset in ranges] == fragments
    scale, start, rows = index_of(data)
    assert (start, rows[:, 0].tolist()) == (0, [size for _, size in fragments])
    told = [float(line.split(":")[1].rstrip(",")) for line in text.splitlines() if line.startswith("#EXTINF")]
    edges = np.cumsum(rows[:, 1]) / scale
    assert np.abs(np.cumsum(told) - edges).max() <= 1e-6
    shown = sorted(packet.pts for packet in packets(data, "video"))
    assert all(min(abs(float(t) - e) for t in shown) < 1e-6 for e in edges[:-1])
    manifest = read(place, "dash/manifest.mpd").decode()
    assert f'indexRange="{tops[2].offset}-{fragments[0][0] - 1}"' in manifest
    assert f'range="0-{tops[2].offset - 1}"' in manifest
    assert ("#EXT-X-INDEPENDENT-SEGMENTS" in text) == bool((rows[:, 2] >> 28 & 7 == 1).all())


def test_open_groups_are_not_called_independent() -> None:
    data = read(place_of("hevc open group"), STREAMS[0])
    kinds = index_of(data)[2][:, 2] >> 28
    assert kinds.tolist() == [9, *[11] * (len(kinds) - 1)]
    assert b"INDEPENDENT" not in read(place_of("hevc open group"), "hls/master.m3u8")


def test_the_master_tells_what_is_in_the_streams() -> None:
    text = read(place_of("plain"), "hls/master.m3u8").decode()
    assert 'CODECS="avc1.4D400B,mp4a.40.2",RESOLUTION=160x90,FRAME-RATE=30.000,AUDIO="sound"' in text
    assert 'CHANNELS="1",URI="audio/playlist.m3u8"' in text
    assert text.endswith("\nvideo/playlist.m3u8\n")
    text = read(place_of("silent"), "hls/master.m3u8").decode()
    assert "AUDIO" not in text
    assert "FRAME-RATE=29.970," in read(place_of("ntsc"), "hls/master.m3u8").decode()


def test_fragments_of_a_fragmented_file_stay_as_they_are() -> None:
    """An index is put before them, the rest is the file's own."""
    place = place_of("fragmented")
    movie = movie_of(place)
    data = read(place, "fragmented.mp4")
    assert movie.init is not None
    init, first = movie.init[1], movie.fragments[0].offset
    tops = boxes(data)
    index = next(b for b in tops if b.kind == "sidx")
    assert (index.offset, data[:init]) == (init, place.data[:init])
    last = movie.fragments[-1].end
    assert data[index.offset + index.size :] == place.data[first:last]
    scale, _, rows = index_of(data)
    keys = [box.offset for box in tops if box.kind == "moof"]
    assert rows[:, 0].tolist() == np.diff([*keys, len(data)]).tolist()
    assert rows[:, 1].sum() / scale == pytest.approx(3.0)
    assert [f.hash for f in mp4_exact.decode(data)] == [f.hash for f in mp4_exact.decode(place.data)]


# ---------------------------------------------------------------- cost


def test_nothing_but_tables_is_read_to_describe_them(place: MemoryPlace) -> None:
    """All bytes of media in a layout are extents of the stored file."""

    async def main() -> None:
        fresh = MemoryPlace(place.data, place.path)
        await source.open_movie(fresh)
        before = fresh.requested
        for name in ("fragmented.mp4", *STREAMS, "hls/master.m3u8", "dash/manifest.mpd"):
            layout = (await spliced(fresh, name)).layout
            inline = sum(span.length for span in layout.spans if isinstance(span, Inline))
            assert inline < 40_000
        assert fresh.requested == before

    trio.run(main)


def test_two_hours_are_described_in_a_moment_and_a_few_megabytes() -> None:
    """432,000 pictures and 337,000 packets of sound, interleaved one by one: 24 bytes and less for each."""
    pictures, packets = 432_000, 337_500
    movie = _interleaved(pictures, packets)
    made = streams.streamed(movie, list(movie.tracks))
    assert made.nbytes < 24 * (pictures + packets)
    assert made.layout.size > made.offset[-1]
    assert len(made.size) == 3600
    assert made.time[-1] == 7200 * movie.tracks[0].timescale
    window = made.layout.window(made.layout.size // 2, 1 << 20)
    assert window.size == 1 << 20
    assert len(window.spans) < 500


def _interleaved(pictures: int, packets: int) -> Movie:
    """Two hours at 60 pictures a second, a key each two seconds."""
    rng = np.random.default_rng(1)
    sizes = [rng.integers(2000, 40_000, pictures), rng.integers(300, 500, packets)]
    times = np.concatenate((np.arange(pictures) / 60, np.arange(packets) / 46.875))
    order = np.argsort(times, kind="stable")
    offset = np.empty(pictures + packets, np.int64)
    ordered = np.concatenate(sizes)[order]
    offset[order] = np.cumsum(ordered) - ordered
    offsets = [offset[:pictures], offset[pictures:]]
    tracks = []
    for number, (size, at, scale, step) in enumerate(
        zip(sizes, offsets, (15_360, 48_000), (256, 1024), strict=True)
    ):
        count = len(size)
        dts = np.arange(count) * step
        sync = np.arange(count) % 120 == 0 if not number else np.ones(count, np.bool_)
        rows = Samples(dts, np.full(count, step), dts, size, at, sync, np.ones(count, np.int32))
        kind, codec = (("vide", "avc1"), ("soun", "mp4a"))[number]
        tracks.append(Track(number + 1, kind, scale, codec, rows, (), {"stsd": bytes(60)}))
    stored = StoredObject("games/long.mp4", int(ordered.sum()), "v")
    return Movie(stored, 1000, tuple(tracks), Fraction(0), Fraction(7200))


# ---------------------------------------------------------------- what has none


def test_names_are_those_that_the_file_has() -> None:
    async def main() -> None:
        plain, mov = place_of("plain"), place_of("mov")
        assert set(await Whole().entries(plain)) == {"faststart.mp4", "fragmented.mp4", "hls", "dash"}
        folder = await node_of(mov, "hls")
        assert isinstance(folder, Directory)
        assert set(await folder.entries()) == {"master.m3u8", "video"}
        assert await folder.lookup("audio") is None
        assert await Whole().resolve(plain, "hls.mp4") is None
        assert await Whole().entries(MemoryPlace(b"\0\0\0\x08free" * 20)) == {}

    trio.run(main)


def test_uncompressed_sound_is_in_the_fragments_of_the_whole() -> None:
    """No browser plays it, so it has no stream; FFmpeg does, sample for sample."""
    place = place_of("mov")
    mine, stored = (
        b"".join(p.data for p in packets(d, "audio")) for d in (read(place, "fragmented.mp4"), place.data)
    )
    assert mine == stored


def test_a_codec_that_no_browser_has_says_so() -> None:
    path = Path(mp4_exact._FOLDER.name) / "part2.mp4"
    mp4_exact.encode(path, codec="mpeg4", frames=30, size=(160, 90))
    place = MemoryPlace(path.read_bytes())

    async def main() -> None:
        assert set(await Whole().entries(place)) == {"faststart.mp4", "fragmented.mp4"}
        with pytest.raises(Unsupported, match="mp4v is no codec of browsers"):
            await node_of(place, "hls/master.m3u8")

    trio.run(main)
    assert len(mp4_exact.decode(read(place, "fragmented.mp4"))) == 30


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, "avc1.4D400B"),
        ({"codec": "libx265"}, "hvc1.1.6.L30.90"),
        ({"codec": "libx265", "pix_fmt": "yuv420p10le"}, "hvc1.2.4.L30.90"),
        ({"codec": "libvpx-vp9"}, "vp09.00.10.08"),
    ],
)
def test_codec_strings(options: dict[str, Any], wanted: str) -> None:
    path = Path(mp4_exact._FOLDER.name) / "codec.mp4"
    mp4_exact.encode(path, **{"frames": 4, "size": (160, 90), "audio": False, **options})
    (track,) = movie_of(MemoryPlace(path.read_bytes())).tracks
    assert codecs.codec_string(track) == wanted


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("media_edit_list_positive_shift.mp4", marks=pytest.mark.slow),
        "media_bbb_800x640_768kbps_30fps_avc_pyramid_3b.mp4",
        "media_iibbibb_editlist_videoonly.mp4",
        "moviepy_chaplin.mp4",
        pytest.param("media_sample_fragmented_seekable_multiple_sidx.mp4", marks=pytest.mark.slow),
    ],
)
def test_real_files(name: str) -> None:
    place = mp4_exact.shared(name)
    truth = mp4_exact.truth_of(place)
    frames = mp4_exact.decode(read(place, STREAMS[0]))
    assert [f.hash for f in frames[len(frames) - len(truth.frames) :]] == [f.hash for f in truth.frames]


def test_layouts_of_the_same_file_are_the_same() -> None:
    """The inode and everything cached hang on it."""
    one, two = (MemoryPlace(place_of("plain").data) for _ in range(2))
    first, second = (trio.run(spliced, place, STREAMS[0]) for place in (one, two))
    assert first.version == second.version
    assert first.layout == second.layout
    assert first.layout != Layout.whole(one.object)
