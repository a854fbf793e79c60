"""Which pending name is looked at next: in order of when it is due, without looking through all. Pure."""

from __future__ import annotations

import heapq
import math

from vfs.write.pending import Entry


class Schedule:
    """Entries by when they are due (clock seconds). Each is in it once at most, with its earliest time.

    blocked: entries that were due and wait for others; they are looked at again when something has changed.
    """

    def __init__(self) -> None:
        self.blocked: dict[int, Entry] = {}
        self._heap: list[tuple[float, int]] = []
        self._entries: dict[int, tuple[float, Entry]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry, due: float) -> None:
        """It is due then, or earlier if it is already."""
        self.blocked.pop(entry.ident, None)
        known = self._entries.get(entry.ident)
        if known is None or due < known[0]:
            self._entries[entry.ident] = due, entry
            heapq.heappush(self._heap, (due, entry.ident))

    def next_due(self) -> float:
        """When the next one is due; infinity for none."""
        while self._heap:
            due, ident = self._heap[0]
            known = self._entries.get(ident)
            if known is not None and known[0] == due:
                return due
            heapq.heappop(self._heap)  # it is due earlier, or was taken
        return math.inf

    def pop(self) -> Entry:
        """The next one. There must be one (`next_due`)."""
        _, ident = heapq.heappop(self._heap)
        return self._entries.pop(ident)[1]

    def block(self, entry: Entry) -> None:
        """It waits for something else."""
        self.blocked[entry.ident] = entry

    def unblock(self, now: float) -> None:
        """All that are blocked are looked at again."""
        blocked, self.blocked = self.blocked, {}
        for entry in blocked.values():
            self.add(entry, min(entry.due, now))
