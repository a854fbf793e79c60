"""Sound, text and waveforms read through the real parts: tree, reader, cache and worker processes."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import trio

sys.path[:0] = [str(Path(__file__).parent)]

import mp4_sound  # noqa: E402

from vfs import Spliced  # noqa: E402
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
            assert {"audio.m4a", "audio.wav"} <= set(listed)

    trio.run(main)
