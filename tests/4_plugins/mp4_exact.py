"""What the tests of clips and frames share: sample files, the frames of a source, and the truth by rank.

The truth is a full decode of the source by the same decoder. Frames are matched by rank on the player line,
since a container may shift every time stamp; which rank a time means is worked out here on its own, from the
presentation times that the decoder reports.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "scripts")]

from mp4_places import MemoryPlace  # noqa: E402
from vfs_mp4.plugin import Videos  # noqa: E402

from vfs import Bytes, Inline, Layout, Spliced  # noqa: E402

encode: Callable[..., Path] = importlib.import_module("sample_media").encode
SHARED = HERE.parents[2] / "shared" / "media"
FFMPEG = shutil.which("ffmpeg")

HEVC: dict[str, Any] = {"codec": "libx265"}
#: Generated sources, each with what is special about it.
SAMPLES: dict[str, dict[str, Any]] = {
    "h264": {},
    "h264_fragmented": {"fragmented": True},
    "h264_open_gop": {"open_gop": True},
    "h264_open_gop_fragmented": {"open_gop": True, "fragmented": True},
    "h264_no_b": {"bframes": 0, "faststart": False},
    "hevc": HEVC,
    "hevc_open_gop": {**HEVC, "open_gop": True},
    "hevc_open_gop_fragmented": {**HEVC, "open_gop": True, "fragmented": True, "tag": "hev1", "gop": 20},
    "hevc_radl_fragmented": {
        **HEVC,
        "fragmented": True,
        "options": {
            "x265-params": "keyint=30:min-keyint=30:scenecut=0:bframes=4:b-adapt=0:open-gop=0:radl=3"
            ":log-level=none:pools=1:frame-threads=1"
        },
    },
    "vfr": {"vfr": True},
    "vfr_fragmented": {"vfr": True, "fragmented": True},
    "ntsc": {"fps": Fraction(30000, 1001)},
    "delayed_video": {"delay": Fraction(1, 2)},
    "trimmed": {"trim": Fraction(1, 2)},
    "rotated_wide_pixels": {"rotation": 90, "aspect": Fraction(4, 3)},
    "ten_bit": {**HEVC, "pix_fmt": "yuv420p10le"},
    "odd_size": {"pix_fmt": "yuv444p", "size": (321, 181)},
    "opus": {"audio_codec": "libopus"},
    "silent_mov": {"audio": False},
}

_FOLDER = tempfile.TemporaryDirectory(prefix="reelfs-samples-")


@functools.cache
def sample(name: str) -> MemoryPlace:
    """A generated file, made once a run."""
    suffix = ".mov" if name.endswith("_mov") else ".mp4"
    path = encode(Path(_FOLDER.name) / f"{name}{suffix}", frames=110, **SAMPLES[name])
    return MemoryPlace(path.read_bytes(), f"games/{path.name}")


def shared(name: str) -> MemoryPlace:
    """A file nobody here wrote."""
    return MemoryPlace((SHARED / name).read_bytes(), f"media/{name}")


def content(place: MemoryPlace, layout: Layout) -> bytes:
    """All bytes of a layout."""
    return b"".join(
        span.data if isinstance(span, Inline) else place.data[span.offset : span.end] for span in layout.spans
    )


@dataclass(frozen=True)
class Frame:
    """A decoded frame: its time in seconds as the container reports it, and a hash of its planes."""

    time: Fraction
    hash: str


def decode(data: bytes) -> list[Frame]:
    """Every frame of the first video track, by PyAV; as in players, what does not decode is left out."""
    found = []
    with av.open(io.BytesIO(data), "r") as container:
        for frame in _frames(container):
            pixels = frame.to_ndarray()
            assert frame.pts is not None
            assert frame.time_base is not None
            found.append(Frame(frame.pts * frame.time_base, hashlib.md5(pixels.tobytes()).hexdigest()))
    return found


def _frames(container: InputContainer) -> Iterator[av.VideoFrame]:
    for packet in container.demux(container.streams.video[0]):
        with contextlib.suppress(av.error.InvalidDataError):
            yield from packet.decode()


def decode_by_ffmpeg(data: bytes) -> list[str]:
    """Hash of every frame of the first video track, by the ffmpeg of the distribution."""
    assert FFMPEG is not None
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(data)
        file.flush()
        command = [FFMPEG, "-v", "quiet", "-noautorotate", "-threads", "1", "-i", file.name]
        command += ["-map", "0:v:0", "-vsync", "passthrough", "-f", "framemd5", "-"]
        lines = subprocess.run(command, capture_output=True, check=False, text=True).stdout.splitlines()
    return [line.rsplit(",", 1)[1].strip() for line in lines if line and not line.startswith("#")]


@dataclass(frozen=True)
class Truth:
    """The frames of a source and where the line of path times begins, by PyAV alone."""

    frames: tuple[Frame, ...]
    zero: Fraction
    by_ffmpeg: tuple[str, ...] = ()

    def at(self, seconds: Fraction) -> int:
        """Rank of the frame with the greatest time <= seconds, the first before any."""
        before = [i for i, frame in enumerate(self.frames) if frame.time - self.zero <= seconds]
        return before[-1] if before else 0

    def between(self, start: Fraction, stop: Fraction) -> tuple[int, int]:
        """Ranks [first, after last) of the range [start, stop)."""
        first = self.at(start)
        after = sum(frame.time - self.zero < stop for frame in self.frames)
        return first, max(after, first + 1)

    def later(self, seconds: Fraction) -> Truth:
        """The same with every frame this much later."""
        return replace(self, frames=tuple(replace(f, time=f.time + seconds) for f in self.frames))

    def hashes(self, first: int, after: int) -> list[str]:
        return [frame.hash for frame in self.frames[first:after]]


def truth_of(place: MemoryPlace) -> Truth:
    """A full decode. The line begins with the earliest frame or sound that is presented."""
    frames = decode(place.data)
    starts = [frames[0].time]
    with av.open(io.BytesIO(place.data), "r") as container:
        for stream in container.streams.audio:
            first = next((f for f in container.decode(stream) if f.pts is not None), None)
            container.seek(0)
            if first is not None and first.pts is not None and first.time_base is not None:
                starts.append(first.pts * first.time_base)
    by_ffmpeg = tuple(decode_by_ffmpeg(place.data)) if FFMPEG else ()
    return Truth(tuple(frames), min(starts), by_ffmpeg)


@functools.cache
def truth(name: str) -> Truth:
    """The truth of a generated sample."""
    return truth_of(sample(name))


async def spliced(place: MemoryPlace, name: str) -> tuple[bytes, dict[str, str]]:
    """The bytes and attributes of a derived name that is a layout."""
    node = await Videos().resolve(place, name)
    assert isinstance(node, Spliced)
    data = content(place, node.layout)
    assert len(data) == node.layout.size
    return data, dict(node.attributes)


async def produced(place: MemoryPlace, name: str) -> bytes:
    """The bytes of a derived name that is made whole."""
    node = await Videos().resolve(place, name)
    assert isinstance(node, Bytes)
    return await node.produce()


def listed() -> dict[str, dict[str, Any]]:
    """The shared files by name, as their index describes them."""
    return {entry["name"]: entry for entry in json.loads((SHARED / "index.json").read_text())["files"]}


def is_quick(name: str) -> bool:
    """Whether a shared file is decoded whole in a second or so."""
    about: dict[str, Any] = listed()[name].get("video") or {}
    pixels = int(about.get("width") or 0) * int(about.get("height") or 0)
    return pixels * int(about.get("packets") or 0) < 3e7
