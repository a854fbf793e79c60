"""Calls of a bucket, in threads: given up at once when nobody waits for them any more.

A refusal may be out of date: credentials were changed or expired, the bucket is in another region. Then other
credentials, or that region, are taken up once for all who were refused together, and each is told to try
again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import trio

from vfs.errors import Denied, ReelfsError, Unavailable
from vfs.storage.access import METADATA_THREADS, Access
from vfs.storage.answers import Elsewhere
from vfs.storage.connections import Transfer

log = logging.getLogger("vfs.storage.calls")
T = TypeVar("T")

#: Seconds between two looks for other credentials after the store refused, and between two moves.
RENEWAL_SECONDS = 10.0


class Calls:
    """Calls by the access there is now. reading, asking: places for bodies, and for everything else."""

    def __init__(self, access: Access, url: str) -> None:
        self.access = access
        self.reading = trio.CapacityLimiter(access.target.connections)
        self.asking = trio.CapacityLimiter(METADATA_THREADS)
        #: Of these, more: a call that was abandoned while it connected holds its thread, but no place.
        self.threads = trio.CapacityLimiter(access.target.threads)
        self._url = url
        self._looked = self._went = float("-inf")
        self._changing = trio.Lock()

    async def run(self, places: trio.CapacityLimiter, call: Callable[[Access, Transfer], T]) -> T:
        """What a call gives in a thread. Cancelled, it is given up at once.

        Raises what it raises; Unavailable (try again) where another access has been taken up.
        """
        access, transfer = self.access, Transfer()
        try:
            async with places:
                return await trio.to_thread.run_sync(
                    call, access, transfer, limiter=self.threads, abandon_on_cancel=True
                )
        except trio.Cancelled:
            transfer.abandon()
            raise
        except Elsewhere as error:
            if await self._moved(access, error.region):
                raise Unavailable(f"the bucket is in {error.region}") from None
            raise
        except Denied:
            if await self._renewed(access):
                raise Unavailable("the credentials had changed") from None
            raise

    async def connect_ahead(self) -> None:
        """Open connections for reads that may follow."""
        await trio.to_thread.run_sync(
            self.access.connections.connect_ahead, limiter=self.threads, abandon_on_cancel=True
        )

    async def renew(self) -> None:
        """Take up the credentials that are given now. Raises ConfigError, Denied: the old ones stay."""
        async with self._changing:
            fresh = await trio.to_thread.run_sync(self.access.renewed)
            if fresh is not None:
                self.access = fresh

    async def _renewed(self, access: Access) -> bool:
        """The store refused these credentials: whether there are others by now. They are looked for once,
        whoever asks; calls under way end with the old access, which then falls away.
        """
        async with self._changing:
            if self.access is access and time.monotonic() - self._looked >= RENEWAL_SECONDS:
                self._looked = time.monotonic()
                try:
                    fresh = await trio.to_thread.run_sync(access.renewed, abandon_on_cancel=True)
                except ReelfsError as error:  # gone, or half written: what was refused stays refused
                    log.warning("%s: other credentials could not be had: %s", self._url, error)
                    fresh = None
                self.access = fresh or access
            return self.access is not access

    async def _moved(self, access: Access, region: str) -> bool:
        """The bucket is said to be in another region: whether it is asked there from now on. (Not when the
        one sends to the other and back.)
        """
        if region == access.region:
            return False
        async with self._changing:
            if self.access is access and time.monotonic() - self._went >= RENEWAL_SECONDS:
                self._went = time.monotonic()
                self.access = await trio.to_thread.run_sync(access.moved, region, abandon_on_cancel=True)
                log.info("%s is in %s, and asked there", self._url, region)
            return self.access is not access

    async def aclose(self) -> None:
        """Close connections."""
        await trio.to_thread.run_sync(self.access.close)
