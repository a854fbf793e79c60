"""Pictures as vectors: grad512 and rep0st108, border trim, mirror image, windows. Pure numpy.

grad512 is a histogram of gradients: 8 x 8 cells of 8 orientations over 64 x 64 pixels of luma, each bin the
square root of its share. It hardly changes with encoding, brightness, colour and small overlays; crops are
met by describing windows of a picture, too. rep0st108 is the vector of https://github.com/ReneHollander/rep0st
(`rep0st/service/analyze_service.py`): hue, saturation and value of 6 x 6 cells.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfs import Unsupported

Floats = NDArray[np.float32]
Octets = NDArray[np.uint8]

SIDE, CELLS, ORIENTATIONS = 64, 8, 8
DIMENSIONS = CELLS * CELLS * ORIENTATIONS
#: Quantised: bins of a unit vector are below a half but for pictures with a single edge; those are cut off.
SCALE = np.float32(510)
#: Windows as parts of width and height: (left, top, right, bottom); the first is the whole picture.
_CENTRES = (0.8, 0.6)
STRIPS = 9


# ---------------------------------------------------------------- resizing


@cache
def _weights(source: int, target: int) -> Floats:
    """target x source: how much of each source pixel lies in each target cell, over the cell's length."""
    step = source / target
    edges = np.arange(target + 1) * step
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(source)[None, :]
    overlap = np.clip(np.minimum(pixel + 1, high) - np.maximum(pixel, low), 0, None)
    found: Floats = (overlap / step).astype(np.float32)
    found.setflags(write=False)
    return found


def area(pictures: NDArray[Any], height: int, width: int) -> Floats:
    """Area-averaged: (N, H, W) to (N, height, width), float32."""
    rows, columns = _weights(pictures.shape[1], height), _weights(pictures.shape[2], width)
    shrunk = np.matmul(rows, pictures.astype(np.float32))
    found: Floats = (shrunk.reshape(-1, pictures.shape[2]) @ columns.T).reshape(-1, height, width)
    return found


# ---------------------------------------------------------------- grad512


def grad512(lumas: NDArray[Any]) -> Floats:
    """(N, 64, 64) luma from 0 to 255 to (N, 512), each of length 1 (0 for a picture without an edge)."""
    # A few at a time: what they need stays in the processor's cache, which is four times as fast.
    parts = [_grad512(lumas[n : n + _AT_ONCE]) for n in range(0, len(lumas), _AT_ONCE)]
    return np.concatenate(parts) if parts else np.empty((0, DIMENSIONS), np.float32)


_AT_ONCE = 16


def _grad512(lumas: NDArray[Any]) -> Floats:
    image = lumas.astype(np.float32, copy=False)
    count = len(image)
    first, lower, upper = _oriented(*_gradients(image))
    place = first + _cells() + (np.arange(count, dtype=np.int32) * DIMENSIONS)[:, None, None]
    return _described(_binned(place, first, lower, upper, count * DIMENSIONS).reshape(count, DIMENSIONS))


def _gradients(image: Floats) -> tuple[Floats, Floats]:
    """Across and down: (N, H, W) each, 0 at the borders of its axis."""
    gx, gy = np.zeros_like(image), np.zeros_like(image)
    np.subtract(image[:, :, 2:], image[:, :, :-2], out=gx[:, :, 1:-1])
    np.subtract(image[:, 2:], image[:, :-2], out=gy[:, 1:-1])
    return gx, gy


def _oriented(gx: Floats, gy: Floats) -> tuple[NDArray[np.int32], Floats, Floats]:
    """The orientation below each angle, and what of its strength counts for that and for the next one."""
    angle = np.arctan2(gy, gx)
    angle *= np.float32(ORIENTATIONS / (2 * np.pi))
    below = np.floor(angle)
    angle -= below
    strength = np.sqrt(gx * gx + gy * gy)
    angle *= strength
    strength -= angle
    return below.astype(np.int32) & (ORIENTATIONS - 1), strength, angle


def _binned(
    place: NDArray[np.int32], first: NDArray[np.int32], lower: Floats, upper: Floats, total: int
) -> NDArray[np.float64]:
    """Sums by bin. place: the bin of each `lower`; that of the next orientation gets the `upper`."""
    found = np.bincount(place.ravel(), lower.ravel(), total).astype(np.float64, copy=False)
    after = place + np.where(first == ORIENTATIONS - 1, np.int32(1 - ORIENTATIONS), np.int32(1))
    found += np.bincount(after.ravel(), upper.ravel(), total)
    return found


def _described(bins: NDArray[np.float64]) -> Floats:
    """Square roots, at length 1."""
    found = np.sqrt(bins)
    found /= np.linalg.norm(found, axis=-1, keepdims=True) + 1e-6
    made: Floats = found.astype(np.float32)
    return made


@cache
def _cells() -> NDArray[np.int32]:
    """First bin of each pixel's cell."""
    row = np.arange(SIDE) // (SIDE // CELLS)
    return ((row[:, None] * CELLS + row[None, :]) * ORIENTATIONS).astype(np.int32)


@cache
def _mirrored() -> NDArray[np.int64]:
    """Where each bin of the mirror image is in the vector: columns turned round, an angle a becomes 4 - a."""
    bins = np.arange(DIMENSIONS).reshape(CELLS, CELLS, ORIENTATIONS)
    turned = (ORIENTATIONS // 2 - np.arange(ORIENTATIONS)) % ORIENTATIONS
    return bins[:, ::-1, turned].ravel()


def mirror(vectors: Floats) -> Floats:
    """The grad512 vectors of the mirror images."""
    found: Floats = vectors[:, _mirrored()]
    return found


def quantised(vectors: Floats) -> Octets:
    """grad512 as it is stored."""
    found: Octets = np.clip(np.rint(vectors * SCALE), 0, 255).astype(np.uint8)
    return found


def restored(stored: Octets) -> Floats:
    """Stored vectors at length 1 again."""
    found = stored.astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", found, found))
    found /= np.maximum(norms, 1e-6)[:, None]
    return found


# ---------------------------------------------------------------- windows


def windows(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """(top, bottom, left, right) in pixels of the windows of a picture: 12 of a wide one, else 1.

    The whole; its centre at 80 and 60 %; nine strips of 9:16 over the full height, evenly spaced.
    """
    found = [(0, height, 0, width)]
    if width <= height:
        return found
    for part in _CENTRES:
        tall, wide = round(height * part), round(width * part)
        top, left = (height - tall) // 2, (width - wide) // 2
        found.append((top, top + tall, left, left + wide))
    strip = max(1, min(width, round(height * 9 / 16)))
    found += [
        (0, height, left, left + strip)
        for left in (round(n * (width - strip) / (STRIPS - 1)) for n in range(STRIPS))
    ]
    return found


def window_names(count: int) -> list[str]:
    """What `user.reelfs.search.window` calls them."""
    names = ["full", *(f"centre{part * 100:.0f}" for part in _CENTRES), *(f"strip{n}" for n in range(STRIPS))]
    return names[:count]


def describe_whole(lumas: NDArray[Any]) -> Floats:
    """(N, H, W) luma to (N, 512)."""
    return grad512(area(lumas, SIDE, SIDE))


def describe_windows(lumas: NDArray[Any]) -> Floats:
    """(N, H, W) luma to (N, windows, 512): each window of each picture but the whole."""
    _, *boxes = windows(*lumas.shape[1:])
    if not boxes:
        return np.empty((len(lumas), 0, DIMENSIONS), np.float32)
    centres = [
        describe_whole(lumas[:, top:bottom, left:right]) for top, bottom, left, right in boxes[:-STRIPS]
    ]
    # A few at a time, as in grad512.
    strips = [_strips(lumas[n : n + _AT_ONCE // 4]) for n in range(0, len(lumas), _AT_ONCE // 4)]
    return np.concatenate([np.stack(centres, axis=1), np.concatenate(strips)], axis=1)


def _strips(lumas: NDArray[Any]) -> Floats:
    """(N, STRIPS, 512): the strips lie over one another, so what they share is worked out once.

    The picture is shrunk until a strip is as wide as it has to be. Its gradients are summed by columns, those
    of strips are differences of running sums; at both ends of a strip there is no gradient across.
    """
    count, height, width = lumas.shape
    across = max(SIDE, round(width * SIDE / max(1, min(width, round(height * 9 / 16)))))
    gx, gy = _gradients(area(lumas, SIDE, across))
    first, lower, upper = _oriented(gx, gy)
    shape = (count, CELLS, across, ORIENTATIONS)
    rows = np.arange(count * SIDE, dtype=np.int32).reshape(count, SIDE, 1) // (SIDE // CELLS)
    place = (rows * across + np.arange(across, dtype=np.int32)) * ORIENTATIONS + first
    columns = _binned(place, first, lower, upper, count * CELLS * across * ORIENTATIONS).reshape(shape)
    upright = np.zeros(shape)
    by_cell = gy.reshape(count, CELLS, SIDE // CELLS, across)
    upright[..., ORIENTATIONS // 4] = np.maximum(by_cell, 0).sum(axis=2)
    upright[..., 3 * ORIENTATIONS // 4] = np.maximum(-by_cell, 0).sum(axis=2)
    upright -= columns
    sums = np.zeros((count, CELLS, across + 1, ORIENTATIONS))
    np.cumsum(columns, axis=2, out=sums[:, :, 1:])
    found = np.empty((count, STRIPS, CELLS, CELLS, ORIENTATIONS))
    for n in range(STRIPS):
        left = round(n * (across - SIDE) / (STRIPS - 1))
        edges = sums[:, :, left : left + SIDE + 1 : SIDE // CELLS]
        found[:, n] = edges[:, :, 1:] - edges[:, :, :-1]
        found[:, n, :, 0] += upright[:, :, left]
        found[:, n, :, -1] += upright[:, :, left + SIDE - 1]
    return _described(np.maximum(found, 0).reshape(count, STRIPS, DIMENSIONS))


#: Luma above which a pixel is no border, and how much of a row or column must be above it.
_DARK, _LIT = 24, 0.02
#: A picture is no smaller than this many pixels after its borders are cut.
_LEAST = 8


def trimmed(luma: NDArray[Any]) -> NDArray[Any]:
    """(H, W) without dark borders; as it is where there are none, or hardly anything else."""
    lit = luma > _DARK
    rows, columns = np.flatnonzero(lit.mean(axis=1) > _LIT), np.flatnonzero(lit.mean(axis=0) > _LIT)
    if len(rows) == 0 or len(columns) == 0:
        return luma
    found = luma[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return found if min(found.shape) >= _LEAST else luma


def variants(luma: NDArray[Any]) -> tuple[Floats, list[str]]:
    """What a picture is looked for as: (V, 512), and names: as it is, without borders, and both mirrored."""
    pictures, names = [area(luma[None], SIDE, SIDE)[0]], ["as is"]
    cut = trimmed(luma)
    if cut.shape != luma.shape:
        pictures.append(area(cut[None], SIDE, SIDE)[0])
        names.append("trimmed")
    vectors = grad512(np.stack(pictures))
    return np.concatenate([vectors, mirror(vectors)]), [*names, *(f"{name}, mirrored" for name in names)]


def luma_of(pictures: NDArray[Any]) -> Floats:
    """(..., H, W, 3) RGB to (..., H, W)."""
    weights = np.array((0.299, 0.587, 0.114), np.float32)
    found: Floats = pictures.astype(np.float32) @ weights
    return found


# ---------------------------------------------------------------- rep0st108

REP0ST_CELLS = 6
REP0ST = REP0ST_CELLS * REP0ST_CELLS * 3
_EPSILON = np.float32(2.0**-23)


def rep0st108(pictures: NDArray[Any]) -> Floats:
    """(N, H, W, 3) RGB, uint8, to (N, 108). Raises Unsupported below 6 pixels either way."""
    count, height, width = pictures.shape[:3]
    if min(height, width) < REP0ST_CELLS:
        raise Unsupported(f"{width} x {height} pixels: fewer than {REP0ST_CELLS} either way")
    planes = np.moveaxis(pictures, 3, 1).reshape(count * 3, height, width)
    cells = area(planes, REP0ST_CELLS, REP0ST_CELLS).reshape(count, 3, -1) * np.float32(1 / 255)
    red, green, blue = cells[:, 0], cells[:, 1], cells[:, 2]
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    saturation = spread / (np.abs(value) + _EPSILON)
    factor = np.float32(60) / (spread + _EPSILON)
    hue = np.where(
        value == red,
        (green - blue) * factor,
        np.where(value == green, (blue - red) * factor + 120, (red - green) * factor + 240),
    )
    hue = np.where(hue < 0, hue + 360, hue) / np.float32(1020)
    return np.concatenate([hue, saturation, value], axis=1).astype(np.float32)


def rep0st_score(query: Floats, references: Floats) -> Floats:
    """1 - distance / sqrt(108), as it is there: (Q, 108) and (N, 108) to (Q, N)."""
    squares = (query**2).sum(1)[:, None] + (references**2).sum(1)[None, :] - 2 * query @ references.T
    found: Floats = 1 - np.sqrt(np.maximum(squares, 0)) / np.float32(np.sqrt(REP0ST))
    return found
