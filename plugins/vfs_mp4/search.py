"""Find the fragment of a time where nothing lists the fragments: interpolation, and looking for a `moof`.

The offset of a time is estimated from the fragments known around it, and the media before that offset is
searched backwards for the four letters. What looks like a fragment there only steers the search. It counts
when it is the target and the next box behind its media is a fragment that goes on where it ends: letters or
whole boxes inside the media never do. What is found is kept, so the next time is found from nearer by.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from vfs import Damaged, Place
from vfs_mp4 import walk
from vfs_mp4.anchors import Anchors
from vfs_mp4.boxes import Header, name_of
from vfs_mp4.fragments import Moof
from vfs_mp4.model import Track
from vfs_mp4.probe import Opened, Reader, gather

# Boxes that stand between fragments.
_BETWEEN = frozenset(
    (b"styp", b"sidx", b"ssix", b"emsg", b"prft", b"free", b"skip", b"uuid", b"wide", b"mfra")
)
# Fragments of other tracks, and boxes between, that may come before one of the main track.
_MAX_BOXES = 64
# What is searched at once: about two fragments, so that one request mostly finds one; of fragments of
# megabytes a part, since most of what is looked at then belongs to the wanted one.
_LEAST, _MOST = 64 << 10, 1 << 20
# Up to this size the fragment behind the estimate comes along: it proves the one before it without a request.
_AHEAD = 256 << 10
# Fragments of megabytes that are stepped over one by one: a request each, but no media.
_HOPS = 3
# After so many estimates for one time every other step halves the gap: rates that change defeat estimates.
_ESTIMATES = 5
# Known fragments on each side that are looked at for how the rate changes.
_AROUND = 12
# Fragments known of one file; beyond that a walk is cheaper, and the memory not worth it.
_MAX_KNOWN = 50_000
# Parts of a file that are walked at once where all fragments are needed; a wrong beginning costs a round.
_PARTS, _ROUNDS = 8, 3
# A box header and the first child of a moof, up to its sequence number (ISO/IEC 14496-12 8.8.5).
_NUMBER_AT, _MOOF_HEAD = 20, 24
_MAX_TRIED = 64
# Read where a moof may begin: it and the header of its mdat, of fragments of up to some 200 samples.
_REACH = 4 << 10


@dataclass(frozen=True, slots=True)
class _Start:
    """A fragment with samples of the main track. time: when they begin, until: when they end, in its ticks.

    after: offset behind its media. number: of the sequence.
    """

    time: int
    until: int
    after: int
    number: int


class _Ended(Damaged):
    """The boxes end before a fragment of the main track. at: where."""

    def __init__(self, at: int) -> None:
        super().__init__(f"no fragment before the end at {at}")
        self.at = at


class Search:
    """A `table.Finder` for one file. opened, main: its moov and the track whose times are meant."""

    def __init__(self, opened: Opened, main: Track, size: int) -> None:
        self._opened, self._main = opened, main
        self._end = size
        self._starts: dict[int, _Start] = {}
        self._order: list[int] = []
        self._linked: set[int] = set()
        self._proved: set[int] = set()
        self._rejected: set[int] = set()
        self._tried = (0, 0)
        self._largest = 0
        self._anchors: Anchors | None = None

    async def begin(self, reader: Reader, at: int) -> None:
        """The first fragment. Raises Damaged where it is none."""
        self._add(at, await self._start(reader, at))
        self._proved.add(at)

    def anchors(self) -> Anchors:
        """Each known fragment, and what lies between two of them, as a region."""
        if self._anchors is None:
            self._anchors = self._built()
        return self._anchors

    async def narrow(self, reader: Reader, at: int, stop: int, want: int) -> None:
        """See `table.Finder`."""
        before = self._order[bisect_right(self._order, at) - 1]
        known = self._starts[before]
        stop = min(stop, self._end) if at != before else known.after
        small = known.after - before <= _AHEAD
        if at == before or want < known.until + (1 if small else _HOPS) * (known.until - known.time):
            await self._follow(reader, before)
            return
        await self._look(reader, before, stop, self._estimate(before, stop, want))

    async def whole(self, reader: Reader) -> Anchors | None:
        """All fragments, from box to box, in several parts of the file at once; None where a chain breaks."""
        first, end = self._order[0], self._end
        parts = min(_PARTS, (end - first) // (4 * (self._starts[first].after - first)) + 1)
        try:
            await gather(
                [partial(self._mark, reader, first + (end - first) * n // parts) for n in range(1, parts)]
            )
            for _ in range(_ROUNDS):
                loose = [at for at in self._order if at not in self._linked]
                if not loose:
                    break
                stops = [*loose[1:], end]
                chains = [
                    partial(self._chain, reader.place, *ends) for ends in zip(loose, stops, strict=True)
                ]
                await gather(chains, _PARTS)
        except Damaged:
            return None
        found = self.anchors()
        return found if found.fine is not None and bool(found.fine.all()) else None

    async def _mark(self, reader: Reader, near: int) -> None:
        """Learn a fragment near an offset."""
        place = bisect_right(self._order, near)
        before = self._order[place - 1]
        stop = self._order[place] if place < len(self._order) else self._end
        if before not in self._linked and self._starts[before].after < near < stop:
            await self._look(reader, before, stop, near)

    async def _chain(self, place: Place, at: int, stop: int) -> None:
        """Follow one fragment after the other up to `stop`, or where it breaks."""
        reader = Reader(place)
        while at < stop and at in self._starts:
            if at not in self._linked:
                await self._follow(reader, at)
            behind = bisect_right(self._order, at)
            if behind == len(self._order):
                return
            at = self._order[behind]
            reader.drop(at)

    # -- what is known ----------------------------------------------------------------------------------

    def _built(self) -> Anchors:
        rows: list[tuple[int, int, bool]] = []
        for number, at in enumerate(self._order):
            start = self._starts[at]
            rows.append((at, start.time, at in self._linked))
            behind = self._order[number + 1] if number + 1 < len(self._order) else self._end
            if at not in self._linked and start.after < behind:
                next_time = self._starts[behind].time if behind in self._starts else start.until
                rows.append((start.after, min(start.until, next_time), False))
        offset, time, fine = (np.array(column) for column in zip(*rows, strict=True))
        last = self._starts[self._order[-1]]
        left = 0 if bool(fine[-1]) else int((self._end - last.after) / max(self._rate(), 1e-9))
        return Anchors(
            source="search",
            name="search",
            offset=offset.astype(np.int64),
            end=self._end,
            time=time.astype(np.int64),
            timescale=self._main.timescale,
            length=last.until - int(time[-1]) + min(left, 1 << 60),
            fine=fine.astype(np.bool_),
        )

    def _add(self, at: int, start: _Start) -> bool:
        """Remember a fragment; False where it does not fit between its neighbours."""
        place = bisect_left(self._order, at)
        before = self._starts[self._order[place - 1]] if place else None
        behind = self._starts[self._order[place]] if place < len(self._order) else None
        if before is not None and not (
            before.after <= at and before.time < start.time and before.number <= start.number
        ):
            return False
        if behind is not None and not (
            start.after <= self._order[place] and start.time < behind.time and start.number <= behind.number
        ):
            return False
        if len(self._order) >= _MAX_KNOWN:
            raise Damaged(f"more than {_MAX_KNOWN} fragments without an index")
        self._order.insert(place, at)
        self._starts[at] = start
        self._largest = max(self._largest, start.after - at)
        self._anchors = None
        return True

    def _drop(self, at: int, why: Exception) -> None:
        """Forget a fragment that turned out to be none. Raises Damaged when it had been proved."""
        if at in self._proved:
            raise why
        self._rejected.add(at)
        del self._starts[at], self._order[bisect_left(self._order, at)]
        self._anchors = None

    def _rate(self) -> float:
        """Bytes a tick of what is known, from the first fragment on."""
        first, last = self._order[0], self._starts[self._order[-1]]
        return (last.after - first) / max(last.until - self._starts[first].time, 1)

    def _estimate(self, before: int, stop: int, want: int) -> int:
        """Where in the gap between a known fragment and `stop` a time should be."""
        known, behind = self._starts[before], self._starts.get(stop)
        count = self._tried[1] + 1 if self._tried[0] == want else 1
        self._tried = (want, count)
        if count > _ESTIMATES and count % 2:
            return (known.after + stop) // 2
        room = stop - known.after
        if behind is not None:
            offset = self._curve(before, stop, want)
        elif (rate := self._rate_to_end(known)) <= 0 and known.after - before <= _AHEAD:
            # The last fragment is cheap to look at, and makes the next estimate a good one.
            offset = room
        else:
            offset = (want - known.until) * (rate or self._rate())
        # A time behind the end of the file is looked for in its last fragment.
        return known.after + int(min(max(offset, 1.0), room - 1.0))

    def _curve(self, before: int, stop: int, want: int) -> float:
        """Bytes behind a known fragment: a line to the next one, bent to pass through a third."""
        known, behind = self._starts[before], self._starts[stop]
        length, room, at = max(behind.time - known.until, 1), stop - known.after, want - known.until
        line, bend = at * room / length, 0.0
        # Nearer ones tell of single fragments and not of the course of the film.
        least = max(min(at, length - at) / 2, 1)
        thirds = [(t, o) for t, o in self._around(before, stop) if not -least < t < length + least]
        if thirds:
            time, offset = min(thirds, key=lambda third: abs(third[0] - at))
            bend = (offset - time * room / length) / (time * (time - length)) * at * (at - length)
        return line + bend if 0 < line + bend < room else line

    def _around(self, before: int, stop: int) -> list[tuple[int, int]]:
        """(time, offset) of some known fragments on both sides of a gap, counted from its beginning."""
        place, known = bisect_left(self._order, before), self._starts[before]
        near = [*self._order[max(place - _AROUND, 0) : place], *self._order[place + 2 :][:_AROUND]]
        near += [self._order[0], self._order[-1]]
        return [
            (self._starts[o].time - known.until, o - known.after) for o in near if o not in (before, stop)
        ]

    def _rate_to_end(self, known: _Start) -> float:
        """Bytes a tick up to the end of the file by the movie header's duration, 0 where it tells none."""
        moov = self._opened.moov
        if not 0 < moov.duration < 1 << 60 or moov.timescale <= 0:
            return 0.0
        begin = self._starts[self._order[0]].time
        left = moov.duration * self._main.timescale // moov.timescale + begin - known.until
        return (self._end - known.after) / left if left > 0 else 0.0

    # -- looking ----------------------------------------------------------------------------------------

    async def _look(self, reader: Reader, before: int, stop: int, near: int) -> None:
        """Learn the fragments of a window that ends at `near`, and grows backwards until there is one."""
        known, behind = self._starts[before], self._starts.get(stop)
        each = max(known.after - before, behind.after - stop if behind else 0)
        small = each <= _AHEAD
        end = min(near + each, stop) if small else near
        width = max(2 * each, _LEAST) if small else min(max(2 * each // 3, _AHEAD), _MOST)
        low = max(min(near, end) - width, known.after)
        while True:
            # Of small fragments one more than is looked for: what lies in its media is none.
            context = max(low - self._largest * 5 // 4, known.after) if small else low
            if await self._scan(reader, context, low, end):
                return
            if low <= known.after:
                await self._follow(reader, before)
                return
            low, end = max(low - width, known.after), low

    async def _scan(self, reader: Reader, context: int, low: int, end: int) -> int:
        """How many fragments that begin in [low, end) were learnt; media of those from `context` on is left
        out.
        """
        await reader.peek(context, end + _REACH - context)
        data = await reader.peek(context, end + _MOOF_HEAD - context)
        learnt, behind = 0, context
        for at in _candidates(data, context, end):
            if at < behind or at in self._rejected:
                continue
            try:
                start = self._starts.get(at) or await self._start(reader, at)
            except Damaged:
                self._rejected.add(at)
                continue
            behind = start.after
            if at >= low and at not in self._starts:
                learnt += self._add(at, start)
        return learnt

    async def _follow(self, reader: Reader, at: int) -> None:
        """Prove a fragment by the one behind it, which is learnt, or by the end of all fragments."""
        try:
            behind, found = await self._next(reader, self._starts[at].after)
            if found is None:
                self._finish(at, behind)
            else:
                self._join(at, behind, found)
        except Damaged as error:
            self._drop(at, error)
            return
        self._linked.add(at)
        self._proved.add(at)
        self._anchors = None

    def _join(self, at: int, behind: int, found: _Start) -> None:
        """Learn the fragment behind one; those that were thought to begin in between were none."""
        start = self._starts[at]
        length = start.until - start.time
        # A recording may have gaps; what was only found by its letters may not.
        gap = abs(found.time - start.until) > length and at not in self._proved
        if found.time <= start.time or found.number < start.number or gap:
            raise Damaged(f"the fragment at {behind} does not go on where that at {at} ends")
        place = bisect_right(self._order, at)
        while place < len(self._order) and self._order[place] < behind:
            self._drop(self._order[place], Damaged(f"the fragment at {self._order[place]} is inside another"))
        if behind not in self._starts and not self._add(behind, found):
            raise Damaged(f"the fragment at {behind} contradicts those behind it")
        self._proved.add(behind)

    def _finish(self, at: int, end: int) -> None:
        """The last fragment of all; what is behind it up to `end` is of other tracks."""
        place = bisect_right(self._order, at)
        while place < len(self._order):
            self._drop(self._order[place], Damaged("fragments behind the last one"))
        self._end = end

    # -- reading ----------------------------------------------------------------------------------------

    async def _next(self, reader: Reader, at: int) -> tuple[int, _Start | None]:
        """The fragment at or behind a box; at the end of the fragments that, and None."""
        for _ in range(_MAX_BOXES):
            head = await reader.header(at, _REACH)
            if head is None or head.kind == b"mfra":
                return at, None
            if head.kind == b"moof":
                try:
                    return at, await self._start(reader, at)
                except _Ended as error:
                    return error.at, None
            if head.kind not in _BETWEEN and head.kind != b"mdat":
                raise Damaged(f"{name_of(head.kind)} at {at}, not moof")
            at += head.size or reader.place.size
        raise Damaged(f"no moof in {_MAX_BOXES} boxes before {at}")

    async def _start(self, reader: Reader, at: int) -> _Start:
        """The fragment that begins at `at`, with all before it that has nothing of the main track.

        Raises Damaged when it is none, is cut, or its samples are not in its media.
        """
        moof, number, last = None, 0, b""
        for _ in range(_MAX_BOXES):
            head = await reader.header(at, _REACH)
            if last != b"moof" and (head is None or head.kind == b"mfra"):
                raise _Ended(at)
            if head is None:
                break
            stop = at + head.size if head.size else reader.place.size
            if head.kind == b"moof":
                moof, number = await self._moof(reader, at, head)
            elif moof is None or stop > reader.place.size:
                break
            elif head.kind == b"mdat":
                _check_data(moof, at + head.length, stop)
                rows = moof.rows.get(self._main.track_id)
                if rows is not None:
                    return _Start(int(rows.dts[0]), int(rows.dts[-1] + rows.dur[-1]), stop, number)
            elif head.kind not in _BETWEEN:
                break
            at, last = stop, head.kind
        raise Damaged(f"no whole fragment before {at}")

    async def _moof(self, reader: Reader, at: int, head: Header) -> tuple[Moof, int]:
        """A moof and its number."""
        moof = await walk.read_moof(reader, self._opened, at, head, {})
        if not moof.timed:
            raise Damaged("fragments without decode times")
        first = await reader.peek(at, _MOOF_HEAD)
        number = int.from_bytes(first[_NUMBER_AT:], "big") if first[12:16] == b"mfhd" else 0
        return moof, number


def _candidates(data: bytes, low: int, end: int) -> Iterator[int]:
    """Offsets in [low, end) where the head of a moof could be; `data` begins at `low`."""
    at, tried = data.find(b"moof"), 0
    while at >= 0 and tried < _MAX_TRIED and low + at - 4 < end:
        size = int.from_bytes(data[at - 4 : at], "big") if at >= 4 else 0
        if _MOOF_HEAD <= size <= walk.MAX_MOOF and data[at + 8 : at + 12] == b"mfhd":
            tried += 1
            yield low + at - 4
        at = data.find(b"moof", at + 1)


def _check_data(moof: Moof, begin: int, stop: int) -> None:
    """Raises Damaged where a sample of a moof is outside the media behind it."""
    least = min((int(rows.offset.min()) for rows in moof.rows.values()), default=begin)
    if least < begin or moof.data_end > stop:
        raise Damaged(f"the samples of the moof at {moof.offset} are not in its mdat")
