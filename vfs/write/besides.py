"""What lies beside a database while it is written to goes where it goes, and goes with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from vfs import names
from vfs.spans import StoredObject
from vfs.write import companions
from vfs.write.draft import Draft
from vfs.write.pending import Entry, Kind
from vfs.write.steps import Steps, split


class Besides(Steps):
    """Databases and their companions."""

    _looked_at: Mapping[str, tuple[str, ...]] = MappingProxyType({})

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

    async def look_at_open_databases(self) -> None:
        """Those that programs are writing to, and do not close: each that has changed since this was called
        last is to be sent, as a snapshot.
        """
        states = {key: self._state(key) for key in self._open_databases()}
        before, self._looked_at = self._looked_at, states
        for key, state in states.items():
            found = await self.metadata.find(*split(key)) if state != before.get(key) else None
            if isinstance(found, StoredObject):
                await self._unsettle(found, interim=True)

    def _open_databases(self) -> set[str]:
        """Keys of databases of which a part is being written."""
        found = set()
        for entry in self.pending.unsettled.values():
            named = names.companion(entry.name)
            if entry.live is None or entry.kind is not Kind.FILE:
                continue
            if entry.local and named is not None and companions.holds_changes(entry):
                found.add(entry.folder + named[0])
            elif companions.is_part(self.pending, entry) and companions.is_database(entry):
                found.add(entry.key)
        return found

    def _state(self, key: str) -> tuple[str, ...]:
        """Changes with what a database and what lies beside it have in them."""
        parts = [entry for kind, entry in companions.beside(self.pending, key).items() if kind != "shm"]
        database = self.pending.active(key)
        return tuple(entry.version for entry in (*parts, *([database] if database is not None else [])))

    async def _unsettle(self, stored: StoredObject, *, interim: bool = False) -> None:
        """A database has changed by what lies beside it: it is to be sent, with that."""
        entry = await self.open(stored)
        entry.writers -= 1
        entry.interim = interim
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
