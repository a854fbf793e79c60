"""What players show and sound: frames as hashes or ranks of the source, sound as times of the source."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from client_mounts import ROOT
from numpy.typing import NDArray
from PIL import Image

sys.path[:0] = [str(ROOT / "tests" / "4_plugins")]

from mp4_exact import Truth, truth_of  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402

Sound = NDArray[np.float64]
Gray = NDArray[np.float32]
#: One picture in gray, as many pixels of it as are looked at.
Picture = NDArray[np.float32]

#: Samples a second of sound that is looked at.
RATE = 48_000
#: The sample sound: pitch at time 0 of its source in Hz, and how it climbs in Hz a second.
PITCH, CLIMB = 300.0, 100.0
#: Every so-many-th pixel is enough to tell frames apart.
SOME = 4
MPV = ("mpv", "--no-config", "--msg-level=all=warn", "--untimed")


@functools.cache
def truth(path: Path) -> Truth:
    """The frames of a source file, decoded from its own folder."""
    return truth_of(MemoryPlace(path.read_bytes(), path.name))


def run(*command: str | Path, timeout: float = 60) -> bytes:
    """What a program prints; it must end well and complain of nothing."""
    done = subprocess.run(list(map(str, command)), capture_output=True, timeout=timeout, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, ""), command
    return done.stdout


# ---------------------------------------------------------------- pictures


def ffmpeg_frames(path: Path, *before: str, after: tuple[str, ...] = ()) -> list[str]:
    """Hashes of the frames ffmpeg decodes; a complaint fails. before, after: options of input and output."""
    out = run(
        *("ffmpeg", "-nostdin", "-v", "error", "-noautorotate", *before, "-i", str(path)),
        *("-map", "0:v:0", "-vsync", "passthrough", *after, "-f", "framemd5", "-"),
    )
    lines = out.decode().splitlines()
    return [line.rsplit(",", 1)[1].strip() for line in lines if line and not line.startswith("#")]


def pyav_frames(path: Path) -> list[str]:
    """Hashes of the frames that PyAV decodes from a path, reading and seeking as it likes."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "SLICE", 1
        return [hashlib.md5(f.to_ndarray().tobytes()).hexdigest() for f in container.decode(stream)]


def ffprobe(path: Path, *options: str) -> Any:
    """What ffprobe says, without the name of the file."""
    found = json.loads(run("ffprobe", "-v", "error", "-of", "json", *options, path))
    found.get("format", {}).pop("filename", None)
    return found


@functools.cache
def grays(path: Path) -> Gray:
    """Some pixels of all frames of a source, in gray."""
    with av.open(str(path)) as container:
        whole = [f.to_ndarray(format="gray") for f in container.decode(video=0)]
    return np.array([gray[::SOME, ::SOME] for gray in whole], np.float32)


def as_gray(picture: Image.Image) -> Picture:
    """Some pixels of a picture as `grays` has them: those are of studio range, pictures of full range."""
    return np.asarray(picture.convert("L"), np.float32)[::SOME, ::SOME] * (219 / 255) + 16


def rank(source: Path, picture: Picture) -> int:
    """Which frame of the source a picture shows: the one that is most like it."""
    return int(np.abs(grays(source) - picture).mean((1, 2)).argmin())


def ranks(source: Path, pictures: Path) -> list[int]:
    """Which frames of the source the pictures in a folder show."""
    return [rank(source, as_gray(Image.open(picture))) for picture in sorted(pictures.iterdir())]


def mpv_ranks(source: Path, path: Path, folder: Path, *options: str) -> list[int]:
    """Which frames of the source mpv shows; any complaint fails."""
    folder.mkdir()
    how = ("--vo=image", "--vo-image-format=png", "--vo-image-png-compression=0")
    run(*MPV, *how, f"--vo-image-outdir={folder}", "--no-audio", *options, path)
    return ranks(source, folder)


# ---------------------------------------------------------------- sound


@dataclass(frozen=True)
class Heard:
    """Sound as one channel at `RATE`; its first sample is heard at `start` seconds of the clip."""

    samples: Sound
    start: Fraction = Fraction(0)

    @property
    def length(self) -> float:
        """Seconds."""
        return len(self.samples) / RATE

    def source_time(self, since: float, until: float, about: float) -> float:
        """The time of the source whose sound is heard at `since` seconds of the clip, judged by the pitch.

        about: the time that is expected. Right to a millisecond for 100 ms of sound.
        """
        first = round((since - float(self.start)) * RATE)
        count = round((until - since) * RATE)
        assert first >= 0
        part = self.samples[first : first + count]
        assert len(part) == count, "there is less sound than pictures"
        return about + _slope(part, about) / (2 * np.pi * CLIMB)


def _slope(part: Sound, about: float) -> float:
    """How fast (radians a second) the phase runs away from that of the tone from `about` on."""
    count = len(part)
    spectrum = np.fft.fft(part * np.hanning(count))
    spectrum[count // 2 + 1 :] = 0
    times = np.arange(count) / RATE
    expected = 2 * np.pi * (PITCH * (times + about) + CLIMB * (times + about) ** 2 / 2)
    phase = np.unwrap(np.angle(np.fft.ifft(spectrum) * np.exp(-1j * expected)))
    inner = slice(count // 8, -count // 8)
    return float(np.polyfit(times[inner], phase[inner], 1)[0])


def ffmpeg_sound(path: Path, *before: str) -> Heard:
    """The sound as ffmpeg lays it on the clip's line: silence where there is none yet."""
    out = run(
        *("ffmpeg", "-nostdin", "-v", "error", *before, "-i", str(path), "-map", "0:a:0"),
        *("-af", "aresample=async=1:first_pts=0", "-ac", "1", "-ar", str(RATE), "-f", "f32le", "-"),
    )
    return Heard(np.frombuffer(out, np.float32).astype(np.float64))


def pyav_sound(path: Path) -> Heard:
    """The sound as PyAV decodes it, from the time of its first frame on."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    assert {frame.sample_rate for frame in frames} == {RATE}
    first = frames[0]
    assert first.pts is not None
    assert first.time_base is not None
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.float64)
    return Heard(samples, first.pts * first.time_base)


def mpv_sound(path: Path, file: Path, *options: str) -> Heard:
    """The sound as mpv plays it along with the pictures."""
    how = ("--vo=null", "--ao=pcm", "--ao-pcm-waveheader=no", f"--ao-pcm-file={file}", "--audio-format=float")
    run(*MPV, *how, f"--audio-samplerate={RATE}", "--audio-channels=mono", *options, path)
    return Heard(np.fromfile(file, np.float32).astype(np.float64))
