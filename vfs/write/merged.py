"""What exists on a mount that is written to: the store's names, and over them what is pending here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vfs import names
from vfs.cache.listing import FOLDER, Folder, FolderMark, Stored, restricted
from vfs.cache.metadata import MAX_POINTS, Metadata
from vfs.errors import NotFound
from vfs.spans import StoredObject
from vfs.write.pending import Entry, Kind, Pending, StagedObject


class MergedMetadata(Metadata):
    """`Metadata`, as who writes sees it. A listing this young also says what there is not: whoever copies a
    thousand files in asks for a thousand names that are not there.
    """

    def __init__(self, *args: Any, pending: Pending, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.pending = pending

    async def folder(self, prefix: str) -> Folder:
        """The merged listing. Raises NotFound."""
        if self._walks is not None:
            self._walks.note(prefix)
        if self.is_gone(prefix):
            raise NotFound(f"no such folder: {prefix}")
        listing = self._merge(prefix, "", await self._whole(prefix))
        is_empty = not listing.files and not listing.folders
        if is_empty and prefix and not self._is_made(prefix) and not await self._is_real(prefix):
            raise NotFound(f"no such folder: {prefix}")
        return listing

    async def find(self, prefix: str, name: str) -> Stored | None:
        """The merged child of a folder."""
        if self.is_gone(prefix):
            return None
        known = self._pending(prefix, name)
        if known is not _UNKNOWN and not await self.is_outlived(known):
            found: Stored | None = known
            return found
        return await super().find(prefix, name)

    async def is_outlived(self, found: Stored | None) -> bool:
        """Whether a local file lies beside another version of its database than the one it belongs to: what
        it had for that one was sent with it.
        """
        if not isinstance(found, StagedObject) or not found.entry.local or not found.entry.stands_on:
            return False
        named = names.companion(found.entry.name)
        now = await self.find(found.entry.folder, named[0]) if named is not None else None
        return _is_other(now, found.entry)

    async def starting(self, prefix: str, stem: str) -> Folder:
        """The merged children whose names start with `stem`."""
        if self.is_gone(prefix):
            return Folder(fetched=self._clock())
        if self.store.remote:
            return self._merge(prefix, stem, await super().starting(prefix, stem))
        return self._merge(prefix, stem, restricted(await self._whole(prefix), stem))

    async def current(self, stored: StoredObject) -> StoredObject:
        """The version now; what is pending here is always that."""
        entry = self.pending.get(stored.key)
        if isinstance(stored, StagedObject):
            mine = stored.entry
            return mine.object() if mine.settled is None else stored
        if entry is not None and entry.settled is None:
            if entry.kind is Kind.GONE:
                raise NotFound(f"{stored.key} was removed")
            return entry.object()
        try:
            now = await super().current(stored)
        except NotFound:
            if entry is not None:
                self.pending.discard(stored.key)
            raise
        if entry is not None and entry.stored is not None and entry.stored.version != now.version:
            self.pending.discard(stored.key)  # somebody else's by now
        return now

    async def has_something(self, prefix: str) -> bool:
        """Whether anything is in a folder, without making its merged listing."""
        if any(entry.kind is not Kind.GONE for entry in self.pending.inside(prefix)):
            return True
        listing = await self._whole(prefix)
        if self.pending.folders(prefix, listing.fetched):
            return True
        names = (*listing.files, *(f"{name}/" for name in listing.folders))
        return bool(listing.unpathable) or any(
            (entry := self.pending.get(prefix + name)) is None
            or entry.kind is not Kind.GONE
            or (entry.settled is not None and listing.fetched > entry.settled)
            for name in names
        )

    def link_target(self, stored: StoredObject) -> str | None:
        """Where a link leads, pending or not."""
        if isinstance(stored, StagedObject):
            return stored.entry.attributes.target
        return super().link_target(stored)

    def may_be_link(self, stored: StoredObject) -> bool:
        """What is pending is known."""
        return not isinstance(stored, StagedObject) and super().may_be_link(stored)

    def settle(self, entry: Entry) -> None:
        """The store has it: from now on it is among what the store has."""
        self.pending.settle(entry, self._clock())
        if entry.key.endswith("/") or entry.key == "":
            return
        prefix, name = entry.folder, entry.name
        known = self._know(prefix)
        if entry.stored is not None:
            if entry.stored.size == 0:
                target = entry.attributes.target or ""
                self._remember(self._links, (entry.key, entry.stored.version), target, MAX_POINTS)
            self._update(entry.stored)
            self._add(prefix, {name: entry.stored})
        elif known.listing is not None:
            known.listing.files.pop(name, None)
        known.points.pop(name, None)
        for stem in [stem for stem in known.stems if name.startswith(stem)]:
            del known.stems[stem]

    def appeared(self, key: str) -> None:
        """An object was stored besides what is pending: its folder is listed anew, those above have it."""
        at = key.rfind("/") + 1
        self.forget(key)
        while at > 0:
            above = key.rfind("/", 0, at - 1) + 1
            name = key[above : at - 1]
            self._know(key[:above]).points.pop(name, None)
            self._add(key[:above], {name: FOLDER})
            at = above

    def made(self, prefix: str) -> None:
        """A folder was made here: it is known to be empty."""
        self._know(prefix).listing = Folder(fetched=self._clock())

    def _rules_out(self, listing: Folder) -> bool:
        return True

    def is_gone(self, prefix: str) -> bool:
        """Whether the folder, or one above it, was removed here."""
        at = len(prefix)
        while at > 0:
            entry = self.pending.active(prefix[:at])
            if entry is not None:
                return entry.kind is Kind.GONE
            at = prefix.rfind("/", 0, at - 1) + 1
        return False

    def _is_made(self, prefix: str) -> bool:
        entry = self.pending.get(prefix)
        return entry is not None and entry.kind is Kind.FOLDER

    def _pending(self, prefix: str, name: str) -> Any:
        """What is pending says of a name, or `_UNKNOWN`."""
        implied, is_gone = self.pending.folders(prefix, self._clock() - self.dir_ttl), False
        for key in (f"{prefix}{name}/", f"{prefix}{name}"):
            entry = self.pending.get(key)
            if entry is None or (entry.settled is not None and self._is_old(entry.settled)):
                continue
            if entry.kind is Kind.FOLDER:
                return FOLDER
            if entry.kind is not Kind.GONE:
                return entry.object()
            is_gone = True
        if name in implied:
            return FOLDER
        return None if is_gone else _UNKNOWN

    def _is_old(self, settled: float) -> bool:
        """Whether every listing at hand is from after that."""
        return self._clock() - settled >= self.dir_ttl

    def _merge(self, prefix: str, stem: str, listing: Folder) -> Folder:
        """A listing with what is pending; itself where nothing is."""
        entries = [entry for entry in self.pending.inside(prefix) if entry.name.startswith(stem)]
        known = self.pending.folders(prefix, listing.fetched)
        implied = [name for name in known if name.startswith(stem)]
        if not entries and not implied:
            return listing
        merged = replace(listing, files=dict(listing.files), folders=set(listing.folders))
        for entry in entries:
            if entry.settled is not None and listing.fetched > entry.settled:
                continue
            name = entry.name
            if entry.key.endswith("/"):
                merged.folders.discard(name)
                if entry.kind is Kind.FOLDER:
                    merged.folders.add(name)
            else:
                merged.files.pop(name, None)
                if entry.kind is not Kind.GONE:
                    merged.files[name] = entry.object()
        for entry in entries:
            named = names.companion(entry.name) if entry.local and entry.stands_on else None
            if named is not None and _is_other(merged.files.get(named[0]), entry):
                merged.files.pop(entry.name, None)
        merged.folders.update(implied)
        for name in merged.folders & merged.files.keys():
            merged.shadowed[name] = merged.files.pop(name)
        return merged


def _is_other(database: Stored | None, entry: Entry) -> bool:
    """Whether a stored database is not the version that a local file belongs to."""
    stored = isinstance(database, StoredObject) and not isinstance(database, StagedObject)
    return stored and database.version != entry.stands_on  # type: ignore[union-attr]


_UNKNOWN: Any = object()


def is_folder(found: Stored | None) -> bool:
    """True for a folder."""
    return isinstance(found, FolderMark)
