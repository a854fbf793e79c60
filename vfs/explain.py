"""`explain`: what reading a path will cost, said before anything of the media is read.

One text for `reelfs explain` and for the attribute `user.reelfs.explain`: keys, etags, ranges, requests,
bytes, price, how the bytes are put together, and what was reported about the path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from vfs.nodes import Bytes, Directory, Node, Spliced, Symlink
from vfs.spans import Inline, Layout, StoredObject
from vfs.telemetry import Status, cost_usd
from vfs.units import human_size, visible
from vfs.wholeread import compared

if TYPE_CHECKING:
    from vfs.found import Found

#: Ranges listed one by one; an attribute holds 64 KiB at most, and nobody reads more.
MAX_RANGES = 32


class Plan(Protocol):
    """What reading a layout would do now (`reader.Plan`)."""

    @property
    def requests(self) -> Sequence[tuple[StoredObject, int, int]]:
        """Requests to the store: object, offset, length."""

    @property
    def cached_bytes(self) -> int:
        """Wanted bytes that are here or on their way already."""

    @property
    def inline_bytes(self) -> int:
        """Bytes that are synthesised."""


class Planner(Protocol):
    """The part of the reader that explaining needs."""

    def plan(self, layout: Layout) -> Plan:
        """What reading a layout would do now; changes nothing."""


def explain(found: Found, reader: Planner, status: Status) -> str:
    """Lines of `name value`: everything that reading `found` means. Reads nothing."""
    local = status.settings is not None and status.settings.is_local
    rows = [*_identity(found), *_sources(found.sources), *_reading(found.node, reader, local=local)]
    rows += [("note", note) for note in related_notes(status.reported, found.path, found.sources)]
    return "".join(f"{name:<10}{visible(value)}".rstrip() + "\n" for name, value in rows)


def parse(text: str) -> dict[str, list[str]]:
    """The values of an explanation by name, for programs."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        found.setdefault(line[:10].strip(), []).append(line[10:].strip())
    return found


Row = tuple[str, str]


def _identity(found: Found) -> Iterator[Row]:
    yield "path", found.path or "/"
    yield "kind", _kind(found)
    if not isinstance(found.node, Directory):
        size = found.size
        yield "size", "settled when opened" if size is None else _bytes(size)
    if found.version:
        yield "version", found.version
    for name in sorted(found.attributes.keys() - {"key", "etag", "source"}):
        yield "xattr", f"{name} = {found.attributes[name]}"


def _kind(found: Found) -> str:
    match found.node:
        case Spliced() if "key" in found.attributes:
            return "stored file"
        case Spliced():
            return "spliced file: bytes of stored objects, nothing is copied or encoded"
        case Bytes(version=None):
            return "status file, made at each open"
        case Bytes():
            return "made file: produced whole once per version"
        case Symlink(target=target):
            return f"symbolic link to {target}"
    return "stored folder" if "key" in found.attributes else "directory"


def _sources(sources: Iterable[StoredObject]) -> Iterator[Row]:
    for stored in sources:
        yield "key", stored.key
        yield "etag", stored.version
        yield "stored", _bytes(stored.size)


def _reading(node: Node, reader: Planner, *, local: bool) -> Iterator[Row]:
    """The requests, their bytes and their price."""
    if isinstance(node, Directory):
        each = "free" if local else f"{_usd(cost_usd({'A': 1}))} each"
        yield "requests", f"1 Class A for each 1,000 entries of a stored folder ({each}), none while fresh"
        return
    if isinstance(node, Symlink):
        yield "requests", "none"
        return
    layout = node.layout if isinstance(node, Spliced) else node.reads
    if layout is None:
        yield "requests", "not known before it is made"
        return
    yield "spans", _spans(layout)
    yield from _planned(reader.plan(layout), local=local)
    if not local and compared(layout) is not None:
        yield "checksum", f"1 Class B more ({_usd(cost_usd({'B': 1}))}) when it is read from start to end"


def _planned(plan: Plan, *, local: bool) -> Iterator[Row]:
    number = len(plan.requests)
    price = "local file, free" if local else _usd(cost_usd({"B": number}))
    yield "requests", f"{number} Class B ({price})"
    fetched = sum(length for _, _, length in plan.requests)
    parts = (("to fetch", fetched), ("cached", plan.cached_bytes), ("synthesised", plan.inline_bytes))
    yield "bytes", ", ".join(f"{_bytes(size)} {what}" for what, size in parts)
    for stored, offset, length in plan.requests[:MAX_RANGES]:
        yield "range", f"{stored.key} bytes={offset}-{offset + length - 1} ({human_size(length)})"
    if number > MAX_RANGES:
        yield "range", f"... and {number - MAX_RANGES} more"


def _spans(layout: Layout) -> str:
    inline = [span.length for span in layout.spans if isinstance(span, Inline)]
    stored = [span.length for span in layout.extents]
    number = len(layout.objects)
    return (
        f"{len(inline)} synthesised ({human_size(sum(inline))}), "
        f"{len(stored)} stored ({human_size(sum(stored))}) of {number} object{'s' * (number != 1)}"
    )


def related_notes(
    notes: Mapping[str, Sequence[str]], path: str, sources: Iterable[StoredObject] = ()
) -> list[str]:
    """What was reported about a path, about what it is made from, and (of a derived name that did not
    resolve, so that its source is not known) about the files beside it that its name may mean."""
    wanted = [path, *(stored.key for stored in sources)]
    stem, at, _ = path.rpartition("@")
    if at and "/" not in path[len(stem) :].rstrip("/"):
        wanted += [key for key in notes if key == stem or key.rpartition(".")[0] == stem]
    elif at:
        wanted += [stem] if stem in notes else []
    found = [f"{key}: {note}" for key in dict.fromkeys(wanted) for note in notes.get(key, ())]
    return list(dict.fromkeys(found))


def _bytes(size: int) -> str:
    return f"{size:,} bytes" + (f" ({human_size(size)})" if size >= 1024 else "")


def _usd(price: float) -> str:
    """Dollars to the last digit that says something: one GET is $0.00000036."""
    return f"${price:.8f}".rstrip("0").rstrip(".") if price else "$0"
