"""Clips of several files one after the other, as one file that plays: zero copy. Pure.

Each track of the result has the samples of all clips end to end and one edit for each clip, which hides what
only its decoding needs. What is spliced is one address space made of all sources, so that a joined file is
written like any clip, and its spans then say where in which source they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate
from math import lcm

import numpy as np

from vfs import Extent, Inline, Layout, Span, StoredObject, TooBig, Unsupported
from vfs_mp4 import descriptions, splice, write
from vfs_mp4.model import Samples, Ticks, Track
from vfs_mp4.plan import Window
from vfs_mp4.splice import Part

#: Samples of a joined file: two hours of pictures and sound. Their tables take 40 MB of memory.
MAX_SAMPLES = 1_000_000
#: End of sequence (ITU-T H.265 7.3.1.2: type 36, temporal id 0): the next clip may begin with a picture that
#: closes nothing (CRA), whose order of display would else be counted on from the clip before.
_END_OF_SEQUENCE = bytes((36 << 1, 1))
_TKHD_MATRIX = 36


@dataclass(frozen=True, eq=False)
class Clip:
    """One window, and what to call it in an error."""

    label: str
    window: Window

    @property
    def length(self) -> Fraction:
        """Seconds."""
        return self.window.stop - self.window.start


@dataclass(eq=False)
class _Lane:
    """The parts of one track of the result. at: the number of the clip of each part."""

    at: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)


@dataclass(eq=False)
class _Space:
    """The sources side by side: offsets in it are what the samples of the result are placed by."""

    spans: list[Span] = field(default_factory=list)
    size: int = 0

    def add(self, *spans: Span) -> int:
        """Append spans; the offset of the first."""
        start = self.size
        self.spans += spans
        self.size += sum(span.length for span in spans)
        return start


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
    space, begin = _Space(), begins(clips)
    bases = [space.add(Extent(clip.window.movie.object, 0, clip.window.movie.object.size)) for clip in clips]
    found = [_lane(lane, clips, bases, begin, space) for lane in lanes]
    whole = StoredObject("", space.size, "")
    made = splice.progressive(replace(clips[0].window.movie, object=whole), found)
    return _placed(made, Layout(space.spans))


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
            held.parts.append(part)
    return [lanes[number] for number in sorted(lanes)]


def _lane(
    lane: _Lane, clips: Sequence[Clip], bases: Sequence[int], begin: Sequence[Fraction], space: _Space
) -> Part:
    tracks = [part.track for part in lane.parts]
    labels = [clips[number].label for number in lane.at]
    stsd, numbers = descriptions.merged(tracks, labels)
    _check_shape(tracks, labels)
    timescale = lcm(*(track.timescale for track in tracks))
    if timescale > write.U32:
        raise Unsupported(f"{labels[0]} and those after it: their clocks have no common tick")
    line = _Line(timescale)
    for number, part in zip(lane.at, lane.parts, strict=True):
        line.add(part, begin[number])
    last = len(lane.parts) - 1
    placed = [
        _offsets(part, bases[number], clips[number].window.movie.object, space, ends=i < last)
        for i, (number, part) in enumerate(zip(lane.at, lane.parts, strict=True))
    ]
    joined = Samples(
        dts=line.column("dts"),
        dur=line.column("dur"),
        pts=line.column("dts") + line.column("cts"),
        size=np.concatenate([size for _, size in placed]),
        offset=np.concatenate([offset for offset, _ in placed]),
        sync=np.concatenate([part.track.samples.sync[part.rows] for part in lane.parts]),
        description=np.concatenate([_renumbered(p, n) for p, n in zip(lane.parts, numbers, strict=True)]),
    )
    track = replace(
        tracks[0], timescale=timescale, samples=joined, boxes={**(tracks[0].boxes or {}), "stsd": stsd}
    )
    cts = line.column("cts")
    lift = max(0, -int(cts.min()))
    edits = tuple((length, media if media < 0 else media + lift) for length, media in line.edits)
    return Part(track, np.arange(len(joined)), joined.dur, cts + lift, edits)


@dataclass(eq=False)
class _Line:
    """The media of the parts of one lane laid end to end, in ticks of `timescale`, and the edits for it.

    The presentation times of the parts do not overlap: an edit shows its own part alone.
    """

    timescale: int
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
        dur, cts = part.dur * factor, part.cts * factor
        dts = np.cumsum(dur) - dur
        pts = dts + cts
        base = max(self._end, self._shown_until - int(pts.min()))
        if self._columns["dur"]:
            self._columns["dur"][-1][-1] += base - self._end
        for name, values in (("dts", dts + base), ("dur", dur), ("cts", cts)):
            self._columns[name].append(values)
        self._end = base + int(dur.sum())
        self._shown_until = base + int((pts + dur).max())
        self._show(part, begin, base, factor)

    def _show(self, part: Part, begin: Fraction, base: int, factor: int) -> None:
        gap = begin * self.timescale - self._at
        if gap > 0:
            self.edits.append((gap, -1))
            self._at += gap
        for length, media in part.edits:
            self.edits.append((length * factor, media if media < 0 else media * factor + base))
            self._at += length * factor


def _renumbered(part: Part, numbers: dict[int, int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Description numbers in the merged table; the first for one that the source does not have."""
    known = part.track.samples.description[part.rows]
    table = np.ones(max(int(known.max()), *numbers) + 1, np.int32)
    for old, new in numbers.items():
        table[old] = new
    found: np.ndarray[tuple[int], np.dtype[np.int32]] = table[np.maximum(known, 0)]
    return found


def _offsets(
    part: Part, base: int, stored: StoredObject, space: _Space, *, ends: bool
) -> tuple[Ticks, Ticks]:
    """Where the samples of a part lie in the address space, and their sizes.

    ends: another clip follows: an HEVC sequence is then said to end.
    """
    samples = part.track.samples
    offset, size = samples.offset[part.rows] + base, samples.size[part.rows].copy()
    if ends and part.track.codec in ("hvc1", "hev1"):
        tail = _end_of_sequence(part.track)
        stored_at = int(offset[-1]) - base
        offset[-1] = space.add(Extent(stored, stored_at, int(size[-1])), Inline(tail))
        size[-1] += len(tail)
    return offset, size


def _end_of_sequence(track: Track) -> bytes:
    """The end of a sequence as a NAL unit behind its length (hvcC, ISO/IEC 14496-15 8.3.3.1: at 21)."""
    width = (descriptions.entries(track)[0].setup.ljust(22, b"\3")[21] & 3) + 1
    return len(_END_OF_SEQUENCE).to_bytes(width, "big") + _END_OF_SEQUENCE


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
