"""What is not to be trusted any more: told by `reelfs refresh`, by events of a bucket, by who writes."""

from __future__ import annotations

from collections.abc import Callable


class Changes:
    """Where changes are told: caches of names are dropped, and who listens hears of it.

    forget: drops what is known of the names at or below a path ("" = all).
    """

    def __init__(self, forget: Callable[[str], None]) -> None:
        self._forget = forget
        self._listeners: list[Callable[[str], None]] = []

    def listen(self, listener: Callable[[str], None]) -> None:
        """Have a function called with each path that is refreshed (the kernel's adapter does)."""
        self._listeners.append(listener)

    async def refresh(self, path: str) -> None:
        """From now on everything at or below `path` is asked for anew."""
        self._forget(path)
        for listener in self._listeners:
            listener(path)
