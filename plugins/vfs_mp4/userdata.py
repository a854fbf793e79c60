"""The view of the application's user folders: `raw_clips@/NAME.mp4`, a clip for each row of the database.

A row says which seconds of which game a clip is; whether it was ever cut to a file does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from vfs import (
    MAX_DATABASE,
    Bytes,
    Damaged,
    Directory,
    Moment,
    Node,
    NotFound,
    Place,
    Selection,
    Spliced,
    TooBig,
    in_thread,
)
from vfs_mp4 import database
from vfs_mp4.database import Clips, Game, Row
from vfs_mp4.selecting import attributes, clip, window_of

FOLDER = "raw_clips@"
#: The database of a folder, in the order in which the application has named it.
DATABASES = ("database.sqlite", "profile.sqlite")
#: Where games are: of a user, or of all users at the root of the bucket.
GAMES = "games"


class UserClips:
    """Clips of the folders that have a database. listed: show `raw_clips@` in listings."""

    name = "mp4.userdata"

    def __init__(self, *, listed: bool = False) -> None:
        self._listed = listed

    def applies(self, place: Place) -> bool:
        """Every folder; which of them have a database is asked when it matters."""
        return place.is_folder

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """`raw_clips@`, where derived folders are listed at all."""
        if not self._listed or await _database(place) is None:
            return {}
        return {FOLDER: _folder(place)}

    async def resolve(self, place: Place, name: str) -> Node | None:
        """`raw_clips@` of a folder with a database. Raises StoreError."""
        if name != FOLDER or await _database(place) is None:
            return None
        return _folder(place)


def _folder(place: Place) -> Directory:
    return Directory(entries=partial(_entries, place), lookup=partial(_lookup, place))


async def _database(place: Place) -> Place | None:
    for name in DATABASES:
        found = await place.child(name)
        if found is not None and not found.is_folder:
            return found
    return None


async def _clips(place: Place) -> Clips:
    """The rows, read once for each version of the database. Raises NotFound, Damaged, TooBig, StoreError."""
    stored = await _database(place)
    if stored is None:
        raise NotFound(f"{place.path or '/'} has no database")
    if stored.size > MAX_DATABASE:
        raise TooBig(f"{stored.path}: a database of {stored.size} bytes: the limit is {MAX_DATABASE}")
    return await stored.derive("mp4.clips.1", partial(_read, stored), cost=lambda found: found.nbytes)


async def _read(stored: Place) -> Clips:
    data = await stored.read(0, stored.size)
    try:
        found = await in_thread(database.read, data)
    except Damaged as error:
        raise Damaged(f"{stored.path}: {error}") from None
    for reason in found.wrong[:10]:
        stored.report(f"{FOLDER}: {reason}")
    return found


async def _entries(place: Place) -> Mapping[str, Node | None]:
    """Names by the rows alone; sizes are worked out when a name is looked at."""
    rows = (await _clips(place)).rows
    there: dict[tuple[str, ...], bool] = {}
    for row in rows.values():
        files = row.game.of(row.sequence)
        if files not in there:
            there[files] = await _game(place, row.game, row.sequence) is not None
    return {
        name: Bytes(produce=partial(_produce, place, name), version=None)
        for name, row in rows.items()
        if there[row.game.of(row.sequence)]
    }


async def _lookup(place: Place, name: str) -> Node | None:
    """The clip of a row. Raises NotFound where its game is gone, OutOfRange, MediaError, StoreError."""
    row = (await _clips(place)).rows.get(name)
    if row is None:
        return None
    game = await _game(place, row.game, row.sequence)
    if game is None:
        place.report(f"{FOLDER}/{name}: the video of {row.game.name} is not there")
        raise NotFound(f"{name}: the video of {row.game.name} is not there")
    selection = Selection(Moment("time", row.start), stop=Moment("time", row.end))
    window = await window_of(game, selection)
    about = attributes(game, selection, window)
    try:
        layout = await clip(game, window)
    except ValueError as error:  # An extent outside its object: the tables lie.
        raise Damaged(f"{game.path}: {error}") from error
    about["start_frame_index"] = "0"
    return Spliced(layout=layout, mtime_ns=game.mtime_ns, attributes=about | _about(row))


def _about(row: Row) -> dict[str, str]:
    """What the row says, as attributes; empty ones are left out."""
    found = {
        "id": str(row.number),
        "game": row.game.name,
        "start": str(float(row.start)),
        "end": str(float(row.end)),
        "rating": "" if row.rating is None else str(row.rating),
        "tags": ", ".join(row.tags),
        "notes": row.notes,
    }
    return {name: value for name, value in found.items() if value}


async def _produce(place: Place, name: str) -> bytes:
    """The content of a listed name, for who reads it without looking it up."""
    node = await _lookup(place, name)
    if not isinstance(node, Spliced):
        raise NotFound(f"{name} is not there any more")
    return await place.fetch(node.layout)


async def _game(place: Place, game: Game, sequence: int | None) -> Place | None:
    """The stored video of a game: where the row says, else in `games` of the user or of all."""
    own, shared = await place.child(GAMES), await place.find(GAMES)
    for path in game.of(sequence):
        if "/" in path:
            found = await place.find(f"{place.path}/{path}" if place.path else path)
            if found is not None and not found.is_folder:
                return found
            continue
        for folder in (own, shared):
            if folder is not None and folder.is_folder:
                found = (await folder.children()).get(path)
                if found is not None and not found.is_folder:
                    return found
    return None
