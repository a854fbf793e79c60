"""Sends what is pending, in the background: each key brought from what the store has to what it is to have.

Every request carries its condition, so a write that lost a race is known and both are kept. A key is written
to once a second at most, by one request at a time, and whatever changed in between is sent as one. What fails
is tried again, for ever, ever less often: it is safe in the journal. Nothing is removed or written over while
something else is still to be copied from it.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import trio

from vfs.errors import DeadlineExceeded, NotFound, ReelfsError, Stale
from vfs.spans import StoredObject
from vfs.storage import upload
from vfs.storage.base import Body, Part, Store
from vfs.write import trash
from vfs.write.drive import Drive
from vfs.write.pending import Entry, Kind
from vfs.write.staging import Draft

log = logging.getLogger("vfs.write")

#: R2 takes one write a second to a key.
PER_KEY = 1.0
#: Keys written to at one time.
AT_ONCE = 8
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
        self._sending: dict[str, Entry] = {}
        self._last: dict[str, float] = {}
        self._news = trio.Event()
        self._rests = trio.Event()
        self._hurried = 0
        self.sent_bytes = 0

    # -- asked by others --------------------------------------------------------------------------------

    def wake(self, entry: Entry) -> None:
        """Something waits."""
        entry.due = trio.current_time() + (self._delay if entry.error == "" else 0.0)
        self._news.set()

    def is_sending(self, key: str) -> bool:
        """Whether a request that changes a key is on its way."""
        return key in self._sending

    def queue(self, below: str = "") -> list[Waiting]:
        """What waits, oldest first."""
        now = time.time()
        found = [e for e in self.drive.pending if e.settled is None and e.waiting and e.key.startswith(below)]
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
        with trio.move_on_after(patience if patience is not None else float("inf")), self._hurry():
            while (left := self.queue(below)) and not all(one.attempts and one.error for one in left):
                await self._change()
        return self.queue(below)

    async def wait_for(self, entry: Entry, draft: Draft) -> None:
        """The store has this content (or a later one). Raises the error of the last attempt when it takes
        longer than an operation may.
        """
        entry.due = 0.0
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
        self._rests.set()
        self._rests = trio.Event()
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
                self._forget_old()
                with trio.move_on_after(pause):
                    await self._news.wait()

    def _start(self, nursery: trio.Nursery) -> float:
        """Begin what is due; seconds until something else will be."""
        now, pause = trio.current_time(), 3600.0
        while self.drive.abandoned:
            nursery.start_soon(self._abort, *self.drive.abandoned.pop())
        waiting = [e for e in self.drive.pending if e.settled is None and e.waiting]
        if not waiting:
            return pause
        askers = [*self.drive.orphans, *waiting]
        needed = {need.key: entry for entry in askers if (need := entry.needs()) is not None}
        batches = {e.batch for e in waiting if e.batch and e.kind is not Kind.GONE}
        for entry in sorted(waiting, key=lambda e: (e.due, e.ident)):
            if entry.key in self._sending or len(self._sending) >= AT_ONCE:
                continue
            if entry.kind is Kind.GONE and entry.batch in batches:
                continue
            if entry.key.endswith("/") and self._is_too_early(entry):
                continue
            asker = needed.get(entry.key)
            if asker is not None and asker is not entry:
                if self._is_circle(entry, needed):
                    self._sending[entry.key] = entry
                    nursery.start_soon(self._one, entry, self._stage)
                continue
            due = entry.due if not (self._hurried and not entry.error) else 0.0
            if self._store.remote:
                due = max(due, self._last.get(entry.key, -PER_KEY) + PER_KEY)
            if due > now:
                pause = min(pause, due - now)
                continue
            self._sending[entry.key] = entry
            nursery.start_soon(self._one, entry, self._send)
        return pause

    def _is_too_early(self, entry: Entry) -> bool:
        """A folder goes after what is in it."""
        return entry.kind is Kind.GONE and any(
            below.settled is None and below.waiting for below in self.drive.pending.below(entry.key)
        )

    def _is_circle(self, entry: Entry, needed: Mapping[str, Entry]) -> bool:
        """Whether what this one waits for waits, in the end, for this one."""
        seen: set[int] = set()
        asker = needed.get(entry.key)
        while asker is not None and asker.ident not in seen:
            if asker is entry:
                return entry.needs() is not None
            seen.add(asker.ident)
            asker = needed.get(asker.key)
        return False

    async def _one(self, entry: Entry, work: Callable[[Entry], object]) -> None:
        """One attempt at one entry."""
        key = entry.key
        try:
            await work(entry)  # type: ignore[misc]
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

    async def _store_file(self, entry: Entry) -> None:
        key, base, draft, attributes = entry.key, entry.base, entry.draft, entry.attributes
        content = (draft, entry.origin, attributes)
        metadata = await self._metadata(entry, base)
        if draft is not None:
            draft.hold()
        try:
            source = entry.sent or (entry.origin if draft is None and entry.kind is Kind.FILE else None)
            stored = await self._copied(source, key, base, metadata) if source is not None else None
            if stored is None:
                if draft is None and entry.kind is Kind.FILE and entry.origin is not None:
                    await self._lost(entry)
                    return
                stored = await self._put(entry, key, base, draft, metadata)
        except (Stale, NotFound) as error:
            if isinstance(error, NotFound) and base is not None and entry.key == key and entry.base == base:
                entry.base = None  # what was to be replaced is gone: nothing is lost by creating it
                return
            ours = await self._is_ours(key, draft)
            if ours is None:
                if entry.key == key:
                    await self.drive.conflict(entry, "another version was stored meanwhile")
                return
            stored = ours
        finally:
            if draft is not None:
                draft.release()
        self._point("sent")
        await self._arrived(entry, key, stored, content)

    async def _metadata(self, entry: Entry, base: StoredObject | None) -> dict[str, str]:
        """Of the file; what the object that it replaces has besides is kept."""
        attributes = entry.attributes
        if base is not None and base.key == entry.key and not attributes.user:
            try:
                before = await self.drive.book.ask(base)
                attributes = replace(attributes, user=before.user)
            except Stale:
                pass  # the write itself will say so
        return attributes.metadata()

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
        size = 0
        if draft is not None:
            await self.drive.files.fill(entry, draft)
            size = draft.size

        async def read(offset: int, length: int) -> Body:
            assert draft is not None
            return await trio.to_thread.run_sync(draft.read, offset, length)

        async def began(name: str) -> None:
            if entry.key == key and entry.draft is draft:
                entry.upload, entry.parts = name, {}
                await self.drive.journal.put([entry.row()])
            self._point("upload-began")

        async def sent(part: Part, length: int) -> None:
            self.sent_bytes += length
            if entry.upload is not None and entry.key == key and entry.draft is draft:
                entry.parts[part.number] = part.version
                await self.drive.journal.put([entry.row()])
                self._point("part-sent")

        self._point("put")
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
            )
        except NotFound:
            if entry.upload is None:
                raise
            entry.upload, entry.parts = None, {}  # the upload is gone: from the beginning, or it is done
            if (ours := await self._is_ours(key, draft)) is not None:
                return ours
            raise ReelfsError(f"the upload of {key} was lost: it begins anew") from None
        except Stale:
            entry.upload, entry.parts = None, {}
            raise

    async def _is_ours(self, key: str, draft: Draft | None) -> StoredObject | None:
        """What is there, if it is just what was to be stored: the answer was lost, before a crash perhaps."""
        try:
            now = (await self._store.head(key)).object
        except NotFound:
            return None
        size = draft.size if draft is not None else 0
        if now.size != size:
            return None
        if draft is None or size == 0:
            return now
        etags = await trio.to_thread.run_sync(_etags, draft)
        if now.version in etags:
            return now
        if size > MAX_COMPARED and self._store.remote:
            return None
        for offset in range(0, size, upload.LEAST_PART):
            length = min(upload.LEAST_PART, size - offset)
            theirs = await self._store.read(now, offset, length)
            if theirs != await trio.to_thread.run_sync(draft.read, offset, length):
                return None
        return now

    async def _arrived(self, entry: Entry, key: str, stored: StoredObject, content: object) -> None:
        """The store has what was sent; what changed meanwhile waits on."""
        at = self.drive.pending.active(key)
        if at is not None and at is not entry:
            at.base = stored  # it was moved or removed while it was sent
            if at.settled is None:
                await self.drive.journal.put([at.row()])
        if entry.key != key:
            if entry.key and content == (entry.draft, entry.origin, entry.attributes):
                entry.sent = stored
            return
        entry.base = stored
        entry.upload, entry.parts = None, {}
        await self.drive.book.learn(stored, entry.attributes)
        if content != (entry.draft, entry.origin, entry.attributes):
            entry.sent = stored if content[:2] == (entry.draft, entry.origin) else None  # type: ignore[index]
            entry.due = 0.0
            await self.drive.journal.put([entry.row()])
            return
        entry.waiting, entry.sent, entry.since = False, stored, 0.0
        entry.batch = 0
        if entry.live is not None or entry.writers:
            await self.drive.journal.put([entry.row()])
            return
        await self._settle(entry, stored)

    async def _settle(self, entry: Entry, stored: StoredObject | None) -> None:
        """It differs from the store's no more."""
        before = entry.object() if stored is not None else None
        entry.stored = stored
        entry.waiting = False
        self.drive.metadata.settle(entry)
        self._settled(entry, before)
        await self.drive.journal.put([], drop=[entry.ident])
        self._point("settled")

    async def _lost(self, entry: Entry) -> None:
        """Somebody removed or replaced what was moved here, before it was copied."""
        source = entry.origin.key if entry.origin else "what it was"
        await self.drive.lost(entry, f"{source} was replaced by another client before it was moved")

    async def _stage(self, entry: Entry) -> None:
        """Two files that changed places: the bytes of one are fetched, so that the other can be copied."""
        if entry.draft is None and entry.origin is not None:
            draft = self.drive.files.staging.create(entry.origin).hold()
            await self.drive.files.fill(entry, draft)
            draft.seal()
            entry.draft, entry.origin, entry.sent = draft, None, None
        elif entry.draft is not None:
            await self.drive.files.fill(entry, entry.draft)
            entry.sent = None
        await self.drive.journal.put([entry.row()])

    # -- folders and removals ---------------------------------------------------------------------------

    async def _mark(self, entry: Entry) -> None:
        """An empty folder lasts by its marker; one with something in it needs none."""
        key = entry.key
        stored = entry.base
        if stored is None and await self._has_something(key):
            await self._settle(entry, None)
            return
        if stored is None:
            try:
                stored = await self._store.put(key, b"", replaces=None, metadata=entry.attributes.metadata())
            except Stale:
                stored = (await self._store.head(key)).object
        at = self.drive.pending.active(key)
        if at is not entry:
            if at is not None:
                at.base = stored
            return
        entry.base = stored
        await self._settle(entry, stored)

    async def _has_something(self, key: str) -> bool:
        page = await self._store.list(key, delimiter="", limit=2)
        return any(stored.key != key for stored in page.objects)

    async def _remove(self, entry: Entry) -> None:
        base, key = entry.base, entry.key
        if base is None:
            if self.drive.pending.active(key) is entry:
                await self._settle(entry, None)
            return
        try:
            if self._trash and not key.endswith("/") and not trash.holds(key):
                self.drive.metadata.appeared(await trash.put(self._store, base))
            self._point("delete")
            await self._store.delete(base)
        except NotFound:
            pass
        except Stale:
            if self.drive.pending.active(key) is entry:
                await self.drive.not_removed(entry, "another version was stored meanwhile")
            return
        at = self.drive.pending.active(key)
        if at is not entry:
            if at is not None and at.base == base:
                at.base = None
                await self.drive.journal.put([at.row()])
            return
        entry.base = None
        await self._settle(entry, None)

    async def _drop_trash(self) -> None:
        """What is in the trash for longer than it is to be, once at the start and each hour."""
        while self._trash:
            try:
                await trash.empty(self._store, self._trash)
            except ReelfsError as error:
                log.info("the trash is looked at later: %s", error)
            await trio.sleep(3600)

    async def _abort(self, key: str, name: str) -> None:
        try:
            await self._store.abort_upload(key, name)
        except ReelfsError as error:
            log.info("an upload of %s is left to the store to drop: %s", key, error)

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


def _etags(draft: Draft) -> set[str]:
    """What stores call this content: its MD5, or that of the parts it would be sent in."""
    step = upload.part_size(draft.size)
    whole, parts = hashlib.md5(usedforsecurity=False), []
    for offset in range(0, draft.size, step):
        body = draft.read(offset, min(step, draft.size - offset))
        whole.update(body)
        parts.append(hashlib.md5(body, usedforsecurity=False).digest())
    return {f'"{whole.hexdigest()}"', upload.multipart_etag(parts)}
