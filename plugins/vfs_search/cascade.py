"""Ways of looking for a stretch of video, the surest and cheapest first. Pure: numbers in, stretches out.

coded: the same coded pictures, where something was cut without encoding. sound: landmarks of the sound,
whatever became of the pictures. visual: similar pictures that agree on an offset. (provenance, what the
database says was cut from where, needs no index: see `origins`.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vfs import Vectors
from vfs_search import engine, features, hashes, landmarks
from vfs_search.align import VOTE, Aligned, Vote, align
from vfs_search.catalog import Snapshot
from vfs_search.sampling import Question

#: What is sure: coded pictures at one offset; votes of sound, and how many times those of another offset.
LEAST_CODED, LEAST_SOUND, SOUND_MARGIN = 3, 12, 2.0
#: References a picture may vote for.
CANDIDATES = 20
#: Places that are looked at together.
PLACES = 20
#: A visual score counts by how far it is above what videos that do not show the question score: as many
#: others as these may show it, too. Where there are no more videos, the floor stands for them.
COPIES, FLOOR, SOFT = 3, 0.035, 0.02
#: A further place in a video is shown if it scores so much of the best one there: a replay does, pictures
#: of one match that look alike do not.
ECHO = 0.5
#: What a visual match is worth: by the logarithm of that quotient, and by its contrast, in a logistic curve.
#: Fitted to the tuning part of tests/bench/search_eval.py alone. The last is as fitted less 0.6: of 126 clips
#: that are not in the index 5 were taken for true there, all of one video, and 90 % of those that are.
BY_QUOTIENT, BY_CONTRAST, BASE = 1.6, -7.4, 3.8
#: Contrast: pictures within so many seconds of where they should be, against those of the same video that are
#: so far away at least, and at most. Where there are none: what makes a quotient of 1.5 even.
HERE, ELSEWHERE, ROUND, UNKNOWN = 0.5, 2.0, 20.0, 0.6


@dataclass(frozen=True, slots=True)
class Stretch:
    """[start, end) seconds of an indexed video (a number of the snapshot), found in one way."""

    video: int
    start: float
    end: float
    score: float
    tier: str
    offset: float
    matched: float
    details: dict[str, str] = field(default_factory=dict)


def coded(snapshot: Snapshot, question: Question) -> list[Stretch]:
    """Where the same coded pictures are, in the same rhythm."""
    asked, first = np.unique(question.coded, return_index=True)
    times = question.coded_times[first]
    found = []
    for number, entry in enumerate(snapshot.entries):
        known = snapshot.of(entry, "coded")
        votes, offset = hashes.votes(asked, times, known, snapshot.of(entry, "coded_times"))
        if votes >= min(LEAST_CODED, max(1, len(asked))):
            there = np.isin(asked, known)
            begin, end = float(times[there].min()), float(times[there].max())
            step = question.duration / max(len(question.coded), 1)
            details = {"votes": str(votes), "coverage": f"{votes / len(asked):.3f}"}
            score = 0.9 + 0.1 * votes / len(asked)
            found.append(
                Stretch(
                    number,
                    offset + begin,
                    offset + end + step,
                    score,
                    "coded",
                    offset,
                    offset + begin,
                    details,
                )
            )
    return found


def sound(snapshot: Snapshot, question: Question) -> list[Stretch]:
    """Where the same sound is."""
    found = []
    for number, entry in enumerate(snapshot.entries):
        votes, offset, runner = landmarks.votes(question.sound, snapshot.of(entry, "sound"))
        if votes < LEAST_SOUND or votes < SOUND_MARGIN * runner:
            continue
        start, end = max(0.0, offset), offset + question.duration
        details = {"votes": str(votes), "margin": f"{votes / max(runner, 1):.2f}"}
        score = 0.5 + 0.5 * (1 - LEAST_SOUND / (votes + 1e-9) / 2)
        found.append(Stretch(number, start, end, score, "sound", offset, (start + end) / 2, details))
    return found


def _alive(snapshot: Snapshot, skip: Iterable[tuple[int, float, float]]) -> NDArray[np.bool_]:
    """Rows of videos that are there, but for stretches that are not to be found."""
    alive = snapshot.owners >= 0
    times = snapshot.columns["times"]
    for video, start, end in skip:
        first, count = snapshot.entries[video].ranges.get("grad512", (0, 0))
        rows = slice(first, first + count)
        alive[rows] &= (times[rows] < start) | (times[rows] >= end)
    return alive


def _nearest(
    snapshot: Snapshot, alive: NDArray[np.bool_], queries: features.Floats, k: int, least: float = 0.0
) -> engine.Nearest:
    """By the index of another plugin where there is one."""
    if snapshot.engine is None:
        return engine.nearest(snapshot.columns.__getitem__, alive, queries, k, least, snapshot.lists)
    vectors = Vectors(snapshot.generation, snapshot.columns["grad512"], alive)
    return engine.Nearest(*snapshot.engine.nearest(vectors, queries, k, least))


def visual(
    snapshot: Snapshot, question: Question, skip: Iterable[tuple[int, float, float]] = ()
) -> list[Stretch]:
    """Where similar pictures follow one another as they do here. skip: stretches that are not looked at."""
    times = snapshot.columns["times"]
    alive = _alive(snapshot, skip)
    pictures, variants = question.vectors.shape[:2]
    queries = question.vectors.reshape(pictures * variants, features.DIMENSIONS)
    near = _nearest(snapshot, alive, queries, CANDIDATES, VOTE)
    asked, place = np.nonzero(near.rows >= 0)
    rows = near.rows[asked, place]
    picture = asked // variants
    votes = Vote(
        picture=picture,
        asked=question.times[picture],
        video=snapshot.owners[rows].astype(np.int64),
        time=times[rows].astype(np.float64),
        score=near.scores[asked, place].astype(np.float64),
        row=rows,
    )
    found = []
    places = align(votes, pictures, question.duration, PLACES)
    usual = _usual(places, len(snapshot.entries))
    best_of = _best_of(places)
    for one in places:
        if one.score < ECHO * best_of[one.video]:
            continue
        best = np.flatnonzero((votes.row == one.row) & np.isclose(votes.score, one.similarity))
        variant = question.names[int(asked[best[0]] % variants)] if len(best) else ""
        window = features.window_names(12)[int(snapshot.columns["windows"][one.row])]
        against = contrast(snapshot, question, one, alive)
        details = {
            "votes": str(one.votes),
            "coverage": f"{one.coverage:.3f}",
            "contrast": f"{against:.3f}",
            "margin": f"{one.margin:.2f}",
            "similarity": f"{one.similarity:.3f}",
            "alignment": f"{one.score:.4f}",
            "speed": f"{one.speed:g}",
            "window": window,
            "variant": variant,
            "mirrored": "yes" if "mirrored" in variant else "no",
        }
        matched = float(times[one.row])
        found.append(
            Stretch(
                one.video,
                one.start,
                one.end,
                confidence(one.score, usual, against),
                "visual",
                one.offset,
                matched,
                details,
            )
        )
    return sorted(found, key=lambda one: -one.score)


def _best_of(places: Iterable[Aligned]) -> dict[int, float]:
    """The best score in each video."""
    best: dict[int, float] = {}
    for one in places:
        best[one.video] = max(best.get(one.video, 0.0), one.score)
    return best


def _usual(places: Sequence[Aligned], videos: int) -> float:
    """What a video scores that does not show the question. videos: how many there are."""
    scores = sorted(_best_of(places).values(), reverse=True)
    if len(scores) > COPIES:
        return scores[COPIES]
    # Fewer videos have so many places among the best that the others have no more than the last of these.
    if len(places) >= PLACES:
        return places[-1].score
    return 0.0 if videos > COPIES else FLOOR


def contrast(snapshot: Snapshot, question: Question, one: Aligned, alive: NDArray[np.bool_]) -> float:
    """How unlike the pictures are where they should be, over how unlike those elsewhere in the video are.

    Near 0 where the moment is there; near 1 where a camera stands still before a pitch like this one, and
    the question is as like any other moment.
    """
    first, count = snapshot.entries[one.video].ranges.get("grad512", (0, 0))
    there = snapshot.columns["times"][first : first + count].astype(np.float64)
    end = one.offset + one.speed * question.duration
    near = (there > one.offset - ROUND) & (there < end + ROUND) & alive[first : first + count]
    rows = np.flatnonzero(near)
    vectors = snapshot.columns["grad512"][first + rows].astype(np.float32)
    vectors *= snapshot.columns["norms"][first + rows][:, None]
    pictures, variants = question.vectors.shape[:2]
    queries = question.vectors.reshape(pictures * variants, features.DIMENSIONS)
    similar = (queries @ vectors.T).reshape(pictures, variants, len(rows)).max(axis=1)
    apart = np.abs(there[rows][None, :] - one.speed * question.times[:, None] - one.offset)
    here = np.where(apart <= HERE, similar, -1).max(axis=1, initial=-1)
    elsewhere = np.where(apart >= ELSEWHERE, similar, -1).max(axis=1, initial=-1)
    both = (here > 0) & (elsewhere > 0)
    if not both.any():
        return UNKNOWN
    return float((1 - here[both]).mean() / max(1e-6, float((1 - elsewhere[both]).mean())))


def confidence(score: float, usual: float, against: float) -> float:
    """How likely a visual match is the right one, 0 to 1: a logistic curve through what was measured."""
    quotient = max(1e-6, score / (usual + SOFT))
    worth = BY_QUOTIENT * math.log(quotient) + BY_CONTRAST * against + BASE
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, worth))))


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of an indexed video that is like the one that is looked for."""

    video: int
    time: float
    score: float
    details: dict[str, str]


#: Pictures of one video this near to each other (seconds) are one result.
TOGETHER = 2.0


def pictures(
    snapshot: Snapshot,
    vectors: features.Floats,
    names: list[str],
    limit: int,
    skip: Iterable[tuple[int, float, float]] = (),
) -> list[Picture]:
    """The most similar pictures, one for each place. vectors: (variants, 512) of one picture."""
    times = snapshot.columns["times"]
    alive = _alive(snapshot, skip)
    near = _nearest(snapshot, alive, vectors, 20 * max(limit, 10))
    asked, place = np.nonzero(near.rows >= 0)
    rows, scores = near.rows[asked, place], near.scores[asked, place]
    found: list[Picture] = []
    for number in np.argsort(-scores, kind="stable"):
        row = int(rows[number])
        video, time = int(snapshot.owners[row]), float(times[row])
        if any(one.video == video and abs(one.time - time) <= TOGETHER for one in found):
            continue
        variant = names[int(asked[number])]
        details = {
            "similarity": f"{scores[number]:.4f}",
            "window": features.window_names(12)[int(snapshot.columns["windows"][row])],
            "variant": variant,
            "mirrored": "yes" if "mirrored" in variant else "no",
        }
        found.append(Picture(video, time, float(scores[number]), details))
        if len(found) >= limit:
            break
    return found


def by_descriptor(
    snapshot: Snapshot,
    name: str,
    question: Question,
    *,
    least: float,
    matches: int,
    skip: Iterable[tuple[int, float, float]] = (),
) -> list[Stretch]:
    """By another descriptor alone, ordered as rep0st's video plan says: by matches, then how they align.

    least: score from which on two pictures match. matches: pictures that must, fewer only if there are fewer.
    Raises KeyError where the library is not indexed with it.
    """
    (column,) = [known for known in snapshot.columns if known.startswith(f"{name}.float32.")]
    references, asked = snapshot.columns[column], question.extra[name]
    times = snapshot.columns[f"{name}.times.float32.1"][:, 0]
    owners = snapshot.owners_of(column)
    alive = owners >= 0
    for video, start, end in skip:
        alive &= ~((owners == video) & (times >= start) & (times < end))
    scores = features.rep0st_score(asked, references) if name == "rep0st108" else _cosines(asked, references)
    scores = np.where(alive[None, :], scores, -1)
    found = []
    for number in np.unique(owners[alive]):
        mine = np.flatnonzero(owners == number)
        best = scores[:, mine].max(axis=1)
        matching = best >= least
        if int(matching.sum()) < min(matches, len(asked)):
            continue
        there = times[mine[scores[:, mine].argmax(axis=1)]]
        offsets = there[matching] - question.times[matching]
        offset = float(np.median(offsets))
        aligned = float((np.abs(offsets - offset) < 1.0).mean())
        details = {"votes": str(int(matching.sum())), "alignment": f"{aligned:.3f}", "descriptor": name}
        # Matches first, then alignment, then how alike they are: one number, from 0 to 1.
        score = float(best[matching].mean())
        start = max(0.0, offset)
        first = float(there[matching][0])
        found.append(
            Stretch(int(number), start, offset + question.duration, score, "visual", offset, first, details)
        )
    return sorted(
        found, key=lambda one: (-int(one.details["votes"]), -float(one.details["alignment"]), -one.score)
    )


def _cosines(asked: features.Floats, references: features.Floats) -> features.Floats:
    lengths = np.linalg.norm(asked, axis=1)[:, None] * np.linalg.norm(references, axis=1)[None, :]
    found: features.Floats = asked @ references.T / np.maximum(lengths, 1e-9)
    return found
