"""Nearest vectors: exact over memory-mapped pages, by bits first where there are very many.

This one needs numpy alone. With faiss (see `fast`) questions look through lists instead, and the hook
`vfs_vector_index` lets other engines in (see `vfs.VectorIndex`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vfs_search import bits
from vfs_search.fast import Lists

Floats = NDArray[np.float32]

#: Rows compared at a time: their vectors as floats stay within 16 MiB.
_CHUNK = 8192
#: From so many rows on, up to so many questions at a time are looked for by bits first.
COARSE_ROWS, COARSE_QUERIES = 100_000, 8
#: Rows that the coarse look leaves for each question: of a million, the 2,000 nearest by bits.
COARSE_KEPT = 2000
#: faiss compares bytes; of so many times the rows that are wanted, the nearest are taken as they are.
PROPOSED = 3


@dataclass(frozen=True, eq=False)
class Nearest:
    """(questions, k) rows and their cosines, best first; row -1 where there are fewer."""

    rows: NDArray[np.int64]
    scores: Floats


def exact(
    vectors: NDArray[np.uint8],
    norms: Floats,
    alive: NDArray[np.bool_],
    queries: Floats,
    k: int,
    least: float = 0.0,
) -> Nearest:
    """The k nearest of all rows that are alive, for each of the unit-length queries."""
    kept: list[list[tuple[NDArray[Any], NDArray[Any]]]] = [[] for _ in queries]
    count = np.zeros(len(queries), np.int64)
    threshold = np.full(len(queries), least, np.float32)
    for at in range(0, len(vectors), _CHUNK):
        rows = slice(at, at + _CHUNK)
        similar = queries @ vectors[rows].astype(np.float32).T
        similar *= np.where(alive[rows], norms[rows], -1)[None, :]
        for number, passing in enumerate(similar >= threshold[:, None]):
            found = np.flatnonzero(passing)
            if not len(found):
                continue
            kept[number].append((found + at, similar[number, found]))
            count[number] += len(found)
            if count[number] > 4 * k:
                kept[number] = [_best(kept[number], k)]
                count[number] = k
                threshold[number] = max(least, kept[number][0][1][-1])
    return _nearest([_best(found, k) for found in kept], k)


def coarse(
    vectors: NDArray[np.uint8],
    norms: Floats,
    coded: NDArray[np.uint64],
    alive: NDArray[np.bool_],
    queries: Floats,
    k: int,
    least: float = 0.0,
) -> Nearest:
    """The k nearest of those that are nearest by bits: nearly always the same, read a sixteenth as much."""
    asked = bits.of(queries * 255)
    found = []
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        parts = max(1, pool._max_workers)
        edges = np.linspace(0, len(coded), parts + 1).astype(int)
        for query, wanted in zip(queries, asked, strict=True):
            work = [
                pool.submit(_nearby, coded, alive, wanted, int(low), int(high))
                for low, high in pairwise(edges)
            ]
            rows = np.sort(np.concatenate([job.result() for job in work]))
            similar = (vectors[rows].astype(np.float32) @ query) * norms[rows]
            good = similar >= least
            found.append(_best([(rows[good], similar[good])], k))
    return _nearest(found, k)


def _nearby(
    coded: NDArray[np.uint64], alive: NDArray[np.bool_], query: NDArray[np.uint64], low: int, high: int
) -> NDArray[np.int64]:
    """The rows of [low, high) with the fewest bits that differ; COARSE_KEPT of them, with ties."""
    apart = bits.distances(query, coded[low:high])
    apart[~alive[low:high]] = bits.BITS + 1
    counts = np.bincount(apart, minlength=bits.BITS + 2)[: bits.BITS + 1].cumsum()
    limit = int(np.searchsorted(counts, min(COARSE_KEPT, counts[-1]))) if counts[-1] else -1
    found: NDArray[np.int64] = np.flatnonzero(apart <= limit)[: 2 * COARSE_KEPT] + low
    return found


def nearest(
    columns: Callable[[str], NDArray[Any]],
    alive: NDArray[np.bool_],
    queries: Floats,
    k: int,
    least: float = 0.0,
    lists: Lists | None = None,
) -> Nearest:
    """The k nearest, in the way that fits their number. columns: gives `grad512`, `norms` and `bits`."""
    if lists is not None:
        return listed(columns("grad512"), columns("norms"), alive, queries, k, least, lists)
    if len(alive) >= COARSE_ROWS and len(queries) <= COARSE_QUERIES:
        return coarse(columns("grad512"), columns("norms"), columns("bits"), alive, queries, k, least)
    return exact(columns("grad512"), columns("norms"), alive, queries, k, least)


def listed(
    vectors: NDArray[np.uint8],
    norms: Floats,
    alive: NDArray[np.bool_],
    queries: Floats,
    k: int,
    least: float,
    lists: Lists,
) -> Nearest:
    """The k nearest of those that faiss proposes, and of the rows that are not in its lists."""
    behind = exact(vectors[lists.rows :], norms[lists.rows :], alive[lists.rows :], queries, k, least)
    proposed = lists.candidates(queries, alive, PROPOSED * k)
    found = []
    for query, rows, later, scores in zip(queries, proposed, behind.rows, behind.scores, strict=True):
        rows = np.sort(rows[rows >= 0])
        similar = (vectors[rows].astype(np.float32) @ query) * norms[rows]
        good, there = similar >= least, later >= 0
        both = [(rows[good], similar[good]), (later[there] + lists.rows, scores[there])]
        found.append(_best(both, k))
    return _nearest(found, k)


def _best(found: list[tuple[NDArray[Any], NDArray[Any]]], k: int) -> tuple[NDArray[Any], NDArray[Any]]:
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    rows, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if len(rows) > k:
        chosen = np.argpartition(-scores, k - 1)[:k]
        rows, scores = rows[chosen], scores[chosen]
    order = np.argsort(-scores, kind="stable")
    return rows[order], scores[order]


def _nearest(found: list[tuple[NDArray[Any], NDArray[Any]]], k: int) -> Nearest:
    rows, scores = np.full((len(found), k), -1, np.int64), np.zeros((len(found), k), np.float32)
    for number, (there, similar) in enumerate(found):
        rows[number, : len(there)], scores[number, : len(there)] = there[:k], similar[:k]
    return Nearest(rows, scores)
