"""Sends what is pending, in the background: each key brought from what the store has to what it is to have.

Every request carries its condition, so a write that lost a race is known and both are kept. A key is written
to once a second at most, by one request at a time, and whatever changed in between is sent as one. What fails
is tried again, for ever, ever less often: it is safe in the journal. Nothing is removed or written over while
something else is still to be copied from it.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from vfs.errors import DeadlineExceeded, ReelfsError
from vfs.storage.base import Store
from vfs.write import trash
from vfs.write.draft import Draft
from vfs.write.pending import Entry, Kind
from vfs.write.schedule import Schedule
from vfs.write.sending import Sender

log = logging.getLogger("vfs.write")

Work = Callable[[Entry], Awaitable[None]]

#: R2 takes one write a second to a key.
PER_KEY = 1.0
#: Keys written to at one time.
AT_ONCE = 8
#: While programs change things on the mount (within so many seconds) nothing is sent that is closed for less
#: than so many times the delay: most of what is sent at once is written over, moved or removed soon. Then so
#: few at one time: programs wait for the same interpreter.
BUSY_SECONDS, HELD_BACK, WHILE_BUSY = 0.3, 5, 1
#: What is due is looked at at most this often (seconds), unless somebody waits for it. What waits for others
#: is all looked at whenever something was done: with many of them less often.
PAUSE, PAUSE_PER_BLOCKED = 0.02, 0.0001
#: How often what is known of what was sent long ago is dropped, seconds.
FORGET_SECONDS = 10.0
#: First and longest wait after a failure, seconds.
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0


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


class Uploader(Sender):
    """What is sent when. delay: seconds a file is left alone after it was closed, see `HELD_BACK`. deadline:
    what waits for a file at most. databases: seconds after which a database that is never closed is sent (0 =
    not). The rest as for `Sender`.
    """

    def __init__(
        self, store: Store, *, delay: float, deadline: float, databases: float, **settings: Any
    ) -> None:
        super().__init__(store, **settings)
        self._databases = databases
        self._delay = delay
        self._deadline = deadline
        self._sending: dict[str, Entry] = {}
        self._fetching: set[int] = set()
        self._schedule = Schedule()
        self._last: dict[str, float] = {}
        self._planned, self._urgent = math.inf, False
        self._stirred, self._unblocks, self._forgets = False, 0.0, 0.0
        self._askers: Mapping[str, Sequence[Entry]] | None = None  # of what is looked at now
        self._batches: Collection[int] | None = None
        self._news = trio.Event()
        self._rests = trio.Event()
        self._hurried = 0

    def wake(self, entry: Entry, *, soon: bool = False) -> None:
        """Something waits, or is used no more."""
        if entry.is_at_rest():
            self._add(entry, 0.0)  # nothing is to be sent: that is done in no time
            return
        wait = 0.0 if soon or self._hurried or entry.waited or entry.error else self._delay
        self._add(entry, trio.current_time() + wait)

    def _add(self, entry: Entry, due: float) -> None:
        entry.due = due
        self._schedule.add(entry, due)
        self._stirred = True
        if due < self._planned or self._schedule.blocked:
            self._news.set()

    def is_sending(self, key: str) -> bool:
        """Whether a request that changes a key is on its way."""
        return key in self._sending

    def queue(self, below: str = "") -> list[Waiting]:
        """What waits, oldest first."""
        now = time.time()
        found = sorted(self._waiting(below), key=lambda entry: entry.since)
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
        for entry in list(self._waiting(below)):
            before[entry.ident] = entry.attempts
            self._add(entry, 0.0)
        with trio.move_on_after(patience if patience is not None else float("inf")), self._hurry():
            while any(self._is_moving(entry, before) for entry in self._waiting(below)) or any(
                entry.is_at_rest() for entry in self.drive.pending.unsettled.values()
            ):
                await self._change()
        return self.queue(below)

    def _waiting(self, below: str) -> Iterator[Entry]:
        unsettled = self.drive.pending.unsettled.values()
        return (entry for entry in unsettled if entry.waiting and entry.key.startswith(below))

    def _is_moving(self, entry: Entry, before: Mapping[int, int]) -> bool:
        """Whether it was not tried yet since `before`, and waits for nothing that was tried in vain. (What it
        waits for may be what is being sent, or has arrived and is only to be noted.)
        """
        if entry.key in self._sending or self._news.is_set():
            return True
        has_failed = entry.error and entry.attempts > before.get(entry.ident, 0)
        waits = entry.ident in self._schedule.blocked and not self._sending
        return not has_failed and not waits and entry.is_ready()

    async def wait_for(self, entry: Entry, draft: Draft) -> None:
        """The store has this content (or a later one). Raises the error of the last attempt when it takes
        longer than an operation may.
        """
        self._urgent = True
        self._add(entry, 0.0)
        entry.waited += 1
        try:
            with trio.move_on_after(self._deadline) as scope:
                while entry.waiting and entry.key and entry.arrived < draft.number:
                    await self._change()
        finally:
            entry.waited -= 1
        if scope.cancelled_caught:
            raise DeadlineExceeded(
                f"{entry.key} is not in the store yet ({entry.error or 'no answer'}): it stays in the journal"
            )

    def _hurry(self) -> _Hurry:
        return _Hurry(self)

    async def _change(self) -> None:
        await self._rests.wait()

    def _changed(self) -> None:
        self._stirred = True
        self._news.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            if self._trash:
                nursery.start_soon(trash.keep_emptying, self._store, self._trash)
            nursery.start_soon(self._look_at_databases)
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
                    await trio.sleep(PAUSE)
                self._urgent = False

    async def _look_at_databases(self) -> None:
        while self._databases:
            await trio.sleep(self._databases)
            try:
                await self.drive.look_at_open_databases()
            except ReelfsError as error:
                log.info("databases that are open are looked at later: %s", error)

    def _start(self, nursery: trio.Nursery) -> float:
        """Begin what is due; seconds until something else will be."""
        now = trio.current_time()
        self._askers = self._batches = None
        while self.drive.abandoned:
            nursery.start_soon(self._abort, self.drive.abandoned.pop())
        pause = self._unblock(now)
        written = self.drive.files.written + BUSY_SECONDS
        is_busy = now < written and not self._hurried
        while (due := self._schedule.next_due()) <= now:
            is_held_back = is_busy and due > 0
            if is_held_back and now < due + (HELD_BACK - 1) * self._delay:
                return min(pause, written - now)
            if len(self._sending) >= (WHILE_BUSY if is_held_back else AT_ONCE):
                return min(pause, BUSY_SECONDS)
            self._consider(self._schedule.pop(), now, nursery)
        return min(pause, due - now, 3600.0)

    def _unblock(self, now: float) -> float:
        """What waited for others is looked at again; seconds until that is to be done."""
        if not self._schedule.blocked or not self._stirred:
            return math.inf
        if now < self._unblocks and not self._hurried:
            return self._unblocks - now
        self._unblocks = now + PAUSE_PER_BLOCKED * len(self._schedule.blocked)
        self._stirred = False
        self._schedule.unblock(now)
        return math.inf

    def _consider(self, entry: Entry, now: float, nursery: trio.Nursery) -> None:
        """One that is due, if it is still to be sent: it is begun, or put back."""
        key = entry.key
        if self.drive.pending.unsettled.get(key) is not entry or key in self._sending:
            return  # what is being sent is looked at when that is done
        if entry.is_at_rest():
            self._begin(entry, self._rest, nursery)
            return
        if not entry.waiting or not entry.is_ready():
            return
        if self._must_wait(entry, nursery):
            self._schedule.block(entry)
            return
        last = self._last.get(key)
        if self._store.remote and last is not None and last + PER_KEY > now:
            self._schedule.add(entry, last + PER_KEY)
            return
        self._begin(entry, self._send, nursery)

    def _must_wait(self, entry: Entry, nursery: trio.Nursery) -> bool:
        """Whether something else is to be done before."""
        if entry.key.endswith("/") and entry.kind is Kind.GONE and self._is_too_early(entry):
            return True
        if entry.kind is Kind.GONE and entry.batch:
            if self._batches is None:
                self._batches = self._moving()
            if entry.batch in self._batches:
                return True
        if entry.base is None and entry.trying is None:
            return False  # the store has nothing there that somebody could need
        if self._askers is None:
            self._askers = self._asking()
        askers = self._askers
        if not any(asker is not entry for asker in askers.get(entry.key, ())):
            return False
        self._make_way(entry, askers, nursery)
        return True

    def _moving(self) -> set[int]:
        """Folders' moves of which not everything has arrived."""
        return {e.batch for e in self._waiting("") if e.batch and e.kind is not Kind.GONE}

    def _asking(self) -> Mapping[str, Sequence[Entry]]:
        """Who needs what is stored under a key."""
        found: dict[str, list[Entry]] = {}
        for entry in (*self.drive.orphans, *self.drive.pending.unsettled.values()):
            for stored in entry.needs():
                found.setdefault(stored.key, []).append(entry)
        return found

    def _begin(self, entry: Entry, work: Work, nursery: trio.Nursery) -> None:
        self._sending[entry.key] = entry
        nursery.start_soon(self._one, entry, work)

    def _make_way(self, entry: Entry, askers: Mapping[str, Sequence[Entry]], nursery: trio.Nursery) -> None:
        """Something here is still to be read from what is to be replaced, or removed."""
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
        folder = entry.key
        unsettled = self.drive.pending.unsettled.items()
        return any(below.waiting for key, below in unsettled if key.startswith(folder) and key != folder)

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
            for left in {entry.key: entry, key: self.drive.pending.active(key)}.values():
                if left is not None and left.settled is None:
                    self._schedule.add(left, left.due)
            self._changed()

    def _forget_old(self) -> None:
        """Settled entries that every listing knows of by now; times of keys."""
        now = trio.current_time()
        if now < self._forgets:
            return
        self._forgets = now + FORGET_SECONDS
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
