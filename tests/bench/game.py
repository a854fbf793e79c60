"""The material of the benchmarks: a big game made from a little encoding, and tables without any media.

A few seconds of noisy 1080p are encoded once and their fragments repeated with new sequence numbers and
times: 540 MB in seconds, and every fragment decodes to real pictures with a burnt-in number. Files are kept
in `folder()`, outside of the checkout.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from sample_media import boxes, find, sidecars  # type: ignore[import-not-found]

FPS = 30
GOP = 60
#: Raised whenever what is made changes, so that older files are not used.
VERSION = 2


@dataclass(frozen=True)
class Game:
    """size: width and height. mbit: megabits a second. loop: seconds encoded, whole GOPs. times: repeats."""

    size: tuple[int, int]
    mbit: float
    loop: int
    times: int

    @property
    def seconds(self) -> int:
        """How long it plays."""
        return self.loop * self.times

    @property
    def name(self) -> str:
        """Says all that it is made of."""
        width, height = self.size
        return f"game-v{VERSION}-{width}x{height}-{self.mbit:g}mbit-{self.loop}s-x{self.times}"

    def number(self, seconds: float) -> int:
        """The number burnt into the frame that is shown at a time."""
        return GOP + int(seconds * FPS + 1e-6) % (self.loop * FPS)


#: The game of the issue: 3 minutes, 540 MB, GOP 60.
BIG = Game((1920, 1080), 24, 10, 18)
#: For the tests: 12 s, 12 MB, a fragment of 2 MB every 2 s.
SMALL = Game((640, 360), 8, 4, 3)


def folder() -> Path:
    """Where material is kept: `$REELFS_BENCH_DIR`, else below the user's cache folder."""
    given = os.environ.get("REELFS_BENCH_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    made = Path(given) if given else Path(base) / "reelfs-bench"
    made.mkdir(parents=True, exist_ok=True)
    return made


def fragmented(game: Game, into: Path | None = None) -> Path:
    """The game in fragments, with `.index.sqlite` and `.index.json` beside it; a folder of its own."""

    def make(target: Path) -> None:
        once = target.with_suffix(".once")
        _encode(once, game)
        _repeat(once.read_bytes(), game, target)
        once.unlink()
        sidecars(target)

    return kept(into or folder(), game.name + "-fragmented", make)


def progressive(game: Game, into: Path | None = None) -> Path:
    """The same packets in one progressive file with its moov at the end, nothing beside it."""
    source = fragmented(game, into)

    def make(target: Path) -> None:
        with av.open(str(source)) as read, av.open(str(target), "w", format="mp4") as out:
            stream: Any = out.add_stream_from_template(read.streams.video[0])
            for packet in read.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)

    return kept(into or folder(), game.name + "-progressive", make)


def kept(base: Path, name: str, make: Callable[[Path], None]) -> Path:
    """`base/name/game.mp4`, made in a folder beside it that is renamed when all is there."""
    target = base / name
    if not target.is_dir():
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=base))
        try:
            make(making / "game.mp4")
            making.rename(target)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
    return target / "game.mp4"


def pictures(game: Game) -> Iterator[av.VideoFrame]:
    """A texture that drifts under fresh noise, with the number of the frame."""
    width, height = game.size
    rng = np.random.default_rng(11)
    coarse = rng.integers(40, 200, (height // 8, width // 8), dtype=np.uint8)
    texture = np.asarray(Image.fromarray(coarse).resize((width * 2, height * 2), Image.Resampling.BICUBIC))
    noise = [rng.integers(0, 28, (height, width), dtype=np.uint8) for _ in range(7)]
    chroma = np.full((height // 2, width), 128, np.uint8)
    font = ImageFont.load_default(size=height // 6)
    for number in range(GOP + game.loop * FPS):
        x, y = (number * 5) % width, (number * 3) % height
        luma = texture[y : y + height, x : x + width] + noise[number % len(noise)]
        label = Image.new("L", (height // 2, height // 5), 16)
        ImageDraw.Draw(label).text((height // 4, height // 10), f"{number:03d}", 235, font, anchor="mm")
        luma[: label.height, : label.width] = np.asarray(label)
        frame = av.VideoFrame.from_ndarray(np.concatenate((luma, chroma)), format="yuv420p")
        frame.pts = number
        yield frame


def _encode(path: Path, game: Game) -> None:
    rate = int(game.mbit * 1e6)
    options = {
        "preset": "ultrafast",
        "x264-params": f"keyint={GOP}:min-keyint={GOP}:scenecut=0:threads=2:bitrate={rate // 1000}"
        f":vbv-maxrate={rate // 1000}:vbv-bufsize={rate // 1000}:nal-hrd=cbr",
    }
    movflags = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with av.open(str(path), "w", format="mp4", options=movflags) as out:
        stream: Any = out.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height = game.size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = GOP
        for frame in pictures(game):
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def _repeat(data: bytes, game: Game, target: Path) -> None:
    """ftyp and moov once, then all fragments again and again; no mfra, as in a file that is being written."""
    timescale = struct.unpack_from(">I", data, next(find(data, "moov/trak/mdia/mdhd")).payload + 12)[0]
    parts = [box for box in boxes(data) if box.kind in (b"moof", b"mdat")]
    head = data[: parts[0].start]
    # The first group is left out: while its rate control finds its feet, the encoder makes a key frame and
    # first pictures of twice their later size, which repeated would be an oddity of this file alone.
    pieces = [bytes(data[box.start : box.end]) for box in parts[2:]]
    groups = list(zip(pieces[::2], pieces[1::2], strict=True)) * game.times
    with target.open("wb") as out:
        out.write(head)
        for number, (moof, mdat) in enumerate(groups):
            out.write(_moved(moof, number, number * timescale * GOP // FPS))
            out.write(mdat)


def _moved(moof: bytes, number: int, ticks: int) -> bytes:
    """A moof as the fragment `number` (from 0) that begins at `ticks`."""
    out = bytearray(moof)
    mfhd, tfdt = next(find(moof, "moof/mfhd")), next(find(moof, "moof/traf/tfdt"))
    struct.pack_into(">I", out, mfhd.payload + 4, number + 1)
    struct.pack_into(">Q" if moof[tfdt.payload] else ">I", out, tfdt.payload + 4, ticks)
    return bytes(out)


# ---------------------------------------------------------------- what a frame costs at least


@dataclass(frozen=True)
class Need:
    """Bytes: head = ftyp and moov; media = from the key frame through the target."""

    head: int
    media: int

    @property
    def total(self) -> int:
        """The least that any reader must fetch."""
        return self.head + self.media


def need(path: Path, seconds: float) -> Need:
    """What a decoder needs for the frame shown at a time, by the packets as another demuxer sees them."""
    with path.open("rb") as file:
        head = _moov_bytes(file.fileno())
    pieces: list[tuple[float, int, bool]] = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.size and packet.pts is not None:
                time = float(packet.pts * packet.time_base)
                if time > seconds + 1e-6:
                    break
                pieces.append((time, packet.size, packet.is_keyframe))
    key = max(i for i, piece in enumerate(pieces) if piece[2])
    return Need(head, sum(size for _, size, _ in pieces[key:]))


def _moov_bytes(descriptor: int) -> int:
    """Bytes of ftyp and moov, wherever they are."""
    at, total = 0, 0
    while len(head := os.pread(descriptor, 16, at)) >= 8:
        size, kind = struct.unpack_from(">I4s", head)
        size = struct.unpack_from(">Q", head, 8)[0] if size == 1 else size
        total += size if kind in (b"ftyp", b"moov") else 0
        at += size
    return total


# ---------------------------------------------------------------- tables and keys without media


def long_moov(samples: int, template: Path) -> tuple[bytes, int]:
    """The moov of a progressive video of so many samples, all tables of full length, and its file's size.

    template: a progressive file, whose other boxes are taken. Durations and composition offsets change at
    every sample, so that no table is short.
    """
    data = template.read_bytes()
    moov = next(find(data, "moov"))
    rng = np.random.default_rng(3)
    sizes = rng.integers(1000, 300_000, samples).astype(">u4")
    per_chunk = 8
    chunk_sizes = np.add.reduceat(sizes.astype(np.int64), np.arange(0, samples, per_chunk))
    offsets = (64 + np.concatenate(([0], np.cumsum(chunk_sizes)[:-1]))).astype(">u8")
    tables = _tables(samples, sizes, offsets, per_chunk)
    stsd = next(find(data, "moov/trak/mdia/minf/stbl/stsd"))
    body = _replaced(data, moov.payload, moov.end, box(b"stbl", data[stsd.start : stsd.end] + tables))
    return box(b"moov", body), 64 + int(chunk_sizes.sum()) + len(body) + 8


def _tables(samples: int, sizes: NDArray[Any], offsets: NDArray[Any], per_chunk: int) -> bytes:
    ones = np.ones(samples, ">u4")
    durations = np.where(np.arange(samples) % 2 == 0, 500, 524).astype(">u4")
    shifts = np.where(np.arange(samples) % 3 == 0, 1024, 512).astype(">u4")
    keys = np.arange(1, samples + 1, GOP).astype(">u4")
    pack = struct.pack
    return b"".join(
        (
            box(b"stts", pack(">II", 0, samples) + np.stack((ones, durations), 1).tobytes()),
            box(b"ctts", pack(">II", 0, samples) + np.stack((ones, shifts), 1).tobytes()),
            box(b"stss", pack(">II", 0, len(keys)) + keys.tobytes()),
            box(b"stsz", pack(">III", 0, 0, samples) + sizes.tobytes()),
            box(b"stsc", pack(">II", 0, 1) + pack(">III", 1, per_chunk, 1)),
            box(b"co64", pack(">II", 0, len(offsets)) + offsets.tobytes()),
        )
    )


def _replaced(data: bytes, start: int, end: int, stbl: bytes) -> bytes:
    """The boxes in data[start:end] with another stbl, and without the edit list."""
    out = b""
    for inner in boxes(data, start, end):
        if inner.kind == b"stbl":
            out += stbl
        elif inner.kind in (b"trak", b"mdia", b"minf"):
            out += box(inner.kind, _replaced(data, inner.payload, inner.end, stbl))
        elif inner.kind != b"edts":
            out += data[inner.start : inner.end]
    return out


def box(kind: bytes, payload: bytes) -> bytes:
    """A box with a header of 8 bytes."""
    return struct.pack(">I4s", len(payload) + 8, kind) + payload


def many_keys(root: Path, folders: int = 100, files: int = 100) -> int:
    """`folders` x `files` small objects below `root`; how many."""
    for number in range(folders):
        where = root / "library" / f"match {number:03d}"
        where.mkdir(parents=True)
        for part in range(files):
            (where / f"clip {part:03d}.mp4").write_bytes(b"%d.%d" % (number, part))
    return folders * files
