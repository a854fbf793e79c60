"""Instants of fragmented files that nothing lists: requests and bytes, over many ways fragments can lie."""

from __future__ import annotations

import math
import random
import struct
import sys
import tempfile
from bisect import bisect_right
from fractions import Fraction
from pathlib import Path

import trio
from vfs_mp4 import source

from tests.bench.result import Row, at_most, figure

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "4_plugins"), str(ROOT / "scripts")]

from mp4_sparse import Sparse, init_of, sparse  # noqa: E402
from sample_media import encode  # type: ignore[import-not-found]  # noqa: E402

MIB = 1 << 20
#: Bytes of a file, and of a fragment: 123 of 0.8 s each, on average.
SIZE, MEAN = 540_000_000, 4_400_000
FILES, INSTANTS = 4, 8
COURSES = ("even", "normal", "log-normal", "scenes", "waves", "drift", "jump", "tiny", "alternating", "giant")


def fragments_unlisted() -> list[Row]:
    """One instant of 540 MB in 123 fragments (4.4 MB each on average) that nothing lists, with all of its
    fragment: GETs, and MiB beyond that. Files of ten courses: even, scattered (by 0.4 and 0.6 of the mean),
    in scenes, in waves, rising, with a jump, tiny fragments or a giant one among others, small and large in
    turn; half of them with fragments that last equally long.

    A look into another fragment than the wanted one costs what is left of it, some half, and nothing else
    tells where the next one begins: 2.4 MiB on average. Where sizes follow no rule a file that tells how
    long it is needs one such look, and one that does not two.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.mp4"
        encode(path, frames=20, gop=20, bframes=0, fragmented=True, audio=False, size=(160, 90))
        init, ticks = init_of(path)
    rows = []
    for told in (True, False):
        costs = [cost for course in COURSES for cost in _costs(course, init, ticks, told=told)]
        even = costs[: FILES * INSTANTS]
        name = "its length is told" if told else "its length is not told"
        rows += _rows(f"{name}, even", even, bars=True) + _rows(f"{name}, all", costs, bars=False)
    return rows


def _rows(name: str, costs: list[tuple[int, float]], *, bars: bool) -> list[Row]:
    """The middle, nine of ten, and the worst."""
    gets, beyond = sorted(cost[0] for cost in costs), sorted(cost[1] for cost in costs)
    late = len(costs) * 9 // 10
    rows = [
        at_most(f"{name}: GETs, worst", gets[-1], 10, exact=True)
        if bars
        else figure(f"{name}: GETs, worst", gets[-1]),
        figure(f"{name}: GETs, p50", gets[len(gets) // 2]),
        figure(f"{name}: GETs, p90", gets[late]),
        figure(f"{name}: beyond, worst", beyond[-1], "MiB"),
        figure(f"{name}: beyond, p50", beyond[len(beyond) // 2], "MiB"),
        figure(f"{name}: beyond, p90", beyond[late], "MiB"),
    ]
    within = 100 * sum(count <= 10 and more <= 4 for count, more in costs) / len(costs)
    return [*rows, figure(f"{name}: within 10 GETs and 4 MiB", within, "%")]


def _costs(course: str, init: bytes, ticks: int, *, told: bool) -> list[tuple[int, float]]:
    """(requests, MiB beyond the fragment) of some instants of some files, each found anew."""
    found = []
    for number in range(FILES):
        picks = random.Random(f"{course} {number}")
        sizes, lengths = _layout(course, picks, even=number % 2 == 0)
        head = _with_length(init, sum(lengths) * 0.04) if told else init
        made = sparse(head, len(sizes), sizes.__getitem__, ticks=ticks, samples=lengths.__getitem__)
        whole = sum(lengths) * ticks * 8 // 10 // 20
        found += [_cost(made, Fraction(picks.randrange(whole), ticks)) for _ in range(INSTANTS)]
    return found


def _cost(made: Sparse, when: Fraction) -> tuple[int, float]:
    """Of one instant."""
    place = made.place
    for kept in (place.log, place.ranges.held, place.memo, place.locks, place.reports):
        kept.clear()
    trio.run(source.movie_at, place, when, when)
    number = bisect_right(made.fragments, int(when * made.ticks), key=lambda fragment: fragment[2]) - 1
    begin, end, _ = made.fragments[number]
    trio.run(place.read, begin, end - begin)
    return len(place.log), (sum(length for _, _, length in place.log) - (end - begin)) / MIB


def _layout(course: str, picks: random.Random, *, even: bool) -> tuple[list[int], list[int]]:
    """(bytes, samples) of each fragment."""
    count = SIZE // MEAN
    lengths = [20 if even or course == "even" else picks.randrange(6, 35) for _ in range(count)]
    rates = _rates(course, count, picks)
    scale = SIZE / sum(rate * length for rate, length in zip(rates, lengths, strict=True))
    sizes = [max(int(rate * length * scale), 200) for rate, length in zip(rates, lengths, strict=True)]
    return sizes, lengths


def _rates(course: str, count: int, picks: random.Random) -> list[float]:
    """Bytes a sample of each fragment, on any scale."""
    if course == "normal":
        return [max(picks.gauss(1, 0.4), 0.125) for _ in range(count)]
    if course == "log-normal":
        return [math.exp(picks.gauss(0, 0.6)) for _ in range(count)]
    if course == "scenes":
        return _scenes(count, picks)
    if course == "tiny":
        return [math.exp(picks.gauss(0, 0.4)) if picks.random() > 0.3 else 0.02 for _ in range(count)]
    if course == "giant":
        giant = picks.randrange(count)
        return [math.exp(picks.gauss(0, 0.3)) * (8 if number == giant else 1) for number in range(count)]
    start = picks.random()
    return [
        {
            "even": 1.0,
            "waves": 1 + 0.6 * math.sin(12 * number / count + 6 * start),
            "drift": 0.25 + 1.5 * number / count,
            "jump": 0.2 if number < (0.2 + 0.6 * start) * count else 2.2,
            "alternating": (0.3, 1.7)[number % 2],
        }[course]
        for number in range(count)
    ]


def _scenes(count: int, picks: random.Random) -> list[float]:
    """Some fragments alike, then others."""
    rates: list[float] = []
    while len(rates) < count:
        level = math.exp(picks.gauss(0, 0.6))
        rates += [level * math.exp(picks.gauss(0, 0.2)) for _ in range(picks.randrange(2, 15))]
    return rates[:count]


def _with_length(init: bytes, seconds: float) -> bytes:
    """An init section whose movie header (version 0) says how long the movie is."""
    at = init.index(b"mvhd") + 4
    (scale,) = struct.unpack_from(">I", init, at + 12)
    return init[: at + 16] + struct.pack(">I", int(seconds * scale)) + init[at + 20 :]
