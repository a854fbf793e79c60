"""Matroska, WebM and transport streams: every frame against a full decode, few requests, hostile files."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import random
import struct
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import mp4_exact
from mp4_library import Library, in_library
from vfs_mp4 import render
from vfs_mp4.visual import Entry

from vfs import Bytes, Inline, MediaError, NotFound, OutOfRange, ReelfsError, Unsupported, WorkerFailed
from vfs.pytest_plugin import ExpectedLogs

_FOLDER = tempfile.TemporaryDirectory(prefix="reelfs-demuxed-")
ROOT = Path(_FOLDER.name)
HEVC_OPEN = {**mp4_exact.HEVC, "open_gop": True, "bframes": 3}
#: File: how it is encoded. Transport streams begin at no particular time and have no index.
FILES: dict[str, dict[str, Any]] = {
    "h264.mkv": {},
    "h264.ts": {},
    "open.ts": {"open_gop": True},
    "hevc open.mkv": HEVC_OPEN,
    "hevc open.ts": HEVC_OPEN,
    "vfr.mkv": {"vfr": True},
    "silent.m2ts": {"audio": False},
    "vp9.webm": {"codec": "libvpx-vp9", "audio_codec": "libopus"},
}
FRAMES = 150


def remux(source: Path, target: Path, **options: str) -> None:
    """The packets of a file in another container."""
    format = {".mkv": "matroska", ".webm": "webm"}.get(target.suffix, "mpegts")
    if target.suffix == ".m2ts":
        options["mpegts_m2ts_mode"] = "1"
    with av.open(str(source)) as given, av.open(str(target), "w", format=format, options=options) as made:
        streams = {s.index: made.add_stream_from_template(s, opaque=True) for s in given.streams}
        for packet in given.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                made.mux(packet)


@functools.cache
def stored(name: str) -> Path:
    path = ROOT / name
    source = ROOT / f".{name}.mp4"
    mp4_exact.encode(source, **{"frames": FRAMES, "size": (160, 90), **FILES[name]})
    remux(source, path)
    source.unlink()
    return path


class Known:
    """All frames of a file, decoded in one go, and where its line begins."""

    def __init__(self, path: Path) -> None:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_type, stream.codec_context.thread_count = "SLICE", 1
            frames = list(container.decode(stream))
        self.frames = frames
        self.times = [(f.pts or 0) * (f.time_base or Fraction(0)) for f in frames]
        starts = [self.times[0]]
        with av.open(str(path)) as container:
            for sound in container.streams.audio:
                first = next(f for f in container.decode(sound) if f.pts is not None)
                starts.append((first.pts or 0) * (first.time_base or Fraction(0)))
        self.zero = min(starts)

    def at(self, seconds: Fraction) -> int:
        before = [n for n, time in enumerate(self.times) if time - self.zero <= seconds]
        return before[-1] if before else 0

    def rgb(self, number: int) -> np.ndarray[Any, Any]:
        return render.to_rgb(self.frames[number], Entry("", 160, 90, b""))

    def hashes(self) -> list[str]:
        return [hashlib.md5(frame.to_ndarray().tobytes()).hexdigest() for frame in self.frames]


@functools.cache
def known(name: str) -> Known:
    return Known(stored(name))


async def array(library: Library, path: str) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = np.load(io.BytesIO(await library.content(path)))
    return found


def moments(name: str, count: int, seed: int) -> list[str]:
    """Times at random, at and just before frames, the first and the last, as names say them."""
    truth, rng = known(name), random.Random(f"{name} {seed}")
    shown = [time - truth.zero for time in truth.times]
    some = rng.sample(shown, count)
    times = [Fraction(0), shown[-1], *some, *(max(t - Fraction(1, 10**6), Fraction(0)) for t in some)]
    times += [Fraction(rng.randrange(round(shown[-1] * 1000)), 1000) for _ in range(count)]
    # Nine digits, rounded up where the frame begins in between: it is shown from there on.
    return [f"{-(-t.numerator * 10**9 // t.denominator) / 10**9:.9f}" for t in times]


def check_frames(name: str, count: int, seed: int) -> None:
    async def body(library: Library) -> None:
        for text in moments(name, count, seed):
            got = await array(library, f"{name}@{text}s.npy")
            assert np.array_equal(got, known(name).rgb(known(name).at(Fraction(text)))), text

    stored(name)
    in_library(ROOT, body)


@pytest.mark.parametrize("name", list(FILES))
def test_the_frame_at_a_time_is_the_one_a_full_decode_has_there(name: str) -> None:
    check_frames(name, 3, 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("name", list(FILES))
def test_more_frames(name: str, seed: int) -> None:
    check_frames(name, 40, seed)


@pytest.mark.parametrize("name", ["h264.mkv", "open.ts", "hevc open.mkv"])
def test_frames_and_key_frames_by_number(name: str) -> None:
    truth = known(name)
    keys = [n for n, frame in enumerate(truth.frames) if frame.key_frame]

    async def body(library: Library) -> None:
        for number in (0, 1, 29, 31, FRAMES - 1):
            assert np.array_equal(await array(library, f"{name}@f{number}.npy"), truth.rgb(number))
        for number, rank in enumerate(keys[:3]):
            assert np.array_equal(await array(library, f"{name}@k{number}.npy"), truth.rgb(rank))
        for beyond in (f"f{FRAMES}", "k99", "999s"):
            with pytest.raises(OutOfRange):
                await library.content(f"{name}@{beyond}.npy")

    in_library(ROOT, body)


@pytest.mark.parametrize("format", ["jpg", "png", "webp", "bmp", "ppm"])
def test_pictures(format: str) -> None:
    stored("h264.mkv")

    async def body(library: Library) -> None:
        from PIL import Image

        data = await library.content(f"h264@1.5s.{format}")
        picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int16)
        near = np.abs(picture - known("h264.mkv").rgb(known("h264.mkv").at(Fraction(3, 2)))).mean()
        assert near < (4 if format in ("jpg", "webp") else 1e-9)

    in_library(ROOT, body)


def test_turned_and_stretched_as_a_player_shows_it() -> None:
    source = mp4_exact.encode(
        ROOT / ".turned.mp4", frames=20, size=(160, 90), rotation=90, aspect=Fraction(4, 3)
    )
    remux(source, ROOT / "turned.mkv")

    async def body(library: Library) -> None:
        from PIL import Image

        size = Image.open(io.BytesIO(await library.content("turned@0.2s.png"))).size
        assert size == (90, 213)
        assert (await array(library, "turned@0.2s.npy")).shape == (90, 160, 3)

    in_library(ROOT, body)


# ---------------------------------------------------------------- clips


@pytest.mark.parametrize("name", ["h264.mkv", "hevc open.mkv", "vfr.mkv", "vp9.webm"])
def test_a_clip_has_exactly_its_frames(name: str) -> None:
    truth = known(name)

    async def check(library: Library, start: str, stop: str) -> None:
        first = truth.at(Fraction(start))
        after = sum(time - truth.zero < Fraction(stop or 1000) for time in truth.times)
        path = f"{name}@{start}-{stop}.mp4"
        layout: Any = (await library.found(path)).node.layout  # type: ignore[union-attr]
        data = await library.content(path)
        frames = mp4_exact.decode(data)
        assert [frame.hash for frame in frames] == truth.hashes()[first : max(after, first + 1)]
        gaps = [frame.time - truth.times[first + n] for n, frame in enumerate(frames)]
        assert max(gaps) - min(gaps) < Fraction(1, 500)
        # Zero copy: what is made is the header.
        assert sum(isinstance(span, Inline) for span in layout.spans) == 1
        assert {extent.object.key for extent in layout.extents} == {name}
        with av.open(io.BytesIO(data), "r") as container:
            assert len(container.streams.audio) == 1

    async def body(library: Library) -> None:
        for start, stop in (("0", "1"), ("1.27", "2.9"), ("3.01", ""), ("2", "2.001")):
            await check(library, start, stop)

    in_library(ROOT, body)


def test_the_sound_of_a_clip_is_in_step() -> None:
    """The tone climbs by 100 Hz a second: a hertz is 10 ms."""
    truth = known("h264.mkv")
    # The priming of the sound is heard: the packets are all that came from the MP4.
    begins = truth.times[truth.at(Fraction("1.27"))] - truth.zero - Fraction(1024, 48_000)

    async def body(library: Library) -> bytes:
        return await library.content("h264.mkv@1.27s-3s.mp4")

    data = in_library(ROOT, body)
    line = np.zeros(48_000 * 3, np.float32)
    with av.open(io.BytesIO(data), "r") as container:
        for frame in container.decode(audio=0):
            at, block = round((frame.time or 0) * 48_000), frame.to_ndarray()[0]
            low = max(at, 0)
            line[low : at + len(block)] = block[low - at :]
    for middle in (0.1, 0.8, 1.6):
        part = line[int((middle - 0.05) * 48_000) : int((middle + 0.05) * 48_000)]
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 17))
        heard = float(np.argmax(spectrum)) * 48_000 / (1 << 17)
        assert heard == pytest.approx(300 + 100 * (float(begins) + middle), abs=2)


def test_other_forms_of_clips() -> None:
    hashes = known("h264.mkv").hashes()
    stored("h264.mkv")

    async def body(library: Library) -> None:
        for name, low, high in (
            ("f10-f40.mp4", 10, 40),
            ("f10+f30.mp4", 10, 40),
            ("k1-k3.mp4", 30, 90),
            ("k4-k9.mp4", 120, 150),
            ("3.3s-4s.key.mp4", 90, 120),
        ):
            frames = mp4_exact.decode(await library.content(f"h264.mkv@{name}"))
            assert [frame.hash for frame in frames] == hashes[low:high], name
        for name in ("3.3s.mp4", "3.3s-4s.frag.mp4"):
            found = await library.found(f"h264.mkv@{name}")
            frames = mp4_exact.decode(await library.content(f"h264.mkv@{name}"))
            wanted = known("h264.mkv").at(Fraction("3.3"))
            assert frames[int(found.attributes["start_frame_index"])].hash == hashes[wanted]
        for name in ("6s-7s.mp4", "f200-f300.mp4"):
            with pytest.raises(OutOfRange):
                await library.found(f"h264.mkv@{name}")

    in_library(ROOT, body)


def element(kind: int, *parts: bytes) -> bytes:
    """An EBML element (RFC 8794): id, size in eight bytes, content."""
    content = b"".join(parts)
    return (
        kind.to_bytes(-(-kind.bit_length() // 8), "big")
        + bytes((1,))
        + len(content).to_bytes(7, "big")
        + content
    )


def number(kind: int, value: int) -> bytes:
    return element(kind, value.to_bytes(8, "big"))


def matroska(source: Path, *, stripped: bytes = b"") -> bytes:
    """A Matroska file (RFC 9559) with three packets of sound in each block, Xiph lacing.

    stripped: taken off the front of every picture, by content encoding 3.
    """
    with av.open(str(source)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        packets = [
            (p.stream.type, round((p.pts or 0) * (p.time_base or 0) * 1000), p.is_keyframe, bytes(p))
            for p in container.demux()
            if p.size
        ]
        setups = [bytes(s.codec_context.extradata or b"") for s in (video, sound)]
    encoding = element(0x6240, element(0x5034, number(0x4254, 3), element(0x4255, stripped)))
    pictures = element(
        0xAE, number(0xD7, 1), number(0x73C5, 1), number(0x83, 1), element(0x86, b"V_MPEG4/ISO/AVC"),
        element(0x63A2, setups[0]), element(0xE0, number(0xB0, 160), number(0xBA, 90)),
        element(0x6D80, encoding) if stripped else b"",
    )  # fmt: skip
    heard = element(
        0xAE, number(0xD7, 2), number(0x73C5, 2), number(0x83, 2), element(0x86, b"A_AAC"),
        element(0x63A2, setups[1]), element(0xE1, element(0xB5, struct.pack(">d", 48_000)), number(0x9F, 1)),
    )  # fmt: skip
    blocks, held = [], []
    for kind, ms, key, data in packets:
        if kind == "video":
            head = b"\x81" + struct.pack(">hB", ms, 0x80 if key else 0)
            blocks.append(element(0xA3, head, data.removeprefix(stripped)))
            continue
        held.append((ms, data))
        if len(held) == 3:
            sizes = b"".join(
                b"\xff" * (len(data) // 255) + bytes((len(data) % 255,)) for _, data in held[:-1]
            )
            head = b"\x82" + struct.pack(">hB", held[0][0], 0x82) + b"\x02"
            blocks.append(element(0xA3, head, sizes, *(data for _, data in held)))
            held = []
    first = element(0x1A45DFA3, element(0x4282, b"matroska"))
    info = element(0x1549A966, number(0x2AD7B1, 1_000_000))
    cluster = element(0x1F43B675, number(0xE7, 0), *blocks)
    return first + element(0x18538067, info, element(0x1654AE6B, pictures, heard), cluster)


def test_laced_frames_are_found_and_stripped_ones_are_refused() -> None:
    """Several packets in one block lie where their bytes are; what is not stored whole cannot be cut out."""
    source = mp4_exact.encode(ROOT / ".laced.mp4", frames=60, size=(160, 90))
    (ROOT / "laced.mkv").write_bytes(matroska(source))
    (ROOT / "stripped.mkv").write_bytes(matroska(source, stripped=b"\0"))
    hashes = Known(ROOT / "laced.mkv").hashes()
    assert len(hashes) == 60

    async def body(library: Library) -> None:
        data = await library.content("laced@0.5s-1s.mp4")
        assert {frame.hash for frame in mp4_exact.decode(data)} <= set(hashes)
        with av.open(io.BytesIO(data), "r") as made, av.open(str(source)) as given:
            theirs = {bytes(packet) for packet in given.demux(audio=0) if packet.size}
            ours = [bytes(packet) for packet in made.demux(audio=0) if packet.size]
        assert len(ours) >= 22
        assert set(ours) <= theirs
        assert (await array(library, "stripped@0.5s.npy")).shape == (90, 160, 3)
        with pytest.raises(Unsupported, match="not stored as they are decoded"):
            await library.found("stripped@0.5s-1s.mp4")

    in_library(ROOT, body)


@pytest.mark.parametrize(
    ("name", "codecs", "why"),
    [
        ("theirs.mkv", {"video": "mpeg2video", "audio": "aac"}, "mpeg2video does not fit MP4"),
        ("pcm.mkv", {"video": "libx264", "audio": "pcm_s16le"}, "pcm_s16le does not fit MP4"),
    ],
)
def test_what_does_not_fit_says_why_and_has_frames(name: str, codecs: dict[str, str], why: str) -> None:
    with av.open(str(ROOT / name), "w", format="matroska") as made:
        video: Any = made.add_stream(codecs["video"], rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound: Any = made.add_stream(codecs["audio"], rate=48_000)
        sound.layout = "stereo"
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 8, np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, 25)
            made.mux(video.encode(frame))
        for number in range(50):
            floats = codecs["audio"] == "aac"
            silence = np.zeros((2, 1024), np.float32) if floats else np.zeros((1, 2048), np.int16)
            block = av.AudioFrame.from_ndarray(silence, "fltp" if floats else "s16", "stereo")
            block.rate, block.pts, block.time_base = 48_000, number * 1024, Fraction(1, 48_000)
            made.mux(sound.encode(block))
        made.mux(video.encode(None))
        made.mux(sound.encode(None))

    async def body(library: Library) -> None:
        with pytest.raises(Unsupported, match=why):
            await library.found(f"{name}@0.2s-0.8s.mp4")
        assert abs(int((await array(library, f"{name}@0.4s.npy")).mean()) - 80) < 6

    in_library(ROOT, body)


def test_a_transport_stream_has_no_clips_and_says_so() -> None:
    stored("h264.ts")

    async def body(library: Library) -> None:
        with pytest.raises(Unsupported, match="transport stream"):
            await library.found("h264.ts@1s-2s.mp4")

    in_library(ROOT, body)


# ---------------------------------------------------------------- cost and description


def test_info() -> None:
    for name in ("h264.mkv", "h264.ts"):
        stored(name)

    async def body(library: Library) -> None:
        for name, form in (("h264.mkv", "matroska"), ("h264.ts", "mpegts")):
            assert await library.names(f"{name}@") == ["info.json"]
            told = json.loads(await library.content(f"{name}@/info.json"))
            assert (told["format"]["form"], told["format"]["size"]) == (form, stored(name).stat().st_size)
            assert told["format"]["duration"] == pytest.approx(5.02, abs=0.05)
            video, sound = told["streams"]
            assert (video["codec_name"], video["width"], video["height"]) == ("h264", 160, 90)
            assert (sound["codec_name"], sound["channels"], sound["sample_rate"]) == (
                "aac",
                1,
                48000,
            ) or sound["channels"] == 2
            assert video["start_time"] == pytest.approx(
                float(known(name).times[0] - known(name).zero), abs=1e-6
            )

    in_library(ROOT, body)


@pytest.fixture(scope="module", params=["mkv", "ts"])
def large(request: pytest.FixtureRequest) -> Path:
    """14 MB of frames of noise: an index that is far away or none, and a key frame every second."""
    path = ROOT / f"large.{request.param}"
    rng = np.random.default_rng(5)
    format = "matroska" if request.param == "mkv" else "mpegts"
    with av.open(str(path), "w", format=format) as made:
        stream: Any = made.add_stream("mpeg2video", rate=25, options={"g": "25", "b": "30M", "qmax": "2"})
        stream.width, stream.height, stream.pix_fmt = 256, 192, "yuv420p"
        noise = [rng.integers(0, 255, (192, 256, 3), np.uint8) for _ in range(5)]
        for number in range(250):
            frame = av.VideoFrame.from_ndarray(np.roll(noise[number % 5], number)).reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
    assert path.stat().st_size > 10 << 20
    return path


def test_a_frame_costs_few_requests_and_a_small_part(large: Path) -> None:
    """With an index a few requests; without one a few more, and what they bring is bounded all the same."""

    async def body(library: Library) -> None:
        await library.content(f"{large.name}@6.5s.png")
        taken = sum(length for _, _, length in library.store.reads)
        indexed = large.suffix == ".mkv"
        assert len(library.store.reads) <= (6 if indexed else 16)
        assert taken < large.stat().st_size / (10 if indexed else 3)

    in_library(ROOT, body)


# ---------------------------------------------------------------- hostile


@pytest.mark.parametrize("name", ["h264.mkv", "h264.ts"])
def test_damaged_files_cost_one_error_each(name: str, tmp_path: Path, expected_logs: ExpectedLogs) -> None:
    good = stored(name).read_bytes()
    rng = random.Random(name)

    def broken(number: int) -> bytes:
        data = bytearray(good)
        for _ in range(rng.choice((1, 10, 200))):
            data[rng.randrange(len(data) if number % 2 else 2000)] = rng.randrange(256)
        return bytes(data[: rng.randrange(len(data))] if number % 3 == 0 else data)

    for number in range(8):
        (tmp_path / f"{number}{Path(name).suffix}").write_bytes(broken(number))
    (tmp_path / f"8{Path(name).suffix}").write_bytes(b"")
    (tmp_path / f"9{Path(name).suffix}").write_bytes(bytes(5000))

    async def body(library: Library) -> None:
        for number in range(10):
            for what in ("@2s.png", "@1s-3s.mp4", "@/info.json"):
                path = f"{number}{Path(name).suffix}{what}"
                try:
                    await library.content(path)
                except (MediaError, NotFound):
                    continue
                except WorkerFailed as error:
                    raise AssertionError(path) from error

    in_library(tmp_path, body)


def test_a_file_that_lists_others_is_not_followed(tmp_path: Path) -> None:
    """A playlist or a script named `.mkv` is no Matroska: FFmpeg is not asked what it may be."""
    secret = tmp_path.parent / "secret.mkv"
    secret.write_bytes(stored("h264.mkv").read_bytes())
    (tmp_path / "list.mkv").write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    (tmp_path / "list.ts").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{secret}\n")

    async def body(library: Library) -> None:
        for name in ("list.mkv", "list.ts"):
            with pytest.raises(ReelfsError) as caught:
                await library.content(f"{name}@1s.png")
            assert isinstance(caught.value, MediaError)

    in_library(tmp_path, body)


def test_a_picture_is_a_node_with_a_version_of_its_own() -> None:
    stored("h264.mkv")

    async def body(library: Library) -> None:
        one, other, same = [await library.found(f"h264.mkv@{t}.png") for t in ("1s", "2s", "1000ms")]
        assert isinstance(one.node, Bytes)
        assert one.version == same.version != other.version
        assert one.sources[0].key == "h264.mkv"

    in_library(ROOT, body)
