"""Files that people put into `search/drop/`, to be looked for. Held on this machine alone.

What is dropped is bounded: one file by `max_upload_size_mb`, all of them by ten times that; the oldest go.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import trio

from vfs import Malformed, NameTooLong, NotFound, TooBig

#: What the folder of the results of a file is called, and bytes of a name.
RESULTS, NAME_MAX = ".results", 255
#: Files kept.
MOST_FILES = 200
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Local:
    """A file of this machine as it is now."""

    path: Path
    size: int
    version: str
    mtime_ns: int

    @classmethod
    def at(cls, path: Path) -> Local:
        """Raises NotFound."""
        try:
            status = path.stat()
        except OSError:
            raise NotFound(f"no such file: {path.name}") from None
        version = f"{status.st_mtime_ns}:{status.st_size}:{status.st_ino}"
        return cls(path, status.st_size, version, status.st_mtime_ns)

    async def stream(self, offset: int, length: int) -> AsyncIterator[bytes]:
        """As a source of a job. Raises NotFound when it was removed."""
        try:
            file = await trio.to_thread.run_sync(open, self.path, "rb")
        except OSError:
            raise NotFound(f"no such file: {self.path.name}") from None
        with file:
            file.seek(offset)
            while length:
                piece = await trio.to_thread.run_sync(file.read, min(length, _PIECE))
                if not piece:
                    return
                length -= len(piece)
                yield piece

    async def read(self) -> bytes:
        """All of it."""
        return await trio.to_thread.run_sync(self.path.read_bytes)


class Dropped:
    """Files in one folder. limit: bytes of one."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def names(self) -> list[str]:
        """What lies there."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))

    def get(self, name: str) -> Local | None:
        """A file by its name."""
        path = self.folder / checked(name)
        return Local.at(path) if path.is_file() else None

    async def receive(self, name: str, file: Path) -> None:
        """Keep a copy. Raises Malformed for a name that cannot be, TooBig."""
        if name.startswith(".") or name.endswith(RESULTS):
            raise Malformed(f"{name}: not a name for a file to look for")
        if len(f"{name}{RESULTS}".encode("utf-8", "surrogateescape")) > NAME_MAX:
            raise NameTooLong(f"{name}: too long for a folder {RESULTS} beside it")
        if file.stat().st_size > self.limit:
            raise TooBig(f"{name}: at most {self.limit} bytes are looked for (max_upload_size_mb)")
        await trio.to_thread.run_sync(self._keep, checked(name), file)

    async def remove(self, name: str) -> None:
        """Raises NotFound."""
        try:
            (self.folder / checked(name)).unlink()
        except OSError:
            raise NotFound(f"no such file: {name}") from None

    def _keep(self, name: str, file: Path) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file.open("rb") as source, put_in_place(self.folder / name) as part:
            shutil.copyfileobj(source, part, _PIECE)
        kept = sorted((self.folder / n for n in self.names()), key=lambda path: -path.stat().st_mtime_ns)
        total = 0
        for number, path in enumerate(kept):
            total += path.stat().st_size
            if number >= MOST_FILES or total > 10 * self.limit:
                path.unlink(missing_ok=True)


@contextmanager
def put_in_place(path: Path) -> Iterator[IO[bytes]]:
    """A file that is at `path` when it is whole; of several at a time one is. Nothing stays of a failure."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as part:
        try:
            yield part
            part.flush()
            os.replace(part.name, path)
        except BaseException:
            os.unlink(part.name)
            raise


def checked(name: str) -> str:
    """One component and no more. Raises NotFound."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise NotFound(f"no such name: {name!r}")
    return name
