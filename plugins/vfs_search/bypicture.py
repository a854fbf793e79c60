"""`search/frame/` and `search/clip/`: where else a picture occurs, where a moment occurs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from vfs import Malformed, NotFound, Place, Source, Spliced, in_thread, in_worker
from vfs_search import cascade, databases, origins, sampling
from vfs_search.cascade import Stretch
from vfs_search.catalog import Entry, Snapshot
from vfs_search.grammar import Moment, Options
from vfs_search.hits import Answer, Hit, order
from vfs_search.origins import Origin
from vfs_search.sampling import Plan, Question

#: Seconds shown before and after a picture that was found.
AROUND = 2.0
#: Stretches of the file itself this near to what was asked about are no answer (seconds).
_OWN = 1.0
#: Seconds of computing that a question may take.
_PATIENCE = 120.0
#: The score below which a result is not shown unless `min:` says so.
SURE = 0.5
NOTHING = "nothing is indexed yet: run `reelfs index SOURCE`"


@dataclass(frozen=True, slots=True)
class About:
    """What is asked about: a stretch of a file of the mount; path "" = a file that is not in it."""

    path: str = ""
    start: float = 0.0
    end: float = 0.0


async def frame(root: Place, snapshot: Snapshot | None, asked: Moment, options: Options) -> Answer:
    """Where else a picture occurs. Raises NotFound, MediaError, TooBig, WorkerFailed, StoreError."""
    node, about = await _clip(root, f"{asked.path}@{asked.selection.canonical}.mp4")
    number = int(node.attributes.get("start_frame_index", "0"))
    time = await _time(root, asked, about)
    about = replace(about, start=time, end=time)
    hits = await _from_origins(root, replace(about, end=time + 0.04), options)
    status = _status(snapshot)
    if snapshot is None or options.tier == "provenance" or (hits and not options.tier):
        return _answer(hits, status | {"tier": "provenance"} if hits else status, options)
    if options.tier in ("", "coded", "all"):
        found = await in_thread(_coded_near, snapshot, about)
        hits += await _hits(root, snapshot, found, options)
        if (hits and not options.tier) or options.tier == "coded":
            return _answer(hits, status | {"tier": "coded"}, options)
    source = Source(partial(root.stream, node.layout), node.layout.size)
    vectors, names, _ = await in_worker(sampling.one_frame, "mp4", number, source=source, deadline=_PATIENCE)
    return await _pictures(root, snapshot, vectors, names, about, options, hits)


async def still(root: Place, snapshot: Snapshot | None, data: bytes, options: Options) -> Answer:
    """Where a picture occurs that is not in the library. Raises Damaged, TooBig, WorkerFailed."""
    vectors, names, _ = await in_worker(sampling.still, data, deadline=_PATIENCE)
    if snapshot is None:
        return Answer((), _status(snapshot))
    return await _pictures(root, snapshot, vectors, names, About(), options, [])


async def clip(root: Place, snapshot: Snapshot | None, asked: Moment, options: Options) -> Answer:
    """Where a moment occurs. Raises NotFound, MediaError, TooBig, WorkerFailed, StoreError."""
    node, about = await _clip(root, f"{asked.path}@{asked.selection.canonical}.mp4")
    hits = await _from_origins(root, about, options)
    status = _status(snapshot)
    if snapshot is None or options.tier == "provenance" or (hits and not options.tier):
        return _answer(hits, status | {"tier": "provenance"} if hits else status, options)
    source = Source(partial(root.stream, node.layout), node.layout.size)
    question = await in_worker(sampling.question, "mp4", Plan(), source=source, deadline=_PATIENCE)
    return await stretches(root, snapshot, question, about, options, hits)


async def stretches(
    root: Place,
    snapshot: Snapshot,
    question: Question,
    about: About,
    options: Options,
    hits: Sequence[Hit] = (),
) -> Answer:
    """Tier by tier; the first that is sure is the answer, unless all are asked for."""
    found, tiers = list(hits), []
    for tier, look in (("coded", cascade.coded), ("sound", cascade.sound), ("visual", cascade.visual)):
        if options.tier not in ("", "all", tier):
            continue
        tiers.append(tier)
        skip = _own(snapshot, about)
        arguments = (snapshot, question, skip) if tier == "visual" else (snapshot, question)
        there = await in_thread(look, *arguments)
        there = [one for one in there if not _is_own(snapshot, about, one)]
        if tier == "visual":
            there = _beyond(there, found, snapshot)
        found += await _hits(root, snapshot, there, options)
        if found and not options.tier:
            break
    return _answer(found, _status(snapshot) | {"tiers": tiers}, options)


async def _pictures(
    root: Place,
    snapshot: Snapshot,
    vectors: Any,
    names: list[str],
    about: About,
    options: Options,
    hits: Sequence[Hit],
) -> Answer:
    skip = (
        _own(snapshot, replace(about, start=about.start - AROUND, end=about.end + AROUND))
        if about.path
        else []
    )
    wanted = [entry for entry in snapshot.entries if options.wants(entry.key)]
    limit = options.limit if len(wanted) == len(snapshot.entries) else 10 * options.limit
    found = await in_thread(cascade.pictures, snapshot, vectors, names, limit, skip)
    there = []
    for one in found:
        start = max(0.0, one.time - AROUND)
        there.append(
            Stretch(one.video, start, one.time + AROUND, one.score, "visual", one.time, one.time, one.details)
        )
    return _answer(
        [*hits, *await _hits(root, snapshot, there, options)],
        _status(snapshot) | {"tiers": ["visual"]},
        options,
    )


# ---------------------------------------------------------------- what is asked about


async def _clip(root: Place, path: str) -> tuple[Spliced, About]:
    node = await root.node(path)
    if not isinstance(node, Spliced):
        raise NotFound(f"{path} is no clip")
    about = About(
        node.attributes.get("source", path),
        float(node.attributes.get("start_time", "0")),
        float(node.attributes.get("end_time", "0")),
    )
    return node, about


async def _time(root: Place, asked: Moment, about: About) -> float:
    """The time of an instant: of a frame or key frame by number, what the tree says."""
    if asked.selection.start.kind == "time":
        return float(asked.selection.start.value)
    return about.start


def _own(snapshot: Snapshot, about: About) -> list[tuple[int, float, float]]:
    return [
        (number, about.start - _OWN, about.end + _OWN)
        for number, entry in enumerate(snapshot.entries)
        if entry.key == about.path
    ]


def _is_own(snapshot: Snapshot, about: About, one: Stretch) -> bool:
    """The very stretch that was asked about."""
    return (
        snapshot.entries[one.video].key == about.path
        and one.start < about.end + _OWN
        and one.end > about.start - _OWN
    )


def _beyond(there: Iterable[Stretch], found: Sequence[Hit], snapshot: Snapshot) -> list[Stretch]:
    """What no earlier tier has found already."""
    known = [(hit.path, hit.start or 0.0, hit.end or 0.0) for hit in found]
    return [
        one
        for one in there
        if not any(
            snapshot.entries[one.video].key == path and one.start < end and one.end > start
            for path, start, end in known
        )
    ]


def _coded_near(snapshot: Snapshot, about: About) -> list[Stretch]:
    """Where the coded pictures around one lie, by the index alone."""
    for entry in snapshot.entries:
        if entry.key != about.path:
            continue
        times = snapshot.of(entry, "coded_times")
        rows = (times >= about.start - 0.75) & (times < about.start + 0.75)
        begin = float(times[rows].min()) if rows.any() else 0.0
        question = Question(
            1.5, times[:0], np.empty((0, 1, 512), np.float32), [], snapshot.of(entry, "coded")[rows],
            times[rows] - begin, snapshot.of(entry, "sound")[:0],
        )  # fmt: skip
        found = cascade.coded(snapshot, question)
        at = about.start - begin
        near = [
            replace(
                one,
                start=max(0.0, one.offset + at - AROUND),
                end=one.offset + at + AROUND,
                matched=one.offset + at,
            )
            for one in found
        ]
        return [one for one in near if not _is_own(snapshot, about, one)]
    return []


# ---------------------------------------------------------------- what was found


async def _hits(root: Place, snapshot: Snapshot, found: Iterable[Stretch], options: Options) -> list[Hit]:
    """As results, of videos that are still there as they were indexed."""
    # A stretch that is more likely the wrong one is shown to who asks for it.
    least = SURE if options.least is None else options.least
    hits = []
    for one in found:
        entry = snapshot.entries[one.video]
        if not options.wants(entry.key) or one.score < least or not await _is_there(root, entry):
            continue
        end = min(one.end, entry.duration) if entry.duration > one.start + 0.1 else one.end
        details = {**one.details, "offset": f"{one.offset:.3f}", "index_version": snapshot.generation}
        if one.tier == "visual":
            details["descriptor"] = "grad512"
        hits.append(await _hit(root, entry.key, one.start, end, one.score, one.tier, one.matched, details))
        if len(hits) >= options.limit:
            break
    return hits


async def _is_there(root: Place, entry: Entry) -> bool:
    try:
        stored = await root.find(entry.key)
    except NotFound:
        return False
    return stored is not None and not stored.is_folder and stored.version == entry.etag


async def _hit(
    root: Place,
    path: str,
    start: float,
    end: float,
    score: float,
    tier: str,
    matched: float,
    details: dict[str, str],
) -> Hit:
    game = await databases.described(root, path)
    about = {} if game is None else {"game": game.number, "date": game.date, "opponent": game.opponent}
    start, end = max(0.0, start), max(end, start + 0.04)
    return Hit(
        path,
        f"{start:.3f}s-{end:.3f}s",
        score,
        tier,
        start=start,
        end=end,
        matched=matched,
        details=details,
        title=path.rpartition("/")[2],
        **about,  # type: ignore[arg-type]
    )


async def _from_origins(root: Place, about: About, options: Options) -> list[Hit]:
    if options.tier not in ("", "all", "provenance"):
        return []
    found: list[Origin] = await origins.origins(root, about.path, about.start, about.end)
    return [
        await _hit(root, one.path, one.start, max(one.end, one.start + 1.0), 1.0, "provenance", one.start, {})
        for one in found
        if options.wants(one.path)
    ]


def _answer(hits: Sequence[Hit], status: dict[str, object], options: Options) -> Answer:
    if options.descriptor not in ("", "grad512"):
        raise Malformed(f"descriptor:{options.descriptor}: there is grad512")
    kept = [hit for hit in hits if hit.score >= (options.least or 0.0)]
    return Answer(tuple(order(kept, options.sort)[: options.limit]), status)


def _status(snapshot: Snapshot | None) -> dict[str, object]:
    if snapshot is None:
        return {"indexed": 0, "note": NOTHING}
    told: dict[str, object] = {"indexed": len(snapshot.entries), "index_version": snapshot.generation}
    if snapshot.listed is not None:
        told["videos"] = snapshot.listed
        if snapshot.listed > len(snapshot.entries):
            missing = snapshot.listed - len(snapshot.entries)
            told["note"] = (
                f"{missing} videos were not indexed when the library was last listed: {NOTHING[24:]}"
            )
    return told
