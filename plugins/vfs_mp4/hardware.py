"""Decoding on a device, where `hwaccel = "auto"` asks for it and there is one; software has the last word."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import trio

from vfs import MediaError, TooBig, WorkerFailed, in_worker
from vfs_mp4 import decode
from vfs_mp4.visual import HARDWARE, Job, read_entry

log = logging.getLogger("vfs_mp4.hardware")

T = TypeVar("T")

#: Times in a row that a device fails where software does not, after which its codec is left to software.
MOST_FAILURES = 3


class Hardware:
    """Which device frames are decoded on; found out once, when the first frame is asked for."""

    def __init__(self, *, wanted: bool = False) -> None:
        self.wanted = wanted
        self._device: str | None = None
        self._lock = trio.Lock()
        self._failures: Counter[str] = Counter()
        self._told: set[str] = set()

    async def decoded(self, job: Job, work: Callable[[Job], Awaitable[T]]) -> T:
        """What `work` makes of a job on the device, else in software. Raises what software raises.

        Nothing that goes wrong with a device is an error of a file: what fails on it is decoded once more.
        """
        codec = read_entry(job).decoder if self.wanted else ""
        device = await self._device_for(codec)
        if not device:
            return await work(job)
        try:
            found = await work(replace(job, device=device))
        except (MediaError, TooBig, WorkerFailed) as problem:
            # Where software fails, too, it is the file.
            found = await work(job)
            self._failed(codec, f"{device}: {problem}")
        else:
            self._failures[codec] = 0
        return found

    async def _device_for(self, codec: str) -> str:
        """The kind of device, "" for software."""
        if codec not in HARDWARE or self._failures[codec] >= MOST_FAILURES:
            return ""
        async with self._lock:
            if self._device is None:
                self._device = await _found()
        return self._device

    def _failed(self, codec: str, why: str) -> None:
        """Once more in a row; said once of each codec."""
        self._failures[codec] += 1
        if codec not in self._told:
            self._told.add(codec)
            log.warning(
                "%s was decoded in software after the device failed (%s); after %d times in a row the device "
                "is not asked any more",
                codec,
                why,
                MOST_FAILURES,
            )


async def _found() -> str:
    try:
        device, why = await in_worker(decode.probe)
    except WorkerFailed as error:  # a driver that takes its process with it, or hangs
        device, why = "", str(error)
    if device:
        log.info("frames are decoded by %s", device)
    else:
        log.warning('hwaccel = "auto": no device decodes, software does (%s)', why)
    return device
