"""Ranges as one NumPy array: a header made by arithmetic, and pictures decoded when they are read."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial

import numpy as np

from vfs import Damaged, DerivedObject, Extent, Inline, Layout, Place, Spliced, in_worker
from vfs_mp4 import frames, runs, sheets
from vfs_mp4.hardware import Hardware
from vfs_mp4.plan import Window
from vfs_mp4.runs import Run
from vfs_mp4.visual import Job, read_entry

#: Part of every version: changed when the same frames would come out as other bytes.
CODE = "mp4.array.1"
#: Bytes made at once: one picture of 1080p, or as many whole smaller ones as fit.
PIECE = 8 << 20


def array(place: Place, window: Window, attributes: dict[str, str], hardware: Hardware) -> Spliced:
    """The frames of a window, N x height x width x 3, uint8: coded pictures as RGB, not turned nor scaled.

    The size is that of the sample description. Raises what `runs.coded` raises; reading raises Damaged
    where a picture does not come out, or in another size, for that piece alone.
    """
    _, job = runs.coded(replace(window, last=window.first))
    entry = read_entry(job)
    count, shape = window.last - window.first + 1, (entry.height, entry.width)
    picture = shape[0] * shape[1] * 3
    if not picture:
        raise Damaged("the sample description gives no size of the pictures")
    body = DerivedObject(
        f"{place.path}@/frames.rgb",
        count * picture,
        f"{CODE}:{'hardware:' * hardware.wanted}{place.version}:{_named(window)}",
        place.mtime_ns,
        make=partial(_make, place, window, shape, hardware),
        grain=max(PIECE // picture, 1) * picture,
        sources=(place.object,),
        bulky=True,
    )
    layout = Layout((Inline(_header((count, *shape, 3))), Extent(body, 0, body.size)))
    attributes |= {"width": str(entry.width), "height": str(entry.height)}
    return Spliced(layout=layout, mtime_ns=place.mtime_ns, attributes=attributes)


def _named(window: Window) -> str:
    """What tells these frames from all others of the file."""
    first, last = (int(window.shown.time[index]) for index in (window.first, window.last))
    return f"{window.track.track_id}:{first}-{last}:{window.last - window.first + 1}"


def _header(shape: tuple[int, ...]) -> bytes:
    """The head of an `.npy` file, version 1.0, of an array of bytes."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return out.getvalue()


async def _make(
    place: Place, window: Window, shape: tuple[int, int], hardware: Hardware, offset: int, length: int
) -> bytes:
    """Bytes [offset, offset + length) of the pictures."""
    picture = shape[0] * shape[1] * 3
    first, last = offset // picture, -(-(offset + length) // picture)
    parts: list[bytes] = []
    for indices in runs.split(window, range(window.first + first, window.first + last)):
        run = runs.run(window, indices, spare=frames.SPARE)
        parts.append(await hardware.decoded(run.job, partial(_pictures, place, run, shape)))
    skip = offset - first * picture
    return b"".join(parts)[skip : skip + length]


async def _pictures(place: Place, run: Run, shape: tuple[int, int], job: Job) -> bytes:
    return await in_worker(
        sheets.arrays, job, run.pts, shape,
        source=run.source(place), affinity=job.group, deadline=run.deadline(),
    )  # fmt: skip
