"""One piece of work that several tasks wait for.

The work runs in a task of its own, so that a waiter who is cancelled takes nobody down with it. It is
cancelled when the last waiter leaves. The protocol: `hold` (in the same step that found the work, so
before anything can end it), then `wait`, then `leave`, always.
"""

from __future__ import annotations

import contextvars
import copy
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

import trio

T = TypeVar("T")


class Shared(Generic[T]):
    """`await work()`, once, for all who hold it.

    ended: called exactly once, without waiting, before any waiter goes on: when the work succeeded
    (`succeeded` is then true and `value` set), failed, or was abandoned by its last holder. After that
    nobody may find it any more: the owner takes it out of its table there.
    """

    __slots__ = (
        "_done",
        "_ended",
        "_error",
        "_holders",
        "_scope",
        "_value",
        "_watchers",
        "_work",
        "succeeded",
    )

    def __init__(self, work: Callable[[], Awaitable[T]], ended: Callable[[], None]) -> None:
        self._work = work
        self._ended: Callable[[], None] | None = ended
        self._done = trio.Event()
        self._scope = trio.CancelScope()
        self._holders = 0
        self._value: T | None = None
        self._error: BaseException | None = None
        self._watchers: list[Callable[[bool], object]] = []
        self.succeeded = False

    @property
    def done(self) -> bool:
        """It succeeded or failed; `wait` will not wait."""
        return self._done.is_set()

    @property
    def value(self) -> T:
        """What the work gave; only after it succeeded."""
        return cast(T, self._value)

    def begin(self) -> None:
        """Begin, in a background task that sees the context variables of this one."""
        trio.lowlevel.spawn_system_task(self._run, context=contextvars.copy_context())

    def hold(self) -> None:
        """Become one of those for whom the work is done."""
        self._holders += 1

    def leave(self) -> None:
        """Undo `hold`; the last to leave cancels work that has not ended."""
        self._holders -= 1
        if not self._holders and not self._done.is_set():
            self._end()
            self._scope.cancel()

    async def wait(self) -> T:
        """The value of the work, or its exception (a copy for each waiter)."""
        if not self._done.is_set():
            await self._done.wait()
        if self._error is not None:
            raise _fresh(self._error)
        return self.value

    def watch(self, watcher: Callable[[bool], object]) -> None:
        """Have `watcher(succeeded)` called when the work, which is not done, has succeeded or failed."""
        self._watchers.append(watcher)

    def _end(self) -> None:
        # Taken out of self: owners' closures refer to this object, and a cycle would keep a body of megabytes
        # until the garbage collector comes by.
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()

    async def _run(self) -> None:
        with self._scope:
            try:
                self._value = await self._work()
                self.succeeded = True
            except trio.Cancelled:
                raise
            except BaseException as error:  # every waiter gets it; here it would end the whole loop
                self._error = error
            # Abandoned in the very step in which it ended: `ended` has been called, nobody waits.
            self._end()
            self._done.set()
            for watcher in self._watchers:
                watcher(self.succeeded)
            self._watchers.clear()


def _fresh(error: BaseException) -> BaseException:
    """A copy to raise: one exception raised in several tasks would mix their tracebacks."""
    try:
        twin = copy.copy(error)
    except Exception:  # an exception whose constructor does not take its own args
        return error
    if type(twin) is not type(error):
        return error
    twin.__cause__ = error
    return twin
