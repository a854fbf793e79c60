"""Samples to frames, in one pass and as the bytes arrive. Runs in worker processes, never in the daemon.

Raw codec contexts are fed the samples from a key frame on: no container is opened, nothing is probed. One
thread each, and always flushed: a context with frame threads that is dropped undrained hangs its process
(PyAV 18).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from vfs import Damaged, TooBig, Unsupported, WorkerFailed, WorkerFile
from vfs_mp4.visual import HARDWARE, MAX_PIXELS, Entry, Job, read_entry

if TYPE_CHECKING:
    import av

#: Decoders in which a frame that nothing refers to can be told and skipped. Not HEVC: there a frame of a
#: higher temporal layer may still refer to it.
SKIPPABLE = frozenset(("h264", "mpeg4", "mpeg2video", "mpeg1video"))


def shown_frames(
    job: Job, data: bytes | WorkerFile, wanted: Collection[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(pts, frame) for each of the wanted pts that comes out, once each, in order of display, in one pass.

    data: the samples of the job one behind the other, or a file that gives them: samples are decoded while
    the rest is on its way, and nothing after the last one needed is read. What does not decode is left out,
    as players do. Raises Unsupported without a decoder, TooBig over the limits, Damaged when not one of the
    wanted frames comes out, WorkerFailed where a device fails or leaves one out.
    """
    samples = Samples(job, data)
    left = set(wanted)
    last = max((row for row, pts in enumerate(job.pts) if pts in left), default=-1)
    samples.expect(0, last + 1)
    found = 0
    with opened(job) as decoder:
        for row in range(last + 1):
            frames = decoder.decode(job.pts[row], samples[row], skippable=job.pts[row] not in left)
            for frame in frames + (decoder.drain() if row == last else []):
                if frame.pts in left:
                    left.discard(frame.pts)
                    found += 1
                    yield frame.pts, frame
            if not left:
                return
        if left and decoder.on_device:
            raise WorkerFailed(f"{len(left)} frames are missing")
        if not found:
            raise decoder.nothing("none of the frames")


class Samples:
    """The coded samples of a job by row, read when they are asked for."""

    def __init__(self, job: Job, data: bytes | WorkerFile) -> None:
        self._bounds = [0, *accumulate(job.sizes)]
        self._file: Any = io.BytesIO(data) if isinstance(data, bytes) else data

    def __len__(self) -> int:
        """Rows."""
        return len(self._bounds) - 1

    def __getitem__(self, row: int) -> bytes:
        low, high = self._bounds[row], self._bounds[row + 1]
        if self._file.tell() != low:
            self._file.seek(low)
        data: bytes = self._file.read(high - low)
        return data

    def expect(self, low: int, high: int) -> None:
        """Rows [low, high) will be asked for in turn: have their bytes sent."""
        if isinstance(self._file, WorkerFile):
            self._file.seek(self._bounds[low])
            self._file.expect(self._bounds[high] - self._bounds[low])


@contextmanager
def opened(job: Job) -> Iterator[Decoder]:
    """A decoder that is closed at the end of the block."""
    decoder = Decoder(job)
    try:
        yield decoder
    finally:
        decoder.close()


class Decoder:
    """A codec context that is always flushed before it goes. Close it. Raises as `shown_frames` does."""

    def __init__(self, job: Job) -> None:
        self.entry = read_entry(job)
        self.given = self.problem = ""
        self._time_base = Fraction(1, job.timescale)
        self._context = _context(self.entry, job.device)
        self._begun = False

    @property
    def on_device(self) -> bool:
        """Whether a device decodes: what it leaves out software may still give."""
        return bool(self._context.is_hwaccel)

    def decode(self, pts: int, data: bytes, *, skippable: bool = False) -> list[av.VideoFrame]:
        """The frames that come out when one more sample goes in; those that do not decode are left out.

        skippable: the frame itself is not wanted, and need not come out where no other refers to it.
        """
        import av

        if not data:
            self.problem = self.problem or "its sample is empty"
            return []
        if self.entry.decoder in SKIPPABLE:
            self._context.skip_frame = "NONREF" if skippable and self._begun else "DEFAULT"
        packet = av.Packet(data)
        packet.pts, packet.time_base = pts, self._time_base
        self._begun = True
        return self._frames(lambda: self._context.decode(packet))

    def drain(self) -> list[av.VideoFrame]:
        """The frames still inside; the decoder takes no more samples."""
        return self._frames(lambda: self._context.decode(None))

    def close(self) -> None:
        """Flush, whatever is inside."""
        self._context.flush_buffers()

    def nothing(self, what: str) -> Damaged:
        """The error for frames that did not come out: says why as well as is known."""
        why = self.problem
        if not self._begun:
            why = "there is nothing in the samples"
        elif not _has_parameters(self.entry):
            why = f"no parameter sets in the sample description, {why or 'none in the samples'}"
        return Damaged(f"{what}: the decoder puts nothing out{': ' if why else ''}{why}")

    def _frames(self, decode: Callable[[], list[av.VideoFrame]]) -> list[av.VideoFrame]:
        import av

        try:
            return decode()
        except MemoryError:
            entry = self.entry
            text = f"{entry.width} x {entry.height} {entry.decoder}: out of the worker's memory"
            raise TooBig(text) from None
        except av.error.FFmpegError as problem:
            if self.on_device:
                raise WorkerFailed(str(problem)) from None
            # As players do: what cannot be decoded is left out, the rest may still be good.
            self.problem = str(problem)
            return []


def _context(entry: Entry, device: str) -> Any:
    import av

    try:
        context: Any = av.CodecContext.create(entry.decoder, "r", _accelerator(entry, device))
    except av.codec.codec.UnknownCodecError:
        raise Unsupported(f"this build of the media library has no decoder {entry.decoder}") from None
    except av.error.FFmpegError as problem:  # the device is not there any more
        raise WorkerFailed(str(problem)) from None
    context.thread_type, context.thread_count = "SLICE", 1
    context.options = {"max_pixels": str(MAX_PIXELS)}
    if entry.decoder == "h264":
        # Strict: a stream that does not say how far it reorders is taken to reorder as far as it may. Else
        # the decoder guesses not at all, and drops the B-frames that come after what it has put out.
        context.options |= {"strict": "strict"}
    if entry.setup:
        context.extradata = entry.setup
    context.width, context.height = entry.width, entry.height
    return context


def _accelerator(entry: Entry, device: str) -> Any:
    """The device, for what it may decode; a stream it cannot is decoded in software all the same."""
    from av.codec.hwaccel import HWAccel

    if not device or entry.decoder not in HARDWARE:
        return None
    return HWAccel(device, allow_software_fallback=True)


def _has_parameters(entry: Entry) -> bool:
    """Whether the set-up names parameter sets (ISO/IEC 14496-15: avcC 5.3.3.1, hvcC 8.3.3.1)."""
    if entry.decoder == "h264":
        return len(entry.setup) > 6 and bool(entry.setup[5] & 0x1F)
    if entry.decoder == "hevc":
        return len(entry.setup) > 23 and bool(entry.setup[22])
    return True


def probe() -> tuple[str, str]:
    """The first kind of device that can be opened, or "" and why there is none."""
    import av
    from av.codec.hwaccel import HWAccel, hwdevices_available

    problems = []
    for name in hwdevices_available():
        try:
            HWAccel(name).create(av.Codec("h264", "r"))
        except (av.error.FFmpegError, NotImplementedError, RuntimeError) as error:
            problems.append(f"{name}: {error}")
        else:
            return name, ""
    return "", "; ".join(problems) or "the media library was built without"
