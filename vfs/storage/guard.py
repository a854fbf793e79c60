"""What stands around every store: a deadline for each operation, retries inside it, checks of every body.

Retried: no usable answer (5xx, 429, resets, timeouts) and bodies that are not what was asked for; once, a
refusal right after successes (some services answer 403 where they mean "slow down"). Never retried: "not
found", "another version", a refusal. Waits grow exponentially with full jitter, and respect Retry-After.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import re
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import trio

from vfs.errors import (
    BadBody,
    DeadlineExceeded,
    Denied,
    NotFound,
    ReadOnly,
    ReelfsError,
    Stale,
    StoreError,
    Unavailable,
)
from vfs.spans import StoredObject
from vfs.storage.arriving import Arriving
from vfs.storage.base import AsksBesides, Body, KeepsSums, ObjectDetails, Page, Part, Renews, Store
from vfs.storage.upload import multipart_etag
from vfs.usage import Usage

log = logging.getLogger("vfs.storage.guard")
T = TypeVar("T")
_MD5 = re.compile(r'"([0-9a-f]{32})"')

#: First and longest wait between attempts, seconds.
FIRST_WAIT = 0.05
LONGEST_WAIT = 5.0
#: Without a usable answer for longer than this, seconds, the store is said to be offline.
SILENCE = 2.0
#: Nor while an attempt has waited for longer than this, beside what its bytes take on a slow line.
HANGING = 5.0
#: One attempt may take this share of the deadline, so that a hung connection leaves time for another,
ATTEMPT_SHARE = 0.4
#: and besides what its bytes take on the slowest line that is served (bytes per second): a slow one is not
#: hung. (Stores with connections of their own notice one without bytes much earlier.)
SLOWEST = 256 * 1024
#: Checksums of whole objects that are remembered, and objects in a row without one after which a store is
#: taken to keep none.
MAX_SUMS, MANY_SUMLESS = 1000, 8
#: The slowest copy within a store that is waited for, bytes per second.
SLOWEST_COPY = 8 << 20


class Counters:
    """What was asked of the store: plain numbers for telemetry and tests."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.bytes_read = 0
        self.retries = 0


class GuardedStore:
    """Any store, with deadlines, retries and checks. deadline: seconds for one operation in all. Without
    `writable` every write is refused.
    """

    def __init__(self, store: Store, *, deadline: float = 30.0, writable: bool = False) -> None:
        self._store = store
        self._writable = writable
        self._deadline = deadline
        #: Asked before each request, and told of bodies: it may refuse (`vfs.usage`).
        self.usage = Usage()
        self._healthy = False
        self.counters = Counters()
        if isinstance(store, AsksBesides):
            store.count_in(self.counters.requests)
        self._offline = False
        #: Of attempts that are waited for: when they began, and when one should have been answered.
        self._waiting: dict[object, tuple[float, float]] = {}
        self._answered = -math.inf
        self._sums: OrderedDict[tuple[str, str], int | None] = OrderedDict()
        self._sumless = 0
        self._silent_since: float | None = None
        #: Told of every version that a read has just seen, and when it was asked for.
        self.confirmed: Callable[[StoredObject, float], object] = lambda stored, when: None

    @contextmanager
    def hurried(self, seconds: float) -> Iterator[None]:
        """Operations that begin within the block are given up after so many seconds."""
        before, self._deadline = self._deadline, min(self._deadline, seconds)
        try:
            yield
        finally:
            self._deadline = before

    @property
    def offline(self) -> bool:
        """True after an operation that got no usable answer, and while one hangs and no other is answered."""
        if self._offline or not self._waiting:
            return self._offline
        now = trio.current_time()
        return any(due < now and self._answered < began for began, due in self._waiting.values())

    @property
    def url(self) -> str:
        """That of the store."""
        return self._store.url

    @property
    def remote(self) -> bool:
        """That of the store."""
        return self._store.remote

    async def head(self, key: str) -> ObjectDetails:
        """The current version of an object."""
        return await self._tried("head", key, lambda: self._store.head(key))

    async def list(
        self, prefix: str = "", *, delimiter: str = "/", token: str | None = None, limit: int = 1000
    ) -> Page:
        """One page of a listing."""
        return await self._tried(
            "list",
            prefix,
            lambda: self._store.list(prefix, delimiter=delimiter, token=token, limit=limit),
        )

    async def read(
        self, stored: StoredObject, offset: int, length: int, arriving: Arriving | None = None
    ) -> Body:
        """A range of exactly this version, of exactly this length. An attempt goes on where the one before
        it was cut off: both are pinned to the version.
        """
        began = trio.current_time()
        if arriving is None:
            arriving = Arriving(length)
        else:  # The head of an answer tells the version: who opens the file need not ask for it again.
            arriving.watch(1, lambda: arriving.have and self.confirmed(stored, began))

        async def attempt() -> Body:
            have = arriving.have
            at, rest = offset + have, length - have
            if not rest:  # cut off at the very end
                return arriving.view(0, length)
            body = await self._store.read(stored, at, rest, arriving)
            if len(body) != rest:
                raise BadBody(f"{stored.key}: {len(body)} bytes at {at} where {rest} were asked for")
            self.counters.bytes_read += length
            self.usage.read(length)
            return arriving.completed(have, body)

        body = await self._tried("get", stored.key, attempt, length / SLOWEST)
        self.confirmed(stored, began)
        return body

    async def checksum(self, stored: StoredObject) -> int | None:
        """The CRC-64/NVME of all bytes of this version, where the store keeps one: one HEAD for a version.

        Not tried again when it fails, nor asked for any more once many objects in a row had none.
        """
        store, name = self._store, (stored.key, stored.version)
        if not isinstance(store, KeepsSums) or name in self._sums or self._sumless >= MANY_SUMLESS:
            return self._sums.get(name)
        self.usage.request("head")
        self.counters.requests["head"] += 1
        found = None
        try:
            with trio.move_on_after(self._deadline):
                found = await store.checksum(stored)
        finally:
            self._sumless = 0 if found is not None else self._sumless + 1
        self._sums[name] = found
        while len(self._sums) > MAX_SUMS:
            self._sums.popitem(last=False)
        return found

    async def put(
        self,
        key: str,
        body: Body,
        *,
        replaces: StoredObject | None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Store an object. Repeated where no answer came: the condition keeps it from happening twice, and an
        attempt that had arrived after all is known by its etag.
        """
        self._check_writable(key)

        async def is_ours(now: ObjectDetails) -> bool:
            return now.object.version == f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"' or (
                now.object.size == len(body) and _has_time_of(now, metadata)
            )

        return await self._conditional(
            "put",
            key,
            lambda: self._store.put(key, body, replaces=replaces, metadata=metadata),
            is_ours,
            replaces,
            len(body) / SLOWEST,
        )

    async def copy(
        self,
        stored: StoredObject,
        key: str,
        *,
        replaces: StoredObject | None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Copy within the store. Repeated like `put`; an attempt that had arrived after all is known by the
        etag (that of the source, unless the store gave another), else by its size and the time it was told.
        """
        self._check_writable(key)

        async def is_ours(now: ObjectDetails) -> bool:
            told = metadata
            if told is None and key != stored.key:
                if now.object.version == stored.version:
                    return True
                told = (await self._store.head(stored.key)).metadata
            return now.object.size == stored.size and _has_time_of(now, told)

        return await self._conditional(
            "copy",
            key,
            lambda: self._store.copy(stored, key, replaces=replaces, metadata=metadata),
            is_ours,
            replaces,
            stored.size / SLOWEST_COPY,
        )

    async def delete(self, stored: StoredObject) -> None:
        """Remove this version; gone by an attempt whose answer was lost is gone."""
        self._check_writable(stored.key)
        attempts = 0

        async def attempt() -> None:
            nonlocal attempts
            attempts += 1
            try:
                await self._store.delete(stored)
            except NotFound:
                if attempts == 1:
                    raise

        await self._tried("delete", stored.key, attempt)

    async def start_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        """Begin an upload in parts."""
        self._check_writable(key)
        return await self._tried(
            "start_upload", key, lambda: self._store.start_upload(key, metadata=metadata)
        )

    async def put_part(self, key: str, upload: str, number: int, body: Body) -> Part:
        """Send a part, again where no answer came."""
        self._check_writable(key)
        return await self._tried(
            "put_part",
            key,
            lambda: self._store.put_part(key, upload, number, body),
            len(body) / SLOWEST,
            patient=True,
        )

    async def complete_upload(
        self, key: str, upload: str, parts: Sequence[Part], *, replaces: StoredObject | None
    ) -> StoredObject:
        """Join the parts."""
        self._check_writable(key)
        digests = [bytes.fromhex(found[1]) for part in parts if (found := _MD5.fullmatch(part.version))]

        async def is_ours(now: ObjectDetails) -> bool:
            return len(digests) == len(parts) and now.object.version == multipart_etag(digests)

        return await self._conditional(
            "complete_upload",
            key,
            lambda: self._store.complete_upload(key, upload, parts, replaces=replaces),
            is_ours,
            replaces,
        )

    async def abort_upload(self, key: str, upload: str) -> None:
        """Drop an upload."""
        await self._tried("abort_upload", key, lambda: self._store.abort_upload(key, upload))

    async def uploads(self, prefix: str = "") -> Mapping[str, str]:
        """Uploads under way."""
        return await self._tried("uploads", prefix, lambda: self._store.uploads(prefix))

    def _check_writable(self, key: str) -> None:
        if not self._writable:
            raise ReadOnly(f"{key}: {self.url} is open for reading alone")

    async def _conditional(
        self,
        operation: str,
        key: str,
        attempt: Callable[[], Awaitable[StoredObject]],
        is_ours: Callable[[ObjectDetails], Awaitable[bool]],
        replaces: StoredObject | None,
        extra: float = 0.0,
    ) -> StoredObject:
        """A condition that fails after an attempt without an answer may be that attempt's own doing."""
        attempts = 0

        async def noted() -> StoredObject:
            nonlocal attempts
            attempts += 1
            try:
                return await attempt()
            except (Stale, NotFound):
                if attempts > 1:
                    with suppress(NotFound):
                        now = await self._store.head(key)
                        before = replaces.version if replaces else None
                        if now.object.version != before and await is_ours(now):
                            return now.object
                raise

        return await self._tried(operation, key, noted, extra, patient=True)

    def presign(self, key: str, *, expires: int = 3600, put: bool = False) -> str | None:
        """A URL that reads (or stores) the object without credentials."""
        if put:
            self._check_writable(key)
        return self._store.presign(key, expires=expires, put=put)

    async def renew(self) -> None:
        """Take up other credentials, where the store has any. Raises ConfigError, Denied."""
        if isinstance(self._store, Renews):
            await self._store.renew()

    async def aclose(self) -> None:
        """Close the store."""
        await self._store.aclose()

    async def _tried(
        self,
        operation: str,
        key: str,
        attempt: Callable[[], Awaitable[T]],
        extra: float = 0.0,
        *,
        patient: bool = False,
    ) -> T:
        """The answer of the first good attempt. Raises DeadlineExceeded or BadBody with the last cause.

        extra: seconds an attempt may take beyond its share. patient: and all of them together beyond the
        deadline. (A large body on a slow line would never arrive; nobody waits for it as for a read.)
        """
        until = trio.current_time() + self._deadline + (extra if patient else 0.0)
        last: ReelfsError | None = None
        # As it was when this began: readers that are refused together are all forgiven.
        wait, forgiving = FIRST_WAIT, self._healthy
        while True:
            self.usage.request(operation)
            self.counters.requests[operation] += 1
            try:
                answer = await self._attempt(attempt, until, extra)
            except Denied as error:
                self._count(error)
                self._healthy = False
                if not forgiving:
                    raise
                forgiving, last = False, error
            except (Unavailable, BadBody) as error:
                self._count(error)
                if isinstance(error, Unavailable):
                    self._unanswered()
                # An attempt that the deadline cut short tells less than the one before it.
                last = error if last is None or trio.current_time() < until else last
            except ReelfsError as error:
                self._count(error)
                raise
            else:
                self._healthy, self._offline, self._silent_since = True, False, None
                self._answered = trio.current_time()
                return answer
            # Full jitter: readers that failed together do not come back together.
            asked = getattr(last, "retry_after", None) or 0.0
            pause = max(random.uniform(0, wait), asked)
            if trio.current_time() + pause >= until:
                # Nothing to wait for. (When the store asks for a longer pause, that is known at once.)
                raise self._given_up(operation, key, last)
            await trio.sleep(pause)
            if trio.current_time() >= until:  # a busy machine wakes late
                raise self._given_up(operation, key, last)
            self.counters.retries += 1
            log.info("%s %s: %s; trying again", operation, key, last)
            wait = min(wait * 2, LONGEST_WAIT)

    def _unanswered(self) -> None:
        """An attempt got no usable answer: after a while of nothing else, the store counts as away."""
        now = trio.current_time()
        if self._silent_since is None:
            self._silent_since = now
        self._offline = self._offline or now - self._silent_since > SILENCE

    async def _attempt(self, attempt: Callable[[], Awaitable[T]], until: float, extra: float) -> T:
        """One attempt, cut short when it hangs."""
        # A folder of a million files takes its time, and would take it again.
        share = ATTEMPT_SHARE if self.remote else 1.0
        # Never below zero: a busy machine may come back to this when the deadline has passed.
        seconds = max(0.0, min(until - trio.current_time(), self._deadline * share + extra))
        now, token = trio.current_time(), object()
        self._waiting[token] = now, now + HANGING + extra
        try:
            with trio.move_on_after(seconds):
                return await attempt()
        finally:
            del self._waiting[token]
        raise Unavailable(f"no answer within {seconds:.1f} s")

    def _given_up(self, operation: str, key: str, last: ReelfsError | None) -> StoreError:
        self._offline = not isinstance(last, BadBody)
        if isinstance(last, BadBody):
            return BadBody(f"{operation} {key}: {last}; given up after {self._deadline:g} s")
        return DeadlineExceeded(f"{operation} {key}: no usable answer within {self._deadline:g} s: {last}")

    def _count(self, error: ReelfsError) -> None:
        self.counters.errors[type(error).__name__] += 1


def _has_time_of(now: ObjectDetails, told: Mapping[str, str] | None) -> bool:
    """The object has the very metadata it was told, and a time of modification is among it: nobody else's."""
    return bool(told) and "mtime" in (told or {}) and dict(now.metadata) == dict(told or {})
