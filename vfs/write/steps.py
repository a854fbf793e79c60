"""What every change of names is made of: what is known, one step in memory, and the journal told of it whole.

Facts are gathered first (that may wait for the store); then memory changes in one step without waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

import trio

from vfs import names
from vfs.cache.listing import Stored
from vfs.errors import (
    AlreadyThere,
    NotEmpty,
    NotFound,
    Stale,
)
from vfs.spans import StoredObject
from vfs.write import databases
from vfs.write.attributes import Attributes
from vfs.write.book import NOTHING, Book
from vfs.write.draft import Draft
from vfs.write.files import Files
from vfs.write.journal import Journal
from vfs.write.merged import MergedMetadata
from vfs.write.pending import Entry, Kind, StagedObject
from vfs.write.rules import Rules
from vfs.write.twins import Twins

#: A folder with more in it is not moved in one step: programs then copy.
MAX_MOVED = 100_000


class Wake(Protocol):
    """Told of an entry that waits, or is used no more. soon: there is no need to wait for more of it."""

    def __call__(self, entry: Entry, /, *, soon: bool = False) -> None:
        """It is to be looked at."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """An upload of parts that is of no use any more. upload: its name; None where a crash, or something else,
    came before that was known: then it is whatever is there besides `others`.
    """

    key: str
    upload: str | None
    others: list[str]


class Steps:
    """See the module. wake: told that something waits. sending: whether a key is being written to now."""

    def __init__(
        self,
        metadata: MergedMetadata,
        files: Files,
        journal: Journal,
        book: Book,
        rules: Rules,
        *,
        wake: Wake,
        sending: Callable[[str], bool],
        twins: Twins,
    ) -> None:
        self.metadata = metadata
        self.pending = metadata.pending
        self.files = files
        self.journal = journal
        self.book = book
        self.rules = rules
        self._wake = wake
        self._sending = sending
        self._last = journal.last_ident()
        self._opened: dict[str, Entry] = {}
        self._folders: dict[str, int] = {}
        #: Stored files that were read: what is written may be a copy of one.
        self.twins = twins
        self._dropped: set[int] = set()
        #: What happened to writes that lost a race or were cut off: `path`, `kept`, `why`, `time`.
        self.conflicts: list[dict[str, str]] = journal.notes("conflict")
        #: Told of a stored file that becomes pending though nobody writes to it: a part of it lies beside it.
        self.taken: Callable[[Entry, StoredObject], object] = lambda entry, stored: None
        #: Told of a name that is another by now, and nobody asked for that: a write that lost a race.
        self.changed_behind: Callable[[str], None] = lambda key: None
        #: Files without a name that somebody has open: what they read must stay in the store.
        self.orphans: list[Entry] = []
        #: Uploads of parts that are of no use any more: for the uploader to take.
        self.abandoned: list[Abandoned] = []
        self._leaving: list[Abandoned] = []  # of those, what the journal is still to be told

    def entry(self, key: str, kind: Kind, **fields: object) -> Entry:
        """A new one, not yet pending."""
        self._last += 1
        made = Entry(self._last, key, kind, since=time.time())
        for name, value in fields.items():
            setattr(made, name, value)
        return self.files.adopt(made)

    @property
    def last_ident(self) -> int:
        """The highest number given so far."""
        return self._last

    def touched(self, folder: str) -> int:
        """When something in a folder was last created or removed here (ns), 0 = not known."""
        return self._folders.get(folder, 0)

    def _check_free(self, folder: str, name: str) -> None:
        """That nothing came to be under a name meanwhile. Raises AlreadyThere, NotFound."""
        for key in (f"{folder}{name}", f"{folder}{name}/"):
            entry = self.pending.active(key)
            if entry is not None and entry.kind is not Kind.GONE:
                raise AlreadyThere(f"{key} is there already")
        if self.metadata.is_gone(folder):
            raise NotFound(f"no such folder: {folder}")

    def _again(self, key: str, found: Stored | None) -> Stored | None:
        """What was found under a key, as it is now that something was waited for. Raises Stale."""
        entry = self.pending.active(key)
        if entry is not None:
            return None if entry.kind is Kind.GONE else entry.object()
        if not isinstance(found, StagedObject):
            return found
        if found.entry.key == key and found.entry.settled is not None:
            return found.entry.stored
        raise Stale(f"{key} was moved")

    async def open(self, stored: StoredObject) -> Entry:
        """An existing file for writing; it is not changed by that. Raises ReadOnly, Refused, Stale."""
        if isinstance(stored, StagedObject):
            entry = stored.entry
            self.check_writable(entry)
        else:
            self.rules.check(stored.key, existing=True)
            attributes = await self.book.ask(stored)
            entry = self._of(stored, attributes)
            self._opened[stored.key] = entry
        entry.writers += 1
        return entry

    def _of(self, stored: StoredObject, attributes: Attributes) -> Entry:
        """The entry of a stored file. Raises Stale where something else has its name by now."""
        if self.pending.active(stored.key) is not None:
            raise Stale(f"{stored.key} was replaced")
        entry = self._opened.get(stored.key)
        if entry is None or entry.origin != stored:
            entry = self.entry(stored.key, Kind.FILE, base=stored, origin=stored, attributes=attributes)
        return entry

    def check_writable(self, entry: Entry) -> None:
        """Raises ReadOnly, Refused."""
        self.rules.check(entry.key, existing=bool(entry.key) and self._is_stored(entry.key))

    def tidy(self, entry: Entry) -> None:
        """A file that nobody has open and that is not pending needs nothing here."""
        if entry.writers > 0 or entry.opened > 0 or self.pending.get(entry.key) is entry:
            return
        if not entry.key or entry.settled is not None:
            self.files.drop(entry)
        if entry in self.orphans:
            self.orphans.remove(entry)
            self._wake(entry)

    async def attributes(self, stored: StoredObject) -> Attributes:
        """Of a file, asked for where they are not known."""
        if isinstance(stored, StagedObject):
            return stored.entry.attributes
        return await self.book.ask(stored)

    def known_attributes(self, stored: StoredObject) -> Attributes:
        """Of a file, without asking."""
        if isinstance(stored, StagedObject):
            return stored.entry.attributes
        return self.book.get(stored) or NOTHING

    def _remove(self, key: str, entry: Entry | None, found: Stored | None) -> list[Entry]:
        """A name goes; what is pending because of that."""
        base, trying = self._base(key, found), None
        if entry is not None:
            trying = self._untried(entry)
            self._unname(entry)
        self._note(key)
        return self._gone(key, base, trying=trying)

    def _orphan(self, found: Stored | None, opened: int) -> Entry | None:
        """An entry for a stored file that is open and loses its name."""
        if not opened or not isinstance(found, StoredObject):
            return None
        return self.entry(found.key, Kind.FILE, base=found, origin=found, opened=opened)

    def _untried(self, entry: Entry) -> Draft | StoredObject | str | None:
        """What may have been stored of an entry under the key it leaves: what is there next cares for it."""
        trying, entry.trying = entry.trying, None
        return trying

    def _unname(self, entry: Entry) -> None:
        """It has no name any more; who has it open keeps its bytes."""
        self.abandon(entry)
        self._opened.pop(entry.key, None)
        if self.pending.get(entry.key) is entry:
            self.pending.discard(entry.key)
        self._dropped.add(entry.ident)
        entry.key, entry.waiting = "", False
        if entry.opened or entry.writers:
            self.orphans.append(entry)
        else:
            self.files.drop(entry)

    def _gone(
        self,
        key: str,
        base: StoredObject | None,
        batch: int = 0,
        *,
        moved: bool = False,
        trying: Draft | StoredObject | str | None = None,
    ) -> list[Entry]:
        """What the store has under a key, or may have soon, is to go, if it has anything."""
        if base is None and trying is None and not self._sending(key) and not key.endswith("/"):
            self.pending.discard(key)
            return []
        gone = self.entry(key, Kind.GONE, base=base, waiting=True, batch=batch, trying=trying, moved=moved)
        self._put(gone)
        return [gone]

    async def _check_empty(self, key: str) -> None:
        try:
            listing = await self.metadata.folder(key)
        except NotFound:
            return
        if listing.files or listing.folders or listing.unpathable:
            raise NotEmpty(f"{key} is not empty")

    async def _marker(self, key: str) -> StoredObject | None:
        """The object that makes an empty folder last, as the store has it."""
        entry = self.pending.get(key)
        if entry is not None:
            return entry.base if entry.settled is None else entry.stored
        try:
            return (await self.metadata.store.head(key)).object
        except NotFound:
            return None

    async def _keep_folder(self, folder: str) -> None:
        """A folder from which the last thing was taken stays: by a marker of its own."""
        if not folder or self.pending.active(folder) is not None or not self.metadata.store.remote:
            return
        if await self.metadata.has_something(folder):
            return
        if self.pending.active(folder) is None and not self.metadata.is_gone(folder):
            entry = self.entry(folder, Kind.FOLDER, waiting=True)
            self._put(entry)
            await self._commit([entry])

    async def _existing(self, folder: str, name: str) -> Stored:
        found = await self.metadata.find(folder, name)
        if found is None:
            raise NotFound(f"no such file: {folder}{name}")
        return found

    def _is_stored(self, key: str) -> bool:
        """Whether the store has something there that this mount did not just make."""
        entry = self.pending.active(key)
        return entry is None or (entry.base is not None and not entry.waiting and not entry.writers)

    def _base(self, key: str, found: Stored | None) -> StoredObject | None:
        """What the store has under a key, as far as is known."""
        entry = self.pending.active(key)
        if entry is not None:
            return entry.base
        return found if isinstance(found, StoredObject) else None

    async def _attributes_of(self, found: Stored) -> Attributes:
        return await self.attributes(found) if isinstance(found, StoredObject) else NOTHING

    async def _check_new(self, folder: str, name: str) -> None:
        self.rules.check(folder + name, existing=False)
        plain = name.removesuffix("/")
        self.rules.check_name(folder, plain, await self._siblings(folder, plain))

    async def _siblings(self, folder: str, name: str) -> Iterable[str]:
        if name.isascii():
            return ()
        try:
            listing = await self.metadata.folder(folder)
        except NotFound:
            return ()
        return [*listing.files, *listing.folders]

    async def _is_companion(self, folder: str, name: str) -> bool:
        """A file that SQLite keeps beside a database (or an empty file): nothing of it is ever sent."""
        return await self._database_of(folder, name) is not None

    async def _database_of(self, folder: str, name: str) -> StoredObject | None:
        """The file that SQLite would keep a file of this name beside, if it is a database, or empty."""
        named = names.companion(name)
        found = await self.metadata.find(folder, named[0]) if named is not None else None
        if not isinstance(found, StoredObject):
            return None
        head = await self.files.head(found, 16)
        return found if databases.is_database(head) or not head else None

    def _now(self, attributes: Attributes) -> Attributes:
        return replace(attributes, mtime_ns=time.time_ns())

    async def _commit(self, changed: Iterable[Entry]) -> None:
        """Tell the journal of one step, whole: what is new, and what is pending no more."""
        self.files.written = trio.current_time()
        rows = {entry.ident: entry.row() for entry in changed if self.pending.get(entry.key) is entry}
        dropped, self._dropped = self._dropped - rows.keys(), set()
        notes = [("upload", asdict(one)) for one in self._leaving]
        self.abandoned += self._leaving
        self._leaving = []
        await self.journal.put(rows.values(), drop=dropped, notes=notes)

    def _put(self, entry: Entry) -> None:
        """It is pending."""
        before = self.pending.get(entry.key)
        if before is not None and before is not entry:
            self.abandon(before)
            self._dropped.add(before.ident)
            if entry.trying is None:
                entry.trying = self._untried(before)
        self.pending.add(entry)
        self._note(entry.key)
        if entry.waiting:
            self._wake(entry)

    async def begin_anew(self, entry: Entry) -> None:
        """An upload under way is of what the file was before."""
        self.abandon(entry)
        await self._commit([entry])
        self._wake(entry)

    def abandon(self, entry: Entry) -> None:
        """An upload of parts for a key it leaves is of no use."""
        if entry.upload is not None or entry.starting is not None:
            self._leaving.append(Abandoned(entry.key, entry.upload, list(entry.starting or ())))
            entry.upload, entry.upload_of, entry.parts = None, "", {}
        entry.starting = None
        entry.attempts, entry.error = 0, ""

    def _note(self, key: str) -> None:
        folder = split(key.removesuffix("/"))[0]
        self._folders[folder] = time.time_ns()
        while len(self._folders) > MAX_MOVED:
            del self._folders[next(iter(self._folders))]

    @property
    def drafts(self) -> Mapping[int, Draft]:
        """Staged contents of what is pending, by number."""
        found = (d for entry in self.pending for d in (entry.live, entry.draft, entry.trying))
        return {draft.number: draft for draft in found if isinstance(draft, Draft)}


def as_object(folder: str) -> StoredObject:
    """What attributes of a folder are remembered under."""
    return StoredObject(folder, 0, "folder")


def split(key: str) -> tuple[str, str]:
    """The folder (with its slash) and the name of a key."""
    cut = key.rfind("/") + 1
    return key[:cut], key[cut:]


def stamp() -> str:
    """This second, as it stands in names."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")


def host() -> str:
    """The name of this machine, as it can stand in a file name and in metadata."""
    import socket

    return (
        "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "-" for c in socket.gethostname())[:40]
        or "host"
    )
