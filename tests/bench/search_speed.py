"""How fast searching is: a million vectors, a hundred thousand rows, passes over a video against ffmpeg."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from vfs_search import bits, engine, fast, features, sampling
from vfs_search.catalog import norms
from vfs_search.columns import Column
from vfs_search.documents import Document, Library
from vfs_search.grammar import parse_text
from vfs_search.sampling import Plan
from vfs_search.textindex import TextIndex

from tests.bench import mounted, search_library
from tests.bench.result import Row, at_least, at_most, figure
from vfs import heap

MILLION = 1_000_000
#: How often each question is asked.
TIMES = 15


def search() -> list[Row]:
    """All of it."""
    with tempfile.TemporaryDirectory() as folder:
        return [*_vectors(Path(folder)), *_texts(), *_passes(Path(folder)), *_listing(Path(folder))]


# ---------------------------------------------------------------- vectors


def stored(count: int) -> NDArray[np.uint8]:
    """Vectors as pictures give them: of 2,000 pictures of soft noise, and mixtures of two of them."""
    chance = np.random.default_rng(1)
    coarse = chance.integers(0, 256, (2000, 12, 12)).astype(np.float32)
    weights = np.kron(np.eye(12), np.ones((6, 1)))[:64].astype(np.float32)
    pictures = np.matmul(np.matmul(weights, coarse), weights.T)
    base = features.grad512(pictures).astype(np.float32) ** 2
    found = np.empty((count, features.DIMENSIONS), np.uint8)
    for at in range(0, count, 20_000):
        rows = min(20_000, count - at)
        one, two = chance.integers(0, len(base), (2, rows))
        share = chance.random((rows, 1), np.float32)
        mixed = np.sqrt(base[one] * share + base[two] * (1 - share))
        mixed *= 1 + 0.2 * chance.standard_normal(mixed.shape, np.float32)
        found[at : at + rows] = features.quantised(np.abs(mixed))
    return found


def _vectors(folder: Path) -> list[Row]:
    columns: dict[str, Any] = {}
    rows = stored(MILLION)
    for name, data, kind, width in (
        ("grad512", rows, np.uint8, 512),
        ("norms", norms(rows), np.float32, 0),
        ("bits", bits.of(rows), np.uint64, 4),
    ):  # fmt: skip
        column = Column(folder / name, kind, width)
        columns[name] = column.mapped(column.append(data, 0))
    chance = np.random.default_rng(2)
    chosen = chance.integers(0, MILLION, TIMES)
    changed = rows[chosen] * (1 + 0.25 * chance.standard_normal((TIMES, 512)))
    queries = features.restored(np.clip(changed, 0, 255).astype(np.uint8))
    del rows
    alive = np.ones(MILLION, np.bool_)
    pages = sum(os.path.getsize(folder / name) for name in columns)
    before = _resident()
    spent, computed, same = [], [], 0.0
    for query in queries:
        begun, computing = time.perf_counter(), time.process_time()
        near = engine.nearest(columns.__getitem__, alive, query[None], 20)
        spent.append(time.perf_counter() - begun)
        computed.append(time.process_time() - computing)
        true = (
            engine.exact(columns["grad512"], columns["norms"], alive, query[None], 20)
            if len(spent) <= 5
            else None
        )
        if true is not None:
            same += len(set(near.rows[0]) & set(true.rows[0])) / 20 / 5
    found = np.mean(
        [
            engine.nearest(columns.__getitem__, alive, q[None], 1).rows[0, 0] == c
            for q, c in zip(queries, chosen, strict=True)
        ]
    )
    alone = _resident() - before + pages
    return [
        at_most("a million vectors: one question, median", 1000 * median(spent), 60, "ms"),
        at_most("the same as computing of all threads over two cores", 500 * median(computed), 60, "ms"),
        at_most("memory over the pages", alone / pages, 1.2, "x"),
        figure("the changed vector found first", 100 * float(found), "%"),
        figure("of the 20 nearest found by bits first", 100 * same, "%"),
        *_lists(folder, columns, alive),
    ]


def _lists(folder: Path, columns: dict[str, Any], alive: NDArray[np.bool_]) -> list[Row]:
    """A clip of fifteen seconds by faiss: 60 pictures, mirrored and not, with borders and without."""
    if not fast.installed():
        return []
    chance = np.random.default_rng(3)
    chosen = columns["grad512"][np.sort(chance.integers(0, MILLION, 240))]
    changed = chosen * (1 + 0.25 * chance.standard_normal(chosen.shape))
    queries = features.restored(np.clip(changed, 0, 255).astype(np.uint8))
    begun = time.perf_counter()
    fast.make(columns["grad512"], folder)
    made = time.perf_counter() - begun
    lists = fast.opened(folder)
    spent, rows = [], []
    for given in (None, lists):
        begun = time.perf_counter()
        rows.append(engine.nearest(columns.__getitem__, alive, queries, 20, 0.8, given).rows)
        spent.append(time.perf_counter() - begun)
    same = [len(set(a[a >= 0]) & set(b[b >= 0])) for a, b in zip(*rows, strict=True)]
    return [
        figure("a clip of 15 s, a million vectors: one by one", spent[0], "s"),
        figure("the same by lists of faiss (the extra `fast`)", spent[1], "s"),
        figure("of the 20 nearest found by lists", 100 * sum(same) / int((rows[0] >= 0).sum()), "%"),
        figure("making the lists", made, "s"),
    ]


def _resident() -> int:
    """Bytes of memory that is not a mapped file, at most until now."""
    status = Path("/proc/self/status").read_text()
    (anonymous,) = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return int(anonymous.split()[1]) * 1024


# ---------------------------------------------------------------- words


#: A common word, words that all rows have, ranges, negation, and all of it: what takes the longest.
_HARD = (
    "goal", "number", "goal+number+team", "tag:goal+rating:4..", "opponent:Team_7+-tag:miss", "number_4711",
    "rating:5", "rating:2..4", "-goal", "kind:clip+-tag:miss+rating:2..+date:2025",
    "number+rating:2..4+date:2025-03..2025-09+-goal",
    "number+goal+-miss+-corner+tag:pass+opponent:team+rating:2..4+date:2025-02..2025-11",
)  # fmt: skip


def _texts() -> list[Row]:
    words = ("goal", "miss", "corner", "pass", "header", "save", "run", "dribble")
    rows = tuple(
        Document("clip", n, (), notes=f"{words[n % 8]} number {n} {words[n // 8 % 8]}", rating=n % 5 + 1,
                 date=f"2025-{n % 12 + 1:02}-10", tags=(words[n % 7],), opponent=f"Team {n % 50}")
        for n in range(100_000)
    )  # fmt: skip
    index = TextIndex(Library(rows, {}, {}))
    worst = {}
    for text in _HARD:
        spent = []
        for _ in range(7):
            begun = time.thread_time()
            list(islice(index.find(parse_text(text)[0]), 200))
            spent.append(time.thread_time() - begun)
        worst[text] = 1000 * median(spent)
    slowest, second = sorted(worst.values())[:-3:-1]
    return [
        at_most(f"100,000 rows: the slowest of {len(worst)} queries, computing, median", slowest, 20, "ms"),
        figure("the second slowest", second, "ms"),
        figure("a word that a quarter of the rows has", worst["goal"], "ms"),
    ]


# ---------------------------------------------------------------- a mount

_ROWS = """
CREATE TABLE games (id INTEGER PRIMARY KEY, name TEXT, video_path TEXT, opponent_name TEXT, game_date TEXT);
CREATE TABLE raw_clips (id INTEGER PRIMARY KEY, game_id INTEGER, start_time REAL, end_time REAL, tags TEXT);
INSERT INTO games VALUES (1, 'vs Lions', 'games/g.mp4', 'Lions', '2025-09-14');
"""


def _listing(folder: Path) -> list[Row]:
    """`ls` and `ls -l` of an answer with 20 results on a real mount, in milliseconds."""
    library = folder / "library"
    search_library.match(library / "games/g.mp4", 1, 12)
    with contextlib.closing(sqlite3.connect(library / "database.sqlite")) as database:
        database.executescript(_ROWS)
        rows = [(n, 1, n / 4, n / 4 + 2, '["goal"]') for n in range(1, 21)]
        database.executemany("INSERT INTO raw_clips VALUES (?, ?, ?, ?, ?)", rows)
        database.commit()
    environ = {"HOME": str(folder), "PATH": os.environ["PATH"]}
    with mounted.reelfs(str(library), folder, environ) as mount:
        answer = mount / "search/text/tag:goal/@"
        begun = time.perf_counter()
        assert len(os.listdir(answer)) == 25
        first = time.perf_counter() - begun
        plain, long = [], []
        for _ in range(50):
            begun = time.perf_counter()
            os.listdir(answer)
            plain.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            for entry in os.scandir(answer):
                entry.stat(follow_symlinks=False)
            long.append(time.perf_counter() - begun)
    return [
        at_most("ls of a cached answer with 20 results, on a mount", 1000 * median(plain), 5, "ms"),
        figure("ls -l of it", 1000 * median(long), "ms"),
        figure("the first look, 20 clips cut", 1000 * first, "ms"),
    ]


# ---------------------------------------------------------------- passes

#: Sizes of the game that passes are measured on.
SIZES = ((640, 360), (1280, 720), (1920, 1080))


def _passes(folder: Path) -> list[Row]:
    """Seconds of computing on one thread, ours and ffmpeg's, in turns; the least of three each."""
    small = folder / "small.mp4"
    search_library.match(small, 1, 20)
    rows = []
    for width, height in SIZES:
        film = folder / f"{height}.mp4"
        encode = [
            "-vf",
            f"scale={width}:{height}",
            "-c:v",
            "libx264",
            "-preset",
            "veryfast",
            "-g",
            "50",
            "-an",
        ]
        subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", small, *encode, film], check=True)
        spent: dict[str, list[float]] = {what: [] for what in ("ffmpeg", "ffmpeg keys", *_PASSES)}
        for _ in range(3):
            spent["ffmpeg"].append(_ffmpeg(film))
            spent["ffmpeg keys"].append(_ffmpeg(film, "-skip_frame", "nokey"))
            for what in _PASSES:
                spent[what].append(_alone(film, what))
        least = {what: min(times) for what, times in spent.items()}
        added = least["features"] - least["decoding"]
        rows += [
            at_least(
                f"{height}p: key-frame pass, speed against ffmpeg's",
                least["ffmpeg keys"] / least["keys"],
                0.8,
            ),
            at_most(
                f"{height}p: what features add, over ffmpeg's decoding", added / least["ffmpeg"], 0.2, "x"
            ),
            figure(
                f"{height}p: the same over the decoding of the pass itself", added / least["decoding"], "x"
            ),
            figure(
                f"{height}p: the whole pass over ffmpeg's decoding", least["features"] / least["ffmpeg"], "x"
            ),
        ]
    return rows


def _alone(film: Path, what: str) -> float:
    """Seconds of computing of a pass, by a process like those of `reelfs index`: numerics by one thread."""
    environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.bench.search_speed", what, str(film)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=environ, cwd=root, stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


def _ffmpeg(path: Path, *options: str) -> float:
    command = ["ffmpeg", "-v", "error", "-threads", "1", *options, "-i", str(path), "-f", "null", "-"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _keys(path: Path) -> None:
    with open(path, "rb") as file:
        sampling.describe(file, "mp4", 0, 1e9, Plan(rate=0, sound=False))


def _features(path: Path) -> None:
    with open(path, "rb") as file:
        sampling.describe(file, "mp4", 0, 1e9, Plan(sound=False, coded=False))


def _decoding(path: Path) -> None:
    """What the pass decodes, and nothing done with it."""
    with av.open(str(path)) as container:
        context: Any = container.streams.video[0].codec_context
        context.thread_type, context.thread_count, context.skip_frame = "SLICE", 1, "NONREF"
        context.options = {"skip_loop_filter": "all"}
        for _ in container.decode(video=0):
            pass


_PASSES = {"keys": _keys, "features": _features, "decoding": _decoding}

if __name__ == "__main__":
    heap.keep_freed(64 << 20)  # as in workers
    _PASSES[sys.argv[1]](Path(sys.argv[2]))  # once, so that all is imported
    begun = time.process_time()
    _PASSES[sys.argv[1]](Path(sys.argv[2]))
    print(time.process_time() - begun)
