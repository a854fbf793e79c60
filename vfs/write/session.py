"""Writing put together: staging, journal, names and uploader of one mount that is written to."""

from __future__ import annotations

import itertools
import json
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio
import xxhash

from vfs.cache.metadata import Metadata
from vfs.errors import NoRoom
from vfs.spans import StoredObject
from vfs.storage.base import Store
from vfs.tasks import background
from vfs.units import visible
from vfs.write import companions, trash
from vfs.write.book import Book
from vfs.write.drive import Drive
from vfs.write.files import Fetches, Files
from vfs.write.journal import Journal
from vfs.write.losses import Recovered
from vfs.write.merged import MergedMetadata
from vfs.write.pending import Entry, Pending
from vfs.write.rules import Rules
from vfs.write.staging import SMALL, Staging
from vfs.write.twins import Twins
from vfs.write.uploader import Uploader, Waiting

log = logging.getLogger("vfs.write")


class WriteSession:
    """What the FUSE adapter and the commands use. settled: told of an entry that the store has."""

    def __init__(
        self, drive: Drive, uploader: Uploader, *, fsync_to_store: bool, flush_seconds: float
    ) -> None:
        self.drive = drive
        self.uploader = uploader
        self.settled: Callable[[Entry], None] = lambda entry: None
        self.recovered = Recovered()
        #: How long the end waits for what is not sent.
        self.flush_seconds = flush_seconds
        self._fsync_to_store = fsync_to_store

    async def fsync(self, entry: Entry) -> None:
        """See the setting `write.fsync`. Raises DeadlineExceeded: then it is in the journal still."""
        await self.drive.files.flush(entry)
        await self.drive.journal.safe()  # its name, too
        if not self._fsync_to_store or entry.local or not entry.key:
            return
        if companions.unfinished(self.drive.pending, entry.key):
            return  # SQLite asks for this in the middle of a transaction; what it is then is for nobody else
        draft = await self.drive.files.sealed(entry)
        if draft is not None:
            await self.uploader.wait_for(entry, draft)

    async def sync_names(self) -> None:
        """What was created, moved and removed until now stays so, whatever happens to the machine."""
        await self.drive.journal.safe()

    def queue_json(self) -> bytes:
        """`.reelfs/queue.json`."""
        return json.dumps([asdict(one) for one in self.uploader.queue()], indent=1).encode()

    def conflicts_text(self) -> bytes:
        """`.reelfs/conflicts`: a line each, oldest first: time, path, what it is kept as, why."""
        rows = (
            "\t".join(visible(one[part]) for part in ("time", "path", "kept", "why"))
            for one in self.drive.conflicts
        )
        return "".join(f"{row}\n" for row in rows).encode("utf-8", "backslashreplace")

    def summary(self) -> str:
        """What a mount says at its start of what it found, "" for nothing."""
        found, lines = self.recovered, []
        if found.files:
            lines.append(f"{found.files} file(s) of an earlier mount are being sent")
        lines += [f"a file that was being written when that ended is kept as {name}" for name in found.kept]
        return "; ".join(lines)

    async def undelete(self, path: str) -> list[str]:
        """See `trash.undelete`."""
        keys = await trash.undelete(self.drive.metadata.store, path)
        for key in keys:
            for at in (at + 1 for at, letter in enumerate(key) if letter == "/"):
                if (above := self.drive.pending.get(key[:at])) is not None and above.settled is not None:
                    self.drive.pending.discard(above.key)
            self.drive.pending.discard(key)
            self.drive.metadata.appeared(key)
            self.drive.changed_behind(key)
        return keys

    async def flush(self, below: str = "", *, patience: float | None = None) -> list[Waiting]:
        """Send what waits; what is left. What had nothing to be sent outlives the machine, too."""
        left = await self.uploader.flush(below, patience=patience)
        with suppress(NoRoom):
            await self.drive.journal.safe()
        return left


def staging_folder(base: Path, url: str) -> Path:
    """Where what is written to a store waits."""
    return base / "write" / xxhash.xxh3_128_hexdigest(url.encode("utf-8", "surrogateescape"))


def merged_metadata(store: Store, **settings: Any) -> MergedMetadata:
    """Names of a mount that is written to."""
    return MergedMetadata(store, pending=Pending(), **settings)


def fault_point() -> Callable[[str], object]:
    """For tests: with `VFS_FAULT_POINT=NAME:N` in the environment the process is killed as it comes to the
    step of that name (`*`: any) for the N-th time.
    """
    name, _, count = os.environ.get("VFS_FAULT_POINT", "").partition(":")
    if not name:
        return lambda at: None
    left = itertools.count(int(count or 1) - 1, -1)

    def point(at: str) -> None:
        if name in (at, "*") and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return point


@asynccontextmanager
async def open_writing(
    folder: Path,
    store: Store,
    metadata: Metadata,
    reader: Fetches,
    rules: Rules,
    *,
    delay: float = 1.0,
    trash_seconds: float = 0.0,
    deadline: float = 30.0,
    fsync_to_store: bool = True,
    limit: int = 0,
    floor: int = 0,
    flush_seconds: float = 0.0,
    databases: float = 0.0,
    small: int = SMALL,
    point: Callable[[str], object] | None = None,
) -> AsyncIterator[WriteSession]:
    """Writing over a store, until the block is left; then what waits is sent for up to `flush_seconds`, and
    the rest is in the journal. Raises ReelfsError where another mount has the folder.

    point: for tests, called with the name of each step that a crash may come before or after; without it what
    the environment says (`fault_point`).
    """
    point = point or fault_point()
    assert isinstance(metadata, MergedMetadata)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # one for each file that is being written
    staging = Staging(folder, limit=limit, floor=floor, small=small, point=point)
    try:
        journal = Journal(folder, store.url, point)
    except BaseException:
        staging.close()
        raise
    staging.named, journal.released = journal.names, staging.released
    session: WriteSession

    def settled(entry: Entry, before: StoredObject | None) -> None:
        session.settled(entry)

    uploader = Uploader(
        store,
        delay=delay,
        trash_seconds=trash_seconds,
        deadline=deadline,
        databases=databases,
        settled=settled,
        point=point,
    )
    files = Files(staging, journal, metadata.pending, reader, uploader.wake)
    metadata.pending.dropped = files.drop_settled
    staging.reclaim = files.reclaim
    drive = Drive(
        metadata,
        files,
        journal,
        Book(journal, metadata),
        rules,
        wake=uploader.wake,
        sending=uploader.is_sending,
        twins=Twins(reader),
    )
    uploader.drive = drive
    files.crowded = drive.crowded
    session = WriteSession(drive, uploader, fsync_to_store=fsync_to_store, flush_seconds=flush_seconds)
    try:
        session.recovered = await drive.recover(staging)
        _tell(session.recovered)
        async with background() as nursery:
            await nursery.start(uploader.run)
            nursery.start_soon(journal.keep_safe)
            try:
                yield session
            finally:
                with trio.CancelScope(shield=True):
                    await drive.end()
                    left = await session.flush(patience=session.flush_seconds)
                    with suppress(NoRoom):
                        await files.note_unfinished()
                if left:
                    log.warning("%d files wait in the journal for the next mount: %s", len(left), folder)
    finally:
        files.end()
        try:
            journal.close(drive.last_ident)
        finally:
            staging.close()


def _tell(found: Recovered) -> None:
    if found.files:
        log.info("the journal of an earlier mount has %d files to send (%d bytes)", found.files, found.bytes)
    for name in found.kept:
        log.warning("a file that was being written when the last mount ended is kept as %s", name)
