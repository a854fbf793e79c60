"""The index of the mounted library as the mount sees it: opened when first asked for, always the newest."""

from __future__ import annotations

from pathlib import Path

import trio

from vfs import ConfigError, ReelfsError, in_thread
from vfs_search.catalog import Catalog, Snapshot


class Index:
    """Snapshots of one catalogue; several tasks may ask at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._catalog: Catalog | None = None
        self._snapshot: Snapshot | None = None
        self._lock = trio.Lock()

    async def generation(self) -> str:
        """Changes whenever the index does; "" while there is none."""
        async with self._lock:
            return await in_thread(self._generation)

    async def snapshot(self) -> Snapshot | None:
        """What is indexed now; None while nothing is. Raises ReelfsError where it cannot be read."""
        async with self._lock:
            return await in_thread(self._newest)

    def close(self) -> None:
        """Let go of the files."""
        if self._catalog is not None:
            self._catalog.close()

    def _generation(self) -> str:
        catalog = self._opened()
        return "" if catalog is None else catalog.generation

    def _newest(self) -> Snapshot | None:
        catalog = self._opened()
        if catalog is None:
            return None
        if self._snapshot is None or self._snapshot.generation != catalog.generation:
            try:
                self._snapshot = catalog.snapshot()
            except (OSError, ValueError) as error:
                raise ReelfsError(f"the search index {self._folder} cannot be read: {error}") from None
        return self._snapshot

    def _opened(self) -> Catalog | None:
        if self._catalog is None and (self._folder / "catalog.sqlite").exists():
            try:
                self._catalog = Catalog(self._folder)
            except ConfigError as error:
                raise ReelfsError(str(error)) from None
        return self._catalog
