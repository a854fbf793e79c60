"""Clips of several files one after the other, as one file that plays: zero copy. Pure.

Each track of the result has the samples of all clips end to end and one edit for each clip, which hides what
only its decoding needs. What is spliced is all sources one behind the other, once for each clip, so that a
joined file is written like any clip; its spans are then replaced by what lies there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate
from math import ceil, lcm

import numpy as np

from vfs import Extent, Inline, Layout, Span, StoredObject, TooBig, Unsupported
from vfs_mp4 import descriptions, splice, write
from vfs_mp4.model import Samples, Ticks, Track
from vfs_mp4.plan import Window
from vfs_mp4.splice import Part

#: Samples of a joined file: two hours of pictures and sound. Their tables take 40 MB of memory.
MAX_SAMPLES = 1_000_000
_TKHD_MATRIX = 36
#: What is hidden takes a part of a second so small that a group of pictures takes no longer than a frame or
#: two, and no smaller: FFmpeg's search for a key frame goes by the shortest step.
_STEPS = 10_000
_LEAST_TIMESCALE = 9 * _STEPS


@dataclass(frozen=True, eq=False)
class Clip:
    """One window, and what to call it in an error.

    patches: (offset in the source, byte to stand there) pairs, by `openings`.
    """

    label: str
    window: Window
    patches: tuple[tuple[int, int], ...] = ()

    @property
    def length(self) -> Fraction:
        """Seconds."""
        return self.window.stop - self.window.start


@dataclass(eq=False)
class _Lane:
    """The parts of one track of the result. at: the number of the clip of each part."""

    at: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Region:
    """A source as one clip takes it: bytes inserted and replaced. What is spliced is all regions in turn.

    base: where it begins among them. at: offsets in the source before which something is inserted, ascending;
    grown: so many bytes.
    """

    spans: tuple[Span, ...]
    base: int
    at: Ticks
    grown: Ticks

    @property
    def end(self) -> int:
        """Offset of the byte after it."""
        return self.base + sum(span.length for span in self.spans)

    def placed(self, samples: Samples, rows: Ticks) -> tuple[Ticks, Ticks]:
        """Offset and size of some samples; what is inserted before a sample belongs to it."""
        before = np.concatenate((np.zeros(1, np.int64), np.cumsum(self.grown)))
        offset = samples.offset[rows]
        low, high = (np.searchsorted(self.at, offset, side) for side in ("left", "right"))
        return self.base + offset + before[low], samples.size[rows] + before[high] - before[low]


def begins(clips: Sequence[Clip]) -> list[Fraction]:
    """When each clip begins in the joined file, in seconds."""
    return [Fraction(0), *accumulate(clip.length for clip in clips)][: len(clips)]


def join(clips: Sequence[Clip]) -> Layout:
    """One file that plays the clips in turn, each exactly its window, with their sound in step.

    Raises Unsupported naming the clip that does not fit and why, TooBig, Damaged.
    """
    lanes = _lanes(clips)
    if sum(len(part.rows) for lane in lanes for part in lane.parts) > MAX_SAMPLES:
        raise TooBig(f"more than {MAX_SAMPLES} samples in one file")
    carried = _sets(lanes[0], clips)
    regions: list[_Region] = []
    for clip, inserts in zip(clips, carried, strict=True):
        regions.append(_region(clip, inserts, regions[-1].end if regions else 0))
    whole = StoredObject("", regions[-1].end, "")
    found = [_joined_lane(lane, clips, regions) for lane in lanes]
    made = splice.progressive(replace(clips[0].window.movie, object=whole), found)
    return _placed(made, Layout([span for region in regions for span in region.spans]))


def _placed(made: Layout, space: Layout) -> Layout:
    """The same with every extent of the address space replaced by what lies there."""
    spans: list[Span] = []
    for span in made.spans:
        spans += (span,) if isinstance(span, Inline) else space.window(span.offset, span.length).spans
    return Layout(spans)


def _lanes(clips: Sequence[Clip]) -> list[_Lane]:
    """The leading tracks, then the first, second, ... sound of each clip that has one."""
    lanes: dict[int, _Lane] = {}
    for number, clip in enumerate(clips):
        movie, lead = clip.window.movie, clip.window.track
        first = clips[0].window.track
        if lead.handler != first.handler:
            raise Unsupported(f"{clip.label}: it has no pictures, unlike {clips[0].label}")
        sounds = [t for t in movie.tracks if t.handler == "soun" and t.usable and t is not lead]
        for part in splice.parts(clip.window):
            for track in {id(part.track): part.track}.values():
                splice.check_inside(
                    movie.object, track.samples.offset[part.rows], track.samples.size[part.rows]
                )
            lane = 0 if part.track is lead else 1 + next(i for i, t in enumerate(sounds) if t is part.track)
            held = lanes.setdefault(lane, _Lane())
            held.at.append(number)
            held.parts.append(_unled(part) if part.track is lead else part)
    return [lanes[number] for number in sorted(lanes)]


def _unled(part: Part) -> Part:
    """A part without the leading pictures of the key frame it begins with.

    They are never shown, nothing that is leans on them, and what they lean on is not there: Chromium gives up
    where it meets one.
    """
    dts = np.cumsum(part.dur) - part.dur
    pts = dts + part.cts
    sync = part.track.samples.sync[part.rows]
    kept = (pts >= pts[0]) | (np.cumsum(sync) > 1) | ~sync[0]
    if kept.all():
        return part
    end = int(dts[-1] + part.dur[-1])
    return replace(part, rows=part.rows[kept], dur=np.diff(dts[kept], append=end), cts=part.cts[kept])


def _sets(lane: _Lane, clips: Sequence[Clip]) -> list[dict[int, bytes]]:
    """Parameter sets to insert before key frames, by offset in the source, for each clip."""
    tracks = [part.track for part in lane.parts]
    if not descriptions.merged(tracks, [clip.label for clip in clips])[1]:
        return [{} for _ in clips]
    return [_inserts(part) for part in lane.parts]


def _inserts(part: Part) -> dict[int, bytes]:
    samples = part.track.samples
    sets = [descriptions.parameter_sets(entry) for entry in descriptions.entries(part.track)]
    keys = part.rows[samples.sync[part.rows]]
    which = np.clip(samples.description[keys], 1, len(sets)) - 1
    return {int(at): sets[n] for at, n in zip(samples.offset[keys], which, strict=True)}


def _region(clip: Clip, inserts: Mapping[int, bytes], base: int) -> _Region:
    stored, patches = clip.window.movie.object, dict(clip.patches)
    spans: list[Span] = []
    at = 0
    for position in sorted({*inserts, *patches}):
        spans += (Extent(stored, at, position - at), Inline(inserts.get(position, b"")))
        at = position
        if position in patches:
            spans.append(Inline(bytes((patches[position],))))
            at += 1
    spans.append(Extent(stored, at, stored.size - at))
    where = sorted(inserts)
    grown = np.array([len(inserts[position]) for position in where], np.int64)
    return _Region(tuple(spans), base, np.array(where, np.int64), grown)


def _joined_lane(lane: _Lane, clips: Sequence[Clip], regions: Sequence[_Region]) -> Part:
    tracks = [part.track for part in lane.parts]
    labels = [clips[number].label for number in lane.at]
    stsd, _ = descriptions.merged(tracks, labels)
    _check_shape(tracks, labels)
    timescale = lcm(*(track.timescale for track in tracks))
    timescale *= 1 if tracks[0].unit else -(-_LEAST_TIMESCALE // timescale)
    if timescale > write.U32:
        raise Unsupported(f"{labels[0]} and those after it: their clocks have no common tick")
    line, begin = _Line(timescale, max(_lead(part, timescale) for part in lane.parts)), begins(clips)
    for number, part in zip(lane.at, lane.parts, strict=True):
        line.add(part, begin[number])
    placed = [regions[n].placed(p.track.samples, p.rows) for n, p in zip(lane.at, lane.parts, strict=True)]
    dts, cts = line.column("dts"), line.column("cts")
    samples = Samples(
        dts=dts,
        dur=line.column("dur"),
        pts=dts + cts,
        size=np.concatenate([size for _, size in placed]),
        offset=np.concatenate([offset for offset, _ in placed]),
        sync=np.concatenate([part.track.samples.sync[part.rows] for part in lane.parts]),
        description=np.ones(len(dts), np.int32),
    )
    boxes = {**(tracks[0].boxes or {}), "stsd": stsd, "tref": b""}
    track = replace(tracks[0], timescale=timescale, samples=samples, boxes=boxes, groups=())
    lift = max(0, -int(cts.min()))
    edits = tuple((length, media if media < 0 else media + lift) for length, media in line.edits)
    return Part(track, np.arange(len(dts)), samples.dur, cts + lift, edits)


def _lead(part: Part, timescale: int) -> int:
    """Ticks from the decoding of the first sample that a part shows to what it shows first."""
    length, media = next(edit for edit in part.edits if edit[1] >= 0)
    dts = np.cumsum(part.dur) - part.dur
    shown = dts + part.cts
    inside = (shown >= media) & (shown < ceil(media + length))
    first = int(dts[np.argmax(inside)]) if part.track.handler == "vide" else media
    return (media - first) * (timescale // part.track.timescale)


@dataclass(eq=False)
class _Line:
    """The media of the parts of one lane laid end to end, in ticks of `timescale`, and the edits for it.

    The presentation times of the parts do not overlap: an edit shows its own part alone. lead: ticks by which
    each part decodes ahead of what it shows: FFmpeg takes an edit to begin with the decoding of the first
    sample it shows, so that edits with other leads would come too early or too late.
    """

    timescale: int
    lead: int
    edits: list[tuple[Fraction, int]] = field(default_factory=list)
    _columns: dict[str, list[Ticks]] = field(default_factory=lambda: {"dts": [], "dur": [], "cts": []})
    _end: int = 0
    _shown_until: int = 0
    _at: Fraction = Fraction(0)

    def column(self, name: str) -> Ticks:
        """`dts`, `dur` or `cts` of all samples."""
        return np.concatenate(self._columns[name])

    def add(self, part: Part, begin: Fraction) -> None:
        """Append a part that begins to be shown at `begin` seconds."""
        factor = self.timescale // part.track.timescale
        edits = [(length * factor, media) for length, media in part.edits]
        gap = begin * self.timescale - self._at
        while edits and edits[0][1] < 0:
            gap += edits.pop(0)[0]
        self._skip(gap)
        later = self.lead - _lead(part, self.timescale)
        edits = [(length, media if media < 0 else media * factor + later) for length, media in edits]
        dts = np.cumsum(part.dur) - part.dur
        pts = (dts + part.cts) * factor + later
        step = self.timescale // _STEPS
        dts, pts, dur = _squeezed(part, dts * factor, pts, part.dur * factor, edits, step)
        base = max(self._end - int(dts[0]), self._shown_until - int(pts.min()))
        if self._columns["dur"]:
            self._columns["dur"][-1][-1] += base + int(dts[0]) - self._end
        for name, values in (("dts", dts + base), ("dur", dur), ("cts", pts - dts)):
            self._columns[name].append(values)
        self._end = base + int(dts[-1] + dur[-1])
        self._shown_until = base + int((pts + dur).max())
        for length, media in edits:
            begins_at = media if media < 0 else media + base
            self.edits.append((length, begins_at))
            # A picture may be shown for longer than it takes to decode the next.
            self._shown_until = max(self._shown_until, begins_at + ceil(length))
            self._at += length

    def _skip(self, gap: Fraction) -> None:
        """Show nothing for so long. FFmpeg takes empty edits at the front alone: else the media has a gap."""
        if gap <= 0:
            return
        self._at += gap
        if not self.edits:
            self.edits.append((gap, -1))
            return
        length, media = self.edits[-1]
        self.edits[-1] = (length + gap, media)
        self._shown_until = max(self._shown_until, media + ceil(length + gap))


def _squeezed(
    part: Part, dts: Ticks, pts: Ticks, dur: Ticks, edits: Sequence[tuple[Fraction, int]], step: int
) -> tuple[Ticks, Ticks, Ticks]:
    """dts, pts and durations with what an edit hides before it taking `step` ticks each.

    FFmpeg lays that out backwards from the edit: where it reached into the clip before, seeking there would
    end up here. Players that ignore edit lists show it, but for no time.
    """
    if part.track.unit or len(edits) != 1:
        return dts, pts, dur
    ((length, media),) = edits
    hidden = pts < media if part.track.handler == "vide" else pts + dur <= media
    shown = np.flatnonzero(~hidden & (pts < media + ceil(length)))
    if not hidden.any() or not len(shown):
        return dts, pts, dur
    dts, pts, first = dts.copy(), pts.copy(), int(shown[0])
    rank = np.argsort(np.argsort(pts[hidden], kind="stable"))
    pts[hidden] = media - step * (np.count_nonzero(hidden) - rank)
    dts[:first] = dts[first] - step * np.arange(first, 0, -1)
    return dts, pts, np.append(np.diff(dts), dur[-1])


def _check_shape(tracks: Sequence[Track], labels: Sequence[str]) -> None:
    """What the track header, the clock of uncompressed sound and the media say must be the same."""
    for track, label in zip(tracks, labels, strict=True):
        if _matrix(track) != _matrix(tracks[0]):
            raise Unsupported(f"{label}: it is turned in another way, unlike {labels[0]}")
        if (track.unit, track.timescale) != (tracks[0].unit, tracks[0].timescale) and (
            track.unit or tracks[0].unit
        ):
            raise Unsupported(f"{label}: its sound is stored in another way, unlike {labels[0]}")


def _matrix(track: Track) -> bytes:
    """The matrix of a tkhd: how its pictures are turned. Sound has none."""
    source = (track.boxes or {}).get("tkhd", b"")
    start = 8 + (52 if source[8:9] == b"\1" else 40)
    return source[start : start + _TKHD_MATRIX] if track.handler == "vide" else b""
