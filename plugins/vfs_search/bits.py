"""grad512 as 256 bits: a coarse first look over very many vectors. Pure numpy.

A bit says whether a bin is more than its neighbours are: the vector is centred by cell and by orientation,
and turned by a fixed Hadamard transform with random signs, so that each bit sees all bins. The angle of two
vectors then shows in the number of bits that differ; the best by bits are compared as they are.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

BITS = 256
WORDS = BITS // 64
#: Rows worked on at a time.
_CHUNK = 16384
_EVERY_OTHER = np.uint32(0x00FF00FF)


@cache
def _turn() -> NDArray[np.float32]:
    """512 x 256: half of the columns of a Hadamard matrix, rows with random signs (always the same)."""
    found = np.ones((1, 1), np.float32)
    while len(found) < 512:
        found = np.block([[found, found], [found, -found]])
    signs = np.random.default_rng(512).choice(np.array([-1, 1], np.float32), 512)
    chosen = np.random.default_rng(256).permutation(512)[:BITS]
    turned: NDArray[np.float32] = signs[:, None] * found[:, chosen]
    return turned


def of(vectors: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.uint64]:
    """(N, 4): the bits of vectors, stored or not."""
    found = np.empty((len(vectors), WORDS), np.uint64)
    for at in range(0, len(vectors), _CHUNK):
        part = vectors[at : at + _CHUNK].astype(np.float32)
        cells = part.reshape(len(part), 64, 8)
        # What all pictures share (more upright and level edges than slanted ones, busy middles) tells
        # nothing.
        centred = cells - cells.mean(axis=1, keepdims=True) - cells.mean(axis=2, keepdims=True)
        positive = centred.reshape(len(part), 512) @ _turn() > 0
        found[at : at + len(part)] = np.packbits(positive, axis=1, bitorder="little").view(np.uint64)
    return found


def distances(query: NDArray[np.uint64], references: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """How many bits differ: (4,) against (N, 4)."""
    found = np.empty(len(references), np.uint16)
    for at in range(0, len(references), _CHUNK):
        # The four counts of a row lie in 32 bits: adding halves of these takes a third of the time of a sum.
        four = np.bitwise_count(references[at : at + _CHUNK] ^ query).view(np.uint32)[:, 0]
        two = (four & _EVERY_OTHER) + ((four >> 8) & _EVERY_OTHER)
        found[at : at + _CHUNK] = two + (two >> 16)
    return found
