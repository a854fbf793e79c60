"""The names of a mount that is written to: create, remove, move. Each is whole in the journal or not at all.

Facts are gathered first (that may wait for the store); then memory changes in one step without waiting, and
the journal is told. What the store has is changed by the uploader, later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import trio

from vfs import names
from vfs.cache.metadata import FolderMark, Stored
from vfs.errors import (
    AlreadyThere,
    BadName,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotHere,
    ReelfsError,
    Stale,
)
from vfs.spans import StoredObject
from vfs.write import companions, databases
from vfs.write.attributes import Attributes
from vfs.write.book import NOTHING, Book
from vfs.write.files import Files
from vfs.write.journal import MAX_NOTES, Journal
from vfs.write.merged import MergedMetadata
from vfs.write.pending import Entry, Kind, StagedObject
from vfs.write.rules import Rules
from vfs.write.staging import Draft, Staging
from vfs.write.twins import Twins

log = logging.getLogger("vfs.write")

#: A folder with more in it is not moved in one step: programs then copy.
MAX_MOVED = 100_000


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a mount found in its journal. files, bytes: waiting to be sent. kept: left half-written by a
    crash, kept under the names given.
    """

    files: int = 0
    bytes: int = 0
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Abandoned:
    """An upload of parts that is of no use any more. upload: its name; None where a crash, or something else,
    came before that was known: then it is whatever is there besides `others`.
    """

    key: str
    upload: str | None
    others: list[str]


class Drive:
    """See the module. wake: told that something waits. sending: whether a key is being written to now."""

    def __init__(
        self,
        metadata: MergedMetadata,
        files: Files,
        journal: Journal,
        book: Book,
        rules: Rules,
        *,
        wake: Callable[[Entry], None],
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
        files.crowded = self._crowded
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

    # -- files ------------------------------------------------------------------------------------------

    async def create(self, folder: str, name: str, attributes: Attributes) -> Entry:
        """A new empty file, open for writing. Raises AlreadyThere, ReadOnly, BadName, NoRoom."""
        await self._check_new(folder, name)
        key = folder + name
        found = await self.metadata.find(folder, name)
        if found is not None and not await self.metadata.is_left_over(folder, name, found):
            raise AlreadyThere(f"{key} is there already")
        database = await self._database_of(folder, name)
        outlived = self.pending.active(key)
        if found is None and outlived is not None and outlived.local:
            self._unname(outlived)
        self._check_free(folder, name)
        entry = self.entry(key, Kind.FILE, attributes=self._now(attributes), base=self._base(key, None))
        entry.local = database is not None
        if database is not None and not isinstance(database, StagedObject):
            entry.stands_on = database.version
        entry.live = self.files.staging.create().hold()
        entry.dirty, entry.writers = True, 1
        self._put(entry)
        return entry

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

    async def close(self, entry: Entry) -> None:
        """What `open` or `create` gave is not used for writing any more."""
        try:
            await self.files.close(entry)
        finally:
            if entry.writers <= 0:
                if self._opened.get(entry.key) is entry:
                    del self._opened[entry.key]
                self._wake(entry)
                if entry.local and self.pending.get(entry.key) is entry:
                    await self._closed_beside(entry)
            self.tidy(entry)

    async def end(self) -> None:
        """The kernel has left, and told of the last uses of files or not: what was closed is closed. (What
        was being written waits in the journal, and is kept as half a file by the next mount.)
        """
        for entry in self.pending:
            if entry.live is not None and not entry.dirty:
                entry.writers = 1
                try:
                    await self.close(entry)
                except ReelfsError as error:
                    log.warning("%s waits for the next mount: %s", entry.key, error)

    def tidy(self, entry: Entry) -> None:
        """A file that nobody has open and that is not pending needs nothing here."""
        if entry.writers > 0 or entry.opened > 0 or self.pending.get(entry.key) is entry:
            return
        if not entry.key or entry.settled is not None:
            self.files.drop(entry)
        if entry in self.orphans:
            self.orphans.remove(entry)
            self._wake(entry)

    async def change(self, entry: Entry | None, stored: StoredObject, attributes: Attributes) -> Entry:
        """Other attributes for a file; its bytes stay where they are. Raises ReadOnly, Refused, Stale."""
        if entry is None and isinstance(stored, StagedObject):
            entry = stored.entry
        if entry is None:
            self.rules.check(stored.key, existing=True)
            entry = self._of(stored, attributes)
        at = self.pending.active(entry.key)
        if entry.key and at is not None and at is not entry:
            raise Stale(f"{entry.key} was replaced")
        entry.attributes = attributes
        if not entry.key:
            return entry
        if at is not entry:
            self._put(entry)
        if entry.is_ready():
            self.files.enqueue(entry)
        if entry.live is None or not entry.dirty:
            await self.journal.put([entry.row()])
        return entry

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

    async def unlink(self, folder: str, name: str, *, opened: int = 0) -> Entry | None:
        """Remove a file or link; who has it open keeps its bytes. Its entry, where it has one.

        opened: how many have it open that this does not know of; they are counted in the entry returned.
        """
        key = folder + name
        found = await self._existing(folder, name)
        if isinstance(found, FolderMark):
            raise IsADirectory(f"{key} is a folder")
        entry = self.pending.active(key)
        self.rules.check(key, existing=entry is None or (entry.base is not None and not entry.waiting))
        if entry is None or entry.base is not None:
            self.rules.count_delete(key)
        entry = entry or self._opened.get(key) or self._orphan(found, opened)
        await self._commit(self._remove(key, entry, found))
        await self._keep_folder(folder)
        return entry

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

    # -- folders and links ------------------------------------------------------------------------------

    async def mkdir(self, folder: str, name: str, attributes: Attributes) -> None:
        """A new empty folder. Raises AlreadyThere, ReadOnly, BadName."""
        key = f"{folder}{name}/"
        await self._check_new(folder, name + "/")
        if await self.metadata.find(folder, name) is not None:
            raise AlreadyThere(f"{key} is there already")
        self._check_free(folder, name)
        before = self.pending.active(key)
        base = before.base if before is not None else None
        entry = self.entry(key, Kind.FOLDER, base=base, attributes=attributes, waiting=True)
        self._put(entry)
        if before is None:
            self.metadata.made(key)
        await self._commit([entry])

    async def rmdir(self, folder: str, name: str) -> None:
        """Remove an empty folder. Raises NotEmpty, NotADirectory."""
        key = f"{folder}{name}/"
        if not isinstance(await self._existing(folder, name), FolderMark):
            raise NotADirectory(f"{folder}{name} is a file")
        self.rules.check(key, existing=False)
        await self._check_empty(key)
        marker = await self._marker(key)
        if any(e.settled is None and e.kind is not Kind.GONE for e in self.pending.inside(key)):
            raise NotEmpty(f"{key} is not empty")
        self._note(key)
        await self._commit(self._gone(key, marker))
        await self._keep_folder(folder)

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

    def folder_attributes(self, folder: str) -> Attributes:
        """Of a folder, as far as they were set here."""
        entry = self.pending.active(folder)
        if entry is not None and entry.kind is Kind.FOLDER:
            return entry.attributes
        return self.book.get(_as_object(folder)) or NOTHING

    async def change_folder(self, folder: str, attributes: Attributes) -> None:
        """Other attributes for a folder: with its marker, if that is still to be made, else in this place."""
        entry = self.pending.active(folder)
        if entry is not None and entry.kind is Kind.FOLDER:
            entry.attributes = attributes
            await self._commit([entry])
        self._folders.pop(folder, None)
        await self.book.learn(_as_object(folder), attributes)

    async def symlink(self, folder: str, name: str, target: str, attributes: Attributes) -> Entry:
        """A symbolic link. Raises AlreadyThere, ReadOnly, BadName, NoRoom."""
        await self._check_new(folder, name)
        key = folder + name
        if await self.metadata.find(folder, name) is not None:
            raise AlreadyThere(f"{key} is there already")
        self._check_free(folder, name)
        told = self._now(replace(attributes, target=target))
        told.metadata()
        entry = self.entry(key, Kind.LINK, attributes=told, base=self._base(key, None), waiting=True)
        self._put(entry)
        await self._commit([entry])
        return entry

    # -- moving -----------------------------------------------------------------------------------------

    async def rename(
        self,
        folder: str,
        name: str,
        new_folder: str,
        new_name: str,
        *,
        exclusive: bool = False,
        exchange: bool = False,
        opened: int = 0,
    ) -> Entry | None:
        """Move a file, link or folder. Raises what rename(2) fails with.

        exclusive: not over anything. exchange: what is at the new name comes to the old one (files only).
        opened: how many have open what is replaced, see `unlink`; its entry, where it has one.
        """
        found = await self._existing(folder, name)
        target = await self.metadata.find(new_folder, new_name)
        is_folder = isinstance(found, FolderMark)
        slash = "/" if is_folder else ""
        old, new = f"{folder}{name}{slash}", f"{new_folder}{new_name}{slash}"
        self.rules.check(old, existing=not is_folder and self._is_stored(old))
        self.rules.check(new, existing=not is_folder and target is not None and self._is_stored(new))
        self.rules.check_name(new_folder, new_name, await self._siblings(new_folder, new_name))
        if exchange:
            await self._exchange(old, found, new, target)
            return None
        if target is not None and exclusive:
            raise AlreadyThere(f"{new} is there already")
        if old == new:
            return None
        if not is_folder:
            if isinstance(target, FolderMark):
                raise IsADirectory(f"{new} is a folder")
            return await self._rename_file(old, found, new, target, opened)
        if target is not None and not isinstance(target, FolderMark):
            raise NotADirectory(f"{new} is a file")
        if new.startswith(old):
            raise BadName(f"{old} cannot be moved into itself")
        await self._rename_folder(old, new, replaced=target is not None)
        return None

    async def _rename_file(
        self, old: str, found: Stored, new: str, target: Stored | None, opened: int
    ) -> Entry | None:
        attributes = await self._attributes_of(found)
        local = await self._is_companion(*_split(new))
        there, target = self._again(old, found), self._again(new, target)
        if there is None or self.metadata.is_gone(_split(new)[0]):
            raise NotFound(f"no such file: {old if there is None else new}")
        if isinstance(target, FolderMark) or isinstance(there, FolderMark):
            raise Stale(f"{old} or {new} was replaced")
        replaced = self.pending.active(new) or self._opened.get(new)
        if replaced is None or replaced.kind is Kind.GONE:
            replaced = self._orphan(target, opened)
        base = self._base(new, target)
        changed = self._move(old, there, attributes, new, base, replaced)
        moved = self.pending.active(new)
        assert moved is not None
        if moved.local != local:
            moved.local, moved.waiting = local, False
            if moved.is_ready():
                self.files.enqueue(moved)
        changed += self._move_beside(old, new)
        await self._commit(changed)
        await self._keep_folder(_split(old)[0])
        return replaced

    def _move(
        self,
        old: str,
        found: Stored | None,
        attributes: Attributes | None,
        new: str,
        base: StoredObject | None,
        replaced: Entry | None,
        batch: int = 0,
    ) -> list[Entry]:
        """One file goes from a key to another, over what is there. What is pending because of that.

        attributes: None = asked for before it is sent.
        """
        entry = self.pending.active(old) or self._opened.pop(old, None)
        left = entry.base if entry is not None else self._base(old, found)
        if entry is None:
            assert isinstance(found, StoredObject)
            known = attributes or NOTHING
            if attributes is not None and attributes.mtime_ns is None:
                known = replace(attributes, mtime_ns=found.mtime_ns)  # the object it becomes is a new one
            entry = self.entry(old, Kind.FILE, base=found, origin=found, attributes=known)
            entry.asks = attributes is None
        if attributes is not None and attributes.target is not None:
            entry.kind = Kind.LINK
        self.abandon(entry)
        self.pending.discard(old)
        over, trying = self.pending.active(new), self._untried(entry)
        if over is not None:
            entry.trying = self._untried(over)
        if replaced is not None and replaced is not entry:
            self._unname(replaced)
        entry.key, entry.base, entry.batch, entry.settled, entry.stored = new, base, batch, None, None
        self._put(entry)
        if entry.is_ready():
            self.files.enqueue(entry)
        self._note(old)
        return [entry, *self._gone(old, left, batch, moved=True, trying=trying)]

    async def _rename_folder(self, old: str, new: str, *, replaced: bool) -> None:
        if replaced:
            await self._check_empty(new)
        began = trio.current_time()
        there = await self._everything(old)
        if len(there) + len(self.pending.below(old)) > MAX_MOVED:
            raise NotHere(f"{old} has more than {MAX_MOVED} files: copy it and remove it")
        marker = await self._marker(old)
        over = await self._marker(new) if replaced else None
        if self.metadata.is_gone(old) or self.metadata.is_gone(_split(new[:-1])[0]):
            raise NotFound(f"no such folder: {old}")
        there = self._since(old, began, there)
        known = {key: self.book.get(stored) for key, stored in there.items()}
        # From here on nothing waits until all of it is done.
        self._last += 1
        batch, changed = self._last, []
        keys = dict.fromkeys(there)
        keys |= dict.fromkeys(e.key for e in self.pending.below(old) if e.settled is None)
        keys |= dict.fromkeys(key for key in self._opened if key.startswith(old))
        folders = {old}
        for key in keys:
            entry, stored = self.pending.active(key), there.get(key)
            if entry is not None and entry.kind is Kind.GONE:
                continue
            at = key.rstrip("/").rfind("/") + 1
            while at > len(old):
                folders.add(key[:at])
                at = key.rfind("/", 0, at - 1) + 1
            if key.endswith("/"):
                folders.add(key)
                continue
            target = new + key[len(old) :]
            base = self._base(target, None)
            changed += self._move(key, stored, known.get(key), target, base, None, batch)
        for key in sorted(folders, key=len):
            entry = self.pending.active(key)
            is_marked = marker if key == old else there.get(key)
            moved = self.entry(new + key[len(old) :], Kind.FOLDER, waiting=True, batch=batch)
            moved.base = over if key == old else self._base(moved.key, None)
            if entry is not None:
                moved.attributes = entry.attributes
            self._put(moved)
            if not is_marked:
                self.metadata.made(moved.key)
            left = is_marked or (entry.base if entry else None)
            changed += [moved, *self._gone(key, left, batch, moved=True)]
        await self._commit(changed)
        await self._keep_folder(_split(old[:-1])[0])

    def _since(self, folder: str, began: float, there: dict[str, StoredObject]) -> dict[str, StoredObject]:
        """What the store has below a folder: what was listed, and what was sent since the listing began."""
        there = dict(there)
        for entry in self.pending.below(folder):
            if entry.settled is None or entry.settled < began:
                continue
            if entry.stored is not None:
                there[entry.key] = entry.stored
            elif entry.kind is Kind.GONE:
                there.pop(entry.key, None)
        return there

    async def _everything(self, folder: str) -> dict[str, StoredObject]:
        """All objects of the store below a folder, markers of folders included, by key."""
        found: dict[str, StoredObject] = {}
        token = None
        while True:
            page = await self.metadata.store.list(folder, delimiter="", token=token)
            found |= {stored.key: stored for stored in page.objects if stored.key != folder}
            if len(found) > MAX_MOVED:
                raise NotHere(f"{folder} has more than {MAX_MOVED} files: copy it and remove it")
            if (token := page.token) is None:
                return found

    async def _exchange(self, old: str, found: Stored, new: str, target: Stored | None) -> None:
        if target is None:
            raise NotFound(f"no such file: {new}")
        if isinstance(found, FolderMark) or isinstance(target, FolderMark):
            raise NotHere("folders cannot be exchanged")
        ours, theirs = await self._attributes_of(found), await self._attributes_of(target)
        one = self._to_exchange(old, self._again(old, found), ours)
        other = self._to_exchange(new, self._again(new, target), theirs)
        for entry in (one, other):
            self.abandon(entry)
            self._opened.pop(entry.key, None)
            self.pending.discard(entry.key)
        one.key, other.key = new, old
        one.base, other.base = other.base, one.base
        one.trying, other.trying = other.trying, one.trying
        for entry in (one, other):
            entry.batch, entry.settled, entry.stored = 0, None, None
            self._put(entry)
            if entry.is_ready():
                self.files.enqueue(entry)
        await self._commit([one, other])

    def _to_exchange(self, key: str, found: Stored | None, attributes: Attributes) -> Entry:
        if not isinstance(found, StoredObject):
            raise Stale(f"{key} was replaced")
        entry = self.pending.active(key) or self._opened.get(key)
        kind = Kind.FILE if attributes.target is None else Kind.LINK
        return entry or self.entry(key, kind, base=found, origin=found, attributes=attributes)

    # -- when a write is lost or cut off -----------------------------------------------------------------

    def _crowded(self, entry: Entry) -> None:
        """Its name is another file's by now (both were open, one was moved or replaced): it gets its own."""
        key = entry.key
        entry.key, entry.base, entry.batch = self._beside(key, "conflict"), None, 0
        log.warning("%s: another file has this name; what was written here is kept as %s", key, entry.key)

    async def conflict(self, entry: Entry, why: str, word: str = "conflict") -> None:
        """Somebody else was faster: what was to be written becomes a file of another name."""
        key = entry.key
        self.abandon(entry)
        entry.try_(None)
        if self._opened.get(key) is entry:
            del self._opened[key]
        self.pending.discard(key)
        self.metadata.forget(key)
        entry.key, entry.base = self._beside(key, word), None
        entry.batch = 0
        self._put(entry)
        moved = self._move_beside(key, entry.key)
        self.files.enqueue(entry)
        self.changed_behind(key)
        await self._commit([entry, *moved])
        await self._report({"path": key, "kept": entry.key, "why": why, "time": _stamp()})
        log.warning("%s: %s; what was written here is kept as %s", key, why, entry.key)

    async def damaged(self, entry: Entry, why: str) -> None:
        """A database that is not whole replaces nothing: it becomes a file of another name, as it is, and so
        does what lies beside it.
        """
        if entry.base is not None:
            await self.conflict(entry, why, "damaged")
        entry.whole = True
        others = [one for kind, one in companions.beside(self.pending, entry.key).items() if kind != "shm"]
        for one in others:
            one.local = False
            self.files.enqueue(one)
        await self._commit([entry, *others])

    async def not_removed(self, entry: Entry, why: str) -> None:
        """What was to be removed is another version by now: it stays."""
        self.pending.discard(entry.key)
        self.metadata.forget(entry.key)
        self.changed_behind(entry.key)
        await self.journal.put([], drop=[entry.ident])
        await self._report({"path": entry.key, "kept": entry.key, "why": why, "time": _stamp()})
        log.warning("%s: %s; it is not removed", entry.key, why)

    async def _report(self, told: dict[str, str]) -> None:
        """Tell the operator, after a restart, too."""
        self.conflicts = [*self.conflicts, told][-MAX_NOTES:]
        await self.journal.note("conflict", told)

    async def lost(self, entry: Entry, why: str) -> None:
        """What was to be moved is not there any more, and was never here."""
        key = entry.key
        entry.waiting = False
        if entry.live is None and entry.writers <= 0:
            self.pending.discard(key)
            await self.journal.put([], drop=[entry.ident])
        else:
            await self.journal.put([entry.row()])  # what is being written in its place is still to come
        self.metadata.forget(key)
        self.changed_behind(key)
        await self._report({"path": key, "kept": "", "why": why, "time": _stamp()})
        log.warning("%s: %s", key, why)

    def _beside(self, key: str, word: str) -> str:
        """A free name beside a file: `NAME (WORD TIME HOST).EXT`."""
        folder, name = _split(key)
        stem, dot, extension = name.rpartition(".")
        if not stem:
            stem, dot, extension = name, "", ""
        tail = f"{dot}{extension}"
        for count in range(1000):
            again = f" {count + 1}" if count else ""
            mark = f" ({word} {_stamp()} {host()}{again})"
            kept = stem.encode("utf-8", "surrogateescape")[: 255 - len((mark + tail).encode())]
            candidate = kept.decode("utf-8", "ignore") + mark + tail
            if self.pending.get(folder + candidate) is None:
                return folder + candidate
        raise ReelfsError(f"no free name beside {key}")

    async def recover(self, staging: Staging) -> Recovered:
        """What the journal has of earlier mounts is pending again. To be called once, first."""
        self.abandoned += [Abandoned(**told) for told in self.journal.notes("upload")]
        drafts: dict[int, Draft] = {}
        kept: list[tuple[str, str]] = []
        changed: list[Entry] = []
        total = files = strange = 0
        for row in self.journal.rows():
            try:
                entry = self.files.adopt(Entry.from_row(row, staging, drafts))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                log.error("the journal's row of %s cannot be read and stays there: %r", row.key, error)
                strange += 1
                continue
            changed.append(entry)
            if not await self._is_whole(entry, staging):
                self._dropped.add(entry.ident)
                continue
            if entry.kind is Kind.FILE and entry.live is not None:
                if entry.dirty and not self._is_database(entry):
                    changed.append(self._keep_half(entry))
                    kept.append((entry.key, changed[-1].key))
                else:
                    self.files.seal(entry)
            entry.dirty = False
            if entry.draft is None and entry.kind is Kind.FILE and not entry.origin:
                self._dropped.add(entry.ident)
                continue
            self._put(entry)
            if entry.trying is not None:
                entry.due = 0.0  # it may be there: what can be known is known soon
            files += entry.waiting
            total += entry.size
        await self._recover_databases()
        await self._commit(entry for entry in changed if self.pending.get(entry.key) is entry)
        for of, key in kept:
            await self._report({"path": of, "kept": key, "why": "it was being written", "time": _stamp()})
        for number in set() if strange else set(staging.numbers()) - self.drafts.keys():
            staging.remove(number)
        return Recovered(files, total, tuple(key for _, key in kept))

    async def _recover_databases(self) -> None:
        """Which parts belong together is known when all are there."""
        for entry in self.pending:
            if entry.kind is Kind.FILE and not entry.local and entry.waiting and entry.whole:
                entry.whole = not companions.unfinished(self.pending, entry.key)
        for entry in self.pending:
            if entry.local:
                try:
                    await self._closed_beside(entry)
                except ReelfsError as error:
                    log.warning(
                        "%s: what is left of a crash is looked at when it is opened: %s", entry.key, error
                    )

    async def _is_whole(self, entry: Entry, staging: Staging) -> bool:
        """Whether what a row names is there; a machine that lost power may have lost its last commits."""
        if isinstance(entry.trying, Draft) and not staging.has(entry.trying.number):
            entry.trying = None
        if entry.live is not None and not staging.has(entry.live.number):
            entry.live, entry.dirty = None, False
            if entry.draft is None and entry.origin is None:
                return await self._not_there(entry)
        if entry.draft is None or staging.has(entry.draft.number):
            return bool(entry.key)
        entry.draft = None
        return entry.live is not None or await self._not_there(entry)

    async def _not_there(self, entry: Entry) -> bool:
        log.error("%s: what was staged of it is not there any more", entry.key)
        why = "what was staged of it is not there any more"
        await self._report({"path": entry.key, "kept": "", "why": why, "time": _stamp()})
        return False

    def _keep_half(self, entry: Entry) -> Entry:
        """A file that was being written when all ended: what is there of it, under a name that says so."""
        half = self.entry(self._beside(entry.key, "recovered"), Kind.FILE, attributes=entry.attributes)
        half.draft, entry.live = entry.live, None
        assert half.draft is not None
        half.draft.salvage()
        half.draft.seal()
        half.waiting = True
        self._put(half)
        return half

    def _is_database(self, entry: Entry) -> bool:
        """SQLite makes its file whole again by itself, from what lies beside it."""
        content = entry.live or entry.draft
        if entry.local and content is not None:
            content.salvage()
            return True
        if content is None or content.missing(0, content.size):
            return False  # what the journal says of a file that is not all here may be older than the file
        content.salvage()
        return content.read(0, 16) == _SQLITE

    # -- facts ------------------------------------------------------------------------------------------

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

    # -- databases --------------------------------------------------------------------------------------

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

    async def _closed_beside(self, entry: Entry) -> None:
        """Nobody writes to a local file any more: it turns out to be none, or has a part of its database."""
        folder, name = entry.folder, entry.name
        named = names.companion(name)
        base = await self.metadata.find(folder, named[0]) if named is not None else None
        is_of_another = base is not None and await self._database_of(folder, name) is None
        if is_of_another or not companions.is_like_one(entry):
            entry.local = False
            self.files.enqueue(entry)
            await self._commit([entry])
        elif entry.sent is None and companions.holds_changes(entry) and isinstance(base, StoredObject):
            await self._unsettle(base)

    async def _unsettle(self, stored: StoredObject) -> None:
        """A database has changed by what lies beside it: it is to be sent, with that."""
        entry = await self.open(stored)
        entry.writers -= 1
        self._opened.pop(entry.key, None)
        self.taken(entry, stored)
        entry.whole, entry.sent = False, None
        entry.attributes = self._now(entry.attributes)
        if self.pending.active(entry.key) is not entry:
            entry.settled = entry.stored = None
            self._put(entry)
        if entry.is_ready():
            self.files.enqueue(entry)
        await self._commit([entry])

    def _move_beside(self, old: str, new: str) -> list[Entry]:
        """What belongs to a database goes where it goes."""
        moved = []
        for kind, entry in companions.beside(self.pending, old).items():
            if self.pending.active(f"{new}-{kind}") is None:
                self.pending.discard(entry.key)
                self.changed_behind(entry.key)
                entry.key, entry.stands_on = f"{new}-{kind}", ""
                self._put(entry)
                moved.append(entry)
        return moved

    async def arrived(self, key: str, stored: StoredObject, parts: Collection[Draft]) -> None:
        """The store has a database, with what was in these drafts beside it."""
        beside = companions.beside(self.pending, key).values()
        for entry in beside:
            entry.stands_on = stored.version
            if entry.live is None and entry.draft in parts:
                entry.sent = stored
        if beside:
            await self.journal.put([entry.row() for entry in beside])

    # -- steps -------------------------------------------------------------------------------------------

    def _now(self, attributes: Attributes) -> Attributes:
        return replace(attributes, mtime_ns=time.time_ns())

    async def _commit(self, changed: Iterable[Entry]) -> None:
        """Tell the journal of one step, whole: what is new, and what is pending no more."""
        rows = {entry.ident: entry.row() for entry in changed if self.pending.get(entry.key) is entry}
        dropped, self._dropped = self._dropped - rows.keys(), set()
        notes = [("upload", asdict(one)) for one in self._leaving]
        self.abandoned += self._leaving
        self._leaving = []
        await self.journal.put(rows.values(), drop=dropped, notes=notes)

    # -- one step ---------------------------------------------------------------------------------------

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
        folder = _split(key.removesuffix("/"))[0]
        self._folders[folder] = time.time_ns()
        while len(self._folders) > MAX_MOVED:
            del self._folders[next(iter(self._folders))]

    @property
    def drafts(self) -> Mapping[int, Draft]:
        """Staged contents of what is pending, by number."""
        found = (d for entry in self.pending for d in (entry.live, entry.draft, entry.trying))
        return {draft.number: draft for draft in found if isinstance(draft, Draft)}


_SQLITE = b"SQLite format 3\0"


def _as_object(folder: str) -> StoredObject:
    """What attributes of a folder are remembered under."""
    return StoredObject(folder, 0, "folder")


def _split(key: str) -> tuple[str, str]:
    cut = key.rfind("/") + 1
    return key[:cut], key[cut:]


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")


def host() -> str:
    """The name of this machine, as it can stand in a file name and in metadata."""
    import socket

    return (
        "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "-" for c in socket.gethostname())[:40]
        or "host"
    )
