"""Clips and perfect reads hold exactly the frames they name: by PyAV, and by the distribution's ffmpeg."""

from __future__ import annotations

import hashlib
import io
import random
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import trio
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import mp4_exact as exact  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from vfs_mp4.plugin import Videos  # noqa: E402

#: In the daily run a few times of each sample, another choice for each; with --slow as many as promised.
INSTANTS, RANGES = 3, 1
SLOW_INSTANTS, SLOW_RANGES = 20, 6

#: Files of ../shared/media whose frames cannot be told by any selection, and why.
NOT_DECODABLE = {
    "decord_corrupted.mp4": "its own decode ends in an error",
    "go-mp4_sample_qt.mp4": "its pictures do not decode",
    "mp4ff_prog_8s_enc_dashinit.mp4": "encrypted",
    "media_sample_fragmented_clearkey.mp4": "encrypted",
}
#: Files whose frames FFmpeg times otherwise, by how many seconds it is early, and why.
EARLY = {
    # The edit begins between two frames; FFmpeg drops the one shown then and moves the next to its place.
    "media_sample_edit_list.mp4": Fraction(7, 600),
}
#: Stored pictures that do not decode, from when to when they are to be shown: what begins with one shows
#: nothing for that long, where a player that comes from before goes on with the one before. No table tells.
BROKEN = {"media_sample_with_invalid_nalu.mp4": (Fraction(26026, 30000), Fraction(27027, 30000))}
#: ffmpeg 5.1 shows the frames that an edit list hides from AV1.
BLIND_TO_EDITS = {"av01"}
#: Clips that PyAV decodes right and ffmpeg 5.1 does not, and why.
NOT_BY_FFMPEG = {
    # Its key frames are no IDR: at the gap in frame numbers before the first, 5.1 loses the last B frame.
    "media_iibbibb_editlist_videoonly.mp4",
}
#: Too long to decode whole in a test run that is not asked for.
LONG = {"media_long_1080p_lowbitrate.mp4", "media_long_180p_av1.mp4"}


def chosen(seed: str, duration: Fraction, instants: int, ranges: int) -> list[tuple[Fraction, Fraction]]:
    """Times in milliseconds: instants as (t, t), and ranges of up to 2 s."""
    rng = random.Random(seed)
    last = max(int(duration * 1000) - 1, 1)
    found = [(Fraction(t, 1000),) * 2 for t in (rng.randrange(last) for _ in range(instants))]
    for _ in range(ranges):
        start = rng.randrange(last)
        found.append((Fraction(start, 1000), Fraction(start + rng.randrange(1, 2000), 1000)))
    return found


def text(seconds: Fraction) -> str:
    return f"{int(seconds * 1000)}ms"


async def check(place: MemoryPlace, truth: exact.Truth, times: list[tuple[Fraction, Fraction]]) -> None:
    for start, stop in times:
        if start == stop:
            await check_instant(place, truth, start)
        else:
            await check_range(place, truth, start, stop)


async def check_instant(place: MemoryPlace, truth: exact.Truth, at: Fraction) -> None:
    """The frame that `start_frame_index` counts to is the one shown at the time."""
    data, about = await exact.spliced(place, f"{text(at)}.mp4")
    index, rank = int(about["start_frame_index"]), truth.at(at)
    assert exact.decode(data)[index].hash == truth.frames[rank].hash, f"{place.name} at {text(at)}"


async def check_range(place: MemoryPlace, truth: exact.Truth, start: Fraction, stop: Fraction) -> None:
    """Exact: these frames and no others, timed alike; key: from a key frame on; frag: from the index on."""
    name, (first, after) = f"{text(start)}-{text(stop)}", truth.between(start, stop)
    wanted, what = truth.hashes(first, after), f"{place.name} {name}"
    data, about = await exact.spliced(place, f"{name}.mp4")
    got = exact.decode(data)
    assert [frame.hash for frame in got] == wanted, what
    offsets = [frame.time - got[0].time for frame in got]
    assert offsets == [f.time - truth.frames[first].time for f in truth.frames[first:after]], what
    comparable = about["codec"] not in BLIND_TO_EDITS and len(truth.by_ffmpeg) == len(truth.frames)
    if exact.FFMPEG and comparable and place.name not in NOT_BY_FFMPEG:
        assert exact.decode_by_ffmpeg(data) == list(truth.by_ffmpeg[first:after]), what
    for mode in ("key", "frag"):
        data, about = await exact.spliced(place, f"{name}.{mode}.mp4")
        index = int(about["start_frame_index"])
        hashes = [frame.hash for frame in exact.decode(data)]
        assert hashes[index : index + len(wanted)] == wanted, f"{what}, {mode}"
        if mode == "key":
            assert len(hashes) == index + len(wanted), what


def run_sample(name: str, instants: int, ranges: int) -> None:
    place, truth = exact.sample(name), exact.truth(name)
    duration = truth.frames[-1].time - truth.zero
    trio.run(check, place, truth, chosen(name, duration, instants, ranges))


@pytest.mark.parametrize("name", exact.SAMPLES)
def test_generated_media_is_cut_exactly(name: str) -> None:
    run_sample(name, INSTANTS, RANGES)


@pytest.mark.slow
@pytest.mark.parametrize("name", exact.SAMPLES)
def test_generated_media_is_cut_exactly_at_many_times(name: str) -> None:
    run_sample(name, SLOW_INSTANTS, SLOW_RANGES)


def shared_names(*, slow: bool) -> list[str]:
    if not exact.SHARED.is_dir():
        return []
    seen = [name for name, about in exact.listed().items() if about.get("video")]
    names = [n for n in seen if not n.startswith("derived__") and n not in NOT_DECODABLE]
    if slow:
        return names
    quick = [n for n in names if n not in LONG and exact.is_quick(n)]
    return random.Random(3).sample(quick, min(6, len(quick)))


def run_shared(name: str, instants: int, ranges: int) -> None:
    place = exact.shared(name)
    truth = exact.truth_of(place).later(EARLY.get(name, Fraction(0)))
    duration = truth.frames[-1].time - truth.zero
    low, high = BROKEN.get(name, (duration, duration))
    times = [pair for pair in chosen(name, duration, instants, ranges) if not low <= pair[0] < high]
    trio.run(check, place, truth, times)


@pytest.mark.shared
@pytest.mark.parametrize("name", shared_names(slow=False))
def test_real_media_is_cut_exactly(name: str) -> None:
    run_shared(name, INSTANTS, RANGES)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", shared_names(slow=True))
def test_real_media_is_cut_exactly_at_many_times(name: str) -> None:
    run_shared(name, SLOW_INSTANTS, SLOW_RANGES)


# ---------------------------------------------------------------- selections


SAME = {
    "1s-2s.mp4": (
        "1-2.mp4",
        "1000ms-2000ms.mp4",
        "00:01-00:02.mp4",
        "1.0s+1s.mp4",
        "f30-f60.mp4",
        "f30+1s.mp4",
    ),
    "1s.jpg": ("1.0s.jpg", "f30.jpg", "1000ms.jpg", "1.01s.jpg"),
    "1.5s-.key.mp4": ("f45-.key.mp4", "f45-f9999.key.mp4", "1.5s-99s.key.mp4"),
    "k1.mp4": ("1s.mp4", "f30.mp4"),
}


@pytest.mark.parametrize("name", SAME)
def test_spellings_of_one_selection_are_the_same_bytes(name: str) -> None:
    place = exact.sample("h264")

    async def versions() -> set[str | None]:
        view = Videos()
        nodes = [await view.resolve(place, spelling) for spelling in (name, *SAME[name])]
        return {getattr(node, "version", None) for node in nodes}

    found = trio.run(versions)
    assert len(found) == 1
    assert None not in found


# ---------------------------------------------------------------- sound


def heard(data: bytes) -> tuple[NDArray[np.float64], float]:
    """The sound a player would play, one channel, silent where nothing is, and its first time in seconds."""
    parts: list[tuple[float, NDArray[np.float64]]] = []
    with av.open(io.BytesIO(data), "r") as container:
        for frame in container.decode(audio=0):
            assert frame.time is not None
            parts.append((frame.time, frame.to_ndarray().reshape(-1).astype(np.float64)))
    first, last = parts[0][0], parts[-1]
    line = np.zeros(round((last[0] - first) * 48_000) + len(last[1]))
    for at, sound in parts:
        start = round((at - first) * 48_000)
        line[start : start + len(sound)] = sound[: len(line) - start]
    return line, first


@pytest.mark.parametrize("name", ["h264", "h264_fragmented", "ntsc", "opus", "vfr", "delayed_video"])
@pytest.mark.parametrize("span", [(1000, 2000), (1370, 2290), (2011, 2500)])
def test_sound_of_a_clip_is_the_source_s_at_that_time(name: str, span: tuple[int, int]) -> None:
    """Found again in the source by correlation: where the pictures of the clip are, within 1 ms."""
    place, truth = exact.sample(name), exact.truth(name)
    start, stop = (Fraction(t, 1000) for t in span)
    first, after = truth.between(start, stop)
    data, _ = trio.run(exact.spliced, place, f"{text(start)}-{text(stop)}.mp4")
    source, source_at = heard(place.data)
    clip, clip_at = heard(data)
    begin = float(truth.frames[first].time)
    middle = clip[12_000:24_000]
    guess = round((begin - source_at + clip_at) * 48_000) + 12_000
    scores = [float(middle @ source[at : at + len(middle)]) for at in range(guess - 200, guess + 201)]
    assert abs(int(np.argmax(scores)) - 200) <= 48
    length = float(truth.frames[after - 1].time) - begin
    assert length <= len(clip) / 48_000 <= length + 0.15


def beginning(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The first 0.3 s of sound of a clip, and those of the source, as parts of its peak."""
    place = exact.sample(name)
    data, _ = trio.run(exact.spliced, place, "1s-2s.mp4")
    (source, source_at), (clip, clip_at) = heard(place.data), heard(data)
    at, peak = round((1.0 - source_at + clip_at) * 48_000), np.abs(source).max()
    return clip[:14_400] / peak, source[at : at + 14_400] / peak


def test_sound_begins_like_the_source_s_from_the_first_sample_on() -> None:
    """The decoder is settled by what comes before: no click at the cut."""
    clip, source = beginning("h264")
    assert np.abs(clip - source).max() < 0.05


def test_opus_beside_pictures_fades_in() -> None:
    """It begins with a whole packet, at most 20 ms late, without a click, and is itself after 0.12 s.

    What an edit list hides of Opus, or beside it of VP9 and AV1, makes it late in Chromium.
    """
    clip, source = beginning("opus")
    assert np.abs(clip).max() < 1.1
    assert np.abs(clip[5760:] - source[5760:]).max() < 0.1
    data, _ = trio.run(exact.spliced, exact.sample("opus"), "1.37s-2s.mp4")
    with av.open(io.BytesIO(data), "r") as container:
        first = next(container.demux(audio=0))
        assert first.pts is not None
        assert first.time_base is not None
        assert 0 <= first.pts * first.time_base <= Fraction(1, 50)


# ---------------------------------------------------------------- what a file says of itself


def test_a_clip_keeps_rotation_pixel_aspect_and_language() -> None:
    place = exact.sample("rotated_wide_pixels")
    data, _ = trio.run(exact.spliced, place, "1s-2s.mp4")

    def facts(data: bytes) -> tuple[object, ...]:
        with av.open(io.BytesIO(data), "r") as container:
            video = container.streams.video[0]
            frame = next(container.decode(video))
            aspect = video.sample_aspect_ratio
            return frame.rotation, aspect, video.codec_tag, [s.language for s in container.streams]

    assert facts(data) == facts(place.data)
    assert facts(data)[0] in (-90, 90, 270)


def test_ffprobe_reads_length_and_kind() -> None:
    data, about = trio.run(exact.spliced, exact.sample("ntsc"), "1s-2s.mp4")
    with av.open(io.BytesIO(data), "r") as container:
        assert container.duration is not None
        seconds = container.duration / av.time_base
    assert abs(seconds - (float(about["end_time"]) - float(about["start_time"]))) < 0.002


def test_fragments_of_a_fragmented_source_are_given_verbatim() -> None:
    place = exact.sample("h264_fragmented")
    data, _ = trio.run(exact.spliced, place, "1.5s-2.5s.frag.mp4")
    head = place.data.index(b"moof") - 4
    assert data[:head] == place.data[:head]
    assert data[head:] in place.data


def test_a_read_of_an_instant_takes_little_of_the_file() -> None:
    place = exact.sample("h264")
    data, _ = trio.run(exact.spliced, place, "1s.mp4")
    assert len(data) < len(place.data) / 20
    assert hashlib.md5(data).digest() != hashlib.md5(place.data).digest()
