"""Frames as pictures: which samples a frame needs, and the node that has a worker decode them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from vfs import Bytes, Layout, Place, Source, TooBig, Unsupported, in_worker
from vfs_mp4 import render, segments, splice
from vfs_mp4.hardware import Hardware
from vfs_mp4.model import Ticks
from vfs_mp4.plan import Window
from vfs_mp4.visual import Job

#: What a frame can be given as.
FORMATS = frozenset(("jpg", "png", "webp", "bmp", "ppm", "npy"))
#: Part of every version: changed when the same frame would come out as other bytes.
CODE = "mp4.frame.1"
#: Most media decoded for one frame: two minutes of a single-key video at 16 Mbit/s. More is a file to be
#: read as a clip, not a picture by picture.
MAX_MEDIA = 256 << 20
#: Samples beyond a wanted frame that a worker may go on with: more than any decoder holds back.
SPARE = 32


def coded(window: Window, *, spare: int = 0) -> tuple[Layout, Job]:
    """The samples that must be decoded for a window's frames, and the job for a worker. `wanted`: the first.

    spare: so many samples more, where they follow. Raises TooBig, Damaged (tables that point outside),
    Unsupported where the coding changes on the way.
    """
    samples, needed = window.track.samples, segments.decoded_rows(window)
    kinds = samples.description[window.rows]
    if (kinds != kinds[0]).any():
        raise Unsupported("the coding of the pictures changes within the range")
    rows = np.append(needed, _following(window, needed, spare))
    offset, size = samples.offset[rows], samples.size[rows]
    splice.check_inside(window.movie.object, offset, size)
    media = int(size[: len(needed)].sum())
    if media > MAX_MEDIA:
        raise TooBig(f"{media} bytes must be decoded for this, the limit is {MAX_MEDIA}")
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
        spare=len(rows) - len(needed),
        group=_group(window, needed),
    )
    return Layout(splice.extents(window.movie.object, offset, size)), job


def _following(window: Window, needed: Ticks, count: int) -> Ticks:
    """Up to so many rows that a decoder of the needed ones may go on with.

    The tables of a fragmented movie may have holes: only samples that follow without a gap in time do.
    """
    samples, last = window.track.samples, int(needed[-1])
    rows = np.arange(last + 1, min(last + 1 + count, len(samples)))
    follows = samples.dts[rows] == samples.dts[rows - 1] + samples.dur[rows - 1]
    follows &= samples.description[rows] == samples.description[last]
    rows = rows[: int(np.argmin(follows))] if not follows.all() else rows
    key = int(needed[0])
    if segments.keeps_leading(window, key):
        return rows
    syncs = np.flatnonzero(samples.sync[key + 1 : last + 1 + len(rows)])
    group_end = key + 1 + int(syncs[0]) if len(syncs) else last + 1 + len(rows)
    found: Ticks = rows[(rows >= group_end) | (samples.pts[rows] >= samples.pts[key])]
    return found


def _group(window: Window, needed: Ticks) -> tuple[str | int | bool, ...]:
    """What jobs have in common whose samples begin alike."""
    stored, track, key = window.movie.object, window.track, int(needed[0])
    keeps, kind = segments.keeps_leading(window, key), int(track.samples.description[window.rows[0]])
    return (stored.key, stored.version, track.track_id, int(track.samples.offset[key]), keeps, kind)


def source(place: Place, layout: Layout, needed: int | None = None) -> Source:
    """A layout of a place for a worker; the first `needed` bytes (None = all) are asked for at once."""
    return Source(partial(place.stream, layout), layout.size, ahead=layout.size if needed is None else needed)


def frame(
    place: Place, window: Window, format: str, attributes: dict[str, str], hardware: Hardware | None = None
) -> Bytes:
    """The first frame of a window as a picture. Raises what `coded` raises."""
    hardware = hardware or Hardware()
    layout, job = coded(replace(window, last=window.first), spare=SPARE)
    needed = layout.window(0, sum(job.sizes[: len(job.sizes) - job.spare]))
    return Bytes(
        produce=partial(_produce, job, format, source(place, layout, needed.size), hardware),
        version=f"{CODE}:{'hardware:' * hardware.wanted}{needed.fingerprint()}:{job.wanted}:{format}",
        mtime_ns=place.mtime_ns,
        reads=needed,
        attributes=attributes,
    )


async def _produce(job: Job, format: str, data: Source, hardware: Hardware) -> bytes:
    async def work(job: Job) -> bytes:
        return await in_worker(render.picture, job, format, source=data, affinity=job.group)

    return await hardware.decoded(job, work)
