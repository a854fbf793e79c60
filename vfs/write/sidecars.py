"""What indexers store beside the files of a source: new, or in place of a version that they looked at."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import trio

from vfs.errors import ReelfsError, Stale
from vfs.spans import StoredObject
from vfs.storage import upload
from vfs.storage.base import Body, Store
from vfs.views import Place
from vfs.write.rules import Rules


class StoredSidecars:
    """See `vfs.Sidecars`."""

    def __init__(self, store: Store, rules: Rules) -> None:
        self._store, self._rules = store, rules

    def allows(self, path: str, *, replaces: Place | None = None) -> bool:
        """Whether `write.allow` and, for what is there already, `write.protect` let it be."""
        return self._rules.allows(path) and (replaces is None or not self._rules.protects(path))

    async def put(self, path: str, body: bytes | Path, *, replaces: Place | None = None) -> None:
        """Store it under the condition that nothing is there, or still that version."""
        self._rules.check(path, existing=replaces is not None)
        folder, _, name = path.rpartition("/")
        self._rules.check_name(f"{folder}/" if folder else "", name, ())
        before = replaces.object if replaces is not None else None
        try:
            if isinstance(body, Path):
                with body.open("rb", buffering=0) as file:
                    await self._send(path, file, before)
            else:
                await self._store.put(path, body, replaces=before)
        except Stale:
            raise Stale(f"{path} was stored by somebody else meanwhile, and is left as it is") from None

    async def _send(self, path: str, file: BinaryIO, replaces: StoredObject | None) -> None:
        """A file of any size; parts of what did not get through are not left behind."""
        begun: list[str] = []

        async def began(name: str) -> None:
            begun.append(name)

        try:
            size = os.fstat(file.fileno()).st_size
            read = partial(_read, file)
            await upload.send(self._store, path, size, read, replaces=replaces, began=began)
        except BaseException:
            with trio.CancelScope(shield=True), suppress(ReelfsError):
                for name in begun:
                    await self._store.abort_upload(path, name)
            raise


async def _read(file: BinaryIO, offset: int, length: int) -> Body:
    return await trio.to_thread.run_sync(os.pread, file.fileno(), length, offset)
