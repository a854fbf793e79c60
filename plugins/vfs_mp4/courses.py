"""Whether to step on or to look, and where, decided on courses that a file could take. Pure.

Between known fragments many plausible ones are drawn: alike or scattered, with a rate that stays, bends or
jumps, weighed by how well they fit what is known. On each it is counted what a step or a look would cost in
requests and bytes, and what it would leave to do; what is cheapest on average is done. A look costs half a
fragment and a step next to nothing, so most looks are begun some fragments before the wanted one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
#: More fragments than this in a gap are not drawn: single ones do not matter there.
MOST = 600
# Courses that are drawn; more change no choice. The same for the same question: what is learnt is the same.
_DRAWN, _SEED = 256, 7
# What a request is worth in bytes, and one beyond a budget of so many; two more bring the fragment itself.
_REQUEST, _OVER, _BUDGET = 250e3, 1.5e6, 8
# What a look that passed the wanted fragment leaves to do: parts of a fragment, and requests.
_PASSED, _PASSED_REQUESTS = 0.7, 4.0
# A wanted fragment whose end is known is looked through from there, in steps of this part of its size.
_STEPS = (0.25, 0.5)
# How fragments scatter around the course (logarithms of rates), how often each is met, and the course itself.
_SCATTER = np.array([0.01, 0.1, 0.25, 0.45, 0.8])
_MET = np.array([0.4, 0.1, 0.2, 0.2, 0.1])
_STEADY, _COURSE = 0.75, 1.5
# Two knowns may be joined by a jump, a bend, or a line.
_WIDTHS = np.array([0.02, 0.1, 0.5, 1.0])
# How far the rate at a place is from an average.
_APART = np.array([0.0, 0.1, 0.3, 1.0])
_APART_MET = np.array([0.4, 0.2, 0.2, 0.2])
# How far the rate strays on its own over the whole file.
_DRIFT = np.array([0.0, 0.1, 0.3, 0.6])
# How a fit is judged: the rest that no course explains, over the whole file and at least.
_MISFIT, _LEAST = 0.15, 0.02
# Parts of several fragments that are alike: a scene.
_SCENES, _SCENE = 0.25, 6


@dataclass(frozen=True, slots=True)
class Question:
    """A gap between known fragments, and a time in it.

    rates, lengths: of known fragments, in order, as logarithms of bytes a tick and in ticks. here, there:
    rates at both ends of the gap, that of the known fragment first; no `there` = nothing known behind. room:
    bytes of the gap. ticks: of the gap, 0 = not known. want: ticks into it. even: ticks of each fragment, 0 =
    they differ. bare: from there to the end of the gap none begins. part: of the whole file. spent: requests.
    steps: how rates of fragments differ from that of the next one, or of what lies between them.
    """

    rates: Floats
    lengths: Floats
    steps: Floats
    here: Floats
    there: Floats
    room: float
    ticks: float
    want: float
    even: float
    bare: float
    part: float
    spent: int

    @property
    def closed(self) -> bool:
        """Whether it is known how long the gap is."""
        return self.ticks > 0

    @property
    def each(self) -> float:
        """Ticks of a fragment."""
        return self.even or float(self.lengths.mean())

    @property
    def count(self) -> int:
        """Fragments that are drawn."""
        return max(round((self.ticks or (self.want + 1) * 1.5 + 8 * self.each) / self.each), 1)


@dataclass(frozen=True, slots=True)
class Choice:
    """Step on where `hop`; else look from `at` on, or back from `at` in windows of `width` if not 0."""

    hop: bool
    at: float = 0.0
    width: float = 0.0


def choose(question: Question) -> Choice:
    """What to do next."""
    drawn = _drawn(question, np.random.default_rng(_SEED))
    places = drawn.places(min(question.bare, question.room) - 1)
    widths = [0.0, *(step * drawn.size for step in _STEPS)]
    prices = np.stack([drawn.back(places, width) if width else drawn.on(places) for width in widths])
    width, place = np.unravel_index(int(prices.argmin()), prices.shape)
    step = drawn.price(np.zeros(_DRAWN), drawn.target.astype(np.float64) + 1)
    if float(step) <= prices[width, place]:
        return Choice(hop=True)
    return Choice(False, float(places[place]), widths[int(width)])


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Courses. starts: where fragments begin in the gap, with the end of the last, a row for each course.

    target: number of the wanted one. weight: how plausible, in all 1. size: of a fragment. left: requests.
    line: all starts behind each other, the courses so far `apart`.
    """

    starts: Floats
    target: Counts
    weight: Floats
    size: float
    left: int
    line: Floats
    apart: float

    def of(self, number: Counts) -> Floats:
        """Where fragments begin, one for each course."""
        last = self.starts.shape[1] - 1
        found: Floats = self.starts[np.arange(_DRAWN), np.clip(number, 0, last)]
        return found

    def inside(self, at: Floats) -> Counts:
        """In which fragment offsets are, in each course."""
        rows = np.arange(_DRAWN)
        line = np.searchsorted(self.line, at + rows * self.apart, "right")
        inside: Counts = line - rows * self.starts.shape[1] - 1
        return inside

    def price(self, waste: Floats, requests: Floats) -> Floats:
        """Of bytes beyond the wanted fragment, and requests."""
        over = np.maximum(requests - self.left, 0)
        price: Floats = (waste + requests * _REQUEST + over * _OVER) @ self.weight
        return price

    def places(self, end: float) -> Floats:
        """Where a look could begin: around the wanted one, and just before some of the likeliest course."""
        begin = self.of(self.target)
        order = np.argsort(begin)
        half = int(np.searchsorted(np.cumsum(self.weight[order]), 0.5))
        middle = begin[order][min(half, _DRAWN - 1)]
        likely = int(np.argmax(self.weight))
        wanted = int(self.target[likely])
        near = self.starts[likely, max(wanted - 6, 0) : wanted + 2] - 0.03 * self.size
        places = np.concatenate([middle + self.size * np.arange(-7, 2.01, 0.25), near])
        return np.unique(np.clip(places, 0, max(end, 0)))

    def on(self, places: Floats) -> Floats:
        """What a look from an offset on costs, that ends at the first fragment."""
        at = places[:, None]
        found = self.inside(at) + 1
        none = found >= self.starts.shape[1] - 1
        # The wanted one begins before: the bytes that have passed are looked through again, backwards.
        again = 2 + (at - self.of(self.target)) / (self.size * _STEPS[-1])
        waste = self.of(found) - at + np.where(none, self.size * _PASSED, 0)
        return self._with_rest(waste, 1 + 2.0 * none, self.target - found, again)

    def back(self, places: Floats, width: float) -> Floats:
        """What a look back from an offset costs, in windows, up to where the fragment there begins."""
        at = places[:, None]
        found = self.inside(at)
        begin = self.of(found)
        windows = np.floor((at - begin) / width) + 1
        before = np.minimum(windows * width - (at - begin), begin)
        waste = before + np.where(found == self.target, 0, (windows - 1) * width)
        return self._with_rest(waste, windows, self.target - found, np.array(4.0))

    def _with_rest(self, waste: Floats, requests: Floats, ahead: Counts, again: Floats) -> Floats:
        """With what is left to do when the wanted fragment is so many ahead of the found one."""
        steps = np.where(ahead >= 0, np.maximum(ahead, 1), np.where(ahead == -1, again, _PASSED_REQUESTS))
        more = np.where(ahead >= 0, 0, np.where(ahead == -1, 0.25, _PASSED)) * self.size
        return self.price(waste + more, requests + steps)


def _drawn(question: Question, rng: np.random.Generator) -> _Drawn:
    """Plausible courses."""
    scatter = rng.choice(_SCATTER, (_DRAWN, 1), p=_scatters(question.steps))
    lengths = _lengths(question, rng)
    rates, fits = _rates(question, scatter, rng)
    sizes = np.exp(rates) * lengths
    if question.closed:
        fit = question.room / sizes.sum(1)
        sizes *= fit[:, None]
        knowns = 1 / len(question.rates) + 1 / question.count
        apart = np.sqrt(scatter[:, 0] ** 2 * knowns + _MISFIT**2 * question.part + _LEAST**2)
        fits = fits - (np.log(fit) / apart) ** 2 / 2 - np.log(apart)
    starts = np.concatenate([np.zeros((_DRAWN, 1)), np.cumsum(sizes, 1)], 1)
    target = np.minimum((np.cumsum(lengths, 1) <= question.want + 0.5).sum(1), question.count - 1)
    begin = starts[:, -2] if len(question.there) else starts[np.arange(_DRAWN), target]
    fits = fits - np.where(begin < min(question.bare, question.room), 0, 14)
    weight = np.exp(fits - fits.max())
    size = float(np.exp(question.rates).mean() * question.lengths.mean())
    far = float(starts.max()) + question.room + 1
    line = (starts + np.arange(_DRAWN)[:, None] * far).ravel()
    return _Drawn(starts, target, weight / weight.sum(), size, _BUDGET - question.spent, line, far)


def _scatters(steps: Floats) -> Floats:
    """How likely each of `_SCATTER` is by what is known so far: neighbours are alike but for jumps."""
    log = np.log(_MET)
    for step in steps:
        near = np.exp(-(step**2) / 4 / _SCATTER**2) / _SCATTER
        far = np.exp(-(step**2) / 2 / _COURSE) / np.sqrt(_COURSE / 2)
        log = log + np.log(_STEADY * near + (1 - _STEADY) * far)
    chances: Floats = np.exp(log - log.max())
    chances /= chances.sum()
    return chances


def _lengths(question: Question, rng: np.random.Generator) -> Floats:
    """Ticks of fragments."""
    shape = (_DRAWN, question.count)
    if question.even:
        lengths = np.full(shape, float(question.even))
    else:
        lengths = rng.choice(question.lengths, shape) * np.exp(rng.normal(0, 0.2, shape))
    if question.closed:
        lengths *= question.ticks / lengths.sum(1, keepdims=True)
    return lengths


def _rates(question: Question, scatter: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Logarithms of rates of fragments, and how well each course goes with what is known at its ends."""
    shape = (_DRAWN, question.count)
    noise = rng.normal(0, 1, shape)
    scenes = np.repeat(noise, _SCENE, 1)[:, : question.count]
    noise = np.where(rng.random((_DRAWN, 1)) < _SCENES, scenes, noise)
    drift = rng.choice(_DRIFT, (_DRAWN, 1)) * np.sqrt(question.part) * (scatter > _SCATTER[0])
    walk = np.cumsum(rng.normal(0, 1, shape), 1) / np.sqrt(question.count)
    course, fits = _course(question, scatter, rng)
    return course + noise * scatter + walk * drift, fits


def _course(question: Question, scatter: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """From the rate before a gap to that behind it: when it turns follows from the bytes between."""
    apart = rng.choice(_APART, (_DRAWN, 1), p=_APART_MET)
    here, fits = _level(question, question.here, scatter, apart, rng)
    if not question.closed:
        bend = rng.normal(0, 0.5, (_DRAWN, 1)) * rng.choice(_DRIFT, (_DRAWN, 1)) * (scatter > _SCATTER[0])
        return here + bend, fits
    mean = question.room / question.ticks
    there = np.log(mean) + rng.normal(0, 1, (_DRAWN, 1)) * np.minimum(2 * apart, 0.6)
    if len(question.there):
        there, more = _level(question, question.there, scatter, apart, rng)
        fits = fits + more
    width = rng.choice(_WIDTHS, (_DRAWN, 1))
    grid = (np.arange(48) + 0.5) / 48
    least, most = np.full((_DRAWN, 1), -0.5), np.full((_DRAWN, 1), 1.5)
    for _ in range(9):
        turn = (least + most) / 2
        rate = np.exp(_turned(here, there, grid, turn, width)).mean(1, keepdims=True) * np.exp(scatter**2 / 2)
        late = (rate > mean) == (here > there)
        most, least = np.where(late, turn, most), np.where(late, least, turn)
    return _turned(here, there, (np.arange(question.count) + 0.5) / question.count, turn, width), fits


def _turned(here: Floats, there: Floats, parts: Floats, turn: Floats, width: Floats) -> Floats:
    """A course that turns from one rate to another in the middle of so wide a part."""
    rates: Floats = here + (there - here) / (1 + np.exp(np.clip((turn - parts) * 4 / width, -50, 50)))
    return rates


def _level(
    question: Question, some: Floats, scatter: Floats, apart: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """The rate at an end of a gap, an average moved towards the fragment there, and how well these fit."""
    trust = apart**2 / (apart**2 + scatter**2)
    # One fragment alone is its own average.
    averages = rng.choice(some[1:] if len(some) > 1 else question.rates.mean()[None], (_DRAWN, 1))
    unknown = rng.normal(0, 1, (_DRAWN, 1)) * scatter * np.sqrt(trust)
    spread = apart**2 + scatter**2 + _LEAST**2
    fits = -((some[0] - averages) ** 2) / 2 / spread - np.log(spread) / 2
    return averages + (some[0] - averages) * trust + unknown, fits[:, 0]
