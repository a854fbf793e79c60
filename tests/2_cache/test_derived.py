"""Derived values: made once for all who ask at the same time, kept within the budget, failures forgotten."""

from __future__ import annotations

import numpy as np
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from vfs.cache.budget import Budget
from vfs.cache.derived import Derived, default_cost
from vfs.errors import Damaged, Unavailable
from vfs.nodes import Pool


class Maker:
    """`await maker()` gives `value` once `gate` is open; counts its calls."""

    def __init__(self, value: object = b"value", error: Exception | None = None) -> None:
        self.value = value
        self.error = error
        self.gate = trio.Event()
        self.calls = 0
        self.cancelled = 0

    async def __call__(self) -> object:
        self.calls += 1
        try:
            await self.gate.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.value


def test_concurrent_callers_share_one_making_and_later_ones_its_value() -> None:
    async def main() -> None:
        derived, maker = Derived(Budget(10_000)), Maker()
        got: list[object] = []

        async def ask() -> None:
            got.append(await derived.get("k", maker))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            maker.gate.set()
        assert got == [b"value"] * 5
        assert await derived.get("k", maker) == b"value"
        assert (maker.calls, derived.made, derived.joined) == (1, 1, 4)

    trio.run(main)


def test_none_is_a_value_too() -> None:
    async def main() -> None:
        derived, maker = Derived(Budget(10_000)), Maker(None)
        maker.gate.set()
        assert await derived.get("k", maker) is None
        assert await derived.get("k", maker) is None
        assert maker.calls == 1

    trio.run(main)


def test_a_failure_reaches_every_waiter_as_its_own_exception_and_is_not_remembered() -> None:
    async def main() -> None:
        derived, maker = Derived(Budget(10_000)), Maker(error=Unavailable("later", retry_after=2.0))
        errors: list[Unavailable] = []

        async def ask() -> None:
            with pytest.raises(Unavailable, match="later") as caught:
                await derived.get("k", maker)
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            maker.gate.set()
        assert errors[0] is not errors[1]
        assert [e.retry_after for e in errors] == [2.0, 2.0]
        assert maker.calls == 1
        maker.error = None
        assert await derived.get("k", maker) == b"value"

    trio.run(main)


def test_an_exception_that_cannot_be_copied_still_arrives() -> None:
    class Odd(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__("odd")

    async def main() -> None:
        derived, maker = Derived(Budget(10_000)), Maker(error=Odd(1, 2))
        maker.gate.set()
        with pytest.raises(Odd):
            await derived.get("k", maker)

    trio.run(main)


def test_a_cancelled_caller_leaves_the_others_theirs() -> None:
    async def main() -> None:
        derived, maker = Derived(Budget(10_000)), Maker()
        got: list[object] = []
        first = trio.CancelScope()

        async def ask(scope: trio.CancelScope) -> None:
            with scope:
                got.append(await derived.get("k", maker))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, first)
            await wait_all_tasks_blocked()
            nursery.start_soon(ask, trio.CancelScope())
            await wait_all_tasks_blocked()
            first.cancel()
            await wait_all_tasks_blocked()
            maker.gate.set()
        assert got == [b"value"]
        assert (maker.calls, maker.cancelled) == (1, 0)

    trio.run(main)


def test_the_last_caller_to_leave_ends_the_making_and_the_next_begins_anew() -> None:
    async def main() -> None:
        derived, maker = Derived(Budget(10_000)), Maker()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(derived.get, "k", maker)
                nursery.start_soon(derived.get, "k", maker)
                await wait_all_tasks_blocked()
                scope.cancel()
        maker.gate.set()
        assert await derived.get("k", maker) == b"value"
        await wait_all_tasks_blocked()
        assert (maker.calls, maker.cancelled) == (2, 1)

    trio.run(main)


def test_what_is_larger_than_the_budget_is_returned_and_not_kept() -> None:
    async def main() -> None:
        budget = Budget(1000)
        derived, maker = Derived(budget), Maker(bytes(2000))
        maker.gate.set()
        for _ in range(2):
            assert await derived.get("k", maker) == bytes(2000)
        assert maker.calls == 2
        assert budget.used == 0

    trio.run(main)


def test_cost_is_what_the_caller_says_else_what_the_value_holds() -> None:
    async def main() -> None:
        budget = Budget(100_000)
        derived, maker = Derived(budget), Maker(np.zeros(100, np.int64))
        maker.gate.set()
        await derived.get("array", maker)
        assert 800 <= budget.used < 2000
        before = budget.used
        await derived.get("said", maker, lambda value: 50_000)
        assert 50_000 <= budget.used - before < 51_000

    trio.run(main)
    assert default_cost(b"abc") == 3
    assert default_cost(object()) > 0


def test_a_value_that_needs_itself_is_an_error_not_a_hang() -> None:
    async def main() -> None:
        derived = Derived(Budget(10_000))

        async def outer() -> object:
            return await derived.get("inner", inner)

        async def inner() -> object:
            return await derived.get("outer", outer)

        with pytest.raises(RuntimeError, match="needs 'outer'"):
            await derived.get("outer", outer)

    trio.run(main)


def test_values_may_be_made_from_other_derived_values() -> None:
    async def main() -> None:
        derived = Derived(Budget(10_000))

        async def index() -> bytes:
            return b"index"

        async def clip() -> bytes:
            return b"clip of " + await derived.get("index", index)

        assert await derived.get("clip", clip) == b"clip of index"
        assert derived.made == 2

    trio.run(main)


def test_damaged_media_is_asked_again_each_time() -> None:
    async def main() -> None:
        derived, maker = Derived(Budget(10_000)), Maker(error=Damaged("no moov"))
        maker.gate.set()
        for _ in range(2):
            with pytest.raises(Damaged):
                await derived.get("k", maker)
        assert maker.calls == 2

    trio.run(main)


def test_a_pool_takes_its_share_and_no_more() -> None:
    """The least recently used of the pool go; what is in no pool stays; too large a value is not kept."""

    async def main() -> None:
        budget = Budget(100_000)
        derived, pool = Derived(budget), Pool("blocks", 4000)

        async def make(name: str, size: int, where: Pool | None = pool) -> None:
            async def work() -> bytes:
                made.append(name)
                return bytes(size)

            assert len(await derived.get(name, work, pool=where)) == size

        made: list[str] = []
        await make("table", 5000, None)
        for name in ("a", "b", "c"):
            await make(name, 1000)
        await make("a", 1000)  # now used more recently than b
        await make("d", 1000)
        made.clear()
        for name in ("a", "c", "d", "table"):
            await make(name, 5000 if name == "table" else 1000, None if name == "table" else pool)
        assert made == []
        await make("b", 1000)
        await make("large", 4000)
        await make("large", 4000)
        assert made == ["b", "large", "large"]
        # What the budget throws out for others is out of the pool, too.
        budget.pin(100_000)
        budget.unpin(100_000)
        made.clear()
        await make("d", 1000)
        assert made == ["d"]

    trio.run(main)
