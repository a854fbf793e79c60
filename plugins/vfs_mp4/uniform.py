"""Uncompressed sound: a sample of a file is one instant of it; a row of our tables is a run of them. Pure.

So a game of two hours has 340,000 rows, not 350 million; what is written has one instant a sample again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vfs import MediaError
from vfs_mp4 import soundformat
from vfs_mp4.model import Samples, Ticks

#: Most instants in a row: as in a packet of AAC.
RUN = 1024


def unit(codec: str, stsd: bytes, constant: int) -> int:
    """Bytes of one instant where samples of `constant` bytes are uncompressed sound, else 0.

    Old QuickTime files say 1 whatever the size (QuickTime File Format, sound sample descriptions).
    """
    try:
        found = soundformat.read(codec, stsd) if codec in soundformat.UNCOMPRESSED else None
    except MediaError:
        found = None
    if found is None or found.pcm is None:
        return 0
    size = found.pcm.width * found.channels
    return size if constant in (1, size) else 0


def samples(starts: Ticks, held: Ticks, kinds: NDArray[np.int32], unit: int, ticks: int) -> Samples:
    """Rows of chunks that begin at offsets `starts` and hold `held` instants of `ticks` ticks each."""
    pieces = -(-held // RUN)
    chunk = np.repeat(np.arange(len(held)), pieces)
    number = np.arange(len(chunk)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    count = np.minimum(held[chunk] - number * RUN, RUN)
    dur = count * ticks
    dts = np.cumsum(dur) - dur
    offset = starts[chunk] + number * RUN * unit
    return Samples(dts, dur, dts, count * unit, offset, np.ones(len(chunk), np.bool_), kinds[chunk])


def rows_of(held: Ticks) -> int:
    """How many rows there will be."""
    return int((-(-held // RUN)).sum())
