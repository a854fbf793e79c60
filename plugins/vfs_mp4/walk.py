"""Read fragments: a region at an anchor, all regions, or from box to box without any hint.

Only moofs and box headers are read, never an mdat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from vfs import Damaged, Place, gather
from vfs_mp4 import boxes, table
from vfs_mp4.boxes import Header
from vfs_mp4.fragments import Moof, parse_moof
from vfs_mp4.model import Fragment, Movie
from vfs_mp4.probe import Opened, Reader, off_loop
from vfs_mp4.table import FragmentTable, Region

# A moof of more is no fragment of a real encoder (12 to 16 bytes a sample).
MAX_MOOF = 16 << 20
# Top-level boxes of one file: two hours of 0.1 s fragments have 300,000 with their sidx and styp.
_MAX_BOXES = 500_000
# Boxes in a row without a moof: real files have a sidx, a styp, an mdat, some emsg or free. Millions of empty
# boxes fit into a small file, and looking at each takes some 20 us.
_MAX_IDLE = 1000
# Boxes that are read from memory in a row, before the loop that serves the mount gets its turn.
_TURN = 32
_FIRST_REACH = 4 << 10


@dataclass(slots=True)
class _Found:
    """Fragments in file order, as they turn up."""

    moofs: list[Moof] = field(default_factory=list)
    starts: list[Moof] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def moof(self, moof: Moof) -> None:
        """A moof."""
        self.moofs.append(moof)
        self.ends.append(moof.offset + moof.size)

    def data(self, end: int) -> None:
        """An mdat that ends at `end`: of the moof before it."""
        if self.ends:
            self.ends[-1] = end

    def fragments(self) -> tuple[Fragment, ...]:
        """As the model has them."""
        pairs = zip(self.moofs, self.ends, strict=True)
        return tuple(Fragment(m.offset, m.size, end, m.decode_time, m.track_id) for m, end in pairs)


@dataclass(slots=True)
class _Steps:
    """Bounds a walk, and lets others have their turn."""

    taken: int = 0
    idle: int = 0

    async def step(self, head: Header, at: int) -> None:
        """A box was looked at. Raises Damaged when there are too many without a moof among them."""
        self.taken += 1
        self.idle = 0 if head.kind == b"moof" else self.idle + 1
        if self.idle > _MAX_IDLE:
            raise Damaged(f"{self.idle} boxes in a row up to {at}, none of them a moof")
        if self.taken % _TURN == 0:
            await trio.lowlevel.checkpoint()


async def read_moof(reader: Reader, opened: Opened, at: int, head: Header, times: dict[int, int]) -> Moof:
    """The moof at `at`. Raises Damaged when it is cut, lies or is too big."""
    if head.size > MAX_MOOF or head.size == 0 or at + head.size > reader.place.size:
        raise Damaged(f"moof at {at} claims {head.size} bytes")
    data = await reader.peek(at, head.size)
    moof = await off_loop(head.size, parse_moof, data, at, opened.moov.defaults, times)
    known = {track.track_id for track in opened.moov.tracks if track.timescale > 0}
    if moof.track_id not in known:
        raise Damaged(f"moof at {at} is of track {moof.track_id}, which the moov does not have")
    return moof


async def region(reader: Reader, now: FragmentTable, number: int) -> Region:
    """One region of the anchors, parsed once. Raises Damaged when it is not what the anchors say."""
    known = now.parsed(number)
    if known is not None:
        return known
    anchors, (at, stop) = now.known_anchors(), now.bounds(number)
    reach, found, steps = table.moof_reach(now, number), _Found(), _Steps()
    while at < stop:
        head = await reader.header(at, reach)
        if head is None or not head.size or at + head.size > stop:
            raise Damaged(f"no box that ends by {stop} at {at}")
        if head.kind == b"moof":
            found.moof(await read_moof(reader, now.opened, at, head, {}))
        elif head.kind == b"mdat":
            found.data(at + head.size)
        elif not found.moofs and anchors.source != "sidx":
            raise Damaged(f"{boxes.name_of(head.kind)} at {at}, not moof")
        await steps.step(head, at)
        at, reach = at + head.size, 64
    _check(now, number, found, at)
    parsed = Region(tuple(found.moofs), found.fragments())
    now.learn(number, parsed)
    return parsed


def _check(now: FragmentTable, number: int, found: _Found, end: int) -> None:
    """Whether a region is what its anchor says."""
    anchors = now.known_anchors()
    if not found.moofs or end != anchors.stop(number):
        raise Damaged(f"no whole fragment at {int(anchors.offset[number])}")
    if not all(moof.timed for moof in found.moofs):
        raise Damaged("fragments without decode times")
    if anchors.moof_size is None or anchors.data_end is None:
        return
    moof, same = found.moofs[0], len(found.moofs) == 1
    same = same and moof.size == anchors.moof_size[number] and found.ends[0] == anchors.data_end[number]
    if not same or moof.decode_time != anchors.time[number]:
        raise Damaged(f"the fragment at {moof.offset} is another one")


async def all_regions(place: Place, now: FragmentTable) -> Movie:
    """Complete tables by the anchors, several regions at a time. Raises Damaged when they are wrong."""
    anchors = now.known_anchors()
    reader, steps = Reader(place), _Steps()
    parsed = await gather([partial(_region_alone, place, now, n) for n in range(len(anchors))])
    at = anchors.end
    while (head := await reader.header(at)) is not None and head.kind != b"mfra":
        if head.kind == b"moof":
            raise Damaged(f"a fragment at {at} that is not listed")
        await steps.step(head, at)
        at += head.size or place.size
    return _complete(now, [m for r in parsed for m in r.moofs], [f for r in parsed for f in r.fragments], [])


async def _region_alone(place: Place, now: FragmentTable, number: int) -> Region:
    return await region(Reader(place), now, number)


async def whole(place: Place, opened: Opened) -> Movie:
    """Complete tables by walking from box to box; what comes after a broken fragment is left out."""
    reader, found, damage, steps = Reader(place), _Found(), list[str](), _Steps()
    times = {t.track_id: int(t.samples.dur.sum()) for t in opened.moov.tracks}
    at, reach, room = opened.end, _FIRST_REACH, boxes.MAX_ROWS
    for _ in range(_MAX_BOXES):
        try:
            head = await reader.header(at, reach)
            if head is None:
                break
            if head.kind == b"moof":
                moof = await read_moof(reader, opened, at, head, times)
                room -= sum(len(rows) for rows in moof.rows.values())
                if room < 0:
                    raise Damaged(f"tables over {boxes.MAX_TABLE_BYTES} bytes")
                times.update({k: int(r.dts[-1] + r.dur[-1]) for k, r in moof.rows.items()})
                found.moof(moof)
                reach = max(_FIRST_REACH, moof.size * 5 // 4 + 64)
            await steps.step(head, at)
        except Damaged as error:
            damage.append(str(error))
            break
        end = at + head.size if head.size else place.size
        if end > place.size:
            damage.append(f"{boxes.name_of(head.kind)} at {at} is cut off by the end of the file")
        at = min(end, place.size)
        if head.kind == b"mdat":
            found.data(at)
        reader.drop(at - reach)
    now = FragmentTable(place.object, opened, None)
    return _complete(now, found.moofs, found.fragments(), damage)


def _complete(
    now: FragmentTable, moofs: Sequence[Moof], listed: Sequence[Fragment], damage: Sequence[str]
) -> Movie:
    moov = now.opened.moov
    now.opening = table.opening_of(moov.tracks, moofs)
    now.zero = table.zero_of(now, now.opening)
    movie = table.movie(now, moofs, listed, from_start=True, complete=True, damage=damage)
    error = table.none_usable(movie.tracks, movie.damage)
    if error is not None:
        raise error
    return movie
