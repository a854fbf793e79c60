"""A process that writes through the writing half of a mount, step by step, and is killed at some point."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import trio

from tests.crash.parent import receive, send
from vfs import errors
from vfs.cache.blocks import BlockCache
from vfs.cache.budget import Budget
from vfs.reader import open_reader
from vfs.spans import StoredObject
from vfs.storage import upload
from vfs.write import sending, uploader
from vfs.write.attributes import Attributes
from vfs.write.merged import MergedMetadata
from vfs.write.pending import Entry, Pending
from vfs.write.rules import Rules
from vfs.write.session import WriteSession, open_writing

SECONDS = 20.0
METHODS = (
    *("head", "list", "put", "copy", "delete"),
    *("start_upload", "put_part", "complete_upload", "abort_upload", "uploads"),
)


class ChildStore:
    """Every request goes to the parent."""

    url, remote, offline = "memory://", True, False

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        if name not in METHODS:
            raise AttributeError(name)

        async def work(*args: Any, **told: Any) -> Any:
            return await self.ask(name, *args, **told)

        return work

    async def read(self, stored: StoredObject, offset: int, length: int, arriving: Any = None) -> Any:
        return await self.ask("read", stored, offset, length)

    async def ask(self, name: str, *args: Any, **told: Any) -> Any:
        stream = await trio.open_unix_socket(self._path)
        async with stream:
            args = tuple(bytes(a) if isinstance(a, memoryview | bytearray) else a for a in args)
            await send(stream, (name, args, told))
            error, answer = await receive(stream)
        if error is not None:
            raise getattr(errors, error)(answer)
        return answer

    def tell(self, *message: Any) -> None:
        """Without the loop: from any thread."""
        import pickle

        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self._path)
            data = pickle.dumps((message[0], message[1:], {}))
            sock.sendall(struct.pack(">I", len(data)) + data)
            sock.recv(1)


class Drive:
    """The requests of the adapter."""

    def __init__(self, store: ChildStore, session: WriteSession, metadata: MergedMetadata) -> None:
        self.store, self.session, self.metadata, self.drive = store, session, metadata, session.drive

    @staticmethod
    def split(key: str) -> tuple[str, str]:
        cut = key.rfind("/") + 1
        return key[:cut], key[cut:]

    async def opened(self, key: str, *, truncate: bool = False) -> Entry:
        folder, name = self.split(key)
        found = await self.metadata.find(folder, name)
        if found is None:
            entry: Entry = await self.drive.create(folder, name, Attributes())
        else:
            assert isinstance(found, StoredObject)
            entry = await self.drive.open(found)
            if truncate:
                entry.opened += 1
                await self.drive.files.truncate(entry, 0)
                return entry
        entry.opened += 1
        return entry

    async def close(self, entry: Entry) -> None:
        await self.drive.files.flush(entry)
        entry.opened -= 1
        await self.drive.close(entry)

    async def store_file(self, key: str, body: bytes) -> None:
        """As cp does."""
        entry = await self.opened(key, truncate=True)
        for at in range(0, len(body), 25):
            await self.drive.files.write(entry, at, body[at : at + 25])
        await self.close(entry)

    async def go_on(self, key: str, body: bytes, first: int) -> None:
        """Closed by one of the programs that have it open, and written on by another."""
        entry = await self.opened(key, truncate=True)
        await self.drive.files.write(entry, 0, body[:first])
        await self.drive.files.flush(entry)
        await self.drive.files.write(entry, first, body[first:])
        await self.close(entry)

    async def go_over(self, key: str, body: bytes, other: bytes) -> None:
        """Closed by one of the programs that have it open, and written over by another."""
        entry = await self.opened(key, truncate=True)
        await self.drive.files.write(entry, 0, body)
        await self.drive.files.flush(entry)
        for at in range(0, len(other), 25):
            await self.drive.files.write(entry, at, other[at : at + 25])
        await self.close(entry)

    async def patch(self, key: str, offset: int, data: bytes) -> None:
        """A few bytes in the middle."""
        entry = await self.opened(key)
        await self.drive.files.write(entry, offset, data)
        await self.close(entry)

    async def fsync(self, key: str, body: bytes) -> None:
        entry = await self.opened(key, truncate=True)
        await self.drive.files.write(entry, 0, body)
        await self.session.fsync(entry)
        await self.close(entry)

    async def rename(self, old: str, new: str, exchange: bool = False) -> None:
        await self.drive.rename(*self.split(old), *self.split(new), exchange=exchange)

    async def unlink(self, key: str) -> None:
        await self.drive.unlink(*self.split(key))

    async def mkdir(self, key: str) -> None:
        await self.drive.mkdir(*self.split(key), Attributes())

    async def rmdir(self, key: str) -> None:
        await self.drive.rmdir(*self.split(key))

    async def symlink(self, key: str, target: str) -> None:
        await self.drive.symlink(*self.split(key), target, Attributes())

    async def chmod(self, key: str, mode: int) -> None:
        folder, name = self.split(key)
        found = await self.metadata.find(folder, name)
        assert isinstance(found, StoredObject)
        await self.drive.change(None, found, Attributes(mode=mode, mtime_ns=1_000_000_000))

    async def another(self, key: str, body: bytes) -> None:
        """Another client is faster."""
        await self.store.ask("another", key, body)

    async def send(self) -> None:
        left = await self.session.flush(patience=SECONDS / 2)
        assert left == [], left

    async def begin(self) -> None:
        """Send, beside what comes next."""
        for entry in self.drive.pending:
            entry.due = 0.0
        self.session.uploader._news.set()
        for _ in range(3):
            await trio.lowlevel.checkpoint()


async def run(socket_path: str, folder: str, steps: list[tuple[Any, ...]], kill: int, trash: float) -> None:
    store = ChildStore(socket_path)
    count = 0

    def point(name: str) -> None:
        nonlocal count
        count += 1
        if kill:
            if count == kill:
                os.kill(os.getpid(), signal.SIGKILL)
        else:
            store.tell("at", name)

    async with AsyncExitStack() as stack:
        cache = BlockCache(store, Budget(1 << 20), None)
        reader = await stack.enter_async_context(
            open_reader(cache, gap=1 << 16, read_ahead_max=0, connections=4)
        )
        metadata = MergedMetadata(store, pending=Pending(), dir_ttl=0.0, attr_ttl=0.0, negative_ttl=0.0)
        stack.callback(metadata.close)
        session = await stack.enter_async_context(
            open_writing(
                Path(folder),
                store,
                metadata,
                reader,
                Rules(clock=trio.current_time),
                delay=1000.0,
                trash_seconds=trash,
                small=50,
                point=point,
            )
        )
        drive = Drive(store, session, metadata)
        for number, (name, *args) in enumerate(steps):
            work: Callable[..., Awaitable[None]] = getattr(drive, name)
            with trio.fail_after(SECONDS):
                await work(*args)
            await store.ask("did", number)


def main(
    socket_path: str, folder: str, steps: list[tuple[Any, ...]], kill: int, trash: float, gate: Connection
) -> None:
    """In a process of its own. gate: says when to begin."""
    import logging

    gate.recv()

    logging.disable(logging.CRITICAL)
    uploader.PER_KEY, uploader.FIRST_WAIT = 0.0, 0.01
    upload.part_size = lambda size: 16
    defaults = sending.Sender.__init__.__kwdefaults__
    assert defaults is not None
    defaults["single"] = 30
    trio.run(run, socket_path, folder, steps, kill, trash)
