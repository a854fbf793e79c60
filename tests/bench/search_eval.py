#!/usr/bin/env python3
"""How well searching finds: `python tests/bench/search_eval.py [FOLDER]` (ten minutes; `--quick` a part).

Half of the questions come from videos that are not in the index: what is found for them is found wrongly.
Compared in the same run with rep0st108 and, where it is installed (`pip install pdqhash`), PDQ.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import av  # noqa: E402
from vfs_search import cascade, features, sampling, sidecar  # noqa: E402
from vfs_search.align import VOTE, Vote, align  # noqa: E402
from vfs_search.catalog import Catalog, Snapshot  # noqa: E402
from vfs_search.sampling import Plan, Question  # noqa: E402

from tests.bench import search_library  # noqa: E402
from tests.bench.search_library import CLIPS, PICTURES, Video  # noqa: E402
from vfs import StoredObject  # noqa: E402

try:
    pdqhash: Any = importlib.import_module("pdqhash")
except ImportError:
    pdqhash = None

#: Pictures a second of the references of rep0st108 and PDQ: those that grad512 has whole.
RATE = 2.0
NEAR = 0.5


def demuxer(path: Path) -> str:
    return sampling.DEMUXERS[path.suffix]


# ---------------------------------------------------------------- the index, and those of the others


@dataclass(frozen=True, eq=False)
class Others:
    """References of the two peers: video, time, vector or hash."""

    video: NDArray[np.int64]
    time: NDArray[np.float64]
    rep0st: NDArray[np.float32]
    pdq: NDArray[np.uint8]


def indexed(videos: Iterable[Video], folder: Path) -> tuple[Snapshot, float]:
    """(the snapshot, seconds of computing)."""
    catalog = Catalog(folder / "index")
    begun = time.process_time()
    for video in videos:
        stored = StoredObject(video.path.name, 1, "1")
        if catalog.has(stored, "eval"):
            continue
        path = catalog.path_of(stored)
        path.unlink(missing_ok=True)
        writer = sidecar.Writer(path, sidecar.Identity(video.path.name, "1", 1, Plan()))
        with open(video.path, "rb") as file:
            part = sampling.describe(file, demuxer(video.path), 0, video.seconds, Plan())
        writer.add(part, video.seconds)
        writer.finish()
        writer.close()
        catalog.add(stored, "eval", sidecar.read(path))
    spent = time.process_time() - begun
    snapshot = catalog.snapshot()
    catalog.close()
    return snapshot, spent


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


def others(videos: list[Video], names: dict[str, int]) -> Others:
    rows: list[tuple[int, float, Any, Any]] = []
    for video in videos:
        times = [n / RATE for n in range(int(video.seconds * RATE))]
        for at, picture in frames_of(video.path, times).items():
            rows.append((names[video.path.name], at, features.rep0st108(picture[None])[0], pdq(picture)))
    return Others(
        np.array([row[0] for row in rows]), np.array([row[1] for row in rows]),
        np.stack([row[2] for row in rows]), np.stack([row[3] for row in rows]),
    )  # fmt: skip


def pdq(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pdqhash is None:
        return np.zeros(256, np.uint8)
    bits, _ = pdqhash.compute(np.ascontiguousarray(picture))
    return np.asarray(bits, np.uint8)


# ---------------------------------------------------------------- pictures


def pictures(
    videos: list[Video], snapshot: Snapshot, peers: Others, names: dict[str, int], each: int
) -> dict[str, Any]:
    """recall@1 (right video, 0.5 s) and video recall, by transform; scores of pictures that are absent."""
    hit: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    absent: dict[str, list[float]] = defaultdict(list)
    for video in videos:
        chance = np.random.default_rng(len(video.path.name))
        times = sorted(chance.uniform(0.5, video.seconds - 1.0, each))
        for at, picture in frames_of(video.path, times).items():
            for how, change in PICTURES.items():
                changed = change(picture)
                small = shrunk(changed)
                vectors, variants = features.variants(features.luma_of(small))
                (best, *_) = cascade.pictures(snapshot, vectors, variants, 1)
                if not video.present:
                    absent[how].append(best.score)
                    continue
                true = names[video.path.name]
                hit["grad512"][how].append(best.video == true and abs(best.time - at) <= NEAR)
                scores = features.rep0st_score(features.rep0st108(changed[None]), peers.rep0st)[0]
                near = int(scores.argmax())
                hit["rep0st108"][how].append(peers.video[near] == true and abs(peers.time[near] - at) <= NEAR)
                near = int((peers.pdq != pdq(changed)).sum(axis=1).argmin())
                hit["pdq"][how].append(peers.video[near] == true and abs(peers.time[near] - at) <= NEAR)
    found: dict[str, Any] = {
        who: {how: 100 * float(np.mean(v)) for how, v in rows.items()} for who, rows in hit.items()
    }
    for rows in found.values():
        rows["mean"] = float(np.mean(list(rows.values())))
    return found | {
        "questions": len(hit["grad512"]["none"]),
        "absent p95": float(np.percentile(absent["none"], 95)),
    }


def shrunk(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    size = sampling._size(picture.shape[1], picture.shape[0])
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


# ---------------------------------------------------------------- clips


@dataclass(frozen=True)
class Asked:
    """A clip and the truth about it. length: seconds of the source."""

    how: str
    video: Video
    start: float
    length: float
    path: Path
    question: Question


def ask(videos: list[Video], folder: Path, each: int) -> list[Asked]:
    found = []
    for video in videos:
        chance = np.random.default_rng(7 + len(video.path.name))
        for number in range(each):
            length = float(chance.uniform(4, 6))
            start = float(chance.uniform(0.3, max(0.4, video.seconds - length - 0.6)))
            length = min(length, video.seconds - start - 0.2)
            for how in CLIPS:
                target = (
                    folder
                    / "clips"
                    / f"{video.path.stem}_{number}_{how.replace(' ', '-').replace(':', '')}.mp4"
                )
                if not target.exists():
                    search_library.clip(video.path, target, how, start, length)
                with open(target, "rb") as file:
                    question = sampling.question(file, "mp4", Plan())
                found.append(Asked(how, video, start, length, target, question))
    return found


@dataclass(frozen=True)
class Verdict:
    """What one way of looking said first, and whether the truth was among the first five."""

    score: float
    right: bool
    among: bool
    error: float
    f1: float


def verdict(
    asked: Asked, found: list[tuple[int, float, float, float, float]], names: dict[str, int]
) -> Verdict:
    """found: (video, start, end, score, speed), best first."""
    true = names.get(asked.video.path.name, -1)

    def good(one: tuple[int, float, float, float, float]) -> bool:
        return one[0] == true and min(one[2], asked.start + asked.length) - max(one[1], asked.start) > 0

    if not found:
        return Verdict(0.0, False, False, np.nan, 0.0)
    first = found[0]
    error = abs(first[1] - asked.start) if good(first) else np.nan
    # The segment metric of VCSL for one truth and one answer: shares of both axes, multiplied.
    inside = (
        max(0.0, min(first[2], asked.start + asked.length) - max(first[1], asked.start))
        if good(first)
        else 0.0
    )
    answered = (first[2] - first[1]) or 1.0
    of_query = min(1.0, inside / asked.length)
    recall, precision = (
        of_query * inside / asked.length,
        min(1.0, answered / asked.length) and (inside / answered) ** 2,
    )
    f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
    return Verdict(first[3], good(first), any(map(good, found[:5])), float(error), float(f1))


def by_tier(asked: Asked, snapshot: Snapshot, names: dict[str, int]) -> dict[str, Verdict]:
    """Each way of looking alone, and all in order."""
    question, found = asked.question, {}
    looks = {"coded": cascade.coded, "sound": cascade.sound, "visual": cascade.visual}
    first: Verdict | None = None
    for tier, look in looks.items():
        stretches = sorted(look(snapshot, question), key=lambda one: -one.score)
        rows = [
            (
                s.video,
                s.start,
                s.end,
                s.score,
                float(s.details.get("speed", "1")),
            )
            for s in stretches
        ]
        found[tier] = verdict(asked, rows, names)
        sure = [s for s in stretches if s.score >= 0.5]
        if first is None and sure:
            first = replace(found[tier], score=1.0)
    found["cascade"] = first or Verdict(0.0, False, False, np.nan, 0.0)
    return found


def by_peers(asked: Asked, peers: Others, names: dict[str, int]) -> dict[str, Verdict]:
    """rep0st108 with the limits of its video plan: pictures a second apart, 3 matches of 0.8.

    PDQ with the votes for an offset that grad512 has; a picture votes with up to 90 of 256 bits that differ.
    """
    count = max(1, int(asked.question.duration))
    times = [0.1 + n for n in range(count)]
    shown = frames_of(asked.path, times)
    at, vectors, hashes = [], [], []
    for when, picture in shown.items():
        at.append(when)
        vectors.append(features.rep0st108(picture[None])[0])
    for when, picture in frames_of(asked.path, [0.1 + n / 4 for n in range(4 * count)]).items():
        hashes.append((when, pdq(picture)))
    found = {
        "rep0st108": Verdict(0.0, False, False, np.nan, 0.0),
        "pdq": Verdict(0.0, False, False, np.nan, 0.0),
    }
    if vectors:
        scores = features.rep0st_score(np.stack(vectors), peers.rep0st)
        rows = []
        for video in np.unique(peers.video):
            mine = peers.video == video
            best = scores[:, mine].max(axis=1)
            matching = best >= 0.8
            if matching.sum() >= 3:
                which = scores[:, mine].argmax(axis=1)
                offset = float(np.median(peers.time[mine][which][matching] - np.array(at)[matching]))
                rows.append(
                    (
                        int(video),
                        max(0.0, offset),
                        offset + asked.question.duration,
                        float(matching.sum() + best.mean()),
                        1.0,
                    )
                )
        found["rep0st108"] = verdict(asked, sorted(rows, key=lambda row: -row[3]), names)
    if hashes and pdqhash is not None:
        votes: list[tuple[int, float, int, float, float, int]] = []
        for number, (when, bits) in enumerate(hashes):
            apart = (peers.pdq != bits).sum(axis=1)
            for row in np.argsort(apart)[:20]:
                if apart[row] <= 90:
                    votes.append(
                        (
                            number,
                            when,
                            int(peers.video[row]),
                            float(peers.time[row]),
                            VOTE + 0.2 * (1 - apart[row] / 90),
                            int(row),
                        )
                    )
        if votes:
            columns = [np.array(column) for column in zip(*votes, strict=True)]
            aligned = align(Vote(*columns), len(hashes), asked.question.duration)
            found["pdq"] = verdict(
                asked, [(a.video, a.start, a.end, a.score, a.speed) for a in aligned], names
            )
    return found


def clips(questions: list[Asked], snapshot: Snapshot, peers: Others, names: dict[str, int]) -> dict[str, Any]:
    rows: dict[str, dict[str, list[Verdict]]] = defaultdict(lambda: defaultdict(list))
    wrong: dict[str, list[float]] = defaultdict(list)
    for asked in questions:
        verdicts = by_tier(asked, snapshot, names) | by_peers(asked, peers, names)
        for who, said in verdicts.items():
            if asked.video.present:
                rows[who][asked.how].append(said)
            else:
                wrong[who].append(said.score)
    return {
        who: _clip_figures(by_how, wrong[who], 1e-9 if who in ("rep0st108", "pdq") else 0.5)
        for who, by_how in rows.items()
    }


def _clip_figures(by_how: dict[str, list[Verdict]], absent: list[float], accepted: float) -> dict[str, Any]:
    """accepted: the score from which on a way of looking takes its own answer for true."""
    everything = [said for all_said in by_how.values() for said in all_said]
    # The lowest threshold at which nothing that is absent is accepted.
    limit = max(absent, default=0.0)
    errors = [said.error for said in everything if not np.isnan(said.error)]
    return {
        "recall@1": {
            how: 100 * float(np.mean([s.right for s in all_said])) for how, all_said in by_how.items()
        },
        "recall@5": 100 * float(np.mean([s.among for s in everything])),
        "offset error p50": float(np.median(errors)) if errors else None,
        "F1": float(np.mean([s.f1 for s in everything])),
        "mean recall@1": 100 * float(np.mean([s.right for s in everything])),
        "highest absent score": limit,
        "recall at zero false accepts": 100
        * float(np.mean([s.right and s.score > limit for s in everything])),
        "recall at zero, by transform": {
            how: 100 * float(np.mean([s.right and s.score > limit for s in all_said]))
            for how, all_said in by_how.items()
        },
        "false accepts": 100 * float(np.mean([score >= accepted for score in absent])) if absent else None,
        "scores of absent p50 p95": [float(np.percentile(absent, q)) for q in (50, 95)] if absent else None,
        "scores of right p5 p50": [
            float(np.percentile([s.score for s in everything if s.right] or [0], q)) for q in (5, 50)
        ],
    }


# ---------------------------------------------------------------- the whole


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", help="where the library is made and kept")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter videos")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given.folder or scratch)
        videos = search_library.make(
            folder, matches=4 if given.quick else 8, seconds=20 if given.quick else 40
        )
        present = [video for video in videos if video.present]
        snapshot, spent = indexed(present, folder)
        names = {entry.key: number for number, entry in enumerate(snapshot.entries)}
        peers = others(present, names)
        told = {
            "videos": {"indexed": len(present), "absent": len(videos) - len(present)},
            "rows": len(snapshot.columns["grad512"]),
            "seconds of computing for a second of video": round(spent / sum(v.seconds for v in present), 4),
            "pictures": pictures(videos, snapshot, peers, names, 2 if given.quick else 5),
        }
        print(json.dumps(told, indent=1), flush=True)
        questions = ask(videos, folder, 1)
        print(json.dumps({"clips": clips(questions, snapshot, peers, names)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
