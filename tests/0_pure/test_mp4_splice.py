"""Splicing on made-up tables: what is written, read back by the reader, shows what was asked for."""

from __future__ import annotations

import struct
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vfs_mp4 import clips, index, plan, segments, splice, timeline, write
from vfs_mp4.model import Edit, Fragment, Movie, Samples, Ticks, Track

from vfs import Damaged, Extent, Inline, Layout, OutOfRange, StoredObject, parse_derived

OBJECT = StoredObject("games/x.mp4", 1 << 40, "v1")
#: The smallest sample description that readers take.
STSD = write.full(
    b"stsd", 0, 0, struct.pack(">I", 1), write.box(b"avc1", bytes(24), struct.pack(">HH", 64, 36), bytes(50))
)


def track(
    count: int,
    *,
    timescale: int = 600,
    dur: Ticks | None = None,
    late: Ticks | None = None,
    gop: int = 10,
    edits: tuple[Edit, ...] = (),
    handler: str = "vide",
    number: int = 1,
    base: int = 1000,
) -> Track:
    """Samples of 100, 101, ... bytes with 7 bytes between them, a key each `gop`."""
    steps = np.full(count, 20, np.int64) if dur is None else dur
    dts = np.cumsum(steps) - steps
    size = 100 + np.arange(count)
    samples = Samples(
        dts=dts,
        dur=steps,
        pts=dts + (np.zeros(count, np.int64) if late is None else late),
        size=size,
        offset=base + np.cumsum(size + 7) - size,
        sync=np.arange(count) % gop == 0,
        description=np.ones(count, np.int32),
    )
    return Track(number, handler, timescale, "avc1", samples, edits, {"stsd": STSD})


def movie(*tracks: Track, timescale: int = 600) -> Movie:
    pairs = [(t, timeline.place_samples(t, timescale, shift_only=False)) for t in tracks]
    zero = timeline.zero(pairs)
    return Movie(OBJECT, timescale, tracks, zero, timeline.end(pairs) - zero)


def window(of: Movie, text: str) -> plan.Window:
    derived = parse_derived(f"{text}.mp4")
    assert derived is not None
    return plan.locate(of, derived.selection)


def boxes(data: bytes) -> dict[bytes, bytes]:
    """Top-level boxes of the synthesised front, the mdat without its payload."""
    found, at = {}, 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        stop = at + size if size > 1 else len(data)
        found[kind] = data[at:stop]
        at = stop
    return found


def read_back(layout: Layout) -> tuple[Movie, list[tuple[int, int]]]:
    """The clip as the reader sees it, and where in the source each byte range of it lies."""
    front = layout.spans[0]
    assert isinstance(front, Inline)
    moov = index.parse_moov(boxes(front.data)[b"moov"], layout.size)
    assert moov.damage == ()
    made = movie(*moov.tracks, timescale=moov.timescale)
    at, ranges = front.length, []
    for span in layout.spans[1:]:
        assert isinstance(span, Extent)
        ranges.append((at, span.offset))
        at += span.length
    return made, ranges


def source_offset(ranges: list[tuple[int, int]], position: int) -> int:
    start, offset = max(r for r in ranges if r[0] <= position)
    return offset + position - start


def shown_offsets(clip: Movie, ranges: list[tuple[int, int]]) -> list[int]:
    """Where in the source the samples lie that the clip shows, in order."""
    video = clip.tracks[0]
    rows = timeline.shown(clip, video).order
    return [source_offset(ranges, int(p)) for p in video.samples.offset[rows]]


@st.composite
def movies(draw: st.DrawFn) -> Movie:
    """Any order of display within a few frames, any lengths, perhaps an edit that trims."""
    count = draw(st.integers(2, 60))
    dur = np.array(draw(st.lists(st.integers(1, 90), min_size=count, max_size=count)), np.int64)
    gop = draw(st.integers(1, 25))
    dts = np.cumsum(dur) - dur
    # A permutation within blocks of up to four: the display times are those of the block, shuffled.
    late, at = np.zeros(count, np.int64), 0
    while at < count:
        block = list(range(at, min(at + draw(st.integers(1, 4)), count)))
        order = draw(st.permutations(block))
        late[block] = dts[list(order)] - dts[block] + 90
        at += len(block)
    edits: tuple[Edit, ...] = ()
    if draw(st.booleans()):
        edits = (Edit(draw(st.integers(1, 3000)), draw(st.integers(0, int(dts[-1]))) + 90),)
        if draw(st.booleans()):
            edits = (Edit(draw(st.integers(1, 500)), -1), *edits)
    return movie(track(count, dur=dur, late=late, gop=gop, edits=edits))


@settings(max_examples=150, deadline=None)
@given(movies(), st.data())
def test_a_clip_read_back_shows_the_wanted_frames_and_times(of: Movie, data: st.DataObject) -> None:
    video = of.tracks[0]
    shown = timeline.shown(of, video)
    if not len(shown):
        return
    first = data.draw(st.integers(0, len(shown) - 1))
    last = data.draw(st.integers(first, len(shown) - 1))
    wanted = plan.Window(of, video, shown, first, last)
    clip, ranges = read_back(clips.exact(wanted))
    got = timeline.shown(clip, clip.tracks[0])
    assert shown_offsets(clip, ranges) == video.samples.offset[wanted.rows].tolist()
    assert (got.time - got.time[0]).tolist() == (shown.time[first : last + 1] - shown.time[first]).tolist()
    lasts = sum(edit.duration for edit in clip.tracks[0].edits)
    assert lasts == int(shown.end[last] - shown.time[first])


@settings(max_examples=60, deadline=None)
@given(movies(), st.data())
def test_the_key_form_begins_with_a_key_frame_and_ends_alike(of: Movie, data: st.DataObject) -> None:
    video = of.tracks[0]
    shown = timeline.shown(of, video)
    if not len(shown):
        return
    first = data.draw(st.integers(0, len(shown) - 1))
    wanted = plan.Window(of, video, shown, first, data.draw(st.integers(first, len(shown) - 1)))
    back = splice.back_to_key(wanted)
    clip, ranges = read_back(clips.from_key(wanted))
    offsets = shown_offsets(clip, ranges)
    assert offsets == video.samples.offset[back.rows].tolist()
    assert offsets[-len(wanted.rows) :] == video.samples.offset[wanted.rows].tolist()


def test_two_edits_in_the_source_are_two_in_the_clip() -> None:
    edits = (Edit(200, 100), Edit(300, 700))
    of = movie(track(60, edits=edits))
    wanted = window(of, "f0-")
    clip, ranges = read_back(clips.exact(wanted))
    assert shown_offsets(clip, ranges) == of.tracks[0].samples.offset[wanted.rows].tolist()
    assert len(clip.tracks[0].edits) == 2


def test_media_between_two_edits_far_apart_is_not_kept() -> None:
    of = movie(track(1000, edits=(Edit(200, 0), Edit(200, 18_000))))
    assert len(read_back(clips.exact(window(of, "f0-")))[0].tracks[0].samples) == 20


def test_sound_and_pictures_share_a_clock_without_rounding() -> None:
    video = track(300, timescale=15_360, dur=np.full(300, 512, np.int64))
    sound = track(
        500, timescale=44_100, dur=np.full(500, 1024, np.int64), gop=1, handler="soun", number=2, base=10**6
    )
    of = movie(video, sound)
    clip, _ = read_back(clips.exact(window(of, "f40-f70")))
    assert clip.timescale % 15_360 == 0
    assert clip.timescale % 44_100 == 0
    assert clip.duration == 1
    ends = [timeline.shown(clip, t).time[0] for t in clip.tracks]
    assert ends == [0, 0]


def test_a_chunk_is_what_lies_together() -> None:
    """Samples with a gap between them are a chunk and a span each; without, one of all."""
    of = movie(track(30))
    assert len(clips.exact(window(of, "f10-f20")).extents) == 10
    samples = of.tracks[0].samples
    tight = replace(samples, offset=1000 + np.cumsum(samples.size) - samples.size)
    of = movie(replace(of.tracks[0], samples=tight))
    assert len(clips.exact(window(of, "f10-f20")).extents) == 1


@pytest.mark.parametrize("form", [clips.exact, clips.from_key])
def test_samples_beyond_the_object_are_damage_for_their_range_alone(form: object) -> None:
    whole = movie(track(30))
    of = replace(whole, object=replace(OBJECT, size=int(whole.tracks[0].samples.offset[15])))
    assert clips.exact(window(of, "f0-f10")).size > 0
    with pytest.raises(Damaged):
        clips.exact(window(of, "f12-f20"))


# ---------------------------------------------------------------- fragments


@settings(max_examples=60, deadline=None)
@given(movies(), st.data())
def test_a_made_fragment_holds_the_samples_that_are_needed(of: Movie, data: st.DataObject) -> None:
    video = of.tracks[0]
    shown = timeline.shown(of, video)
    if not len(shown):
        return
    at = data.draw(st.integers(0, len(shown) - 1))
    wanted = plan.Window(of, video, shown, at, at)
    read = segments.made(wanted, sound=True)
    rows = segments.decoded_rows(wanted)
    assert sum(e.length for e in read.layout.extents) == int(video.samples.size[rows].sum())
    times = np.sort(video.samples.pts[rows])
    assert times[read.index] == video.samples.pts[wanted.rows[0]]


def fragmented(count: int, each: int, *, first_sync: bool = True) -> Movie:
    made = track(count, gop=each)
    offset = made.samples.offset
    starts = offset[::each] - 7
    ends = [*starts[1:].tolist(), int(offset[-1] + made.samples.size[-1])]
    parts = tuple(Fragment(int(a), 7, b, 0) for a, b in zip(starts, ends, strict=True))
    if not first_sync:
        made = replace(made, samples=replace(made.samples, sync=np.arange(count) % (2 * each) == 0))
    return replace(movie(made), fragments=parts, init=(0, 900))


def test_stored_fragments_are_given_whole_and_in_one_piece() -> None:
    of = fragmented(60, 10)
    found = segments.verbatim(window(of, "f25-f35"))
    assert found is not None
    first, last = of.fragments[2:4]
    assert [(e.offset, e.end) for e in found.layout.extents] == [(0, 900), (first.offset, last.end)]
    assert found.index(found.leading) == 5


def test_a_fragment_that_begins_between_keys_brings_the_one_before() -> None:
    found = segments.verbatim(window(fragmented(60, 10, first_sync=False), "f35"))
    assert found is not None
    assert len(found.fragments) == 2
    assert found.index(found.leading) == 15


def moof(flags: int) -> bytes:
    tfhd = write.full(b"tfhd", 0, flags, struct.pack(">IQ", 1, 5000))
    return write.box(b"moof", write.full(b"mfhd", 0, 0, bytes(4)), write.box(b"traf", tfhd))


@pytest.mark.parametrize(("flags", "movable"), [(0x020000, True), (0x000001, False), (0x020038, True)])
def test_a_fragment_that_names_absolute_offsets_cannot_be_moved(flags: int, movable: bool) -> None:
    assert segments.relocatable(moof(flags)) is movable


def test_boxes_of_a_made_fragment_stand_in_the_order_players_insist_on() -> None:
    front = segments.made(window(movie(track(30)), "f3"), sound=False).layout.spans[0]
    assert isinstance(front, Inline)
    order = [
        front.data.index(kind)
        for kind in (b"ftyp", b"moov", b"mvex", b"moof", b"mfhd", b"tfhd", b"tfdt", b"trun")
    ]
    assert order == sorted(order)
    assert front.data[8:12] == b"iso5"
    size = struct.unpack(">I", front.data[-8:-4])[0]
    assert front.data[-4:] == b"mdat"
    assert size > 8


# ---------------------------------------------------------------- selections


def test_an_instant_is_the_frame_with_the_greatest_time_not_after_it() -> None:
    of = movie(track(30, timescale=30_000, dur=np.full(30, 1001, np.int64)))
    edge = Fraction(1001 * 7, 30_000)
    line = plan._Line(of, of.tracks[0], timeline.shown(of, of.tracks[0]))
    moment = parse_derived("1s.jpg")
    assert moment is not None
    at = moment.selection.start
    assert line.index(replace(at, value=edge)) == 7
    assert line.index(replace(at, value=edge - Fraction(1, 10**9))) == 6
    assert line.index(replace(at, value=edge + Fraction(1, 10**9))) == 7


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("0.1s-0.2s", 3, 5),
        ("0.09s-0.21s", 2, 6),
        ("0.101s-0.102s", 3, 3),
        ("f3-f6", 3, 5),
        ("0.1s+f3", 3, 5),
        ("k1-k2", 10, 19),
        ("k1+0.1s", 10, 12),
        ("k2-", 20, 29),
        ("f5-k1", 5, 9),
        ("f5-1s", 5, 29),
    ],
)
def test_ranges_are_half_open(text: str, first: int, last: int) -> None:
    found = window(movie(track(30)), text)
    assert (found.first, found.last) == (first, last)


@pytest.mark.parametrize("text", ["f30", "k3", "1.001s", "1s-2s", "f20-k1", "k2-0.1s"])
def test_what_the_movie_does_not_have(text: str) -> None:
    with pytest.raises(OutOfRange):
        window(movie(track(30)), text)


# ---------------------------------------------------------------- cost


def test_layout_of_a_clip_of_a_long_movie_takes_milliseconds() -> None:
    """300 of 300,000 samples, against a plain sort of the table in the same run: machines differ."""
    of = movie(track(300_000))
    wanted = window(of, "f150000-f150300")

    def best(work: object) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            work()  # type: ignore[operator]
            times.append(time.perf_counter() - began)
        return min(times)

    spliced = best(lambda: clips.exact(wanted))
    yardstick = best(lambda: np.argsort(np.random.default_rng(1).random(300_000)))
    assert spliced < yardstick
