"""Frames as pictures: which samples a frame needs, and the node that has a worker decode them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from vfs import Bytes, Layout, Place, Source, TooBig, Unsupported, in_worker
from vfs_mp4 import render, segments, splice
from vfs_mp4.plan import Window
from vfs_mp4.visual import Job

#: What a frame can be given as.
FORMATS = frozenset(("jpg", "png", "webp", "bmp", "ppm", "npy"))
#: Part of every version: changed when the same frame would come out as other bytes.
CODE = "mp4.frame.1"
#: Most media decoded for one frame: two minutes of a single-key video at 16 Mbit/s. More is a file to be
#: read as a clip, not a picture by picture.
MAX_MEDIA = 256 << 20


def coded(window: Window) -> tuple[Layout, Job]:
    """The samples that must be decoded for a window's frames, and the job for a worker. `wanted`: the first.

    Raises TooBig, Damaged (tables that point outside), Unsupported where the coding changes on the way.
    """
    samples, rows = window.track.samples, segments.decoded_rows(window)
    offset, size = samples.offset[rows], samples.size[rows]
    splice.check_inside(window.movie.object, offset, size)
    layout = Layout(splice.extents(window.movie.object, offset, size))
    if layout.size > MAX_MEDIA:
        raise TooBig(f"{layout.size} bytes must be decoded for this, the limit is {MAX_MEDIA}")
    kinds = samples.description[window.rows]
    if (kinds != kinds[0]).any():
        raise Unsupported("the coding of the pictures changes within the range")
    boxes = window.track.boxes or {}
    job = Job(
        codec=window.track.codec,
        stsd=boxes.get("stsd", b""),
        tkhd=boxes.get("tkhd", b""),
        description=int(kinds[0]),
        sizes=tuple(size.tolist()),
        pts=tuple(samples.pts[rows].tolist()),
        wanted=int(samples.pts[window.rows[0]]),
        timescale=window.track.timescale,
    )
    return layout, job


def source(place: Place, layout: Layout) -> Source:
    """A layout of a place for a worker, asked for at once."""
    return Source(partial(place.stream, layout), layout.size, ahead=layout.size)


def frame(place: Place, window: Window, format: str, attributes: dict[str, str]) -> Bytes:
    """The first frame of a window as a picture. Raises what `coded` raises."""
    layout, job = coded(replace(window, last=window.first))
    return Bytes(
        produce=partial(_produce, place, layout, job, format),
        version=f"{CODE}:{layout.fingerprint()}:{job.wanted}:{format}",
        mtime_ns=place.mtime_ns,
        reads=layout,
        attributes=attributes,
    )


async def _produce(place: Place, layout: Layout, job: Job, format: str) -> bytes:
    return await in_worker(render.picture, job, format, source=source(place, layout))
