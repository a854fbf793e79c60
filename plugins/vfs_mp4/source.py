"""From a stored file to its sample tables, with few ranged reads.

Progressive: head, moov, done. Fragmented: a sidecar, else sidx or mfra, says where the fragments of a time
lie; the moof is read in one request with the pictures that will be wanted. A hint that does not fit the
fragments is reported and dropped, and the fragments are walked: slower, never wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial

import trio

from vfs import Damaged, NotFound, OutOfRange, Place, Stale, Unsupported, gather, in_thread
from vfs_mp4 import generate, hints, narrowing, table, timeline, walk
from vfs_mp4.index import Moov
from vfs_mp4.model import Movie
from vfs_mp4.probe import BIG_FILE, Opened, Reader, off_loop, open_moov
from vfs_mp4.sidecar import MAX_BYTES, OFFSETS, disagreement, parse_offsets
from vfs_mp4.table import FragmentTable, Region

# Up to this many bytes the regions of a range are read whole, in one request, instead of moof by moof.
_RANGE_AT_ONCE = 256 << 10
# A frame's region is read up to the frame and the next moof apart where that leaves more than this unread.
_WORTH_A_REQUEST = 64 << 10


@dataclass(eq=False)
class _Source:
    """What is known of one version of a file: a whole movie, or the state of its hints."""

    movie: Movie | None = None
    opened: Opened | None = None
    table: FragmentTable | None = None
    tried: set[str] = field(default_factory=set)
    lock: trio.Lock = field(default_factory=trio.Lock)

    @property
    def nbytes(self) -> int:
        """Memory held; a table of fragments grows to a few MB."""
        return 1 << 20 if self.movie is None else _cost(self.movie)


def _cost(movie: Movie) -> int:
    """The tables, and what is derived of them for the player line (three more columns)."""
    return movie.nbytes * 8 // 5


async def open_movie(place: Place) -> Movie:
    """The complete tables of a stored file, kept for its version.

    Raises NoMedia where there is nothing to derive from, Damaged where it is beyond use, StoreError.
    """
    return await place.derive("mp4.movie.1", partial(_open_movie, place), cost=lambda _: 0)


async def movie_at(place: Place, start: Fraction, stop: Fraction) -> Movie:
    """Tables that hold all that is shown in [start, stop] and what must be decoded for it.

    start, stop: seconds on the player line; equal = an instant, of the first track of pictures alone.
    Raises OutOfRange for what the movie does not have: an instant after its end, a range that begins at it.
    """
    if start < 0 or stop < start:
        raise OutOfRange(f"{place.path}: no times {float(start)} to {float(stop)}")
    source = await _source(place)
    movie = None
    while movie is None and source.table is not None:
        movie = await _by_hint(place, source, source.table, start, stop)
    if movie is None:
        movie = await _whole(place)
    if start > movie.duration or (start == movie.duration and start < stop):
        raise OutOfRange(f"{place.path}: ends at {float(movie.duration)} s, asked for {float(start)} s")
    return movie


async def _open_movie(place: Place) -> Movie:
    movie = await _whole(place)
    side = await place.sidecar(OFFSETS)
    if side is not None and side.size <= MAX_BYTES:
        try:
            data = await side.read(0, side.size)
            wrong = disagreement(await off_loop(side.size, parse_offsets, data), movie)
        except (Damaged, NotFound, Stale) as error:
            wrong = str(error)
        if wrong is not None:
            place.report(f"{OFFSETS} ignored: {wrong}")
    return movie


async def _whole(place: Place) -> Movie:
    source = await _source(place)
    if source.movie is not None:
        return source.movie
    return await place.derive("mp4.whole.1", partial(_all_fragments, place, source), cost=_cost)


async def _source(place: Place) -> _Source:
    return await place.derive("mp4.source.1", partial(_load, place), cost=lambda found: found.nbytes)


async def _load(place: Place) -> _Source:
    """Head, sidecars (at the same time) and moov; for a fragmented file the fragments that fix its 0."""
    reader = Reader(place)
    listed = await hints.sidecars(place)
    opened, read = await _both(place, reader, listed[:1])
    moov = opened.moov
    if not moov.fragmented and any(len(track.samples) for track in moov.tracks):
        return _Source(movie=_progressive(place, opened))
    source = _Source(opened=opened)
    source.table = await hints.first_table(place, reader, opened, read, source.tried)
    return source


async def _both(
    place: Place, reader: Reader, listed: Sequence[hints.Side]
) -> tuple[Opened, dict[str, hints.Hint | None]]:
    """The moov, and what sidecars say, by suffix.

    Of a big file both are asked for together: the head is little beside any picture. Of a small one the
    sidecar is asked first, since it tells how long the head is: a round trip more, no byte too many.
    """
    opened: list[Opened] = []
    read: dict[str, hints.Hint | None] = {}

    async def read_moov() -> None:
        opened.append(await open_moov(reader, hints.head_length(list(read.values()))))

    async def read_side(side: hints.Side) -> None:
        read[side.suffix] = await hints.read_sidecar(place, side)

    works: list[Callable[[], Awaitable[None]]] = [partial(read_side, side) for side in listed]
    if place.size >= BIG_FILE:
        await gather([*works, read_moov])
    else:
        await gather(works)
        await read_moov()
    return opened[0], read


def _progressive(place: Place, opened: Opened) -> Movie:
    moov: Moov = opened.moov
    damage = tuple(dict.fromkeys(opened.damage + moov.damage))
    error = table.none_usable(moov.tracks, damage)
    if error is not None:
        raise error
    pairs = [(t, timeline.place_samples(t, moov.timescale, shift_only=False)) for t in moov.tracks]
    zero = timeline.zero(pairs)
    return Movie(
        object=place.object,
        timescale=moov.timescale,
        tracks=moov.tracks,
        zero=zero,
        duration=max(timeline.end(pairs) - zero, Fraction(0)),
        damage=damage,
        chapters=moov.chapters,
    )


async def _all_fragments(place: Place, source: _Source) -> Movie:
    """Complete tables of a fragmented file: by its hints, several moofs at a time, else by walking."""
    assert source.opened is not None
    while source.table is not None:
        now = source.table
        try:
            found = now.anchors if now.finder is None else await now.finder.whole(Reader(place))
            if found is None:
                break
            movie = await walk.all_regions(place, replace(now, anchors=found, finder=None))
            if found.source == "search":
                await _keep(place, movie)
            return movie
        except Damaged as error:
            await _distrust(place, source, now, error)
    movie = await walk.whole(place, source.opened)
    await _keep(place, movie)
    return movie


async def _keep(place: Place, movie: Movie) -> None:
    """Keep what a walk found for later mounts, where the index can say it."""
    try:
        data = await in_thread(generate.index_sqlite, movie)
    except Unsupported:
        return
    await place.keep(hints.KEPT, data)


async def _distrust(place: Place, source: _Source, wrong: FragmentTable, error: Exception) -> None:
    """Go on with the next hint, or none; of several readers that find it wrong, the first does it."""
    assert source.opened is not None
    async with source.lock:
        if source.table is wrong:
            place.report(f"{wrong.known_anchors().name} ignored: {error}")
            source.table = await hints.first_table(place, Reader(place), source.opened, {}, source.tried)


async def _by_hint(
    place: Place, source: _Source, now: FragmentTable, start: Fraction, stop: Fraction
) -> Movie | None:
    """The window by the hints of `now`; None when these were wrong and are replaced."""
    try:
        return await _window(place, now, start, stop)
    except Damaged as error:
        await _distrust(place, source, now, error)
        return None


async def _window(place: Place, now: FragmentTable, start: Fraction, stop: Fraction) -> Movie:
    reader = Reader(place)
    begin, end = start + now.zero, stop + now.zero
    now = await narrowing.settled(reader, now, begin, end)
    first, last = table.regions_for(now, begin, end)
    if start == stop:
        await _fetch_instant(reader, now, first, last, begin)
    elif now.known_anchors().stop(last) - int(now.known_anchors().offset[first]) <= _RANGE_AT_ONCE:
        at = int(now.known_anchors().offset[first])
        await reader.peek(at, now.known_anchors().stop(last) - at)
    step = 1
    while True:
        parsed = await gather([partial(walk.region, reader, now, n) for n in range(first, last + 1)])
        moofs = [m for region in parsed for m in region.moofs]
        tracks = table.joined(now.opened.moov.tracks, moofs, from_start=False)
        left, right = table.uncovered(now, tracks, first, last, begin, end)
        if not left and not right:
            return _movie_of(now, parsed, from_start=first == 0)
        now, (first, last) = await narrowing.grown(
            reader, now, (first, last), (step if left else 0, int(right))
        )
        step *= 2 if left else 1


def _movie_of(now: FragmentTable, regions: Sequence[Region], *, from_start: bool) -> Movie:
    tail = now.parsed(len(now.known_anchors()) - 1)
    return table.movie(
        now,
        [m for region in regions for m in region.moofs],
        [f for region in regions for f in region.fragments],
        from_start=from_start,
        complete=False,
        tail=None if tail is None else table.ends_of(now, tail.moofs),
    )


async def _fetch_instant(reader: Reader, now: FragmentTable, first: int, last: int, begin: Fraction) -> None:
    """Ask for what a frame will need in one request: moof, pictures up to it, and the next moof if it counts.

    The moof is read as soon as it is here, the pictures are decoded while they come.
    """
    anchors = now.known_anchors()
    at = int(anchors.offset[first])
    reach = table.instant_reach(now, first, begin)
    if last == first:
        if now.parsed(first) is None:
            await reader.place.expect(at, reach)
        return
    next_at = int(anchors.offset[first + 1])
    next_reach = table.moof_reach(now, first + 1)
    if table.delays(now)[2]:
        # Leading pictures of the next key frame: that frame comes with them.
        next_reach = table.instant_reach(now, first + 1, Fraction(0))
    if now.parsed(first) is None and next_at - at - reach <= _WORTH_A_REQUEST:
        await reader.place.expect(at, next_at + next_reach - at)
        return
    pieces = [(at, reach), (next_at, next_reach)]
    for number, piece in enumerate(pieces):
        if now.parsed(first + number) is None:
            await reader.place.expect(*piece)
