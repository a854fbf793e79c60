"""Sorted, disjoint pieces of a range of bytes, found by bisection."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

Range = tuple[int, int]


class Piece(Protocol):
    """Anything that covers the bytes [start, end), end > start."""

    @property
    def start(self) -> int:
        """First byte."""

    @property
    def end(self) -> int:
        """The byte after the last."""


P = TypeVar("P", bound=Piece)


class Intervals(Generic[P]):
    """Disjoint pieces in order of their starts."""

    __slots__ = ("_items", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._items: list[P] = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[P]:
        return iter(self._items)

    def at(self, offset: int) -> P | None:
        """The piece that covers the byte `offset`."""
        index = bisect_right(self._starts, offset) - 1
        if index >= 0 and offset < (item := self._items[index]).end:
            return item
        return None

    def overlapping(self, start: int, end: int) -> list[P]:
        """The pieces that share a byte with [start, end), in order."""
        first = bisect_right(self._starts, start) - 1
        if first < 0 or self._items[first].end <= start:
            first += 1
        return self._items[first : bisect_left(self._starts, end, lo=first)]

    def gaps(self, start: int, end: int) -> list[Range]:
        """The parts of [start, end) that no piece covers, in order."""
        found: list[Range] = []
        for item in self.overlapping(start, end):
            if item.start > start:
                found.append((start, item.start))
            start = item.end
        if start < end:
            found.append((start, end))
        return found

    def add(self, item: P) -> None:
        """Insert a piece. Raises ValueError when it is empty or overlaps another."""
        if item.start >= item.end or self.overlapping(item.start, item.end):
            raise ValueError(f"piece {item.start}..{item.end} is empty or overlaps")
        index = bisect_left(self._starts, item.start)
        self._starts.insert(index, item.start)
        self._items.insert(index, item)

    def discard(self, item: P) -> bool:
        """Take this very piece out; False when it is not in."""
        index = bisect_left(self._starts, item.start)
        if index >= len(self._items) or self._items[index] is not item:
            return False
        del self._starts[index], self._items[index]
        return True

    def before(self, item: P) -> P | None:
        """The piece that ends where `item` begins."""
        found = self.at(item.start - 1)
        return found if found is not None and found.end == item.start else None


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Sorted and disjoint: overlapping and touching ranges joined, empty ones dropped."""
    result: list[Range] = []
    for start, end in sorted(ranges):
        if end <= start:
            continue
        if result and start <= result[-1][1]:
            if end > result[-1][1]:
                result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result


def subtract(hole: Range, pieces: Iterable[Range]) -> list[Range]:
    """What of `hole` is left without the sorted `pieces` inside it."""
    start, end = hole
    left: list[Range] = []
    for first, last in pieces:
        if first > start:
            left.append((start, first))
        start = last
    if start < end:
        left.append((start, end))
    return left


def _split(start: int, end: int, most: int) -> Iterator[Range]:
    """Equal parts of at most `most` bytes: parts in parallel end together."""
    step = -(-(end - start) // -(-(end - start) // most))
    while start < end:
        yield start, min(start + step, end)
        start += step


def coalesce(missing: Iterable[Range], busy: Sequence[Range], gap: int, most: int) -> list[Range]:
    """Requests for the sorted `missing` ranges: neighbours joined over holes of at most `gap` bytes that
    are not `busy` (sorted, disjoint: already on their way), none larger than `most`."""
    starts = [start for start, _ in busy]
    requests: list[Range] = []
    for whole in missing:
        for start, end in _split(*whole, most):
            if requests:
                first, last = requests[-1]
                before = bisect_left(starts, start) - 1
                free = before < 0 or busy[before][1] <= last
                if free and start - last <= gap and end - first <= most:
                    requests[-1] = (first, end)
                    continue
            requests.append((start, end))
    return requests
