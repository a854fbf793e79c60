"""Sends what is pending, in the background: each key brought from what the store has to what it is to have.

Every request carries its condition, so a write that lost a race is known and both are kept. A key is written
to once a second at most, by one request at a time, and whatever changed in between is sent as one. What fails
is tried again, for ever, ever less often: it is safe in the journal. Nothing is removed or written over while
something else is still to be copied from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import trio

from vfs.errors import Damaged, DeadlineExceeded, NotFound, ReelfsError, Stale
from vfs.spans import StoredObject
from vfs.storage import upload
from vfs.storage.base import Body, ObjectDetails, Part, Store
from vfs.write import companions, databases, trash
from vfs.write.attributes import Attributes
from vfs.write.drive import Abandoned, Drive, host
from vfs.write.pending import Entry, Kind
from vfs.write.staging import Draft

log = logging.getLogger("vfs.write")

Work = Callable[[Entry], Awaitable[None]]
#: What of an entry is sent: when it is another one, it is to be sent again.
Content = tuple[Draft | None, StoredObject | None, Attributes]

#: R2 takes one write a second to a key.
PER_KEY = 1.0
#: Bytes of bodies on their way at one time.
IN_MEMORY = 128 << 20
#: Keys written to at one time.
AT_ONCE = 8
#: Everything pending is looked through at most this often (seconds), unless somebody waits for it.
SCAN_PAUSE = 0.02
#: First and longest wait after a failure, seconds.
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
#: Bytes of both that are compared when an answer was lost and the etag does not tell.
MAX_COMPARED = 64 << 20


@dataclass(frozen=True, slots=True)
class Waiting:
    """One pending name, for people. bytes: to be sent. age: seconds. error: of the last attempt."""

    path: str
    what: str
    bytes: int
    age: float
    attempts: int
    error: str
    sending: bool


class Uploader:
    """delay: seconds a file is left alone after it was closed. trash_seconds: what is removed is kept so long
    below `.reelfs-trash/` (0 = not). settled: told of an entry the store has, and what it was before.
    """

    def __init__(
        self,
        store: Store,
        *,
        delay: float,
        trash_seconds: float,
        deadline: float,
        settled: Callable[[Entry, StoredObject | None], None],
        point: Callable[[str], object] = lambda name: None,
        single: int = upload.SINGLE,
    ) -> None:
        self.drive: Drive
        self._store = store
        self._delay = delay
        self._trash = trash_seconds
        self._deadline = deadline
        self._settled = settled
        self._point = point
        self._single = single
        self._room = upload.Room(IN_MEMORY)
        self._sending: dict[str, Entry] = {}
        self._fetching: set[int] = set()
        self._blocked: set[int] = set()
        self._last: dict[str, float] = {}
        self._planned, self._urgent = math.inf, False
        self._news = trio.Event()
        self._rests = trio.Event()
        self._hurried = 0
        self.sent_bytes = 0

    # -- asked by others --------------------------------------------------------------------------------

    def wake(self, entry: Entry) -> None:
        """Something waits."""
        entry.due = trio.current_time() + (self._delay if entry.error == "" else 0.0)
        if entry.due < self._planned:
            self._news.set()

    def is_sending(self, key: str) -> bool:
        """Whether a request that changes a key is on its way."""
        return key in self._sending

    def queue(self, below: str = "") -> list[Waiting]:
        """What waits, oldest first."""
        now = time.time()
        found = self._waiting(below)
        found.sort(key=lambda entry: entry.since)
        return [
            Waiting(
                e.key,
                e.kind.value,
                e.size if e.kind is Kind.FILE else 0,
                max(0.0, now - e.since),
                e.attempts,
                e.error,
                e.key in self._sending,
            )
            for e in found
        ]

    def watch(self, watch: Callable[[str, Callable[[], float]], None]) -> None:
        """Give the figures of the queue to who counts."""
        watch("queue_files", lambda: len(self.queue()))
        watch("queue_bytes", lambda: sum(one.bytes for one in self.queue()))
        watch("queue_age_seconds", lambda: max((one.age for one in self.queue()), default=0.0))
        watch("uploaded_bytes", lambda: self.sent_bytes)

    async def flush(self, below: str = "", *, patience: float | None = None) -> list[Waiting]:
        """Send everything at once; what is left when nothing more can be done. patience: seconds at most."""
        before: dict[int, int] = {}
        for entry in self._waiting(below):
            entry.due, before[entry.ident] = 0.0, entry.attempts
        with trio.move_on_after(patience if patience is not None else float("inf")), self._hurry():
            while any(self._is_moving(entry, before) for entry in self._waiting(below)) or any(
                entry.is_at_rest() for entry in self.drive.pending
            ):
                await self._change()
        return self.queue(below)

    def _waiting(self, below: str) -> list[Entry]:
        pending = self.drive.pending
        return [e for e in pending if e.settled is None and e.waiting and e.key.startswith(below)]

    def _is_moving(self, entry: Entry, before: Mapping[int, int]) -> bool:
        """Whether it was not tried yet since `before`, and waits for nothing that was tried in vain."""
        if entry.key in self._sending or self._news.is_set():
            return True
        has_failed = entry.error and entry.attempts > before.get(entry.ident, 0)
        return not has_failed and entry.ident not in self._blocked and entry.is_ready()

    async def wait_for(self, entry: Entry, draft: Draft) -> None:
        """The store has this content (or a later one). Raises the error of the last attempt when it takes
        longer than an operation may.
        """
        entry.due, self._urgent = 0.0, True
        self._news.set()
        with trio.move_on_after(self._deadline) as scope:
            while entry.waiting and entry.key and entry.draft is draft:
                await self._change()
        if scope.cancelled_caught:
            raise DeadlineExceeded(
                f"{entry.key} is not in the store yet ({entry.error or 'no answer'}): it stays in the journal"
            )

    def _hurry(self) -> _Hurry:
        return _Hurry(self)

    async def _change(self) -> None:
        await self._rests.wait()

    def _changed(self) -> None:
        self._news.set()

    # -- the loop ---------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            nursery.start_soon(self._drop_trash)
            while True:
                self._news = trio.Event()
                pause = self._start(nursery)
                self._planned = trio.current_time() + pause
                self._rests.set()
                self._rests = trio.Event()
                self._forget_old()
                with trio.move_on_after(pause):
                    await self._news.wait()
                if not self._hurried and not self._urgent:
                    await trio.sleep(SCAN_PAUSE)
                self._urgent = False

    def _start(self, nursery: trio.Nursery) -> float:
        """Begin what is due; seconds until something else will be."""
        now, pause = trio.current_time(), 3600.0
        while self.drive.abandoned:
            nursery.start_soon(self._abort, self.drive.abandoned.pop())
        active = [entry for entry in self.drive.pending if entry.settled is None]
        for entry in active:
            if entry.is_at_rest() and entry.key not in self._sending:
                self._begin(entry, self._rest, nursery)
        waiting = [entry for entry in active if entry.waiting]
        if not waiting:
            return pause
        askers = _askers([*self.drive.orphans, *active])
        batches = {e.batch for e in waiting if e.batch and e.kind is not Kind.GONE}
        self._blocked.clear()
        for entry in sorted(waiting, key=lambda e: (e.due, e.ident)):
            if len(self._sending) >= AT_ONCE:
                break
            if entry.key in self._sending or not entry.is_ready():
                continue
            is_early = entry.key.endswith("/") and self._is_too_early(entry)
            if is_early or (entry.kind is Kind.GONE and entry.batch in batches):
                self._blocked.add(entry.ident)
                continue
            if any(asker is not entry for asker in askers.get(entry.key, ())):
                self._make_way(entry, askers, nursery)
                continue
            due = entry.due if not (self._hurried and not entry.error) else 0.0
            if self._store.remote:
                due = max(due, self._last.get(entry.key, -PER_KEY) + PER_KEY)
            if due > now:
                pause = min(pause, due - now)
                continue
            self._begin(entry, self._send, nursery)
        return pause

    def _begin(self, entry: Entry, work: Work, nursery: trio.Nursery) -> None:
        self._sending[entry.key] = entry
        nursery.start_soon(self._one, entry, work)

    def _make_way(self, entry: Entry, askers: Mapping[str, Sequence[Entry]], nursery: trio.Nursery) -> None:
        """Something here is still to be read from what is to be replaced, or removed."""
        self._blocked.add(entry.ident)
        if entry.due > trio.current_time() and entry.error:
            return
        if entry.needs() and self._is_circle(entry, askers):
            self._begin(entry, self._stage, nursery)
        elif entry.kind is not Kind.GONE:
            for asker in askers[entry.key]:
                # Who has it open may do so for days: its bytes are fetched. (What is removed can wait.)
                if asker is not entry and not asker.waiting and asker.ident not in self._fetching:
                    self._fetching.add(asker.ident)
                    nursery.start_soon(self._fetch, asker)

    async def _fetch(self, entry: Entry) -> None:
        """All bytes of a file that is open here, before what the store has of it is replaced."""
        try:
            await self._stage(entry)
        except (ReelfsError, OSError) as error:
            log.warning("%s was replaced while it was open: what was not read of it yet is lost", error)
            if entry in self.drive.orphans:
                self.drive.orphans.remove(entry)
        finally:
            self._fetching.discard(entry.ident)
            self._changed()

    def _is_too_early(self, entry: Entry) -> bool:
        """A folder goes after what is in it."""
        return entry.kind is Kind.GONE and any(
            below.settled is None and below.waiting for below in self.drive.pending.below(entry.key)
        )

    def _is_circle(self, entry: Entry, askers: Mapping[str, Sequence[Entry]]) -> bool:
        """Whether what this one waits for waits, in the end, for this one."""
        seen: set[int] = set()
        ahead = [asker for asker in askers.get(entry.key, ()) if asker is not entry]
        while ahead:
            asker = ahead.pop()
            if asker is entry:
                return True
            if asker.ident not in seen and asker.waiting:
                seen.add(asker.ident)
                ahead += askers.get(asker.key, ())
        return False

    async def _one(self, entry: Entry, work: Work) -> None:
        """One attempt at one entry."""
        key = entry.key
        try:
            await work(entry)
            if entry.attempts and entry.error:
                log.info("%s: sent after %d attempts", key, entry.attempts + 1)
            entry.attempts, entry.error = 0, ""
        except ReelfsError as error:
            entry.attempts += 1
            if not entry.error:
                log.warning("%s is not sent yet, it waits in the journal: %s", key, error)
            entry.error = str(error)
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(entry.attempts - 1, 10))
            entry.due = trio.current_time() + random.uniform(wait / 2, wait)
        except Exception as error:
            entry.attempts += 1
            entry.error = repr(error)
            entry.due = trio.current_time() + LONGEST_WAIT
            log.error("%s is not sent, it waits in the journal", key, exc_info=error)
        finally:
            self._sending.pop(key, None)
            self._last[key] = trio.current_time()
            self._changed()

    async def _send(self, entry: Entry) -> None:
        if entry.kind is Kind.GONE:
            await self._remove(entry)
        elif entry.kind is Kind.FOLDER:
            await self._mark(entry)
        else:
            await self._store_file(entry)

    # -- files and links --------------------------------------------------------------------------------

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
                await self.drive.journal.put([entry.row()])
                if (entry.key, entry.base, _content(entry)) != (key, base, content):
                    return
                self._point("put")
                stored = await self._copied(source, key, base, metadata) if source is not None else None
                self._point("copied")
                if stored is None:
                    if draft is None and entry.kind is Kind.FILE and source is not None:
                        stored = await self._is_told(key, source.size, metadata)
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
        if changed:
            await trio.to_thread.run_sync(draft.sync)
            if self.drive.pending.active(entry.key) is entry:
                await self.drive.journal.put([entry.row()], durable=True)
        return True

    async def _resolve(self, entry: Entry) -> None:
        """Learn what became of a request that was never answered: its content may be there by now."""
        trying, key, base = entry.trying, entry.key, entry.base
        now = await self._now(key)
        found = now is not None and (base is None or now.object.version != base.version)
        is_ours = found and now is not None and await self._is_ours(now, trying)
        if entry.key == key and entry.trying is trying and entry.base == base:
            if is_ours and now is not None:
                entry.base = now.object
            entry.try_(None)

    async def _refused(
        self, entry: Entry, key: str, base: StoredObject | None, content: Draft | StoredObject | str | None
    ) -> StoredObject | None:
        """The store has another version than the one to be replaced, or what was sent before: that one."""
        now = await self._now(key)
        if now is not None and await self._is_ours(now, content):
            return now.object
        if entry.key != key or entry.base != base or self.drive.pending.active(key) is not entry:
            return None
        if now is None and base is not None:
            entry.base = None  # what was to be replaced is gone: nothing is lost by creating it
        elif now is None or (base is not None and now.object.version == base.version):
            raise ReelfsError(f"{key} changes all the time")
        else:
            self._point("conflict")
            await self.drive.conflict(entry, "another version was stored meanwhile")
        return None

    async def _is_told(self, key: str, size: int, metadata: Mapping[str, str]) -> StoredObject | None:
        """What is there, if it was given just these attributes: by a request that was never answered."""
        now = await self._now(key)
        is_told = now is not None and now.object.size == size and "mtime" in metadata
        return now.object if now is not None and is_told and dict(now.metadata) == dict(metadata) else None

    async def _now(self, key: str) -> ObjectDetails | None:
        try:
            return await self._store.head(key)
        except NotFound:
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
                await self.drive.journal.put([entry.row()])
            else:
                await self._abort(Abandoned(key, name, []))
            self._point("upload-noted")

        async def sent(part: Part, length: int) -> None:
            self.sent_bytes += length
            if entry.upload is not None and entry.key == key and entry.upload_of == mark:
                entry.parts[part.number] = part.version
                await self.drive.journal.put([entry.row()])
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
                await self.drive.journal.put([entry.row()])

    async def _is_ours(self, now: ObjectDetails, content: Draft | StoredObject | str | None) -> bool:
        """Whether what is there is just this content: the answer was lost, before a crash perhaps."""
        if content is None or isinstance(content, str):
            return now.object.size == 0 and Attributes.of(now.metadata).target == content
        if now.object.size != content.size:
            return False
        if isinstance(content, Draft) and now.object.version in await trio.to_thread.run_sync(
            _etags, content
        ):
            return True
        if now.object.size > MAX_COMPARED and self._store.remote:
            return False
        for offset in range(0, content.size, upload.LEAST_PART):
            length = min(upload.LEAST_PART, content.size - offset)
            theirs = await self._store.read(now.object, offset, length)
            if isinstance(content, Draft):
                ours: Body = await trio.to_thread.run_sync(content.read, offset, length)
            else:
                ours = await self._store.read(content, offset, length)
            if theirs != ours:
                return False
        return True

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
        await self.drive.journal.put([one.row() for one in rows], drop=drop)
        self._point("settled")
        await self.drive.book.learn(stored, told)

    def _settle(self, entry: Entry, stored: StoredObject | None) -> None:
        """It differs from the store's no more."""
        before = entry.object() if stored is not None else None
        entry.stored = stored
        entry.waiting = False
        self.drive.metadata.settle(entry)
        self._settled(entry, before)

    async def _settle_now(self, entry: Entry, stored: StoredObject | None) -> None:
        self._settle(entry, stored)
        await self.drive.journal.put([], drop=[entry.ident])
        self._point("settled")

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
        if entry.key and self.drive.pending.get(entry.key) is entry:
            await self.drive.journal.put([entry.row()])

    # -- folders and removals ---------------------------------------------------------------------------

    async def _mark(self, entry: Entry) -> None:
        """An empty folder lasts by its marker; one with something in it needs none."""
        key = entry.key
        stored = entry.base
        if stored is None and await self._has_something(key):
            if self.drive.pending.active(key) is entry:
                await self._settle_now(entry, None)
            return
        if stored is None:
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
        try:
            if self._trash and not entry.moved and not key.endswith("/") and not trash.holds(key):
                self._point("trash")
                self.drive.metadata.appeared(await trash.put(self._store, base))
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

    async def _drop_trash(self) -> None:
        """What is in the trash for longer than it is to be, once at the start and each hour."""
        while self._trash:
            try:
                await trash.empty(self._store, self._trash)
            except ReelfsError as error:
                log.info("the trash is looked at later: %s", error)
            await trio.sleep(3600)

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

    def _forget_old(self) -> None:
        """Settled entries that every listing knows of by now; times of keys."""
        now = trio.current_time()
        self.drive.pending.expire(now - self.drive.metadata.dir_ttl - 60.0)
        if len(self._last) > 10_000:
            self._last = {key: at for key, at in self._last.items() if now - at < PER_KEY}


class _Hurry:
    """Within it nothing waits for its delay."""

    def __init__(self, uploader: Uploader) -> None:
        self._uploader = uploader

    def __enter__(self) -> None:
        self._uploader._hurried += 1
        self._uploader._news.set()

    def __exit__(self, *error: object) -> None:
        self._uploader._hurried -= 1


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


def _askers(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Who needs what is stored under a key."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        for stored in entry.needs():
            found.setdefault(stored.key, []).append(entry)
    return found


def _etags(draft: Draft) -> set[str]:
    """What stores call this content: its MD5, or that of the parts it would be sent in."""
    step = upload.part_size(draft.size)
    whole, parts = hashlib.md5(usedforsecurity=False), []
    for offset in range(0, draft.size, step):
        body = draft.read(offset, min(step, draft.size - offset))
        whole.update(body)
        parts.append(hashlib.md5(body, usedforsecurity=False).digest())
    return {f'"{whole.hexdigest()}"', upload.multipart_etag(parts)}
