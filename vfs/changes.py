"""What is not to be trusted any more: told by `reelfs refresh`, by events of a bucket, by who writes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

#: Changes kept for a watcher who does not read them; then it is told that some are missing.
MAX_WAITING = 10_000


class Changes:
    """Where changes are told: caches of names are dropped, and who listens hears of it.

    forget: drops what is known of the names at or below a path ("" = all).
    """

    def __init__(self, forget: Callable[[str], None]) -> None:
        self._forget = forget
        self._listeners: list[Callable[[str], None]] = []
        self._watchers: list[trio.MemorySendChannel[dict[str, Any]]] = []

    def listen(self, listener: Callable[[str], None]) -> None:
        """Have a function called with each path that is refreshed (the kernel's adapter does)."""
        self._listeners.append(listener)

    async def refresh(self, path: str) -> None:
        """From now on everything at or below `path` is asked for anew."""
        self.happened(path, {"action": "refreshed", "path": path, "source": "command"})

    def happened(self, path: str, told: dict[str, Any]) -> None:
        """Something changed at `path`; who watches is told this."""
        self._forget(path)
        for listener in self._listeners:
            listener(path)
        self.tell(told)

    def tell(self, told: dict[str, Any]) -> None:
        """Who watches is told of a change that the caches know already."""
        for watcher in self._watchers:
            try:
                watcher.send_nowait(told)
            except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
                watcher.close()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[trio.MemoryReceiveChannel[dict[str, Any]]]:
        """What happens from now on; the channel ends when its reader was too slow."""
        send, receive = trio.open_memory_channel[dict[str, Any]](MAX_WAITING)
        self._watchers.append(send)
        try:
            with receive:
                yield receive
        finally:
            self._watchers.remove(send)
            send.close()
