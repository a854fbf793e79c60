"""The writing half of a mount without a kernel, driven step by step from synchronous code.

A trio loop of its own runs in a thread; each call is one request, made as the FUSE adapter makes it. The
store is in memory, tells of everything that is written to it, and holds requests back on demand.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import trio
from trio.testing import wait_all_tasks_blocked

from vfs.cache.blocks import BlockCache
from vfs.cache.budget import Budget
from vfs.cache.listing import FolderMark
from vfs.errors import NotFound, Stale, Unavailable
from vfs.reader import open_reader
from vfs.spans import StoredObject
from vfs.storage.base import Body
from vfs.storage.memory import MemoryStore
from vfs.write import uploader
from vfs.write.attributes import Attributes
from vfs.write.merged import MergedMetadata
from vfs.write.pending import Entry, Kind, Pending, StagedObject
from vfs.write.rules import Rules
from vfs.write.session import WriteSession, open_writing
from vfs.write.staging import SMALL

T = TypeVar("T")
#: Nothing is sent before it is asked for.
NEVER = 10_000.0
SECONDS = 30.0
WRITES = ("put", "copy", "delete", "start_upload", "put_part", "complete_upload")


class HeldStore(MemoryStore):
    """landed: told of each object that came to be or went through a mount. gate: while it is closed, writes
    wait, before they have happened or before they are answered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.landed: Callable[[str, bytes | None], None] = lambda key, body: None
        self.held: str = ""
        self.gate = trio.Event()
        self.waiting = 0
        self.dead = False

    def metadata_of(self, key: str) -> Mapping[str, str]:
        return self._metadata.get(key, {})

    def bodies(self) -> dict[str, bytes]:
        return {key: bytes(body) for key, (_, body) in self._objects.items()}

    def version(self, key: str) -> str | None:
        return self._objects[key][0].version if key in self._objects else None

    async def _gated(self, work: Callable[[], Awaitable[T]]) -> T:
        if self.dead:
            raise Unavailable("the process of this store is dead")
        if self.held == "before":
            await self._wait()
        answer = await work()
        if self.held == "after":
            await self._wait()
        return answer

    async def _wait(self) -> None:
        self.waiting += 1
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        if self.dead:
            raise Unavailable("the process of this store is dead")

    async def put(self, key: str, body: Body, **told: Any) -> StoredObject:
        async def work() -> StoredObject:
            stored = await MemoryStore.put(self, key, body, **told)
            self.landed(key, bytes(body))
            return stored

        return await self._gated(work)

    async def copy(self, stored: StoredObject, key: str, **told: Any) -> StoredObject:
        async def work() -> StoredObject:
            made = await MemoryStore.copy(self, stored, key, **told)
            self.landed(key, self._objects[key][1])
            return made

        return await self._gated(work)

    async def complete_upload(self, key: str, upload: str, parts: Any, **told: Any) -> StoredObject:
        async def work() -> StoredObject:
            made = await MemoryStore.complete_upload(self, key, upload, parts, **told)
            self.landed(key, self._objects[key][1])
            return made

        return await self._gated(work)

    async def delete(self, stored: StoredObject) -> None:
        async def work() -> None:
            await MemoryStore.delete(self, stored)
            self.landed(stored.key, None)

        await self._gated(work)


class Engine:
    """One mount that writes, and what opens and closes it. Calls are made from the thread that made it."""

    def __init__(self, folder: Path, store: HeldStore, *, single: int = 64 << 20, small: int = SMALL) -> None:
        self.folder = folder
        self.store = store
        self._single, self._small = single, small
        self._ready = threading.Event()
        self._over: trio.Event
        self._failure: BaseException | None = None
        self.session: WriteSession
        self.metadata: MergedMetadata
        self._scope: trio.CancelScope
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(SECONDS)
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._over = trio.Event()
        async with AsyncExitStack() as stack:
            budget = Budget(64 << 20)
            reader = await stack.enter_async_context(
                open_reader(
                    BlockCache(self.store, budget, None), gap=1 << 16, read_ahead_max=0, connections=4
                )
            )
            self.metadata = MergedMetadata(
                self.store, pending=Pending(), dir_ttl=0.0, attr_ttl=0.0, negative_ttl=0.0
            )
            stack.callback(self.metadata.close)
            rules = Rules(clock=trio.current_time)
            self.session = await stack.enter_async_context(
                open_writing(
                    self.folder,
                    self.store,
                    self.metadata,
                    reader,
                    rules,
                    delay=NEVER,
                    deadline=5.0,
                    small=self._small,
                )
            )
            self.session.uploader._single = self._single
            await self._quiet()
            self._ready.set()
            await self._over.wait()

    def call(self, work: Callable[..., Awaitable[T]], *args: Any) -> T:
        """One request. Raises what it raises."""

        async def bounded() -> T:
            with trio.fail_after(SECONDS):
                try:
                    return await work(*args)
                finally:
                    await self._quiet()

        return trio.from_thread.run(bounded, trio_token=self._token)

    def close(self) -> None:
        """The end of a mount, nothing more is sent."""
        trio.from_thread.run_sync(self._over.set, trio_token=self._token)
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    def killed(self, into: Path) -> None:
        """What SIGKILL leaves, in another folder; this one ends without the store hearing of it."""

        async def copy() -> None:
            # Holes stay holes.
            subprocess.run(["cp", "-a", "--sparse=always", str(self.folder), str(into)], check=True)
            self.store.dead = True
            self.store.gate.set()

        self.call(copy)
        self.close()
        self.store.dead, self.store.gate, self.store.held = False, trio.Event(), ""

    # -- requests, as the adapter makes them ------------------------------------------------------------

    @property
    def drive(self) -> Any:
        return self.session.drive

    def create(self, folder: str, name: str) -> Entry:
        async def work() -> Entry:
            entry: Entry = await self.drive.create(folder, name, Attributes())
            entry.opened += 1
            return entry

        return self.call(work)

    def open(self, folder: str, name: str, *, truncate: bool = False) -> Entry:
        async def work() -> Entry:
            found = await self.metadata.find(folder, name)
            if not isinstance(found, StoredObject):
                raise NotFound(folder + name)
            found = await self.metadata.current(found)
            entry: Entry = await self.drive.open(found)
            entry.opened += 1
            if truncate:
                await self.drive.files.truncate(entry, 0)
            return entry

        return self.call(work)

    def write(self, entry: Entry, offset: int, data: bytes) -> None:
        self.call(self.drive.files.write, entry, offset, data)

    def truncate(self, entry: Entry, size: int) -> None:
        self.call(self.drive.files.truncate, entry, size)

    def read(self, entry: Entry) -> bytes:
        return bytes(self.call(self.drive.files.read, entry, 0, 1 << 30))

    def flush(self, entry: Entry) -> None:
        self.call(self.drive.files.flush, entry)

    def close_file(self, entry: Entry) -> None:
        async def work() -> None:
            await self.drive.files.flush(entry)
            entry.opened -= 1
            await self.drive.close(entry)

        self.call(work)

    def unlink(self, folder: str, name: str) -> None:
        self.call(self.drive.unlink, folder, name)

    def rename(self, folder: str, name: str, new_folder: str, new_name: str, exchange: bool = False) -> None:
        async def work() -> None:
            await self.drive.rename(folder, name, new_folder, new_name, exchange=exchange)

        self.call(work)

    def chmod(self, folder: str, name: str, mode: int) -> None:
        async def work() -> None:
            found = await self.metadata.find(folder, name)
            if not isinstance(found, StoredObject):
                raise NotFound(folder + name)
            before = await self.drive.attributes(found)
            told = replace(before, mode=mode)
            await self.drive.change(None, found, told)

        self.call(work)

    # -- what there is ----------------------------------------------------------------------------------

    def tree(self) -> dict[str, bytes | str | None]:
        """All names, walked through listings, each looked up as well: bytes of a file, None of a folder (with
        its slash), the target of a link.
        """

        async def walk(folder: str) -> Iterator[tuple[str, bytes | str | None]]:
            try:
                listing = await self.metadata.folder(folder)
            except NotFound:
                listing = None
            found: list[tuple[str, bytes | str | None]] = []
            if listing is None:
                return iter(found)
            for name in sorted(listing.folders):
                assert isinstance(await self.metadata.find(folder, name), FolderMark), folder + name
                found.append((f"{folder}{name}/", None))
                found += await walk(f"{folder}{name}/")
            for name, stored in sorted(listing.files.items()):
                one = await self.metadata.find(folder, name)
                assert isinstance(one, StoredObject), folder + name
                assert (one.size, one.version) == (stored.size, stored.version), folder + name
                body: bytes | str
                if isinstance(stored, StagedObject) and stored.entry.attributes.target is not None:
                    body = stored.entry.attributes.target
                elif isinstance(stored, StagedObject):
                    body = await self._body_of(stored.entry)
                else:
                    body = bytes(await self.store.read(stored, 0, stored.size)) if stored.size else b""
                    told = Attributes.of(self.store.metadata_of(folder + name))
                    body = told.target if told.target is not None else body
                found.append((folder + name, body))
            return iter(found)

        return dict(self.call(walk, ""))

    async def _body_of(self, entry: Entry) -> bytes:
        """While a request is on its way the bytes may be those of the version it has just made."""
        try:
            return bytes(await self.drive.files.read(entry, 0, entry.size))
        except Stale:
            assert entry.content is None
            assert entry.trying is not None
            return self.store.bodies()[entry.key]

    def hurry(self) -> None:
        """Begin to send all that waits; return once nothing moves without somebody's help."""

        async def work() -> None:
            self.session.uploader._hurried += 1
            self.session.uploader._news.set()
            await self._quiet()
            self.session.uploader._hurried -= 1

        self.call(work)

    async def _quiet(self) -> None:
        limiters = (
            trio.to_thread.current_default_thread_limiter(),
            self.drive.files._threads,
            self.drive.journal._threads,
        )
        while True:
            await wait_all_tasks_blocked()
            if not any(limiter.borrowed_tokens for limiter in limiters):
                return
            await trio.sleep(0.0002)

    def settle(self) -> list[str]:
        """Send all that waits; what is left."""

        async def work() -> list[str]:
            left = [one.path for one in await self.session.flush(patience=SECONDS / 2)]
            await self._quiet()
            return left

        return self.call(work)

    def release(self) -> None:
        """Let requests that are held go on."""

        async def work() -> None:
            self.store.held = ""
            self.store.gate.set()
            self.store.gate = trio.Event()
            await self._quiet()

        self.call(work)

    def hold(self, when: str) -> None:
        async def work() -> None:
            self.store.held = when

        self.call(work)

    def staged(self) -> set[int]:
        """Numbers of the staged files on the disk."""
        return {int(path.name) for path in self.folder.iterdir() if path.name.isdigit()}

    def kinds(self) -> dict[str, Kind]:
        return {entry.key: entry.kind for entry in self.drive.pending if entry.settled is None}


@contextmanager
def quick() -> Iterator[None]:
    """A key is written to as often as there is something; what failed is tried again when asked for."""
    before = uploader.PER_KEY, uploader.FIRST_WAIT, uploader.LONGEST_WAIT
    uploader.PER_KEY, uploader.FIRST_WAIT, uploader.LONGEST_WAIT = 0.0, NEVER, NEVER
    try:
        yield
    finally:
        uploader.PER_KEY, uploader.FIRST_WAIT, uploader.LONGEST_WAIT = before
