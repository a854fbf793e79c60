#!/usr/bin/env python3
"""Make sample videos: real moving pictures with a burnt-in frame number, and sound that tells the time.

    python scripts/sample_media.py game.mp4 --codec libx265 --fragmented --sidecars

Used by the demo and by the tests. The picture is a texture that drifts, a disc that circles and the number
of the frame in large digits; the sound is a tone that climbs by 100 Hz a second, so that a wrong start of
a clip can be heard and measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]

#: Samples of sound a second.
AUDIO_RATE = 48_000
#: Pitch at time 0 and how it climbs, in Hz and Hz a second.
PITCH, CLIMB = 300.0, 100.0
#: Ticks a second of a variable frame rate.
VFR_RATE = 90_000
#: Length of each picture of a variable frame rate, in thirds of the nominal length.
VFR_PATTERN = (3, 2, 4, 1, 5, 3, 6)
#: Quick presets: these files are for looking at frame numbers, not at quality.
PRESETS = {
    "libx264": {"preset": "ultrafast", "crf": "28"},
    "libx265": {"preset": "ultrafast", "crf": "30"},
    "libsvtav1": {"preset": "12", "crf": "45"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "40", "b": "0"},
}


# ---------------------------------------------------------------- pictures and sound


class Painter:
    """Draws numbered pictures of one size (width, height)."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        width, height = size
        rng = np.random.default_rng(7)
        coarse = rng.integers(30, 220, (max(2, height // 12), max(2, width // 12), 3), dtype=np.uint8)
        self._texture = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        self._font = ImageFont.load_default(size=max(8, height // 3))

    def picture(self, number: int) -> Picture:
        """Picture `number` as RGB, height x width x 3."""
        width, height = self.size
        shifted = np.roll(self._texture, (number * 2, number * 3), axis=(0, 1))
        image = Image.fromarray(shifted)
        draw = ImageDraw.Draw(image)
        angle = number * 0.21
        x, y, radius = (
            width / 2 + width / 3 * np.cos(angle),
            height / 2 + height / 3 * np.sin(angle),
            height / 9,
        )
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(240, 40, 40))
        draw.text(
            (width / 2, height / 2), f"{number:04d}", fill="white", font=self._font, anchor="mm",
            stroke_width=max(1, height // 60), stroke_fill="black",
        )  # fmt: skip
        return np.asarray(image)


def tone(start: int, count: int) -> NDArray[np.float32]:
    """`count` samples of the climbing tone from sample `start` on, one channel, -1..1."""
    t = np.arange(start, start + count, dtype=np.float64) / AUDIO_RATE
    return (0.5 * np.sin(2 * np.pi * (PITCH * t + CLIMB * t * t / 2))).astype(np.float32)[None, :]


def presentation(frames: int, fps: Fraction, *, vfr: bool) -> tuple[list[int], Fraction]:
    """Presentation time of each picture in ticks, and the length of a tick in seconds."""
    if not vfr:
        return list(range(frames)), 1 / fps
    third = VFR_RATE / fps / 3
    lengths = [int(third * VFR_PATTERN[i % len(VFR_PATTERN)]) for i in range(frames)]
    return [sum(lengths[:i]) for i in range(frames)], Fraction(1, VFR_RATE)


# ---------------------------------------------------------------- encoding


def encode(
    path: str | os.PathLike[str],
    *,
    codec: str = "libx264",
    frames: int = 150,
    fps: Fraction = Fraction(30),
    gop: int = 30,
    bframes: int = 2,
    fragmented: bool = False,
    faststart: bool = True,
    audio: bool = True,
    audio_codec: str = "aac",
    size: tuple[int, int] = (320, 180),
    rotation: int = 0,
    open_gop: bool = False,
    vfr: bool = False,
    delay: Fraction = Fraction(0),
    trim: Fraction = Fraction(0),
    pix_fmt: str = "yuv420p",
    aspect: Fraction = Fraction(1),
    tag: str | None = None,
    timescale: int | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode a sample to `path` and return it.

    gop: pictures between key frames. rotation: degrees clockwise a player must turn the picture (0, 90, 180,
    270). delay: seconds by which the video begins after the sound (an empty edit). trim: seconds cut off the
    front of the video by its edit list alone (progressive files). aspect: width / height of a pixel. tag:
    sample entry 4cc (`hev1`). timescale: ticks a second of the video
    track (default: the muxer's choice). options: more options of the encoder.
    """
    path = Path(path)
    muxing = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if fragmented else {}
    if faststart and not fragmented:
        muxing = {"movflags": "faststart"}
    if timescale:
        muxing["video_track_timescale"] = str(timescale)
    ticks, tick = presentation(frames, fps, vfr=vfr)
    format_name = "mov" if path.suffix.lower() in (".mov", ".qt") else "mp4"
    with _same_priority(), av.open(str(path), "w", format=format_name, options=muxing) as out:
        video: Any = out.add_stream(codec, rate=fps, options=_options(codec, gop, bframes, open_gop, options))
        video.width, video.height = size
        video.pix_fmt = pix_fmt
        video.codec_context.time_base = tick
        video.codec_context.gop_size = gop
        video.codec_context.sample_aspect_ratio = aspect
        if tag:
            video.codec_context.codec_tag = tag
        elif codec == "libx265":
            video.codec_context.codec_tag = "hvc1"
        sound = _Sound(out, audio_codec) if audio else None
        painter = Painter(size)
        for number, pts in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(painter.picture(number), format="rgb24").reformat(
                format=pix_fmt
            )
            frame.pts, frame.time_base = pts + int(delay / tick), tick
            out.mux(video.encode(frame))
            if sound:
                sound.until(ticks[number + 1] * tick if number + 1 < frames else pts * tick + 1 / fps)
        out.mux(video.encode(None))
        if sound:
            sound.finish()
    if rotation or trim:
        _patch(path, rotation, trim)
    return path


@contextmanager
def _same_priority() -> Iterator[None]:
    """SVT-AV1, run by root, makes the thread that opens it SCHED_FIFO 99, before all else on the machine.

    Whatever is started later would inherit that: mounts, and browsers that then starve the machine.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def _options(
    codec: str, gop: int, bframes: int, open_gop: bool, more: dict[str, str] | None
) -> dict[str, str]:
    chosen = dict(PRESETS.get(codec, {}))
    opened = int(open_gop)
    if codec == "libx264":
        chosen["x264-params"] = (
            f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={bframes}:b-adapt=0:open-gop={opened}:threads=1"
        )
    elif codec == "libx265":
        chosen["x265-params"] = (
            f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={bframes}:b-adapt=0:open-gop={opened}"
            ":log-level=none:pools=1:frame-threads=1"
        )
    elif codec == "libsvtav1":
        chosen["svtav1-params"] = f"keyint={gop}:scd=0:lp=1"
    elif codec == "mpeg4":
        chosen["bf"] = str(bframes)
    return chosen | (more or {})


class _Sound:
    """The audio stream of a file being written."""

    def __init__(self, out: Any, codec: str) -> None:
        self._out = out
        self._stream = out.add_stream(codec, rate=AUDIO_RATE, layout="mono")
        self._format = "s16" if codec == "pcm_s16le" else "fltp"
        if codec == "libopus":
            self._format = "flt"
        self._done = 0

    def until(self, seconds: Fraction) -> None:
        """Encode sound up to this time."""
        count = int(seconds * AUDIO_RATE) - self._done
        if count <= 0:
            return
        wave = tone(self._done, count)
        if self._format == "s16":
            frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16), format="s16", layout="mono")
        else:
            frame = av.AudioFrame.from_ndarray(wave, format=self._format, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = AUDIO_RATE, self._done, Fraction(1, AUDIO_RATE)
        self._done += count
        self._out.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Encode what the encoder still holds."""
        self._out.mux(self._stream.encode(None))


# ---------------------------------------------------------------- boxes, as far as needed here


@dataclass(frozen=True)
class Box:
    """A box of a file: where its header begins, where its payload begins and where it ends."""

    kind: bytes
    start: int
    payload: int
    end: int


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes in data[start:end]."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1:
            size, header = struct.unpack_from(">Q", data, start + 8)[0], 16
        stop = start + size if size else end
        yield Box(kind, start, start + header, stop)
        start = stop


def find(data: bytes, path: str, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """Every box at a path such as `moov/trak/mdia`."""
    first, _, rest = path.partition("/")
    for box in boxes(data, start, end):
        if box.kind == first.encode():
            if rest:
                yield from find(data, rest, box.payload, box.end)
            else:
                yield box


def _patch(path: Path, rotation: int, trim: Fraction) -> None:
    """Turn the first video track by its matrix and trim its start by its edit list."""
    data = bytearray(path.read_bytes())
    for trak in find(bytes(data), "moov/trak"):
        view = bytes(data)
        mdhd = next(find(view, "mdia/mdhd", trak.payload, trak.end))
        handler = next(find(view, "mdia/hdlr", trak.payload, trak.end))
        if view[handler.payload + 8 : handler.payload + 12] != b"vide":
            continue
        if rotation:
            tkhd = next(find(view, "tkhd", trak.payload, trak.end))
            where = tkhd.payload + (52 if view[tkhd.payload] else 40)
            struct.pack_into(">9i", data, where, *_matrix(rotation, view, where + 36))
        if trim:
            timescale = struct.unpack_from(">I", view, mdhd.payload + (20 if view[mdhd.payload] else 12))[0]
            _trim(data, next(find(view, "edts/elst", trak.payload, trak.end)), trim, timescale)
    path.write_bytes(data)


def _matrix(rotation: int, view: bytes, size_at: int) -> tuple[int, ...]:
    """The transformation matrix (16.16, last column 2.30) that turns clockwise and moves back into view."""
    width, height = struct.unpack_from(">2I", view, size_at)
    one = 0x10000
    a, b, x, y = {90: (0, one, height, 0), 180: (-one, 0, width, height), 270: (0, -one, 0, width)}[rotation]
    return (a, b, 0, -b, a, 0, x, y, 0x40000000)


def _trim(data: bytearray, elst: Box, trim: Fraction, timescale: int) -> None:
    """Move the start of the only edit of a version 0 list; the movie timescale of the muxer is 1000."""
    version, count = data[elst.payload], struct.unpack_from(">I", data, elst.payload + 4)[0]
    if version or count != 1:
        raise ValueError("trim needs a file with exactly one edit of version 0")
    duration, media_time = struct.unpack_from(">Ii", data, elst.payload + 8)
    struct.pack_into(
        ">Ii", data, elst.payload + 8, duration - int(trim * 1000), media_time + int(trim * timescale)
    )


# ---------------------------------------------------------------- sidecars, as their original generators do


@dataclass
class FragmentRow:
    """What the original generator knows of a fragment: the first trun of the first traf alone."""

    t: int
    moof_offset: int
    moof_size: int
    mdat_offset: int
    mdat_size: int
    sample_count: int
    durations: list[int] = field(default_factory=list)


def fragment_rows(data: bytes) -> list[FragmentRow]:
    """One row a moof that an mdat follows."""
    rows: list[FragmentRow] = []
    last: tuple[Box, int, int, list[int]] | None = None
    for box in boxes(data):
        if box.kind == b"moof":
            tfdt = next(find(data, "traf/tfdt", box.payload, box.end))
            width = ">Q" if data[tfdt.payload] else ">I"
            t = struct.unpack_from(width, data, tfdt.payload + 4)[0]
            trun = next(find(data, "traf/trun", box.payload, box.end))
            count, durations = _trun(data, trun)
            last = box, t, count, durations
        elif box.kind == b"mdat" and last is not None:
            moof, t, count, durations = last
            rows.append(
                FragmentRow(
                    t, moof.start, moof.end - moof.start, box.start, box.end - box.start, count, durations
                )
            )
            last = None
    return rows


def _trun(data: bytes, trun: Box) -> tuple[int, list[int]]:
    """Sample count and, where the box has them, the durations."""
    flags, count = struct.unpack_from(">2I", data, trun.payload)
    flags &= 0xFFFFFF
    at = trun.payload + 8 + 4 * bool(flags & 1) + 4 * bool(flags & 4)
    width = 4 * sum(bool(flags & bit) for bit in (0x100, 0x200, 0x400, 0x800))
    if not flags & 0x100:
        return count, []
    return count, [struct.unpack_from(">I", data, at + i * width)[0] for i in range(count)]


def sidecars(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write `path.index.sqlite` and `path.index.json` for a fragmented file, as the original generator does.

    Its quirks are kept: the default duration is trex's (0 = unknown, though tfhd has it), track_id is 1, only
    the first run of the first track of each fragment counts.
    """
    data = Path(path).read_bytes()
    mdhd = next(find(data, "moov/trak/mdia/mdhd"))
    timescale = struct.unpack_from(">I", data, mdhd.payload + (20 if data[mdhd.payload] else 12))[0]
    trex = next(find(data, "moov/mvex/trex"))
    default = struct.unpack_from(">I", data, trex.payload + 12)[0] or None
    rows = fragment_rows(data)
    for row in rows:
        if row.durations and default is not None and set(row.durations) == {default}:
            row.durations = []
    sqlite_path, json_path = Path(f"{path}.index.sqlite"), Path(f"{path}.index.json")
    _write_sqlite(sqlite_path, timescale, default, rows)
    json_path.write_text(json.dumps(_as_json(timescale, default, rows), separators=(",", ":")))
    return sqlite_path, json_path


def _write_sqlite(path: Path, timescale: int, default: int | None, rows: list[FragmentRow]) -> None:
    path.unlink(missing_ok=True)
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(
        """
        PRAGMA page_size = 4096; PRAGMA journal_mode = OFF;
        CREATE TABLE meta(timescale INTEGER NOT NULL, track_id INTEGER NOT NULL,
          default_sample_duration INTEGER NULL);
        CREATE TABLE fragments(id INTEGER PRIMARY KEY, t INTEGER NOT NULL, moof_offset INTEGER NOT NULL,
          moof_size INTEGER NOT NULL, mdat_offset INTEGER NOT NULL, mdat_size INTEGER NOT NULL,
          sample_count INTEGER NOT NULL);
        CREATE INDEX idx_fragments_t ON fragments(t);
        CREATE TABLE sample_durations(fragment_id INTEGER NOT NULL, idx INTEGER NOT NULL,
          dur INTEGER NOT NULL, PRIMARY KEY(fragment_id, idx));
        """
    )
    database.execute("INSERT INTO meta VALUES (?, 1, ?)", (timescale, default))
    for number, row in enumerate(rows):
        database.execute(
            "INSERT INTO fragments VALUES (?,?,?,?,?,?,?)",
            (
                number, row.t, row.moof_offset, row.moof_size, row.mdat_offset, row.mdat_size,
                row.sample_count,
            ),
        )  # fmt: skip
        database.executemany(
            "INSERT INTO sample_durations VALUES (?,?,?)",
            [(number, i, duration) for i, duration in enumerate(row.durations)],
        )
    database.execute("VACUUM")
    database.close()


def _as_json(timescale: int, default: int | None, rows: list[FragmentRow]) -> dict[str, Any]:
    listed: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        if default is not None:
            duration = default * row.sample_count
        elif number + 1 < len(rows):
            duration = rows[number + 1].t - row.t
        else:
            duration = listed[-1]["duration"] if listed else 0
        entry = {
            "t": row.t, "moofOffset": row.moof_offset, "moofSize": row.moof_size,
            "mdatOffset": row.mdat_offset, "mdatSize": row.mdat_size, "sampleCount": row.sample_count,
            "duration": duration,
        }  # fmt: skip
        listed.append(entry | ({"durations": row.durations} if row.durations else {}))
    known = {} if default is None else {"defaultSampleDuration": default}
    return {"version": 1, "trackId": 1, "timescale": timescale, **known, "fragments": listed}


def offsets(path: str | os.PathLike[str], version: int = 2) -> Path:
    """Write `path.offsets.json`: packets of the video in decode order by position, form 1 or 2."""
    iraps: list[dict[str, Any]] = []
    flat: list[dict[str, int]] = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.pos is None or packet.pos < 0 or not packet.size:
                continue
            if packet.is_keyframe or not iraps:
                iraps.append({"offset": packet.pos if packet.is_keyframe else 0, "frames": []})
            iraps[-1]["frames"].append(
                {
                    "offset": packet.pos, "size": packet.size, "index": len(flat),
                    "is_keyframe": packet.is_keyframe,
                }
            )  # fmt: skip
            flat.append({"offset": packet.pos, "irap_offset": iraps[-1]["offset"]})
    url = f"fs://{Path(path).absolute()}"
    body: dict[str, Any] = {"video_url": url, "frames": flat}
    if version == 1:
        body = {"video_url": url, "frame_count": len(flat), "iraps": iraps}
    target = Path(f"{path}.offsets.json")
    target.write_text(json.dumps(body))
    return target


# ---------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> int:
    """Make one file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path")
    parser.add_argument("--codec", default="libx264", help="libx264, libx265, mpeg4, libsvtav1, libvpx-vp9")
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--fps", type=Fraction, default=Fraction(30), help="30, 30000/1001")
    parser.add_argument("--gop", type=int, default=30)
    parser.add_argument("--bframes", type=int, default=2)
    parser.add_argument("--size", default="320x180")
    parser.add_argument("--rotation", type=int, default=0, choices=(0, 90, 180, 270))
    parser.add_argument("--fragmented", action="store_true")
    parser.add_argument("--moov-at-end", action="store_true")
    parser.add_argument("--no-audio", action="store_true")
    parser.add_argument("--open-gop", action="store_true")
    parser.add_argument("--vfr", action="store_true")
    parser.add_argument("--sidecars", action="store_true", help="write .index.sqlite and .index.json too")
    chosen = parser.parse_args(arguments)
    width, _, height = chosen.size.partition("x")
    encode(
        chosen.path, codec=chosen.codec, frames=chosen.frames, fps=chosen.fps, gop=chosen.gop,
        bframes=chosen.bframes, size=(int(width), int(height)), rotation=chosen.rotation,
        fragmented=chosen.fragmented, faststart=not chosen.moov_at_end, audio=not chosen.no_audio,
        open_gop=chosen.open_gop, vfr=chosen.vfr,
    )  # fmt: skip
    if chosen.sidecars:
        sidecars(chosen.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
