"""Frames, packets and descriptions of files that FFmpeg demuxes. Runs in workers, never in the daemon.

A time is looked for from the key frame before it: the demuxer seeks (by the file's own index, else by
bisection), and goes further back until a key frame not after the time comes. Which frame is shown at the time
is told by the packets; only then is anything decoded.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from vfs import Damaged, NoMedia, OutOfRange, TooBig, Unsupported, WorkerFile
from vfs_mp4 import render
from vfs_mp4.demuxio import Opened, decoded, opened
from vfs_mp4.visual import MAX_PIXELS, Entry

#: Seconds to go back for a key frame, doubled until there is one.
_FIRST_STEP = Fraction(1)
#: Seconds before a time from which on reading is no detour, and places tried at most to come so close.
_CLOSE, _PROBES = Fraction(3), 16
#: Packets that may follow one in the file and yet come up before it: the most that any codec reorders, and
#: what those do that reorder less, whatever a stream says. HEVC says it in every stream.
_REORDER, _REORDERS = (
    17,
    {"vp8": 1, "vp9": 1, "av1": 1, "mjpeg": 1, "mpeg1video": 2, "mpeg2video": 2, "mpeg4": 2},
)
#: Bytes of packets kept between key frames: two minutes of a single-key video at 16 Mbit/s.
_MAX_MEDIA = 256 << 20
#: What MP4 can hold and players take, by FFmpeg's names.
PICTURES = frozenset(("h264", "hevc", "av1", "vp9"))
SOUNDS = frozenset(("aac", "opus", "ac3", "eac3", "mp3", "flac", "alac"))
#: Bytes of a block before its first frame, lacing included.
_BLOCK_HEAD = 1024

#: A moment as it crosses to a worker: `time`, `frame` or `key`, and its value.
Moment = tuple[str, Fraction]


@dataclass(eq=False)
class Rows:
    """Packets of one stream in the order of the file.

    time_base: seconds a tick. rate, frame: of sound, samples a second and in a packet (0 = not known).
    """

    time_base: Fraction
    rate: int = 0
    frame: int = 0
    offset: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    pts: list[int] = field(default_factory=list)
    duration: list[int] = field(default_factory=list)
    key: list[bool] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Located:
    """Where the packets of a stretch lie, pictures first.

    start, stop: seconds on the player line; stop None = to the end. template: an MP4 whose tracks describe
    these streams. ended: the file ends in it.
    """

    zero: Fraction
    start: Fraction
    stop: Fraction | None
    streams: tuple[Rows, ...]
    template: bytes
    ended: bool


def picture(file: WorkerFile, demuxer: str, moment: Moment, format: str) -> bytes:
    """The frame at a moment as a file. Raises OutOfRange, NoMedia, Damaged, TooBig, Unsupported."""
    with opened(file, demuxer) as found:
        stream = _pictures(found)
        time = _time_of(found, moment)
        packets, wanted = _reach(found, time)
        stream.codec_context.flush_buffers()
        frame = _decode(packets, wanted, stream)
        return render.drawn(frame, _entry(frame, stream), _matrix(frame), format)


def describe(file: WorkerFile, demuxer: str, size: int) -> bytes:
    """`info.json`: what the head of the file tells, as indented JSON."""
    with opened(file, demuxer) as found:
        container: Any = found.container
        told = {
            "format": {
                "form": demuxer,
                "size": size,
                "duration": None if container.duration is None else container.duration / 1_000_000,
                "zero": _seconds(found.zero),
                "bit_rate": container.bit_rate or None,
                "tags": dict(container.metadata),
            },
            "streams": [_stream(stream, found.zero) for stream in container.streams],
            "chapters": [_chapter(chapter) for chapter in container.chapters()],
        }
        return json.dumps(told, indent=1).encode() + b"\n"


def locate(
    file: WorkerFile, demuxer: str, start: Moment, stop: Moment | None, length: Fraction | None
) -> Located:
    """The packets from the key frame before `start` until `stop` (None = start + length, or the end).

    Each is found in the file byte by byte; one that is not there as it is decoded (lacing is, compressed
    headers are not) is Unsupported. Raises as `picture`, and Unsupported for codecs that MP4 has not.
    """
    with opened(file, demuxer) as found:
        _check_codecs(found)
        begin = _time_of(found, start)
        end = None if stop is None else _time_of(found, stop, at_end=True)
        if length is not None:
            end = begin + length
        collected = _Stretch(found)
        _seek_before(found, begin - Fraction(1, 10))
        ended = collected.take(begin, end)
        template = _template(found, collected.firsts)
        streams = tuple(collected.rows[s.index] for s in _streams(found) if collected.rows[s.index].pts)
        return Located(found.zero, begin, end, streams, template, ended)


# ---------------------------------------------------------------- moments


def _pictures(found: Opened) -> Any:
    if found.video is None:
        raise NoMedia("no pictures")
    return found.video


def _streams(found: Opened) -> list[Any]:
    return [stream for stream in (found.video, *found.sounds) if stream is not None]


def _time_of(found: Opened, moment: Moment, *, at_end: bool = False) -> Fraction:
    """A moment in seconds on the player line; a number is counted from the start of the file.

    at_end: a number there is none of is where the file ends. Raises OutOfRange.
    """
    kind, value = moment
    if kind == "time":
        return value
    stream, number = _pictures(found), int(value)
    times: list[int] = []
    after = 0
    _rewind(found)
    first_key: int | None = None
    for packet in _demux(found, stream):
        if first_key is None and packet.is_keyframe:
            first_key = packet.pts
        if first_key is None or packet.pts < first_key:
            continue
        if kind == "frame" or packet.is_keyframe:
            times.append(packet.pts)
        # What comes this much later cannot come before those any more.
        after += len(times) > number
        if after > _reordered(stream):
            break
    times.sort()
    if number >= len(times):
        if at_end and times:
            return Fraction(times[-1] * stream.time_base - found.zero + 1)
        raise OutOfRange(f"{kind} {number}: there are {len(times)}")
    return Fraction(times[number] * stream.time_base - found.zero)


def _demux(found: Opened, *streams: Any) -> Iterator[Any]:
    """Packets that have a time (their decode time where they have no other), until the end."""
    container: Any = found.container
    for packet in container.demux(*streams):
        if packet.size and (packet.pts is not None or packet.dts is not None):
            if packet.pts is None:
                packet.pts = packet.dts
            yield packet


def _reordered(stream: Any) -> int:
    """Packets after the time of another until none can come any more that is shown before it."""
    context = stream.codec_context
    name = context.codec.canonical_name
    if name == "hevc":
        return min(int(context.has_b_frames) + 2, _REORDER)
    return _REORDERS.get(name, _REORDER)


def _rewind(found: Opened) -> None:
    """Go to the first byte of a transport stream, which has no index, else to the first time."""
    container: Any = found.container
    if container.format.name == "mpegts":
        container.seek(0, unsupported_byte_offset=True)
        return
    stream = _streams(found)[0]
    container.seek(min(int(found.zero / stream.time_base), stream.start_time or 0) - 1, stream=stream)


def _seek_before(found: Opened, time: Fraction) -> None:
    """Go to where a key frame at or before `time` comes next, if only to the start of the file."""
    container: Any = found.container
    if container.format.name == "mpegts":
        container.seek(_interpolated(found, time), unsupported_byte_offset=True)
        return
    stream, step = _pictures(found), Fraction(0)
    target = _tick(found, time)
    while time > step:
        at = _tick(found, time - step)
        container.seek(at, stream=stream, backward=True)
        key = next((packet for packet in _demux(found, stream) if packet.is_keyframe), None)
        if key is not None and key.pts <= target:
            container.seek(at, stream=stream, backward=True)
            return
        step = max(step * 2, _FIRST_STEP)
    _rewind(found)


def _interpolated(found: Opened, time: Fraction) -> int:
    """A byte of a file without an index behind which a key frame comes that is not long before `time`.

    Two places and their times are narrowed down, as if bytes were spread evenly between them; FFmpeg's own
    bisection takes five times the requests. 0 where no such place is found.
    """
    container: Any = found.container
    stream, size = _pictures(found), found.reading.size
    low, high = (0, Fraction(0)), (size, max(Fraction(container.duration or 0, 1_000_000), time))
    back = _FIRST_STEP
    for _ in range(_PROBES):
        aim = max(time - back, low[1])
        share = (aim - low[1]) / (high[1] - low[1]) if high[1] > low[1] else Fraction(0)
        guess = low[0] + int((high[0] - low[0]) * share)
        if guess <= low[0]:
            break
        container.seek(guess, unsupported_byte_offset=True)
        key = next((packet for packet in _demux(found, stream) if packet.is_keyframe), None)
        at = None if key is None else key.pts * stream.time_base - found.zero
        if at is None or at > time:
            high, back = (guess, high[1] if at is None else at), back * 2
        elif time - at <= _CLOSE:
            return guess
        else:
            low = (guess, at)
    return low[0]


def _tick(found: Opened, time: Fraction) -> int:
    """A time of the player line in ticks of the pictures, rounded down."""
    base: Fraction = _pictures(found).time_base
    return int((time + found.zero) / base // 1)


# ---------------------------------------------------------------- one frame


def _reach(found: Opened, time: Fraction) -> tuple[list[Any], int]:
    """The packets from a key frame to the frame shown at a time, and that frame's pts.

    Raises OutOfRange, Damaged (no key frame), TooBig.
    """
    _seek_before(found, time)
    stream, target = _pictures(found), _tick(found, time)
    group: list[Any] = []
    held, later, end, enough = 0, 0, Fraction(0), _reordered(stream)
    for packet in _demux(found, *_streams(found)):
        end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
        if packet.stream.index != stream.index:
            continue
        if packet.is_keyframe and (packet.pts <= target or not group):
            group, held = [], 0
        if group or packet.is_keyframe:
            group.append(packet)
            held += packet.size
        if held > _MAX_MEDIA:
            raise TooBig(f"more than {_MAX_MEDIA} bytes must be decoded for this")
        later = later + 1 if packet.pts > target else 0
        if later >= enough and group:
            break
    else:
        _check_inside(found, time, max([end, *(p.pts * stream.time_base + _step(stream) for p in group)]))
    return _cut(group, target)


def _step(stream: Any) -> Fraction:
    """Seconds that a picture is shown, where that is known."""
    return 1 / Fraction(stream.average_rate) if stream.average_rate else Fraction(0)


def _check_inside(found: Opened, time: Fraction, end: Fraction) -> None:
    """Raises OutOfRange for a time after the end (seconds of the file)."""
    if time >= end - found.zero:
        raise OutOfRange(f"{float(time):g} s: it is {float(end - found.zero):g} s long")


def _cut(group: list[Any], target: int) -> tuple[list[Any], int]:
    """A group up to the frame shown at `target`: the last not after it, the first of all before any."""
    if not group:
        raise Damaged("no key frame")
    shown = [packet for packet in group if group[0].pts <= packet.pts <= target]
    wanted = max(shown, key=lambda packet: packet.pts) if shown else group[0]
    return group[: group.index(wanted) + 1], wanted.pts


def _decode(packets: list[Any], wanted: int, stream: Any) -> Any:
    """The frame of a pts; where it does not come out, the last one before it."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise TooBig(f"pictures of {width} x {height}: the limit is {MAX_PIXELS} pixels")
    best: Any = None
    for packet in packets:
        best = _better(best, decoded(packet), wanted)
        if best is not None and best.pts == wanted:
            break
    if best is None or best.pts != wanted:
        best = _better(best, _drained(stream), wanted)
    stream.codec_context.flush_buffers()
    if best is None:
        raise Damaged("the frame: the decoder puts nothing out")
    return best


def _drained(stream: Any) -> list[Any]:
    import av

    try:
        found: list[Any] = stream.codec_context.decode(None)
    except av.error.FFmpegError:
        return []
    return found


def _better(best: Any, frames: list[Any], wanted: int) -> Any:
    fitting = [frame for frame in frames if frame.pts is not None and frame.pts <= wanted]
    return max([*([best] if best else []), *fitting], key=lambda frame: frame.pts, default=None)


def _entry(frame: Any, stream: Any) -> Entry:
    """What is known of the pixels; the stream's word on their shape goes before the frame's."""
    aspect = stream.sample_aspect_ratio
    name = stream.codec_context.name
    return Entry(name, frame.width, frame.height, b"", Fraction(aspect) if aspect else None)


def _matrix(frame: Any) -> bytes:
    """The display matrix of a frame where a tkhd of version 0 has it; b"" without one."""
    for side in frame.side_data:
        if side.type.name == "DISPLAYMATRIX":
            return bytes(48) + struct.pack(">9i", *struct.unpack("=9i", bytes(side)[:36]))
    return b""


# ---------------------------------------------------------------- packets


def _check_codecs(found: Opened) -> None:
    if found.container.format.name == "mpegts":
        raise Unsupported("a transport stream cuts its frames into packets: a clip of it would be a copy")
    for stream, known in ((_pictures(found), PICTURES), *((sound, SOUNDS) for sound in found.sounds)):
        name = stream.codec_context.codec.canonical_name
        if name not in known:
            raise Unsupported(f"{name} does not fit MP4")


class _Stretch:
    """Packets of a stretch, and the first of each stream with its bytes."""

    def __init__(self, found: Opened) -> None:
        self.rows = {stream.index: Rows(stream.time_base) for stream in _streams(found)}
        for sound in found.sounds:
            self.rows[sound.index].rate = sound.codec_context.sample_rate
            self.rows[sound.index].frame = sound.codec_context.frame_size
        self.firsts: dict[int, Any] = {}
        self._found = found
        self._cursor: dict[int, int] = {}

    def take(self, begin: Fraction, end: Fraction | None) -> bool:
        """Collect until nothing before `end` can come any more; whether the file ended. Raises OutOfRange."""
        video, zero = _pictures(self._found), self._found.zero
        later = 0
        latest = Fraction(-1)
        for packet in _demux(self._found, *_streams(self._found)):
            time = packet.pts * packet.time_base - zero
            self._add(packet)
            latest = max(latest, time)
            if packet.stream.index == video.index and end is not None:
                later = later + 1 if time >= end else 0
                if later >= _reordered(video):
                    return False
        if latest < begin:
            raise OutOfRange(f"{float(begin):g} s: it is {float(latest):g} s long")
        return True

    def _add(self, packet: Any) -> None:
        rows = self.rows[packet.stream.index]
        if packet.stream.index == _pictures(self._found).index and not rows.pts and not packet.is_keyframe:
            return
        self.firsts.setdefault(packet.stream.index, packet)
        rows.offset.append(self._where(packet))
        rows.size.append(packet.size)
        rows.pts.append(packet.pts)
        rows.duration.append(packet.duration or 0)
        rows.key.append(packet.is_keyframe)

    def _where(self, packet: Any) -> int:
        """Where the very bytes of a packet lie. packet.pos is where its block begins."""
        begin = self._cursor.get(packet.pos, packet.pos)
        room = packet.pos + _BLOCK_HEAD + packet.size - begin
        near = self._found.reading.seen(begin, max(room, packet.size)) if packet.pos is not None else b""
        at = near.find(bytes(packet))
        if at < 0:
            raise Unsupported(
                "its frames are not stored as they are decoded (compressed or stripped headers)"
            )
        self._cursor = {packet.pos: begin + at + packet.size}
        return int(begin + at)


def _template(found: Opened, firsts: dict[int, Any]) -> bytes:
    """An MP4 of one packet of each stream, for what its tracks say of them."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options={"strict": "experimental"}) as made:
        packets = []
        for stream in _streams(found):
            if stream.index in firsts:
                template = made.add_stream_from_template(stream, opaque=True)
                packets.append((template, firsts[stream.index]))
        for template, packet in packets:
            packet.stream = template
            packet.pts = packet.dts = 0
            made.mux(packet)
    return out.getvalue()


# ---------------------------------------------------------------- description


def _seconds(value: Any) -> float:
    return round(float(value), 9)


def _stream(stream: Any, zero: Fraction) -> dict[str, Any]:
    context = stream.codec_context
    told: dict[str, Any] = {
        "id": stream.index,
        "codec_type": stream.type,
        "codec_name": context.codec.canonical_name if context is not None else None,
        "language": stream.language,
        "time_base": str(stream.time_base),
        "start_time": None
        if stream.start_time is None
        else _seconds(stream.start_time * stream.time_base - zero),
        "duration": None if stream.duration is None else _seconds(stream.duration * stream.time_base),
        "tags": dict(stream.metadata),
    }
    if stream.type == "video":
        told |= {
            "width": context.width,
            "height": context.height,
            "pix_fmt": context.pix_fmt,
            "sample_aspect_ratio": str(stream.sample_aspect_ratio or 1),
            "avg_frame_rate": str(stream.average_rate) if stream.average_rate else None,
            "profile": context.profile,
        }
    if stream.type == "audio":
        told |= {"channels": context.channels, "sample_rate": context.sample_rate, "profile": context.profile}
    return told


def _chapter(chapter: Any) -> dict[str, Any]:
    base = Fraction(chapter["time_base"])
    return {
        "start": _seconds(chapter["start"] * base),
        "end": _seconds(chapter["end"] * base),
        "title": chapter.get("metadata", {}).get("title", ""),
    }


def columns(rows: Rows) -> tuple[Any, ...]:
    """offset, size, pts, duration and key of rows as arrays."""
    numbers = (rows.offset, rows.size, rows.pts, rows.duration)
    return (*(np.array(values, np.int64) for values in numbers), np.array(rows.key, np.bool_))
