"""`reelfs put`, `get` and `presign`: files to and from a store, with no mount. What breaks off goes on.

A download waits beside its target as `NAME.part`, which tells the version it is of; an upload in parts is
noted below `~/.local/state/reelfs/uploads` until it is complete. Nothing is overwritten unseen.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import trio
import xxhash

from vfs import durable
from vfs.errors import ConfigError, NotFound, ReelfsError, Stale, StoreError
from vfs.spans import StoredObject
from vfs.storage import upload
from vfs.storage.base import Body, Corrupt, KeepsSums, Part, Store
from vfs.storage.guard import GuardedStore
from vfs.storage.sums import Running
from vfs.tasks import nursery_without_groups

log = logging.getLogger("vfs.transfer")

MIB = 1 << 20
#: Bytes of one request of a download, and requests on their way.
PIECE, AT_ONCE = 8 * MIB, 4
#: What came is put on the disk after so many pieces: a try after a power cut goes on from there.
SYNC_PIECES = 8
#: Extended attribute of a `.part` file: see `_note`.
_VERSION = "user.reelfs.version"

Progress = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Remote:
    """A key in a store. source: what the store is opened by."""

    source: str
    key: str


def remote_of(text: str) -> Remote:
    """`s3://BUCKET/KEY`, or the path of a file. Raises ConfigError for one without a key."""
    scheme, found, rest = text.partition("://")
    if not found:
        folder, name = os.path.split(os.path.abspath(os.path.expanduser(text)))
        if not name or text.endswith("/"):
            raise ConfigError(f"{text!r} names a folder: add the name of the file")
        return Remote(folder, name)
    place, _, key = rest.partition("/") if scheme != "file" else rest.rpartition("/")
    if not key or key.endswith("/"):
        raise ConfigError(f"{text!r} names no object: {scheme}://BUCKET/KEY")
    return Remote(f"{scheme}://{place}", key)


@asynccontextmanager
async def opened(remote: Remote, *, writable: bool = False) -> AsyncIterator[Store]:
    """The store of a remote, guarded. Raises ConfigError, Denied."""
    from vfs.config import Settings
    from vfs.plugins import load_plugins

    settings = Settings.load({"source": remote.source})
    store = load_plugins(settings.plugins.block).store(settings.source, settings)
    guarded = GuardedStore(store, deadline=settings.deadline, writable=writable)
    try:
        yield guarded
    finally:
        await guarded.aclose()


# -- uploads ------------------------------------------------------------------------------------------------


async def put(
    path: Path, remote: Remote, *, replace: bool, progress: Progress, state: Path, single: int = upload.SINGLE
) -> StoredObject:
    """Send a file. replace: over what is there now, as it is now. state: where uploads are noted.

    Raises ReelfsError where the file changes meanwhile, Stale where the object does or is there already.
    """
    try:
        with path.open("rb", buffering=0) as file:
            return await _put(file, remote, replace=replace, progress=progress, state=state, single=single)
    except OSError as error:
        raise ReelfsError(f"{path}: {error.strerror}") from error


async def _put(
    file: Any, remote: Remote, *, replace: bool, progress: Progress, state: Path, single: int
) -> StoredObject:
    before = os.fstat(file.fileno())

    async def read(offset: int, length: int) -> bytes:
        data = await trio.to_thread.run_sync(os.pread, file.fileno(), length, offset)
        now = os.fstat(file.fileno())
        if len(data) != length or (now.st_mtime_ns, now.st_size) != (before.st_mtime_ns, before.st_size):
            raise ReelfsError(f"{file.name} changed while it was sent: nothing was stored")
        return data

    async with opened(remote, writable=True) as store:
        replaces = await _there(store, remote.key) if replace else None
        if not replace and await _there(store, remote.key) is not None:
            raise Stale(f"{remote.key} is there already: --replace stores over it")
        note = _Note(state, store.url, remote.key, before, replaces)
        known = note.read()
        if not await _lives(store, remote.key, known.upload):
            known = _Known(None, {})
        step = upload.part_size(before.st_size)
        progress(min(len(known.parts) * step, before.st_size))
        stored = await upload.send(
            store,
            remote.key,
            before.st_size,
            read,
            replaces=replaces,
            upload=known.upload,
            done=known.parts,
            began=note.began,
            sent=note.sent(progress),
            single=single,
        )
        note.forget()
        return stored


async def _there(store: Store, key: str) -> StoredObject | None:
    try:
        return (await store.head(key)).object
    except NotFound:
        return None


async def _lives(store: Store, key: str, name: str | None) -> bool:
    return name is not None and (await store.uploads(key)).get(name) == key


@dataclass
class _Known:
    """An upload that began earlier."""

    upload: str | None
    parts: dict[int, Part]


class _Note:
    """What is written down of an upload in parts, so that it can go on."""

    def __init__(
        self, folder: Path, url: str, key: str, status: os.stat_result, replaces: StoredObject | None
    ) -> None:
        told = (url, key, status.st_size, status.st_mtime_ns, status.st_ino, replaces and replaces.version)
        digest = xxhash.xxh3_128_hexdigest(repr(told).encode("utf-8", "surrogateescape"))
        self._path = folder / f"{digest}.json"
        self._known = _Known(None, {})

    def read(self) -> _Known:
        """What was noted by an earlier try, if anything."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(self._path.read_text())
            parts = {int(number): Part(int(number), version) for number, version in told["parts"].items()}
            self._known = _Known(str(told["upload"]), parts)
        return self._known

    async def began(self, name: str) -> None:
        """Note a new upload."""
        self._known = _Known(name, {})
        self._write()

    def sent(self, progress: Progress) -> Callable[[Part, int], Awaitable[None]]:
        """Notes each part that has arrived."""

        async def one(part: Part, length: int) -> None:
            progress(length)
            if self._known.upload is not None:
                self._known.parts[part.number] = part
                self._write()

        return one

    def _write(self) -> None:
        parts: Mapping[int, str] = {part.number: part.version for part in self._known.parts.values()}
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({"upload": self._known.upload, "parts": parts}))
        new.replace(self._path)

    def forget(self) -> None:
        """It is complete."""
        self._path.unlink(missing_ok=True)


# -- downloads ----------------------------------------------------------------------------------------------


async def get(remote: Remote, path: Path, *, replace: bool, progress: Progress) -> StoredObject:
    """Fetch an object into a file, which appears under its name when it is whole.

    Raises ReelfsError where the file is there already, Stale where the object changes meanwhile.
    """
    if path.exists() and not replace:
        raise ReelfsError(f"{path} is there already: --replace stores over it")
    async with opened(remote) as store:
        stored = (await store.head(remote.key)).object
        part = path.with_name(path.name + ".part")
        try:
            with part.open("a+b", buffering=0) as file:
                await download(store, stored, file, progress)
            durable.replace(part, path)
        except OSError as error:
            raise ReelfsError(f"{part}: {error.strerror}") from error
        return stored


@dataclass(eq=False)
class _Piece:
    """A part of an object on its way."""

    offset: int
    length: int
    arrived: trio.Event = field(default_factory=trio.Event)
    body: Body = b""

    async def fetch(self, store: Store, stored: StoredObject) -> None:
        """Raises StoreError, Stale."""
        self.body = await store.read(stored, self.offset, self.length)
        self.arrived.set()


async def download(store: Store, stored: StoredObject, file: Any, progress: Progress) -> None:
    """Make an unbuffered file, open for appending and reading, the object: on the disk when this returns.

    What an earlier try left in it of this very version stays, as far as it had reached the disk; pieces come
    several requests ahead, in order.
    Raises Corrupt, and empties the file, where all of it has not the checksum the store keeps.
    """
    at = _resumed(file.fileno(), stored)
    progress(at)
    ahead = iter(range(at, stored.size, PIECE))
    async with nursery_without_groups() as nursery:

        def begin(offset: int) -> _Piece:
            piece = _Piece(offset, min(PIECE, stored.size - offset))
            nursery.start_soon(piece.fetch, store, stored)
            return piece

        window = deque(begin(offset) for offset in islice(ahead, AT_ONCE))
        written = 0
        while window:
            piece = window.popleft()
            await piece.arrived.wait()
            await trio.to_thread.run_sync(_append, file.fileno(), piece.body)
            written += 1
            if written % SYNC_PIECES == 0:
                await trio.to_thread.run_sync(_sync, file.fileno(), stored)
            progress(piece.length)
            window.extend(begin(offset) for offset in islice(ahead, 1))
    await trio.to_thread.run_sync(os.fsync, file.fileno())
    await _checked(store, stored, file.fileno())
    with contextlib.suppress(OSError):
        os.removexattr(file.fileno(), _VERSION)


async def _checked(store: Store, stored: StoredObject, descriptor: int) -> None:
    """Compare the file with the checksum that the store has, if any. (One request needs no other.)"""
    if stored.size <= PIECE or not isinstance(store, KeepsSums):
        return
    try:
        known = await store.checksum(stored)
    except StoreError as error:
        log.info("%s: its checksum is not known: %s", stored.key, error)
        return
    if known is not None and known != await trio.to_thread.run_sync(_sum, descriptor, stored.size):
        os.ftruncate(descriptor, 0)
        raise Corrupt(f"{stored.key}: the bytes do not have the checksum CRC-64/NVME that the store keeps")


def _sum(descriptor: int, size: int) -> int:
    running = Running()
    while running.at < size and (piece := os.pread(descriptor, MIB, running.at)):
        running.add(running.at, piece)
    return running.value


def _resumed(descriptor: int, stored: StoredObject) -> int:
    """How many bytes of this very version are there already."""
    size, synced = os.fstat(descriptor).st_size, 0
    with contextlib.suppress(OSError, ValueError):
        version, told, boot = os.getxattr(descriptor, _VERSION).decode().rsplit(" ", 2)
        if version == _told(stored):  # beyond what was synced, a power cut may have left anything
            synced = size if boot == _boot() != "unknown" else int(told)
    if synced > min(size, stored.size):
        synced = 0
    os.ftruncate(descriptor, synced)
    _note(descriptor, stored, synced)
    return synced


def _note(descriptor: int, stored: StoredObject, synced: int) -> None:
    """Of which version it is, how much of it is on the disk, and since when this machine runs."""
    with contextlib.suppress(OSError):  # a file system without attributes: the next try begins anew
        os.setxattr(descriptor, _VERSION, f"{_told(stored)} {synced} {_boot()}".encode())


def _sync(descriptor: int, stored: StoredObject) -> None:
    os.fdatasync(descriptor)
    _note(descriptor, stored, os.fstat(descriptor).st_size)


def _told(stored: StoredObject) -> str:
    return f"{stored.version} {stored.size}"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def _append(descriptor: int, body: Any) -> None:
    rest = memoryview(body)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def state_folder(environ: Mapping[str, str]) -> Path:
    """`$XDG_STATE_HOME/reelfs/uploads`, else below `~/.local/state`."""
    base = environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(base) / "reelfs" / "uploads"
