"""What a query found, as a folder: clips, links, lists, a contact sheet. Nothing here decodes a video.

A clip is whatever the tree has at `FILE@SEL.mp4`, taken over as it is: the same bytes, the same inode's worth
of description, and attributes that say why it was found.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import xxhash

from vfs import (
    Bytes,
    Directory,
    MediaError,
    Node,
    NotFound,
    Place,
    ReelfsError,
    Spliced,
    Symlink,
    TooBig,
    gather,
    in_worker,
)
from vfs_search import hits as naming
from vfs_search import sheet
from vfs_search.folders import fixed, volatile
from vfs_search.hits import Answer, Hit

STATUS, LINKS, JSON, PLAYLIST, CONTACT = ".status", "links", "results.json", "results.m3u8", "contact.jpg"
#: Results whose clips are worked out at the same time.
_AT_ONCE = 8
#: Part of every version: changed when the same results would come out as other bytes.
CODE = "search.results.1"


@dataclass(frozen=True, slots=True)
class Clips:
    """An answer with the nodes of its results, by name. nodes: empty while nobody has asked for them."""

    answer: Answer
    hits: Mapping[str, Hit]
    nodes: Mapping[str, Node]
    left_out: tuple[str, ...]


async def clips_of(root: Place, answer: Answer, limit: int) -> Clips:
    """The clips of the best `limit` hits that can be cut; what cannot be is left out and said so."""
    cut: dict[int, Spliced] = {}
    wrong: dict[int, str] = {}

    async def one(number: int, hit: Hit) -> None:
        try:
            node = await root.node(hit.clip)
        except (NotFound, MediaError, TooBig) as error:
            wrong[number] = f"{hit.clip}: {error}"
            return
        if isinstance(node, Spliced):
            cut[number] = node

    await gather([partial(one, number, hit) for number, hit in enumerate(answer.hits)], _AT_ONCE)
    found: dict[str, Hit] = {}
    nodes: dict[str, Node] = {}
    for rank, number in enumerate(sorted(cut)[:limit], 1):
        hit, node = _timed(answer.hits[number], cut[number]), cut[number]
        called = naming.name(rank, hit, hit.start, hit.end)
        found[called] = hit
        nodes[called] = replace(node, attributes=dict(node.attributes) | naming.attributes(hit, rank))
    return Clips(answer, found, nodes, tuple(wrong[number] for number in sorted(wrong)))


def _timed(hit: Hit, node: Spliced) -> Hit:
    """With the times that the clip really has, where the hit knows none."""
    if hit.start is not None or "start_time" not in node.attributes:
        return hit
    return replace(hit, start=float(node.attributes["start_time"]), end=float(node.attributes["end_time"]))


def folder(root: Place, depth: int, ask: Callable[[], Awaitable[Clips]]) -> Directory:
    """`@/` of a query. depth: components of its path, for links. ask: gives the answer, and remembers it."""

    async def entries() -> Mapping[str, Node | None]:
        clips = await ask()
        return _nodes(root, depth, clips)

    async def lookup(name: str) -> Node | None:
        return (await entries()).get(name)

    return Directory(entries=entries, lookup=lookup)


def _nodes(root: Place, depth: int, clips: Clips) -> dict[str, Node | None]:
    links: dict[str, Node | None] = {
        name: Symlink(target="../" * (depth + 1) + hit.path) for name, hit in clips.hits.items()
    }
    found: dict[str, Node | None] = dict(clips.nodes)
    found[LINKS] = fixed(links)
    whole = clips.answer.whole
    found[JSON] = _given(naming.as_json(clips.hits, whole=whole), kept=whole)
    found[PLAYLIST] = _given(naming.as_playlist(clips.hits), kept=whole)
    if clips.hits and whole:
        found[CONTACT] = _contact(root, clips)
    found[STATUS] = volatile(partial(_status, clips))
    return found


async def _status(clips: Clips) -> bytes:
    told = {**clips.answer.status, "results": len(clips.hits)}
    told |= {"left_out": clips.left_out[:20]} if clips.left_out else {}
    return json.dumps(told, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _contact(root: Place, clips: Clips) -> Bytes:
    """The matched pictures with their scores, drawn when somebody looks."""
    shown = list(clips.hits.items())[: sheet.MOST]
    wanted = [(_picture(hit), f"{rank}  {hit.score:.2f}") for rank, (_, hit) in enumerate(shown, 1)]
    versions = [node.version or "" for node in clips.nodes.values() if isinstance(node, Spliced)]
    told = "\0".join((*versions, *(t for w in wanted for t in w)))
    about = xxhash.xxh3_128_hexdigest(told.encode("utf-8", "surrogateescape"))
    return Bytes(produce=lambda: _draw(root, wanted), version=f"{CODE}:{sheet.CODE}:{about}")


def _picture(hit: Hit) -> str:
    """Where the tree has the picture that was matched, or the first of the clip."""
    moment = hit.matched if hit.matched is not None else hit.start
    if moment is not None:
        return f"{hit.path}@{moment:.3f}s.jpg"
    first = hit.selection.partition("-")[0] or "0s"
    return f"{hit.path}@{first}.jpg"


async def _draw(root: Place, wanted: list[tuple[str, str]]) -> bytes:
    """Pictures that do not come are grey."""
    pictures: list[bytes] = []
    for path, _ in wanted:
        try:
            node = await root.node(path)
            pictures.append(await node.produce() if isinstance(node, Bytes) else b"")
        except ReelfsError:
            pictures.append(b"")
    return await in_worker(sheet.draw, pictures, [label for _, label in wanted])


def _given(data: bytes, *, kept: bool) -> Bytes:
    """kept: it is what it will be."""

    async def produce() -> bytes:
        return data

    if not kept:
        return volatile(produce)
    return Bytes(produce=produce, version=f"{CODE}:{xxhash.xxh3_128_hexdigest(data)}", size=len(data))
