"""Indexes that lie beside the videos, taken over by a mount on whose machine nobody indexed the library.

In the background, when something is asked about first; nothing is decoded, and no byte of a video is fetched.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

import trio

from vfs import Place, ReelfsError
from vfs_search.sidecar import SUFFIX

if TYPE_CHECKING:
    from vfs_search.indexer import Pictures

log = logging.getLogger("vfs_search.adopting")

#: Seconds after which it is looked again for what came beside the videos, and folders that are looked into.
AGAIN, MOST_FOLDERS = 600.0, 500
BUSY = "indexes that lie beside the videos are being taken over: look again in a moment"
MUCH = "more indexes lie beside the videos than a mount takes over (`adopt`): run `reelfs index SOURCE`"


class Adoption:
    """Of one mount. pictures: makes the one that takes over. limit: bytes of all that is taken over."""

    def __init__(self, pictures: Callable[[], Pictures], limit: int) -> None:
        self._pictures, self._limit = pictures, limit
        self._done: trio.Event | None = None
        self._since = 0.0
        #: What is to be told, if anything.
        self.note = ""

    @property
    def busy(self) -> bool:
        """It is under way."""
        return self._done is not None and not self._done.is_set()

    async def at(self, root: Place, wait: float) -> None:
        """Begin, if it is time to, and wait for it so many seconds at most."""
        if not self._limit:
            return
        if self._done is None or (self._done.is_set() and time.monotonic() - self._since > AGAIN):
            self._done, self._since = trio.Event(), time.monotonic()
            trio.lowlevel.spawn_system_task(self._run, root, self._done)
        with trio.move_on_after(wait):
            await self._done.wait()

    async def _run(self, root: Place, done: trio.Event) -> None:
        try:
            await self._take_all(root)
        except ReelfsError as error:  # the store is away, say: looked again later
            log.info("indexes beside the videos are not taken over: %s", error)
        except Exception:  # here it would end the daemon
            log.exception("taking over indexes that lie beside the videos")
        finally:
            done.set()

    async def _take_all(self, root: Place) -> None:
        pictures, total = None, 0
        self.note = ""
        async with aclosing(_pairs(root)) as pairs:
            async for video, beside in pairs:
                total += beside.size
                if total > self._limit:
                    self.note = MUCH
                    return
                pictures = pictures or self._pictures()
                with suppress(ReelfsError, OSError):  # one that is damaged or gone is left out
                    await pictures.take(video, beside)


async def _pairs(root: Place) -> AsyncGenerator[tuple[Place, Place], None]:
    """Videos and what lies beside them, folder by folder."""
    waiting = [root]
    for _ in range(MOST_FOLDERS):
        if not waiting:
            return
        children = await waiting.pop().children()
        for name, place in sorted(children.items()):
            if place.is_folder:
                waiting.append(place)
            elif name.endswith(SUFFIX) and (video := children.get(name.removesuffix(SUFFIX))) is not None:
                yield video, place
