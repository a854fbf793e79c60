"""Small files that plugins keep in the source, where it may be written to: stored when a call returns."""

from __future__ import annotations

from vfs.errors import NotFound
from vfs.spans import StoredObject
from vfs.storage.base import Store
from vfs.write.merged import MergedMetadata
from vfs.write.rules import Rules


class StoredFiles:
    """See `vfs.SmallFiles`."""

    def __init__(self, store: Store, metadata: MergedMetadata, rules: Rules) -> None:
        self._store, self._metadata, self._rules = store, metadata, rules

    def allows(self, path: str) -> bool:
        """Whether it is within `write.allow`."""
        return self._rules.allows(path)

    async def put(self, path: str, data: bytes) -> None:
        """Store it, over what is there now."""
        before = await self._there(path)
        self._rules.check(path, existing=before is not None)
        folder, _, name = path.rpartition("/")
        self._rules.check_name(f"{folder}/" if folder else "", name, ())
        try:
            await self._store.put(path, data, replaces=before)
        finally:
            self._metadata.appeared(path)

    async def remove(self, path: str) -> None:
        """Remove what is there now."""
        before = await self._there(path)
        if before is None:
            raise NotFound(f"no such file: {path}")
        self._rules.check(path, existing=True)
        try:
            await self._store.delete(before)
        finally:
            self._metadata.forget(path)

    async def _there(self, path: str) -> StoredObject | None:
        try:
            return (await self._store.head(path)).object
        except NotFound:
            return None
