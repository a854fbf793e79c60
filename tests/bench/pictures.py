"""Pictures out of 1080p, read through a mount: beside a bare decoder, one after another, and again."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
from PIL import Image

from tests.bench import mounted
from tests.bench.game import FPS, GOP, Game, folder, kept, pictures
from tests.bench.result import Row, at_least, at_most, figure, middle
from tests.bench.stage import BANDWIDTH, BUCKET, DELAY, STANDING, Stage, stage

#: 22 s of noisy 1080p at 8 Mbit/s, two B-frames, a key frame every two seconds: 11 groups.
CLIP = Game((1920, 1080), 8, 20, 1)
#: The frames between which a viewer steps: the middle of a group of pictures.
MIDDLE = GOP // 2
NEIGHBOURS = 10
JPEG_QUALITY = 90
SOURCE = f"s3://{BUCKET}/games"


def clip(codec: str) -> Path:
    """The clip in H.264 (`libx264`) or HEVC (`libx265`)."""
    width, height = CLIP.size

    def make(target: Path) -> None:
        params = f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes=2:b-adapt=0:open-gop=0"
        params += f":bitrate={CLIP.mbit * 1000:.0f}"
        name = f"{codec.removeprefix('lib')}-params"
        quiet = ":log-level=none" if codec == "libx265" else ":threads=2"
        options = {"preset": "ultrafast", name: params + quiet}
        with av.open(str(target), "w", options={"movflags": "faststart"}) as out:
            video: Any = out.add_stream(codec, rate=Fraction(FPS), options=options)
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            if codec == "libx265":
                video.codec_context.codec_tag = "hvc1"
            for frame in pictures(CLIP):
                out.mux(video.encode(frame))
            out.mux(video.encode(None))

    return kept(folder(), f"pictures-v2-{codec}", make)


def frame_pictures() -> list[Row]:
    """JPEG pictures of 1080p H.264 and HEVC with warm index and cache, times as ratios within the run."""
    found = []
    for codec, name in (("libx264", "H.264"), ("libx265", "HEVC")):
        path = clip(codec)
        with stage({"games/game.mp4": path}) as place:
            found += [*_warm(place, path, name), *_stepping(place, name), *_again(place, name)]
        found += _arriving(path, name)
    return found


def _warm(place: Stage, path: Path, name: str) -> list[Row]:
    """Key frames: the mount and a bare decoder in turns."""
    samples = _key_samples(path)
    with mounted.reelfs(SOURCE, place.root, place.environ) as mount:
        (mount / "game.mp4").read_bytes()
        (mount / "game@f1.jpg").read_bytes()
        ours, bare, decoded = [], [], []
        for number, sample in enumerate(samples):
            ours.append(_seconds((mount / f"game@k{number}.jpg").read_bytes))
            bare.append(_seconds(partial(_bare, path, sample, jpeg=True)))
            decoded.append(_seconds(partial(_bare, path, sample, jpeg=False)))
    return [
        at_most(
            f"{name}: key frame as JPEG, p50, beside a bare decoder's", middle(ours) / middle(bare), 1.5, "x"
        ),
        figure(f"{name}: key frame as JPEG, p50", middle(ours) * 1e3, "ms"),
        figure(f"{name}: bare decode, to_image, save, p50", middle(bare) * 1e3, "ms"),
        figure(f"{name}: bare decode alone, p50", middle(decoded) * 1e3, "ms"),
    ]


def _stepping(place: Stage, name: str) -> list[Row]:
    """Ten neighbours, to and fro; the like of them one by one in ten other groups; one after another."""
    numbers = range(MIDDLE, MIDDLE + NEIGHBOURS)
    last = NEIGHBOURS * GOP
    with mounted.reelfs(SOURCE, place.root, place.environ) as mount:
        (mount / "game.mp4").read_bytes()
        (mount / "game@f1.jpg").read_bytes()

        def seconds(number: int) -> float:
            return _seconds((mount / f"game@f{number}.jpg").read_bytes)

        alone = sum(seconds(group * GOP + n) for group, n in enumerate(numbers))
        together = sum(seconds(last + n) for n in numbers)
    with mounted.reelfs(SOURCE, place.root, place.environ) as mount:
        (mount / "game.mp4").read_bytes()
        (mount / "game@f1.jpg").read_bytes()
        back = sum(seconds(last + n) for n in reversed(numbers))
        began = time.perf_counter()
        for number in range(2 * GOP):
            (mount / f"game@f{number}.jpg").read_bytes()
        sequential = 2 * GOP / (time.perf_counter() - began)
    return [
        at_least(f"{name}: {NEIGHBOURS} neighbours, faster than each alone", alone / together, 3),
        figure(f"{name}: the same backwards", alone / back, "x"),
        at_least(f"{name}: one frame after another", sequential, 20, "frames/s"),
        figure(f"{name}: a frame from the middle of a group, alone", alone / NEIGHBOURS * 1e3, "ms"),
        figure(f"{name}: one of {NEIGHBOURS} neighbours", together / NEIGHBOURS * 1e3, "ms"),
    ]


def _again(place: Stage, name: str) -> list[Row]:
    """The same frame a second time, by another open."""
    with mounted.reelfs(SOURCE, place.root, place.environ) as mount:
        path = mount / f"game@f{MIDDLE}.jpg"
        path.read_bytes()
        place.proxy.reset()
        times = [_seconds(path.read_bytes) for _ in range(20)]
        count, _ = place.gets()
    return [
        at_most(f"{name}: repeated, p50", middle(times) * 1e3, 5, "ms"),
        at_most(f"{name}: GETs of 20 repetitions", count, 0, exact=True),
    ]


def _arriving(path: Path, name: str) -> list[Row]:
    """A frame whose samples must be fetched: its time beside that of the transfer and of the decoding."""
    cold, fetch, decode = [], [], []
    number = f"f{MIDDLE + NEIGHBOURS}"
    with stage({"games/game.mp4": path}, delay=DELAY, bandwidth=BANDWIDTH) as place:
        for _ in range(3):
            with mounted.reelfs(SOURCE, place.root, place.environ) as mount:
                time.sleep(STANDING)
                (mount / "game@k3.jpg").read_bytes()
                (mount / "game@k2.jpg").read_bytes()
                place.proxy.reset()
                cold.append(_seconds((mount / f"game@{number}.jpg").read_bytes))
                _, size = place.gets()
                fetch.append(size / BANDWIDTH)
    with stage({"games/game.mp4": path}) as place:
        for _ in range(3):
            with mounted.reelfs(SOURCE, place.root, place.environ) as mount:
                (mount / "game.mp4").read_bytes()
                (mount / "game@k3.jpg").read_bytes()
                decode.append(_seconds((mount / f"game@{number}.jpg").read_bytes))
    # Nothing can be decoded before the first byte is there.
    least = DELAY + max(middle(fetch), middle(decode))
    return [
        at_most(
            f"{name}: cold frame, beside a round trip and the slower of both", middle(cold) / least, 1.2, "x"
        ),
        figure(f"{name}: cold frame at 40 ms, 200 Mbit/s", middle(cold) * 1e3, "ms"),
        figure(f"{name}: the transfer", middle(fetch) * 1e3, "ms"),
        figure(f"{name}: the decoding, everything cached", middle(decode) * 1e3, "ms"),
    ]


def _key_samples(path: Path) -> list[bytes]:
    with av.open(str(path)) as read:
        return [bytes(packet) for packet in read.demux(video=0) if packet.is_keyframe]


def _bare(path: Path, sample: bytes, *, jpeg: bool) -> None:
    """What a program does that has the sample at hand: decode, convert, save."""
    decoder: Any = av.CodecContext.create(_codec(path), "r")
    decoder.thread_type, decoder.thread_count = "SLICE", 1
    decoder.extradata = _extradata(path)
    (frame,) = decoder.decode(av.Packet(sample)) + decoder.decode(None)
    if jpeg:
        image: Image.Image = frame.to_image()
        image.save(io.BytesIO(), "JPEG", quality=JPEG_QUALITY)


_KNOWN: dict[Path, tuple[str, bytes]] = {}


def _codec(path: Path) -> str:
    return _about(path)[0]


def _extradata(path: Path) -> bytes:
    return _about(path)[1]


def _about(path: Path) -> tuple[str, bytes]:
    if path not in _KNOWN:
        with av.open(str(path)) as read:
            context = read.streams.video[0].codec_context
            _KNOWN[path] = context.name, context.extradata or b""
    return _KNOWN[path]


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
