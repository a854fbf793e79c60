"""Writes that lost a race or were cut off: kept beside what is there, told, and found again after a crash."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from vfs import names
from vfs.errors import ReelfsError, Stale
from vfs.write import companions
from vfs.write.besides import Besides
from vfs.write.draft import Draft
from vfs.write.journal import MAX_NOTES
from vfs.write.pending import Entry, Kind
from vfs.write.staging import Staging
from vfs.write.steps import Abandoned, host, split, stamp

log = logging.getLogger("vfs.write")

_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a mount found in its journal. files, bytes: waiting to be sent. kept: left half-written by a
    crash, kept under the names given.
    """

    files: int = 0
    bytes: int = 0
    kept: tuple[str, ...] = ()


class Losses(Besides):
    """Conflicts and recovery."""

    def crowded(self, entry: Entry) -> None:
        """Its name is another file's by now (both were open, one was moved or replaced): it gets its own."""
        key = entry.key
        entry.key, entry.base, entry.batch = self._beside(key, "conflict"), None, 0
        log.warning("%s: another file has this name; what was written here is kept as %s", key, entry.key)

    async def conflict(self, entry: Entry, why: str, word: str = "conflict") -> None:
        """Somebody else was faster: what was to be written becomes a file of another name."""
        key = entry.key
        entry.races.append(Stale(f"{key}: {why}; what was written here is kept under another name"))
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
        await self._report({"path": key, "kept": entry.key, "why": why, "time": stamp()})
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
        await self._report({"path": entry.key, "kept": entry.key, "why": why, "time": stamp()})
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
        await self._report({"path": key, "kept": "", "why": why, "time": stamp()})
        log.warning("%s: %s", key, why)

    def _beside(self, key: str, word: str) -> str:
        """A free name beside a file: `NAME (WORD TIME HOST).EXT`."""
        folder, name = split(key)
        for count in range(1000):
            again = f" {count + 1}" if count else ""
            mark = f"{word} {stamp()} {host()}{again}"
            candidate = names.marked(name, mark, min(names.NAME_MAX, self.rules.room(folder)))
            if self.pending.get(folder + candidate) is None:
                return folder + candidate
        raise ReelfsError(f"no free name beside {key}")

    async def recover(self, staging: Staging) -> Recovered:
        """What the journal has of earlier mounts is pending again. To be called once, first."""
        self.abandoned += [Abandoned(**told) for told in self.journal.notes("upload")]
        staging.remember(self.journal.bodies())
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
                if entry.dirty:
                    entry.live.sync()
                if entry.dirty and not self._is_database(entry):
                    changed.append(self._keep_half(entry))
                    kept.append((entry.key, changed[-1].key))
                else:
                    entry.live.trim()
                    self.files.seal(entry)
            entry.dirty = False
            if entry.draft is None and entry.kind is Kind.FILE and not entry.origin:
                self._dropped.add(entry.ident)
                continue
            self._put(entry)
            self._wake(entry, soon=entry.trying is not None)  # that may be there: what is, is known soon
            files += entry.waiting
            total += entry.size
        await self._recover_databases()
        self._forget_bodies(staging.forget_bodies(), drafts, all_known=not strange)
        await self._commit(entry for entry in changed if self.pending.get(entry.key) is entry)
        for of, key in kept:
            await self._report({"path": of, "kept": key, "why": "it was being written", "time": stamp()})
        for number in set() if strange else set(staging.numbers()) - self.drafts.keys():
            staging.remove(number)
        return Recovered(files, total, tuple(key for _, key in kept))

    def _forget_bodies(self, left: set[int], drafts: dict[int, Draft], *, all_known: bool) -> None:
        """Contents that no row needs; of a file that was written to after that, as soon as it is safe."""
        for number in left & drafts.keys():
            drafts[number].sync()
        self.journal.forget_bodies(left if all_known else left & drafts.keys())

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
        if isinstance(entry.trying, Draft) and not staging.has(entry.trying):
            entry.trying = None
        if entry.live is not None and not staging.has(entry.live):
            was_closed, entry.live, entry.dirty = not entry.dirty, None, False
            if entry.draft is None and entry.origin is None:
                return await self._not_there(entry) if was_closed else False
        if entry.draft is None or staging.has(entry.draft):
            return bool(entry.key)
        entry.draft = None
        return entry.live is not None or await self._not_there(entry)

    async def _not_there(self, entry: Entry) -> bool:
        log.error("%s: what was staged of it is not there any more", entry.key)
        why = "what was staged of it is not there any more"
        await self._report({"path": entry.key, "kept": "", "why": why, "time": stamp()})
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
