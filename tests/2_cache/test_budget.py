"""The one memory budget: least recently used goes first, pins count, precious entries last longer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfs.cache.budget import Budget


def test_least_recently_used_goes_first() -> None:
    gone: list[str] = []
    budget = Budget(30)
    for name in ("a", "b", "c"):
        assert budget.put(name, name, 10, evicted=gone.append)
    assert budget.get("a") == "a"
    budget.touch("b")
    budget.put("d", "d", 10)
    assert gone == ["c"]
    assert "c" not in budget
    assert budget.get("c", "none") == "none"
    assert (budget.hits, budget.misses, budget.evictions) == (2, 1, 1)


def test_pins_take_room_from_entries_and_may_alone_exceed_the_limit() -> None:
    budget = Budget(100)
    budget.put("old", 1, 60)
    budget.put("new", 2, 30)
    budget.pin(50)
    assert "old" not in budget
    assert "new" in budget
    assert budget.used == 80
    budget.pin(100)
    assert len(budget) == 0
    assert budget.used == budget.pinned == 150
    assert not budget.put("x", 1, 1)
    budget.unpin(150)
    assert budget.put("x", 1, 100)
    with pytest.raises(ValueError, match="unpin"):
        budget.unpin(1)


def test_what_does_not_fit_at_all_is_not_kept_and_evicts_nothing() -> None:
    budget = Budget(10)
    budget.put("a", 1, 10)
    assert not budget.put("b", 2, 11)
    assert budget.get("a") == 1


def test_a_value_put_again_replaces_and_is_counted_once() -> None:
    gone: list[int] = []
    budget = Budget(10)
    budget.put("a", 1, 8, evicted=gone.append)
    budget.put("a", 2, 4, precious=True, evicted=gone.append)
    assert budget.get("a") == 2
    assert budget.used == 4
    assert gone == []
    budget.drop("a")
    budget.drop("a")
    assert budget.used == 0


def test_precious_entries_survive_a_flood_of_plain_ones_up_to_half_of_the_limit() -> None:
    budget = Budget(100)
    budget.put("table", 1, 40, precious=True)
    for number in range(100):
        budget.put(number, number, 20)
    assert "table" in budget
    budget.put("second", 2, 40, precious=True)
    assert "table" in budget
    assert 99 in budget
    budget.put("plain", 3, 20)
    assert "table" not in budget, "over half of the limit the oldest precious entry goes first"
    assert "second" in budget


def test_an_eviction_may_drop_other_entries() -> None:
    budget = Budget(20)
    budget.put("a", 1, 10, evicted=lambda _: budget.drop("b"))
    budget.put("b", 2, 10)
    budget.put("c", 3, 10)
    assert budget.used == 10


steps = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 9), st.integers(0, 60), st.booleans()),
    st.tuples(st.just("pin"), st.just(0), st.integers(0, 60), st.booleans()),
    st.tuples(st.just("unpin"), st.just(0), st.integers(0, 60), st.booleans()),
    st.tuples(st.sampled_from(["drop", "get"]), st.integers(0, 9), st.just(0), st.booleans()),
)


@given(st.lists(steps))
def test_never_over_the_limit_beyond_pins_and_every_entry_is_accounted_for(
    script: list[tuple[str, int, int, bool]],
) -> None:
    budget = Budget(100)
    alive: dict[int, int] = {}
    for step, key, amount, precious in script:
        if step == "put":
            alive.pop(key, None)
            if budget.put(key, key, amount, evicted=lambda k: alive.pop(k), precious=precious):
                alive[key] = amount
        elif step == "pin":
            budget.pin(amount)
        elif step == "unpin":
            budget.unpin(min(amount, budget.pinned))
        elif step == "drop":
            budget.drop(key)
            alive.pop(key, None)
        else:
            assert (budget.get(key) is not None) == (key in alive)
        assert budget.kept == sum(alive.values())
        assert budget.used <= max(budget.limit, budget.pinned)
