"""Where a time should be among the fragments of a file, by those that are known, and how sure that is. Pure.

Between two known fragments sizes are summed up like the steps of a random walk that is pinned at both ends:
the estimate is best beside them and worst in the middle. Behind the last known one only the course so far
tells. Small fragments are looked for in a window around the estimate, of large ones `courses` tells where a
look is cheapest: each costs half a fragment.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from vfs_mp4 import courses
from vfs_mp4.courses import Question

#: A fragment up to this size is cheap to look at: several are read in one request.
SMALL = 256 << 10
# Fragments from a known one to the wanted one that are stepped over, a request of a few KiB each.
_HOPS = 2.5
# Of small ones so much is read at once.
_LEAST, _MOST = 160 << 10, 512 << 10
# How sizes of fragments scatter around the course of the film, as a part of their mean, and how far the
# course itself is from what is expected, as a part of the gap.
_SCATTER, _MISFIT = 0.45, 0.2
# After so many looks that all fell short of it the end is looked at, which bounds what comes after.
_SHORT = 2
# A third fragment farther from a gap than so many times its length tells nothing of the course in it.
_FAR = 2
# Rates on both sides of a gap that differ so many times are no chance: there is a jump in it.
_JUMP = 4
# After so many looks every other estimate is a line: a course that jumps has no bend.
_BENT = 3
# Lengths that differ by less are the same: an encoder with a fixed interval of key frames.
_SAME, _LATE_EVEN = 0.02, 0.02
# Known fragments that are looked at for how large and how long they are.
_SAMPLE = 64
# Known fragments on each side that are looked at for how the rate changes.
_AROUND = 12


class Piece(Protocol):
    """What is known of a fragment: when it begins and ends, and where it ends."""

    @property
    def time(self) -> int:
        """Ticks."""

    @property
    def until(self) -> int:
        """Ticks."""

    @property
    def after(self) -> int:
        """Offset behind it."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What to do next. hop: step from the known fragment to the next one; else look from `low` on.

    high: where a window of small fragments ends; of large ones the look ends with the first that is found.
    each: bytes of a fragment thereabouts. small: whether fragments are. back: bytes of a window before it
    that is looked at next where none is found, 0 = wider and wider ones.
    """

    hop: bool
    low: int
    high: int
    each: int
    small: bool
    back: int = 0


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch without known fragments.

    starts: the known fragments by offset, in order. before: the one before it. stop: its end, where another
    known one begins or all fragments end. rate: bytes a tick up to there, 0 = not known. bare: from there to
    `stop` no fragment begins; None where nothing was looked at.
    """

    starts: Mapping[int, Piece]
    order: Sequence[int]
    before: int
    stop: int
    rate: float
    bare: int | None = None

    @property
    def room(self) -> int:
        """Bytes."""
        return self.stop - self.starts[self.before].after


def each(gap: Gap) -> int:
    """Bytes of a fragment in a gap: the mean of its neighbours and of all."""
    sides = [at for at in (gap.before, gap.stop) if at in gap.starts]
    sizes = [gap.starts[at].after - at for at in sides]
    some = _some(gap)
    mean = sum(gap.starts[at].after - at for at in some) / len(some)
    return max(int((sum(sizes) + sizes[0] * (len(sizes) == 1) + mean) / 3), 1)


def _some(gap: Gap) -> Sequence[int]:
    """Known fragments all over the file, not too many."""
    return gap.order[:: max(len(gap.order) // _SAMPLE, 1)]


def at_time(gap: Gap, want: int, looks: int, spent: int = 2) -> Aim:
    """Where to look for a time in a gap.

    looks: how many there were for this time, this one included. spent: requests for it.
    """
    known, size = gap.starts[gap.before], each(gap)
    at = max(want - known.until, 0)
    even = _length(gap)
    # Where all last equally long it is known when the wanted one begins, else that it is somewhere in it.
    late = size * _LATE_EVEN if even else size / 2
    offset, spread = _estimate(
        gap, at // even * even if even else at, size, bent=looks <= _BENT or looks % 2 > 0
    )
    closed = gap.stop in gap.starts or gap.rate > 0
    if not closed and (size <= SMALL or looks > _SHORT):
        offset, spread = max(gap.room - size * 1.3, 0.0), 0.0
    near = offset < _HOPS * size if closed or offset < gap.room - size else gap.room < 2 * size
    own = known.after - gap.before
    if size <= SMALL or (near and own <= SMALL):
        return _window(gap, offset, spread, min(size, own) if near else size)
    question = _question(gap, want, even, spent)
    if question.count <= courses.MOST:
        return _chosen(gap, size, courses.choose(question))
    low = offset - late - min(spread, _HOPS / 2 * size)
    # Not so near the end of the gap that there is nothing left to find.
    low = min(low, gap.room - size * (1.0 if gap.stop in gap.starts else 1.3))
    return Aim(near or low < size / 10, known.after + max(int(low), 0), gap.stop, size, small=False)


def _chosen(gap: Gap, size: int, choice: courses.Choice) -> Aim:
    """A choice as offsets."""
    after, width = gap.starts[gap.before].after, int(choice.width)
    at = after + int(choice.at)
    if not width or at == after:
        return Aim(choice.hop, at, gap.stop, size, small=False)
    return Aim(False, max(at - width, after), at, width, small=False, back=width)


def _question(gap: Gap, want: int, even: int, spent: int) -> Question:
    """What is known around a gap, and what is asked."""
    known, behind = gap.starts[gap.before], gap.starts.get(gap.stop)
    ticks = behind.time - known.until if behind is not None else int(gap.room / gap.rate) if gap.rate else 0
    here, there = _ends(gap)
    if ticks > 0 and gap.room > 0:
        mean = math.log(gap.room / ticks)
        here, there = [*here, mean], [*there, mean] if there else []
    last = gap.order[-1]
    some = [at for at in _some(gap) if at != last and _lasts(gap, at)] or [gap.before]
    begin = gap.starts[gap.order[0]].time
    whole = max(gap.starts[last].until, want) - begin
    return Question(
        rates=np.array([_rate(gap, at) for at in some]),
        lengths=np.array([float(max(_lasts(gap, at), 1)) for at in some]),
        steps=np.array(_steps(gap), dtype=np.float64),
        here=np.array(here),
        there=np.array(there),
        room=gap.room,
        ticks=max(ticks, 0),
        want=max(want - known.until, 0),
        even=even,
        bare=(gap.stop if gap.bare is None else gap.bare) - known.after,
        part=min(max(ticks if ticks > 0 else (want - known.until) * 1.5, 0) / max(whole, 1), 1.0),
        spent=spent,
    )


def _steps(gap: Gap) -> list[float]:
    """How rates of known fragments differ from that of the next one, or of all between it and the next known.

    Those that looks find are not any: each lies behind one that is likely large.
    """
    found = []
    near = gap.order[-_SAMPLE:]
    for first, second in pairwise(near):
        between = _between_known(gap, first, second)
        if between is not None:
            found += [_rate(gap, first) - between, _rate(gap, second) - between]
        elif second != gap.order[-1]:
            found.append(_rate(gap, second) - _rate(gap, first))
    return found


def _ends(gap: Gap) -> tuple[list[float], list[float]]:
    """Rates before and behind a gap: of the known fragment, and of what lies from it to the next known."""
    order = gap.order
    place = bisect_left(order, gap.before)
    here = [_rate(gap, gap.before)]
    near = _between_known(gap, order[max(place - 1, 0)], gap.before)
    if near is not None:
        # As the last stretch went, which tells more than a single fragment, or on from the one before it.
        here += [near, near]
        far = _between_known(gap, order[max(place - 2, 0)], order[place - 1])
        here += [] if far is None else [2 * near - far]
    if gap.stop not in gap.starts:
        return here, []
    there = [_rate(gap, gap.stop)]
    near = _between_known(gap, gap.stop, order[min(place + 2, len(order) - 1)])
    return here, there if near is None else [*there, near, near]


def _lasts(gap: Gap, at: int) -> int:
    return gap.starts[at].until - gap.starts[at].time


def _rate(gap: Gap, at: int) -> float:
    """Logarithm of bytes a tick of a known fragment."""
    return math.log((gap.starts[at].after - at) / max(_lasts(gap, at), 1))


def _between_known(gap: Gap, first: int, second: int) -> float | None:
    """Logarithm of bytes a tick from one known fragment to another; None where nothing is between."""
    ticks, size = gap.starts[second].time - gap.starts[first].until, second - gap.starts[first].after
    return math.log(size / ticks) if ticks > 0 and size > 0 else None


def at_offset(gap: Gap, at: int) -> Aim:
    """How to find the fragment near an offset in a gap."""
    size = each(gap)
    low = min(at, gap.stop - size * 4 // 3)
    high = min(low + 2 * size, gap.stop) if size <= SMALL else gap.stop
    return Aim(
        hop=False, low=max(low, gap.starts[gap.before].after), high=high, each=size, small=size <= SMALL
    )


def _window(gap: Gap, offset: float, spread: float, size: int) -> Aim:
    """A window in which the wanted one should be, with the one behind it, which proves it."""
    after = gap.starts[gap.before].after
    width = min(max(2 * spread + 2 * size, _LEAST), _MOST)
    low = offset - size / 2 - width / 2
    if offset + 2 * size < _MOST / 2:
        low, width = 0.0, offset + 2 * size
    begin = after + int(max(min(low, gap.room - width), 0.0))
    return Aim(hop=False, low=begin, high=min(begin + int(width), gap.stop), each=size, small=True)


def _length(gap: Gap) -> int:
    """Ticks that each fragment lasts, 0 where they differ. The last one of all may be shorter."""
    last = gap.order[-1]
    lengths = [gap.starts[at].until - gap.starts[at].time for at in _some(gap) if at != last]
    if not lengths:
        return gap.starts[last].until - gap.starts[last].time
    low, high = min(lengths), max(lengths)
    return high if high - low <= _SAME * high else 0


def _estimate(gap: Gap, at: int, size: int, *, bent: bool) -> tuple[float, float]:
    """Bytes into a gap where a time (ticks into it) should be, and how far off that may be."""
    known, behind, room = gap.starts[gap.before], gap.starts.get(gap.stop), gap.room
    if behind is None and not gap.rate:
        return _further(gap, at)
    length = behind.time - known.until if behind is not None else int(room / gap.rate)
    length = max(length, 1)
    found = _jumped(gap, at, length) or (_between(gap, at, length) if bent else at * room / length)
    offset = min(found, float(room))
    part = offset / room if room else 0.0
    walk = size * _SCATTER * math.sqrt(max(room / size, 0) * part * (1 - part))
    return offset, walk + _MISFIT * room * part * (1 - part)


def _further(gap: Gap, at: int) -> tuple[float, float]:
    """Where nothing is known behind: as the rate went from the first fragment to the last known one."""
    first, last = gap.order[0], gap.starts[gap.before]
    begin = gap.starts[first]
    slope = (begin.after - first) / max(begin.until - begin.time, 1)
    gone, bytes_gone = max(last.until - begin.time, 1), last.after - first
    rate = bytes_gone / gone
    whole = gone + at
    bent = slope * whole + (rate - slope) / gone * whole * whole - bytes_gone
    offset = bent if bent > 0 else rate * at
    return offset, offset * _SCATTER / math.sqrt(len(gap.order))


def _jumped(gap: Gap, at: int, length: int) -> float | None:
    """Two lines, with the rates of the fragments on both sides; None where these are alike or do not meet."""
    behind = gap.starts.get(gap.stop)
    if behind is None:
        return None
    known = gap.starts[gap.before]
    here = (known.after - gap.before) / max(known.until - known.time, 1)
    there = (behind.after - gap.stop) / max(behind.until - behind.time, 1)
    if max(here, there) < _JUMP * min(here, there):
        return None
    turn = (there * length - gap.room) / (there - here)
    if not 0 < turn < length:
        return None
    return here * at if at < turn else gap.room - there * (length - at)


def _between(gap: Gap, at: int, length: int) -> float:
    """A line through the gap, bent to pass through a third known fragment."""
    room = gap.room
    line, bend = at * room / length, 0.0
    # Nearer ones tell of single fragments and not of the course of the film.
    least = max(min(at, length - at) / 2, 1)
    far = _FAR * length
    thirds = [(t, o) for t, o in _around(gap) if -far < t <= -least or length + least <= t < length + far]
    if thirds:
        time, offset = min(thirds, key=lambda third: abs(third[0] - at))
        bend = (offset - time * room / length) / (time * (time - length)) * at * (at - length)
    return line + bend if 0 < line + bend < room else line


def _around(gap: Gap) -> list[tuple[int, int]]:
    """(time, offset) of some known fragments on both sides of a gap, counted from its beginning."""
    order, known = gap.order, gap.starts[gap.before]
    place = bisect_left(order, gap.before)
    near = [*order[max(place - _AROUND, 0) : place], *order[place + 2 :][:_AROUND], order[0], order[-1]]
    return [
        (gap.starts[at].time - known.until, at - known.after)
        for at in near
        if at not in (gap.before, gap.stop)
    ]
