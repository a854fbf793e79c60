"""Descriptions of bytes: what a virtual file is made of. Pure: nothing here reads anything.

A `Layout` is an immutable sequence of spans. Its size is known before a byte of media is fetched, and
any part of it is found by bisection.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

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

    Raises ValueError for an extent that lies outside its object.
    """

    spans: tuple[Span, ...]
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __init__(self, spans: Iterable[Span]) -> None:
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
        digest = xxhash.xxh3_128()
        for span in self.spans:
            if isinstance(span, Inline):
                digest.update(b"I%d:" % span.length)
                digest.update(span.data)
            else:
                digest.update(
                    f"E{span.object.key}\0{span.object.version}\0{span.offset}+{span.length};".encode(
                        "utf-8", "surrogateescape"
                    )
                )
        return digest.hexdigest()
