"""Boxes written: headers, sample tables and the fixed parts of a moov. Pure; bytes and numpy only.

Layouts: ISO/IEC 14496-12. What describes the media itself (stsd, media header, hdlr, the matrix and size in
tkhd) is copied from the source byte for byte.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vfs import TooBig
from vfs_mp4.model import Ticks, Track

U32 = 0xFFFFFFFF
#: 1.0 on the diagonal: no rotation, no scaling.
_UNITY = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
#: Sample flags of a fragment: depends on no other sample; depends on others and is no sync sample.
SYNC_FLAGS, OTHER_FLAGS = 0x02000000, 0x01010000
#: What of the references to other tracks is kept.
_REFERENCES = frozenset(("chap", "tmcd"))
#: Length of tkhd after its duration: reserved, layer, group, volume, matrix, width and height.
_TKHD_TAIL = 60
#: One edit: duration in movie ticks, media time in track ticks (-1 = nothing is shown).
EditRow = tuple[int, int]


def box(kind: bytes, *parts: bytes) -> bytes:
    """A box with a 32-bit size. Raises TooBig over 4 GiB."""
    size = 8 + sum(map(len, parts))
    if size > U32:
        raise TooBig(f"a {kind.decode()} box of {size} bytes")
    return b"".join((struct.pack(">I4s", size, kind), *parts))


def full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    """A full box: version and flags before the payload."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    """File type; minor version 0x200 as FFmpeg writes it."""
    return box(b"ftyp", major, struct.pack(">I", 0x200), *compatible)


def large_mdat_header(payload: int) -> bytes:
    """Header of an mdat with a 64-bit size: never 0, which QuickTime refuses."""
    return struct.pack(">I4sQ", 1, b"mdat", payload + 16)


# ---------------------------------------------------------------- movie and track headers


def mvhd(timescale: int, duration: int, next_track: int) -> bytes:
    """Movie header; version 1 only where the duration needs it."""
    tail = struct.pack(">IH10x", 0x10000, 0x100) + _UNITY + bytes(24) + struct.pack(">I", next_track)
    if duration > U32:
        return full(b"mvhd", 1, 0, struct.pack(">QQIQ", 0, 0, timescale, duration), tail)
    return full(b"mvhd", 0, 0, struct.pack(">IIII", 0, 0, timescale, duration), tail)


def tkhd(track: Track, duration: int) -> bytes:
    """Track header: enabled, in the movie and its preview; matrix, size and volume are the source's.

    Of what is not seen or heard the flags are the source's: chapters are no subtitles.
    """
    source = (track.boxes or {}).get("tkhd", b"")
    flags = 7 if track.handler in ("vide", "soun") or len(source) < 12 else source[11]
    start = 8 + (36 if source[8:9] == b"\1" else 24)
    tail = source[start : start + _TKHD_TAIL]
    if len(tail) < _TKHD_TAIL:
        tail = bytes(16) + _UNITY + bytes(8)
    if duration > U32:
        return full(b"tkhd", 1, flags, struct.pack(">QQIIQ", 0, 0, track.track_id, 0, duration), tail)
    return full(b"tkhd", 0, flags, struct.pack(">IIIII", 0, 0, track.track_id, 0, duration), tail)


def edts(rows: Sequence[EditRow]) -> bytes:
    """Edit list, version 1, every rate 1."""
    table = b"".join(struct.pack(">QqI", duration, media_time, 0x10000) for duration, media_time in rows)
    return box(b"edts", full(b"elst", 1, 0, struct.pack(">I", len(rows)), table))


def mdhd(track: Track, duration: int) -> bytes:
    """Media header, version 1; the language is the source's, as it is written there."""
    source = (track.boxes or {}).get("mdhd", b"")
    # Of version 0 after 12 bytes of times, timescale and duration; of version 1 they are wider.
    start = 8 + (32 if source[8:9] == b"\1" else 20)
    language = source[start : start + 2]
    if len(language) < 2:
        language = struct.pack(">H", _packed(track.language))
    return full(b"mdhd", 1, 0, struct.pack(">QQIQ", 0, 0, track.timescale, duration), language, bytes(2))


def _packed(language: str) -> int:
    """Three letters in five bits each; `und` for what are no three letters."""
    letters = language.lower() if len(language) == 3 and language.isascii() and language.isalpha() else "und"
    first, second, third = (ord(letter) - 0x60 for letter in letters)
    return first << 10 | second << 5 | third


def references(track: Track, kept: frozenset[int]) -> bytes:
    """The `tref` of the source as far as it names kept tracks as chapters or timecode, else nothing."""
    found = []
    for kind, numbers in track.references.items():
        left = [number for number in numbers if number in kept and number != track.track_id]
        if kind in _REFERENCES and left:
            found.append(reference(kind.encode(), left))
    return box(b"tref", *found) if found else b""


def reference(kind: bytes, numbers: Sequence[int]) -> bytes:
    """One kind of reference to other tracks, a part of a `tref` (ISO/IEC 14496-12 8.3.3)."""
    return box(kind, struct.pack(f">{len(numbers)}I", *numbers))


def chapters(found: Sequence[tuple[int, bytes]]) -> bytes:
    """`udta` with chapters as Nero writes them: (100 ns, title of at most 255 bytes), at most 255."""
    if not found:
        return b""
    rows = b"".join(struct.pack(">QB", time, len(title)) + title for time, title in found[:255])
    return box(b"udta", full(b"chpl", 1, 0, bytes(4), bytes([min(len(found), 255)]), rows))


def _hdlr(track: Track) -> bytes:
    copied = (track.boxes or {}).get("hdlr")
    return copied or full(b"hdlr", 0, 0, bytes(4), track.handler.encode().ljust(4)[:4], bytes(13))


def _media_header(track: Track) -> bytes:
    copied = (track.boxes or {}).get("media_header")
    if copied:
        return copied
    if track.handler == "vide":
        return full(b"vmhd", 0, 1, bytes(8))
    return full(b"smhd", 0, 0, bytes(4)) if track.handler == "soun" else full(b"nmhd", 0, 0)


def trak(
    track: Track,
    *,
    duration: int,
    media_duration: int,
    edits: Sequence[EditRow],
    tables: bytes,
    references: bytes = b"",
) -> bytes:
    """A whole track. duration: movie ticks; media_duration: track ticks; tables: boxes of stbl after stsd.

    references: a whole `tref` box.
    """
    stsd = (track.boxes or {}).get("stsd", b"")
    # One data reference: `url ` with flags 1, the media is in this file.
    dinf = box(b"dinf", full(b"dref", 0, 0, struct.pack(">I", 1), full(b"url ", 0, 1)))
    minf = box(b"minf", _media_header(track), dinf, box(b"stbl", stsd, tables))
    mdia = box(b"mdia", mdhd(track, media_duration), _hdlr(track), minf)
    return box(b"trak", tkhd(track, duration), references, edts(edits) if edits else b"", mdia)


# ---------------------------------------------------------------- sample tables


def _runs(values: NDArray[np.int64]) -> tuple[Ticks, Ticks]:
    """Run lengths and the value of each run."""
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    return np.diff(starts, append=len(values)), values[starts]


def _pairs(counts: Ticks, values: Ticks) -> bytes:
    table = np.stack((counts, values), axis=1)
    return struct.pack(">I", len(table)) + (table & U32).astype(">u4").tobytes()


def stts(durations: Ticks) -> bytes:
    """Decode durations."""
    return full(b"stts", 0, 0, _pairs(*_runs(durations)))


def uniform(unit: int, count: int, ticks: int) -> bytes:
    """stts and stsz of `count` samples of `unit` bytes and `ticks` ticks each."""
    return full(b"stts", 0, 0, struct.pack(">III", 1, count, ticks)) + full(
        b"stsz", 0, 0, struct.pack(">II", unit, count)
    )


def ctts(offsets: Ticks) -> bytes:
    """Composition offsets: nothing where all are 0, version 1 where any is negative."""
    if not offsets.any():
        return b""
    return full(b"ctts", int(bool((offsets < 0).any())), 0, _pairs(*_runs(offsets)))


def stss(sync: NDArray[np.bool_]) -> bytes:
    """Sync samples: nothing where all are."""
    if sync.all():
        return b""
    numbers = np.flatnonzero(sync) + 1
    return full(b"stss", 0, 0, struct.pack(">I", len(numbers)), numbers.astype(">u4").tobytes())


def stsz(sizes: Ticks) -> bytes:
    """Sample sizes: each, or one for all: uncompressed sound is then read in larger pieces."""
    if len(sizes) > 1 and sizes[0] > 0 and (sizes == sizes[0]).all():
        return full(b"stsz", 0, 0, struct.pack(">II", int(sizes[0]), len(sizes)))
    return full(b"stsz", 0, 0, struct.pack(">II", 0, len(sizes)), sizes.astype(">u4").tobytes())


def chunk_starts(positions: Ticks, sizes: Ticks, description: NDArray[np.int32]) -> Ticks:
    """Index of the first sample of each chunk: runs without a gap and of one sample description."""
    breaks = (positions[1:] != positions[:-1] + sizes[:-1]) | (description[1:] != description[:-1])
    return np.flatnonzero(np.concatenate((np.ones(min(len(positions), 1), np.bool_), breaks)))


def stsc(starts: Ticks, count: int, description: NDArray[np.int32], each: Ticks | None = None) -> bytes:
    """Samples a chunk, as runs of equal chunks. each: how many samples a row is, None = one."""
    held = np.diff(starts, append=count) if each is None else np.add.reduceat(each, starts)
    kinds = description[starts].astype(np.int64)
    changes = np.ones(len(starts), np.bool_)
    changes[1:] = (held[1:] != held[:-1]) | (kinds[1:] != kinds[:-1])
    rows = np.flatnonzero(changes)
    table = np.stack((rows + 1, held[rows], kinds[rows]), axis=1)
    return full(b"stsc", 0, 0, struct.pack(">I", len(table)), table.astype(">u4").tobytes())


def co64(positions: Ticks) -> bytes:
    """Chunk offsets, always 64 bits: the length of the box then does not depend on them."""
    return full(b"co64", 0, 0, struct.pack(">I", len(positions)), positions.astype(">u8").tobytes())


def empty_tables() -> bytes:
    """The tables of a track whose samples are all in fragments."""
    none = struct.pack(">I", 0)
    return (
        full(b"stts", 0, 0, none)
        + full(b"stsc", 0, 0, none)
        + full(b"stsz", 0, 0, none, none)
        + full(b"stco", 0, 0, none)
    )


# ---------------------------------------------------------------- fragments


def mvex(track_ids: Sequence[int]) -> bytes:
    """Tells that fragments follow; every default but the description is 0 and said in each fragment."""
    return box(
        b"mvex", *(full(b"trex", 0, 0, struct.pack(">5I", number, 1, 0, 0, 0)) for number in track_ids)
    )


def traf(
    track: Track, decode_time: int, description: int, columns: NDArray[np.int64], data_offset: int
) -> bytes:
    """One track of a fragment. columns: rows of duration, size, flags, composition offset.

    The order tfhd, tfdt, trun is what players insist on.
    """
    flags = 0x020000 if description == 1 else 0x020002
    which = b"" if description == 1 else struct.pack(">I", description)
    tfhd = full(b"tfhd", 0, flags, struct.pack(">I", track.track_id), which)
    tfdt = full(b"tfdt", 1, 0, struct.pack(">Q", decode_time))
    table = (columns & U32).astype(">u4").tobytes()
    trun = full(b"trun", 1, 0xF01, struct.pack(">Ii", len(columns), data_offset), table)
    return box(b"traf", tfhd, tfdt, trun)


def moof(sequence: int, *trafs: bytes) -> bytes:
    """A movie fragment header box."""
    return box(b"moof", full(b"mfhd", 0, 0, struct.pack(">I", sequence)), *trafs)
