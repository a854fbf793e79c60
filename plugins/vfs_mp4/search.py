"""Find the fragment of a time where nothing lists the fragments: interpolation, and looking for a `moof`.

The offset of a time is estimated from the fragments known around it (`aim`), and the media from somewhat
before that offset on is looked through for the four letters while it comes (`incoming`). What looks like a
fragment there only steers the search. It counts when it is the target and the next box behind its media is a
fragment that goes on where it ends: letters or whole boxes inside the media never do. What is found is kept,
so the next time is found from nearer by.
"""

from __future__ import annotations

from functools import partial

from vfs import Damaged, Place, gather
from vfs_mp4 import walk
from vfs_mp4.aim import SMALL, Aim
from vfs_mp4.anchors import Anchors
from vfs_mp4.boxes import Header, name_of
from vfs_mp4.fragments import Moof
from vfs_mp4.incoming import MOOF_HEAD, Incoming, candidates, incoming
from vfs_mp4.known import Known, Start
from vfs_mp4.model import Track
from vfs_mp4.probe import Opened, Reader

# Boxes that stand between fragments.
_BETWEEN = frozenset(
    (b"styp", b"sidx", b"ssix", b"emsg", b"prft", b"free", b"skip", b"uuid", b"wide", b"mfra")
)
# Fragments of other tracks, and boxes between, that may come before one of the main track.
_MAX_BOXES = 64
# Of large fragments so much is asked for at once, and given up when the first one is seen; when that is not
# yet the wanted one so much more is let come.
_AT_ONCE, _GO_ON = 8 << 20, 512 << 10
# Where nothing is found the next look goes back by so many times as much.
_WIDER = 3
# Parts of a file that are walked at once where all fragments are needed; a wrong beginning costs a round.
_PARTS, _ROUNDS = 8, 3
# Of a chain of small fragments among large ones so many are looked at before it is believed.
_LINKS = 8
# A box header and the first child of a moof, up to its sequence number (ISO/IEC 14496-12 8.8.5).
_NUMBER_AT = 20
# Read where a moof may begin: it and the header of its mdat, of up to some 200 samples; later as much as the
# largest one seen takes, up to the second.
_REACH, _MOST_REACH = 4 << 10, 64 << 10


class _Ended(Damaged):
    """The boxes end before a fragment of the main track. at: where."""

    def __init__(self, at: int) -> None:
        super().__init__(f"no fragment before the end at {at}")
        self.at = at


class Search:
    """A `table.Finder` for one file. opened, main: its moov and the track whose times are meant."""

    def __init__(self, opened: Opened, main: Track, size: int) -> None:
        self._opened, self._main = opened, main
        self._known = Known(opened, main, size)
        self._reach = _REACH

    async def begin(self, reader: Reader, at: int) -> None:
        """The first fragment. Raises Damaged where it is none."""
        self._known.add(at, await self._start(reader, at))
        self._known.prove(at)

    def anchors(self) -> Anchors:
        """See `table.Finder`."""
        return self._known.anchors()

    async def narrow(self, reader: Reader, at: int, stop: int, want: int) -> None:
        """See `table.Finder`."""
        before = self._known.before(at)
        start = self._known.starts[before]
        if at == before or want < start.until:
            await self._follow(reader, before)
            return
        stop = min(stop, self._known.end)
        aim = self._known.aim(before, stop, want)
        if aim.hop:
            await self._follow(reader, before)
        else:
            await self._look(reader, before, aim, want)

    async def whole(self, reader: Reader) -> Anchors | None:
        """All fragments, from box to box, in several parts of the file at once; None where a chain breaks."""
        known = self._known
        first, end = known.order[0], known.end
        parts = min(_PARTS, (end - first) // (4 * (known.starts[first].after - first)) + 1)
        marks = [first + (end - first) * number // parts for number in range(1, parts)]
        try:
            await gather([partial(self._mark, reader, mark) for mark in marks])
            for _ in range(_ROUNDS):
                loose = [at for at in known.order if at not in known.linked]
                ends = zip(loose, [*loose[1:], end], strict=False)
                await gather([partial(self._chain, reader.place, at, stop) for at, stop in ends], _PARTS)
        except Damaged:
            return None
        found = known.anchors()
        return found if found.fine is not None and bool(found.fine.all()) else None

    async def _mark(self, reader: Reader, near: int) -> None:
        """Learn a fragment near an offset."""
        known = self._known
        before = known.before(near)
        behind = known.behind(before)
        stop = known.end if behind is None else behind
        if before not in known.linked and known.starts[before].after < near < stop:
            await self._look(reader, before, known.near(before, stop, near), 0)

    async def _chain(self, place: Place, at: int, stop: int) -> None:
        """Follow one fragment after the other up to `stop`, or where it breaks."""
        reader, known = Reader(place), self._known
        while at < stop and at in known.starts:
            if at not in known.linked:
                await self._follow(reader, at)
            behind = known.behind(at)
            if behind is None:
                return
            at = behind
            reader.drop(at)

    # -- looking ----------------------------------------------------------------------------------------

    async def _look(self, reader: Reader, before: int, aim: Aim, want: int) -> None:
        """Learn a fragment from `aim.low` on, else from farther and farther before it."""
        after = self._known.starts[before].after
        low, high = aim.low, aim.high
        width = aim.back or max(aim.each, high - low if aim.small else 0)
        small, windows = aim.small, 0
        while True:
            if small:
                # One more than is looked for: what lies in its media is none.
                context = max(low - self._known.largest * 5 // 4, after)
                found = await self._scan(reader, context, low, high)
            else:
                found = await self._run(reader, low, high, want, max(aim.each, width))
            if found:
                return
            if low <= after:
                await self._follow(reader, before)
                return
            windows += 1
            if aim.back:
                self._known.spend()
                # It is larger than those that are known.
                width = width * 2 if windows > 1 else width
            else:
                width = width * _WIDER
            low, high = max(low - width, after), low
            small = small and width <= SMALL

    async def _run(self, reader: Reader, low: int, high: int, want: int, each: int) -> bool:
        """Whether a fragment that begins in [low, high) was learnt: the first one, as soon as it is seen.

        The bytes are one request that is given up then, or goes on a little where the time is near.
        """
        # No more is asked for than is likely needed: on a fast line all of it is sent before it is given up.
        begin, length = low, min(max(each * 2, self._known.largest), _AT_ONCE)
        while low < high:
            async with incoming(reader, low, min(low + length, high)) as media:
                at: int | None = low
                while at is not None and (at := await media.find(at)) is not None:
                    media.show()
                    if await self._learnt(reader, at):
                        self._known.bare[at] = begin
                        await self._go_on(reader, media, at, want)
                        return True
                    at += 8
                low, length = media.end, min(length * _WIDER, _AT_ONCE)
        return False

    async def _learnt(self, reader: Reader, at: int) -> bool:
        """Whether there is a fragment at an offset, and fits between the known ones."""
        known = self._known
        if at in known.starts or known.is_rejected(at):
            return at in known.starts
        try:
            start = await self._start(reader, at)
        except Damaged:
            known.reject(at)
            return False
        return known.add(at, start)

    async def _go_on(self, reader: Reader, media: Incoming, at: int, want: int) -> None:
        """Step on to the fragment of a time while the bytes that come anyway have the next one soon."""
        known, limit = self._known, at + _GO_ON
        while at in known.starts and known.starts[at].until <= want:
            after = known.starts[at].after
            if after > limit or not await media.has(after + self._reach):
                return
            media.show()
            await self._follow(reader, at)
            if at not in known.linked:
                return
            at = known.behind(at) or at

    async def _scan(self, reader: Reader, context: int, low: int, end: int) -> int:
        """How many fragments that begin in [low, end) were learnt; media of those from `context` on is left
        out.
        """
        await reader.peek(context, end + self._reach - context)
        data = await reader.peek(context, end + MOOF_HEAD - context)
        known, learnt, behind = self._known, 0, context
        for at in candidates(data, context, end):
            if at < behind or known.is_rejected(at):
                continue
            try:
                start = known.starts.get(at) or await self._start(reader, at)
            except Damaged:
                known.reject(at)
                continue
            behind = start.after
            if at >= low and at not in known.starts:
                learnt += known.add(at, start)
        return learnt

    async def _follow(self, reader: Reader, at: int) -> None:
        """Prove a fragment by the one behind it, which is learnt, or by the end of all fragments."""
        known = self._known
        start = known.starts.get(at)
        if start is None:  # given up meanwhile, by another reader
            return
        try:
            behind, found = await self._next(reader, start.after)
            if found is not None and not known.is_proved(at):
                await self._sound(reader, at, behind, found)
            if at not in known.starts:
                return
            if found is None:
                known.finish(at, behind)
            else:
                known.join(at, behind, found)
        except Damaged as error:
            known.drop(at, error)
            return
        known.link(at)

    async def _sound(self, reader: Reader, at: int, behind: int, found: Start) -> None:
        """Raises Damaged where the chain from a look's find breaks before it is as long as half a fragment.

        What lies in the media of another one may be a chain of its own, but one that ends in there.
        """
        enough = at + self._known.usual() // 2
        for _ in range(_LINKS):
            if found.after >= enough or self._known.is_proved(behind):
                return
            at, last = behind, found
            behind, following = await self._next(reader, last.after)
            if following is None:
                return
            if following.time <= last.time or following.number < last.number:
                raise Damaged(f"the fragment at {behind} does not go on where that at {at} ends")
            found = following

    # -- reading ----------------------------------------------------------------------------------------

    async def _next(self, reader: Reader, at: int) -> tuple[int, Start | None]:
        """The fragment at or behind a box; at the end of the fragments that, and None."""
        for _ in range(_MAX_BOXES):
            head = await reader.header(at, self._reach)
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

    async def _start(self, reader: Reader, at: int) -> Start:
        """The fragment that begins at `at`, with all before it that has nothing of the main track.

        Raises Damaged when it is none, is cut, or its samples are not in its media.
        """
        moof, number, last = None, 0, b""
        for _ in range(_MAX_BOXES):
            head = await reader.header(at, self._reach)
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
                    return Start(int(rows.dts[0]), int(rows.dts[-1] + rows.dur[-1]), stop, number)
            elif head.kind not in _BETWEEN:
                break
            at, last = stop, head.kind
        raise Damaged(f"no whole fragment before {at}")

    async def _moof(self, reader: Reader, at: int, head: Header) -> tuple[Moof, int]:
        """A moof and its number."""
        moof = await walk.read_moof(reader, self._opened, at, head, {})
        if not moof.timed:
            raise Damaged("fragments without decode times")
        self._reach = min(max(self._reach, head.size * 5 // 4 + 64), _MOST_REACH)
        first = await reader.peek(at, MOOF_HEAD)
        number = int.from_bytes(first[_NUMBER_AT:], "big") if first[12:16] == b"mfhd" else 0
        return moof, number


def _check_data(moof: Moof, begin: int, stop: int) -> None:
    """Raises Damaged where a sample of a moof is outside the media behind it."""
    least = min((int(rows.offset.min()) for rows in moof.rows.values()), default=begin)
    if least < begin or moof.data_end > stop:
        raise Damaged(f"the samples of the moof at {moof.offset} are not in its mdat")
