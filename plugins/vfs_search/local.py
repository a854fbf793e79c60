"""What people put into `search/`: files to look for, questions to keep. Held on this machine alone.

Neither reaches the store. What is dropped is bounded: one file by `max_upload_size_mb`, all of them by ten
times that; the oldest go first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import trio

from vfs import Malformed, NotFound, TooBig

#: Files kept that were dropped, and questions.
MOST_FILES, MOST_SAVED = 200, 1000
#: Characters of a question.
MAX_QUERY = 4096
QUERY = ".query"
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
        path = self.folder / _checked(name)
        return Local.at(path) if path.is_file() else None

    async def receive(self, name: str, file: Path) -> None:
        """Keep a copy. Raises Malformed for a name that cannot be, TooBig."""
        if name.startswith(".") or name.endswith(".results"):
            raise Malformed(f"{name}: not a name for a file to look for")
        if file.stat().st_size > self.limit:
            raise TooBig(f"{name}: at most {self.limit} bytes are looked for (max_upload_size_mb)")
        await trio.to_thread.run_sync(self._keep, _checked(name), file)

    async def remove(self, name: str) -> None:
        """Raises NotFound."""
        try:
            (self.folder / _checked(name)).unlink()
        except OSError:
            raise NotFound(f"no such file: {name}") from None

    def _keep(self, name: str, file: Path) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.folder / f".{os.getpid()}.part"
        shutil.copyfile(file, part)
        os.replace(part, self.folder / name)
        kept = sorted((self.folder / n for n in self.names()), key=lambda path: -path.stat().st_mtime_ns)
        total = 0
        for number, path in enumerate(kept):
            total += path.stat().st_size
            if number >= MOST_FILES or total > 10 * self.limit:
                path.unlink(missing_ok=True)


class Saved:
    """Questions by name: a folder each, with the question as text in `.query`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Of all questions."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir())

    def query(self, name: str) -> str | None:
        """The question of that name, what its name says where none was written; None when there is none."""
        folder = self.folder / _checked(name)
        if not folder.is_dir():
            return None
        path = folder / QUERY
        if not path.is_file():
            return f"text/{name}"
        return path.read_text("utf-8", "replace").strip().splitlines()[0] if path.stat().st_size else ""

    async def make(self, name: str) -> None:
        """A new one. Raises Malformed, TooBig."""
        if name.startswith("."):
            raise Malformed(f"{name}: not a name for a question")
        if len(self.names()) >= MOST_SAVED:
            raise TooBig(f"there are {MOST_SAVED} saved questions; remove some")
        (self.folder / _checked(name)).mkdir(mode=0o700, parents=True, exist_ok=True)

    async def remove(self, name: str) -> None:
        """Raises NotFound."""
        folder = self.folder / _checked(name)
        if not folder.is_dir():
            raise NotFound(f"no such question: {name}")
        await trio.to_thread.run_sync(shutil.rmtree, folder)

    async def write(self, name: str, file: Path) -> None:
        """The text of a question. Raises NotFound, Malformed."""
        if self.query(name) is None:
            raise NotFound(f"no such question: {name}")
        if file.stat().st_size > MAX_QUERY:
            raise Malformed(f"a question has at most {MAX_QUERY} bytes")
        data = file.read_bytes()
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            raise Malformed("a question is text") from None
        target = self.folder / _checked(name) / QUERY
        part = target.with_name(f".{os.getpid()}.part")
        part.write_bytes(data)
        os.replace(part, target)


def _checked(name: str) -> str:
    """One component and no more. Raises NotFound."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise NotFound(f"no such name: {name!r}")
    return name
