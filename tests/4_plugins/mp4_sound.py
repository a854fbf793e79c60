"""What the tests of sound share: generated files, and the truth, a full decode put on the player line."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from mp4_places import MemoryPlace
from numpy.typing import NDArray
from vfs_mp4.soundwork import OPTIONS, to_16_bits

from vfs import DerivedObject, Inline, Layout

Sound = NDArray[np.int16]


@dataclass(frozen=True)
class Heard:
    """Decoded sound: samples x channels at `rate`, each row of `at` a (player sample, first row) pair."""

    rate: int
    pieces: tuple[tuple[int, Sound], ...]

    @property
    def channels(self) -> int:
        return int(self.pieces[0][1].shape[1])

    def line(self, length: int, *, start: int = 0) -> Sound:
        """Samples [start, start + length) of the player line, silent where nothing sounds."""
        out = np.zeros((length, self.channels), np.int16)
        for at, samples in self.pieces:
            low, high = max(at, start), min(at + len(samples), start + length)
            if low < high:
                out[low - start : high - start] = samples[low - at : high - at]
        return out

    @property
    def length(self) -> int:
        return max(at + len(samples) for at, samples in self.pieces)


def interleaved(frame: av.AudioFrame) -> Sound:
    """A frame as 16 bits, samples x channels."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    return np.ascontiguousarray(to_16_bits(values).T)


def decode(data: bytes, number: int = 0, *, by_time: bool = True) -> Heard:
    """The whole sound by PyAV: what follows within half a packet follows at once, as players play it."""
    pieces: list[tuple[int, Sound]] = []
    rate = 0
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.audio[number]
        stream.codec_context.options = OPTIONS.get(stream.codec_context.name, {})
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue
            for frame in frames:
                samples, rate = interleaved(frame), frame.sample_rate
                assert frame.time_base is not None
                at = round((frame.pts or 0) * frame.time_base * rate)
                if pieces:
                    end = pieces[-1][0] + len(pieces[-1][1])
                    if not by_time or abs(at - end) < len(samples) / 2:
                        at = end
                pieces.append((at, samples))
    return Heard(rate, tuple(pieces))


async def read(place: MemoryPlace, layout: Layout, offset: int = 0, length: int | None = None) -> bytes:
    """Bytes of a layout whose made parts are made."""
    parts = []
    for span in layout.window(offset, layout.size if length is None else length).spans:
        if isinstance(span, Inline):
            parts.append(span.data)
        elif isinstance(span.object, DerivedObject):
            parts.append(await span.object.make(span.offset, span.length))
        else:
            parts.append(await place.read(span.offset, span.length))
    return b"".join(parts)


def wav_samples(data: bytes) -> tuple[int, Sound]:
    """(rate, samples x channels) of a WAV of 44 bytes of header."""
    channels, rate = struct.unpack_from("<HI", data, 22)
    return rate, np.frombuffer(data, "<i2", offset=44).reshape(-1, channels)


def tones(rate: int, seconds: Fraction, channels: int) -> NDArray[np.float32]:
    """A climbing tone, another pitch in each channel: channels x samples, -1..1."""
    t = np.arange(int(rate * seconds)) / rate
    pitches = (300.0 * (1 + channel) for channel in range(channels))
    return np.stack([0.3 * np.sin(2 * np.pi * (p * t + 60 * t * t)) for p in pitches]).astype(np.float32)


def encode_sound(
    codec: str,
    *,
    rate: int = 48_000,
    layout: str = "stereo",
    seconds: Fraction = Fraction(5),
    format: str = "mp4",
    tracks: Sequence[str] = ("eng",),
    muxing: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
    bit_rate: int = 0,
) -> bytes:
    """A file with sound alone, one track for each language."""
    out = io.BytesIO()
    with av.open(out, "w", format=format, options=dict(muxing or {})) as container:
        streams: list[Any] = []
        for language in tracks:
            stream: Any = container.add_stream(codec, rate=rate, layout=layout, options=dict(options or {}))
            stream.metadata["language"] = language
            if bit_rate:
                stream.bit_rate = bit_rate
            streams.append(stream)
        for number, stream in enumerate(streams):
            values = tones(rate, seconds, stream.codec_context.layout.nb_channels) / (1 + number)
            frame = av.AudioFrame.from_ndarray(values, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, 0
            context = stream.codec_context
            cutter = av.AudioResampler(context.format.name, layout, rate, context.frame_size or 1024)
            for piece in [*cutter.resample(frame), *cutter.resample(None)]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
    return out.getvalue()
