"""What is known of stored objects besides their bytes: no listing tells, a HEAD or who wrote them does."""

from __future__ import annotations

from vfs.cache.metadata import Metadata
from vfs.errors import NotFound, Stale
from vfs.spans import StoredObject
from vfs.write.attributes import Attributes
from vfs.write.journal import MAX_KNOWN, Journal

NOTHING = Attributes()


class Book:
    """Attributes by key and version; kept in the journal's database over mounts."""

    def __init__(self, journal: Journal, metadata: Metadata) -> None:
        self._journal = journal
        self._metadata = metadata
        self._known: dict[str, tuple[str, Attributes]] = {}
        for key, version, told in reversed(journal.known()):
            self._known[key] = (version, Attributes.from_json(told))

    def get(self, stored: StoredObject) -> Attributes | None:
        """What is known of this version, without asking."""
        version, attributes = self._known.get(stored.key, ("", NOTHING))
        return attributes if version == stored.version else None

    async def ask(self, stored: StoredObject) -> Attributes:
        """Known, or asked for by a HEAD. Raises Stale when there is another version, StoreError."""
        known = self.get(stored)
        if known is not None:
            return known
        try:
            details = await self._metadata.store.head(stored.key)
        except NotFound:
            raise Stale(f"{stored.key} was removed") from None
        if details.object.version != stored.version:
            self._metadata.forget(stored.key)
            raise Stale(f"{stored.key} was replaced")
        attributes = Attributes.of(details.metadata)
        await self.learn(stored, attributes)
        return attributes

    async def learn(self, stored: StoredObject, attributes: Attributes) -> None:
        """Remember."""
        self._known.pop(stored.key, None)
        self._known[stored.key] = (stored.version, attributes)
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]
        await self._journal.learn(stored.key, stored.version, attributes.to_json())
