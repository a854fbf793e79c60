"""`search/frame/` and `search/clip/`: where else a picture occurs, where a moment occurs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from vfs import Malformed, NotFound, Place, Spliced, in_thread
from vfs_search import cascade, databases, looks, origins
from vfs_search.cascade import Stretch
from vfs_search.catalog import Entry, Snapshot
from vfs_search.grammar import Moment, Options
from vfs_search.hits import Answer, Hit, order
from vfs_search.landmarks import HOP, RATE
from vfs_search.local import Local
from vfs_search.looks import Looks, Preparing
from vfs_search.options import Options as Settings
from vfs_search.origins import Origin
from vfs_search.sampling import Plan, Question, Still

#: Seconds shown before and after a picture that was found.
AROUND = 2.0
#: Stretches of the file itself this near to what was asked about are no answer (seconds).
_OWN = 1.0
#: The score below which a result is not shown unless `min:` says so.
SURE = 0.5
NOTHING = "nothing is indexed yet: run `reelfs index SOURCE`"
PREPARING = "what is asked about is still being looked at: look again in a moment"


@dataclass(frozen=True, slots=True)
class Limits:
    """What questions are held to: the settings, how pictures are described, and who looks at them."""

    options: Settings
    plan: Plan
    looks: Looks

    def asking(self, options: Options) -> tuple[str, Plan]:
        """(name of the descriptor that is asked for, "" = grad512; how pictures are described).

        Raises Malformed.
        """
        wanted = "rep0st108" if options.descriptor == "rep0st" else options.descriptor
        if wanted in ("", "grad512"):
            return "", replace(self.plan, extra=())
        extra = tuple(one for one in self.plan.extra if one[0] == wanted)
        if not extra:
            raise Malformed(
                f"descriptor:{options.descriptor}: videos are not indexed with it; name it in "
                f"`descriptors` of [plugin.search] and index again"
            )
        return wanted, replace(self.plan, extra=extra)


@dataclass(frozen=True, slots=True)
class About:
    """What is asked about: a stretch of a file of the mount; path "" = a file that is not in it."""

    path: str = ""
    start: float = 0.0
    end: float = 0.0


async def frame(
    root: Place, snapshot: Snapshot | None, asked: Moment, options: Options, limits: Limits
) -> Answer:
    """Where else a picture occurs. Raises as `clip`."""
    descriptor, plan = limits.asking(options)
    node, about = await _clip(root, f"{asked.path}@{asked.selection.canonical}.mp4")
    time = float(asked.selection.start.value) if asked.selection.start.kind == "time" else about.start
    about = replace(about, start=time, end=time)
    hits: list[Hit] = []
    if not descriptor:
        hits = await _from_origins(root, replace(about, end=time + 0.04), options)
        if snapshot is None or options.tier == "provenance" or (hits and not options.tier):
            return _answer(hits, _status(snapshot) | {"tiers": ["provenance"]}, options)
        if options.tier in ("", "coded", "all"):
            found = await in_thread(_coded_near, snapshot, about)
            hits += await _hits(root, snapshot, found, options)
            if (hits and not options.tier) or options.tier == "coded":
                return _answer(hits, _status(snapshot) | {"tiers": ["provenance", "coded"]}, options)
    if snapshot is None:
        return Answer((), _status(snapshot))
    try:
        shown = await limits.looks.at(root, await looks.frame_of(root, node, about.path, plan))
    except Preparing:
        return _preparing(hits, _status(snapshot), options)
    return await _pictures(root, snapshot, shown, about, options, limits, hits)


async def clip(
    root: Place, snapshot: Snapshot | None, asked: Moment, options: Options, limits: Limits
) -> Answer:
    """Where a moment occurs. Raises Malformed, NotFound, MediaError, TooBig, WorkerFailed, StoreError."""
    descriptor, plan = limits.asking(options)
    node, about = await _clip(root, f"{asked.path}@{asked.selection.canonical}.mp4")
    hits = [] if descriptor else await _from_origins(root, about, options)
    if snapshot is None or options.tier == "provenance" or (hits and not options.tier):
        return _answer(hits, _status(snapshot) | {"tiers": ["provenance"]}, options)
    decoded = partial(limits.looks.at, root, await looks.clip_of(root, node, about.path, plan))
    known = None if descriptor else await _known(root, snapshot, about)
    return await stretches(root, snapshot, decoded, about, options, limits, hits, known)


async def local(
    root: Place, snapshot: Snapshot | None, file: Local, options: Options, limits: Limits
) -> Answer:
    """Where a file that is not in the library occurs: a picture, or a video by its name.

    Raises Malformed, Damaged, NoMedia, TooBig, WorkerFailed.
    """
    _, plan = limits.asking(options)
    if looks.demuxer_of(file) is None:
        try:
            shown = await limits.looks.at(root, looks.picture_of(file, plan))
        except Preparing:
            return _preparing([], _status(snapshot), options)
        if snapshot is None:
            return Answer((), _status(snapshot))
        return await _pictures(root, snapshot, shown, About(), options, limits, [])
    decoded = partial(limits.looks.at, root, looks.video_of(file, plan))
    if snapshot is None:
        try:
            await decoded()  # what is wrong with it is said without an index, too
        except Preparing:
            return _preparing([], _status(snapshot), options)
        return Answer((), _status(snapshot))
    return await stretches(root, snapshot, decoded, About(), options, limits)


async def stretches(
    root: Place,
    snapshot: Snapshot,
    decoded: Callable[[], Awaitable[Question]],
    about: About,
    options: Options,
    limits: Limits,
    hits: Sequence[Hit] = (),
    known: Question | None = None,
) -> Answer:
    """Tier by tier; the first that is sure is the answer, unless all are asked for.

    decoded: gives the question, when it is needed. known: what there is of it without.
    """
    descriptor, _ = limits.asking(options)
    if descriptor:
        try:
            question = await decoded()
        except Preparing:
            return _preparing([], _status(snapshot), options)
        return await _by_descriptor(root, snapshot, descriptor, question, about, options, limits)
    told, found = known, list(hits)
    tiers: list[str] = []
    for tier, look in (("coded", cascade.coded), ("sound", cascade.sound), ("visual", cascade.visual)):
        if options.tier not in ("", "all", tier):
            continue
        if told is None or (tier == "visual" and told is known):
            try:
                told = await decoded()
            except Preparing:
                return _preparing(found, _status(snapshot) | {"tiers": tiers}, options)
        tiers.append(tier)
        skip = _own(snapshot, about)
        arguments = (snapshot, told, skip) if tier == "visual" else (snapshot, told)
        there = await in_thread(look, *arguments)
        there = [one for one in there if not _is_own(snapshot, about, one)]
        if tier == "visual":
            there = _beyond(there, found, snapshot)
        found += await _hits(root, snapshot, there, options)
        if found and not options.tier:
            break
    return _answer(found, _status(snapshot) | {"tiers": tiers}, options)


async def _by_descriptor(
    root: Place,
    snapshot: Snapshot,
    descriptor: str,
    question: Question,
    about: About,
    options: Options,
    limits: Limits,
) -> Answer:
    skip = _own(snapshot, about)
    look = partial(
        cascade.by_descriptor,
        least=limits.options.similarity_threshold,
        matches=limits.options.min_matches,
        skip=skip,
    )
    try:
        found = await in_thread(look, snapshot, descriptor, question)
    except (KeyError, ValueError):
        note = f"nothing is indexed with {descriptor} yet: run `reelfs index SOURCE` again"
        return Answer((), _status(snapshot) | {"note": note})
    hits = await _hits(root, snapshot, found, options)
    # The order is that of the plan: by matches, and only then by how alike they are.
    return Answer(
        tuple(hits[: options.limit]), _status(snapshot) | {"tiers": ["visual"], "descriptor": descriptor}
    )


async def _pictures(
    root: Place,
    snapshot: Snapshot,
    shown: Still,
    about: About,
    options: Options,
    limits: Limits,
    hits: Sequence[Hit],
) -> Answer:
    descriptor, _ = limits.asking(options)
    wide = replace(about, start=about.start - AROUND, end=about.end + AROUND)
    if descriptor:
        none = np.empty(0)
        question = Question(
            0.0, np.zeros(1), shown.vectors[None], shown.names, none.astype(np.uint64), none,
            np.empty((0, 2), np.uint32), shown.extra,
        )  # fmt: skip
        return await _by_descriptor(root, snapshot, descriptor, question, wide, options, limits)
    skip = _own(snapshot, wide) if about.path else []
    limit = options.limit if not options.folder else 10 * options.limit
    found = await in_thread(cascade.pictures, snapshot, shown.vectors, shown.names, limit, skip)
    there = [
        Stretch(
            video=one.video,
            start=max(0.0, one.time - AROUND),
            end=one.time + AROUND,
            score=one.score,
            tier="visual",
            offset=one.time,
            matched=one.time,
            details=one.details,
        )
        for one in found
    ]
    hits = [*hits, *await _hits(root, snapshot, there, options)]
    return _answer(hits, _status(snapshot) | {"tiers": ["visual"]}, options)


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


async def _known(root: Place, snapshot: Snapshot, about: About) -> Question | None:
    """The coded pictures and the sound of a stretch as the index has them: nothing needs to be decoded."""
    for entry in snapshot.entries:
        if entry.key == about.path and await _is_there(root, entry):
            times, sound = snapshot.of(entry, "coded_times"), snapshot.of(entry, "sound")
            shown = (times >= about.start - 1e-4) & (times < about.end - 1e-4)
            begin, end = (round(at * RATE / HOP) for at in (about.start, about.end))
            heard = sound[(sound[:, 1] >= begin) & (sound[:, 1] < end)] - np.array([0, begin], np.uint32)
            return Question(
                about.end - about.start, np.zeros(0), np.empty((0, 1, 512), np.float32), [],
                snapshot.of(entry, "coded")[shown], times[shown] - about.start, heard,
            )  # fmt: skip
    return None


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
            details.setdefault("descriptor", "grad512")
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


def _preparing(hits: Sequence[Hit], status: dict[str, object], options: Options) -> Answer:
    """What is found so far."""
    return replace(_answer(hits, status | {"preparing": True, "note": PREPARING}, options), whole=False)


def _answer(hits: Sequence[Hit], status: dict[str, object], options: Options) -> Answer:
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
