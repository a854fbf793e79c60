"""Moving files and folders: one step in the journal, copied within the store, the old names go last."""

from __future__ import annotations

from dataclasses import replace

import trio

from vfs.cache.listing import FolderMark, Stored
from vfs.errors import (
    AlreadyThere,
    BadName,
    IsADirectory,
    NotADirectory,
    NotFound,
    NotHere,
    Stale,
)
from vfs.spans import StoredObject
from vfs.write.attributes import Attributes
from vfs.write.besides import Besides
from vfs.write.book import NOTHING
from vfs.write.pending import Entry, Kind
from vfs.write.steps import MAX_MOVED, split


class Moves(Besides):
    """rename(2), and what the store is asked for it."""

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
        local = await self._is_companion(*split(new))
        there, target = self._again(old, found), self._again(new, target)
        if there is None or self.metadata.is_gone(split(new)[0]):
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
        await self._keep_folder(split(old)[0])
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
        if self.metadata.is_gone(old) or self.metadata.is_gone(split(new[:-1])[0]):
            raise NotFound(f"no such folder: {old}")
        there = self._since(old, began, there)
        known = {key: self.book.get(stored) for key, stored in there.items()}
        keys = dict.fromkeys(there)
        keys |= dict.fromkeys(e.key for e in self.pending.below(old) if e.settled is None)
        keys |= dict.fromkeys(key for key in self._opened if key.startswith(old))
        for key in keys:
            self.rules.check_key(new + key[len(old) :])
        # From here on nothing waits until all of it is done.
        self._last += 1
        batch, changed = self._last, []
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
        await self._keep_folder(split(old[:-1])[0])

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
