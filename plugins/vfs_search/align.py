"""From similar pictures to the stretch of a video that shows the same: votes for an offset. Pure numpy.

Each picture of the question votes for the offsets at which it would have its similar pictures; where many
agree, the question is. One picture never decides: pictures of one match look like one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: A cosine from which on a picture votes, the width of a bin of offsets (seconds), bins that are one place.
VOTE, STEP, APART = 0.80, 0.25, 8
#: Speeds of the question against the reference: as it is, in slow motion, fast.
SPEEDS = (1.0, 0.5, 2.0)
#: Another speed must do so much better.
_SPEED_MARGIN = 1.25


@dataclass(frozen=True, slots=True)
class Vote:
    """Votes as columns: picture of the question, its time, video, time there, cosine, row of the index."""

    picture: NDArray[np.int64]
    asked: NDArray[np.float64]
    video: NDArray[np.int64]
    time: NDArray[np.float64]
    score: NDArray[np.float64]
    row: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Aligned:
    """A stretch [start, end) of a video that shows the question (or part of it).

    score: votes over pictures. margin: score over that of the best other place. coverage: share of the
    pictures that voted for it. speed: seconds of the reference for one of the question. row: the best single
    row.
    """

    video: int
    start: float
    end: float
    offset: float
    score: float
    margin: float
    votes: int
    coverage: float
    speed: float
    row: int
    similarity: float


def align(votes: Vote, pictures: int, duration: float, most: int = 20) -> list[Aligned]:
    """The best places, best first, none near another of the same video."""
    if not len(votes.row) or not pictures:
        return []
    found: list[Aligned] = []
    for speed in SPEEDS if pictures >= 6 else SPEEDS[:1]:
        found += _at_speed(votes, pictures, duration, speed, most)
    penalty = {speed: 1.0 if speed == 1.0 else _SPEED_MARGIN for speed in SPEEDS}
    found.sort(key=lambda one: -one.score / penalty[one.speed])
    kept: list[Aligned] = []
    for one in found:
        if not any(one.video == other.video and _near(one, other) for other in kept):
            kept.append(one)
    return [_with_margin(one, kept) for one in kept[:most]]


def _near(one: Aligned, other: Aligned) -> bool:
    overlap = min(one.end, other.end) - max(one.start, other.start)
    return overlap > 0 or abs(one.offset - other.offset) <= APART * STEP


def _with_margin(one: Aligned, all_found: list[Aligned]) -> Aligned:
    others = [other.score for other in all_found if other is not one]
    best = max(others, default=0.0)
    values: dict[str, Any] = {name: getattr(one, name) for name in Aligned.__slots__}
    values["margin"] = one.score / best if best > 0 else 99.0
    return Aligned(**values)


def _at_speed(votes: Vote, pictures: int, duration: float, speed: float, most: int) -> list[Aligned]:
    step = np.rint((votes.time - speed * votes.asked) / STEP).astype(np.int64)
    weight = votes.score - VOTE
    # A vote counts by half in the bins beside its own.
    bins = np.concatenate([step, step - 1, step + 1])
    weights = np.concatenate([weight, weight / 2, weight / 2])
    picture, video = np.tile(votes.picture, 3), np.tile(votes.video, 3)
    which = np.tile(np.arange(len(step)), 3)
    key = (video << 32) + bins + (1 << 30)
    # Only the best vote of each picture for a bin.
    order = np.lexsort((-weights, picture, key))
    key, picture, weights, which = key[order], picture[order], weights[order], which[order]
    first = np.ones(len(key), np.bool_)
    first[1:] = (key[1:] != key[:-1]) | (picture[1:] != picture[:-1])
    key, weights, which = key[first], weights[first], which[first]
    places, begin, count = np.unique(key, return_index=True, return_counts=True)
    sums = np.add.reduceat(weights, begin)
    found: list[Aligned] = []
    taken: list[tuple[int, int]] = []
    for place in np.argsort(-sums)[: 50 * most]:
        where, offset = int(places[place] >> 32), int(places[place] & 0xFFFFFFFF) - (1 << 30)
        if any(where == video and abs(offset - other) <= APART for video, other in taken):
            continue
        taken.append((where, offset))
        rows = which[begin[place] : begin[place] + count[place]]
        found.append(_aligned(votes, rows, where, float(sums[place]) / pictures, pictures, duration, speed))
        if len(found) >= most:
            break
    return found


def _aligned(
    votes: Vote, rows: NDArray[Any], video: int, score: float, pictures: int, duration: float, speed: float
) -> Aligned:
    """The offset is the weighted mean of what voted; the stretch ends where nothing votes any more."""
    weight = votes.score[rows] - VOTE
    offsets = votes.time[rows] - speed * votes.asked[rows]
    offset = float(np.average(offsets, weights=np.maximum(weight, 1e-6)))
    asked = np.sort(votes.asked[rows])
    between = duration / max(pictures, 1)
    first, last = float(asked[0]), float(asked[-1])
    # Within two pictures of its ends, the question is there whole.
    first = 0.0 if first <= 2.1 * between else first - between / 2
    last = duration if duration - last <= 3.1 * between else last + between / 2
    best = int(rows[int(votes.score[rows].argmax())])
    return Aligned(
        video=video,
        start=max(0.0, offset + speed * first),
        end=max(0.0, offset + speed * last),
        offset=offset,
        score=score,
        margin=0.0,
        votes=len(rows),
        coverage=len(rows) / pictures,
        speed=speed,
        row=int(votes.row[best]),
        similarity=float(votes.score[best]),
    )
