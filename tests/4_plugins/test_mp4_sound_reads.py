"""Sound, text and waveforms read through the real parts: tree, reader, cache and worker processes."""

from __future__ import annotations

import io
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import trio
from numpy.typing import NDArray
from PIL import Image

sys.path[:0] = [str(Path(__file__).parent)]

import mp4_exact  # noqa: E402
import mp4_sound  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from vfs_mp4 import peaks, waveform  # noqa: E402
from vfs_mp4.waveform import Waveforms  # noqa: E402

from vfs import Bytes, Spliced  # noqa: E402
from vfs.config import Settings  # noqa: E402
from vfs.runtime import open_runtime  # noqa: E402


def test_by_the_runtime(tmp_path: Path) -> None:
    """Read in pieces through reader, cache and workers; read again, nothing is decoded a second time."""
    stored = mp4_sound.encode_sound("aac", seconds=Fraction(13), options={"aac_pns": "0"})
    (tmp_path / "x.mp4").write_bytes(stored)
    known = mp4_sound.decode(stored)

    async def main() -> None:
        settings = Settings.load({"source": tmp_path.as_uri()}, environ={})
        async with open_runtime(settings) as runtime:
            found = await runtime.tree.resolve("x.mp4@/audio.wav")
            assert isinstance(found.node, Spliced)
            handle = runtime.reader.open(found.node.layout)
            data = b"".join([bytes(await handle.read(at, 131_072)) for at in range(0, 3_000_000, 131_072)])
            handle.close()
            assert len(data) == found.node.layout.size
            samples = mp4_sound.wav_samples(data)[1]
            assert (samples == known.line(len(samples))).all()
            assert runtime.reader.peek(found.node.layout, 1_000_000, 1000) == data[1_000_000:1_001_000]
            listed = await runtime.tree.entries(await runtime.tree.resolve("x.mp4@"))
            assert {"audio.m4a", "audio.wav", "waveform.png"} <= set(listed)

    trio.run(main)


# ---------------------------------------------------------------- waveforms


def picture(place: MemoryPlace) -> NDArray[np.uint8]:
    async def main() -> bytes:
        node = await Waveforms().resolve(place, "waveform.png")
        assert isinstance(node, Bytes)
        return await node.produce()

    with Image.open(io.BytesIO(trio.run(main))) as image:
        assert (image.format, image.mode) == ("PNG", "RGBA")
        return np.asarray(image)


def test_a_waveform_shows_the_peaks_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every column is as high as the loudest sample in it, whatever is decoded at once."""
    monkeypatch.setattr(waveform, "MINUTE", 1)
    data = mp4_sound.encode_sound("pcm_s16le", format="mov", seconds=Fraction(5), rate=8000)
    # Silence in the middle.
    at = data.index(b"mdat") + 4
    place = MemoryPlace(data[: at + 64_000] + bytes(32_000) + data[at + 96_000 :], "games/x.mov")
    pixels = picture(place)
    assert pixels.shape == (peaks.HEIGHT, waveform.WIDTH, 4)
    samples = np.frombuffer(place.data, "<i2", 5 * 8000 * 2, at).reshape(-1, 2)
    drawn = (pixels[:, :, 3] > 0).sum(axis=0)
    for column in (0, 17, 700, 900, 1000, 1799):
        low, high = (column * 40_000 // 1800, (column + 1) * 40_000 // 1800)
        span = int(samples[low:high].max()) - int(samples[low:high].min())
        assert abs(drawn[column] - span / 65_536 * peaks.HEIGHT) <= 2
    assert (drawn[725:1075] <= 2).all()


def test_a_waveform_costs_the_sound() -> None:
    place = mp4_exact.sample("h264")
    sound = MemoryPlace(place.data, "games/other.mp4")
    before = sound.requested
    picture(sound)
    with_index = sound.requested - before
    assert with_index < len(place.data) / 2
    silent = mp4_exact.sample("silent_mov")
    assert trio.run(Waveforms().entries, silent) == {}
    assert trio.run(Waveforms().resolve, silent, "waveform.png") is None


def test_a_file_shorter_than_the_picture_is_wide() -> None:
    data = mp4_sound.encode_sound("pcm_s16le", format="mov", seconds=Fraction(1, 10), rate=8000)
    assert picture(MemoryPlace(data, "games/x.mov")).shape == (peaks.HEIGHT, 800, 4)
