"""Listing ahead of somebody who walks: `ls -R`, `find` and `rsync` open one folder after the other.

Each costs a round trip, and the next ones are known: they are the siblings of the last. Once two neighbours
were listed, those behind them are asked for in the background, twice as many each time up to `AHEAD`. A
folder out of the row begins a new row. Nobody waits for this, and what fails is asked for again by whoever
needs it.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence

import trio

from vfs.errors import ReelfsError

log = logging.getLogger("vfs.walkahead")

#: Folders listed ahead of a walker at most. Half of the threads for metadata, so that others find one free.
AHEAD = 8
# A walker may sort in another way than the listing: a step over so many siblings is still in order.
_STEP = 4
# Walkers at once, each in a folder of its own.
_WALKS = 64


class _Walk:
    """Somebody listing the folders of one folder. at: the one listed last; row: how many in order."""

    __slots__ = ("at", "names", "row")

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.at = -_STEP - 1
        self.row = 0


class WalkAhead:
    """siblings: the folder names in a folder whose listing is fresh, else None. fetch: lists a folder unless
    its listing is fresh. has: whether it is.
    """

    def __init__(
        self,
        siblings: Callable[[str], Collection[str] | None],
        fetch: Callable[[str], Awaitable[object]],
        has: Callable[[str], bool],
    ) -> None:
        self._siblings = siblings
        self._fetch = fetch
        self._has = has
        self._walks: OrderedDict[str, _Walk] = OrderedDict()
        self._running: dict[str, trio.CancelScope] = {}

    def note(self, prefix: str) -> None:
        """Somebody lists this folder (its key prefix, ending in "/"). Does not wait."""
        cut = prefix.rfind("/", 0, -1) + 1
        parent, name = prefix[:cut], prefix[cut:-1]
        names = self._siblings(parent) if name else None
        if names is None:
            return
        walk = self._walks.get(parent)
        if walk is None or len(walk.names) != len(names):
            walk = self._walks[parent] = _Walk(sorted(names))
            while len(self._walks) > _WALKS:
                self._walks.popitem(last=False)
        self._walks.move_to_end(parent)
        at = bisect_left(walk.names, name)
        walk.row = walk.row + 1 if walk.at < at <= walk.at + _STEP else 0
        walk.at = at
        wanted = min(AHEAD, 1 << walk.row) if walk.row else 0
        for sibling in walk.names[at + 1 : at + 1 + wanted]:
            self._begin(f"{parent}{sibling}/")

    def close(self) -> None:
        """End what is under way."""
        for scope in self._running.values():
            scope.cancel()

    def _begin(self, prefix: str) -> None:
        if len(self._running) < AHEAD and prefix not in self._running and not self._has(prefix):
            self._running[prefix] = scope = trio.CancelScope()
            trio.lowlevel.spawn_system_task(self._run, prefix, scope)

    async def _run(self, prefix: str, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await self._fetch(prefix)
        except ReelfsError as error:
            log.debug("%s was not listed ahead: %s", prefix, error)
        except Exception:
            log.exception("listing %s ahead failed", prefix)
        finally:
            del self._running[prefix]
