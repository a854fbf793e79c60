"""The standard commands of a mount (`vfs.control`): status, refresh, forget, warm, queue, ..."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Any

import trio

from vfs.cache.blocks import BlockCache
from vfs.changes import Changes
from vfs.config import LOG_LEVELS, Settings
from vfs.control import Call, Control
from vfs.errors import ConfigError, NotFound, ReadOnly, Unavailable
from vfs.found import Found
from vfs.nodes import Bytes, Directory, Spliced
from vfs.reader import Reader
from vfs.readers import Readers
from vfs.telemetry import Status
from vfs.tree import Tree
from vfs.write.session import WriteSession

log = logging.getLogger("vfs.operate")

#: The format that `warm x.mp4@60s-90s` means: the one whose bytes are those of the video.
WARM_FORMAT = "mp4"
#: Seconds between what `flush` says of its progress, and the entries `queue` shows at most.
FLUSH_INTERVAL = 0.5
MAX_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class Operations:
    """What the commands work on."""

    settings: Settings
    control: Control
    tree: Tree
    reader: Reader
    blocks: BlockCache
    status: Status
    changes: Changes
    writing: WriteSession | None = None
    readers: Readers = field(default_factory=Readers)

    def add(self) -> None:
        """Put the commands into the table; what another layer has put there stays."""
        for name, handler in {
            "status": self._status,
            "why": self._why,
            "refresh": self._refresh,
            "forget": self._forget,
            "warm": self._warm,
            "watch": self._watch,
            "flush": self._flush,
            "queue": self._queue,
            "leave": self._leave,
            "undelete": self._undelete,
            "log-level": self._log_level,
        }.items():
            if name not in self.control.commands:
                self.control.command(name, handler)

    async def _status(self, call: Call) -> Any:
        """`.reelfs/status.json`, and what only the process knows."""
        mountpoint = self.settings.mountpoint
        return {
            "mountpoint": str(mountpoint) if mountpoint else None,
            "pid": os.getpid(),
            "read_write": self.settings.writes,
            "queue": self._waiting(""),
            "found": self.writing.summary() if self.writing is not None else "",
            "readers": self.readers.busy(),
            **self.status.snapshot(),
        }

    async def _why(self, call: Call) -> Any:
        """Fail as `path` does, with the words that the kernel has none for."""
        found = await self.tree.resolve(call.text("path", ""))
        return {"path": found.path}

    async def _refresh(self, call: Call) -> Any:
        """Ask the store again for what is at or below `path`, from the next use on."""
        path = call.text("path", "")
        await self.changes.refresh(path)
        return {"path": path}

    async def _watch(self, call: Call) -> Any:
        """Say each change at or below `path`, until the client hangs up."""
        path = call.text("path", "")
        async with self.changes.watching() as changes:
            await call.progress({"action": "watching", "path": path})
            async for change in changes:
                where = change["path"]
                if not path or where == path or where.startswith(f"{path}/") or path.startswith(f"{where}/"):
                    await call.progress(change)
        raise Unavailable("changes came faster than they were read: some are missing")

    async def _forget(self, call: Call) -> Any:
        """Drop cached bytes of what is at or below `path`; the names are refreshed, too."""
        path = call.text("path", "")
        objects = None
        if path:
            found = await self.tree.resolve(path)
            objects = {o async for file in self._files(found) for o in file.sources}
        freed = await self.blocks.forget(objects)
        await self.changes.refresh(path)
        return {"path": path, "bytes": freed}

    async def _warm(self, call: Call) -> Any:
        """Fetch what reading `path` (below a folder: all files) needs, so that it comes from the cache."""
        path = call.text("path", "")
        found = await self._warmable(path)
        files = [file async for file in self._files(found)]
        total, done = sum(file.size or 0 for file in files), 0
        await call.progress({"bytes": 0, "total": total, "path": path})
        for file in files:
            if isinstance(file.node, Bytes):
                done += len(await self.tree.settle(file))
                await call.progress({"bytes": done, "total": max(total, done), "path": file.path})
            elif isinstance(file.node, Spliced):
                async for piece in self.reader.stream(file.node.layout):
                    done += len(piece)
                    if self.blocks.disk is not None:
                        await self.blocks.disk.drain()  # which drops what it cannot write in time
                    await call.progress({"bytes": done, "total": max(total, done), "path": file.path})
        return {"path": path, "bytes": done, "files": len(files)}

    async def _warmable(self, path: str) -> Found:
        """What a path is; a range without a format is the video's bytes of it. Raises NotFound."""
        try:
            return await self.tree.resolve(path)
        except NotFound:
            if "@" not in path.rpartition("/")[2]:
                raise
        return await self.tree.resolve(f"{path}.{WARM_FORMAT}")

    async def _files(self, found: Found) -> AsyncIterator[Found]:
        """The files at or below a path."""
        if not isinstance(found.node, Directory):
            yield found
            return
        for child in (await self.tree.entries(found)).values():
            async for file in self._files(child):
                yield file

    async def _flush(self, call: Call) -> Any:
        """Send what was written at or below `path`; what is left when nothing more can be done now."""
        path = call.text("path", "")
        if self.writing is None:
            return self._waiting(path)
        at_first = self._waiting(path)["bytes"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._say_how_far, call, path, at_first)
            await self.writing.flush(path)
            nursery.cancel_scope.cancel()
        return self._waiting(path)

    async def _say_how_far(self, call: Call, path: str, at_first: int) -> None:
        while True:
            left = self._waiting(path)["bytes"]
            await call.progress({"bytes": max(0, at_first - left), "total": max(at_first, left)})
            await trio.sleep(FLUSH_INTERVAL)

    async def _leave(self, call: Call) -> Any:
        """Do not wait for what is not sent when the mount ends: it stays for the next one."""
        if self.writing is not None:
            self.writing.flush_seconds = 0.0
        return self._waiting("")

    async def _undelete(self, call: Call) -> Any:
        """Bring back what was deleted at or below `path`."""
        if self.writing is None:
            raise ReadOnly("the mount is read-only: reelfs undelete SOURCE PATH does it without")
        return {"paths": await self.writing.undelete(call.text("path", ""))}

    async def _queue(self, call: Call) -> Any:
        """What was written at or below `path` and is not in the store yet, oldest first."""
        return self._waiting(call.text("path", ""))

    def _waiting(self, path: str) -> dict[str, Any]:
        waiting = self.writing.uploader.queue(path) if self.writing is not None else []
        return {
            "files": len(waiting),
            "bytes": sum(one.bytes for one in waiting),
            "oldest_seconds": max((one.age for one in waiting), default=0.0),
            "entries": [asdict(one) for one in waiting[:MAX_ENTRIES]],
        }

    async def _log_level(self, call: Call) -> Any:
        """Set the level of the log, from now on; without an argument say what it is."""
        level = call.arguments.get("level")
        if level is not None:
            if level not in LOG_LEVELS:
                raise ConfigError(f"{level!r} is not a log level: {', '.join(LOG_LEVELS)}")
            logging.getLogger().setLevel(level.upper())
            log.info("the log level is %s now", level)
        return {"level": logging.getLevelName(logging.getLogger().level).lower()}
