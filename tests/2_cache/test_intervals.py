"""Sorted pieces against a plain set of bytes, and the joining of requests."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfs.cache.intervals import Intervals, Range, coalesce, merged, subtract


@dataclass(eq=False)
class Bit:
    start: int
    end: int


def cells(ranges: list[Range]) -> set[int]:
    return {n for start, end in ranges for n in range(start, end)}


spans = st.tuples(st.integers(0, 60), st.integers(1, 12)).map(lambda t: (t[0], t[0] + t[1]))


@given(st.lists(spans), spans)
def test_lookups_equal_those_in_a_set_of_bytes(script: list[Range], asked: Range) -> None:
    pieces: Intervals[Bit] = Intervals()
    model: dict[int, Bit] = {}
    for start, end in script:
        bit = Bit(start, end)
        if any(n in model for n in range(start, end)):
            with pytest.raises(ValueError, match="overlaps"):
                pieces.add(bit)
            victim = pieces.overlapping(start, end)[0]
            assert pieces.discard(victim)
            assert not pieces.discard(victim)
            model = {n: b for n, b in model.items() if b is not victim}
        else:
            pieces.add(bit)
            model |= dict.fromkeys(range(start, end), bit)
    assert [pieces.at(n) for n in range(80)] == [model.get(n) for n in range(80)]
    there = [model[n] for n in range(*asked) if n in model]
    assert pieces.overlapping(*asked) == list(dict.fromkeys(there))
    assert cells(pieces.gaps(*asked)) == set(range(*asked)) - set(model)
    for bit in pieces:
        before = pieces.before(bit)
        assert before is model.get(bit.start - 1)


@given(st.lists(spans))
def test_merged_is_sorted_disjoint_and_the_same_bytes(script: list[Range]) -> None:
    result = merged(script)
    assert cells(result) == cells(script)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(result))


@given(st.lists(spans), st.lists(spans), st.integers(0, 9), st.integers(1, 20))
def test_requests_cover_what_is_missing_and_little_else(
    asked: list[Range], busy: list[Range], gap: int, most: int
) -> None:
    busy = merged(busy)
    missing = [rest for span in merged(asked) for rest in subtract(span, clip(busy, span))]
    requests = coalesce(missing, busy, gap, most)
    got = cells(requests)
    assert cells(missing) <= got
    assert len(got) == sum(end - start for start, end in requests), "no byte twice"
    assert not got & cells(busy)
    assert all(end - start <= most for start, end in requests)
    holes = merged([(n, n + 1) for n in got - cells(missing)])
    assert all(end - start <= gap for start, end in holes)
    ends = {n for start, end in requests for n in (start, end - 1)}
    assert ends <= cells(missing), "no request begins or ends with bytes nobody wants"


def clip(busy: list[Range], span: Range) -> list[Range]:
    cut = [(max(a, span[0]), min(b, span[1])) for a, b in busy]
    return [(a, b) for a, b in cut if a < b]


def test_near_neighbours_become_one_request_and_far_ones_do_not() -> None:
    assert coalesce([(0, 10), (14, 20), (25, 30)], (), 4, 100) == [(0, 20), (25, 30)]
    assert coalesce([(0, 10), (14, 20)], [(11, 12)], 4, 100) == [(0, 10), (14, 20)]
    assert coalesce([(0, 10), (14, 20)], (), 4, 15) == [(0, 10), (14, 20)]


def test_a_long_range_becomes_equal_parts() -> None:
    assert coalesce([(0, 90)], (), 4, 40) == [(0, 30), (30, 60), (60, 90)]
