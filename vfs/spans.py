"""Descriptions of bytes: what a virtual file is made of. Pure: nothing here reads anything.

A `Layout` is an immutable sequence of spans. Its size is known before a byte of media is fetched, and
any part of it is found by bisection.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import overload

import xxhash


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One version of one object of a store.

    key: the object's key below the mounted prefix. size: bytes. version: an opaque token that
    changes whenever the bytes may have (an etag; for local files mtime, size and inode).
    mtime_ns: last modification, nanoseconds since the epoch.
    """

    key: str
    size: int
    version: str
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedObject(StoredObject):
    """One version of something that is made when it is read, range by range: decoded blocks, sound.

    An extent of it stands in a layout like any other; its bytes are cached like any other's, under key and
    version. key: a name of its own, by habit the source's key, `@/` and a name. version: all that the bytes
    are a function of, the code included. make: `await make(offset, length)` gives exactly these bytes, of any
    range inside, or raises a ReelfsError. grain: what is asked for is widened to its multiples where more is
    missing (bytes that one piece of work gives; 0 = not). sources: the stored versions it is made from.
    bulky: much more than what it is made of, and made as fast as a disk reads: kept in memory alone.
    """

    make: Callable[[int, int], Awaitable[bytes]] = field(compare=False, repr=False)
    grain: int = 0
    sources: tuple[StoredObject, ...] = ()
    bulky: bool = field(default=False, compare=False)


#: Versions of what is not in the store yet begin with this; no store's do.
LOCAL = "local:"


def local_lineage(version: str) -> str | None:
    """What stays of the version of a file while it is written to; None for a version of the store."""
    return version.split(".", 1)[0] if version.startswith(LOCAL) else None


@dataclass(frozen=True, slots=True)
class Inline:
    """Synthesised bytes."""

    data: bytes

    @property
    def length(self) -> int:
        """Bytes."""
        return len(self.data)

    def cut(self, start: int, stop: int) -> Inline:
        """The part [start, stop) of this span."""
        return Inline(self.data[start:stop])


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes at `offset` of one version of a stored object."""

    object: StoredObject
    offset: int
    length: int

    @property
    def end(self) -> int:
        """Offset of the byte after the last."""
        return self.offset + self.length

    def cut(self, start: int, stop: int) -> Extent:
        """The part [start, stop) of this span, counted from its own start."""
        return Extent(self.object, self.offset + start, stop - start)


Span = Inline | Extent


class SpanTable(Sequence[Span]):
    """Very many spans in 16 bytes each: extents of one object and synthesised bytes in between.

    A video interleaved with its sound is a piece a sample: hundreds of thousands. Spans are made when they
    are asked for. stored: the object. data: all synthesised bytes, in order. starts, ends: views of 64-bit
    integers: where each span begins, in the object or, as `~offset`, in `data`; where it ends in the file.
    No span is empty; neighbours are not joined. That extents lie in their object is checked by windows.
    """

    __slots__ = ("data", "digest", "ends", "starts", "stored")

    def __init__(self, stored: StoredObject, data: bytes, starts: memoryview, ends: memoryview) -> None:
        if not len(starts) == len(ends):
            raise ValueError(f"{len(starts)} starts and {len(ends)} ends")
        self.stored, self.data, self.starts, self.ends = stored, data, starts, ends
        # Here, not when it is asked for: that is in the loop that serves the mount, this may be in a thread.
        digest = xxhash.xxh3_128(b"T")
        for part in (_name_of(stored), b"%d:%d;" % (len(data), len(starts)), data, starts, ends):
            digest.update(part)
        self.digest: str = digest.hexdigest()

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return len(self.data) + self.starts.nbytes + self.ends.nbytes

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Span: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Span, ...]: ...
    def __getitem__(self, index: int | slice) -> Span | tuple[Span, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(len(self))))
        index = range(len(self))[index]
        start, length = self.starts[index], self.ends[index] - (self.ends[index - 1] if index else 0)
        return (
            Extent(self.stored, start, length) if start >= 0 else Inline(self.data[~start : ~start + length])
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SpanTable) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def _name_of(stored: StoredObject) -> bytes:
    return f"{stored.key}\0{stored.version}\0".encode("utf-8", "surrogateescape")


def stored_versions(found: StoredObject) -> tuple[StoredObject, ...]:
    """The object, or the stored ones that a derived one is made from."""
    return found.sources if isinstance(found, DerivedObject) else (found,)


def _merged(spans: Iterable[Span]) -> Iterator[Span]:
    """Drop empty spans; join neighbours that are contiguous in the same object, or both inline."""
    held: Span | None = None
    for span in spans:
        if not span.length:
            continue
        if isinstance(held, Extent) and isinstance(span, Extent) and held.object == span.object:
            if held.end == span.offset:
                held = Extent(held.object, held.offset, held.length + span.length)
                continue
        elif isinstance(held, Inline) and isinstance(span, Inline):
            held = Inline(held.data + span.data)
            continue
        if held is not None:
            yield held
        held = span
    if held is not None:
        yield held


@dataclass(frozen=True)
class Layout:
    """An immutable sequence of spans: the exact content of a file, without the bytes of media.

    Of a `SpanTable` it is made as it is. Raises ValueError for an extent that lies outside its object.
    """

    spans: Sequence[Span]
    _ends: Sequence[int] = field(init=False, repr=False, compare=False)

    def __init__(self, spans: Iterable[Span]) -> None:
        if isinstance(spans, SpanTable):
            object.__setattr__(self, "spans", spans)
            object.__setattr__(self, "_ends", spans.ends)
            return
        kept = tuple(_merged(spans))
        for span in kept:
            if isinstance(span, Extent) and not 0 <= span.offset <= span.end <= span.object.size:
                raise ValueError(f"extent {span.offset}+{span.length} is outside {span.object}")
        object.__setattr__(self, "spans", kept)
        object.__setattr__(self, "_ends", tuple(accumulate(s.length for s in kept)))

    @classmethod
    def whole(cls, stored: StoredObject) -> Layout:
        """A stored object as it is."""
        return cls((Extent(stored, 0, stored.size),))

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self._ends[-1] if self._ends else 0

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The spans that come from stored objects, in order."""
        return tuple(s for s in self.spans if isinstance(s, Extent))

    @property
    def objects(self) -> tuple[StoredObject, ...]:
        """The stored versions this is made from, each once, in order of first use."""
        if isinstance(self.spans, SpanTable):
            return stored_versions(self.spans.stored)
        found = dict.fromkeys(e.object for e in self.extents)
        return tuple(dict.fromkeys(s for o in found for s in stored_versions(o)))

    def locate(self, offset: int) -> tuple[Span, int]:
        """The span that holds the byte `offset` (which must be inside), and where that span begins."""
        index = bisect_right(self._ends, offset)
        span = self.spans[index]
        return span, self._ends[index] - span.length

    def window(self, offset: int, length: int) -> Layout:
        """The bytes [offset, offset + length), cut at the end of the file as a read is."""
        if offset < 0 or length < 0:
            raise ValueError(f"negative window {offset}+{length}")
        stop = min(offset + length, self.size)
        pieces: list[Span] = []
        index = bisect_right(self._ends, offset)
        while offset < stop:
            span, end = self.spans[index], self._ends[index]
            start = end - span.length
            pieces.append(span.cut(offset - start, min(stop, end) - start))
            offset, index = end, index + 1
        return Layout(pieces)

    def fingerprint(self) -> str:
        """A stable name for exactly these bytes: equal descriptions have equal fingerprints."""
        if isinstance(self.spans, SpanTable):
            return self.spans.digest
        digest = xxhash.xxh3_128()
        for span in self.spans:
            if isinstance(span, Inline):
                digest.update(b"I%d:" % span.length)
                digest.update(span.data)
            else:
                digest.update(b"E" + _name_of(span.object) + b"%d+%d;" % (span.offset, span.length))
        return digest.hexdigest()
