"""The index of a moov of 300,000 samples, and the layout of a clip from it: no store, no kernel."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar, TypeVarTuple

from vfs_mp4 import clips, plan, timeline
from vfs_mp4.index import parse_moov
from vfs_mp4.model import Movie

from tests.bench.game import SMALL, long_moov, progressive
from tests.bench.result import Row, at_most, figure, middle
from vfs import StoredObject, parse_derived

T = TypeVar("T")
Args = TypeVarTuple("Args")
SAMPLES = 300_000
ROUNDS = 9


def index() -> list[Row]:
    """Index of a large moov, and clips from it: medians; file and tables are whole in memory."""
    data, size = long_moov(SAMPLES, progressive(SMALL))
    parsing, first, later = [], [], []
    for _ in range(ROUNDS):
        movie, seconds = _timed(_movie, data, size)
        parsing.append(seconds)
        first.append(_timed(_clip, movie, "1000s-1060s.mp4")[1])
        later += [_timed(_clip, movie, f"{t}s-{t + 60}s.mp4")[1] for t in (10, 2000, 5000)]
    return [
        at_most(f"index of a moov of {SAMPLES:,} samples", middle(parsing) * 1e3, 50, "ms"),
        at_most("layout of a clip of a minute", middle(later) * 1e3, 5, "ms"),
        figure("layout of the first clip (player line included)", middle(first) * 1e3, "ms"),
        figure("the moov", len(data) / 1e6, "MB"),
    ]


def _movie(data: bytes, size: int) -> Movie:
    moov = parse_moov(data, size)
    pairs = [(t, timeline.place_samples(t, moov.timescale, shift_only=False)) for t in moov.tracks]
    zero = timeline.zero(pairs)
    stored = StoredObject("game.mp4", size, "v", 0)
    assert len(moov.tracks[0].samples) == SAMPLES
    duration = max(timeline.end(pairs) - zero, Fraction(0))
    return Movie(stored, moov.timescale, moov.tracks, zero, duration)


def _clip(movie: Movie, name: str) -> int:
    derived = parse_derived(name)
    assert derived is not None
    return clips.exact(plan.locate(movie, derived.selection)).size


def _timed(work: Callable[[*Args], T], *arguments: *Args) -> tuple[T, float]:
    began = time.perf_counter()
    made = work(*arguments)
    return made, time.perf_counter() - began
