"""A whole file as fragments, with an index of them: for browsers and for streaming. Pure, zero copy.

The first track leads: fragments begin at its key frames. No edit list is left: presentation begins at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from vfs import Extent, Inline, Layout, NoMedia, TooBig
from vfs_mp4 import codecs, lanes, plan, splice, weave, write
from vfs_mp4.lanes import Lane
from vfs_mp4.model import Movie, Ticks, Track

#: Part of what is remembered: changed when the same file would give other streams.
CODE = "mp4.stream.3"
#: Seconds that a fragment has at least, but where the next key frame is further away.
LEAST = 2
#: Fragments of a stream at most: a `sidx` counts them in 16 bits. Of longer files they are longer.
MOST = 60_000
#: Bytes of a fragment of the leading track at most: its mdat has a 32-bit size, players hold it whole.
LARGEST = 1 << 28


@dataclass(frozen=True, eq=False)
class Stream:
    """Fragments of one or more tracks behind an init section and an index.

    init: bytes of ftyp and moov; index: of the sidx. offset, size: of each fragment; time: in ticks of
    `timescale`, when each begins to be shown, and the end. access: type of the point of random access each
    begins with (ISO/IEC 14496-12, annex I): 1 = all of it can be decoded from there, 3 = all but the pictures
    shown before it, 0 = none.
    """

    tracks: tuple[Track, ...]
    layout: Layout
    init: int
    index: int
    offset: Ticks
    size: Ticks
    time: Ticks
    access: Ticks
    timescale: int
    nbytes: int

    @property
    def seconds(self) -> list[Fraction]:
        """How long each fragment is shown."""
        return [Fraction(ticks, self.timescale) for ticks in np.diff(self.time).tolist()]

    @property
    def peak(self) -> int:
        """Bits a second of the fullest fragment, rounded up."""
        pairs = zip(self.size.tolist(), self.seconds, strict=True)
        return max((int(-(-8 * size // length)) for size, length in pairs if length), default=0)

    @property
    def average(self) -> int:
        """Bits a second over all."""
        ticks = int(self.time[-1] - self.time[0])
        return 8 * int(self.size.sum()) * self.timescale // ticks if ticks else 0


def streamed(movie: Movie, tracks: Sequence[Track]) -> Stream:
    """The tracks as one stream; the first leads, the others follow in the order of the source.

    Raises NoMedia where nothing of the leading track is shown, Unsupported, Damaged, TooBig.
    """
    placed = [found for track in tracks if (found := lanes.lane(movie, track)) is not None]
    if not placed or placed[0].track.track_id != tracks[0].track_id:
        raise NoMedia(f"track {tracks[0].track_id}: nothing of it is shown")
    lead = placed[0]
    bounds = _bounds(lead)
    time, access = _times(lead, bounds), _access(lead, bounds)
    cuts = [bounds, *(_follow(lead, time, other) for other in placed[1:])]
    placed = [lanes.fitted(one, cut[:-1]) for one, cut in zip(placed, cuts, strict=True)]
    woven = weave.woven(movie.object, placed, cuts)
    size = woven.head + woven.data
    if len(size) > 0xFFFF or int(size.max()) > write.U32 >> 1:
        raise TooBig(f"{len(size)} fragments of up to {int(size.max())} bytes are more than an index can say")
    init = _init(placed, Fraction(int(time[-1]), lead.track.timescale))
    rows = zip(size.tolist(), np.diff(time).tolist(), access.tolist(), strict=True)
    index = weave.sidx(lead.track.track_id, lead.track.timescale, int(time[0]), list(rows))
    layout = woven.layout(movie.object, init + index)
    offset = np.cumsum(size) - size + len(init) + len(index)
    held = len(woven.heads) + 16 * (len(woven.offset) + len(size)) + 4 * size.nbytes
    made_of = tuple(one.track for one in placed)
    return Stream(
        made_of, layout, len(init), len(index), offset, size, time, access, lead.track.timescale, held
    )


def of_pictures_and_sound(movie: Movie) -> list[Track]:
    """The tracks that can be heard and seen, the leading one first.

    Raises NoMedia without one, Unsupported where one is encrypted.
    """
    return [t for t in whole(movie) if t.handler in ("vide", "soun")]


def whole(movie: Movie) -> list[Track]:
    """All usable tracks, the leading one first. Raises as `of_pictures_and_sound`."""
    first = plan.leading_track(movie)
    return [first, *(t for t in movie.tracks if t.usable and t is not first and not t.encrypted)]


def indexed(movie: Movie) -> Layout:
    """A fragmented file with an index in front of its fragments, which are as they are stored.

    The file itself where it has an index, or where something in it lies outside its fragments. Raises
    NoMedia, Unsupported.
    """
    lead = plan.leading_track(movie)
    samples, fragments = lead.samples, movie.fragments
    starts = np.array([fragment.offset for fragment in fragments], np.int64)
    holder = np.searchsorted(starts, samples.offset, "right") - 1
    if movie.index_source == "sidx" or movie.init is None or not len(holder) or holder.min() < 0:
        return Layout.whole(movie.object)
    first = np.flatnonzero(np.concatenate(([True], holder[1:] != holder[:-1])))
    first = first[:: len(first) // 0xFFFF + 1]
    edges = np.array([0, *holder[first[1:]].tolist(), len(fragments)])
    spans = [Extent(movie.object, f.offset, f.end - f.offset) for f in fragments]
    ends = np.cumsum([0, *(span.length for span in spans)])[edges]
    time = np.append(np.minimum.reduceat(samples.pts, first), int((samples.pts + samples.dur).max()))
    access = np.where(samples.sync[first], np.where(time[:-1] < samples.pts[first], 3, 1), 0)
    lengths = np.maximum(np.diff(np.maximum.accumulate(time)), 0).tolist()
    rows = zip(np.diff(ends).tolist(), lengths, access.tolist(), strict=True)
    index = weave.sidx(lead.track_id, lead.timescale, max(int(time[0]), 0), list(rows))
    return Layout([Extent(movie.object, *movie.init), Inline(index), *spans])


# ---------------------------------------------------------------- where fragments begin


def _bounds(lead: Lane) -> Ticks:
    """Rows at which fragments begin, and the end."""
    samples = lead.track.samples
    sync, kinds = samples.sync[lead.rows], samples.description[lead.rows]
    keys = np.flatnonzero(sync)
    changes = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
    total = np.cumsum(samples.size[lead.rows])
    shown = (lead.dts + lead.cts)[keys]
    least = max(LEAST * lead.track.timescale, int(lead.dts[-1]) // MOST)
    found, at, count = [0], 0, len(lead.rows)
    while True:
        next_key = int(np.searchsorted(shown, int(lead.dts[at] + lead.cts[at]) + least, "left"))
        ends = [int(keys[next_key]) if next_key < len(keys) else count]
        ends += changes[changes > at][:1].tolist()
        ends.append(max(int(np.searchsorted(total, int(total[at]) + LARGEST, "left")), at + 1))
        at = min(ends)
        if at >= count:
            return np.array([*found, count], np.int64)
        found.append(at)


def _follow(lead: Lane, time: Ticks, other: Lane) -> Ticks:
    """Rows of another lane at which the same fragments begin."""
    ticks = -(-time[1:-1] * other.track.timescale // lead.track.timescale)
    return np.concatenate(([0], np.searchsorted(other.dts, ticks, "left"), [len(other.rows)]))


def _times(lead: Lane, bounds: Ticks) -> Ticks:
    """When the earliest sample of each fragment is shown, and when the last ends."""
    first = np.minimum.reduceat(lead.dts + lead.cts, bounds[:-1])
    return np.append(np.maximum.accumulate(first), lead.end)


def _access(lead: Lane, bounds: Ticks) -> Ticks:
    """What kind of access point each fragment begins with."""
    shown, first = lead.dts + lead.cts, bounds[:-1]
    leading = np.minimum.reduceat(shown, first) < shown[first]
    sync = lead.track.samples.sync[lead.rows[first]]
    return np.where(sync, np.where(leading, 3, 1), 0)


def _init(placed: Sequence[Lane], length: Fraction) -> bytes:
    """ftyp and a moov without samples and without edit lists."""
    timescale = splice.common_timescale([lane.track for lane in placed])
    duration = round(length * timescale)
    tracks = sorted((codecs.described(lane.track) for lane in placed), key=lambda track: track.track_id)
    traks = [
        write.trak(
            track,
            duration=duration,
            media_duration=0,
            edits=[],
            tables=write.empty_tables(),
            references=(track.boxes or {}).get("tref", b"") if len(tracks) > 1 else b"",
        )
        for track in tracks
    ]
    ids = [track.track_id for track in tracks]
    mvhd = write.mvhd(timescale, duration, min(max(ids) + 1, write.U32))
    brands = write.ftyp(b"iso6", b"iso6", b"iso5", b"dash", b"mp41")
    return brands + write.box(b"moov", mvhd, *traks, write.mvex(ids))
