#!/usr/bin/env python3
"""How well searching finds: `python tests/bench/search_eval.py FOLDER` (an hour; `--quick` a part).

FOLDER keeps what was made: with `--minutes 10` it ends after so long (status 75), and the same command goes
on from there.

The videos are cut in two by the hashes of their names. What is fitted (`cascade.BY_QUOTIENT` and so on) was
fitted to one part, `--tuning`, and is reported on the other. Half of the questions come from videos that
are not in the index: what is found for them is found wrongly. Compared in the same run with rep0st108 and,
where it is installed (`pip install pdqhash`), PDQ.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from vfs_search import cascade, features, sampling, sidecar  # noqa: E402
from vfs_search.catalog import Catalog, Snapshot  # noqa: E402
from vfs_search.sampling import Plan  # noqa: E402

from tests.bench import search_clips, search_library  # noqa: E402
from tests.bench.search_clips import PEERS, TIERS, Answers, Others, frames_of, pdq  # noqa: E402
from tests.bench.search_library import CLIPS, CROWD, PARTS, PICTURES, Unfinished, Video, until  # noqa: E402
from vfs import StoredObject  # noqa: E402

#: Pictures a second of the references of rep0st108 and PDQ: those that grad512 has whole.
RATE = 2.0
#: A picture is found where it is by no more than this (seconds).
NEAR = 0.5
#: The library: matches (in blocks of 16), seconds of each, and of the crowd.
WHOLE = {"matches": 32, "seconds": 24, "crowd": 10}
QUICK = {"matches": 4, "seconds": 12, "crowd": 2}

# ---------------------------------------------------------------- the index, and those of the others


def indexed(videos: Iterable[Video], folder: Path, end: float) -> Snapshot:
    """All of them, in an index of their own. Raises Unfinished at `end`."""
    catalog = Catalog(folder)
    for video in until(end, videos):
        stored = StoredObject(video.path.name, 1, "1")
        if catalog.has(stored, "eval"):
            continue
        path = catalog.path_of(stored)
        path.unlink(missing_ok=True)
        writer = sidecar.Writer(path, sidecar.Identity(video.path.name, "1", 1, Plan()))
        with open(video.path, "rb") as file:
            demuxer = sampling.DEMUXERS[video.path.suffix]
            part = sampling.describe(file, demuxer, 0, video.seconds, Plan())
        writer.add(part, video.seconds)
        writer.finish()
        writer.close()
        catalog.add(stored, "eval", sidecar.read(path))
    snapshot = catalog.snapshot()
    catalog.close()
    return snapshot


def others(videos: Iterable[Video], names: Mapping[str, int]) -> Others:
    """References of the peers, of the same pictures."""
    rows: list[tuple[int, float, Any, Any]] = []
    for video in videos:
        times = [n / RATE for n in range(int(video.seconds * RATE))]
        for at, picture in frames_of(video.path, times).items():
            rows.append((names[video.path.name], at, features.rep0st108(picture[None])[0], pdq(picture)))
    return Others(
        np.array([row[0] for row in rows]), np.array([row[1] for row in rows]),
        np.stack([row[2] for row in rows]), np.stack([row[3] for row in rows]),
    )  # fmt: skip


# ---------------------------------------------------------------- pictures


def pictures(
    videos: Iterable[Video], snapshot: Snapshot, peers: Others, names: Mapping[str, int], each: int
) -> dict[str, Any]:
    """recall@1 (right video, NEAR) by transform and way of looking; the scores of what is not there."""
    hit: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    absent: list[float] = []
    for video in videos:
        chance = np.random.default_rng(len(video.path.name))
        times = sorted(chance.uniform(0.5, video.seconds - 1.0, each))
        for at, picture in frames_of(video.path, times).items():
            for how, change in PICTURES.items():
                changed = change(picture)
                vectors, variants = features.variants(features.luma_of(shrunk(changed)))
                (best, *_) = cascade.pictures(snapshot, vectors, variants, 1)
                if not video.present:
                    absent.append(best.score)
                    continue
                true = names[video.path.name]
                hit["grad512"][how].append(best.video == true and abs(best.time - at) <= NEAR)
                score = features.rep0st_score(features.rep0st108(changed[None]), peers.rep0st)[0]
                apart = (peers.pdq != pdq(changed)).sum(axis=1)
                for who, row in (("rep0st108", int(score.argmax())), ("PDQ", int(apart.argmin()))):
                    near = peers.video[row] == true and abs(peers.time[row] - at) <= NEAR
                    hit[who][how].append(bool(near))
    found = {who: {how: 100 * float(np.mean(v)) for how, v in rows.items()} for who, rows in hit.items()}
    for rows in found.values():
        rows["**mean of the 16**"] = float(np.mean(list(rows.values())))
    questions = len(hit["grad512"]["none"])
    return {"recall": found, "questions": questions, "absent p95": float(np.percentile(absent, 95))}


def shrunk(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As pictures are before they are described."""
    from PIL import Image

    size = sampling._size(picture.shape[1], picture.shape[0])
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


# ---------------------------------------------------------------- what is told


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n"


def told_pictures(found: dict[str, Any]) -> str:
    recall = found["recall"]
    rows = [[how, *(f"{recall[who][how]:.1f}" for who in recall)] for how in recall["grad512"]]
    head = f"{found['questions']} pictures each; absent ones score up to {found['absent p95']:.2f} (95 %)\n\n"
    return head + table(["picture", *recall], rows)


def told_clips(found: Mapping[str, Answers]) -> str:
    """Right and accepted / absent and accepted, by transform; all figures of two; then over all of them."""
    who = (*TIERS, *PEERS)
    rows = [[how, *(f"{found[w].recall(how):.0f} / {found[w].wrong(how):.0f}" for w in who)] for how in CLIPS]
    over = {w: found[w].summary() for w in who}
    lines = [[name, *(_figure(name, over[w][name]) for w in who)] for name in over["visual"]]
    lines += [["videos drawn anew, %", *("{:.0f} to {:.0f}".format(*found[w].interval()) for w in who)]]
    counts = [sum(map(len, side.values())) for side in (found["visual"].present, found["visual"].absent)]
    head = f"{counts[0]} clips that are there, {counts[1]} that are not\n\n"
    parts = [head + table(["clip", *who], rows), table(["over all clips", *who], lines)]
    for way in ("cascade", "visual"):
        by_clip = {how: found[way].summary(how) for how in CLIPS}
        rows = [[how, *(_figure(name, value) for name, value in by_clip[how].items())] for how in CLIPS]
        parts.append(table([f"{way} alone" if way == "visual" else way, *over[way]], rows))
    return "\n".join(parts)


def _figure(name: str, value: float) -> str:
    return f"{value:.1f}" if name.endswith("%") else f"{value:.3f}"


def told_worths(visual: Answers) -> str:
    """What `cascade.BASE` is chosen by."""
    right, wrong = (np.sort(values) for values in search_clips.worths(visual))
    at = (0, 1, 5, 10, 50)
    low, high = np.percentile(right, at).round(2).tolist(), wrong[-5:].round(2).tolist()
    return f"right: {len(right)}, percentiles {at}: {low}\nwrong: {len(wrong)}, the highest: {high}\n"


def measure(given: argparse.Namespace, folder: Path, end: float) -> None:
    """Make what is missing, and tell the figures. Raises Unfinished."""
    part = PARTS[0] if given.tuning else PARTS[1]
    size = QUICK if given.quick else WHOLE
    videos = [v for v in search_library.make(folder, **size, end=end) if v.part in (part, CROWD)]
    present, asked = [v for v in videos if v.present], [v for v in videos if v.part == part]
    snapshot = indexed(present, folder / f"index-{part}", end)
    names = {entry.key: number for number, entry in enumerate(snapshot.entries)}
    questions = search_clips.ask(asked, folder, given.each, end) if given.only != "pictures" else []
    peers = others(present, names)
    rows = len(snapshot.columns["grad512"])
    print(f"{part}: {len(present)} videos indexed ({rows} vectors), {len(asked)} asked about\n", flush=True)
    if given.only != "clips":
        by_picture = pictures(asked, snapshot, peers, names, 2 if given.quick else 6)
        print(told_pictures(by_picture), flush=True)
    if questions:
        by_clip = search_clips.answers(questions, snapshot, peers, names)
        print(told_clips(by_clip))
        print(told_worths(by_clip["visual"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", help="where the library is made and kept")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter videos")
    parser.add_argument("--tuning", action="store_true", help="the part on which thresholds are chosen")
    parser.add_argument("--only", choices=("pictures", "clips"), help="one of the two")
    parser.add_argument("--each", type=int, default=2, help="clips of each video and way")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="end after so long, to be gone on"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            measure(given, Path(given.folder or scratch), time.monotonic() + 60 * given.minutes)
        except Unfinished:
            print("not finished: the same command goes on from here", file=sys.stderr)
            return 75
    return 0


if __name__ == "__main__":
    sys.exit(main())
