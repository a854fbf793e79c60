"""An approximate look over very many vectors by faiss, where it is installed (`pip install 'reelfs[fast]'`).

Vectors are sorted into lists by the nearest of some hundred centres, as an IVF index has it, and a question
looks through the few lists that are nearest to it. `reelfs index` makes the file beside the columns; it is
of their first rows, which never change, so that it stays good while videos come and go: rows behind it are
looked through one by one, and what it finds is compared as exactly as without it.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAME = "lists.faiss"
#: Fewer rows are looked through one by one as fast; of more the lists would not fit into memory when made.
LEAST, MOST = 100_000, 4_000_000
#: Lists at most; how many of them a question looks through; vectors a list from which centres are made.
_LISTS, _PROBED, _SAMPLED = 1024, 24, 40
_ROUNDS = 6
#: Rows added at a time: 128 MiB as floats.
_ADDED = 65536
#: Made anew when so many of the rows are not in it.
_STALE = 0.2
#: What a stored vector of length 1 is, near enough: faiss compares bytes with bytes.
_LENGTH = np.float32(510)


def installed() -> bool:
    """Whether faiss can be imported."""
    return find_spec("faiss") is not None


def _faiss() -> Any:
    """The module: late, as it takes a tenth of a second, and as most do not have it."""
    return import_module("faiss")


class Lists:
    """The file, mapped. rows: the first that many rows of the columns are in it."""

    def __init__(self, path: Path) -> None:
        faiss = _faiss()

        self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        self.rows = int(self._index.ntotal)

    def candidates(self, queries: NDArray[np.float32], alive: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
        """(queries, k) rows that are alive, nearly always the nearest; -1 where there are fewer."""
        faiss = _faiss()

        there = np.packbits(alive[: self.rows], bitorder="little")
        wanted = faiss.SearchParametersIVF(sel=faiss.IDSelectorBitmap(there), nprobe=_PROBED)
        _, rows = self._index.search(queries * _LENGTH, min(k, max(1, self.rows)), params=wanted)
        found: NDArray[np.int64] = rows
        return found


def opened(folder: Path) -> Lists | None:
    """The lists of these columns; None where there are none, or none that can be read."""
    path = folder / NAME
    if not path.exists() or not installed():
        return None
    try:
        return Lists(path)
    except RuntimeError:  # faiss has no other
        return None


def make(vectors: NDArray[np.uint8], folder: Path) -> bool:
    """Write the lists of all rows, where that is worth it and not done; whether it was done now."""
    rows = len(vectors)
    if not installed() or not LEAST <= rows <= MOST:
        return False
    known = opened(folder)
    if known is not None and rows * (1 - _STALE) <= known.rows <= rows:
        return False
    faiss = _faiss()
    width, lists = vectors.shape[1], min(_LISTS, 2 * round(rows**0.5))
    # Distances, not cosines: all vectors lie on one side of the origin, and their cosines with centres hardly
    # differ; of a million that look alike only half of the nearest were found by these.
    made = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatL2(width), width, lists, faiss.ScalarQuantizer.QT_8bit_direct, faiss.METRIC_L2, False
    )
    made.cp.niter, made.cp.max_points_per_centroid = _ROUNDS, _SAMPLED
    chosen = np.random.default_rng(lists).choice(rows, min(rows, _SAMPLED * lists), replace=False)
    made.train(vectors[np.sort(chosen)].astype(np.float32))
    for at in range(0, rows, _ADDED):
        made.add(vectors[at : at + _ADDED].astype(np.float32))
    part = folder / f".{NAME}.{os.getpid()}.part"
    faiss.write_index(made, str(part))
    os.replace(part, folder / NAME)
    return True
