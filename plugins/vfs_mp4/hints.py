"""Choose a hint where the fragments lie: sidecars first, then sidx, then mfra; check it at both ends.

Without any, fragments are searched for as they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vfs import Damaged, NotFound, Place, Stale
from vfs_mp4 import narrowing, rangedb, sidecar, table, walk
from vfs_mp4.anchors import Anchors, parse_mfra, parse_sidx
from vfs_mp4.boxes import Header
from vfs_mp4.fragments import Moof
from vfs_mp4.probe import Opened, Reader, off_loop
from vfs_mp4.search import Search
from vfs_mp4.table import Finder, FragmentTable

__all__ = ["Hint", "Side", "first_table", "head_length", "read_sidecar", "sidecars"]

# An mfra of FFmpeg has about 20 bytes a fragment; more than this is no hint worth its bytes.
_MAX_HINT = 4 << 20
_TAIL = 8 << 10
_MAX_HEAD = 64 << 10
# Boxes between moov and the first moof: styp, sidx, free, emsg, ...
_MAX_BETWEEN = 32
#: Under which name (and version of the code) the index of a file is kept on this machine.
KEPT = "mp4.index.1"
# What the generator of sidecars writes when it finds no mdhd.
_NO_TIMESCALE = 90_000


@dataclass(frozen=True, slots=True)
class Side:
    """A sidecar that is there."""

    suffix: str
    place: Place


@dataclass(frozen=True, slots=True)
class Hint:
    """Where fragments lie by the word of one source. finder: finds those that `anchors` do not have yet."""

    anchors: Anchors
    finder: Finder | None = None


@dataclass(frozen=True, slots=True)
class _Begin:
    """Where the fragments begin. sidx: offset and header of one before them."""

    moof: int
    head: Header
    sidx: tuple[int, int] | None


async def sidecars(place: Place) -> list[Side]:
    """The sidecars beside a file that list fragments, the one to be used first; none is read for this.

    Where there are two, the other one is only asked when the first does not fit: what a sidecar says of a
    fragment is compared with the fragment before it is used, so there is nothing to compare it with besides.
    A database so large that it is read by range stands alone: the other form would have to be read whole.
    """
    found = [
        Side(suffix, side)
        for suffix in (sidecar.SQLITE, sidecar.JSON)
        if (side := await place.sidecar(suffix))
    ]
    return found[:1] if found and _by_range(found[0]) else found


def _by_range(side: Side) -> bool:
    return side.suffix == sidecar.SQLITE and side.place.size > rangedb.WHOLE


async def read_sidecar(place: Place, side: Side) -> Hint | None:
    """What a sidecar says; None, with a report, when it cannot be of this file."""
    size = side.place.size
    try:
        if _by_range(side):
            index = await rangedb.RangedIndex.opened(side.place, place.size)
            return Hint(index.anchors(), index)
        if size > sidecar.MAX_BYTES:
            raise Damaged(f"{size} bytes are over the limit of {sidecar.MAX_BYTES}")
        data = await side.place.read(0, size)
        return Hint(await off_loop(size, sidecar.parse, side.suffix, data, place.size))
    except (Damaged, NotFound, Stale) as error:
        place.report(f"{side.suffix} ignored: {error}")
        return None


def head_length(parsed: Sequence[Hint | None]) -> int | None:
    """How long the head with the first moof is by the word of a sidecar; None where none says."""
    found = next((hint.anchors for hint in parsed if hint is not None), None)
    if found is None or found.moof_size is None:
        return None
    return min(int(found.offset[0] + found.moof_size[0]) + 16, _MAX_HEAD)


async def first_table(
    place: Place, reader: Reader, opened: Opened, read: Mapping[str, Hint | None], tried: set[str]
) -> FragmentTable | None:
    """A table by the best hint that fits, its opening read; None where the file must be walked.

    read: sidecars that were read already, by suffix. tried: sources that need not be asked again; those asked
    now are added.
    """
    begin = await _begin(reader, opened)
    if begin is None or any(len(track.samples) for track in opened.moov.tracks):
        return None
    sides = {side.suffix: side for side in await sidecars(place)}
    for source in (*sides, "kept", "sidx", "mfra"):
        if source in tried:
            continue
        tried.add(source)
        if source in sides:
            hint = read[source] if source in read else await read_sidecar(place, sides[source])
            found = hint if hint is not None and _begins_well(place, opened, hint.anchors, begin) else None
        else:
            found = await _hint(source, place, reader, opened, begin)
        if found is not None:
            try:
                return await _opened_table(place, reader, opened, found)
            except Damaged as error:
                place.report(f"{found.anchors.name} ignored: {error}")
    if "search" in tried:
        return None
    tried.add("search")
    return await _searched(place, reader, opened, begin)


async def _searched(place: Place, reader: Reader, opened: Opened, begin: _Begin) -> FragmentTable | None:
    """A table whose fragments are found when they are needed; None where the first one is not usable."""
    main = FragmentTable(place.object, opened, None).main
    if main is None:
        return None
    search = Search(opened, main, place.size)
    try:
        await search.begin(reader, begin.moof)
        return await _opened_table(place, reader, opened, Hint(search.anchors(), search))
    except Damaged:
        return None


async def _begin(reader: Reader, opened: Opened) -> _Begin | None:
    """The first moof, from the moov on; None where there is none near."""
    at, sidx = opened.end, None
    try:
        for _ in range(_MAX_BETWEEN):
            head = await reader.header(at, _TAIL)
            if head is None or not head.size:
                return None
            if head.kind == b"moof":
                return _Begin(at, head, sidx)
            if head.kind == b"sidx" and sidx is None:
                sidx = (at, head.size)
            at += head.size
    except Damaged:
        pass
    return None


async def _hint(source: str, place: Place, reader: Reader, opened: Opened, begin: _Begin) -> Hint | None:
    """The hint of one kind, if it is there and can be of this file."""
    try:
        if source == "kept":
            return await _kept(place, opened, begin)
        found = await (
            _sidx(place, reader, begin) if source == "sidx" else _mfra(place, reader, opened, begin)
        )
        return None if found is None else Hint(found)
    except Damaged as error:
        place.report(f"{source} ignored: {error}")
        return None


async def _kept(place: Place, opened: Opened, begin: _Begin) -> Hint | None:
    """The index that an earlier mount, or `reelfs index`, made of this version."""
    data = await place.kept(KEPT)
    if data is None:
        return None
    found = replace(await off_loop(len(data), sidecar.parse_sqlite, data, place.size), name="the kept index")
    return Hint(found) if _begins_well(place, opened, found, begin) else None


def _begins_well(place: Place, opened: Opened, found: Anchors, begin: _Begin) -> bool:
    """Whether the first row is the first fragment, and the last row the end of the file."""
    scales = [track.timescale for track in opened.moov.tracks]
    reason = ""
    if found.timescale not in (*scales, _NO_TIMESCALE):
        reason = f"timescale {found.timescale}, the video has {scales}"
    elif found.moof_size is None or (found.offset[0], found.moof_size[0]) != (begin.moof, begin.head.size):
        reason = f"first fragment at {found.offset[0]}, the video has it at {begin.moof}"
    elif not found.covers(place.size):
        reason = f"it ends at {found.end}, the video at {place.size}"
    if reason:
        place.report(f"{found.name} ignored: {reason}")
    return not reason


async def _sidx(place: Place, reader: Reader, begin: _Begin) -> Anchors | None:
    """A sidx before the first fragment that covers the whole file."""
    if begin.sidx is None or begin.sidx[1] > _MAX_HINT:
        return None
    at, size = begin.sidx
    found = parse_sidx(await reader.peek(at, size), at)
    good = found.covers(place.size) and found.offset[0] <= begin.moof < found.stop(0)
    return found if good else None


async def _mfra(place: Place, reader: Reader, opened: Opened, begin: _Begin) -> Anchors | None:
    """The mfra at the end, found by the mfro in the last 16 bytes (ISO/IEC 14496-12 8.8.11)."""
    tail = max(place.size - _TAIL, begin.moof + begin.head.size)
    last = await reader.peek(place.size - 16, 16) if reader.knows(place.size - 16, 16) else b""
    if not last and place.size - tail >= 16:
        last = (await reader.peek(tail, place.size - tail))[-16:]
    if len(last) < 16 or last[4:8] != b"mfro":
        return None
    length = int.from_bytes(last[12:16], "big")
    at = place.size - length
    if not 16 <= length <= _MAX_HINT or at <= begin.moof:
        raise Damaged(f"mfro points {length} bytes back")
    scales = {track.track_id: track.timescale for track in opened.moov.tracks}
    found = parse_mfra(await reader.peek(at, length), at, scales)
    if found.offset[0] > begin.moof:
        time = np.insert(found.time, 0, min(0, int(found.time[0])))
        return replace(found, offset=np.insert(found.offset, 0, begin.moof), time=time)
    if found.offset[0] < begin.moof:
        raise Damaged("it begins before the first fragment")
    return found


async def _opened_table(place: Place, reader: Reader, opened: Opened, hint: Hint) -> FragmentTable:
    """A table with its opening fragments, and its last one where the hint does not say how long it is."""
    found, finder = hint.anchors, hint.finder
    now = FragmentTable(place.object, opened, found, finder=finder)
    moofs: list[Moof] = []
    number = 0
    while number < len(now.known_anchors()):
        if number:
            now = await narrowing.fine(reader, now, now.bounds(number)[0], late=False)
        moofs += (await walk.region(reader, now, number)).moofs
        if table.settled(opened.moov.tracks, moofs):
            break
        number += 1
    now.opening = table.opening_of(opened.moov.tracks, moofs)
    now.zero = table.zero_of(now, now.opening)
    if finder is None and (found.source != "sidecar" or found.length is None):
        await walk.region(reader, now, len(found) - 1)
    return now
