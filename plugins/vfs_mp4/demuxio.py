"""Files that FFmpeg's demuxers read: opened by a worker over a ranged reader. Runs in worker processes.

The demuxer is the one of the file's name and no other: those that are lists of other files (HLS, concat) are
never chosen, whatever a file holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from vfs import Damaged, NoMedia, TooBig, WorkerFile

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

#: FFmpeg's demuxer by the end of the name.
DEMUXERS = {
    ".mkv": "matroska",
    ".webm": "matroska",
    ".ts": "mpegts",
    ".m2ts": "mpegts",
    ".mts": "mpegts",
}
#: Asked of the daemon at once; less is a request for little more than a cluster's head.
BUFFER = 256 << 10
#: Read of the front at most to learn what the streams are.
_PROBE = 2 << 20
#: Read for one answer at most: frames by number, and clips, need what lies before them or in them.
MAX_READ = 1 << 30
#: Packets looked at for the first frame of each stream.
_FIRST_PACKETS = 400
#: Bytes kept of what was read: a packet lies in the last of it.
_KEPT = 48 << 20


class Reading:
    """The file of `size` bytes as the demuxer reads it; remembers where the bytes that it read last lie."""

    def __init__(self, file: WorkerFile) -> None:
        self._file, self._at, self._read = file, 0, 0
        self.size = file.size
        self._chunks: deque[tuple[int, bytes]] = deque()
        self._held = 0

    def read(self, size: int) -> bytes:
        """The next bytes. Raises TooBig when one answer takes more than MAX_READ of them."""
        data = self._file.read(size)
        self._read += len(data)
        if self._read > MAX_READ:
            raise TooBig(f"more than {MAX_READ} bytes must be read for this")
        self._chunks.append((self._at, data))
        self._at += len(data)
        self._held += len(data)
        while self._held > _KEPT:
            self._held -= len(self._chunks.popleft()[1])
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file does."""
        self._at = self._file.seek(offset, whence)
        return self._at

    def tell(self) -> int:
        """As a file does."""
        return self._at

    def seen(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes at `offset` of those that were read last, b"" where these were not."""
        found, at = bytearray(), offset
        for start, data in sorted(self._chunks):
            if start <= at < start + len(data):
                found += data[at - start : offset + length - start]
                at = offset + len(found)
        return bytes(found)


@dataclass(frozen=True)
class Opened:
    """An open container. video: its first stream of moving pictures, if any. zero: the 0 of path times."""

    container: InputContainer
    reading: Reading
    video: av.VideoStream | None
    sounds: tuple[av.AudioStream, ...]
    zero: Fraction


@contextmanager
def opened(file: WorkerFile, demuxer: str) -> Iterator[Opened]:
    """Open a file with the demuxer of that name.

    Raises NoMedia where it is no such file, Damaged where FFmpeg gives up, and what reading raises.
    """
    import av

    reading = Reading(file)
    options = {"probesize": str(_PROBE), "max_streams": "64"}
    try:
        with av.open(
            reading, "r", format=demuxer, options=options, buffer_size=BUFFER, metadata_errors="replace"
        ) as container:
            video = next(filter(_moves, container.streams.video), None)
            sounds = tuple(container.streams.audio)
            for stream in (video, *sounds):
                if stream is not None and stream.codec_context is not None:
                    _careful(stream.codec_context)
            yield Opened(container, reading, video, sounds, _zero(container, video, sounds))
    except av.error.InvalidDataError as error:
        raise NoMedia(f"no {demuxer} file: {error}") from None
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        raise Damaged(f"{demuxer}: {error}") from None
    except MemoryError:
        raise TooBig(f"{demuxer}: out of the worker's memory") from None


def _careful(context: Any) -> None:
    """One thread: a context with frame threads that is dropped undrained hangs its process (PyAV 18)."""
    context.thread_type, context.thread_count = "SLICE", 1


def _moves(stream: av.VideoStream) -> bool:
    """No cover picture."""
    from av.stream import Disposition

    return not stream.disposition & Disposition.attached_pic


def _zero(container: Any, video: Any, sounds: tuple[Any, ...]) -> Fraction:
    """The earliest time that is seen or heard, in seconds of the file: of the first frame of each stream."""
    left = {stream.index for stream in (video, *sounds) if stream is not None}
    streams = [stream for stream in (video, *sounds) if stream is not None]
    if not streams:
        raise NoMedia("no pictures and no sound")
    begins = []
    for _, packet in zip(range(_FIRST_PACKETS), container.demux(*streams), strict=False):
        if packet.stream.index in left:
            for frame in decoded(packet):
                if frame.pts is not None:
                    left.discard(packet.stream.index)
                    begins.append(frame.pts * frame.time_base)
                    break
        if not left:
            break
    for stream in streams:
        stream.codec_context.flush_buffers()
    return min(begins, default=Fraction(0))


def decoded(packet: Any) -> list[Any]:
    """The frames that come out with a packet; what does not decode is left out, as players do."""
    import av

    try:
        found: list[Any] = packet.decode()
    except av.error.FFmpegError:
        return []
    return found
