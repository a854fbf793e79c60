"""Which worker takes which job: first come, first served, but jobs of one kind go where the last one went."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

L = TypeVar("L")

#: Kinds of jobs remembered per lane; a worker keeps less than that.
_REMEMBERED = 64


class _Slot(Generic[L]):
    """A lane and what it has done: whether it is taken, the kind it works on, the kinds it worked on."""

    def __init__(self, lane: L) -> None:
        self.lane = lane
        self.taken = False
        self.kind: Hashable = None
        self.kinds: OrderedDict[Hashable, None] = OrderedDict()


class _Waiting(Generic[L]):
    def __init__(self, kind: Hashable) -> None:
        self.kind = kind
        self.turn = trio.Event()
        self.slot: _Slot[L] | None = None


class Pool(Generic[L]):
    """Lanes, each for one job at a time."""

    def __init__(self, lanes: Sequence[L]) -> None:
        self._slots = [_Slot(lane) for lane in lanes]
        self._queue: list[_Waiting[L]] = []

    def crowded(self) -> bool:
        """Whether somebody waits for a lane."""
        return bool(self._queue)

    def knows(self, kind: Hashable) -> bool:
        """Whether a lane had a job of this kind not long ago."""
        return self._owner(kind) is not None

    @asynccontextmanager
    async def lane(self, kind: Hashable = None) -> AsyncIterator[L]:
        """A lane of one's own inside the block. kind: None = any lane will do."""
        slot = await self._take(kind)
        try:
            yield slot.lane
        finally:
            slot.taken = False
            self._hand_out()

    async def _take(self, kind: Hashable) -> _Slot[L]:
        waiting: _Waiting[L] = _Waiting(kind)
        self._queue.append(waiting)
        self._hand_out()
        try:
            await waiting.turn.wait()
        except trio.Cancelled:
            if waiting.slot is not None:
                waiting.slot.taken = False
            else:
                self._queue.remove(waiting)
            self._hand_out()
            raise
        assert waiting.slot is not None
        return waiting.slot

    def _hand_out(self) -> None:
        """Give free lanes to those who wait, in turn."""
        for waiting in list(self._queue):
            slot = self._choose(waiting.kind)
            if slot is not None:
                self._queue.remove(waiting)
                self._give(slot, waiting)

    def _choose(self, kind: Hashable) -> _Slot[L] | None:
        """The lane for a job of this kind; None = wait.

        Its own lane if that is free, or busy with the very same kind: what it is making now is worth waiting
        for. Else the first that is free: those before it are the ones that have started.
        """
        own = self._owner(kind)
        if own is not None and (not own.taken or own.kind == kind):
            return None if own.taken else own
        return next((slot for slot in self._slots if not slot.taken), None)

    def _owner(self, kind: Hashable) -> _Slot[L] | None:
        if kind is None:
            return None
        return next((slot for slot in self._slots if kind in slot.kinds), None)

    def _give(self, slot: _Slot[L], waiting: _Waiting[L]) -> None:
        slot.taken, slot.kind = True, waiting.kind
        if waiting.kind is not None:
            for other in self._slots:
                other.kinds.pop(waiting.kind, None)
            slot.kinds[waiting.kind] = None
            if len(slot.kinds) > _REMEMBERED:
                slot.kinds.popitem(last=False)
        waiting.slot = slot
        waiting.turn.set()
