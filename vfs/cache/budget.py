"""One memory budget for everything that is kept: least recently used goes first.

Costs are bytes. What is being fetched is *pinned*: counted, but not evictable, so that the kept part
shrinks while much is in flight. Only used from the event loop's thread; no method waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

Evicted = Callable[[Any], object]


@dataclass(slots=True)
class _Entry:
    value: Any
    cost: int
    evicted: Evicted | None
    precious: bool


class Budget:
    """At most `limit` bytes of entries and pins; pins alone may exceed it.

    Two classes of entries: plain (bytes of media, which a single sequential read replaces wholesale) and
    precious (tables that cost several round trips to make again). Plain ones are evicted first, unless
    the precious ones hold more than half of the limit.

    hits, misses, evictions: counters of `get` and of entries thrown out for lack of room.
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError(f"negative budget {limit}")
        self.limit = limit
        self.pinned = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self._plain: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._precious: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._plain_cost = 0
        self._precious_cost = 0

    @property
    def kept(self) -> int:
        """Bytes of all entries."""
        return self._plain_cost + self._precious_cost

    @property
    def used(self) -> int:
        """Bytes of all entries and pins."""
        return self.kept + self.pinned

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._plain) + len(self._precious)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._plain or key in self._precious

    def get(self, key: Hashable, default: Any = None) -> Any:
        """The value of `key`, now the most recently used; `default` where there is none."""
        entry = self._plain.get(key) or self._precious.get(key)
        if entry is None:
            self.misses += 1
            return default
        self.hits += 1
        self._home(entry).move_to_end(key)
        return entry.value

    def touch(self, key: Hashable) -> None:
        """Make a plain `key` the most recently used; nothing where there is none. Counts a hit."""
        self.hits += 1
        if key in self._plain:
            self._plain.move_to_end(key)

    def put(
        self,
        key: Hashable,
        value: Any,
        cost: int,
        *,
        evicted: Evicted | None = None,
        precious: bool = False,
    ) -> bool:
        """Keep `value`, evicting others; False (and nothing kept) when it does not fit at all.

        evicted: called with the value when it is thrown out for lack of room (not by `drop`).
        """
        self.drop(key)
        if cost + self.pinned > self.limit:
            return False
        self._make_room(cost)
        entry = _Entry(value, cost, evicted, precious)
        self._home(entry)[key] = entry
        self._count(entry, 1)
        return True

    def drop(self, key: Hashable) -> None:
        """Forget `key`, without calling `evicted`."""
        entry = self._plain.pop(key, None) or self._precious.pop(key, None)
        if entry is not None:
            self._count(entry, -1)

    def pin(self, cost: int) -> None:
        """Count `cost` bytes that are on their way, evicting entries to make room for them."""
        self.pinned += cost
        self._make_room(0)

    def unpin(self, cost: int) -> None:
        """Undo `pin`."""
        if cost > self.pinned:
            raise ValueError(f"unpin {cost} of {self.pinned}")
        self.pinned -= cost

    def _home(self, entry: _Entry) -> OrderedDict[Hashable, _Entry]:
        return self._precious if entry.precious else self._plain

    def _count(self, entry: _Entry, sign: int) -> None:
        if entry.precious:
            self._precious_cost += sign * entry.cost
        else:
            self._plain_cost += sign * entry.cost

    def _make_room(self, cost: int) -> None:
        while self.used + cost > self.limit and (self._plain or self._precious):
            self._evict_one()

    def _evict_one(self) -> None:
        precious = bool(self._precious) and (not self._plain or self._precious_cost > self.limit // 2)
        _, entry = (self._precious if precious else self._plain).popitem(last=False)
        self._count(entry, -1)
        self.evictions += 1
        if entry.evicted is not None:
            entry.evicted(entry.value)
