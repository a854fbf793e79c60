"""Several pieces of work at one time: in order, so many at once, the first failure as it is."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock

import vfs


def test_results_come_in_order_and_so_many_run_at_a_time() -> None:
    running, most = 0, 0

    async def one(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(10 - number)
        running -= 1
        return number

    async def main() -> None:
        assert await vfs.gather([partial(one, number) for number in range(10)], 3) == list(range(10))
        assert await vfs.gather([]) == []

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert most == 3


def test_the_first_failure_ends_the_others_and_is_raised_as_it_is() -> None:
    ended: list[str] = []

    async def long() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("long")

    async def failing() -> None:
        await trio.sleep(1)
        raise vfs.Unavailable("away")

    async def main() -> None:
        with pytest.raises(vfs.Unavailable, match="away"):
            await vfs.gather([long, failing])
        assert ended == ["long"]
        with trio.move_on_after(1) as scope:
            await vfs.gather([long])
        assert scope.cancelled_caught

    trio.run(main, clock=MockClock(autojump_threshold=0))
