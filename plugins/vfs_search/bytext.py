"""`search/text/`: by what the databases know."""

from __future__ import annotations

from collections.abc import Iterable

from vfs import Damaged, Place, TooBig, in_thread
from vfs_search import databases
from vfs_search.databases import Databases, Found
from vfs_search.documents import Document
from vfs_search.grammar import Options, Text
from vfs_search.hits import Answer, Hit, order
from vfs_search.textindex import MOST, Match


async def fingerprint(root: Place) -> str:
    """Changes when one of the databases does."""
    found = await databases.find(root)
    return "\n".join(database.identity for database in found.found)


async def answer(root: Place, query: Text, options: Options) -> Answer:
    """The best documents whose videos are there. Raises Malformed, StoreError."""
    found = await databases.find(root)
    hits: list[Hit] = []
    wrong: list[str] = []
    missing, looked_at = 0, 0
    for database in found.found:
        try:
            index = await databases.text_index(database)
        except (Damaged, TooBig) as error:
            wrong.append(str(error))
            continue
        taken, looked = 0, 0
        for match in _first(await in_thread(index.find, query), options.sort):
            looked += 1
            hit = await _hit(root, database, match, options)
            missing += hit is None
            if hit is not None and hit.score >= (options.least or 0.0) and options.wants(hit.path):
                hits.append(hit)
                taken += 1
                if taken == options.limit:
                    break
        looked_at = max(looked_at, looked)
    told = _status(found, missing, wrong)
    if looked_at == MOST:
        told["note"] = f"only the newest {MOST} of each database that fit were looked at"
    return Answer(tuple(order(hits, options.sort)[: options.limit]), told)


def _first(matches: Iterable[Match], by: str) -> Iterable[Match]:
    """In the order in which they are wanted, before it is known which of them have a video."""
    if by == "rating":
        return sorted(
            matches, key=lambda one: -1 if one.document.rating is None else one.document.rating, reverse=True
        )
    if by == "date":
        return sorted(matches, key=lambda one: one.document.date, reverse=True)
    if by == "path":
        return sorted(matches, key=lambda one: [(file.folder, file.path) for file in one.document.files[:1]])
    return matches


def _status(found: Databases, missing: int, wrong: list[str]) -> dict[str, object]:
    told: dict[str, object] = {"searched": [database.place.path for database in found.found]}
    if not found.found:
        told["note"] = f"there is no {' or '.join(databases.NAMES)} in this mount: nothing to search by words"
    if not found.whole:
        told["note"] = f"only the first {databases.MOST_FOLDERS} folders were looked into"
    if wrong:
        told["unreadable"] = wrong
    return told | {"without_video": missing}


async def _hit(root: Place, database: Found, match: Match, options: Options) -> Hit | None:
    """None where there is no video of it."""
    document = match.document
    there = await databases.stored(root, database, document.files)
    if there is None:
        return None
    path, selection = there
    start, end = _times(selection)
    return Hit(
        path,
        selection,
        match.score,
        "text",
        start=start,
        end=end,
        game=document.game_number,
        date=document.date,
        opponent=document.opponent,
        title=document.name or document.notes.partition("\n")[0],
        rating=document.rating,
        details=_details(document),
    )


def _times(selection: str) -> tuple[float | None, float | None]:
    start, _, end = selection.partition("-")
    if start.endswith("s") and end.endswith("s"):
        return float(start[:-1]), float(end[:-1])
    return None, None


def _details(document: Document) -> dict[str, str]:
    told = {
        "kind": document.kind,
        "id": str(document.number),
        "tags": ", ".join(document.tags),
        "notes": document.notes,
        "tournament": document.tournament,
        "type": document.type,
    }
    return {key: value for key, value in told.items() if value}
