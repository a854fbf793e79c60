"""Sound and text of a real mount in programs: ffmpeg of the distribution, Python's `wave`, `ls` and `cat`."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import mp4_sound
import numpy as np
import pytest
from client_mounts import SHARED, Mount, encode, mounted

FFMPEG, FFPROBE = shutil.which("ffmpeg"), shutil.which("ffprobe")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None or FFPROBE is None, reason="needs ffmpeg")
SECONDS = Fraction(11)
FILES = {
    "aac": ("aac", {"aac_pns": "0"}, "stereo", 48_000),
    "aac 44.1": ("aac", {"aac_pns": "0"}, "mono", 44_100),
    "aac 5.1": ("aac", {"aac_pns": "0"}, "5.1", 48_000),
    "opus": ("libopus", {}, "stereo", 48_000),
    "alac": ("alac", {}, "stereo", 44_100),
    "sowt": ("pcm_s16le", {}, "stereo", 48_000),
}
LOSSLESS = frozenset(("alac", "sowt"))


@pytest.fixture(scope="module")
def sound_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """Files with sound alone, and one video with several tracks of it, subtitles and chapters."""
    source = tmp_path_factory.mktemp("sound")
    for name, (codec, options, layout, rate) in FILES.items():
        form = "mov" if codec.startswith("pcm") else "mp4"
        data = mp4_sound.encode_sound(
            codec, options=options, layout=layout, rate=rate, seconds=SECONDS, format=form
        )
        (source / f"{name}.mov").write_bytes(data)
    encode(source / "game.mp4", frames=90, size=(160, 90))
    with mounted(tmp_path_factory.mktemp("mount"), source) as made:
        yield made


def decoded(path: Path, channels: int) -> mp4_sound.Sound:
    """What the distribution's ffmpeg makes of a file."""
    assert FFMPEG is not None
    command = [FFMPEG, "-v", "error", "-i", str(path), "-f", "s16le", "-c:a", "pcm_s16le", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stderr == b""
    return np.frombuffer(done.stdout, "<i2").reshape(-1, channels)


@pytest.mark.parametrize("name", FILES)
def test_a_wav_is_read_as_it_is_promised(sound_mount: Mount, name: str) -> None:
    path, rng = sound_mount / f"{name}.mov@/audio.wav", random.Random(name)
    size = path.stat().st_size
    with path.open("rb", buffering=0) as opened:
        parts = [(at, os.pread(opened.fileno(), 9000, at)) for at in rng.sample(range(size), 10)]
    data = path.read_bytes()
    assert len(data) == size
    assert all(part == data[at : at + 9000] for at, part in parts)
    _, _, _, rate = FILES[name]
    with wave.open(str(path)) as opened_wave:
        assert (opened_wave.getnframes(), opened_wave.getframerate()) == (int(SECONDS * rate), rate)
    known = mp4_sound.decode((sound_mount.source / f"{name}.mov").read_bytes())
    samples = mp4_sound.wav_samples(data)[1]
    assert (samples == known.line(len(samples))).all()


@needs_ffmpeg
@pytest.mark.parametrize("name", FILES)
def test_ffmpeg_plays_both_alike(sound_mount: Mount, name: str) -> None:
    for selection in ("@/audio", "@3.3s-7.123s"):
        wav = sound_mount / f"{name}.mov{selection}.wav"
        samples = mp4_sound.wav_samples(wav.read_bytes())[1]
        channels = samples.shape[1]
        assert (decoded(wav, channels) == samples).all()
        stored = decoded(sound_mount / f"{name}.mov{selection}.m4a", channels)
        assert 0 <= len(stored) - len(samples) < 4608
        # Another version of the decoder rounds otherwise by a bit.
        off = np.abs(stored[: len(samples)].astype(int) - samples)
        assert off.max() <= (0 if name in LOSSLESS else 1)


@needs_ffmpeg
def test_ffprobe_sees_the_exact_length(sound_mount: Mount) -> None:
    assert FFPROBE is not None
    for kind in ("m4a", "wav"):
        command = [FFPROBE, "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0"]
        path = sound_mount / f"game@0.5s-2.25s.{kind}"
        told = subprocess.run([*command, str(path)], capture_output=True, check=True, text=True)
        assert (told.stdout.strip(), told.stderr) == ("1.750000", "")


def test_what_is_listed_can_be_opened(sound_mount: Mount) -> None:
    folder = sound_mount / "game.mp4@"
    names = set(os.listdir(folder))
    assert {"audio.m4a", "audio.wav", "waveform.png"} <= names
    assert not names & {"subtitles", "chapters.txt", "audio-2.wav"}
    for name in ("audio.m4a", "audio.wav", "waveform.png"):
        assert len((folder / name).read_bytes()) == (folder / name).stat().st_size > 500


@pytest.mark.shared
def test_real_files(shared_mount: Mount) -> None:
    """The sound of files nobody here wrote, against a full decode of the stored file."""
    for name in (
        "media_sample_opus.mp4",
        "media_sample_ac3_aac.mp4",
        "moviepy_chaplin.mp4",
        "ExoPlayer_video_1.mp4",
    ):
        data = (shared_mount / f"{name}@/audio.wav").read_bytes()
        samples = mp4_sound.wav_samples(data)[1]
        known = mp4_sound.decode((SHARED / name).read_bytes())
        assert (samples == known.line(len(samples))).all(), name
    text = (shared_mount / "torchcodec_nasa_13013.mp4@/subtitles/1.eng.srt").read_text()
    assert text.startswith("1\n00:00:00,210 --> 00:00:04,260\nNAR: ")
    chapters = (shared_mount / "media_sample_with_nero_chapters_only.mp4@/chapters.txt").read_text()
    assert chapters.count("[CHAPTER]") == 3
