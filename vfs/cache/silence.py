"""While a store does not answer, what is known of it counts, however old.

A store that is slow is waited for. It is away when it says so (`offline`), when a request fails as
`Unavailable`, or when one HEAD takes too long; then nobody asks for a while, and who asks next waits briefly.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from vfs.errors import Unavailable
from vfs.storage.base import Store

log = logging.getLogger("vfs.cache.silence")

T = TypeVar("T")

#: Seconds an open waits to hear whether its version is still the stored one; a store that takes longer is
#: away, and what is known counts. Then for so long nobody asks, and who asks next waits only briefly.
PATIENCE = 3.0
SILENCE = 5.0
PATIENCE_IN_SILENCE = 1.0
#: Seconds between two looks at whether a store that takes its time is away.
LOOK = 0.1


class Away(Exception):
    """The store does not answer, and what is known counts."""


class Silence:
    """Whether one store answers. clock: gives seconds."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._until = -math.inf
        self._silent = False

    @property
    def counts(self) -> bool:
        """The store did not answer a moment ago: nobody asks, and what is known counts."""
        return self._clock() < self._until

    @property
    def patience(self) -> float:
        """Seconds an answer is waited for where something is known that could stand for it."""
        return PATIENCE_IN_SILENCE if self._silent else PATIENCE

    def answered(self) -> None:
        """The store is there."""
        self._silent, self._until = False, -math.inf

    def begin(self, why: object) -> None:
        """From now on what is known counts; after a while who needs it asks again."""
        if not self._silent:
            log.warning("the store does not answer (%s): files are opened as they were last seen", why)
        self._silent, self._until = True, self._clock() + SILENCE

    async def unless(self, ask: Callable[[], Awaitable[T]], *, known: bool) -> T:
        """What the store tells. Raises Away where what is known already counts instead."""
        if not known:
            return await ask()
        answers: list[T] = []
        failures: list[Exception] = []

        async def asking(scope: trio.CancelScope) -> None:
            try:
                answers.append(await ask())
            except Exception as error:
                failures.append(error)
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(asking, nursery.cancel_scope)
            await trio.sleep(self.patience)
            while not getattr(self._store, "offline", True):
                await trio.sleep(LOOK)
            nursery.cancel_scope.cancel()
        for answer in answers:
            return answer
        if failures and not isinstance(failures[0], Unavailable):
            raise failures[0]
        self.begin(failures[0] if failures else "no answer yet")
        raise Away
