"""Where the key frames of a file to be packed lie. Runs in worker processes, which open no files."""

from __future__ import annotations

from fractions import Fraction

from vfs import Damaged, WorkerFile

#: Key frames of one file at most: a seek table of 16 MB.
MAX_ROWS = 1_000_000


def key_frames(file: WorkerFile) -> list[tuple[int, int]]:
    """(presentation time in microseconds from the first frame, offset in the file) of each key frame.

    Empty for a file without video. Raises Damaged where FFmpeg cannot open it.
    """
    import av

    try:
        with av.open(file, "r", metadata_errors="ignore") as media:
            if not media.streams.video:
                return []
            stream = media.streams.video[0]
            tick = stream.time_base or Fraction(1, 1_000_000)
            rows = [
                (packet.pts * tick, packet.pos)
                for packet in media.demux(stream)
                if packet.is_keyframe and packet.pts is not None and (packet.pos or -1) >= 0
            ][:MAX_ROWS]
    except (av.error.FFmpegError, ValueError) as error:
        raise Damaged(f"FFmpeg cannot read it: {error}") from None
    zero = min((time for time, _ in rows), default=0)
    return [(int((time - zero) * 1_000_000), int(offset or 0)) for time, offset in rows]
