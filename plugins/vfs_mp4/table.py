"""What is known of the fragments of one version of a movie, and where in it a time must be. Pure.

A `FragmentTable` learns: regions of the file (one fragment each where a sidecar says so) are parsed once
and remembered. Which regions a time needs follows from the anchors' times and from what the parsed ones
showed of the distance between decode and display.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Protocol

import numpy as np

from vfs import Damaged, NoMedia, StoredObject
from vfs_mp4 import fragments, index, timeline
from vfs_mp4.anchors import Anchors
from vfs_mp4.fragments import Moof
from vfs_mp4.model import Fragment, Movie, Track
from vfs_mp4.probe import Opened, Reader

# The 0 of path times is looked for in the moov's own samples and this many fragments at most: enough for
# each track to turn up where tracks have fragments of their own.
OPENING_MOOFS = 16
# Parsed regions that are kept; one of 60 samples is about 5 KiB. Others are parsed again from the cache.
_KEPT_REGIONS = 1024
# Hints other than a sidecar may mean decode or display times; their difference is a few frames.
_LOOSE = Fraction(1, 2)
# Encoders that leave GOPs open unless told otherwise (libx265 does) write these.
_OPEN_GOP_CODECS = frozenset(("hvc1", "hev1"))
# Bytes to read up to a frame: what the fragments seen so far make of it, and this much more. Too little is
# a second request, too much is bytes; sizes of key frames differ by about this from one to the next.
_MARGIN, _MARGIN_BYTES = 1.15, 1024


@dataclass(frozen=True, eq=False)
class Region:
    """A parsed region: its fragments in file order."""

    moofs: tuple[Moof, ...]
    fragments: tuple[Fragment, ...]


@dataclass(slots=True)
class _Seen:
    """How much later than its anchor a region's key frame (at most) and its earliest picture (at least) were,
    in seconds of the media; whether there were leading pictures, and whether any region but the first was
    looked at.
    """

    key: Fraction | None = None
    least: Fraction | None = None
    leading: bool = False
    later: bool = False

    def add(self, number: int, key: Fraction, least: Fraction) -> None:
        """One more region."""
        self.key = key if self.key is None else max(self.key, key)
        self.least = least if self.least is None else min(self.least, least)
        self.leading = self.leading or least < key
        self.later = self.later or number > 0


class Finder(Protocol):
    """Finds anchors when they are needed, and keeps what it found."""

    def anchors(self) -> Anchors:
        """All that is known by now; another object whenever it has grown."""

    async def narrow(self, reader: Reader, at: int, stop: int, want: int) -> None:
        """Learn more of the region [at, stop), which is not fine, where `want` (ticks of the anchors) is.

        Raises Damaged when it cannot.
        """

    async def whole(self, reader: Reader) -> Anchors | None:
        """All anchors; None where only a walk through the file finds them."""


@dataclass(eq=False)
class FragmentTable:
    """All that is known of the fragments of one version.

    anchors: None = no hint: the file is walked. finder: what finds more of them, None = they are complete.
    opening: its first fragments, which fix `zero`, the 0 of the player line in seconds. regions: parsed ones,
    by where they begin and end; tables of one hint (`current`) share them.
    """

    object: StoredObject
    opened: Opened
    anchors: Anchors | None
    opening: tuple[Moof, ...] = ()
    regions: OrderedDict[tuple[int, int], Region] = field(default_factory=OrderedDict)
    zero: Fraction = Fraction(0)
    seen: _Seen = field(default_factory=_Seen)
    first_track: int = 0
    finder: Finder | None = None

    def current(self) -> FragmentTable:
        """The table with all anchors found by now."""
        return self if self.finder is None else replace(self, anchors=self.finder.anchors())

    def bounds(self, number: int) -> tuple[int, int]:
        """Where a region begins and ends."""
        anchors = self.known_anchors()
        return int(anchors.offset[number]), anchors.stop(number)

    def parsed(self, number: int) -> Region | None:
        """A region that was parsed and is still kept."""
        return self.regions.get(self.bounds(number))

    def learn(self, number: int, region: Region) -> None:
        """Remember a parsed region; the least recently used is forgotten."""
        self.first_track = self.first_track or region.moofs[0].track_id
        main = self.main
        rows = (
            [] if main is None else [m.rows[main.track_id] for m in region.moofs if main.track_id in m.rows]
        )
        if main is not None and rows:
            anchor = Fraction(int(self.known_anchors().time[number]), self.scale())
            earliest = min(int(part.pts.min()) for part in rows)
            key, least = Fraction(int(rows[0].pts[0]), main.timescale), Fraction(earliest, main.timescale)
            self.seen.add(number, key - anchor, least - anchor)
        self.regions[self.bounds(number)] = region
        self.regions.move_to_end(self.bounds(number))
        while len(self.regions) > _KEPT_REGIONS:
            self.regions.popitem(last=False)

    @property
    def main(self) -> Track | None:
        """The track that decides what an instant is: the first of pictures, else the first usable one."""
        usable = [t for t in self.opened.moov.tracks if t.usable]
        return next((t for t in usable if t.handler == "vide"), usable[0] if usable else None)

    def scale(self) -> int:
        """Ticks a second of the anchors' times."""
        anchors = self.known_anchors()
        if anchors.timescale is not None and anchors.source != "sidecar":
            return anchors.timescale
        return self.timescale_of(self.first_track)

    def timescale_of(self, track_id: int) -> int:
        """Ticks a second of a track. Raises Damaged for one the moov does not have."""
        found = next((t.timescale for t in self.opened.moov.tracks if t.track_id == track_id), 0)
        if found <= 0:
            raise Damaged(f"fragments of track {track_id}, which the moov does not have")
        return found

    def known_anchors(self) -> Anchors:
        """The anchors; to be asked only where there are some."""
        if self.anchors is None:
            raise Damaged("no index of the fragments")
        return self.anchors


def joined(moov_tracks: Sequence[Track], moofs: Sequence[Moof], *, from_start: bool) -> tuple[Track, ...]:
    """The moov's tracks with the samples of fragments (and, `from_start`, of the moov before them)."""
    tracks = []
    for track in moov_tracks:
        parts = [track.samples] if from_start and len(track.samples) else []
        parts += [m.rows[track.track_id] for m in moofs if track.track_id in m.rows]
        first = 0 if from_start else None
        rows = fragments.concatenate(parts, first) if parts else index.no_samples()
        # Rows of groups count the samples of the moov, which a window of fragments does not begin with.
        bare = tuple(replace(g, ends=g.ends[:0], index=g.index[:0]) for g in track.groups)
        tracks.append(replace(track, samples=rows, groups=track.groups if from_start else bare))
    return tuple(tracks)


def opening_of(tracks: Sequence[Track], moofs: Sequence[Moof]) -> tuple[Moof, ...]:
    """The fewest first fragments in which each usable track turns up, at most OPENING_MOOFS."""
    missing = {t.track_id for t in tracks if t.usable and not len(t.samples)}
    for count, moof in enumerate(moofs[:OPENING_MOOFS], 1):
        missing -= moof.rows.keys()
        if not missing:
            return tuple(moofs[:count])
    return tuple(moofs[:OPENING_MOOFS])


def settled(tracks: Sequence[Track], moofs: Sequence[Moof]) -> bool:
    """Whether more fragments cannot change what `opening_of` gives."""
    missing = {t.track_id for t in tracks if t.usable and not len(t.samples)}
    return len(moofs) >= OPENING_MOOFS or not missing.difference(*(m.rows.keys() for m in moofs))


def shows(tracks: Sequence[Track], timescale: int) -> list[tuple[Track, timeline.Shown]]:
    """Each track with what is shown of it, the edit lists shifting only."""
    return [(t, timeline.place_samples(t, timescale, shift_only=True)) for t in tracks]


def zero_of(table: FragmentTable, opening: Sequence[Moof]) -> Fraction:
    """The 0 of path times, from the moov and the opening fragments alone."""
    moov = table.opened.moov
    return timeline.zero(shows(joined(moov.tracks, opening, from_start=True), moov.timescale))


def shift(track: Track, timescale: int) -> int:
    """What an edit list adds to the pts of a fragmented track, in its ticks."""
    at = 0
    for edit in track.edits:
        if edit.media_time >= 0:
            return at - edit.media_time
        at += timeline.rescale(edit.duration, track.timescale, timescale)
    return at


def delays(table: FragmentTable) -> tuple[Fraction, Fraction, bool]:
    """(key, least, open): how much later than its anchor a region's key frame and its first shown frame are
    on the player line, in seconds, at most and at least of those parsed; and whether leading pictures are
    to be expected.
    """
    main, seen = table.main, table.seen
    if main is None:
        return Fraction(0), Fraction(0), False
    own = Fraction(shift(main, table.opened.moov.timescale), main.timescale)
    # The first region begins a stream: that it has no leading pictures says nothing of the others.
    leading = seen.leading if seen.later else seen.leading or main.codec in _OPEN_GOP_CODECS
    if seen.key is None or seen.least is None:
        return own, own, leading
    return seen.key + own, min(seen.least, Fraction(0)) + own, leading


def slack(table: FragmentTable) -> Fraction:
    """How much earlier than its bound a region's first shown frame may still be, in seconds."""
    main = table.main
    exact = table.known_anchors().source in ("sidecar", "search")
    same = main is not None and table.first_track == main.track_id
    return Fraction(0) if exact and same else _LOOSE


def regions_for(table: FragmentTable, start: Fraction, stop: Fraction) -> tuple[int, int]:
    """(first, last) region that [start, stop] (seconds after the edit list) needs by the anchors' word."""
    anchors, scale = table.known_anchors(), table.scale()
    key, least, _ = delays(table)
    first = int(np.searchsorted(anchors.time, int((start - key) * scale // 1), "right")) - 1
    last = last_before(table, stop, least)
    first = min(max(first, 0), len(anchors) - 1)
    return first, max(last, first)


def last_before(table: FragmentTable, stop: Fraction, least: Fraction) -> int:
    """The last region that may show something at or before `stop`."""
    anchors, scale = table.known_anchors(), table.scale()
    limit = int((stop - least + slack(table)) * scale // 1)
    return max(int(np.searchsorted(anchors.time, limit, "right")) - 1, 0)


def moof_reach(table: FragmentTable, number: int) -> int:
    """Bytes that hold the first moof of a region and the header of its mdat."""
    anchors = table.known_anchors()
    if anchors.moof_size is not None:
        return int(anchors.moof_size[number]) + 16
    seen = max((m.size for m in table.opening), default=2048)
    return min(seen * 5 // 4 + 256, anchors.stop(number) - int(anchors.offset[number]))


def instant_reach(table: FragmentTable, number: int, start: Fraction) -> int:
    """Bytes of a region that should hold its moof and its pictures up to the one shown at `start`."""
    anchors, scale = table.known_anchors(), table.scale()
    size = anchors.stop(number) - int(anchors.offset[number])
    key, _, _ = delays(table)
    begin = Fraction(int(anchors.time[number]), scale) + key
    length = _length(anchors, number)
    part = float((start - begin) * scale / length) if length else 1.0
    seen = [_needed(table, key, min(max(part, 0.0), 1.0)) for key in list(table.regions)[-4:]]
    shares = [share for share in seen if share is not None]
    if not shares:
        return size
    return min(int(max(shares) * size * _MARGIN) + _MARGIN_BYTES, size)


def _length(anchors: Anchors, number: int) -> int:
    """Ticks that a region lasts, 0 where that is not known."""
    if number + 1 < len(anchors):
        return int(anchors.time[number + 1] - anchors.time[number])
    return anchors.length or 0


def _needed(table: FragmentTable, bounds: tuple[int, int], part: float) -> float | None:
    """The share of a parsed region's bytes that its pictures up to `part` of its time took."""
    main, region, (begin, stop) = table.main, table.regions[bounds], bounds
    if main is None or not region.moofs or main.track_id not in region.moofs[0].rows:
        return None
    rows = region.moofs[0].rows[main.track_id]
    # The picture on screen at that part of the region, and the next in decode order for good measure.
    when = rows.pts[0] + part * float(rows.dur.sum())
    early = np.flatnonzero(rows.pts <= when)
    row = min(int(early[np.argmax(rows.pts[early])]) + 1, len(rows) - 1)
    return float(np.max(rows.offset[: row + 1] + rows.size[: row + 1]) - begin) / max(stop - begin, 1)


def uncovered(
    table: FragmentTable, tracks: Sequence[Track], first: int, last: int, start: Fraction, stop: Fraction
) -> tuple[bool, bool]:
    """(left, right): whether regions before or after [first, last] are still needed for [start, stop].

    An instant (start == stop) asks for the main track alone. Sound is wanted from a tenth of a second
    earlier: what must be decoded before it is heard (one AAC frame, 80 ms of Opus).
    """
    anchors, moov, main = table.known_anchors(), table.opened.moov, table.main
    _, least, _ = delays(table)
    left = right = False
    if last + 1 < len(anchors):
        right = last_before(table, stop, least) > last
    for track in tracks:
        is_main = main is not None and track.track_id == main.track_id
        if not track.usable or (start == stop and not is_main):
            continue
        early = start - Fraction(1, 10) if track.handler == "soun" else start
        begin = int((early * track.timescale) // 1)
        lack_left, lack_right = _lacks(track, moov.timescale, begin, stop, is_main)
        left, right = left or lack_left, right or lack_right
    return left and first > 0, right and last + 1 < len(anchors)


def _lacks(track: Track, timescale: int, begin: int, stop: Fraction, is_main: bool) -> tuple[bool, bool]:
    """Whether a track's rows lack what is before `begin` (ticks) or before `stop` (seconds)."""
    if not len(track.samples):
        return is_main, False
    shown = timeline.place_samples(track, timescale, shift_only=True)
    end = int(stop * track.timescale // 1)
    # Of pictures: a gap in the recording, or the index is wrong about where the next fragment begins. Its
    # moof tells.
    short = (is_main or track.handler == "soun") and int(shown.end[-1]) <= end
    if int(shown.time[0]) > begin:
        return is_main or track.handler == "soun", short
    wanted = shown.order[timeline.rows_between(shown, begin, end)]
    return not timeline.decodable(track, wanted), short


def movie(
    table: FragmentTable,
    moofs: Sequence[Moof],
    listed: Sequence[Fragment],
    *,
    from_start: bool,
    complete: bool,
    tail: Mapping[int, int] | None = None,
    damage: Sequence[str] = (),
) -> Movie:
    """A Movie of consecutive fragments.

    tail: by track, where its last sample ends (ticks, after the edit list), of a movie whose last fragment
    was looked at; None = what the anchors say.
    """
    moov = table.opened.moov
    tracks = joined(moov.tracks, moofs, from_start=from_start)
    end, exact = _end(table, tracks, complete, tail)
    if complete:
        tracks = tuple(t if len(t.samples) else replace(t, usable=False) for t in tracks)
    words = list(dict.fromkeys((*table.opened.damage, *moov.damage, *damage)))
    return Movie(
        object=table.object,
        timescale=moov.timescale,
        tracks=tracks,
        zero=table.zero,
        duration=max(end - table.zero, Fraction(0)),
        fragments=tuple(listed),
        init=(0, table.opened.end),
        complete=complete,
        damage=tuple(words),
        index_source="walk" if table.anchors is None else table.anchors.source,
        exact_duration=exact,
        chapters=moov.chapters,
    )


def _end(
    table: FragmentTable, tracks: Sequence[Track], complete: bool, tail: Mapping[int, int] | None
) -> tuple[Fraction, bool]:
    """(seconds at which the movie ends, before zero is taken off; whether that is certain)."""
    moov = table.opened.moov
    if complete:
        return timeline.end(shows(tracks, moov.timescale)), True
    if tail is not None:
        ends = [Fraction(tail[t.track_id], t.timescale) for t in tracks if t.track_id in tail and t.usable]
        return max(ends, default=Fraction(0)), True
    anchors = table.known_anchors()
    key, _, _ = delays(table)
    length = anchors.length if anchors.length is not None else _length(anchors, len(anchors) - 2)
    told = Fraction(int(anchors.time[-1]) + length, table.scale()) + key
    return max(told, timeline.end(shows(tracks, moov.timescale))), False


def ends_of(table: FragmentTable, moofs: Sequence[Moof]) -> dict[int, int]:
    """By track, where its last sample ends: ticks after the edit list."""
    moov = table.opened.moov
    tracks = joined(moov.tracks, moofs, from_start=False)
    found = timeline.counted(shows(tracks, moov.timescale))
    return {track.track_id: int(shown.end[-1]) for track, shown in found}


def none_usable(tracks: Sequence[Track], damage: Sequence[str]) -> Exception | None:
    """The error of a movie with nothing in it, None when there is something."""
    if any(t.usable for t in tracks):
        return None
    return Damaged("; ".join(damage)) if damage else NoMedia("no track with samples")
