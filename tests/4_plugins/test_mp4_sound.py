"""Sound of files and ranges: as stored, and decoded; compared with a full decode, sample for sample."""

from __future__ import annotations

import functools
import importlib
import io
import random
import sys
import wave
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

sys.path[:0] = [str(Path(__file__).parent)]

import mp4_exact  # noqa: E402
import mp4_sound  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from vfs_mp4 import hearing, soundline, soundwork, source, uniform, wav  # noqa: E402
from vfs_mp4.audio import Sounds  # noqa: E402

from vfs import Damaged, MediaError, NoMedia, OutOfRange, Spliced, Unsupported  # noqa: E402

SECONDS = Fraction(23, 2)
#: Noise substitution of FFmpeg's AAC encoder is off: what a decoder makes up differs with where it began.
AAC: dict[str, Any] = {"codec": "aac", "options": {"aac_pns": "0"}}
FRAGMENTED = {"muxing": {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}}
#: Generated files, each longer than a window.
FILES: dict[str, dict[str, Any]] = {
    "aac": AAC,
    "aac 44.1 mono": {**AAC, "rate": 44_100, "layout": "mono"},
    "aac 22 mono": {**AAC, "rate": 22_050, "layout": "mono"},
    "aac 5.1": {**AAC, "layout": "5.1"},
    "aac fragmented": {**AAC, **FRAGMENTED},
    "opus": {"codec": "libopus"},
    "opus 5.1": {"codec": "libopus", "layout": "5.1"},
    "opus low": {"codec": "libopus", "layout": "mono", "bit_rate": 24_000},
    "opus fragmented": {"codec": "libopus", **FRAGMENTED},
    "mp3": {"codec": "libmp3lame", "rate": 44_100},
    "alac": {"codec": "alac", "rate": 44_100},
    "flac": {"codec": "flac", "muxing": {"strict": "-2"}},
    "ac3": {"codec": "ac3", "layout": "5.1"},
    "eac3": {"codec": "eac3"},
    "sowt": {"codec": "pcm_s16le", "format": "mov"},
    "twos 44.1": {"codec": "pcm_s16be", "format": "mov", "rate": 44_100, "layout": "mono"},
    "in24": {"codec": "pcm_s24le", "format": "mov"},
    "in32": {"codec": "pcm_s32be", "format": "mov"},
    "fl32": {"codec": "pcm_f32le", "format": "mov"},
    "fl64": {"codec": "pcm_f64be", "format": "mov"},
    "8 bit": {"codec": "pcm_u8", "format": "mov"},
    "ipcm": {"codec": "pcm_s16le"},
    "mu-law": {"codec": "pcm_mulaw", "format": "mov", "rate": 8000, "layout": "mono"},
    "A-law": {"codec": "pcm_alaw", "format": "mov", "rate": 8000, "layout": "mono"},
}
#: What a demuxer of FFmpeg cannot cut off at the end: the rest of the last packet.
LONGEST_PACKET = 4608


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode in this process; workers and the cache are tried in `test_mp4_sound_reads`."""

    async def run(function: Callable[..., Any], *arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr(wav, "in_worker", run)
    monkeypatch.setattr(hearing, "in_worker", run)


@functools.cache
def sample(name: str) -> MemoryPlace:
    data = mp4_sound.encode_sound(seconds=SECONDS, **FILES[name])
    return MemoryPlace(data, f"games/{name}.{FILES[name].get('format', 'mp4')}")


@functools.cache
def truth(name: str) -> mp4_sound.Heard:
    return mp4_sound.decode(sample(name).data)


async def resolved(place: MemoryPlace, name: str) -> Spliced:
    node = await Sounds().resolve(place, name)
    assert isinstance(node, Spliced)
    return node


def content(place: MemoryPlace, name: str) -> bytes:
    """The bytes of a derived sound; their number is what was promised."""

    async def main() -> bytes:
        node = await resolved(place, name)
        data = await mp4_sound.read(place, node.layout)
        assert len(data) == node.layout.size
        return data

    return trio.run(main)


def zero_of(place: MemoryPlace, rate: int) -> int:
    """The sample of the decoder's line at which path times begin."""
    return int(trio.run(source.open_movie, place).zero * rate)


@pytest.mark.parametrize("name", FILES)
def test_the_whole_is_what_ffmpeg_decodes(name: str) -> None:
    place, known = sample(name), truth(name)
    rate, samples = mp4_sound.wav_samples(content(place, "audio.wav"))
    assert rate == known.rate
    zero = zero_of(place, rate)
    wanted = known.line(len(samples), start=zero)
    # FFmpeg plays the last packet to its end, beyond the edit list.
    assert 0 <= known.length - zero - len(samples) < LONGEST_PACKET
    assert (samples == wanted).all()


@pytest.mark.parametrize("name", FILES)
def test_reads_anywhere_are_slices_of_the_whole(name: str) -> None:
    place, rng = sample(name), random.Random(name)

    async def main() -> None:
        layout = (await resolved(place, "audio.wav")).layout
        whole = await mp4_sound.read(place, layout)
        for _ in range(8):
            at, length = rng.randrange(len(whole)), rng.randrange(1, 100_000)
            assert await mp4_sound.read(place, layout, at, length) == whole[at : at + length]

    trio.run(main)


@pytest.mark.parametrize("name", FILES)
def test_a_range_is_the_same_as_stored_and_decoded(name: str) -> None:
    """`m4a` begins with the very sample of the `wav`, and so does the wav with that of the whole."""
    place, known = sample(name), truth(name)
    rng = random.Random(name)
    for _ in range(2):
        start = Fraction(rng.randrange(1, 9_000), 1000)
        stop = start + Fraction(rng.randrange(50, 2_500), 1000)
        selection = f"{float(start)}s-{float(stop)}s"
        rate, samples = mp4_sound.wav_samples(content(place, f"{selection}.wav"))
        first, after = (int(time * rate + Fraction(1, 2)) for time in (start, stop))
        assert len(samples) == after - first
        wanted = known.line(len(samples), start=first + zero_of(place, rate))
        assert (samples == wanted).all()
        stored = mp4_sound.decode(content(place, f"{selection}.m4a"))
        assert stored.pieces[0][0] == 0
        assert 0 <= stored.length - len(samples) < LONGEST_PACKET
        assert (stored.line(len(samples)) == samples).all()


@pytest.mark.parametrize("name", FILES)
def test_the_whole_as_stored_decodes_the_same(name: str) -> None:
    place, known = sample(name), truth(name)
    stored = mp4_sound.decode(content(place, "audio.m4a"))
    assert (stored.line(stored.length) == known.line(stored.length, start=zero_of(place, known.rate))).all()
    assert stored.length == known.length - zero_of(place, known.rate)


@pytest.mark.parametrize("name", ["aac", "aac 44.1 mono", "aac 5.1", "twos 44.1"])
def test_python_opens_it(name: str) -> None:
    data = content(sample(name), "audio.wav")
    with wave.open(io.BytesIO(data)) as opened:
        rate, samples = mp4_sound.wav_samples(data)
        assert opened.getframerate() == rate == FILES[name].get("rate", 48_000)
        assert (opened.getnframes(), opened.getnchannels()) == samples.shape
        assert opened.getsampwidth() == 2
        assert opened.getnframes() == int(SECONDS * rate)
        assert opened.readframes(opened.getnframes()) == data[44:]


def test_neighbouring_ranges_tile() -> None:
    """No sample is lost or doubled between [A, B) and [B, C), wherever B lies between two samples."""
    place = sample("aac 44.1 mono")
    whole = content(place, "1s-3s.wav")[44:]
    for cut in ("1.7s", "1.000012s", "2.000011s", "2.99998s"):
        assert content(place, f"1s-{cut}.wav")[44:] + content(place, f"{cut}-3s.wav")[44:] == whole


def test_spellings_and_ends() -> None:
    place = sample("aac")
    assert content(place, "2-3.wav") == content(place, "2000ms+1s.wav")
    assert content(place, "2s-.wav") == content(place, "2s-100s.wav")
    assert len(content(place, "2s-.wav")) == 44 + int((SECONDS - 2) * 48_000) * 4
    with pytest.raises(OutOfRange, match="it is 11"):
        content(place, "12s-13s.wav")
    for name in (
        "2s.wav",
        "2s-3s.key.wav",
        "3s-2s.wav",
        "2s-3s.ogg",
        "audio-2.wav",
        "audio-1.wav",
        "Audio.wav",
    ):
        assert trio.run(Sounds().resolve, place, name) is None


# ---------------------------------------------------------------- with pictures


@pytest.mark.parametrize(
    "name", ["h264", "h264_fragmented", "opus", "delayed_video", "trimmed", "ntsc", "vfr"]
)
def test_in_step_with_the_clip(name: str) -> None:
    """The sound of a clip, of the m4a and of the wav of the same frames is the same from the first sample."""
    place = mp4_exact.sample(name)
    clip = mp4_sound.decode(trio.run(mp4_exact.spliced, place, "f31-f80.mp4")[0])
    stored = mp4_sound.decode(content(place, "f31-f80.m4a"))
    rate, samples = mp4_sound.wav_samples(content(place, "f31-f80.wav"))
    assert rate == 48_000
    assert len(samples) > rate
    assert (stored.line(len(samples)) == samples).all()
    # The clip's edit list is kept in ticks of the movie: a rounded half sample may move it by one.
    # Opus beside pictures begins unprepared, for browsers: it takes its decoder a second to be exact.
    skip = rate if name == "opus" else 0
    found = [
        shift
        for shift in (-1, 0, 1)
        if (clip.line(len(samples) - 2, start=1 + shift)[skip:] == samples[1:-1][skip:]).all()
    ]
    assert found
    if name not in ("ntsc", "vfr"):
        assert 0 in found


@pytest.mark.parametrize("name", ["h264", "h264_fragmented", "opus", "delayed_video", "trimmed"])
def test_samples_are_at_their_time(name: str) -> None:
    """Sample n of `audio.wav` is heard at n / rate, silence included: by the time stamps of a decode."""
    place = mp4_exact.sample(name)
    rate, samples = mp4_sound.wav_samples(content(place, "audio.wav"))
    known, zero = mp4_sound.decode(place.data), mp4_exact.truth(name).zero
    assert (samples == known.line(len(samples), start=int(zero * rate))).all()


def test_a_video_without_sound_has_none() -> None:
    place = mp4_exact.sample("silent_mov")
    assert trio.run(Sounds().entries, place) == {}
    assert trio.run(Sounds().resolve, place, "audio.wav") is None
    with pytest.raises(NoMedia, match="no sound track"):
        trio.run(Sounds().resolve, place, "1s-2s.wav")


def test_what_is_no_movie_lists_nothing() -> None:
    assert trio.run(Sounds().entries, MemoryPlace(b"", "games/empty.mp4")) == {}
    with pytest.raises(MediaError):
        trio.run(Sounds().resolve, MemoryPlace(b"", "games/empty.mp4"), "audio.wav")


def test_several_tracks() -> None:
    """Every sound track is listed, and a clip keeps them all."""
    data = mp4_sound.encode_sound(**AAC, seconds=Fraction(3), tracks=("eng", "fra", "deu"))
    place = MemoryPlace(data, "games/x.mp4")
    listed = trio.run(Sounds().entries, place)
    assert list(listed) == [f"audio{n}.{f}" for f in ("m4a", "wav") for n in ("", "-2", "-3")]
    for number in range(3):
        suffix = f"-{number + 1}" if number else ""
        known = mp4_sound.decode(data, number)
        samples = mp4_sound.wav_samples(content(place, f"audio{suffix}.wav"))[1]
        assert (samples == known.line(len(samples))).all()
        stored = mp4_sound.decode(content(place, f"audio{suffix}.m4a"))
        assert (stored.line(len(samples)) == samples).all()
    clip = trio.run(mp4_exact.spliced, place, "1s-2s.mp4")[0]
    for number in range(3):
        wanted = mp4_sound.decode(data, number).line(40_000, start=48_000 - 48_000 % 1024)
        assert (mp4_sound.decode(clip, number).line(40_000) == wanted).all()


# ---------------------------------------------------------------- what cannot be


def test_encrypted_sound_says_so() -> None:
    data = sample("aac").data.replace(b"mp4a\0\0\0\0\0\0\0\1", b"enca\0\0\0\0\0\0\0\1")
    for name in ("audio.wav", "audio.m4a", "1s-2s.wav", "1s-2s.m4a"):
        with pytest.raises(Unsupported, match="is encrypted"):
            trio.run(Sounds().resolve, MemoryPlace(data, "games/x.mp4"), name)


def test_a_codec_nobody_knows_is_stored_but_not_decoded() -> None:
    place = MemoryPlace(sample("alac").data.replace(b"alac", b"qqqq"), "games/x.mp4")
    assert len(content(place, "1s-2s.m4a")) > 1000
    with pytest.raises(Unsupported, match="no decoder for sound of type 'qqqq'"):
        trio.run(Sounds().resolve, place, "audio.wav")


def test_a_decoder_that_gives_another_rate_is_an_error() -> None:
    """The description is believed for the size; what does not fit it is never served."""
    place = sample("aac")

    async def main() -> None:
        movie = await source.open_movie(place)
        line = await hearing.line_of(place, movie, movie.tracks[0])
        job, packets = soundline.window(line, 0, 4096)
        wrong = replace(job, format=replace(line.format, rate=44_100))
        soundwork.pcm(wrong, await place.fetch(packets))

    with pytest.raises(Damaged, match="48000 Hz and 2 channels come out"):
        trio.run(main)


def test_more_than_4_gib_is_rf64() -> None:
    size = 5 << 30
    head = wav.header(48_000, 6, size)
    assert (head[:4], head[8:16]) == (b"RF64", b"WAVEds64")
    assert int.from_bytes(head[20:28], "little") == len(head) + size - 8
    assert int.from_bytes(head[28:36], "little") == size
    assert int.from_bytes(head[36:44], "little") == size // 12
    assert len(wav.header(48_000, 6, (4 << 30) - 48)) == 44


# ---------------------------------------------------------------- uncompressed


def test_rows_of_uncompressed_sound_are_runs() -> None:
    """The tables of two hours fit many times into what one file may have."""
    held = np.full(14_400, 24_000)
    starts = 40 + np.arange(len(held)) * 200_000
    rows = uniform.samples(starts, held, np.ones(len(held), np.int32), 4, 1)
    assert len(rows) == uniform.rows_of(held) == 14_400 * 24
    assert rows.nbytes < 16 << 20
    assert int(rows.dur.sum()) == 7200 * 48_000
    assert rows.offset[24] == 200_040
    assert rows.offset[23] + rows.size[23] == 40 + 24_000 * 4
    assert (rows.dts[1:] == rows.dts[:-1] + rows.dur[:-1]).all()


def test_old_quicktime_files_that_give_no_size() -> None:
    place = sample("sowt")
    at = place.data.index(b"stsz") + 8
    assert place.data[at : at + 4] == b"\0\0\0\4"
    old = MemoryPlace(place.data[:at] + b"\0\0\0\1" + place.data[at + 4 :], "games/x.mov")
    for name in ("audio.wav", "1s-2s.wav", "1s-2s.m4a"):
        assert content(old, name) == content(place, name)


# ---------------------------------------------------------------- windows of fragmented files


@pytest.mark.parametrize("codec", ["aac", "libopus"])
def test_a_window_of_a_fragmented_file_with_a_sidecar(tmp_path: Path, codec: str) -> None:
    """Only the tables near the range are read; the sound is that of the whole."""
    path = mp4_exact.encode(
        tmp_path / "x.mp4", frames=240, fragmented=True, audio_codec=codec, size=(160, 90)
    )
    side = importlib.import_module("sample_media").sidecars(path)[0]
    data = path.read_bytes()
    known = mp4_sound.decode(data)
    for start, stop in (
        (Fraction(5), Fraction(6)),
        (Fraction("6.321"), Fraction("7.9")),
        (Fraction(0), Fraction(1)),
    ):
        place = MemoryPlace(data, "games/x.mp4", {".index.sqlite": side.read_bytes()})
        movie = trio.run(source.movie_at, place, start, stop)
        assert not movie.complete
        name = f"{float(start)}s-{float(stop)}s"
        rate, samples = mp4_sound.wav_samples(content(place, f"{name}.wav"))
        first = int((start + movie.zero) * rate + Fraction(1, 2))
        off = samples - known.line(len(samples), start=first).astype(int)
        # A bit of noise that the encoder of the samples leaves to the decoder.
        assert np.abs(off).max() <= (codec == "aac")
        stored = mp4_sound.decode(content(place, f"{name}.m4a"))
        assert (stored.line(len(samples)) == samples).all()
