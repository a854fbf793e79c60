"""Frames as pictures: which samples a frame needs, and the node that has a worker decode them."""

from __future__ import annotations

from functools import partial

from vfs import Bytes, Layout, Place, TooBig, in_worker
from vfs_mp4 import render, segments, splice
from vfs_mp4.plan import Window

#: What a frame can be given as.
FORMATS = frozenset(("jpg", "png", "webp", "bmp", "ppm", "npy"))
#: Part of every version: changed when the same frame would come out as other bytes.
CODE = "mp4.frame.1"
#: Most media decoded for one frame: two minutes of a single-key video at 16 Mbit/s. More is a file to be
#: read as a clip, not a picture by picture.
MAX_MEDIA = 256 << 20


def frame(place: Place, window: Window, format: str, attributes: dict[str, str]) -> Bytes:
    """The first frame of a window as a picture. Raises TooBig, Damaged."""
    samples, rows = window.track.samples, segments.decoded_rows(window)
    offset, size = samples.offset[rows], samples.size[rows]
    splice.check_inside(window.movie.object, offset, size)
    layout = Layout(splice.extents(window.movie.object, offset, size))
    if layout.size > MAX_MEDIA:
        raise TooBig(f"{layout.size} bytes must be decoded for this frame, the limit is {MAX_MEDIA}")
    wanted = int(samples.pts[window.rows[0]])
    boxes = window.track.boxes or {}
    job = render.Job(
        codec=window.track.codec,
        stsd=boxes.get("stsd", b""),
        tkhd=boxes.get("tkhd", b""),
        description=int(samples.description[window.rows[0]]),
        sizes=tuple(size.tolist()),
        pts=tuple(samples.pts[rows].tolist()),
        wanted=wanted,
        timescale=window.track.timescale,
    )
    return Bytes(
        produce=partial(_produce, place, layout, job, format),
        version=f"{CODE}:{layout.fingerprint()}:{wanted}:{format}",
        mtime_ns=place.mtime_ns,
        reads=layout,
        attributes=attributes,
    )


async def _produce(place: Place, layout: Layout, job: render.Job, format: str) -> bytes:
    data = await place.fetch(layout)
    return await in_worker(render.picture, job, data, format)
