"""Sound as landmarks: pairs of peaks in time and frequency, which survive encoding and noise. Pure numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

#: Samples a second (mono), samples of a frame and between frames: 16 ms.
RATE, FRAME, HOP = 8000, 1024, 128
#: Bins of the spectrum that are used, and a peak's surroundings: frames, bins.
_LOW, _HIGH = 8, 400
_TALL, _WIDE = 15, 25
_PERCENTILE = 85
#: Following peaks a peak is paired with, and how far they may be: frames, bins.
_FAN, _NEAREST, _FARTHEST, _APART = 6, 2, 64, 120

#: (hash, frame) rows.
Landmarks = NDArray[np.uint32]


def landmarks(samples: NDArray[Any], first: int = 0) -> Landmarks:
    """(N, 2): hash and time of each pair, of mono sound at RATE. first: the frame the sound begins with."""
    if len(samples) < FRAME + HOP * _NEAREST:
        return np.empty((0, 2), np.uint32)
    frames = sliding_window_view(samples.astype(np.float32), FRAME)[::HOP]
    window = np.hanning(FRAME).astype(np.float32)
    # A few thousand frames at a time: a spectrum takes as much memory as all its frames.
    parts = [
        np.abs(np.fft.rfft(frames[n : n + 2048] * window, axis=1)[:, _LOW:_HIGH])
        for n in range(0, len(frames), 2048)
    ]
    loud = np.log1p(np.concatenate(parts)).astype(np.float32)
    loud -= loud.mean(axis=0)
    times, bins = _peaks(loud)
    if len(times) < 2:
        return np.empty((0, 2), np.uint32)
    found = []
    for step in range(1, _FAN * 4 + 1):
        apart = times[step:] - times[:-step]
        height = bins[step:] - bins[:-step]
        found.append((np.arange(len(apart)), step, apart, height))
    return _pairs(times, bins, found, first)


def _peaks(loud: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Times and bins of local maxima above most of the rest, in order of time."""
    padded = np.pad(loud, ((_TALL // 2, _TALL // 2), (_WIDE // 2, _WIDE // 2)), constant_values=-np.inf)
    highest = sliding_window_view(padded, _TALL, axis=0).max(axis=-1)
    highest = sliding_window_view(highest, _WIDE, axis=1).max(axis=-1)
    times, bins = np.nonzero((loud == highest) & (loud > np.percentile(loud, _PERCENTILE)))
    return times, bins


def _pairs(times: NDArray[Any], bins: NDArray[Any], found: list[Any], first: int) -> Landmarks:
    """Up to _FAN pairs of each peak with those that follow it, nearest first."""
    taken = np.zeros(len(times), np.int64)
    rows = []
    for index, step, apart, height in found:
        good = (apart >= _NEAREST) & (apart < _FARTHEST) & (np.abs(height) < _APART)
        good &= taken[: len(index)] < _FAN
        taken[: len(index)] += good
        here = index[good]
        code = (bins[here] // 2) << 20 | (bins[here + step] // 2) << 8 | apart[good]
        rows.append(np.stack([code, times[here] + first], axis=1))
    return np.concatenate(rows).astype(np.uint32)


def votes(query: Landmarks, reference: Landmarks) -> tuple[int, float, int]:
    """(votes, offset in seconds, votes of the runner-up more than half a second away) of the best alignment.

    t_reference = t_query + offset. reference: sorted by hash.
    """
    if not len(query) or not len(reference):
        return 0, 0.0, 0
    codes, times = np.ascontiguousarray(reference[:, 0]), reference[:, 1].astype(np.int64)
    low, high = np.searchsorted(codes, query[:, 0], "left"), np.searchsorted(codes, query[:, 0], "right")
    count = high - low
    if not count.any():
        return 0, 0.0, 0
    asked = np.repeat(query[:, 1].astype(np.int64), count)
    starts = np.repeat(low - np.concatenate([[0], np.cumsum(count)[:-1]]), count)
    offsets = (times[np.arange(count.sum()) + starts] - asked) // 2
    bins, sizes = np.unique(offsets, return_counts=True)
    best = int(sizes.argmax())
    away = np.abs(bins - bins[best]) * 2 * HOP / RATE > 0.5
    runner = int(sizes[away].max()) if away.any() else 0
    return int(sizes[best]), (float(bins[best]) * 2 + 1) * HOP / RATE, runner
