"""Whole files in another form: the same samples at the same times, nothing copied or fetched beforehand."""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import trio
from vfs_mp4 import source, streams
from vfs_mp4.whole import Whole

from vfs import Inline, Layout, MediaError, Place, Spliced

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2] / "scripts")]
from mp4_places import MemoryPlace  # noqa: E402
from sample_media import encode  # type: ignore[import-not-found]  # noqa: E402

SOURCES: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "moov at end": {"faststart": False},
    "fragmented": {"fragmented": True},
    "hevc open group": {"codec": "libx265", "open_gop": True, "bframes": 3},
    "vfr": {"vfr": True},
    "delayed": {"delay": Fraction(1, 5)},
    "opus": {"audio_codec": "libopus"},
    "silent": {"audio": False},
}


@pytest.fixture(scope="module", params=SOURCES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MemoryPlace:
    path = tmp_path_factory.mktemp("whole") / "x.mp4"
    encode(path, **{"frames": 90, "size": (160, 90), **SOURCES[request.param]})
    return MemoryPlace(path.read_bytes())


async def node_of(place: MemoryPlace, name: str) -> Spliced:
    """`faststart.mp4`, or `hls/video.mp4`."""
    view, (folder, _, rest) = Whole(), name.partition("/")
    node = await view.resolve(place, folder)
    if rest:
        assert node is not None
        node = (await node.entries())[rest]  # type: ignore[union-attr]
    assert isinstance(node, Spliced)
    return node


def content(place: MemoryPlace, name: str) -> bytes:
    async def main() -> bytes:
        node = await node_of(place, name)
        data = await place.fetch(node.layout)
        assert len(data) == node.layout.size
        return data

    return trio.run(main)


def packets(data: bytes, kind: str, tmp_path: Path) -> list[tuple[Fraction, bytes]]:
    """Presentation times in seconds and bytes, by time."""
    path = tmp_path / "x.mp4"
    path.write_bytes(data)
    with av.open(str(path)) as media:
        stream = next(s for s in media.streams if s.type == kind)
        assert stream.time_base is not None
        found = [
            (p.pts * stream.time_base, bytes(p)) for p in media.demux(stream) if p.size and p.pts is not None
        ]
    return sorted(found, key=lambda pair: pair[0])


def test_samples_and_times_are_those_of_the_file(place: MemoryPlace, tmp_path: Path) -> None:
    """On the player line, whose 0 is the first that is shown of any track."""
    movie = trio.run(source.open_movie, place)
    kinds = {"vide": "video", "soun": "audio"}
    delay = streams.delay_of(movie, streams.streamable(movie))
    for kind in {kinds[track.handler] for track in movie.tracks}:
        stored = packets(place.data, kind, tmp_path)
        for name in ("faststart.mp4", "fragmented.mp4", f"hls/{kind}.mp4", f"dash/{kind}.mp4"):
            mine = packets(content(place, name), kind, tmp_path)
            assert [hash(body) for _, body in mine] == [hash(body) for _, body in stored], name
            again = "/" in name or (name == "fragmented.mp4" and movie.init is None)
            shift = movie.zero if again else Fraction(0)
            if "/" in name:
                shift -= delay
            times = [time - shift for time, _ in stored]
            # Ticks of two clocks: within one of the finer.
            assert max(abs(a - b) for (a, _), b in zip(mine, times, strict=True)) <= Fraction(1, 1000), name


def test_nothing_but_boxes_is_read_to_describe_them(place: MemoryPlace) -> None:
    """All bytes of media in a layout are extents of the stored file."""

    async def main() -> None:
        fresh = MemoryPlace(place.data)
        movie = await source.open_movie(fresh)
        before = fresh.requested
        media = sum(int(track.samples.size.sum()) for track in movie.tracks)
        for name in ("fragmented.mp4", "hls/video.mp4", "faststart.mp4"):
            layout = (await node_of(fresh, name)).layout
            inline = sum(span.length for span in layout.spans if isinstance(span, Inline))
            assert layout.size - inline <= len(place.data)
            assert inline < 40_000
            assert media > 20_000
        assert fresh.requested == before

    trio.run(main)


def test_the_index_and_the_playlists_say_where_the_fragments_are(place: MemoryPlace) -> None:
    data = content(place, "hls/video.mp4")
    text = content(place, "hls/video.m3u8").decode()
    at, tops = 0, []
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        tops.append((kind, at, size))
        at += size
    assert [kind for kind, _, _ in tops[:3]] == [b"ftyp", b"moov", b"sidx"]
    moofs = [n for n, (kind, _, _) in enumerate(tops) if kind == b"moof"]
    fragments = [(tops[n][1], tops[n][2] + tops[n + 1][2]) for n in moofs]
    ranges = [line.partition(":")[2].split("@") for line in text.splitlines() if "BYTERANGE:" in line]
    assert [(int(offset), int(size)) for size, offset in ranges] == fragments
    sidx = tops[2][1] + 8
    count = struct.unpack_from(">H", data, sidx + 30)[0]
    rows = np.frombuffer(data, ">u4", 3 * count, sidx + 32).reshape(-1, 3)
    assert rows[:, 0].tolist() == [size for _, size in fragments]
    told = [float(line.split(":")[1].rstrip(",")) for line in text.splitlines() if line.startswith("#EXTINF")]
    scale = struct.unpack_from(">I", data, sidx + 8)[0]
    assert np.allclose(rows[:, 1] / scale, told, atol=1e-3)
    manifest = content(place, "dash/manifest.mpd").decode()
    first = tops[2][1]
    assert f'indexRange="{first}-{fragments[0][0] - 1}"' in manifest
    assert f'range="0-{first - 1}"' in manifest


def test_faststart_of_a_file_of_3_gb_reads_its_ends_alone(tmp_path: Path) -> None:
    """And past 4 GiB its offsets need 64 bits: the media is a hole, the tables are real."""
    path = tmp_path / "x.mp4"
    encode(path, frames=60, size=(160, 90), faststart=False, audio=False)
    data = path.read_bytes()
    at = data.rindex(b"moov") - 4
    mdat = data.index(b"mdat") - 4
    for size, grows in ((3 << 30, False), ((4 << 30) - 1000, True)):
        hole = size - len(data)
        head = data[:mdat] + struct.pack(">I4sQ", 1, b"mdat", at - mdat + hole) + data[mdat + 8 : at]
        place = Sparse(head, hole - 8, data[at:])
        layout = trio.run(node_of, place, "faststart.mp4").layout
        assert place.gets <= 3
        assert place.fetched < 300_000
        assert layout.size >= place.size
        kinds = b"".join(s.data for s in layout.spans if isinstance(s, Inline))
        assert (b"co64" in kinds) is grows
        assert (b"stco" in kinds) is not grows


class Sparse(MemoryPlace):
    """Bytes, a hole, and bytes; counts what is asked for."""

    def __init__(self, head: bytes, hole: int, tail: bytes) -> None:
        super().__init__(head + tail)
        self.hole, self.cut, self.gets, self.fetched = hole, len(head), 0, 0

    @property
    def size(self) -> int:
        return len(self.data) + self.hole

    async def read(self, offset: int, length: int) -> bytes:
        length = max(min(length, self.size - offset), 0)
        self.gets, self.fetched = self.gets + 1, self.fetched + length
        front = self.data[: self.cut][offset : offset + length]
        start = max(offset - self.cut - self.hole, 0)
        stop = max(offset + length - self.cut - self.hole, 0)
        back = self.data[self.cut :][start:stop]
        return front + bytes(length - len(front) - len(back)) + back


def test_a_file_that_is_none_says_so() -> None:
    async def main() -> None:
        place: Place = MemoryPlace(b"\0\0\0\x08free" * 20)
        for name in ("faststart.mp4", "fragmented.mp4"):
            with pytest.raises(MediaError):
                await Whole().resolve(place, name)
        names = await Whole().entries(place)
        assert set(names) == {"faststart.mp4", "fragmented.mp4", "hls", "dash"}

    trio.run(main)


def test_a_faststart_file_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    encode(path, frames=10, size=(160, 90))
    place = MemoryPlace(path.read_bytes())
    assert trio.run(node_of, place, "faststart.mp4").layout == Layout.whole(place.object)
