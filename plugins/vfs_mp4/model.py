"""What is known of a movie: numpy tables of samples per track, and where its fragments lie. Pure data.

Times are integers in ticks of the track's own timescale (`Track.timescale` ticks a second) unless a name
says otherwise; offsets and sizes are bytes in the stored object. Tables are in decode order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vfs import StoredObject

Ticks = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Edit:
    """One row of an edit list (ISO/IEC 14496-12, `elst`).

    duration: in **movie** timescale, 0 = to the end. media_time: in track ticks, -1 = empty edit (delay).
    rate: media rate, 1 = normal, 0 = dwell.
    """

    duration: int
    media_time: int
    rate: Fraction = Fraction(1)


@dataclass(frozen=True, eq=False)
class Samples:
    """Columns of equal length, decode order, int64 (sync: bool, description: int32, 1-based).

    pts = dts + composition offset, before any edit list. first: decode index of row 0 in the whole
    track, None when unknown (tables of a window of a fragmented file).
    """

    dts: Ticks
    dur: Ticks
    pts: Ticks
    size: Ticks
    offset: Ticks
    sync: NDArray[np.bool_]
    description: NDArray[np.int32]
    first: int | None = 0

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dts)

    @property
    def nbytes(self) -> int:
        """Memory held by the columns."""
        columns = (self.dts, self.dur, self.pts, self.size, self.offset, self.sync, self.description)
        return sum(column.nbytes for column in columns)


@dataclass(frozen=True, eq=False)
class Grouping:
    """The sample groups of one kind of a track (ISO/IEC 14496-12 8.9). kind: 4cc; described: the sgpd box.

    ends, index: runs of samples in decode order: up to `ends` they have description `index`, 0 = none.
    """

    kind: str
    described: bytes
    ends: Ticks
    index: Ticks


@dataclass(frozen=True, eq=False)
class Track:
    """One track: its tables, and the boxes that are copied byte for byte into what is spliced from it.

    handler: `vide`, `soun`, `text`, ... codec: 4cc of the first sample entry (`avc1`, `hvc1`, `mp4a`; the
    original format for an encrypted entry). boxes: whole boxes, header included, by 4cc: `tkhd`, `mdhd`,
    `hdlr`, the media header (`vmhd`, `smhd`, `nmhd`, ...) under the key `media_header`, `stsd`, and
    `tref` where present. encrypted: an `encv`/`enca` sample entry. usable: False when nothing can be
    derived (timescale 0, no samples), with the reason in `Movie.damage`. unit: of uncompressed sound the
    bytes of one instant (a sample of the file), of which a row of `samples` is a run; 0 = rows are samples.
    groups: sample groups of the samples of the moov; those of `rap ` and `sync` are in `samples.sync`.
    """

    track_id: int
    handler: str
    timescale: int
    codec: str
    samples: Samples
    edits: tuple[Edit, ...] = ()
    boxes: Mapping[str, bytes] | None = None
    language: str = "und"
    encrypted: bool = False
    usable: bool = True
    unit: int = 0
    groups: tuple[Grouping, ...] = ()

    @property
    def references(self) -> dict[str, tuple[int, ...]]:
        """Numbers of other tracks by kind of reference (`tref`; ISO/IEC 14496-12 8.3.3): `chap`, `tmcd`."""
        data = (self.boxes or {}).get("tref", b"")
        found, at = {}, 8
        while at + 8 <= len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            if not 8 <= size <= len(data) - at:
                break
            numbers = np.frombuffer(data[at + 8 : at + size - size % 4], ">u4")
            found[data[at + 4 : at + 8].decode("latin-1")] = tuple(numbers.tolist())
            at += size
        return found


@dataclass(frozen=True, slots=True)
class Fragment:
    """A movie fragment as stored: the `moof` box and the data up to the next one.

    offset, moof_size: the moof. end: offset after the last byte of its mdat box(es). decode_time: tfdt of
    the first traf in ticks of that track, track_id.
    """

    offset: int
    moof_size: int
    end: int
    decode_time: int
    track_id: int = 0


@dataclass(frozen=True, eq=False)
class Movie:
    """A stored movie, or a window of one.

    init: (offset, length) of everything through the end of `moov` for a fragmented source, None for a
    progressive one. fragments: those the tables cover, in file order. complete: the tables cover the whole
    file. zero: the earliest presentation time of all usable tracks after their edit lists, in seconds: the
    0 of path times. duration: seconds on the player line. damage: what was wrong, in words.
    index_source: which of `moov`, `sidecar`, `sidx`, `mfra`, `search`, `walk` the tables came from.
    exact_duration: False while the last fragment has not been looked at and `duration` is what the index
    makes of it. chapters: the whole `chpl` box, b"" where there is none.
    """

    object: StoredObject
    timescale: int
    tracks: tuple[Track, ...]
    zero: Fraction
    duration: Fraction
    fragments: tuple[Fragment, ...] = ()
    init: tuple[int, int] | None = None
    complete: bool = True
    damage: tuple[str, ...] = ()
    index_source: str = "moov"
    exact_duration: bool = True
    chapters: bytes = b""

    @property
    def nbytes(self) -> int:
        """Memory held by the tables."""
        return sum(track.samples.nbytes for track in self.tracks)

    @property
    def video(self) -> Track | None:
        """The first usable video track."""
        return next((t for t in self.tracks if t.handler == "vide" and t.usable), None)
