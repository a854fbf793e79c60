"""Clips as questions, what each way of looking says of them, and how often that is true."""

from __future__ import annotations

import importlib
import pickle
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import xxhash
from numpy.typing import NDArray
from vfs_search import cascade, features, hashes, landmarks, sampling
from vfs_search.align import VOTE, Vote, align
from vfs_search.bypicture import SURE
from vfs_search.catalog import Snapshot
from vfs_search.sampling import Plan, Question

from tests.bench import search_library
from tests.bench.search_library import CLIPS, Video, until

try:
    pdqhash: Any = importlib.import_module("pdqhash")
except ImportError:
    pdqhash = None

TIERS = ("coded", "sound", "visual", "cascade")
PEERS = ("rep0st108", "PDQ")
#: A first answer: video, start, end, score.
Found = tuple[int, float, float, float]


def frames_of(path: Path, times: Iterable[float]) -> dict[float, Any]:
    """The pictures shown at times, as RGB."""
    wanted = sorted(times)
    found: dict[float, Any] = {}
    with av.open(str(path)) as container:
        zero = (container.start_time or 0) / 1_000_000
        last = None
        for frame in container.decode(video=0):
            if frame.pts is None or frame.time_base is None:
                continue
            at = float(frame.pts * frame.time_base) - zero
            while wanted and at > wanted[0] and last is not None:
                found[wanted.pop(0)] = last.to_ndarray(format="rgb24")
            if not wanted:
                break
            last = frame
    return found


def pdq(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """256 bits, one a byte; zeros where the package is not installed."""
    if pdqhash is None:
        return np.zeros(256, np.uint8)
    bits, _ = pdqhash.compute(np.ascontiguousarray(picture))
    return np.asarray(bits, np.uint8)


@dataclass(frozen=True, eq=False)
class Others:
    """References of the two peers: video, time, vector or hash."""

    video: NDArray[np.int64]
    time: NDArray[np.float64]
    rep0st: NDArray[np.float32]
    pdq: NDArray[np.uint8]


# ---------------------------------------------------------------- questions


@dataclass(frozen=True)
class Asked:
    """A clip and the truth about it. length: seconds of the source."""

    how: str
    video: Video
    start: float
    length: float
    path: Path
    question: Question
    shown: Shown


@dataclass(frozen=True, eq=False)
class Shown:
    """What the peers make of a clip: pictures at times (seconds), four a second."""

    times: NDArray[np.float64]
    rep0st: NDArray[np.float32]
    pdq: NDArray[np.uint8]


def ask(videos: Iterable[Video], folder: Path, each: int, end: float) -> list[Asked]:
    """Each video asked about `each` times in every way; clips and what is read of them are kept.

    Raises Unfinished at `end` (seconds of the monotonic clock).
    """
    found = []
    for video in until(end, videos):
        chance = np.random.default_rng(xxhash.xxh3_64_intdigest(video.path.name.encode()))
        for number in range(each):
            length = float(chance.uniform(4, 6))
            start = float(chance.uniform(0.3, max(0.4, video.seconds - length - 0.6)))
            length = min(length, video.seconds - start - 0.2)
            for how in until(end, CLIPS):
                name = f"{video.path.stem}_{number}_{how.replace(' ', '-').replace(':', '')}.mp4"
                target = folder / "clips" / name
                if not target.exists():
                    search_library.clip(video.path, target, how, start, length)
                found.append(Asked(how, video, start, length, target, *_read(target)))
    return found


def _read(path: Path) -> tuple[Question, Shown]:
    """What is read of a clip, once for each state of the code that reads it."""
    code = b"".join(Path(str(m.__file__)).read_bytes() for m in (sampling, features, hashes, landmarks))
    kept = path.with_suffix(f".{xxhash.xxh3_64_hexdigest(code)}.question")
    if not kept.exists():
        with open(path, "rb") as file:
            question = sampling.question(file, "mp4", Plan())
        part = kept.with_suffix(".part")
        part.write_bytes(pickle.dumps((question, _shown(path, question.duration))))
        part.rename(kept)
    made: tuple[Question, Shown] = pickle.loads(kept.read_bytes())
    return made


def _shown(path: Path, seconds: float) -> Shown:
    pictures = frames_of(path, [0.1 + n / 4 for n in range(4 * max(1, int(seconds)))])
    vectors = [features.rep0st108(picture[None])[0] for picture in pictures.values()]
    bits = [pdq(picture) for picture in pictures.values()]
    return Shown(
        np.array(list(pictures), np.float64),
        np.array(vectors, np.float32).reshape(-1, 108),
        np.array(bits, np.uint8).reshape(-1, 256),
    )


# ---------------------------------------------------------------- answers


@dataclass(frozen=True)
class Verdict:
    """What one way of looking said first. right: the video, and a stretch that overlaps; among: one of five.

    accepted: it takes its own answer for true. tier: of the cascade, which gave the answer. of: the video
    that was asked about.
    """

    score: float = 0.0
    right: bool = False
    among: bool = False
    error: float = float("nan")
    f1: float = 0.0
    accepted: bool = False
    tier: str = ""
    of: str = ""


def verdict(
    asked: Asked, found: Sequence[Found], names: Mapping[str, int], accepted: float, tier: str = ""
) -> Verdict:
    """found: best first. accepted: the score from which on an answer is taken for true."""
    if not found:
        return Verdict(of=asked.video.path.name)
    true, stop = names.get(asked.video.path.name, -1), asked.start + asked.length

    def good(one: Found) -> bool:
        return one[0] == true and min(one[2], stop) - max(one[1], asked.start) > 0

    first = found[0]
    right = good(first)
    # The segment metric of VCSL for one truth and one answer: shares of both axes, multiplied.
    inside = max(0.0, min(first[2], stop) - max(first[1], asked.start)) if right else 0.0
    recall, precision = (inside / asked.length) ** 2, (inside / ((first[2] - first[1]) or 1.0)) ** 2
    f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
    error = abs(first[1] - asked.start) if right else float("nan")
    among, taken = any(map(good, found[:5])), first[3] >= accepted
    return Verdict(first[3], right, among, float(error), float(f1), taken, tier, asked.video.path.name)


def by_tier(asked: Asked, snapshot: Snapshot, names: Mapping[str, int]) -> dict[str, Verdict]:
    """Each way of looking alone, and all in order as `search/clip/` has them."""
    found: dict[str, Verdict] = {}
    for tier, look in (("coded", cascade.coded), ("sound", cascade.sound), ("visual", cascade.visual)):
        stretches = sorted(look(snapshot, asked.question), key=lambda one: -one.score)
        rows = [(one.video, one.start, one.end, one.score) for one in stretches]
        found[tier] = verdict(asked, rows, names, SURE, tier)
    sure = [said for said in found.values() if said.accepted]
    return found | {"cascade": sure[0] if sure else Verdict(of=asked.video.path.name)}


def by_peers(asked: Asked, peers: Others, names: Mapping[str, int]) -> dict[str, Verdict]:
    """rep0st108 with the limits of its video plan: pictures a second apart, 3 matches of 0.8.

    PDQ with the votes for an offset that grad512 has; a picture votes with up to 90 of 256 bits that differ.
    """
    seconds, shown = asked.question.duration, asked.shown
    each = np.flatnonzero(np.arange(len(shown.times)) % 4 == 0)
    rows: list[Found] = []
    if len(each):
        scores = features.rep0st_score(shown.rep0st[each], peers.rep0st)
        for video in np.unique(peers.video):
            mine = peers.video == video
            best, which = scores[:, mine].max(axis=1), scores[:, mine].argmax(axis=1)
            matching = best >= 0.8
            if matching.sum() >= 3:
                offset = float(np.median(peers.time[mine][which][matching] - shown.times[each][matching]))
                score = float(matching.sum() + best.mean())
                rows.append((int(video), max(0.0, offset), offset + seconds, score))
    found = {"rep0st108": verdict(asked, sorted(rows, key=lambda row: -row[3]), names, 0.0)}
    votes: list[tuple[int, float, int, float, float, int]] = []
    for number, when in enumerate(shown.times if pdqhash is not None else ()):
        apart = (peers.pdq != shown.pdq[number]).sum(axis=1)
        votes += [
            (
                number,
                when,
                int(peers.video[row]),
                float(peers.time[row]),
                VOTE + 0.2 * (1 - apart[row] / 90),
                row,
            )
            for row in np.argsort(apart)[:20]
            if apart[row] <= 90
        ]
    aligned = []
    if votes:
        columns = [np.array(column) for column in zip(*votes, strict=True)]
        aligned = align(Vote(*columns), len(shown.times), seconds)
    return found | {"PDQ": verdict(asked, [(a.video, a.start, a.end, a.score) for a in aligned], names, 0.0)}


# ---------------------------------------------------------------- figures


@dataclass
class Answers:
    """Verdicts on what is in the index and on what is not, by transform."""

    present: dict[str, list[Verdict]] = field(default_factory=lambda: defaultdict(list))
    absent: dict[str, list[Verdict]] = field(default_factory=lambda: defaultdict(list))

    @property
    def all_present(self) -> list[Verdict]:
        return [said for group in self.present.values() for said in group]

    @property
    def highest(self) -> float:
        """The best score of what is not there: what lies above is accepted with no mistake."""
        return max((said.score for group in self.absent.values() for said in group), default=0.0)

    def recall(self, how: str = "", least: float | None = None) -> float:
        """Per cent that are right, and accepted; least: with a score above this instead."""
        group = self.present[how] if how else self.all_present
        taken = [s.right and (s.accepted if least is None else s.score > least) for s in group]
        return 100 * float(np.mean(taken)) if taken else 0.0

    def wrong(self, how: str = "") -> float:
        """Per cent of what is not there that is accepted."""
        group = self.absent[how] if how else [said for all_said in self.absent.values() for said in all_said]
        return 100 * float(np.mean([said.accepted for said in group])) if group else 0.0

    def summary(self, how: str = "") -> dict[str, float]:
        """Of one transform, or over all of them."""
        there = self.present[how] if how else self.all_present
        errors = [said.error for said in there if not np.isnan(said.error)] or [float("nan")]
        return {
            "right first, %": 100 * float(np.mean([said.right for said in there])),
            "among five, %": 100 * float(np.mean([said.among for said in there])),
            "right and accepted, %": self.recall(how),
            "absent and accepted, %": self.wrong(how),
            "right above all that is absent, %": self.recall(how, least=self.highest),
            "offset error, median, s": float(np.median(errors)),
            "offset error, 95 %, s": float(np.percentile(errors, 95)),
            "segment F1": float(np.mean([said.f1 for said in there])),
        }

    def interval(self) -> tuple[float, float]:
        """95 % of `right and accepted` when the videos are drawn anew a thousand times."""
        by_video: dict[str, list[bool]] = defaultdict(list)
        for said in self.all_present:
            by_video[said.of].append(said.right and said.accepted)
        groups, chance = list(by_video.values()), np.random.default_rng(1)
        drawn = [
            np.mean([one for n in chance.integers(0, len(groups), len(groups)) for one in groups[n]])
            for _ in range(1000)
        ]
        low, high = np.percentile(drawn, (2.5, 97.5))
        return 100 * float(low), 100 * float(high)


def answers(
    questions: Iterable[Asked], snapshot: Snapshot, peers: Others, names: Mapping[str, int]
) -> dict[str, Answers]:
    """By way of looking."""
    found: dict[str, Answers] = defaultdict(Answers)
    for asked in questions:
        for who, said in (by_tier(asked, snapshot, names) | by_peers(asked, peers, names)).items():
            side = found[who].present if asked.video.present else found[who].absent
            side[asked.how].append(said)
    return found


def worths(visual: Answers) -> tuple[list[float], list[float]]:
    """What visual scores are curves of (`cascade.confidence`): of right answers, of wrong ones."""

    def worth(said: Verdict) -> float:
        score = min(max(said.score, 1e-12), 1 - 1e-12)
        return float(np.log(score / (1 - score)))

    wrong = [worth(said) for group in visual.absent.values() for said in group if said.score]
    return [worth(said) for said in visual.all_present if said.right], wrong
