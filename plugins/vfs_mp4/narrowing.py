"""From anchors that are still being found to regions that can be read: a `Finder` is asked until they are."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from vfs import Damaged
from vfs_mp4 import table
from vfs_mp4.probe import Reader
from vfs_mp4.table import FragmentTable

# Steps for one window, each a request at most: longer ranges without an index are read from box to box.
_MAX_STEPS = 2000


async def settled(reader: Reader, now: FragmentTable, begin: Fraction, end: Fraction) -> FragmentTable:
    """The table in which all regions of [begin, end] (seconds after the edit list) are fine."""
    now = now.current()
    want = int((begin - table.delays(now)[0]) * now.scale() // 1)
    for _ in range(_MAX_STEPS):
        first, last = table.regions_for(now, begin, end)
        rough = _first_rough(now, first, last)
        if rough is None:
            return now
        now = await _narrowed(reader, now, rough, max(want, int(now.known_anchors().time[rough])))
    raise Damaged(f"more than {_MAX_STEPS} fragments to find")


async def grown(
    reader: Reader, now: FragmentTable, held: tuple[int, int], more: tuple[int, int]
) -> tuple[FragmentTable, tuple[int, int]]:
    """The fine regions `held`, first and last, and `more` of them before and behind, cut to what there is.

    Where regions are still being found, one on each side is found at a time.
    """
    (first, last), (left, right) = held, more
    if now.finder is None:
        return now, (max(first - left, 0), min(last + right, len(now.known_anchors()) - 1))
    begin, end = now.bounds(first)[0], now.bounds(last)[0]
    if left and first > 0:
        now = await fine(reader, now, begin, late=True)
        begin = now.bounds(number_at(now, begin) - 1)[0]
    behind = number_at(now, end) + 1
    if right and behind < len(now.known_anchors()):
        end = now.bounds(behind)[0]
        now = await fine(reader, now, end, late=False)
    return now, (number_at(now, begin), number_at(now, end))


async def fine(reader: Reader, now: FragmentTable, at: int, *, late: bool) -> FragmentTable:
    """The table in which the region that begins at `at` (`late`: that ends there) is fine."""
    for _ in range(_MAX_STEPS):
        anchors, number = now.known_anchors(), number_at(now, at) - late
        if anchors.is_fine(number):
            return now
        want = int(anchors.time[number])
        if late:
            want = max(want, int(anchors.time[number + 1]) - 1)
        now = await _narrowed(reader, now, number, want)
    raise Damaged(f"more than {_MAX_STEPS} fragments to find")


def number_at(now: FragmentTable, at: int) -> int:
    """The region that begins at an offset."""
    return int(np.searchsorted(now.known_anchors().offset, at, "left"))


def _first_rough(now: FragmentTable, first: int, last: int) -> int | None:
    anchors = now.known_anchors()
    return next((n for n in range(first, last + 1) if not anchors.is_fine(n)), None)


async def _narrowed(reader: Reader, now: FragmentTable, number: int, want: int) -> FragmentTable:
    assert now.finder is not None
    before = now.known_anchors()
    await now.finder.narrow(reader, *now.bounds(number), want)
    if (now := now.current()).known_anchors() is before:
        raise Damaged("nothing more is found")
    return now
