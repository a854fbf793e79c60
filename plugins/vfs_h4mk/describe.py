"""What a container tells of itself as JSON: manifest, seek answers, tracks, statistics, conformance."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np

from vfs import Damaged, NotFound, TooBig
from vfs_h4mk import tables
from vfs_h4mk.chunks import BLOCK_HEAD, CORE, META, SAFE, SEEK, TRAK, VERI
from vfs_h4mk.container import Container
from vfs_h4mk.tables import Entry, Seeks, TrackTable

#: Bits of a `CORE` chunk's flags (media-kernel-le): 0-27 time in milliseconds, 28-29 kind.
_TIME, _KIND_AT, _KINDS = (1 << 28) - 1, 28, ("I", "P", "B", "")


#: META of a container of several tracks has these.
_TRACK_KEYS = frozenset(("tracks", "trak_b64", "seekm_b64"))


def as_json(value: Any) -> bytes:
    """Indented, as it is served. What no UTF-8 can carry is escaped as JSON does."""
    return json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


async def manifest(container: Container) -> dict[str, Any]:
    """The original's seven keys with their types, and what more is known."""
    chain, texts = await container.walked(), await container.texts()
    meta = texts.meta
    return {
        "container": "H4MK",
        "project": _text(meta.get("project"), "HarmonyØ4"),
        "domain": _text(meta.get("domain"), "video-transport"),
        "blocks": len(chain.cores),
        "seek": await _seek_rows(container),
        "compression": dict(texts.compression),
        "safe": texts.safe if isinstance(texts.safe, dict) else {},
        "variant": chain.framing.variant,
        "block_size": tables.block_size(meta),
        "gop": meta.get("gop"),
        "fps_hint": meta.get("fps_hint"),
        "masked": texts.is_masked,
        "encrypted": texts.is_encrypted,
        "sealed": texts.is_sealed,
        "tracks": [_track_summary(track) for track in (await tracks(container)).values()],
    }


def _text(value: Any, default: str) -> str:
    return value if isinstance(value, str) and value else default


async def _seek_rows(container: Container) -> list[dict[str, Any]]:
    if container.is_kernel:
        return [
            {"pts_us": e.pts_us, "block_offset": e.offset, "block_index": e.block, "track_id": track.track_id}
            for track in (await tracks(container)).values()
            for e in track.seeks.entries
        ]
    seeks = await container.seeks()
    rows = seeks.entries if seeks else ()
    return [{"pts_us": e.pts_us, "block_offset": e.offset, "block_index": e.block} for e in rows]


def _track_summary(track: TrackTable) -> dict[str, Any]:
    return {"track_id": track.track_id, "blocks": len(track.blocks), "keyframes": len(track.seeks.entries)}


def seek_answer(seeks: Seeks | None, pts_us: int) -> dict[str, Any]:
    """The original's three keys, `block_index` and `before_first`. Raises NotFound without a table."""
    found = seeks.at(pts_us) if seeks else None
    if found is None:
        raise NotFound("there is no seek table")
    entry, before = found
    return {
        "pts_us": pts_us,
        "keyframe_entry_index": entry.index,
        "keyframe_pts_us": entry.pts_us,
        "block_index": entry.block,
        "before_first": before,
    }


def seek_table(seeks: Seeks) -> list[dict[str, Any]]:
    """All entries, as stored."""
    return [{"pts_us": e.pts_us, "offset": e.offset, "block_index": e.block} for e in seeks.entries]


async def tracks(container: Container) -> dict[str, TrackTable]:
    """The tracks by id: of META's tables, of media-kernel-le the chunks'. Kept with the container."""
    return await container.place.derive(
        container.name_of("tracks"), lambda: _tracks(container), cost=lambda _: 1 << 20
    )


async def has_tracks(container: Container) -> bool:
    """Whether there are any, without walking the whole chain."""
    if container.is_kernel:
        return True
    return bool(_TRACK_KEYS & set((await container.texts()).meta))


async def _tracks(container: Container) -> dict[str, TrackTable]:
    chain = await container.walked()
    if not container.is_kernel:
        meta = (await container.texts()).meta
        if not _TRACK_KEYS & set(meta):
            return {}
        return tables.tracks_of_meta(meta, len(chain.cores))[0]
    return await _kernel_tracks(container)


async def _kernel_tracks(container: Container) -> dict[str, TrackTable]:
    chain, about = container.chain, {}
    if (chunk := chain.first(TRAK)) is not None:
        try:
            about = {
                str(row.get("track_id")): row
                for row in tables.track_rows(tables.parse_json(await container.read_chunk(chunk)))
            }
        except (Damaged, TooBig):
            about = {}
    rows: dict[str, list[tuple[int, int, str]]] = {name: [] for name in about}
    for index, track in enumerate(chain.tracks):
        if index not in chain.broken:
            flags = chain.block(index).word
            kind = _KINDS[flags >> _KIND_AT & 3]
            rows.setdefault(str(track), []).append((index, (flags & _TIME) * 1000, kind))
    at = {chain.block(index).payload: index for index in range(len(chain.cores))}
    seeks = {name: _stored_seeks(at, told) for name, told in (await _tseks(container)).items()}
    return {
        name: TrackTable(
            name,
            tuple(i for i, _, _ in own),
            tuple(p for _, p, _ in own),
            tuple(k for _, _, k in own),
            seeks.get(name) or _walked_seeks(container, own),
            about.get(name, {}),
        )
        for name, own in rows.items()
    }


def _stored_seeks(at: dict[int, int], told: list[tuple[int, int]]) -> Seeks:
    return Seeks(tuple(Entry(n, ms * 1000, offset, at.get(offset)) for n, (ms, offset) in enumerate(told)))


def _walked_seeks(container: Container, own: list[tuple[int, int, str]]) -> Seeks:
    """The key frames as the chunks tell them, where there is no TSEK."""
    keys = [(index, pts) for index, pts, kind in own if kind == "I"]
    block = container.chain.block
    return Seeks(tuple(Entry(n, pts, block(index).payload, index) for n, (index, pts) in enumerate(keys)))


async def _tseks(container: Container) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {}
    for chunk in container.chain:
        if chunk.tag != b"TSEK":
            continue
        try:
            told = tables.parse_tsek(await container.read_chunk(chunk))
        except (Damaged, TooBig):
            continue
        if told is not None:
            found.setdefault(str(told[0]), told[1])
    return found


def track_manifest(track: TrackTable) -> dict[str, Any]:
    """One track: its blocks with their times, its key frames."""
    rows = zip(track.blocks, track.pts_us, track.kinds, strict=True)
    return {
        "track_id": track.track_id,
        **{key: value for key, value in track.about.items() if key != "track_id"},
        "blocks": [{"core_index": index, "pts_us": pts, "kind": kind} for index, pts, kind in rows],
        "seek": seek_table(track.seeks),
    }


async def stats(container: Container) -> dict[str, Any]:
    """Counts and bytes; `decoded_bytes` is null where sizes are not known."""
    chain = await container.walked()
    try:
        sizes = await container.sizes()
    except TooBig:
        sizes = np.full(len(chain.cores), -1, np.int64)
    stored = sum(chain.block(index).size for index in range(len(chain.cores)))
    decoded = int(sizes.sum()) if len(sizes) and bool((sizes >= 0).all()) else None
    return {
        "size": container.place.size,
        "variant": chain.framing.variant,
        "chunks": dict(Counter(chunk.tag.decode("ascii", "backslashreplace") for chunk in chain)),
        "blocks": len(chain.cores),
        "stored_bytes": stored,
        "decoded_bytes": decoded,
        "ratio": round(stored / decoded, 6) if decoded else None,
        "largest_block": int(sizes.max()) if len(sizes) else 0,
        "damaged_blocks": len(chain.broken),
    }


async def conformance(container: Container) -> dict[str, Any]:
    """Rule by rule, whether the file is as the format's own writer would have written it."""
    chain, texts = await container.walked(), await container.texts()
    tags = [chunk.tag for chunk in chain]
    rules = [("chunks run to the end of the file", not (chain.gaps or chain.trailing or chain.broken))]
    if container.is_kernel:
        blocks = [chain.block(index) for index in range(len(chain.cores))]
        order = [(chunk.word & _TIME, track) for chunk, track in zip(blocks, chain.tracks, strict=True)]
        rules += [
            ("TRAK comes first", tags[:1] == [TRAK]),
            ("blocks are sorted by time and track", order == sorted(order)),
            ("every block has a head", all(chunk.size >= BLOCK_HEAD for chunk in blocks)),
            ("TSEK come last", tags[tags.index(b"TSEK") :].count(b"TSEK") == len(tags) - tags.index(b"TSEK"))
            if b"TSEK" in tags
            else ("there is a TSEK", False),
        ]
    else:
        ends = [SEEK, META, SAFE, VERI]
        rules += [
            ("blocks come first, then SEEK, META, SAFE, VERI", [t for t in tags if t != CORE] == ends
             and tags == sorted(tags, key=lambda t: ([CORE, *ends].index(t) if t in (CORE, *ends) else 9))),
            ("META and SAFE are JSON objects", not texts.problems and isinstance(texts.safe, dict)),
            ("META names the compression", bool(texts.compression)),
            ("no tag is unknown", set(tags) <= chain.framing.known),
        ]  # fmt: skip
    listed = [{"rule": rule, "holds": bool(holds)} for rule, holds in rules]
    return {
        "conforms": all(row["holds"] for row in listed),
        "variant": chain.framing.variant,
        "rules": listed,
    }
