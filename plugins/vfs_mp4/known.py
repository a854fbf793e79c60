"""What is known of the fragments of a file while they are searched for, and where others should be. Pure.

A fragment is *learnt* when something that looks like one fits between its neighbours, and *proved* when the
chain of boxes leads to it, or on from it to another. Proved ones are never given up: what contradicts them
does not count, and two that contradict each other raise Damaged.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

from vfs import Damaged
from vfs_mp4 import aim
from vfs_mp4.aim import Aim, Gap
from vfs_mp4.anchors import Anchors
from vfs_mp4.model import Track
from vfs_mp4.probe import Opened

# Fragments known of one file; beyond that a walk is cheaper, and the memory not worth it.
_MAX_KNOWN = 50_000
# Requests before the first look, but one: the head of the file and its end.
_OPENED = 1


@dataclass(frozen=True, slots=True)
class Start:
    """A fragment with samples of the main track. time: when they begin, until: when they end, in its ticks.

    after: offset behind its media. number: of the sequence.
    """

    time: int
    until: int
    after: int
    number: int


class Known:
    """The fragments of one file by offset. opened, main: its moov and the track whose times are meant.

    order: their offsets. linked: those whose successor is known. end: where the last one ends, as far as is
    known. largest: bytes of the largest. bare: by offset of a fragment, from where on before it none begins.
    """

    def __init__(self, opened: Opened, main: Track, size: int) -> None:
        self._opened, self._main = opened, main
        self.end = size
        self.starts: dict[int, Start] = {}
        self.order: list[int] = []
        self.linked: set[int] = set()
        self.largest = 0
        self.bare: dict[int, int] = {}
        self._proved: set[int] = set()
        self._rejected: set[int] = set()
        self._tried = (0, 0)
        self._anchors: Anchors | None = None

    def anchors(self) -> Anchors:
        """Each known fragment, and what lies between two of them, as a region."""
        if self._anchors is None:
            self._anchors = self._built()
        return self._anchors

    def before(self, at: int) -> int:
        """The known fragment at or before an offset."""
        return self.order[bisect_right(self.order, at) - 1]

    def behind(self, at: int) -> int | None:
        """The known fragment behind the one at an offset."""
        place = bisect_right(self.order, at)
        return self.order[place] if place < len(self.order) else None

    def is_rejected(self, at: int) -> bool:
        """Whether what looks like a fragment there is none."""
        return at in self._rejected

    def reject(self, at: int) -> None:
        """What looks like a fragment there is none."""
        self._rejected.add(at)

    def is_proved(self, at: int) -> bool:
        """Whether the chain of boxes leads there, or on from there."""
        return at in self._proved

    def usual(self) -> int:
        """Bytes of a proved fragment, in the middle of all."""
        sizes = sorted(self.starts[at].after - at for at in self.order if at in self._proved)
        return sizes[len(sizes) // 2] if sizes else 0

    def prove(self, at: int) -> None:
        """The chain of boxes leads there."""
        self._proved.add(at)

    def link(self, at: int) -> None:
        """A fragment is followed by the next known one, or by the end."""
        self.linked.add(at)
        self._proved.add(at)
        self._anchors = None

    def _built(self) -> Anchors:
        rows: list[tuple[int, int, bool]] = []
        for number, at in enumerate(self.order):
            start = self.starts[at]
            rows.append((at, start.time, at in self._proved))
            behind = self.order[number + 1] if number + 1 < len(self.order) else self.end
            if at not in self.linked and start.after < behind:
                next_time = self.starts[behind].time if behind in self.starts else start.until
                rows.append((start.after, min(start.until, next_time), False))
        offset, time, fine = (np.array(column) for column in zip(*rows, strict=True))
        last = self.starts[self.order[-1]]
        left = 0 if bool(fine[-1]) else int((self.end - last.after) / max(self._rate(), 1e-9))
        return Anchors(
            source="search",
            name="search",
            offset=offset.astype(np.int64),
            end=self.end,
            time=time.astype(np.int64),
            timescale=self._main.timescale,
            length=last.until - int(time[-1]) + min(left, 1 << 60),
            fine=fine.astype(np.bool_),
        )

    def add(self, at: int, start: Start) -> bool:
        """Remember a fragment; False where it does not fit between its neighbours."""
        place = bisect_left(self.order, at)
        before = self.starts[self.order[place - 1]] if place else None
        behind = self.starts[self.order[place]] if place < len(self.order) else None
        if before is not None and not (
            before.after <= at and before.time < start.time and before.number <= start.number
        ):
            return False
        if behind is not None and not (
            start.after <= self.order[place] and start.time < behind.time and start.number <= behind.number
        ):
            return False
        if len(self.order) >= _MAX_KNOWN:
            raise Damaged(f"more than {_MAX_KNOWN} fragments without an index")
        self.order.insert(place, at)
        self.starts[at] = start
        self.largest = max(self.largest, start.after - at)
        self._anchors = None
        return True

    def drop(self, at: int, why: Exception) -> None:
        """Forget a fragment that turned out to be none. Raises Damaged when it had been proved."""
        if at in self._proved:
            raise why
        self._rejected.add(at)
        if at not in self.starts:
            return
        del self.starts[at], self.order[bisect_left(self.order, at)]
        self._anchors = None

    def _rate(self) -> float:
        """Bytes a tick of what is known, from the first fragment on."""
        first, last = self.order[0], self.starts[self.order[-1]]
        return (last.after - first) / max(last.until - self.starts[first].time, 1)

    def aim(self, before: int, stop: int, want: int) -> Aim:
        """What to do next to find a time between a known fragment and `stop`."""
        self._tried = (want, self._tried[1] + 1 if self._tried[0] == want else 1)
        return aim.at_time(self._gap(before, stop), want, self._tried[1], self._tried[1] + _OPENED)

    def spend(self) -> None:
        """A look took another request."""
        self._tried = (self._tried[0], self._tried[1] + 1)

    def near(self, before: int, stop: int, at: int) -> Aim:
        """How to find the fragment near an offset."""
        return aim.at_offset(self._gap(before, stop), at)

    def _gap(self, before: int, stop: int) -> Gap:
        rate = 0.0 if stop in self.starts else self._rate_to_end(self.starts[before])
        return Gap(self.starts, self.order, before, stop, rate, self.bare.get(stop))

    def _rate_to_end(self, known: Start) -> float:
        """Bytes a tick up to the end of the file by the movie header's duration, 0 where it tells none."""
        moov = self._opened.moov
        if not 0 < moov.duration < 1 << 60 or moov.timescale <= 0:
            return 0.0
        begin = self.starts[self.order[0]].time
        left = moov.duration * self._main.timescale // moov.timescale + begin - known.until
        return (self.end - known.after) / left if left > 0 else 0.0

    def join(self, at: int, behind: int, found: Start) -> None:
        """Learn the fragment behind one; those that were thought to begin in between were none."""
        start = self.starts[at]
        length = start.until - start.time
        # A recording may have gaps; what was only found by its letters may not.
        gap = abs(found.time - start.until) > length and at not in self._proved
        if found.time <= start.time or found.number < start.number or gap:
            raise Damaged(f"the fragment at {behind} does not go on where that at {at} ends")
        place = bisect_right(self.order, at)
        while place < len(self.order) and self.order[place] < behind:
            self.drop(self.order[place], Damaged(f"the fragment at {self.order[place]} is inside another"))
        if behind not in self.starts and not self.add(behind, found):
            raise Damaged(f"the fragment at {behind} contradicts those behind it")
        self._proved.add(behind)

    def finish(self, at: int, end: int) -> None:
        """The last fragment of all; what is behind it up to `end` is of other tracks."""
        place = bisect_right(self.order, at)
        while place < len(self.order):
            self.drop(self.order[place], Damaged("fragments behind the last one"))
        self.end = end
