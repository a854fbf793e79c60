"""What the grammar promises, through a real mount: each time gives its frame, each range its frames alone.

The truth is a full decode of the source beside the mount. 20 instants and 6 ranges a file; which real files
are tried without --slow changes by the day (CLIENTS_SEED is told at the end of the run).
"""

from __future__ import annotations

import io
import math
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from client_mounts import SEED, SHARED, VIDEOS, Mount, some
from client_players import ffmpeg_frames, pyav_frames, truth
from mp4_exact import FFMPEG, Truth, listed
from numpy.typing import NDArray
from PIL import Image
from vfs_mp4 import render, visual

INSTANTS, RANGES = 20, 6
#: Clips that ffmpeg decodes as well; PyAV decodes all of them.
BY_FFMPEG = 2
NANO = 10**9
Picture = NDArray[np.uint8]

#: Real files that no decoder here can show whole, and why.
NOT_DECODABLE = {
    "decord_corrupted.mp4": "its own decode ends in an error",
    "go-mp4_sample_qt.mp4": "its pictures do not decode",
    "media_sample_with_invalid_nalu.mp4": "some of its pictures do not decode",
    "mp4ff_prog_8s_enc_dashinit.mp4": "encrypted",
    "media_sample_fragmented_clearkey.mp4": "encrypted",
}
#: ffmpeg 5.1 ignores which frames of AV1 an edit list hides; None is VVC, which it cannot decode.
NOT_BY_FFMPEG = {"av1", None}
#: Seconds by which FFmpeg shows pictures early: it moves the first one inside an edit to where that begins.
MOVED_BY_FFMPEG = {"media_sample_edit_list.mp4": Fraction(7, 600)}
#: Files of which ffmpeg 5.1 loses frames in any cut (its own too) that begins in an open group of pictures.
CUTS_LOST_BY_FFMPEG = {"media_iibbibb_editlist_videoonly.mp4"}


# ---------------------------------------------------------------- times


def spelled(time: Fraction, *, up: bool = False) -> str:
    """A time to the nanosecond, the finest that a path can say, rounded down or up."""
    nanos = time * NANO
    whole = math.ceil(nanos) if up else math.floor(nanos)
    return f"{Decimal(whole) / NANO:f}s"


def value(text: str) -> Fraction:
    return Fraction(text.removesuffix("s"))


def instants(known: Truth, seed: str, count: int) -> list[str]:
    """The first and the last frame, then frames the moment they come up, just before it, and anywhere."""
    chooser = random.Random(seed)
    times = [frame.time - known.zero for frame in known.frames]
    found = ["0s", spelled(times[-1], up=True)]
    while len(found) < count:
        time = chooser.choice(times)
        found.append(spelled(time, up=True))
        if time > 0:
            found.append(spelled(time - Fraction(1, NANO)))
        found.append(spelled(times[-1] * chooser.randrange(10**6) / 10**6))
    return found[:count]


def ranges(known: Truth, seed: str, count: int) -> Iterator[tuple[str, str]]:
    """From anywhere or from a frame, for up to 2 s; the last ends with the file."""
    chooser = random.Random(seed)
    times = [frame.time - known.zero for frame in known.frames]
    for number in range(count):
        exactly = number % 2
        start = spelled(chooser.choice(times) if exactly else times[-1] * chooser.randrange(10**6) / 10**6)
        stop = value(start) + Fraction(chooser.randrange(1, 2_000_000), 10**6)
        yield start, spelled(Fraction(stop))


# ---------------------------------------------------------------- frames


def source_pictures(path: Path, wanted: set[int]) -> dict[int, av.VideoFrame]:
    """Frames of a source by rank."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        frames = enumerate(container.decode(video=0))
        return {rank: frame for rank, frame in frames if rank in wanted}


def as_rgb(frame: av.VideoFrame) -> Picture:
    return render.to_rgb(frame, visual.Entry("", frame.width, frame.height, b""))


@pytest.mark.parametrize("name", VIDEOS)
def test_instants_are_the_frames_shown_then(mount: Mount, name: str) -> None:
    """As npy the very pixels of the source's frame; as ppm the same, turned as a player turns it."""
    beside, stem = mount.source / "games" / f"{name}.mp4", f"{mount.path}/games/{name}"
    known = truth(beside)
    times = instants(known, f"{SEED} {name}", INSTANTS)
    wanted = [known.at(value(time)) for time in times]
    frames = source_pictures(beside, set(wanted))
    turns = VIDEOS[name].get("rotation", 0) // 90
    for time, rank in zip(times, wanted, strict=True):
        pixels = np.load(f"{stem}@{time}.npy")
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, as_rgb(frames[rank])), (time, rank)
        assert int(os.getxattr(f"{stem}@{time}.npy", "user.reelfs.frames")) == 1
        # What PyAV itself makes of it: no conversion of ours in this one.
        plain = frames[rank].to_ndarray(format="rgb24").astype(np.int16)
        assert np.abs(pixels - plain).mean() < 4, (time, rank)
        if rank % 4 == 0:
            shown = np.asarray(Image.open(io.BytesIO(Path(f"{stem}@{time}.ppm").read_bytes())))
            assert np.array_equal(shown, np.rot90(pixels, -turns)), (time, rank)


@pytest.mark.parametrize("name", VIDEOS)
def test_ranges_are_their_frames_and_nothing_else(mount: Mount, name: str) -> None:
    known = truth(mount.source / "games" / f"{name}.mp4")
    check_ranges(mount.path / "games" / name, known, f"{SEED} {name}", ffmpeg=BY_FFMPEG)


def check_ranges(stem: Path, known: Truth, seed: str, *, ffmpeg: int) -> None:
    for number, (start, stop) in enumerate(ranges(known, seed, RANGES)):
        clip = stem.with_name(f"{stem.name}@{start}-{stop}.mp4")
        first, after = known.between(value(start), value(stop))
        assert pyav_frames(clip) == known.hashes(first, after), clip.name
        if FFMPEG and number < ffmpeg:
            assert ffmpeg_frames(clip) == list(known.by_ffmpeg[first:after]), clip.name


# ---------------------------------------------------------------- real media


def decodable() -> list[str]:
    names = [n for n in listed() if not n.startswith("derived__")] if SHARED.is_dir() else []
    return [n for n in names if n not in NOT_DECODABLE and listed()[n]["video"]]


def quick(name: str) -> bool:
    """Decoded whole in a second or so; the others are for --slow."""
    about = listed()[name]["video"]
    pixels = int(about["width"] * about["height"] * (about["packets"] or 0))
    return pixels < 30_000_000 and about["codec"] is not None


@pytest.mark.shared
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *some(["real"], [n for n in decodable() if quick(n)], 4),
        *some(["large"], [n for n in decodable() if not quick(n)], 0),
    ],
)
def test_real_media_is_exact(shared_mount: Mount, kind: str, name: str) -> None:
    beside, stem = SHARED / name, shared_mount.path / name.rpartition(".")[0]
    known = truth(beside)
    known = replace(known, zero=known.zero - MOVED_BY_FFMPEG.get(name, Fraction(0)))
    times = instants(known, f"{SEED} {name}", INSTANTS)
    wanted = [known.at(value(time)) for time in times]
    near = {rank + step for rank in wanted for step in (-2, -1, 0, 1, 2)}
    frames = {rank: gray(as_rgb(frame)) for rank, frame in source_pictures(beside, near).items()}
    for time, rank in zip(times, wanted, strict=True):
        pixels = gray(np.load(f"{stem}@{time}.npy"))
        apart = {r: float(np.abs(frames[r] - pixels).mean()) for r in frames if abs(r - rank) <= 2}
        # Frames that look the same to the bit are as good: what differs may only be how colours are taken.
        assert apart[rank] <= min(apart.values()) + 1e-6, (time, rank, apart)
        read = stem.with_name(f"{stem.name}@{time}.mp4")
        index = int(os.getxattr(read, "user.reelfs.start_frame_index"))
        assert pyav_frames(read)[index] == known.frames[rank].hash, (time, rank)
    codec = listed()[name]["video"]["codec"]
    whole = len(known.by_ffmpeg) == len(known.frames) and codec not in NOT_BY_FFMPEG
    whole = whole and name not in CUTS_LOST_BY_FFMPEG
    check_ranges(stem, known, f"{SEED} {name}", ffmpeg=BY_FFMPEG if whole else 0)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["media_bt601.mov", "media_h265_bframes.mp4"])
def test_every_frame_of_a_stream_that_reorders_comes_out(shared_mount: Mount, name: str) -> None:
    """The first does not say how far it reorders (no bitstream_restriction): its B-frames are easily lost."""
    frames = source_pictures(SHARED / name, set(range(999)))
    stem = shared_mount.path / name.rpartition(".")[0]
    for rank, frame in frames.items():
        pixels = np.load(f"{stem}@f{rank}.npy")
        assert np.array_equal(pixels, as_rgb(frame)), rank


def gray(pixels: Picture) -> NDArray[np.float32]:
    """Some pixels, for comparing: 8K pictures are large."""
    step = max(1, pixels.shape[1] // 480)
    return pixels[::step, ::step].astype(np.float32)


# ---------------------------------------------------------------- bytes


VIRTUAL = [
    *(f"games/h264@2.31s.{form}" for form in ("jpg", "png", "webp", "bmp", "ppm", "npy")),
    *("games/h264@2.31s.mp4", "games/h264@0.7s-3.3s.mp4", "games/h264@0.7s-3.3s.key.mp4"),
    *("games/h264@0.7s-3.3s.frag.mp4", "games/fragmented sidecar@0.7s-2.3s.frag.mp4"),
    *("games/fragmented@1.31s.mp4", "games/hevc open gop@0.7s-2.3s.mp4", "games/moov at end@k1-.mp4"),
    *("games/opus@f7-f27.mp4", "games/vfr@0.31s+1s.mp4", "games/h264.mp4@/info.json"),
    *("games/turned@f11.webp", "games/hevc fragmented sidecar@k2.png", ".raw/games/h264.mp4"),
]


@pytest.mark.parametrize("name", VIRTUAL)
def test_sizes_are_exact_and_any_part_is_a_slice_of_the_whole(mount: Mount, name: str) -> None:
    """200 reads at random, before anything else of the file was read, and past the page cache."""
    path, chooser = mount / name, random.Random(f"{SEED} {name}")
    size = path.stat().st_size
    parts = []
    with path.open("rb", buffering=0) as file:
        for _ in range(200):
            offset, length = chooser.randrange(size + 10), chooser.choice((1, 7, 4096, 65_537, size))
            parts.append((offset, length, os.pread(file.fileno(), length, offset)))
            if chooser.random() < 0.2:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        whole = b"".join(iter(lambda: file.read(50_021), b""))
        assert os.fstat(file.fileno()).st_size == size == len(whole)
    for offset, length, part in parts:
        assert part == whole[offset : offset + length], (offset, length)


@pytest.mark.parametrize(
    "spellings",
    [
        (
            *("h264@3s.jpg", "h264@3.0s.jpg", "h264@3.jpg", "h264@3000ms.jpg", "h264@00:03.jpg"),
            *("h264.mp4@/3000ms.jpg", "h264.mp4@3s.jpg", "h264.mp4@/00:00:03.000.jpg"),
        ),
        (
            *("hevc@1s-2s.mp4", "hevc@1-2.mp4", "hevc@1s+1s.mp4", "hevc@1000ms-2000ms.mp4"),
            *("hevc.mp4@/1.0s-2.0s.mp4", "hevc.mp4@1s-2s.mp4"),
        ),
        ("vfr@0.5s-1s.key.mp4", "vfr.mp4@/500ms+0.5s.key.mp4"),
        ("fragmented@1s-2s.frag.mp4", "fragmented.mp4@/00:01-00:02.frag.mp4"),
    ],
    ids=lambda spellings: str(spellings[0]),
)
def test_spellings_of_a_selection_are_one_file(mount: Mount, spellings: tuple[str, ...]) -> None:
    """The same bytes, size, time and inode: to every program they are the same file."""
    games = mount.path / "games"
    first, *others = [(games / s).stat() for s in spellings]
    whole = (games / spellings[0]).read_bytes()
    for spelling, other in zip(spellings[1:], others, strict=True):
        assert os.path.samestat(first, other), spelling
        assert (first.st_size, first.st_mtime_ns) == (other.st_size, other.st_mtime_ns), spelling
        assert (games / spelling).read_bytes() == whole, spelling
