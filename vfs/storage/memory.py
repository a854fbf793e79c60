"""`memory://`: objects in memory, with a log of every request. For tests and for trying things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import trio

from vfs.errors import NotFound, ReadOnly, Stale
from vfs.spans import StoredObject
from vfs.storage.base import Body, ObjectDetails, Page


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it was asked. offset, length: of a read."""

    operation: str
    key: str
    offset: int = 0
    length: int = 0


class MemoryStore:
    """A store over a dictionary of key to bytes. Remote unless told otherwise, so that caches are used."""

    def __init__(self, objects: Mapping[str, bytes] | None = None, *, remote: bool = True) -> None:
        self._objects: dict[str, tuple[StoredObject, bytes]] = {}
        self._versions = 0
        self._remote = remote
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

    async def head(self, key: str) -> ObjectDetails:
        """The current version of an object."""
        self.log.append(Request("head", key))
        await trio.lowlevel.checkpoint()
        return ObjectDetails(self._get(key)[0])

    async def list(
        self, prefix: str = "", *, delimiter: str = "/", token: str | None = None, limit: int = 1000
    ) -> Page:
        """One page; the token is the last name of the page before."""
        self.log.append(Request("list", prefix))
        await trio.lowlevel.checkpoint()
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
        self.log.append(Request("read", stored.key, offset, length))
        await trio.lowlevel.checkpoint()
        now, body = self._get(stored.key)
        if now.version != stored.version:
            raise Stale(f"{stored.key} was replaced")
        return body[offset : offset + length]

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

    def _get(self, key: str) -> tuple[StoredObject, bytes]:
        try:
            return self._objects[key]
        except KeyError:
            raise NotFound(f"no such object: {key}") from None
