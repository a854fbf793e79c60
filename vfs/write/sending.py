"""Sending one pending file: what is requested of the store, and what its answer means (see `answers`).

A write that lost a race is known by its condition, and both are kept.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import trio

from vfs.errors import Damaged, NotFound, ReelfsError, Stale
from vfs.spans import StoredObject
from vfs.storage import upload
from vfs.storage.base import Body, Part, Store
from vfs.write import companions, databases, same
from vfs.write.answers import Answers
from vfs.write.attributes import Attributes
from vfs.write.draft import Draft
from vfs.write.pending import Entry, Kind
from vfs.write.steps import Abandoned, host

log = logging.getLogger("vfs.write")

#: What of an entry is sent: when it is another one, it is to be sent again.
Content = tuple[Draft | None, StoredObject | None, Attributes]
#: Bytes of bodies on their way at one time.
IN_MEMORY = 128 << 20


class Sender(Answers):
    """Files. single: bytes up to which a body is sent by one request."""

    def __init__(self, store: Store, *, single: int = upload.SINGLE, **settings: Any) -> None:
        super().__init__(store, **settings)
        self._single = single
        self._room = upload.Room(IN_MEMORY)
        self.sent_bytes = 0

    async def _send(self, entry: Entry) -> None:
        if entry.kind is Kind.GONE:
            await self._remove(entry)
        elif entry.kind is Kind.FOLDER:
            await self._mark(entry)
        else:
            await self._store_file(entry)

    async def _ask(self, entry: Entry) -> None:
        """A file that was moved with its folder keeps its metadata, and its time."""
        origin = entry.origin
        if not entry.asks or origin is None:
            return
        try:
            before = await self.drive.book.ask(origin)
        except Stale:
            return  # the copy itself will say so
        if entry.origin == origin:
            entry.asks = False
            if before.mtime_ns is None:
                before = replace(before, mtime_ns=origin.mtime_ns)
            entry.attributes = entry.attributes.over(before)
            if entry.attributes.target is not None:
                entry.kind = Kind.LINK

    async def _store_file(self, entry: Entry) -> None:
        await self._ask(entry)
        try:
            await self._store_content(entry)
        except Damaged as error:
            await self.drive.damaged(entry, str(error))

    async def _store_content(self, entry: Entry) -> None:
        key, base, draft = entry.key, entry.base, entry.draft
        content = _content(entry)
        source = entry.sent or (entry.origin if draft is None and entry.kind is Kind.FILE else None)
        if not entry.whole:
            source = None
        body = companions.Body(draft)
        async with AsyncExitStack() as stack:
            if draft is not None:
                stack.callback(draft.hold().release)
            try:
                if draft is not None and not await self._make_whole(entry, draft):
                    return
                if source is None:
                    whole = companions.body(self.drive.files, self.drive.pending, entry)
                    body = await stack.enter_async_context(whole)
                    if body.draft is draft and draft is not None and not body.parts:
                        source = await self.drive.twins.find(draft)
                metadata = await self._metadata(entry, base, numbered=source is None)
                sending = body.draft or source or entry.attributes.target
                if entry.trying not in (None, draft, source, sending):
                    await self._resolve(entry)
                if (entry.key, entry.base, _content(entry)) != (key, base, content):
                    return  # something else is to be sent by now
                entry.try_(sending)
                await self.drive.journal.put([entry.row()], lax=True)
                await self._safe()
                if (entry.key, entry.base, _content(entry)) != (key, base, content):
                    return
                self._point("put")
                stored = await self._copied(source, key, base, metadata) if source is not None else None
                self._point("copied")
                if stored is None:
                    if draft is None and entry.kind is Kind.FILE and source is not None:
                        stored = same.is_told(await self._now(key), source.size, metadata)
                        if stored is None:
                            await self._lost(entry, source)
                            return
                    else:
                        stored = await self._put(entry, key, base, body.draft, metadata)
            except (Stale, NotFound):
                found = await self._refused(entry, key, base, body.draft or source or entry.attributes.target)
                if found is None:
                    return
                stored = found
            self._point("sent")
            told = replace(entry.attributes, user=_user(metadata))
            await self.drive.arrived(key, stored, body.parts)
            await self._arrived(entry, key, stored, content, told)
            if body.parts and entry.settled is not None:
                self.drive.files.drop_settled(entry)  # what is staged is not all of it

    async def _make_whole(self, entry: Entry, draft: Draft) -> bool:
        """Fetch what is missing of what is to be sent, and of what is being written on top of it: what they
        stand on may be about to be replaced. Whether that was possible.
        """
        live = entry.live
        try:
            changed = await self.drive.files.fill(entry, draft)
            if live is not None and live.base is not None:
                changed = await self.drive.files.fill(entry, live) or changed
        except (Stale, NotFound):
            count = sum(one.forsake() for one in (draft, live) if one is not None)
            why = f"the version it was written on is gone: {count} bytes that were not written are zeros"
            if self.drive.pending.active(entry.key) is entry:
                await self.drive.conflict(entry, why)
            return False
        if changed or draft.own != draft.safe:
            await self._on_disk(entry)
        return True

    async def _on_disk(self, entry: Entry) -> None:
        """What was fetched of it outlives the machine, before what it was fetched from is replaced."""
        for staged in (entry.draft, entry.live):
            if staged is not None:
                await trio.to_thread.run_sync(staged.sync)
        if entry.key and self.drive.pending.active(entry.key) is entry:
            await self.drive.journal.put([entry.row()], durable=True)

    async def _refused(
        self, entry: Entry, key: str, base: StoredObject | None, content: Draft | StoredObject | str | None
    ) -> StoredObject | None:
        """The store has another version than the one to be replaced, or what was sent before: that one."""
        now = await self._now(key)
        if now is not None and await same.is_content(self._store, now, content):
            return now.object
        if entry.key != key or entry.base != base or self.drive.pending.active(key) is not entry:
            return None
        if now is None and base is not None:
            entry.base = None  # what was to be replaced is gone: nothing is lost by creating it
        elif now is None or (base is not None and now.object.version == base.version):
            raise ReelfsError(f"{key} changes all the time")
        elif base is not None and await same.is_version(self._store, now.object, base):
            if entry.base == base:
                entry.base = now.object  # only what is told of it is another
        else:
            self._point("conflict")
            await self.drive.conflict(entry, "another version was stored meanwhile")
        return None

    async def _metadata(self, entry: Entry, base: StoredObject | None, *, numbered: bool) -> dict[str, str]:
        """Of the file; what the object that it replaces has besides is kept. numbered: a database has other
        bytes than that one, so another version, too.
        """
        attributes, before = entry.attributes, Attributes()
        is_database = numbered and companions.is_database(entry)
        if base is not None and (is_database or not attributes.user):
            with contextlib.suppress(Stale):  # the write itself will say so
                before = await self.drive.book.ask(base)
        user = attributes.user or before.user
        if is_database:
            user = _numbered(user, before.user if base is not None else None, attributes.mtime_ns)
        return replace(attributes, user=user).metadata()

    async def _copied(
        self, source: StoredObject, key: str, base: StoredObject | None, metadata: Mapping[str, str]
    ) -> StoredObject | None:
        """Copied within the store, or None where it has the source no more."""
        try:
            return await self._store.copy(source, key, replaces=base, metadata=metadata)
        except (Stale, NotFound):
            try:
                now = (await self._store.head(source.key)).object
            except NotFound:
                return None
            if now.version == source.version:
                raise
            return None

    async def _put(
        self,
        entry: Entry,
        key: str,
        base: StoredObject | None,
        draft: Draft | None,
        metadata: Mapping[str, str],
    ) -> StoredObject:
        size = draft.size if draft is not None else 0
        mark = f"{draft.number if draft else 0} {json.dumps(metadata, sort_keys=True)}"
        if entry.upload is not None and entry.upload_of != mark:
            await self.drive.begin_anew(entry)  # of another content: its parts must not be mixed with these
        if entry.upload is None and (size > self._single or entry.starting is not None):
            await self._look_for_ours(entry, key)

        async def read(offset: int, length: int) -> Body:
            assert draft is not None
            return await trio.to_thread.run_sync(draft.read, offset, length)

        async def began(name: str) -> None:
            self._point("upload-began")
            if entry.key == key:
                entry.upload, entry.upload_of, entry.parts, entry.starting = name, mark, {}, None
                await self.drive.journal.put([entry.row()], lax=True)
            else:
                await self._abort(Abandoned(key, name, []))
            self._point("upload-noted")

        async def sent(part: Part, length: int) -> None:
            self.sent_bytes += length
            if entry.upload is not None and entry.key == key and entry.upload_of == mark:
                entry.parts[part.number] = part.version
                await self.drive.journal.put([entry.row()], lax=True)
                self._point("part-sent")

        done = {number: Part(number, version) for number, version in entry.parts.items()}
        try:
            return await upload.send(
                self._store,
                key,
                size,
                read,
                replaces=base,
                metadata=metadata,
                done=done,
                upload=entry.upload,
                began=began,
                sent=sent,
                single=self._single,
                room=self._room,
            )
        except NotFound:
            if entry.upload_of == mark and entry.upload is not None:
                # The upload is gone, since it was completed perhaps, or what was to be replaced is.
                entry.upload, entry.upload_of, entry.parts = None, "", {}
            raise
        except Stale:
            if entry.upload_of == mark:
                entry.upload, entry.upload_of, entry.parts = None, "", {}
            raise

    async def _look_for_ours(self, entry: Entry, key: str) -> None:
        """Before an upload in parts begins: its name is told by the store, and a crash may come before the
        journal has it. What is there now and was not before the attempt that was cut off is ours.
        """
        there = [name for name, of in (await self._store.uploads(key)).items() if of == key]
        if entry.starting is not None:
            for name in set(there).difference(entry.starting):
                await self._store.abort_upload(key, name)
        else:
            entry.starting = there
            if self.drive.pending.active(key) is entry:
                await self.drive.journal.put([entry.row()], durable=True)

    async def _arrived(
        self, entry: Entry, key: str, stored: StoredObject, content: Content, told: Attributes
    ) -> None:
        """The store has what was sent; what changed meanwhile waits on. Memory changes in one step."""
        rows, drop = [], []
        at = self.drive.pending.active(key)
        if at is not None and at is not entry:
            at.base = stored  # it was moved or removed while it was sent
            at.try_(None)
            rows.append(at)
        is_same = content == _content(entry)
        if entry.key != key:
            if entry.key and is_same:
                entry.sent = stored
                rows.append(entry)
        else:
            entry.base = stored
            entry.try_(None)
            entry.interim = False
            if content[0] is not None:
                entry.arrived = content[0].number
            if entry.origin is not None and entry.origin == content[1]:
                entry.origin = stored
                content = (content[0], stored, content[2])
            entry.upload, entry.upload_of, entry.parts, entry.starting = None, "", {}, None
            if is_same:
                entry.waiting, entry.sent, entry.since, entry.batch = False, stored, 0.0, 0
            else:
                entry.sent = stored if content[:2] == _content(entry)[:2] else None
                entry.due = 0.0
                entry.waiting = entry.is_ready()  # what is being written waits once it is closed
            if is_same and entry.live is None and entry.writers <= 0:
                self._settle(entry, stored)
                drop.append(entry.ident)
            elif self.drive.pending.get(key) is entry:
                rows.append(entry)
        await self.drive.journal.put([one.row() for one in rows], drop=drop, lax=True)
        self._point("settled")
        await self.drive.book.learn(stored, told)

    async def _rest(self, entry: Entry) -> None:
        """It was opened for writing and nothing more was written, or nothing came of it."""
        if entry.sent is not None and entry.sent == entry.base:
            await self._settle_now(entry, entry.base)
        else:
            self.drive.pending.discard(entry.key)
            self.drive.files.drop(entry)
            await self.drive.journal.put([], drop=[entry.ident])

    async def _lost(self, entry: Entry, source: StoredObject) -> None:
        """Somebody removed or replaced what was moved here, or given attributes, before it was copied."""
        is_same = entry.draft is None and entry.origin == source
        if is_same and self.drive.pending.get(entry.key) is entry:
            await self.drive.lost(entry, f"{source.key} was replaced by another client before it was copied")

    async def _stage(self, entry: Entry) -> None:
        """Fetch all of a file, so that it needs nothing of the store any more: of one that changes places
        with another, or is open and replaced.
        """
        origin = entry.origin
        if entry.draft is None and entry.live is None and origin is not None:
            draft = self.drive.files.staging.create(origin).hold()
            await self.drive.files.fill(entry, draft)
            draft.seal()
            if entry.draft is not None or entry.live is not None or entry.origin is not origin:
                draft.release()
                return
            entry.draft, entry.origin, entry.sent = draft, None, None
        else:
            for staged in (entry.draft, entry.live):
                if staged is not None:
                    await self.drive.files.fill(entry, staged)
            if entry.sent is not None and entry.draft is not None:
                entry.sent = None
        await self._on_disk(entry)


def _content(entry: Entry) -> Content:
    return entry.draft, entry.origin, entry.attributes


def _user(metadata: Mapping[str, str]) -> Mapping[str, str]:
    return Attributes.of(metadata).user


def _numbered(
    user: Mapping[str, str], before: Mapping[str, str] | None, mtime_ns: int | None
) -> Mapping[str, str]:
    """Metadata of a database: the version after the one it replaces, who wrote it, and when (the same at
    each attempt). before: of what it replaces, None for nothing: then it keeps the number it has.
    """
    if before is None and databases.VERSION in user:
        return user
    number = {databases.VERSION: before[databases.VERSION]} if before and databases.VERSION in before else {}
    rest = {name: text for name, text in user.items() if name != databases.VERSION}
    written = datetime.fromtimestamp((mtime_ns or time.time_ns()) // 10**9, UTC)
    return databases.next_metadata(rest | number, writer=f"{host()}/reelfs", now=written)
