"""Reels: every frame and the sound of the joined clips against the sources they are cut from."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import mp4_exact
from mp4_exact import HEVC, Truth
from mp4_library import Library, in_library
from mp4_places import MemoryPlace

from vfs import Damaged, Inline, ReelfsError, Stale, Unavailable, Unsupported

_FOLDER = tempfile.TemporaryDirectory(prefix="reelfs-reels-")
ROOT = Path(_FOLDER.name)
#: A name that lines must escape.
ODD = "# 100%@ ö.mp4"
SOURCES: dict[str, dict[str, Any]] = {
    "h264": {},
    "other sets": {"options": {"crf": "35", "refs": "4", "profile": "main"}},
    "no b": {"bframes": 0, "timescale": 30000},
    "open": {"open_gop": True},
    "fragmented": {"fragmented": True},
    "vfr": {"vfr": True},
    "ntsc": {"fps": Fraction(30000, 1001)},
    "silent": {"audio": False},
    "trimmed": {"trim": Fraction(1, 2)},
    "delayed": {"delay": Fraction(1, 2)},
    "hevc": HEVC,
    "hevc open": {**HEVC, "open_gop": True, "bframes": 3},
    "hevc open fragmented": mp4_exact.SAMPLES["hevc_open_gop_fragmented"],
    "hevc no b": {**HEVC, "bframes": 0},
    "vp9": {"codec": "libvpx-vp9", "audio": False},
    "large": {"size": (320, 180)},
    "turned": {"rotation": 90},
    "wide": {"aspect": Fraction(4, 3)},
    "opus": {"audio_codec": "libopus"},
    ODD: {},
}
Clip = tuple[str, str, str]


@functools.cache
def source(name: str) -> Path:
    path = ROOT / "games" / (name if name.endswith(".mp4") else f"{name}.mp4")
    path.parent.mkdir(exist_ok=True)
    mp4_exact.encode(path, **{"frames": 110, "size": (160, 90), **SOURCES[name]})
    return path


@functools.cache
def truth(name: str) -> Truth:
    return mp4_exact.truth_of(MemoryPlace(source(name).read_bytes()))


def write(clips: Sequence[Clip], name: str = "best.reel") -> None:
    for source_name, _, _ in clips:
        source(source_name)
    escaped = [(n if n == ODD else f"{n}.mp4").replace("%", "%25").replace("#", "%23") for n, _, _ in clips]
    lines = [f"games/{n}@{a}-{b}" for n, (_, a, b) in zip(escaped, clips, strict=True)]
    (ROOT / name).write_text("# test\n" + "\n".join(lines) + "\n")


def joined(clips: Sequence[Clip]) -> bytes:
    write(clips)

    async def body(library: Library) -> bytes:
        return await library.content("best@.mp4")

    return in_library(ROOT, body)


def ranks(name: str, start: str, stop: str) -> tuple[int, int]:
    end = Fraction(stop) if stop else Fraction(1000)
    return truth(name).between(Fraction(start), end)


def check(clips: Sequence[Clip]) -> None:
    """Every frame, in order, at its time, by both decoders."""
    data = joined(clips)
    frames = mp4_exact.decode(data)
    hashes: list[str] = []
    by_ffmpeg: list[str] = []
    times: list[Fraction] = []
    begin = Fraction(0)
    for name, start, stop in clips:
        first, after = ranks(name, start, stop)
        known = truth(name)
        hashes += known.hashes(first, after)
        by_ffmpeg += known.by_ffmpeg[first:after]
        shown = known.frames[first:after]
        times += [begin + frame.time - shown[0].time for frame in shown]
        begin += length(name, first, after)
    assert [frame.hash for frame in frames] == hashes
    assert max(abs(f.time - t) for f, t in zip(frames, times, strict=True)) < Fraction(1, 500)
    if mp4_exact.FFMPEG:
        assert mp4_exact.decode_by_ffmpeg(data) == by_ffmpeg


def length(name: str, first: int, after: int) -> Fraction:
    """Seconds from a frame to the one after the last."""
    frames = truth(name).frames
    if after < len(frames):
        return frames[after].time - frames[first].time
    with av.open(str(source(name))) as container:
        last = max(
            (p for p in container.demux(video=0) if p.pts is not None and p.duration),
            key=lambda p: p.pts or 0,
        )
        assert last.time_base is not None
        return frames[-1].time + (last.duration or 0) * last.time_base - frames[first].time


#: What is special about each is how the second clip, or the one after it, must be begun.
REELS: dict[str, list[Clip]] = {
    "one": [("h264", "1.2", "2.3")],
    "same file, backwards": [("h264", "1.2", "2.3"), ("h264", "0.5", "1.7"), ("h264", "0", "0.1")],
    "reordering unlike": [("h264", "1.2", "2.3"), ("no b", "0.5", "1.7"), ("h264", "0", "1")],
    "parameter sets unlike": [("h264", "1.2", "2.3"), ("other sets", "0.5", "1.7"), ("h264", "2.2", "")],
    "an open group first": [("open", "2.1", "2.9"), ("open", "0", "0.7"), ("h264", "3.01", "3.3")],
    "clocks unlike": [("ntsc", "1.3", "2.2"), ("vfr", "1", "2"), ("h264", "0.5", "0.9"), ("no b", "2", "3")],
    "edit lists": [("trimmed", "1", "2"), ("delayed", "1", "2"), ("delayed", "0", "1")],
    "fragments": [("h264", "2.2", "2.9"), ("fragmented", "0.5", "1.7"), ("fragmented", "1.6", "")],
    "sound missing": [("silent", "1", "2"), ("h264", "0.5", "1"), ("silent", "2", "2.2"), ("h264", "2", "3")],
    "hevc": [("hevc", "1.2", "2.3"), ("hevc", "0.5", "1.7"), ("hevc no b", "1.1", "2")],
    "hevc open groups": [
        ("hevc open", "2.2", "2.9"), ("hevc open", "0.5", "1.7"), ("hevc open", "1.0", "2.1"),
        ("hevc open", "1.95", "2.1"), ("hevc", "2.2", "2.9"), ("hevc open", "2.5", "2.7"),
    ],
    "hevc open fragments": [("hevc open fragmented", "2.2", "2.9"), ("hevc open fragmented", "0.5", "1.7")],
    "vp9": [("vp9", "2.2", "2.9"), ("vp9", "0.5", "1.7")],
}  # fmt: skip


@pytest.mark.parametrize("name", list(REELS))
def test_every_frame_of_every_clip_at_its_time(name: str) -> None:
    check(REELS[name])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(40))
def test_random_reels(seed: int) -> None:
    rng = random.Random(seed)
    pool = ["h264", "other sets", "no b", "fragmented", "vfr", "ntsc", "silent", "trimmed", "delayed"]
    if seed % 2:
        pool = ["hevc", "hevc open", "hevc open fragmented", "hevc no b"]
    clips = []
    for _ in range(rng.randint(2, 8)):
        start = rng.randrange(0, 2900)
        clips.append(
            (rng.choice(pool), f"{start / 1000:.3f}", f"{(start + rng.randrange(20, 1500)) / 1000:.3f}")
        )
    check(clips)


def pitch(samples: np.ndarray[Any, Any], rate: int) -> float:
    """The loudest frequency in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 17))
    return float(np.argmax(spectrum)) * rate / (1 << 17)


def test_the_sound_is_in_step_and_silent_where_a_clip_has_none() -> None:
    clips = [("h264", "1.21", "2.33"), ("silent", "1", "2"), ("ntsc", "0.517", "1.7"), ("h264", "2", "3")]
    data = joined(clips)
    line = np.zeros(48_000 * 6, np.float32)
    with av.open(io.BytesIO(data), "r") as container:
        for frame in container.decode(audio=0):
            assert frame.time is not None
            at = round(frame.time * 48_000)
            block = frame.to_ndarray()[0]
            low = max(at, 0)
            line[low : at + len(block)] = block[low - at :]
    begin = 0.0
    for name, start, stop in clips:
        first, after = ranks(name, start, stop)
        middle = begin + float(length(name, first, after)) / 2
        part = line[int((middle - 0.05) * 48_000) : int((middle + 0.05) * 48_000)]
        if name == "silent":
            assert np.abs(part).max() == 0
        else:
            shown_at = float(truth(name).frames[first].time - truth(name).zero) + middle - begin
            # The tone climbs by 100 Hz a second from 300 Hz: a hertz is 10 ms.
            assert pitch(part, 48_000) == pytest.approx(300 + 100 * shown_at, abs=1.5)
        begin += float(length(name, first, after))


def test_bytes_are_those_of_the_sources_but_for_what_joins_them() -> None:
    """Zero copy: what is made is the header, parameter sets, and a byte of each picture that is unlinked."""
    write(REELS["hevc open groups"])

    async def body(library: Library) -> tuple[int, int]:
        found = await library.found("best.reel@/reel.mp4")
        layout: Any = found.node.layout  # type: ignore[union-attr]
        assert found.size == layout.size
        kept = sum(extent.length for extent in layout.extents)
        made = {s.length for s in layout.spans[1:] if isinstance(s, Inline)}
        assert 1 in made
        assert max(made) < 200
        assert {key.key for key in layout.objects} == {"games/hevc open.mp4", "games/hevc.mp4"}
        assert {key.key for key in found.sources} == {"games/hevc open.mp4", "games/hevc.mp4", "best.reel"}
        return layout.size, kept

    size, kept = in_library(ROOT, body)
    assert kept > 0.75 * size


@pytest.mark.parametrize(
    ("clips", "why"),
    [
        (
            [("h264", "1", "2"), ("hevc", "1", "2")],
            r"line 3 \(games/hevc.mp4@1-2\): hvc1 follows avc1.*line 2",
        ),
        (
            [("h264", "1", "2"), ("h264", "0", "1"), ("large", "1", "2")],
            "line 4 .*320 x 180 follows 160 x 90",
        ),
        ([("h264", "1", "2"), ("turned", "1", "2")], "line 3 .*turned in another way"),
        ([("h264", "1", "2"), ("wide", "1", "2")], "line 3 .*pasp"),
        ([("open", "1.1", "2"), ("open", "2.1", "3")], "line 3 .*open group of pictures"),
        ([("h264", "1", "2"), ("opus", "1", "2")], "line 3 .*Opus follows mp4a"),
    ],
)
def test_sources_that_do_not_fit_are_named_with_the_difference(clips: list[Clip], why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        joined(clips)


@pytest.mark.parametrize(
    ("line", "kind", "why"),
    [
        ("games/nothing@1-2", Damaged, r"line 2 \(games/nothing@1-2\): there is no video games/nothing"),
        ("games@1-2", Damaged, "there is no video games"),
        ("games/h264.mp4@100-200", Damaged, "line 2 .*it is 3.66.* s long|ends at 3.66"),
        ("games/h264.mp4@5s", Damaged, "an instant"),
        ("best.reel@0-1", Unsupported, "no MP4"),
        ("../x@0-1", Damaged, "out of what is mounted"),
    ],
)
def test_a_bad_line_is_an_error_that_names_it(line: str, kind: type[ReelfsError], why: str) -> None:
    write([("h264", "1", "2")])
    (ROOT / "best.reel").write_text(f"games/h264@1-2\n{line}\n")

    async def body(library: Library) -> None:
        with pytest.raises(kind, match=why):
            await library.found("best.reel@.mp4")
        # The list tells the same and is always there.
        told = json.loads(await library.content("best.reel@/reel.json"))
        good, bad = told["clips"]
        assert not told["usable"]
        assert (good["line"], good["frames"], bad["line"], bad["text"]) == (1, 30, 2, line)
        assert "error" not in good
        assert bad["error"]
        assert await library.names("best.reel@") == ["reel.json", "reel.key.mp4", "reel.mp4"]

    in_library(ROOT, body)


def test_reel_json_says_what_is_shown_when() -> None:
    write([("h264", "1.21", "2"), (ODD, "0.5", "1")])

    async def body(library: Library) -> None:
        told = json.loads(await library.content("best.reel@/reel.json"))
        first, second = told["clips"]
        assert told["usable"]
        assert told["duration"] == pytest.approx(24 / 30 + 0.5)
        assert (first["begin"], first["start_time"], first["end_time"]) == pytest.approx((0, 1.2, 2))
        assert second["begin"] == pytest.approx(0.8)
        assert (second["line"], second["path"], second["frames"]) == (3, f"games/{ODD}", 15)
        found = await library.found("best@.mp4")
        assert (found.attributes["clips"], found.attributes["frames"]) == ("2", "39")

    in_library(ROOT, body)


def frame_at(container: Any, stream: Any, seconds: Fraction) -> av.VideoFrame:
    """The last frame not after a time, decoding from where the container stands."""
    frames = container.decode(stream)
    shown = itertools.takewhile(lambda frame: frame.pts * frame.time_base <= seconds, frames)
    last: av.VideoFrame = list(shown)[-1]
    return last


def test_seeking_to_any_frame_finds_it() -> None:
    """FFmpeg lays what is hidden before a clip into the end of the one before: it must take no time there."""
    data = joined([("h264", "1.2", "2.3"), ("other sets", "0.9", "1.7"), ("no b", "1.15", "2.1")])
    frames = mp4_exact.decode(data)
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "SLICE", 1
        assert stream.time_base is not None
        for frame in frames:
            at = frame.time + Fraction(1, 1000)
            container.seek(int(at / stream.time_base), stream=stream)
            found = frame_at(container, stream, at)
            assert hashlib.md5(found.to_ndarray().tobytes()).hexdigest() == frame.hash


def test_in_the_key_form_each_clip_begins_at_its_key_frame() -> None:
    clips = [("h264", "1.2", "2.3"), ("other sets", "0.5", "1.7"), ("h264", "2", "2.2")]
    write(clips)

    async def body(library: Library) -> tuple[bytes, bytes]:
        return await library.content("best@.key.mp4"), await library.content("best.reel@/reel.key.mp4")

    data, same = in_library(ROOT, body)
    assert data == same
    hashes = []
    for (name, _, _), low, high in zip(clips, (30, 0, 60), (69, 51, 66), strict=True):
        hashes += truth(name).hashes(low, high)
    assert [frame.hash for frame in mp4_exact.decode(data)] == hashes


def test_a_joined_file_can_be_derived_from_again() -> None:
    write(REELS["parameter sets unlike"])

    async def body(library: Library) -> bytes:
        return await library.content("best.reel@/reel@1.2s-1.5s.mp4")

    data = in_library(ROOT, body)
    # 1.2 s into the reel: the first clip has 33 frames from 1.2 s on, and the second begins at 0.5 s.
    first, after = ranks("other sets", "0.5", "1.7")
    assert [f.hash for f in mp4_exact.decode(data)] == truth("other sets").hashes(first, after)[3:12]


def test_a_replaced_source_makes_another_file() -> None:
    write([("h264", "1", "2"), ("no b", "1", "2")], "change.reel")
    path, kept = source("no b"), source("no b").read_bytes()

    async def body(library: Library) -> None:
        before = await library.found("change@.mp4")
        assert (await library.found("change@.mp4")).version == before.version
        path.write_bytes(source("h264").read_bytes())
        library.runtime.tree._metadata.forget("games/no b.mp4")
        with pytest.raises(Stale):
            await library.tree.refresh(before)
        after = await library.found("change@.mp4")
        assert after.version != before.version
        assert after.node != before.node

    try:
        in_library(ROOT, body)
    finally:
        path.write_bytes(kept)


def test_a_stored_file_of_that_name_wins_and_a_video_of_the_same_name_is_no_reel() -> None:
    write([("h264", "1", "2")], "both.reel")

    async def body(library: Library) -> None:
        assert (await library.found("both@.mp4")).attributes["clips"] == "1"
        (ROOT / "both@.mp4").write_bytes(b"stored")
        (ROOT / "both.mp4").write_bytes(b"")

    async def again(library: Library) -> None:
        assert await library.content("both@.mp4") == b"stored"
        assert (await library.found("both.reel@.mp4")).attributes["clips"] == "1"

    in_library(ROOT, body)
    in_library(ROOT, again)


def test_opening_a_reel_reads_tables_and_a_read_takes_what_is_shown() -> None:
    """No media before a read, but for the fronts of HEVC pictures."""
    clips = [("h264", "1", "1.5"), ("no b", "1", "1.5"), ("h264", "2", "2.5")]
    write(clips)

    async def body(library: Library) -> None:
        found = await library.found("best@.mp4")
        extents = found.node.layout.extents  # type: ignore[union-attr]
        assert len(library.store.reads) <= 1 + 2 * 2
        assert sum(length for _, _, length in library.store.reads) < 3 * (64 << 10)
        before = len(library.store.reads)
        await library.content("best@.mp4")
        taken = library.store.reads[before:]
        assert len(taken) <= 3
        for key, offset, length in taken:
            inside = [
                e for e in extents if e.object.key == key and offset <= e.offset <= e.end <= offset + length
            ]
            assert (min(e.offset for e in inside), max(e.end for e in inside)) == (offset, offset + length)

    in_library(ROOT, body)


def test_a_source_that_cannot_be_asked_is_no_bad_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`Unavailable` passes through: the reel is not wrong."""
    write([("h264", "1", "2")], "down.reel")

    async def body(library: Library) -> None:
        await library.found("down.reel")

        async def down(*_: object) -> Any:
            raise Unavailable("down")

        monkeypatch.setattr("vfs_mp4.reels.window_of", down)
        for name in ("down@.mp4", "down.reel@/reel.json"):
            with pytest.raises(Unavailable):
                await library.found(name)

    in_library(ROOT, body)


def test_a_file_whose_name_is_no_utf_8_is_joined_as_any_other() -> None:
    odd = ROOT / "games" / "\udcff.mp4"
    odd.write_bytes(source("no b").read_bytes())
    (ROOT / "odd.reel").write_bytes(b"games/\xff.mp4@0.5-1\ngames/\xff.mp4@0-0.5\n")

    async def body(library: Library) -> bytes:
        return await library.content("odd@.mp4")

    assert len(mp4_exact.decode(in_library(ROOT, body))) > 10
    odd.unlink()
