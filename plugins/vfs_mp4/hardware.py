"""Decoding on a device, where `hwaccel = "auto"` asks for it and there is one."""

from __future__ import annotations

import logging

import trio

from vfs import in_worker
from vfs_mp4 import decode

log = logging.getLogger("vfs_mp4.hardware")


class Hardware:
    """Which device frames are decoded on; found out once, when the first frame is asked for."""

    def __init__(self, *, wanted: bool = False) -> None:
        self.wanted = wanted
        self._device: str | None = None
        self._lock = trio.Lock()

    async def device(self) -> str:
        """The kind of device, "" for software. Raises WorkerFailed, as any work there does."""
        if not self.wanted:
            return ""
        async with self._lock:
            if self._device is None:
                self._device = await _found()
            return self._device


async def _found() -> str:
    device, why = await in_worker(decode.probe)
    if device:
        log.info("frames are decoded by %s", device)
    else:
        log.warning('hwaccel = "auto": no device decodes, software does (%s)', why)
    return device
