"""Several pieces of work at one time, and work in the background; errors as they are, not in groups."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

T = TypeVar("T")

#: Pieces at one time, unless another number is asked for: what a store serves well beside other readers.
AT_ONCE = 8


async def gather(works: Iterable[Callable[[], Awaitable[T]]], limit: int = AT_ONCE) -> list[T]:
    """The results of all, in order, at most `limit` of them under way at a time.

    The first failure ends the others, and is raised as it is: not in the group that a nursery makes of it.
    """
    results: dict[int, T] = {}
    failures: list[Exception] = []
    free = trio.CapacityLimiter(limit)

    async def one(number: int, work: Callable[[], Awaitable[T]], scope: trio.CancelScope) -> None:
        async with free:
            try:
                results[number] = await work()
            except Exception as error:
                failures.append(error)
                scope.cancel()

    async with trio.open_nursery() as nursery:
        for number, work in enumerate(works):
            nursery.start_soon(one, number, work, nursery.cancel_scope)
    if failures:
        raise failures[0]
    return [results[number] for number in sorted(results)]


@asynccontextmanager
async def background() -> AsyncIterator[trio.Nursery]:
    """A nursery for what runs beside the block, and is cancelled at its end.

    What the block raises comes out as it is: past the nursery, which would wrap it in a group.
    """
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except (trio.Cancelled, GeneratorExit):
            raise
        except BaseException as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def nursery_without_groups() -> AsyncIterator[trio.Nursery]:
    """A nursery that raises the first error in it as it is."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            others = (one for one in error.exceptions if not isinstance(one, trio.Cancelled))
            error = next(others, error.exceptions[0])
        raise error from None
