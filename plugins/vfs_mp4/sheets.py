"""Many pictures at once: arrays, small stills, tiles of a sheet. Runs in worker processes, not in the daemon.

The picture library is imported inside the functions, so that naming one of them costs the daemon nothing.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from typing import TYPE_CHECKING

from vfs import Damaged, WorkerFile
from vfs_mp4 import render
from vfs_mp4.decode import shown_frames
from vfs_mp4.shape import Size
from vfs_mp4.visual import Job, read_entry

if TYPE_CHECKING:
    from PIL import Image

#: Of a WebP in an animation; of the sheet of a storyboard.
WEBP_QUALITY, SHEET_QUALITY = 75, 80
COLOURS = 256


def arrays(data: bytes | WorkerFile, job: Job, wanted: tuple[int, ...], shape: tuple[int, int]) -> bytes:
    """The frames of these pts as RGB, one behind the other, each height x width x 3.

    Raises Damaged where one does not come out, or in another size than promised.
    """
    parts = []
    for pts in wanted:
        pixels = render.coded_picture(data, replace(job, wanted=pts))
        if pixels.shape[:2] != shape:
            height, width = pixels.shape[:2]
            told = f"{shape[1]} x {shape[0]}"
            raise Damaged(f"a picture of {width} x {height} where the description says {told}")
        parts.append(pixels)
    return b"".join(part.data for part in parts)


def stills(
    data: bytes | WorkerFile, job: Job, wanted: tuple[int, ...], size: Size, format: str
) -> list[tuple[int, bytes]]:
    """(pts, `gif` or `webp`) of those of the wanted frames that come out, each of exactly this size."""
    entry, found = read_entry(job), []
    with contextlib.suppress(Damaged):  # as players do: the picture before stays
        for pts, frame in shown_frames(job, data, wanted):
            found.append((pts, _still(fit(render.upright(frame, entry, job.tkhd), size), format)))
    return found


def tiles(data: bytes, jobs: tuple[Job, ...], size: Size) -> list[bytes]:
    """The wanted frame of each job as RGB of exactly this size; b"" for one that does not come out.

    data: the samples of the jobs, one behind the other.
    """
    found, at = [], 0
    for job in jobs:
        length = sum(job.sizes)
        found.append(_tile(data[at : at + length], job, size))
        at += length
    return found


def sheet(tiles: list[bytes], size: Size, columns: int) -> bytes:
    """Tiles from left to right and from top to bottom, as JPEG; one that is b"" stays black."""
    from PIL import Image

    rows = -(-len(tiles) // columns)
    whole = Image.new("RGB", (columns * size[0], rows * size[1]))
    for number, pixels in enumerate(tiles):
        if pixels:
            place = (number % columns * size[0], number // columns * size[1])
            whole.paste(Image.frombytes("RGB", size, pixels), place)
    out = io.BytesIO()
    whole.save(out, format="JPEG", quality=SHEET_QUALITY)
    return out.getvalue()


def thumbnail(data: bytes | WorkerFile, job: Job, side: int) -> bytes:
    """The wanted frame as a PNG of at most `side` pixels each way. Raises as `render.picture`."""
    from PIL.Image import Resampling

    entry = read_entry(job)
    frame = next(frame for _, frame in shown_frames(job, data, (job.wanted,)))
    image = render.upright(frame, entry, job.tkhd)
    image.thumbnail((side, side), Resampling.BICUBIC, reducing_gap=2.0)
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()


def fit(image: Image.Image, size: Size) -> Image.Image:
    """The picture whole inside this size; where its form is another, on black."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    # To twice the size by whole pixels, then finely: as good, and a quarter of the time.
    factor = min(image.width // size[0], image.height // size[1]) // 2
    small = image.reduce(factor) if factor > 1 else image
    inside = ImageOps.contain(small, size, Resampling.BICUBIC)
    if size[0] - inside.width + size[1] - inside.height <= 1:
        return small.resize(size, Resampling.BICUBIC)  # a rounded pixel is no other form
    return ImageOps.pad(inside, size, Resampling.BICUBIC)


def _still(image: Image.Image, format: str) -> bytes:
    out = io.BytesIO()
    if format == "gif":
        # Colours are chosen from a quarter of the pixels: of noise that takes a quarter of the time.
        colours = image.reduce(2).quantize(COLOURS)
        image.quantize(palette=colours).save(out, format="GIF", optimize=False)
    else:
        image.save(out, format="WEBP", quality=WEBP_QUALITY, method=2)
    return out.getvalue()


def _tile(data: bytes, job: Job, size: Size) -> bytes:
    entry = read_entry(job)
    try:
        frame = next(frame for _, frame in shown_frames(job, data, (job.wanted,)))
    except Damaged:
        return b""
    return fit(render.upright(frame, entry, job.tkhd), size).tobytes()
