"""A video as what is kept of it: vectors of pictures, hashes of coded pictures, landmarks of its sound.

Runs in worker processes, never in the daemon: one pass over a stretch of the file. Pictures are shrunk by the
scaler as they come out of the decoder, and described a few at a time.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vfs import Damaged, NoMedia, TooBig, Unsupported, WorkerFile
from vfs_search import features, hashes
from vfs_search.landmarks import HOP, RATE, Landmarks, landmarks

#: FFmpeg's demuxer by the end of the name. Those that are lists of other files are never chosen.
DEMUXERS = {
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".qt"), "mp4"),
    **dict.fromkeys((".mkv", ".webm"), "matroska"),
    **dict.fromkeys((".ts", ".m2ts", ".mts"), "mpegts"),
}
SUFFIXES = tuple(DEMUXERS)
#: Pixels of the longer side of a picture that is described, of a picture at all, and of a picture dropped in.
SHORT_SIDE, MAX_PIXELS, MAX_STILL = 256, 8192 * 8192, 50_000_000
_BUFFER = 1 << 20
_PROBE = 2 << 20
#: Decoders in which a frame that nothing refers to can be told and skipped.
_SKIPPABLE = frozenset(("h264", "mpeg4", "mpeg2video", "mpeg1video"))


#: What a worker reads, or an open file.
Readable = WorkerFile | BinaryIO


@dataclass(frozen=True, slots=True)
class Plan:
    """What is looked at.

    rate: pictures a second that are described whole, 0 = key frames alone; window_rate: of those, how many
    a second also in windows. keyframe_interval: seconds between key frames that are described.
    batch: pictures described together. max_pictures: of one video, 0 = no limit.
    extra: further descriptors, (name, module, function). sound, coded: whether to keep those.
    """

    rate: float = 2.0
    window_rate: float = 2.0
    keyframe_interval: float = 1.0
    batch: int = 8
    max_pictures: int = 0
    extra: tuple[tuple[str, str, str], ...] = ()
    sound: bool = True
    coded: bool = True


@dataclass(eq=False)
class Part:
    """What a stretch of a video is kept as. Times are seconds on the player line.

    numbers: of the frames, in order of display. windows, rows: the window and the frame, an index into
    `times`, that each row of `vectors` is of. extra: by name, float32, one row a frame.
    """

    duration: float
    frames: int
    numbers: NDArray[np.int64]
    times: NDArray[np.float64]
    keys: NDArray[np.bool_]
    vectors: NDArray[np.uint8]
    windows: NDArray[np.uint8]
    rows: NDArray[np.int32]
    coded: NDArray[np.uint64]
    coded_times: NDArray[np.float64]
    sound: Landmarks
    extra: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def first(self, count: int) -> Part:
        """The first pictures of it alone; hashes stay."""
        kept = self.rows < count
        return replace(
            self,
            numbers=self.numbers[:count],
            times=self.times[:count],
            keys=self.keys[:count],
            vectors=self.vectors[kept],
            windows=self.windows[kept],
            rows=self.rows[kept],
            extra={name: vectors[:count] for name, vectors in self.extra.items()},
        )


@contextmanager
def opened(file: Readable, demuxer: str) -> Iterator[Any]:
    """A container. Raises NoMedia where it is none, Damaged, TooBig, and what reading raises."""
    import av

    options = {"probesize": str(_PROBE), "max_streams": "64"}
    try:
        with av.open(
            file, "r", format=demuxer, options=options, buffer_size=_BUFFER, metadata_errors="replace"
        ) as container:
            yield container
    except av.error.InvalidDataError as error:
        raise NoMedia(f"no {demuxer} file: {error}") from None
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        raise Damaged(f"{demuxer}: {error}") from None
    except MemoryError:
        raise TooBig(f"{demuxer}: out of the worker's memory") from None


def duration(file: Readable, demuxer: str) -> float:
    """Seconds that a file says it lasts. Raises NoMedia where there are no pictures."""
    with opened(file, demuxer) as container:
        _pictures(container)
        return max(0.0, (container.duration or 0) / 1_000_000)


def describe(file: Readable, demuxer: str, start: float, stop: float, plan: Plan) -> Part:
    """Everything of [start, stop) seconds. Raises NoMedia, Damaged, TooBig, Unsupported."""
    with opened(file, demuxer) as container:
        return _Pass(container, start, stop, plan).run()


@dataclass(eq=False)
class Question:
    """What is looked for: pictures at times (seconds from its start), each as several variants.

    vectors: (pictures, variants, 512), names: of the variants. extra: as in Part.
    """

    duration: float
    times: NDArray[np.float64]
    vectors: features.Floats
    names: list[str]
    coded: NDArray[np.uint64]
    coded_times: NDArray[np.float64]
    sound: Landmarks
    extra: dict[str, NDArray[np.float32]] = field(default_factory=dict)


#: Pictures of a question at most, and a second.
MOST_PICTURES, QUESTION_RATE = 240, 4.0


def question(file: Readable, demuxer: str, plan: Plan) -> Question:
    """A video as what is looked for. Raises NoMedia, Damaged, TooBig, Unsupported."""
    with opened(file, demuxer) as container:
        seconds = max(0.0, (container.duration or 0) / 1_000_000)
        rate = min(QUESTION_RATE, MOST_PICTURES / max(seconds, 1.0))
        made = _Asking(
            container, 0.0, float("inf"), replace(plan, rate=rate, window_rate=0.0, max_pictures=0)
        )
        part = made.run()
        if not len(part.times):
            raise NoMedia("not one picture of it can be decoded")
        vectors, names = made.variants()
        end = part.duration + (part.duration / part.frames if part.frames > 1 else 0)
        return Question(end, part.times, vectors, names, part.coded, part.coded_times, part.sound, part.extra)


@dataclass(eq=False)
class Still:
    """One picture as what is looked for. vectors: (variants, 512), names: of these. extra: (1, D) each."""

    vectors: features.Floats
    names: list[str]
    extra: dict[str, NDArray[np.float32]]


def one_frame(file: Readable, demuxer: str, number: int, plan: Plan) -> Still:
    """The decoded frame of that number (0 = first)."""
    with opened(file, demuxer) as container:
        stream = _pictures(container)
        last = None
        for count, frame in enumerate(container.decode(stream)):
            last = frame
            if count == number:
                break
        if last is None:
            raise Damaged("the decoder puts no picture out")
        return _still(_small(last, "gray"), _small(last, "rgb24"), plan)


def still(data: bytes, plan: Plan) -> Still:
    """An image file. Raises Damaged, TooBig, Unsupported."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")) as picture:
            if picture.width * picture.height > MAX_STILL:
                raise TooBig(f"{picture.width} x {picture.height} pixels; at most {MAX_STILL} are decoded")
            picture.draft("RGB", (2 * SHORT_SIDE, 2 * SHORT_SIDE))
            whole = picture.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooBig(str(error)) from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError):
        raise Damaged("no picture that can be read") from None
    pixels = np.asarray(whole.resize(_size(whole.width, whole.height), Image.Resampling.BOX))
    return _still(features.luma_of(pixels), pixels, plan)


def _still(luma: NDArray[Any], pixels: NDArray[np.uint8], plan: Plan) -> Still:
    vectors, names = features.variants(luma)
    return Still(vectors, names, _extra(pixels[None], plan))


def _extra(pixels: NDArray[np.uint8], plan: Plan) -> dict[str, NDArray[np.float32]]:
    """What further descriptors make of pictures."""
    return {
        name: np.asarray(getattr(importlib.import_module(module), function)(pixels), np.float32)
        for name, module, function in plan.extra
    }


def _pictures(container: Any) -> Any:
    """The first stream of moving pictures, decoded by one thread and without more care than is needed."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            context = stream.codec_context
            if context is None:
                raise Unsupported("no decoder for the pictures")
            # One thread: a context with frame threads that is dropped undrained hangs its process (PyAV 18).
            context.thread_type, context.thread_count = "SLICE", 1
            context.options = {"max_pixels": str(MAX_PIXELS), "skip_loop_filter": "all"}
            return stream
    raise NoMedia("no pictures")


def _size(width: int, height: int) -> tuple[int, int]:
    """At most SHORT_SIDE either way, even, never enlarged."""
    factor = min(1.0, SHORT_SIDE / max(width, height, 1))
    return max(8, round(width * factor)), max(8, round(height * factor))


def _small(frame: Any, format: str, scaler: Any = None) -> NDArray[np.uint8]:
    """scaler: of a whole pass. A new one for each picture, with threads, takes thirty times as long."""
    from av.video.reformatter import VideoReformatter

    width, height = _size(frame.width, frame.height)
    scaler = scaler or VideoReformatter()
    made: Any = scaler.reformat(frame, width, height, format, interpolation="AREA", threads=1)
    found: NDArray[np.uint8] = made.to_ndarray()
    return found


class _Pass:
    """One pass over a stretch of an open container."""

    def __init__(self, container: Any, start: float, stop: float, plan: Plan) -> None:
        from av.video.reformatter import VideoReformatter

        self._container, self._plan, self._scaler = container, plan, VideoReformatter()
        self._start, self._stop = start, stop
        self._stream = _pictures(container)
        self._codec = self._stream.codec_context.name.removeprefix("lib")
        self._sound = container.streams.audio[0] if plan.sound and container.streams.audio else None
        self._zero = (container.start_time or 0) / 1_000_000
        # Floats: a fraction for each packet takes as long as all else that is done with it here.
        self._bases = {stream.index: float(stream.time_base or 0) for stream in container.streams}
        self._shots: list[tuple[float, bool, Any]] = []
        self._times: list[float] = []
        self._keys: list[bool] = []
        self._vectors: list[NDArray[np.uint8]] = []
        self._windows: list[NDArray[np.uint8]] = []
        self._rows: list[NDArray[np.int32]] = []
        self._extra: dict[str, list[features.Floats]] = {name: [] for name, _, _ in plan.extra}
        self._next = self._next_window = -1
        self._last: float | None = None
        self._coded: list[int] = []
        self._coded_times: list[float] = []
        self._shown: list[float] = []
        self._heard: list[NDArray[np.float32]] = []
        self._heard_from: float | None = None

    def run(self) -> Part:
        """Read it."""
        import av

        context = self._stream.codec_context
        if not self._plan.rate:
            context.skip_frame = "NONKEY"
        elif self._codec in _SKIPPABLE:
            context.skip_frame = "NONREF"
        width = hashes.length_size(self._codec, bytes(context.extradata or b""))
        if self._start > 0:
            self._container.seek(int((self._start + self._zero) * 1_000_000), backward=True)
        streams = [stream for stream in (self._stream, self._sound) if stream is not None]
        done = {stream.index: False for stream in streams}
        failed = ""
        for packet in self._container.demux(*streams):
            time = self._seconds(packet)
            if packet.stream is self._stream:
                if time is not None:
                    self._packet(packet, time, width)
                done[packet.stream.index] = time is not None and self._decode_time(packet) >= self._stop
            elif time is not None:
                done[packet.stream.index] = time >= self._stop
            if all(done.values()):
                break
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                failed = failed or str(error)
                continue
            for frame in frames:
                if packet.stream is self._stream:
                    self._picture(frame)
                else:
                    self._listen(frame)
        self._drain()
        self._describe()
        if not self._times and failed:
            raise Damaged(f"the decoder puts nothing out: {failed}")
        return self._part()

    def _drain(self) -> None:
        """Pictures that the decoder still holds belong to this stretch, too."""
        import av

        try:
            for frame in self._stream.codec_context.decode(None):
                self._picture(frame)
        except (av.error.FFmpegError, EOFError):
            pass

    def _seconds(self, packet: Any) -> float | None:
        if packet.pts is None or not packet.size:
            return None
        return float(packet.pts * self._bases[packet.stream_index] - self._zero)

    def _decode_time(self, packet: Any) -> float:
        ticks = packet.dts if packet.dts is not None else packet.pts
        return float(ticks * self._bases[packet.stream_index] - self._zero)

    def _packet(self, packet: Any, time: float, width: int) -> None:
        if not self._start <= time < self._stop:
            return
        self._shown.append(time)
        if self._plan.coded:
            self._coded.append(hashes.picture(self._codec, width, bytes(packet)))
            self._coded_times.append(time)

    def _picture(self, frame: Any) -> None:
        if frame.pts is None:
            return
        time = frame.pts * self._bases[self._stream.index] - self._zero
        if not self._start <= time < self._stop:
            return
        if self._plan.max_pictures and len(self._times) + len(self._shots) >= self._plan.max_pictures:
            return
        rate, key = self._plan.rate, bool(frame.key_frame)
        # A picture for each step of the sample, the first that is shown in it; and key frames.
        wanted = rate > 0 and int(time * rate + 1e-6) > self._next
        if wanted:
            self._next = int(time * rate + 1e-6)
        elif not (key and (self._last is None or time - self._last >= self._plan.keyframe_interval)):
            return
        self._last = time
        pixels = _small(frame, "rgb24" if self._extra else "gray", self._scaler)
        self._shots.append((time, key, pixels))
        if len(self._shots) >= self._plan.batch:
            self._describe()

    def _describe(self) -> None:
        """Those that wait, together."""
        if not self._shots:
            return
        pixels = np.stack([shot[2] for shot in self._shots])
        self._shots, shots = [], self._shots
        if self._extra:
            for name, made in _extra(pixels, self._plan).items():
                self._extra[name].append(made)
        lumas = features.luma_of(pixels) if pixels.ndim == 4 else pixels
        windowed = [self._windowed(time) for time, _, _ in shots]
        whole = self._whole(lumas)
        begin = len(self._times)
        self._add(whole, np.zeros(len(shots), np.uint8), begin + np.arange(len(shots)))
        chosen = np.flatnonzero(windowed)
        if len(chosen):
            parts = features.describe_windows(lumas[chosen])
            count = parts.shape[1]
            kinds = np.tile(np.arange(1, count + 1), len(chosen))
            self._add(parts.reshape(-1, features.DIMENSIONS), kinds, begin + np.repeat(chosen, count))
        self._times += [time for time, _, _ in shots]
        self._keys += [key for _, key, _ in shots]

    def _whole(self, lumas: NDArray[Any]) -> features.Floats:
        """The pictures as they are."""
        return features.describe_whole(lumas)

    def _windowed(self, time: float) -> bool:
        step = int(time * self._plan.window_rate + 1e-6) if self._plan.window_rate else -1
        if step > self._next_window:
            self._next_window = step
            return True
        return False

    def _add(self, vectors: features.Floats, windows: Any, rows: Any) -> None:
        self._vectors.append(features.quantised(vectors))
        self._windows.append(np.asarray(windows, np.uint8))
        self._rows.append(np.asarray(rows, np.int32))

    def _listen(self, frame: Any) -> None:
        import av

        if frame.pts is None:
            return
        time = float(frame.pts * frame.time_base) - self._zero
        if time < self._start - 0.5 or time >= self._stop:
            return
        if self._heard_from is None:
            self._heard_from = time
            self._resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        frame.pts = None
        try:
            for made in self._resampler.resample(frame):
                self._heard.append(made.to_ndarray()[0])
        except (av.error.FFmpegError, ValueError):
            return

    def _part(self) -> Part:
        shown = np.sort(np.array(self._shown, np.float64))
        times = np.array(self._times, np.float64)
        order = np.argsort(self._coded_times, kind="stable")
        sound = np.empty((0, 2), np.uint32)
        if self._heard and self._heard_from is not None:
            begin = max(0, round(self._heard_from * RATE / HOP))
            sound = landmarks(np.concatenate(self._heard), begin)
        return Part(
            duration=float(shown[-1]) if len(shown) else self._start,
            frames=len(shown),
            numbers=np.searchsorted(shown, times - 1e-4),
            times=times,
            keys=np.array(self._keys, np.bool_),
            vectors=_joined(self._vectors, (0, features.DIMENSIONS), np.uint8),
            windows=_joined(self._windows, (0,), np.uint8),
            rows=_joined(self._rows, (0,), np.int32),
            coded=np.array(self._coded, np.uint64)[order] if self._coded else np.empty(0, np.uint64),
            coded_times=np.array(self._coded_times, np.float64)[order] if self._coded else np.empty(0),
            sound=sound,
            extra={name: _joined(found, (0, 0), np.float32) for name, found in self._extra.items()},
        )


class _Asking(_Pass):
    """A pass that keeps each picture with borders and without; mirrored ones are made of these."""

    def __init__(self, container: Any, start: float, stop: float, plan: Plan) -> None:
        super().__init__(container, start, stop, plan)
        self._asked: list[tuple[features.Floats, features.Floats]] = []
        self._cut = False

    def _whole(self, lumas: NDArray[Any]) -> features.Floats:
        whole = super()._whole(lumas)
        cut = [features.trimmed(luma) for luma in lumas]
        without = whole.copy()
        for number, (luma, found) in enumerate(zip(lumas, cut, strict=True)):
            if found.shape != luma.shape:
                self._cut = True
                without[number] = features.grad512(features.area(found[None], features.SIDE, features.SIDE))[
                    0
                ]
        self._asked.append((whole, without))
        return whole

    def variants(self) -> tuple[features.Floats, list[str]]:
        """(pictures, variants, 512) and what these are."""
        found, names = [np.concatenate([whole for whole, _ in self._asked])], ["as is"]
        if self._cut:
            found.append(np.concatenate([without for _, without in self._asked]))
            names.append("trimmed")
        found += [features.mirror(vectors) for vectors in found]
        return np.stack(found, axis=1), [*names, *(f"{name}, mirrored" for name in names)]


def _joined(parts: list[Any], shape: tuple[int, ...], kind: Any) -> Any:
    return np.concatenate(parts) if parts else np.empty(shape, kind)
