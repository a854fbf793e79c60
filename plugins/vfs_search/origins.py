"""What the databases say was cut from where: no picture is looked at."""

from __future__ import annotations

from dataclasses import dataclass

from vfs import Damaged, Place, TooBig
from vfs_search import databases
from vfs_search.databases import Found
from vfs_search.documents import Cut, File, Library

#: Share of the shorter stretch that two must have in common to be of one moment.
_SHARED = 0.5


@dataclass(frozen=True, slots=True)
class Origin:
    """A stretch [start, end) seconds of a file of the mount that shows the same."""

    path: str
    start: float
    end: float


async def origins(root: Place, path: str, start: float, end: float) -> list[Origin]:
    """Where [start, end) of a file comes from, and what else was cut from there. Raises StoreError."""
    for database in (await databases.find(root)).found:
        if not (database.base == "" or path.startswith(f"{database.base}/")) and not path.startswith(
            "games/"
        ):
            continue
        try:
            library = await databases.library(database)
        except (Damaged, TooBig):
            continue
        found = _as_cut(library, path, start, end)
        from_game = found is None
        found = found or _as_game(library, path, start, end)
        if found is not None:
            return await _named(root, database, library, found, path, whole=from_game)
    return []


def _as_cut(library: Library, path: str, start: float, end: float) -> Cut | None:
    """The stretch of a game that a cut or exported file shows at a time; its cuts follow one another."""
    at = 0.0
    for cut in library.provenance.get(path.rpartition("/")[2], ()):
        length = cut.end - cut.start
        if at <= start + 0.05 < at + length:
            return Cut(cut.game_number, cut.start + start - at, min(cut.end, cut.start + end - at))
        at += length
    return None


def _as_game(library: Library, path: str, start: float, end: float) -> Cut | None:
    last = path.rpartition("/")[2]
    for game in library.games.values():
        if any(file.path.rpartition("/")[2] == last for file in game.files):
            return Cut(game.number, start, end)
    return None


async def _named(
    root: Place, database: Found, library: Library, wanted: Cut, path: str, *, whole: bool
) -> list[Origin]:
    """The game and every file that shows this moment of it, but the one that was asked about."""
    found = []
    game = library.games.get(wanted.game_number)
    if game is not None and not whole:
        there = await databases.stored(root, database, game.files)
        if there is not None:
            found.append(Origin(there[0], wanted.start, wanted.end))
    for name, cuts in library.provenance.items():
        at = 0.0
        for cut in cuts:
            begin, stop = max(cut.start, wanted.start), min(cut.end, wanted.end)
            shortest = min(cut.end - cut.start, wanted.end - wanted.start)
            if cut.game_number == wanted.game_number and stop - begin >= _SHARED * shortest > 0:
                files = [File(folder, name) for folder in ("raw_clips", "working_videos", "final_videos")]
                there = await databases.stored(root, database, files)
                if there is not None and there[0] != path:
                    found.append(Origin(there[0], at + begin - cut.start, at + stop - cut.start))
            at += cut.end - cut.start
    return found
