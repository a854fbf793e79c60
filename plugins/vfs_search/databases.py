"""The databases of a mount: where they are, read once for each version, and which files their rows mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from vfs import MAX_DATABASE, Damaged, NotFound, Place, ReelfsError, TooBig, in_thread
from vfs_search import documents
from vfs_search.documents import Document, File, Library
from vfs_search.textindex import TextIndex

#: The database of a user, in the order in which the application has named it.
NAMES = ("database.sqlite", "profile.sqlite")
#: Folders of a user: there are no users below.
_CONTRACT = frozenset(
    (
        *("games", "raw_clips", "working_videos", "final_videos", "highlights", "clip_cache"),
        *("downloads", "uploads", "recaps", "posters", "intro", "collection_downloads"),
    )
)
#: Folders that later versions of the application put between the root and a user.
_BETWEEN = frozenset(("users", "profiles"))
#: Folders looked into at most.
MOST_FOLDERS = 2000


@dataclass(frozen=True, slots=True)
class Found:
    """A database. base: the path of the user's folder, "" or without a slash at its end."""

    place: Place
    base: str

    @property
    def identity(self) -> str:
        """Names the version."""
        return f"{self.place.path}\0{self.place.version}"


@dataclass(frozen=True, slots=True)
class Databases:
    """All that were found. whole: False where there were more folders than are looked into."""

    found: tuple[Found, ...]
    whole: bool = True


async def find(root: Place) -> Databases:
    """The databases of the root, of the folders in it, and of `users/*/profiles/*`. Raises StoreError."""
    found: list[Found] = []
    waiting: list[tuple[Place, bool]] = [(root, True)]
    looked = 0
    while waiting and looked < MOST_FOLDERS:
        folder, through = waiting.pop(0)
        looked += 1
        # One LIST, where asking for each name would be two requests.
        children = await folder.children()
        there = [children[name] for name in NAMES if name in children and not children[name].is_folder]
        found += [Found(database, folder.path) for database in there[:1]]
        for name, child in children.items():
            if child.is_folder and (name in _BETWEEN or (through and name not in _CONTRACT)):
                waiting.append((child, name in _BETWEEN))
    return Databases(tuple(found), not waiting)


async def library(database: Found) -> Library:
    """The rows, read once for each version. Raises Damaged, TooBig, StoreError."""
    place = database.place
    return await place.derive("search.library.1", partial(_read, place), cost=lambda read: read.nbytes)


async def _read(place: Place) -> Library:
    if place.size > MAX_DATABASE:
        raise TooBig(f"{place.path}: a database of {place.size} bytes: the limit is {MAX_DATABASE}")
    try:
        return await in_thread(documents.read, await place.read(0, place.size))
    except Damaged as error:
        raise Damaged(f"{place.path}: {error}") from None


async def text_index(database: Found) -> TextIndex:
    """Its full-text index, made once for each version."""

    async def make() -> TextIndex:
        return await in_thread(TextIndex, await library(database))

    return await database.place.derive("search.text.1", make, cost=lambda made: made.nbytes)


async def stored(root: Place, database: Found, files: Iterable[File]) -> tuple[str, str] | None:
    """(path, selection) of the first of the files that is there; a game may be shared by all users."""
    base = f"{database.base}/" if database.base else ""
    for file in files:
        folders = [f"{base}{file.folder}/" if file.folder else base]
        if file.folder == "games" and base:
            folders.append("games/")
        for folder in folders:
            try:
                found = await root.find(folder + file.path)
            except NotFound:
                continue
            if found is not None and not found.is_folder:
                return found.path, file.selection
    return None


async def described(root: Place, path: str) -> Document | None:
    """What the user's database says of the game at a path, None where nobody does."""
    base = path.rpartition("/")[0].rpartition("/")[0]
    folder = await root.find(base)
    for name in NAMES if folder is not None and folder.is_folder else ():
        database = await folder.child(name) if folder is not None else None
        if database is None or database.is_folder:
            continue
        try:
            games = (await library(Found(database, base))).games
        except ReelfsError:
            return None
        last = path.rpartition("/")[2]
        for game in games.values():
            if any(file.path.rpartition("/")[2] == last for file in game.files):
                return game
    return None
