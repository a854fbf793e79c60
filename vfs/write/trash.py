"""What was deleted, for as long as it can be had back: copies below `.reelfs-trash/`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import trio

from vfs.errors import AlreadyThere, NotFound, ReelfsError, Stale
from vfs.names import TRASH
from vfs.spans import StoredObject
from vfs.storage.base import Store

log = logging.getLogger("vfs.write")

_STAMP = "%Y%m%dT%H%M%S"


def holds(key: str) -> bool:
    """Whether a key is one of the trash."""
    return key.startswith(f"{TRASH}/")


async def put(store: Store, stored: StoredObject, room: Callable[[str], int] = lambda key: 0) -> str | None:
    """Copy something there before it is deleted; the key of the copy. Raises Stale, NotFound.

    room: bytes that could be added to a key (`Rules.room`); None where there is none for that of the copy.
    """
    when = datetime.now(UTC)
    while True:
        key = f"{TRASH}/{when.strftime(_STAMP)}/{stored.key}"
        if room(key) < 0:
            log.warning("%s: its key has no room for that of the trash: it is removed for good", stored.key)
            return None
        try:
            await store.copy(stored, key, replaces=None)
            return key
        except Stale:
            if (await store.head(stored.key)).object.version != stored.version:
                raise
            when += timedelta(seconds=1)  # another file of that name was deleted within this second


async def everything(store: Store) -> list[StoredObject]:
    """All that is there, in no order."""
    found: list[StoredObject] = []
    token = None
    while True:
        page = await store.list(f"{TRASH}/", delimiter="", token=token)
        found += page.objects
        if (token := page.token) is None:
            return found


async def keep_emptying(store: Store, older: float) -> None:
    """What is there for longer than it is to be goes, at the start and each hour."""
    while True:
        try:
            await empty(store, older)
        except ReelfsError as error:
            log.info("the trash is looked at later: %s", error)
        await trio.sleep(3600)


async def empty(store: Store, older: float) -> None:
    """Drop what was deleted more than so many seconds ago."""
    for stored in await everything(store):
        when = deleted_at(stored.key)
        if when is not None and time.time() - when > older:
            with suppress(NotFound, Stale):  # another mount empties it, too
                await store.delete(stored)


async def undelete(store: Store, path: str) -> list[str]:
    """Bring back a file, or all that was below a folder, each as it was deleted last; their keys.

    Raises NotFound where the trash has nothing of it, AlreadyThere where there is a file of that name (what
    was brought back before stays so).
    """
    path = path.strip("/")
    newest: dict[str, StoredObject] = {}
    for stored in sorted(await everything(store), key=lambda stored: stored.key):
        key = original(stored.key)
        if key == path or key.startswith(f"{path}/") or not path:
            newest[key] = stored
    newest = {key: stored for key, stored in newest.items() if not key.endswith("/")}
    if not newest:
        raise NotFound(f"the trash has nothing of {path or '/'}")
    for key, stored in newest.items():
        try:
            await store.copy(stored, key, replaces=None)
        except Stale:
            raise AlreadyThere(f"{key} is there already: move it away first") from None
        await store.delete(stored)
    return sorted(newest)


def original(key: str) -> str:
    """The key something in the trash had; "" for one that is none of ours."""
    return key.split("/", 2)[2] if deleted_at(key) is not None and key.count("/") > 1 else ""


def deleted_at(key: str) -> float | None:
    """When something in the trash was deleted (Unix seconds), or None for what is none of ours."""
    try:
        stamp = key.split("/")[1]
        return datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC).timestamp()
    except (ValueError, IndexError):
        return None
