"""Where a fragment is looked for: always inside of the gap, and where it is when sizes tell."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vfs_mp4 import aim
from vfs_mp4.aim import SMALL, Gap


@dataclass(frozen=True)
class Known:
    """A fragment."""

    time: int
    until: int
    after: int


def line(sizes: list[int], lengths: list[int]) -> dict[int, Known]:
    """Fragments one behind the other."""
    ends, times = list(accumulate(sizes, initial=1000)), list(accumulate(lengths, initial=0))
    return {ends[n]: Known(times[n], times[n + 1], ends[n + 1]) for n in range(len(sizes))}


fragment = st.tuples(st.integers(100, 20_000_000), st.integers(1, 10_000_000))


@given(
    st.lists(fragment, min_size=3, max_size=40),
    st.data(),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.01, 3.0]),
)
def test_a_look_is_inside_of_the_gap(
    fragments: list[tuple[int, int]], data: st.DataObject, looks: int, rate: float
) -> None:
    """Whatever is known, and whatever is asked for: a step, or some bytes of the gap to look at."""
    whole = line([size for size, _ in fragments], [length for _, length in fragments])
    offsets, end = [*whole], list(whole.values())[-1].after
    picked = data.draw(st.sets(st.sampled_from(offsets[1:]), max_size=len(offsets) - 2))
    order = sorted({offsets[0], *picked})
    before = data.draw(st.sampled_from(order))
    stop = min((at for at in order if at > before), default=end)
    known = {at: whole[at] for at in order}
    if known[before].after >= stop:
        return
    gap = Gap(known, order, before, stop, 0.0 if stop in known else rate)
    for found in (
        aim.at_time(gap, data.draw(st.integers(0, 1 << 40)), looks),
        aim.at_offset(gap, data.draw(st.integers(known[before].after, stop - 1))),
    ):
        assert found.each >= 1
        assert found.hop or known[before].after <= found.low < found.high <= stop


def test_a_rest_of_less_than_a_fragment_is_looked_at() -> None:
    whole = line([886, 100, 100], [1, 1, 1])
    known = {at: whole[at] for at in (1000, 1886)}
    found = aim.at_time(Gap(known, [1000, 1886], 1886, 2086, 0.0), 0, 1)
    assert 1986 <= found.low < found.high <= 2086


@pytest.mark.parametrize("size", [20_000, 2_000_000])
def test_of_even_fragments_the_wanted_one_is_met_at_once(size: int) -> None:
    """Of large ones the look begins a little before it, of small ones it has it and the next one."""
    whole = line([size] * 1000, [100] * 1000)
    offsets = [*whole]
    known = {at: whole[at] for at in (offsets[0], offsets[-1])}
    gap = Gap(known, [*known], offsets[0], offsets[-1], 0.0)
    for number in (10, 400, 700):
        found = aim.at_time(gap, number * 100 + 37, 1)
        target = offsets[number]
        if size <= SMALL:
            assert found.low <= target
            assert target + size <= found.high or found.high - found.low >= 512 << 10
        else:
            assert target - 2 * size < found.low <= target


def test_a_jump_of_the_rate_is_where_both_lines_meet() -> None:
    sizes = [500_000] * 600 + [5_000_000] * 400
    whole = line(sizes, [100] * 1000)
    offsets = [*whole]
    known = {at: whole[at] for at in (offsets[0], offsets[-1])}
    gap = Gap(known, [*known], offsets[0], offsets[-1], 0.0)
    for number in (100, 599, 610, 900):
        found = aim.at_time(gap, number * 100 + 5, 1)
        assert offsets[number] - 2.5 * found.each <= found.low <= offsets[number]
