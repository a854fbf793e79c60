"""Sound as WAV: a header made by arithmetic, and samples that are decoded, window by window, when read."""

from __future__ import annotations

import struct
from functools import partial

from vfs import DerivedObject, Extent, Inline, Layout, OutOfRange, Place, in_worker
from vfs_mp4 import hearing, soundline, soundwork
from vfs_mp4.hearing import Span
from vfs_mp4.soundline import Line

#: Part of every version: changed when the same sound would come out as other bytes.
CODE = "mp4.wav.2"
#: Seconds decoded at once: some 20 ms of a worker and 2 MB of stereo. Each window is decoded from its own
#: start, whatever is asked for, so that its bytes depend on nothing else.
WINDOW = 10
#: Bytes of a sample of one channel.
WIDTH = 2
_U32 = 0xFFFFFFFF


async def layout(place: Place, span: Span, number: int = 0) -> tuple[Layout, Line]:
    """The WAV of a span, and where its samples come from. Nothing is decoded.

    Raises OutOfRange where nothing sounds in the span, NoMedia, Unsupported, Damaged.
    """
    track = hearing.the_sound(span.movie, number)
    heard = await hearing.line_of(place, span.movie, track)
    rate, channels = heard.format.rate, heard.format.channels
    start = soundline.nearest(span.start, rate)
    stop = min(soundline.nearest(span.stop, rate), heard.length)
    if stop <= start or not (heard.begin < stop).any():
        raise OutOfRange(f"there is no sound between {float(span.start):g} and {float(span.stop):g} s")
    body = DerivedObject(
        f"{place.path}@/audio-{number + 1}.pcm",
        (stop - start) * channels * WIDTH,
        f"{CODE}:{place.object.key}:{place.version}:{track.track_id}:{start}-{stop}",
        place.mtime_ns,
        make=partial(_make, place, heard, start, stop),
        grain=WINDOW * rate * channels * WIDTH,
        sources=(place.object,),
    )
    head = header(rate, channels, body.size)
    return Layout((Inline(head), Extent(body, 0, body.size))), heard


def header(rate: int, channels: int, size: int) -> bytes:
    """What stands before `size` bytes of 16-bit samples: RIFF, or RF64 (EBU Tech 3306) from 4 GiB on.

    Several channels are in the order of WAVE_FORMAT_EXTENSIBLE (front, centre, low, back, side); the plain
    form is used for all: every reader knows it.
    """
    block = channels * WIDTH
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * block, block, 8 * WIDTH)
    if 36 + size <= _U32:
        return struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form + struct.pack("<4sI", b"data", size)
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, 72 + size, size, size // block, 0)
    return struct.pack("<4sI4s", b"RF64", _U32, b"WAVE") + sizes + form + struct.pack("<4sI", b"data", _U32)


async def _make(place: Place, heard: Line, start: int, stop: int, offset: int, length: int) -> bytes:
    """Bytes [offset, offset + length) of the samples [start, stop)."""
    block = heard.format.channels * WIDTH
    step = WINDOW * heard.format.rate
    first, last = start + offset // block, start - (-(offset + length) // block)
    parts: list[bytes] = []
    at = start + (first - start) // step * step
    while at < last:
        end = min(at + step, stop, last)
        job, packets = soundline.window(heard, at, end)
        parts.append(await in_worker(soundwork.pcm, job, await place.fetch(packets)))
        at += step
    skip = offset - (first - start) // step * step * block
    return b"".join(parts)[skip : skip + length]
