"""Values made from stored bytes, remembered under a key that names all they are a function of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from contextvars import ContextVar
from typing import Any, TypeVar

from vfs.cache.budget import Budget
from vfs.cache.shared import Shared
from vfs.nodes import Pool

T = TypeVar("T")

_NONE = object()
_OVERHEAD = 256  # bytes a dictionary entry and its bookkeeping take, roughly
_making: ContextVar[frozenset[Hashable]] = ContextVar("vfs_derived_making", default=frozenset())


def default_cost(value: object) -> int:
    """Bytes a value holds: its `nbytes`, else its `len`, else a small constant."""
    nbytes = getattr(value, "nbytes", None)
    if isinstance(nbytes, int):
        return nbytes
    try:
        return len(value)  # type: ignore[arg-type]
    except TypeError:
        return _OVERHEAD


class _Members:
    """What is kept of one pool, least recently used first, and its cost in all."""

    def __init__(self) -> None:
        self.costs: OrderedDict[Hashable, int] = OrderedDict()
        self.total = 0

    def add(self, name: Hashable, cost: int) -> None:
        self.costs[name] = cost
        self.total += cost

    def remove(self, name: Hashable) -> None:
        self.total -= self.costs.pop(name)

    def oldest(self) -> Hashable:
        """Take out the least recently used."""
        name = next(iter(self.costs))
        self.remove(name)
        return name


class Derived:
    """A memo with single flight, within the shared memory budget.

    The key must name the versions of all sources and of the code. Failures are not remembered.
    made: how often something was really made; joined: how often a caller shared another's making.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._flights: dict[Hashable, Shared[Any]] = {}
        self._pools: dict[Pool, _Members] = {}
        self.made = 0
        self.joined = 0

    async def get(
        self,
        key: Hashable,
        make: Callable[[], Awaitable[T]],
        cost: Callable[[T], int] | None = None,
        pool: Pool | None = None,
    ) -> T:
        """The value under `key`, else `await make()`, which concurrent callers share.

        pool: the values of one pool take at most its share of the budget, and go before tables do.

        A caller that is cancelled leaves the others theirs; when none is left, `make` is cancelled. A
        value that does not fit the budget is returned and not kept. Raises what `make` raises;
        RuntimeError when a value needs itself to be made. Does not checkpoint on a hit.
        """
        name = (Derived, key)
        found = self._budget.get(name, _NONE)
        if found is not _NONE:
            if pool is not None:
                self._pools[pool].costs.move_to_end(name)
            return found  # type: ignore[no-any-return]
        if key in _making.get():
            raise RuntimeError(f"making {key!r} needs {key!r}")
        flight = self._flights.get(key)
        if flight is None:
            flight = self._begin(key, name, make, cost, pool)
        else:
            self.joined += 1
        flight.hold()
        try:
            return await flight.wait()  # type: ignore[no-any-return]
        finally:
            flight.leave()

    def _begin(
        self,
        key: Hashable,
        name: Hashable,
        make: Callable[[], Awaitable[T]],
        cost: Callable[[T], int] | None,
        pool: Pool | None,
    ) -> Shared[T]:
        async def work() -> T:
            _making.set(_making.get() | {key})
            self.made += 1
            value = await make()
            size = (cost or default_cost)(value)
            if pool is None:
                self._budget.put(name, value, max(0, size) + _OVERHEAD, precious=True)
            else:
                self._put(pool, name, value, max(0, size) + _OVERHEAD)
            return value

        flight: Shared[T] = Shared(work, lambda: self._ended(key))
        self._flights[key] = flight
        flight.begin()
        return flight

    def _put(self, pool: Pool, name: Hashable, value: object, cost: int) -> None:
        """Keep a value of a pool; of the pool the least recently used make room for it."""
        members = self._pools.setdefault(pool, _Members())
        if cost > pool.limit:
            return
        while members.total + cost > pool.limit:
            self._budget.drop(members.oldest())
        if self._budget.put(name, value, cost, evicted=lambda _: members.remove(name)):
            members.add(name, cost)

    def _ended(self, key: Hashable) -> None:
        del self._flights[key]
