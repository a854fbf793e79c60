"""What is asked of the store for names without bytes (markers, removals), and what its answers settle.

Every request carries its condition. One that was never answered is remembered: what is there then may be its
doing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import asdict

from vfs.errors import NoRoom, NotFound, ReelfsError, Stale
from vfs.spans import StoredObject
from vfs.storage.base import ObjectDetails, Store
from vfs.write import same, trash
from vfs.write.drive import Drive
from vfs.write.pending import Entry, Kind
from vfs.write.steps import Abandoned

log = logging.getLogger("vfs.write")


class Answers:
    """trash_seconds: what is removed is kept so long below `.reelfs-trash/` (0 = not). settled: told of an
    entry the store has, and what it was before.
    """

    def __init__(
        self,
        store: Store,
        *,
        trash_seconds: float,
        settled: Callable[[Entry, StoredObject | None], None],
        point: Callable[[str], object] = lambda name: None,
    ) -> None:
        self.drive: Drive
        self._store = store
        self._trash = trash_seconds
        self._settled = settled
        self._point = point

    async def _safe(self) -> None:
        """Before the store is changed: what programs did until now outlives the machine, or a power cut would
        undo it here and not there. Where the disk is full that cannot be: sending is what makes room.
        """
        with contextlib.suppress(NoRoom):
            await self.drive.journal.safe()

    async def _now(self, key: str) -> ObjectDetails | None:
        try:
            return await self._store.head(key)
        except NotFound:
            return None

    async def _resolve(self, entry: Entry) -> None:
        """Learn what became of a request that was never answered: its content may be there by now."""
        trying, key, base = entry.trying, entry.key, entry.base
        now = await self._now(key)
        found = now is not None and (base is None or now.object.version != base.version)
        is_ours = found and now is not None and await same.is_content(self._store, now, trying)
        if entry.key == key and entry.trying is trying and entry.base == base:
            if is_ours and now is not None:
                entry.base = now.object
            entry.try_(None)

    def _settle(self, entry: Entry, stored: StoredObject | None) -> None:
        """It differs from the store's no more."""
        before = entry.object() if stored is not None else None
        entry.stored = stored
        entry.waiting = False
        self.drive.metadata.settle(entry)
        self._settled(entry, before)

    async def _settle_now(self, entry: Entry, stored: StoredObject | None) -> None:
        self._settle(entry, stored)
        await self.drive.journal.put([], drop=[entry.ident], lax=True)
        self._point("settled")

    async def _mark(self, entry: Entry) -> None:
        """An empty folder lasts by its marker; one with something in it needs none."""
        key = entry.key
        stored = entry.base
        if stored is None and await self._has_something(key):
            if self.drive.pending.active(key) is entry:
                await self._settle_now(entry, None)
            return
        if stored is None:
            await self._safe()
            self._point("mark")
            try:
                stored = await self._store.put(key, b"", replaces=None, metadata=entry.attributes.metadata())
            except Stale:
                stored = (await self._store.head(key)).object
            self._point("marked")
        at = self.drive.pending.active(key)
        if at is not entry:
            if at is not None:
                at.base = stored
                await self.drive.journal.put([at.row()])
            return
        entry.base = stored
        await self._settle_now(entry, stored)

    async def _has_something(self, key: str) -> bool:
        """Whether there is more in a folder than what goes soon."""
        page = await self._store.list(key, delimiter="")
        leaving = {stored.key for stored in page.objects if self._is_leaving(stored.key)}
        return any(stored.key not in (key, *leaving) for stored in page.objects)

    def _is_leaving(self, key: str) -> bool:
        entry = self.drive.pending.active(key)
        return entry is not None and entry.kind is Kind.GONE

    async def _remove(self, entry: Entry) -> None:
        key = entry.key
        if entry.trying is not None:
            await self._resolve(entry)
        base = entry.base
        if base is None and key.endswith("/") and (now := await self._now(key)) is not None:
            base = now.object  # a marker that was being made when this was cut off
        if base is None:
            if self.drive.pending.active(key) is entry:
                await self._settle_now(entry, None)
            return
        await self._safe()
        try:
            if self._trash and not entry.moved and not key.endswith("/") and not trash.holds(key):
                self._point("trash")
                if (kept := await trash.put(self._store, base, self.drive.rules.room)) is not None:
                    self.drive.metadata.appeared(kept)
            self._point("delete")
            await self._store.delete(base)
        except NotFound:
            pass
        except Stale:
            if self.drive.pending.active(key) is entry:
                await self.drive.not_removed(entry, "another version was stored meanwhile")
            return
        self._point("deleted")
        at = self.drive.pending.active(key)
        if at is not entry:
            if at is not None and at.base == base:
                at.base = None
                await self.drive.journal.put([at.row()])
            return
        entry.base = None
        await self._settle_now(entry, None)

    async def _abort(self, left: Abandoned) -> None:
        try:
            names = [left.upload]
            if left.upload is None:
                there = await self._store.uploads(left.key)
                names = [name for name, key in there.items() if key == left.key and name not in left.others]
            for name in names:
                await self._store.abort_upload(left.key, str(name))
            await self.drive.journal.forget_notes("upload", lambda told: told == asdict(left))
        except ReelfsError as error:
            log.info("an upload of %s is left for the next mount to drop: %s", left.key, error)
