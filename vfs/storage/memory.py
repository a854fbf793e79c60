"""`memory://`: objects in memory, with a log of every request and faults on demand. For tests and trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

from vfs.errors import NotFound, ReadOnly, ReelfsError, Stale
from vfs.spans import StoredObject
from vfs.storage.base import Body, ObjectDetails, Page


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it was asked. offset, length: of a read."""

    operation: str
    key: str
    offset: int = 0
    length: int = 0


@dataclass(slots=True)
class Fault:
    """What goes wrong in the next `times` requests of an operation. See `MemoryStore.fault`."""

    operation: str
    key: str | None
    times: int
    error: ReelfsError | None
    spoil: Callable[[bytes], bytes] | None
    hang: bool

    def hits(self, request: Request) -> bool:
        """True for a request this is about, while it has not run out."""
        return self.times > 0 and self.operation == request.operation and self.key in (None, request.key)


class MemoryStore:
    """A store over a dictionary of key to bytes. Remote unless told otherwise, so that caches are used."""

    def __init__(self, objects: Mapping[str, bytes] | None = None, *, remote: bool = True) -> None:
        self._objects: dict[str, tuple[StoredObject, bytes]] = {}
        self._versions = 0
        self._remote = remote
        self._faults: list[Fault] = []
        self.log: list[Request] = []
        for key, body in (objects or {}).items():
            self.replace(key, body)

    @property
    def url(self) -> str:
        """`memory://`."""
        return "memory://"

    @property
    def remote(self) -> bool:
        """As the constructor was told."""
        return self._remote

    def replace(self, key: str, body: bytes) -> StoredObject:
        """Put an object there, over whatever is there: what another client would do."""
        self._versions += 1
        stored = StoredObject(key, len(body), f'"v{self._versions}"', self._versions * 10**9)
        self._objects[key] = (stored, body)
        return stored

    def remove(self, key: str) -> None:
        """Take an object away: what another client would do."""
        del self._objects[key]

    def reads(self) -> list[Request]:
        """The range reads so far."""
        return [request for request in self.log if request.operation == "read"]

    def fault(
        self,
        operation: str,
        *,
        key: str | None = None,
        times: int = 1,
        error: ReelfsError | None = None,
        spoil: Callable[[bytes], bytes] | None = None,
        hang: bool = False,
    ) -> None:
        """Spoil the next `times` requests of an operation (`head`, `list`, `read`), for one key or for any.

        error: raised. spoil: what becomes of the bytes of a read. hang: no answer until cancelled.
        """
        self._faults.append(Fault(operation, key, times, error, spoil, hang))

    def heal(self) -> None:
        """No more faults."""
        self._faults.clear()

    async def head(self, key: str) -> ObjectDetails:
        """The current version of an object."""
        await self._asked(Request("head", key))
        return ObjectDetails(self._get(key)[0])

    async def list(
        self, prefix: str = "", *, delimiter: str = "/", token: str | None = None, limit: int = 1000
    ) -> Page:
        """One page; the token is the last name of the page before."""
        await self._asked(Request("list", prefix))
        found: dict[str, StoredObject | None] = {}
        for key, (described, _) in self._objects.items():
            if key.startswith(prefix):
                cut = key.find(delimiter, len(prefix)) if delimiter else -1
                found[key if cut < 0 else key[: cut + len(delimiter)]] = described if cut < 0 else None
        names = sorted(name for name in found if token is None or name > token)
        shown = names[:limit]
        return Page(
            tuple(stored for name in shown if (stored := found[name]) is not None),
            tuple(name for name in shown if found[name] is None),
            shown[-1] if len(names) > limit else None,
        )

    async def read(self, stored: StoredObject, offset: int, length: int) -> Body:
        """A range of exactly this version."""
        fault = await self._asked(Request("read", stored.key, offset, length))
        now, body = self._get(stored.key)
        if now.version != stored.version:
            raise Stale(f"{stored.key} was replaced")
        part = body[offset : offset + length]
        return part if fault is None or fault.spoil is None else fault.spoil(part)

    async def put(
        self,
        key: str,
        body: Body,
        *,
        replaces: StoredObject | None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Not yet."""
        raise ReadOnly(f"{key}: writing is not available")

    async def delete(self, stored: StoredObject) -> None:
        """Not yet."""
        raise ReadOnly(f"{stored.key}: writing is not available")

    def presign(self, key: str, *, expires: int = 3600) -> str | None:
        """There is no URL."""
        return None

    async def aclose(self) -> None:
        """Nothing to close."""

    async def _asked(self, request: Request) -> Fault | None:
        """Log a request, and let the first fault that is about it happen."""
        self.log.append(request)
        await trio.lowlevel.checkpoint()
        fault = next((fault for fault in self._faults if fault.hits(request)), None)
        if fault is None:
            return None
        fault.times -= 1
        if fault.hang:
            await trio.sleep_forever()
        if fault.error is not None:
            raise fault.error
        return fault

    def _get(self, key: str) -> tuple[StoredObject, bytes]:
        try:
            return self._objects[key]
        except KeyError:
            raise NotFound(f"no such object: {key}") from None
