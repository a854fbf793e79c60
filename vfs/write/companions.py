"""What SQLite keeps beside a database that is written to on a mount, and what is sent of the four of them.

`-wal`, `-shm` and `-journal` files are local to the mount: in the staging folder and its journal, so that a
crash leaves them for SQLite's own recovery, and never sent. What is sent of a database is whole: the file as
it was closed, where nothing lay beside it that belongs to it, else a snapshot of all of them at one instant.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfs import names
from vfs.errors import Damaged
from vfs.write import databases, dbprocess
from vfs.write.draft import Draft
from vfs.write.pending import Entry, Kind, Pending

if TYPE_CHECKING:
    from vfs.write.files import Files

log = logging.getLogger("vfs.write")

KINDS = ("wal", "journal", "shm")
_HEAD = 32


def head(entry: Entry) -> bytes:
    """The first bytes of what is staged of a file; none where they are not here."""
    content = entry.content
    return b"" if content is None or content.missing(0, _HEAD) else content.read(0, _HEAD)


def is_database(entry: Entry) -> bool:
    """Whether a file is one, as far as it is staged or known by what lies beside it."""
    return entry.kind is Kind.FILE and (not entry.whole or databases.is_database(head(entry)))


def beside(pending: Pending, key: str) -> dict[str, Entry]:
    """The local files beside a database, by kind."""
    found = ((kind, pending.active(f"{key}-{kind}")) for kind in KINDS)
    return {kind: entry for kind, entry in found if entry is not None and entry.local}


def holds_changes(entry: Entry) -> bool:
    """Whether a local file may have something that its database has not."""
    named = names.companion(entry.name)
    return named is not None and databases.holds_changes(named[1], entry.size, head(entry))


def unfinished(pending: Pending, key: str) -> bool:
    """Whether part of a database lies beside it at this moment."""
    return any(holds_changes(entry) for entry in beside(pending, key).values())


def is_part(pending: Pending, entry: Entry) -> bool:
    """Whether a file is (part of) a database by its name, or by what lies beside it."""
    return entry.local or names.is_database_name(entry.name) or bool(beside(pending, entry.key))


def is_like_one(entry: Entry) -> bool:
    """Whether a file with the name of a companion has the content of one, or none yet."""
    named = names.companion(entry.name)
    return named is not None and databases.is_companion(named[1], head(entry))


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent of a file. parts: what went into a snapshot."""

    draft: Draft | None
    parts: tuple[Draft, ...] = ()


@asynccontextmanager
async def body(files: Files, pending: Pending, entry: Entry) -> AsyncIterator[Body]:
    """What is to be sent of a file that is not copied in the store: its draft, all of which is here, checked
    where it is a database; or a snapshot of one that is in several files.

    Raises Damaged, Unfinished, StoreError.
    """
    draft = entry.draft
    if entry.kind is not Kind.FILE or entry.whole:
        if draft is not None:
            await _check(files, entry, draft)
        yield Body(draft)
        return
    async with AsyncExitStack() as stack:
        parts = await _at_one_instant(files, pending, entry)
        for part in parts.values():
            stack.callback(part.release)
        made = files.staging.create().hold()
        stack.callback(made.release)
        paths = {kind: files.staging.path(part) for kind, part in parts.items()}
        done = await dbprocess.snapshot(
            paths[""], paths.get("wal"), paths.get("journal"), files.staging.path(made)
        )
        made.size = done.size
        made.seal()
        yield Body(made, tuple(parts.values()))


async def _check(files: Files, entry: Entry, draft: Draft) -> None:
    if not databases.is_database(draft.read(0, _HEAD)):
        return
    try:
        await dbprocess.check(files.staging.path(draft))
    except Damaged as error:
        if entry.base is not None:
            raise
        log.warning("%s: %s; there is nothing it replaces, it is sent as it is", entry.key, error)


async def _at_one_instant(files: Files, pending: Pending, entry: Entry) -> dict[str, Draft]:
    """Drafts of a database ("") and of what lies beside it. The caller releases them.

    Nobody writes to any of them meanwhile: that is as if the machine had been switched off at this moment,
    which is what SQLite's files are made for.
    """
    standing = files.staging.create(entry.origin).hold()
    held: dict[str, Draft] = {}
    try:
        if entry.content is None:
            await files.fill(entry, standing)  # nothing was written to the database itself
        others: dict[str, Entry] | None = None
        while others is None:
            others = _carriers(pending, entry.key)
            async with AsyncExitStack() as stack:
                for one in (entry, *others.values()):
                    await stack.enter_async_context(one.lock)
                if others != _carriers(pending, entry.key):
                    others = None
                    continue
                for kind, one in {"": entry, **others}.items():
                    held[kind] = standing.hold() if one.content is None else await files.as_it_is(one)
        return held
    except BaseException:
        for draft in held.values():
            draft.release()
        raise
    finally:
        standing.release()


def _carriers(pending: Pending, key: str) -> dict[str, Entry]:
    """What may have a part of a database in it: not the index of the log."""
    return {kind: one for kind, one in beside(pending, key).items() if kind != "shm"}
