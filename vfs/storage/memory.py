"""`memory://`: objects in memory, with a log of every request and faults on demand. For tests and trials."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from vfs.errors import NotFound, ReelfsError, Stale, StoreError
from vfs.spans import StoredObject
from vfs.storage.arriving import Arriving
from vfs.storage.base import Body, ObjectDetails, Page, Part


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


@dataclass(slots=True)
class _Upload:
    """An upload under way."""

    key: str
    metadata: dict[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


class MemoryStore:
    """A store over a dictionary of key to bytes. Remote unless told otherwise, so that caches are used."""

    def __init__(self, objects: Mapping[str, bytes] | None = None, *, remote: bool = True) -> None:
        self._objects: dict[str, tuple[StoredObject, bytes]] = {}
        self._versions = 0
        self._remote = remote
        self._faults: list[Fault] = []
        self._metadata: dict[str, dict[str, str]] = {}
        self._uploads: dict[str, _Upload] = {}
        self._names = itertools.count(1)
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
        self._metadata.pop(key, None)

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
        """Spoil the next `times` requests of an operation (a method's name), for one key or for any.

        error: raised. spoil: what becomes of the bytes of a read. hang: no answer until cancelled.
        """
        self._faults.append(Fault(operation, key, times, error, spoil, hang))

    def heal(self) -> None:
        """No more faults."""
        self._faults.clear()

    async def head(self, key: str) -> ObjectDetails:
        """The current version of an object."""
        await self._asked(Request("head", key))
        return ObjectDetails(self._get(key)[0], metadata=self._metadata.get(key, {}))

    async def list(
        self, prefix: str = "", *, delimiter: str = "/", token: str | None = None, limit: int = 1000
    ) -> Page:
        """One page; the token is the last name of the page before."""
        await self._asked(Request("list", prefix))
        found: dict[str, StoredObject | None] = {}
        for key, (described, _) in self._objects.items():
            if key.startswith(prefix) and not (delimiter and key == prefix and key.endswith(delimiter)):
                cut = key.find(delimiter, len(prefix)) if delimiter else -1
                found[key if cut < 0 else key[: cut + len(delimiter)]] = described if cut < 0 else None
        names = sorted(name for name in found if token is None or name > token)
        shown = names[:limit]
        return Page(
            tuple(stored for name in shown if (stored := found[name]) is not None),
            tuple(name for name in shown if found[name] is None),
            shown[-1] if len(names) > limit else None,
        )

    async def read(
        self, stored: StoredObject, offset: int, length: int, arriving: Arriving | None = None
    ) -> Body:
        """A range of exactly this version, at once."""
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
        """Store an object, under the condition."""
        await self._asked(Request("put", key, 0, len(body)))
        return self._stored(key, bytes(body), replaces, metadata)

    async def copy(
        self,
        stored: StoredObject,
        key: str,
        *,
        replaces: StoredObject | None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredObject:
        """Store this version under another key too, or with other metadata."""
        await self._asked(Request("copy", key, 0, stored.size))
        now, body = self._get(stored.key)
        if now.version != stored.version:
            raise Stale(f"{stored.key} was replaced")
        told = self._metadata.get(stored.key) if metadata is None else metadata
        return self._stored(key, body, replaces, told)

    async def delete(self, stored: StoredObject) -> None:
        """Remove this version."""
        await self._asked(Request("delete", stored.key))
        if self._get(stored.key)[0].version != stored.version:
            raise Stale(f"{stored.key} was replaced")
        self.remove(stored.key)

    async def start_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        """Begin an upload in parts."""
        await self._asked(Request("start_upload", key))
        name = f"upload {next(self._names)}"
        self._uploads[name] = _Upload(key, dict(metadata or {}))
        return name

    async def put_part(self, key: str, upload: str, number: int, body: Body) -> Part:
        """Send a part."""
        await self._asked(Request("put_part", key, number, len(body)))
        self._upload(key, upload).parts[number] = bytes(body)
        return Part(number, f"part {number}")

    async def complete_upload(
        self, key: str, upload: str, parts: Sequence[Part], *, replaces: StoredObject | None
    ) -> StoredObject:
        """Join the parts."""
        await self._asked(Request("complete_upload", key))
        found = self._upload(key, upload)
        del self._uploads[upload]
        bodies = [found.parts[part.number] for part in parts]
        if len({len(body) for body in bodies[:-1]}) > 1:
            raise StoreError(f"{key}: parts of different sizes")  # as R2 has it
        return self._stored(key, b"".join(bodies), replaces, found.metadata)

    async def abort_upload(self, key: str, upload: str) -> None:
        """Drop an upload."""
        await self._asked(Request("abort_upload", key))
        self._uploads.pop(upload, None)

    async def uploads(self, prefix: str = "") -> Mapping[str, str]:
        """Uploads under way."""
        await self._asked(Request("uploads", prefix))
        return {name: up.key for name, up in self._uploads.items() if up.key.startswith(prefix)}

    def _upload(self, key: str, upload: str) -> _Upload:
        found = self._uploads.get(upload)
        if found is None or found.key != key:
            raise NotFound(f"no such upload of {key}")
        return found

    def _stored(
        self, key: str, body: bytes, replaces: StoredObject | None, metadata: Mapping[str, str] | None
    ) -> StoredObject:
        now = self._objects.get(key)
        if replaces is not None and now is None:
            raise NotFound(f"{key} is gone")
        if (now[0].version if now else None) != (replaces.version if replaces else None):
            raise Stale(f"{key} was replaced" if replaces else f"{key} is there already")
        self._metadata[key] = dict(metadata or {})
        return self.replace(key, body)

    def presign(self, key: str, *, expires: int = 3600, put: bool = False) -> str | None:
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
