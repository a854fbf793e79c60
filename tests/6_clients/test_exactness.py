"""What the grammar promises, through a real mount: each time gives its frame, each range its frames alone.

The truth is a full decode of the source beside the mount. 20 instants and 6 ranges a file, others each day
(CLIENTS_SEED is told at the end of the run). Real media: `test_fidelity.py`.
"""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
from client_mounts import SEED, SHARED, VIDEOS, Mount
from client_players import ffmpeg_frames, pyav_frames, truth
from fidelity import BY_FFMPEG, as_rgb, instants, ranges, source_pictures, value
from mp4_exact import FFMPEG, Truth
from PIL import Image


@pytest.mark.parametrize("name", VIDEOS)
def test_instants_are_the_frames_shown_then(mount: Mount, name: str) -> None:
    """As npy the very pixels of the source's frame; as ppm the same, turned as a player turns it."""
    beside, stem = mount.source / "games" / f"{name}.mp4", f"{mount.path}/games/{name}"
    known = truth(beside)
    times = instants(known, f"{SEED} {name}")
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
    for number, (start, stop) in enumerate(ranges(known, seed)):
        clip = stem.with_name(f"{stem.name}@{start}-{stop}.mp4")
        first, after = known.between(value(start), value(stop))
        assert pyav_frames(clip) == known.hashes(first, after), clip.name
        if FFMPEG and number < ffmpeg:
            assert ffmpeg_frames(clip) == list(known.by_ffmpeg[first:after]), clip.name


@pytest.mark.shared
@pytest.mark.parametrize("name", ["media_bt601.mov", "media_h265_bframes.mp4"])
def test_every_frame_of_a_stream_that_reorders_comes_out(shared_mount: Mount, name: str) -> None:
    """The first does not say how far it reorders (no bitstream_restriction): its B-frames are easily lost."""
    frames = source_pictures(SHARED / name, set(range(999)))
    stem = shared_mount.path / name.rpartition(".")[0]
    for rank, frame in frames.items():
        pixels = np.load(f"{stem}@f{rank}.npy")
        assert np.array_equal(pixels, as_rgb(frame)), rank


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
