"""The names of a mount that is written to: create, remove, move. Each is whole in the journal or not at all.

Facts are gathered first (that may wait for the store); then memory changes in one step without waiting, and
the journal is told. What the store has is changed by the uploader, later.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from vfs.cache.listing import FolderMark
from vfs.errors import (
    AlreadyThere,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    ReelfsError,
    Stale,
)
from vfs.spans import StoredObject
from vfs.write.attributes import Attributes
from vfs.write.book import NOTHING
from vfs.write.losses import Losses
from vfs.write.moves import Moves
from vfs.write.pending import Entry, Kind, StagedObject
from vfs.write.steps import as_object

log = logging.getLogger("vfs.write")


class Drive(Moves, Losses):
    """What can be done with names and attributes; see `steps.Steps`."""

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

    async def change(self, entry: Entry | None, stored: StoredObject, attributes: Attributes) -> Entry:
        """Other attributes for a file; its bytes stay where they are. Raises ReadOnly, Refused, Stale."""
        if entry is None and isinstance(stored, StagedObject):
            entry = stored.entry
        if entry is None:
            self.rules.check(stored.key, existing=True)
            entry = self._of(stored, attributes)
        elif entry.key:
            self.check_writable(entry)
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

    def folder_attributes(self, folder: str) -> Attributes:
        """Of a folder, as far as they were set here."""
        entry = self.pending.active(folder)
        if entry is not None and entry.kind is Kind.FOLDER:
            return entry.attributes
        return self.book.get(as_object(folder)) or NOTHING

    async def change_folder(self, folder: str, attributes: Attributes) -> None:
        """Other attributes for a folder: with its marker, if that is still to be made, else in this place."""
        entry = self.pending.active(folder)
        if entry is not None and entry.kind is Kind.FOLDER:
            entry.attributes = attributes
            await self._commit([entry])
        self._folders.pop(folder, None)
        await self.book.learn(as_object(folder), attributes)

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
