"""Pictures of a real mount in programs: `ls`, NumPy with and without a map, ffprobe and ffmpeg, Pillow."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import subprocess
from fractions import Fraction

import av
import mp4_exact
import numpy as np
import pytest
from client_mounts import Mount, reelfs
from mp4_places import MemoryPlace
from PIL import Image, ImageSequence
from vfs_mp4 import render, visual

FFMPEG, FFPROBE = shutil.which("ffmpeg"), shutil.which("ffprobe")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None or FFPROBE is None, reason="needs ffmpeg")
PLAIN = visual.Entry("h264", 0, 0, b"")


def companion(mount: Mount, name: str) -> str:
    return str(mount / "games" / f"{name}.mp4@")


def test_ls_of_key_frames(mount: Mount) -> None:
    """`ls` tells number and time of each key frame; each is the same bytes as by its number."""
    folder = companion(mount, "hevc open gop")
    done = subprocess.run(["ls", f"{folder}/keyframes"], capture_output=True, check=True, text=True)
    assert done.stderr == ""
    assert all(re.fullmatch(r"k\d{4}@\d+\.\d{3}s\.jpg", name) for name in done.stdout.split("\n")[:-1])
    names = done.stdout.split()
    assert [int(name[1:5]) for name in names] == list(range(len(names)))
    for number, name in enumerate(names):
        with open(f"{folder}/keyframes/{name}", "rb") as one, open(f"{folder}/k{number}.jpg", "rb") as other:
            assert one.read() == other.read()


def jobs(mount: Mount) -> float:
    """What worker processes have done so far, asked of the daemon: a file of it may be a second old."""
    told = json.loads(reelfs(mount.log.parent, "status", mount.path, "--json").stdout)
    done: float = sum(told["counters"]["worker_jobs"].values())
    return done


def test_names_cost_nothing_and_sizes_a_picture_each_once(mount: Mount) -> None:
    """`ls` and `find` decode nothing, though a listing carries sizes; `ls -l` decodes what it names."""
    folder = companion(mount, "vfr")
    before = jobs(mount)
    for command in (["ls"], ["find"], ["ls", "-F", "--file-type"]):
        for part in ("keyframes", "frames", "frames/000000-000099"):
            done = subprocess.run(
                [command[0], f"{folder}/{part}", *command[1:]], capture_output=True, check=True
            )
            assert done.stderr == b""
    with os.scandir(f"{folder}/keyframes") as entries:
        names = [entry.name for entry in entries if entry.is_file()]
    assert (len(names) > 1, jobs(mount)) == (True, before)
    told = subprocess.run(
        ["ls", "-l", f"{folder}/keyframes"], capture_output=True, check=True, text=True
    ).stdout
    assert before < jobs(mount) <= before + len(names)
    between = jobs(mount)
    again = subprocess.run(
        ["ls", "-l", f"{folder}/keyframes"], capture_output=True, check=True, text=True
    ).stdout
    assert (again, jobs(mount)) == (told, between)


def test_ls_of_frames_goes_by_the_hundred(mount: Mount) -> None:
    folder = companion(mount, "h264")
    assert sorted(os.listdir(f"{folder}/frames")) == ["000000-000099", "000100-000199"]
    done = subprocess.run(
        ["ls", "-l", f"{folder}/frames/000100-000199"], capture_output=True, check=True, text=True
    )
    assert len(done.stdout.splitlines()) == 51
    with Image.open(f"{folder}/frames/000123.png") as image:
        direct = np.asarray(image)
    with Image.open(f"{folder}/frames/000100-000199/000123.png") as image:
        assert np.array_equal(np.asarray(image), direct)


@pytest.mark.parametrize("name", ["h264", "hevc open gop", "vfr", "turned"])
def test_numpy_loads_a_range(mount: Mount, name: str) -> None:
    """Whole, and as a map of which some frames are looked at: each is the source's."""
    stored = (mount.source / "games" / f"{name}.mp4").read_bytes()
    with av.open(io.BytesIO(stored), "r") as container:
        wanted = [render.to_rgb(frame, PLAIN) for frame in container.decode(video=0)]
    path = mount / "games" / f"{name}@f20-f70.npy"
    mapped = np.load(path, mmap_mode="r")
    assert mapped.shape == (50, *wanted[0].shape)
    for number in random.Random(name).sample(range(50), 8):
        assert np.array_equal(mapped[number], wanted[20 + number])
    whole = np.load(path)
    assert len(whole) == 50
    assert all(map(np.array_equal, whole, wanted[20:70]))
    assert path.stat().st_size == whole.nbytes + 128


@needs_ffmpeg
def test_ffprobe_and_ffmpeg_read_the_gif(mount: Mount) -> None:
    path = mount / "games" / "h264@1s-3s.gif"
    assert FFPROBE is not None
    entries = "stream=width,height,nb_read_frames,duration"
    command = [FFPROBE, "-v", "error", "-count_frames", "-show_entries", entries, "-of", "json", str(path)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    (stream,) = json.loads(done.stdout)["streams"]
    assert done.stderr == ""
    assert (stream["width"], stream["height"], stream["nb_read_frames"]) == (160, 90, "30")
    assert float(stream["duration"]) == pytest.approx(2.0, abs=0.011)
    assert FFMPEG is not None
    done = subprocess.run(
        [FFMPEG, "-v", "error", "-i", str(path), "-f", "null", "-"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["h264", "fragmented sidecar", "turned"])
def test_pillow_plays_the_webp(mount: Mount, name: str) -> None:
    """(The ffmpeg of Debian 12 reads no animated WebP.)"""
    stored = MemoryPlace((mount.source / "games" / f"{name}.mp4").read_bytes(), f"games/{name}.mp4")
    truth = mp4_exact.truth_of(stored)
    first, after = truth.between(Fraction(0), Fraction(1))
    with Image.open(mount / "games" / f"{name}@0s-1s.webp") as image:
        assert image.info["loop"] == 0
        frames = [(np.asarray(f.convert("RGB")), f.info["duration"]) for f in ImageSequence.Iterator(image)]
    assert len(frames) == -(-(after - first) // 2)
    length = truth.frames[after].time - truth.frames[first].time
    assert abs(sum(duration for _, duration in frames) - length * 1000) <= 1
    assert frames[0][0].shape == ((160, 90, 3) if name == "turned" else (90, 160, 3))


def test_the_storyboard_and_the_thumbnail(mount: Mount) -> None:
    folder = companion(mount, "fragmented")
    assert {"keyframes", "frames", "thumbnail.png", "storyboard.jpg", "storyboard.vtt"} <= set(
        os.listdir(folder)
    )
    with open(f"{folder}/storyboard.vtt", encoding="utf-8") as opened:
        cues = re.findall(r"(\S+)#xywh=(\d+),(\d+),(\d+),(\d+)", opened.read())
    assert cues
    for sheet, *numbers in cues:
        x, y, width, height = map(int, numbers)
        with Image.open(f"{folder}/{sheet}") as image:
            assert x + width <= image.width
            assert y + height <= image.height
    with Image.open(f"{folder}/thumbnail.png") as image:
        assert image.size == (160, 90)


@pytest.mark.shared
def test_real_files(shared_mount: Mount) -> None:
    """An array of a real file is its frames, and a large one can be mapped without being read."""
    path = shared_mount / "media_long_1080p_lowbitrate@0s-.npy"
    mapped = np.load(path, mmap_mode="r")
    assert mapped.shape[1:] == (1080, 1920, 3)
    assert path.stat().st_size > 10_000_000_000
    alone = np.load(shared_mount / "media_long_1080p_lowbitrate@f300.npy")
    assert np.array_equal(mapped[300], alone)
