"""Peaks of sound, and a picture of them. Runs in worker processes; nothing here is called in the daemon."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
from numpy.typing import NDArray

from vfs_mp4 import soundwork
from vfs_mp4.soundwork import Job

#: Pixels from top to bottom; full scale is the whole height.
HEIGHT = 240
#: Colours (red, green, blue, opacity) of peaks, of the mean level (root of the mean square) and of silence.
_PEAK, _LEVEL, _NONE = (66, 133, 244, 255), (24, 78, 168, 255), (0, 0, 0, 0)


def measure(job: Job, data: bytes, bounds: tuple[int, ...]) -> bytes:
    """Least, greatest and mean level between each two of `bounds` (samples of the job), as rows of int16.

    Channels are taken together. Raises Unsupported, Damaged.
    """
    samples = soundwork.decoded(job, data)
    rows = [_column(samples[low:high].reshape(-1)) for low, high in itertools.pairwise(bounds)]
    return np.array(rows, np.int16).tobytes()


def _column(samples: NDArray[np.int16]) -> tuple[int, int, int]:
    values = samples.astype(np.float32)
    level = math.sqrt(float(np.dot(values, values)) / len(values))
    return int(samples.min()), int(samples.max()), min(int(level), 32767)


def draw(measured: bytes) -> bytes:
    """A PNG, one column for each row that `measure` gave."""
    from PIL import Image

    low, high, level = np.frombuffer(measured, np.int16).reshape(-1, 3).T.astype(np.int32)
    # The middle of each line of pixels, from the top; a silent column keeps one line.
    line = 32768 * (1 - (2 * np.arange(HEIGHT)[:, None] + 1) / HEIGHT)
    half = 32768 / HEIGHT
    pixels: NDArray[np.uint8] = np.full((HEIGHT, len(low), 4), _NONE, np.uint8)
    pixels[(line >= low - half) & (line <= high + half)] = _PEAK
    pixels[np.abs(line) <= np.minimum(level, np.maximum(high, -low))] = _LEVEL
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=6)
    return out.getvalue()
