"""Sound out of its packets, as 16-bit samples. Runs in worker processes; nothing here is for the daemon.

PyAV is imported inside the functions, so that naming one of them to the pool costs the daemon nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vfs import Damaged, Unsupported
from vfs_mp4.soundformat import Format, Pcm

if TYPE_CHECKING:
    import av

Sound = NDArray[np.int16]

#: Options of decoders. Noise that Dolby's encoders left to the decoder is made from the packet itself, not
#: from all packets before: so that a part sounds as it does in the whole.
OPTIONS = {"ac3": {"cons_noisegen": "1"}, "eac3": {"cons_noisegen": "1"}}


@dataclass(frozen=True, slots=True)
class Run:
    """Packets that follow each other, and the part of what they decode to that is wanted.

    sizes: bytes of each packet. positions: number of the first sample of each, on a line that begins
    anywhere. start, stop: the wanted samples on that line. at: where they go in the result.
    """

    sizes: tuple[int, ...]
    positions: tuple[int, ...]
    start: int
    stop: int
    at: int


@dataclass(frozen=True, slots=True)
class Job:
    """`length` samples of silence, and what sounds in it. The packets of all runs lie behind each other."""

    format: Format
    runs: tuple[Run, ...]
    length: int


def pcm(job: Job, data: bytes) -> bytes:
    """Interleaved 16-bit little-endian samples. Raises Unsupported, Damaged."""
    return decoded(job, data).astype("<i2", copy=False).tobytes()


def measure(format: Format, sizes: Sequence[int], data: bytes) -> Format:
    """The format as the decoder finds it in the first packets. Raises Unsupported, Damaged."""
    positions = tuple(range(0, len(sizes) << 16, 1 << 16))
    found = None
    for frame in _frames(format, tuple(sizes), positions, data):
        found = replace(format, rate=frame.sample_rate, channels=frame.layout.nb_channels, known=True)
        if found.decoder in ("aac", "mp3float", "eac3"):
            found = replace(found, frame=frame.samples)
    if found is None:
        raise Damaged("no sound comes out of the decoder")
    return found


def decoded(job: Job, data: bytes) -> Sound:
    """The sound of a job: samples x channels."""
    out = np.zeros((job.length, job.format.channels), np.int16)
    at = 0
    for run in job.runs:
        size = sum(run.sizes)
        for position, samples in _sound(job.format, run, data[at : at + size]):
            low, high = max(position, run.start), min(position + len(samples), run.stop)
            if low < high:
                to = run.at + low - run.start
                out[to : to + high - low] = samples[low - position : high - position]
        at += size
    return out


def _sound(format: Format, run: Run, data: bytes) -> Iterator[tuple[int, Sound]]:
    """(number of the first sample, samples x channels) of what the packets decode to."""
    if format.pcm is not None:
        at = 0
        for size, position in zip(run.sizes, run.positions, strict=True):
            yield position, uncompressed(format.pcm, format.channels, data[at : at + size])
            at += size
        return
    for frame in _frames(format, run.sizes, run.positions, data):
        if (frame.sample_rate, frame.layout.nb_channels) != (format.rate, format.channels):
            raise Damaged(
                f"{frame.sample_rate} Hz and {frame.layout.nb_channels} channels come out of the decoder,"
                f" the description says {format.rate} Hz and {format.channels}"
            )
        yield int(frame.pts or 0), _interleaved(frame)


def _frames(
    format: Format, sizes: tuple[int, ...], positions: tuple[int, ...], data: bytes
) -> Iterator[av.AudioFrame]:
    """What the decoder puts out, each with its sample number as pts; what does not decode is left out."""
    import av

    context = _context(format)
    at = 0
    for size, position in zip(sizes, positions, strict=True):
        packet = av.Packet(data[at : at + size]) if size else None
        at += size
        if packet is None:
            continue
        packet.pts, packet.time_base = position, Fraction(1, format.rate)
        # As players do: what cannot be decoded is left out, the rest may still be good.
        with contextlib.suppress(av.error.FFmpegError):
            for frame in context.decode(packet):
                frame.pts, position = position, position + frame.samples
                yield frame


def _context(format: Format) -> Any:
    import av

    try:
        context: Any = av.CodecContext.create(format.decoder, "r")
    except av.error.FFmpegError:
        raise Unsupported(f"no decoder {format.decoder}") from None
    context.thread_count = 1
    context.options = OPTIONS.get(format.decoder, {})
    if format.setup:
        context.extradata = format.setup
    context.sample_rate = format.rate
    if format.channels <= 8:
        context.layout = f"{format.channels}c"
    return context


def _interleaved(frame: av.AudioFrame) -> Sound:
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    return to_16_bits(values).T


def to_16_bits(values: NDArray[Any]) -> Sound:
    """As libswresample does without dither: floats to the nearest, wider integers cut."""
    if values.dtype.kind == "f":
        values = np.clip(np.rint(values * 32768), -32768, 32767)
    elif values.dtype == np.uint8:
        values = (values.astype(np.int16) - 128) << 8
    else:
        values = values >> (8 * (values.itemsize - 2))
    return values.astype(np.int16, copy=False)


def _law(a: bool) -> Sound:
    """What each byte of ITU-T G.711 stands for: A-law, or mu-law."""
    code = np.arange(256)
    code = code ^ 0x55 if a else ~code & 0xFF
    segment, step = code >> 4 & 7, code & 15
    if a:
        size = np.where(segment == 0, (step << 4) + 8, (step << 4) + 0x108 << np.maximum(segment - 1, 0))
        return np.where(code & 0x80, size, -size).astype(np.int16)
    size = ((step << 3) + 0x84 << segment) - 0x84
    return np.where(code & 0x80, -size, size).astype(np.int16)


_LAWS = {"a": _law(True), "m": _law(False)}


def uncompressed(kind: Pcm, channels: int, data: bytes) -> Sound:
    """Stored samples as 16 bits, samples x channels; a sample that is cut short is left out."""
    data = data[: len(data) // (kind.width * channels) * (kind.width * channels)]
    if kind.kind in "ma":
        return _LAWS[kind.kind][np.frombuffer(data, np.uint8)].reshape(-1, channels)
    if kind.width == 3:
        wide = np.frombuffer(data, np.uint8).reshape(-1, 3)
        high = wide[:, :2] if kind.big else wide[:, :0:-1]
        values = np.ascontiguousarray(high).view(">i2").astype(np.int16)
        values = values if kind.kind == "i" else values ^ np.int16(-32768)
        return values.reshape(-1, channels)
    order = ">" if kind.big else "<"
    values = np.frombuffer(data, f"{order}{'f' if kind.kind == 'f' else 'i'}{kind.width}")
    values = values.astype(values.dtype.newbyteorder("="))
    if kind.kind == "u":
        values = values ^ np.array(-1 << 8 * kind.width - 1, values.dtype)
    if kind.width == 1:
        return (values.astype(np.int16) << 8).reshape(-1, channels)
    return to_16_bits(values).reshape(-1, channels)
