"""What is looked at next: every entry at its earliest time, once, whatever is added meanwhile."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from vfs.write.pending import Entry, Kind
from vfs.write.schedule import Schedule

ENTRIES = [Entry(ident, f"{ident}", Kind.FILE) for ident in range(6)]
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(ENTRIES), st.integers(0, 20).map(float)),
        st.tuples(st.just("block"), st.sampled_from(ENTRIES), st.just(0.0)),
        st.tuples(st.sampled_from(("pop", "unblock")), st.none(), st.integers(0, 20).map(float)),
    )
)


@given(steps)
def test_as_a_table_that_is_searched(told: list[tuple[str, Entry | None, float]]) -> None:
    schedule, due, blocked = Schedule(), dict[int, float](), set[int]()
    for what, entry, when in told:
        if what == "add" and entry is not None:
            schedule.add(entry, when)
            due[entry.ident] = min(when, due.get(entry.ident, math.inf))
            blocked.discard(entry.ident)
        elif what == "block" and entry is not None and entry.ident not in due:
            schedule.block(entry)
            blocked.add(entry.ident)
        elif what == "unblock":
            schedule.unblock(when)
            due |= {ident: min(0.0, when) for ident in blocked}
            blocked.clear()
        elif what == "pop" and due:
            assert schedule.next_due() == min(due.values())
            first = min(due.values())
            assert due.pop(schedule.pop().ident) == first
        assert len(schedule) == len(due)
        assert schedule.next_due() == min(due.values(), default=math.inf)
        assert schedule.blocked.keys() == blocked
